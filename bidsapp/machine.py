"""What this process may use of the machine: less than there is, in a cluster's job or a container; and its settings."""

from __future__ import annotations

import contextlib
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/")
#: The rest is for the system, and for what else runs.
SHARE_OF_MEMORY = 0.9
#: Open files that are enough. Not whatever is allowed: in containers that can be a thousand million, and some programs
#: close all of them, one by one.
MANY_FILES = 16384
#: Results must not depend on the machine's load.
FIXED_ENVIRONMENT = {
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1",
    "NIPYPE_NO_ET": "1",  # nipype would ask the network for news
    "NO_ET": "1",
    "MPLBACKEND": "Agg",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def fixed_environment(*, threads: int, seed: int) -> dict[str, str]:
    """Variables that fix threads and seeds.

    To be set before numpy, torch and ANTs are imported (in their processes, too): OpenBLAS reads its number of threads
    once, as numpy is imported.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return {**FIXED_ENVIRONMENT, "ANTS_RANDOM_SEED": str(seed), **dict.fromkeys(names, str(threads))}


def available_cpus(root: Path = ROOT) -> int:
    """CPUs that this process may use: those it is bound to, or the share that its control group or SLURM job has.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` lie.
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [text.split() for text in _limits(root, "cpu", "cpu.max")]
    quotas, periods = (list(_limits(root, "cpu", f"cpu.cfs_{what}_us")) for what in ("quota", "period"))
    shares += [[quota, period] for quota, period in zip(quotas, periods, strict=False)]
    # "max" or -1: no limit
    allowed = [math.ceil(int(quota) / int(period)) for quota, period in shares if quota.isdigit()]
    return max(1, min([bound, *allowed, *_of_the_job("SLURM_CPUS_ON_NODE")]))


def available_memory_gb(root: Path = ROOT) -> float:
    """Memory (GB) to plan with: nine tenths of the machine's, or of the limit of the control group or SLURM job.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` lie.
    """
    return SHARE_OF_MEMORY * memory_gb(root)


def memory_gb(root: Path = ROOT) -> float:
    """Memory (GB) that there is: the machine's, or the limit of the control group or SLURM job.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` lie.
    """
    limits = [*_limits(root, "memory", "memory.max"), *_limits(root, "memory", "memory.limit_in_bytes")]
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    job_mb = [*_of_the_job("SLURM_MEM_PER_NODE"), *_of_the_job("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE")]
    allowed = [*(int(limit) for limit in limits if limit.isdigit()), *(megabytes * 2**20 for megabytes in job_mb)]
    return min([there, *allowed]) / 2**30


def cpu_seconds() -> float:
    """Processor time that this process, and those it started and saw end, took so far."""
    own, started = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + started.ru_utime + started.ru_stime


def forget_peak_memory() -> None:
    """Let `peak_memory_gb` begin anew, where the system lets a process do that."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_gb() -> float:
    """The most memory (GB) that this process held, with what it shares with others."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # since the process began


def allow_many_files() -> None:
    """Raise the number of files that this process, and those it starts, may have open, as far as it is allowed to."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY_FILES if hard == resource.RLIM_INFINITY else min(hard, MANY_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # then it stays; `locks.take` tells where it is reached
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _of_the_job(*names: str) -> Iterator[int]:
    """The product of what SLURM says of its job, where it does: some clusters hold nobody to it but by killing."""
    numbers = [os.environ.get(name, "") for name in names]
    if all(number.isdigit() and int(number) for number in numbers):
        yield math.prod(map(int, numbers))


def _limits(root: Path, controller: str, name: str) -> Iterator[str]:
    """What the file `name` says in the process's control group and those above it (Linux, version 1 or 2)."""
    table = root / "proc/self/cgroup"
    for line in table.read_text().splitlines() if table.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        folder = root / "sys/fs/cgroup" / (controller if controllers else "")
        own = PurePosixPath(group.lstrip("/"))
        for each in (own, *own.parents):  # in a container some are the host's, and not to be seen
            file = folder / each / name
            if file.is_file():
                yield file.read_text().strip()
