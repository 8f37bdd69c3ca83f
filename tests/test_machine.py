"""The limits of a cluster's job, a container or a process, as Linux tells them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bidsapp import locks, machine
from bidsapp.errors import TryAgainError
from bidsapp.machine import available_cpus, available_memory_gb

GB = 2**30
#: Files of control groups, and the memory (GB) and CPUs they leave; None: as without them.
MACHINES = {
    "version 2, a container": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GB}\n", "sys/fs/cgroup/cpu.max": "100000 100000"},
        (1, 1),
    ),
    "version 2, a job within a job": (
        {
            "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
            "sys/fs/cgroup/slurm/memory.max": f"{3 * GB}",
            "sys/fs/cgroup/slurm/job_7/memory.max": f"{GB // 2}",
            "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max",
            "sys/fs/cgroup/slurm/job_7/step_0/cpu.max": "max 100000",
            "sys/fs/cgroup/slurm/job_7/cpu.max": "50000 100000",
        },
        (0.5, 1),
    ),
    "version 1, the host's path in a container": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/0af\n4:memory:/docker/0af\n3:pids:/docker/0af\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{GB}",
            "sys/fs/cgroup/pids/memory.limit_in_bytes": "1",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "70000",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        (1, 1),
    ),
    "version 1, no limit": (
        {
            "proc/self/cgroup": "4:memory:/\n5:cpu:/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
        },
        None,
    ),
    "no control groups": ({}, None),
}


@pytest.mark.parametrize("name", MACHINES)
def test_limits_of_a_job_or_a_container(name: str, tmp_path: Path) -> None:
    files, expected = MACHINES[name]
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    (tmp_path / "nothing").mkdir()
    free = available_memory_gb(tmp_path / "nothing"), available_cpus(tmp_path / "nothing")
    memory, cpus = (0.9 * expected[0], expected[1]) if expected else free
    assert available_memory_gb(tmp_path) == pytest.approx(memory)
    assert available_cpus(tmp_path) == cpus


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"SLURM_MEM_PER_NODE": "1024", "SLURM_CPUS_ON_NODE": "1"}, (0.9, 1)),
        ({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "1"}, (0.45, 1)),
        ({"SLURM_MEM_PER_NODE": "0", "SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "2(x3)"}, None),
    ],
)
def test_a_job_of_slurm_without_control_groups(
    said: dict[str, str], expected: tuple[float, int] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"):
        monkeypatch.delenv(name, raising=False)
    free = available_memory_gb(tmp_path), available_cpus(tmp_path)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert (available_memory_gb(tmp_path), available_cpus(tmp_path)) == pytest.approx(expected or free)


@pytest.fixture
def few_files() -> Iterator[int]:
    """A soft limit of open files that is low, and the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    yield hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_files_may_be_open(few_files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "MANY_FILES", 128)
    machine.allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (128, few_files)
    monkeypatch.setattr(machine, "MANY_FILES", 100)  # what is more than enough stays
    machine.allow_many_files()
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 128


def test_too_many_open_files_are_called_that(few_files: int, tmp_path: Path) -> None:
    with pytest.raises(TryAgainError, match=r"too many files are open.*ulimit -n"), ExitStack() as stack:
        [stack.enter_context(locks.take(tmp_path, str(number))) for number in range(64)]
    assert list(tmp_path.iterdir()) == []
