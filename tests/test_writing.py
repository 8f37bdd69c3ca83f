from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bidsapp.writing import json_or_nothing, replacing, write_frame, write_json, write_table, write_text


def test_files_are_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from bidsapp.writing import write_json;"
        " write_json(Path(sys.argv[1]), {'Name': '\\u00c9tude \\u8133'})"
    )
    where = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.json")], env=where, check=True)
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"Name": "Étude 脳"}


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"Name": "\xc3\x89tude"}', {"Name": "Étude"}),
        (b'\xef\xbb\xbf{"Name": "x"}', {"Name": "x"}),  # a byte order mark
        (b'{"Name": "\xc9tude"}', {}),
        (b'["Name"]', {}),
        (b'{"Name": ', {}),
        (b"[" * 100_000, {}),
        (None, {}),
    ],
)
def test_what_a_json_file_holds_that_may_be_anything(tmp_path: Path, content: bytes | None, found: dict) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert json_or_nothing(tmp_path / "a.json") == found


def test_writing_leaves_nothing_but_the_file(tmp_path: Path) -> None:
    assert write_text(tmp_path / "a" / "b.tsv", "x\n") == tmp_path / "a" / "b.tsv"
    write_json(tmp_path / "a" / "c.json", {"ä": 1})
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["b.tsv", "c.json"]
    assert json.loads((tmp_path / "a" / "c.json").read_text()) == {"ä": 1}


def test_what_is_interrupted_leaves_the_old_file(tmp_path: Path) -> None:
    path = write_text(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as aside:
        aside.write_text("new \ud800", encoding="utf-8")  # half a character
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_table_has_n_a_for_what_was_not_measured_and_says_what_its_columns_mean(tmp_path: Path) -> None:
    rows = [
        {"who": "a", "mm3": 1234.567, "share": np.float32(0.123456), "count": np.int64(0), "seen": True},
        {"who": "b", "mm3": None, "share": float("nan"), "count": 12345, "seen": np.bool_(False)},
    ]
    table, sidecar = write_table(tmp_path / "x.y_t", rows, {"mm3": {"Units": "mm^3"}, "other": {"Units": "s"}})
    assert table.name == "x.y_t.tsv" and sidecar.name == "x.y_t.json"
    assert table.read_text() == (
        "who\tmm3\tshare\tcount\tseen\na\t1234.6\t0.12346\t0\tTrue\nb\tn/a\tn/a\t12345\tFalse\n"
    )
    assert json.loads(sidecar.read_text()) == {"mm3": {"Units": "mm^3"}}


def test_losses_have_as_many_digits_as_gains(tmp_path: Path) -> None:
    rows = [{"gain": 123456.78, "loss": -123456.78, "small": -0.000123456}]
    table, _ = write_table(tmp_path / "deep" / "deeper" / "t", rows, {})
    assert table.read_text() == "gain\tloss\tsmall\n123456.8\t-123456.8\t-0.00012346\n"


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    table, sidecar = write_table(tmp_path / "t", [], {"a": {}}, ["a", "b"])
    assert table.read_text() == "a\tb\n" and json.loads(sidecar.read_text()) == {"a": {}}


def test_a_frame_keeps_its_digits(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": [1234.5678, None], "b": ["x", None]})
    table, sidecar = write_frame(tmp_path / "t", frame, {"a": {"Units": "s"}, "c": {}})
    assert table.read_text() == "a\tb\n1234.5678\tx\nn/a\tn/a\n"
    assert json.loads(sidecar.read_text()) == {"a": {"Units": "s"}, "c": {}}
