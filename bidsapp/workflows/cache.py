"""What nipype keeps of the steps it has done: used again by a later run, where it is whole and the code is the same."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import bidsapp


def code_fingerprint() -> str:
    """Changes with the app's code: nipype's cache does not notice that a node's code is another."""
    digest = hashlib.sha256()
    for path in sorted(Path(bidsapp.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def drop_broken_results(session: Path) -> None:
    """Forget steps whose result cannot be read, or whose files are gone: after a power cut, a quota, a purge by age.

    nipype reads the results of all sessions before it does anything, so that one of these would end the whole run.
    """
    for result in sorted(session.rglob("result_*.pklz")):
        if not _is_whole(result):
            shutil.rmtree(result.parent, ignore_errors=True)


def _is_whole(result_file: Path) -> bool:
    from nipype.pipeline.engine.utils import load_resultfile

    try:
        outputs = load_resultfile(str(result_file)).outputs
        return all(map(os.path.exists, _absolute_paths(outputs.get() if outputs is not None else None)))
    except Exception:  # whatever unpickling what is no pickle raises
        return False


def _absolute_paths(value: object) -> Iterator[str]:
    """Those in a step's outputs, nested as they may be."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for each in value:
            yield from _absolute_paths(each)
    elif isinstance(value, (str, Path)) and os.path.isabs(value):
        yield str(value)
