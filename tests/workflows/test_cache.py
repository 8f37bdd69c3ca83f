"""Steps of an earlier run: the whole ones are used again, the others are forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest

from bidsapp.workflows.cache import drop_broken_results


def _result(folder: Path) -> Path:
    """What nipype keeps of a step with one file."""
    from nipype.interfaces import utility
    from nipype.pipeline import engine as pe

    def step() -> str:
        from pathlib import Path

        Path("made.txt").write_text("whole")
        return str(Path("made.txt").resolve())

    node = pe.Node(utility.Function(output_names=["out"], function=step), name="step", base_dir=str(folder))
    node.run()
    return folder / "step" / "result_step.pklz"


def test_steps_whose_results_are_whole_are_kept(tmp_path: Path) -> None:
    result = _result(tmp_path)
    drop_broken_results(tmp_path)
    assert result.is_file() and (result.parent / "made.txt").is_file()


@pytest.mark.parametrize("damage", ["empty", "cut", "zeros", "other", "gone"])
def test_steps_whose_results_are_not_are_forgotten(damage: str, tmp_path: Path) -> None:
    result = _result(tmp_path)
    packed = result.read_bytes()
    if damage == "gone":
        (result.parent / "made.txt").unlink()
    else:
        whole = {"empty": b"", "cut": packed[:200], "zeros": packed[:-60] + bytes(60), "other": b"no pickle"}
        result.write_bytes(whole[damage])
    drop_broken_results(tmp_path)
    assert not result.parent.exists()
