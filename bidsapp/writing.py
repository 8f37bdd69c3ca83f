"""Files that are whole or not there: written aside, then renamed, read back; and the checksum that tells them apart."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # heavy, and the command line reads model cards, whose checksum is made here
    import pandas as pd


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, renamed to it at the end: nobody ever sees half a file.

    Its name is nobody else's: a process id would not do, two containers or two machines have the same ones.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> Path:
    """Write a file of text, in UTF-8 whatever the locale; gives back its path."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a JSON file; gives back its path."""
    return write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def json_or_nothing(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty where there is no such file, or nothing in it that can be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))  # as some editors write it
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_table(
    stem: Path,
    rows: Sequence[Mapping[str, Any]],
    dictionary: Mapping[str, Mapping[str, Any]],
    columns: Sequence[str] | None = None,
) -> tuple[Path, Path]:
    """Write what was measured as ``stem.tsv``, and what its columns mean as ``stem.json``.

    Parameters
    ----------
    stem : Path
        Without suffix.
    rows : sequence of mapping
        ``n/a``, never 0, is written where a value is None or NaN.
    dictionary : mapping
        What is said of columns, by name; of those that the table does not have nothing is written.
    columns : sequence of str, optional
        Default: those of the first row. To be given where there may be no row.

    Returns
    -------
    tuple of Path
        Table and data dictionary.
    """
    columns = list(rows[0]) if columns is None else columns
    lines = ["\t".join(columns), *("\t".join(_cell(row[column]) for column in columns) for row in rows)]
    about = {column: dict(dictionary[column]) for column in columns if column in dictionary}
    return _write_both(stem, "\n".join(lines) + "\n", about)


def write_frame(stem: Path, frame: pd.DataFrame, dictionary: Mapping[str, Any]) -> tuple[Path, Path]:
    """As `write_table`, of a table made of tables: numbers keep the digits they came with, the dictionary is whole."""
    text = frame.to_csv(sep="\t", index=False, na_rep="n/a", float_format="%.10g", lineterminator="\n")
    return _write_both(stem, text, dictionary)


def _write_both(stem: Path, text: str, dictionary: Mapping[str, Any]) -> tuple[Path, Path]:
    # Not `with_suffix`: a name may hold dots.
    table, sidecar = (stem.with_name(f"{stem.name}{suffix}") for suffix in (".tsv", ".json"))
    return write_text(table, text), write_json(sidecar, dictionary)


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "n/a"
    if isinstance(value, Real) and not isinstance(value, Integral):  # NumPy's floats are such, too
        # Tenths of a mm3 in large numbers, five digits in small ones.
        number = float(value)
        return f"{number:.1f}" if abs(number) >= 1000 else f"{number:.5g}"
    return str(value)


def sha256(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
