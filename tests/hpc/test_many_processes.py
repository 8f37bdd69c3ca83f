"""Many processes on one OUT_DIR, some of them killed: the result is that of one clean run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bidsapp import locks

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: Times and messages; everything else is compared.
NOT_COMPARED = ("logs", ".work")


def start(data: Path, out: Path, *options: str, pause: float = 0.02) -> subprocess.Popen:
    command = [sys.executable, "-c", "import light; light.main()", str(data), str(out), "participant",
               "--skip-bids-validation", "--nprocs", "1", *options]  # fmt: skip
    where = {"PYTHONPATH": f"{HERE}{os.pathsep}{ROOT}", "LIGHT_PAUSE": str(pause)}
    return subprocess.Popen(
        command, env=os.environ | where, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == code, text
    return text


def tree(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, with its bytes."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] not in NOT_COMPARED
    }


@pytest.fixture(scope="module")
def data(make_dataset: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("hpc") / "data")


@pytest.fixture(scope="module")
def clean(data: Path) -> dict[str, bytes]:
    """What one run by itself leaves."""
    out = data.parent / "clean"
    finish(start(data, out, pause=0))
    found = tree(out)
    assert len([name for name in found if name.endswith("_provenance.json")]) == 9
    assert not (out / ".work").exists()
    return found


@pytest.mark.slow
def test_eight_at_once_one_killed_midway(data: Path, clean: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    labels = [(), (), ("01",), ("02",), ("03",), ("04",), ("05",), ("01", "05")]
    running = [start(data, out, *(("--participant-label", *some) if some else ()), pause=0.1) for some in labels]
    victim = None
    deadline = time.monotonic() + 60
    while victim is None:  # whoever is in the midst of writing
        assert time.monotonic() < deadline, "nothing was written"
        time.sleep(0.02)
        if list(out.glob("sub-*/**/.*.tmp")):
            victim = running[0] if _holds_a_session(running[0].pid, out) else running[1]
            os.kill(victim.pid, signal.SIGKILL)
    for process in running:
        finish(process, -signal.SIGKILL if process is victim else 0)
    finish(start(data, out))  # the restart
    assert tree(out) == clean
    assert not (out / ".work").exists()


def _holds_a_session(pid: int, out: Path) -> bool:
    """Whether a process has a session's lock (the kernel's list names inodes)."""
    inodes = {str(path.stat().st_ino) for path in (out / ".locks").glob("sub-*.lock")}
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return any(row[4] == str(pid) and row[5].rpartition(":")[2] in inodes for row in rows if "->" not in row)


@pytest.mark.slow
def test_the_session_of_a_killed_process_is_taken_over(data: Path, clean: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(data, out, "--participant-label", "05", pause=3)
    _until(lambda: list(out.glob("sub-05/anat/.*.tmp")))
    second = start(data, out, "--participant-label", "05")
    line = ""
    while "another process is at work on it" not in line:
        line = second.stdout.readline()
        assert line, "the second process did not wait"
    os.kill(first.pid, signal.SIGKILL)
    finish(second)
    finish(first, -signal.SIGKILL)
    time.sleep(0.2)
    mine = {name: content for name, content in clean.items() if "sub-0" not in name or "sub-05" in name}
    assert _without_links(tree(out)) == _without_links(mine)  # there is no other subject to lead to


def _without_links(found: dict[str, bytes]) -> dict[str, bytes]:
    links = re.compile(b"<!-- pages -->.*?<!-- /pages -->", re.DOTALL)
    return {name: links.sub(b"", content) if name.endswith(".html") else content for name, content in found.items()}


@pytest.mark.slow
def test_a_broken_session_fails_for_all_and_costs_no_other(
    make_dataset: Callable[[Path], Path], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data")
    (data / "sub-05/anat/sub-05_T1w.nii.gz").write_text("")
    both = [start(data, tmp_path / "out", "--participant-label", "04", "05", pause=0) for _ in range(2)]
    for text in [finish(process, 1) for process in both]:
        assert "the file is empty" in text
    assert len(list((tmp_path / "out").rglob("*_provenance.json"))) == 2


@pytest.mark.slow
def test_two_output_folders_may_share_a_work_folder(data: Path, clean: dict[str, bytes], tmp_path: Path) -> None:
    work, outs = tmp_path / "work", [tmp_path / "one", tmp_path / "two"]
    first = start(data, outs[0], "-w", str(work), pause=0.2)
    _until(lambda: list(outs[0].glob("sub-*/**/.*.tmp")))  # it is at work on a session that the second will do, too
    finish(start(data, outs[1], "-w", str(work)))
    finish(first)
    assert tree(outs[0]) == tree(outs[1]) == clean


@pytest.mark.slow
def test_broken_intermediate_files_of_one_session_cost_no_other(
    data: Path, clean: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    finish(start(data, out, "--keep-work", pause=0))
    for record in out.rglob("*_provenance.json"):
        record.unlink()
    (one,) = out.glob(".work/*/bidsapp/sub_04_ses_a/conform/sums.txt")
    (two,) = out.glob(".work/*/bidsapp/sub_05/conform/result_conform.pklz")
    one.unlink()  # the system removes old files where intermediate ones lie
    two.write_bytes(b"")  # a power cut
    finish(start(data, out, pause=0))
    assert tree(out) == clean


def _until(what, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- the locks themselves -------------------------------------------------------------------------------------------

HOLD = "import sys; from pathlib import Path; from bidsapp import locks; h = locks.take(Path(sys.argv[1]), 'x'{more}); \
print('held', flush=True); sys.stdin.readline(); h.release()"


def _holder(folder: Path, more: str = "") -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD.format(more=more), str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_keeps_others_out_and_leaves_nothing(tmp_path: Path) -> None:
    holder = _holder(tmp_path)
    assert locks.attempt(tmp_path, "x") is None
    assert locks.attempt(tmp_path, "x", shared=True) is None
    other = locks.attempt(tmp_path, "y")
    assert other is not None
    other.release()
    holder.communicate("\n", timeout=20)
    assert list(tmp_path.iterdir()) == []
    mine = locks.attempt(tmp_path, "x")
    assert mine is not None and mine.sound
    mine.release()


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    holder = _holder(tmp_path)
    holder.kill()
    holder.communicate()
    assert (tmp_path / ".locks" / "x.lock").exists()
    with locks.attempt(tmp_path, "x") as mine:
        assert mine.sound
    assert not (tmp_path / ".locks").exists()


def test_shared_locks_are_several_until_one_is_left(tmp_path: Path) -> None:
    holder = _holder(tmp_path, ", shared=True")
    mine = locks.attempt(tmp_path, "x", shared=True)
    assert mine is not None
    assert not mine.alone()
    holder.communicate("\n", timeout=20)
    assert mine.alone()
    mine.release()
    assert list(tmp_path.iterdir()) == []


def test_who_leaves_does_not_take_the_lock_of_who_came_since(tmp_path: Path) -> None:
    mine = locks.take(tmp_path, "x", shared=True)
    assert mine.alone()
    locks.tidy(tmp_path)
    holder = _holder(tmp_path, ", shared=True")
    mine.release()
    assert locks.attempt(tmp_path, "x") is None
    holder.communicate("\n", timeout=20)


def test_a_file_system_without_locks_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    held = locks.take(tmp_path, "x")
    assert not held.sound
    held.release()


def test_what_killed_processes_left_is_tidied(tmp_path: Path) -> None:
    for name in (
        ".README.abc.tmp", "logs/.a.json.abc.tmp", "group_maps/.a.nii.gz.abc.tmp", "sub-01/.a.tsv.abc.tmp",
        "sub-01/anat/.a.nii.gz.abc.tmp", "sub-01/ses-1/anat/.a.nii.gz.abc.tmp", "sub-01/figures/.a.png.abc.tmp",
        "sub-01/figures/a.png", ".locks/x.lock",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    locks.tidy(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "sub-01/figures/a.png"]
