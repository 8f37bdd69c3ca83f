from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import index


def test_all_sessions_are_found_and_counted(tmp_path: Path) -> None:
    index.make(tmp_path / "data", sessions=5)
    assert index.timed(tmp_path / "data", sessions=5) < 5
    with pytest.raises(RuntimeError, match="5 of 6"):
        index.timed(tmp_path / "data", sessions=6)
