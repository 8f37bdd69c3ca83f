"""Who runs the steps, and in which order: nipype's execution plugins."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from nipype.pipeline import plugins
from nipype.pipeline.plugins.base import DistributedPluginBase, PluginBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from bidsapp.errors import UsageError

#: linux/prctl.h
PR_SET_PDEATHSIG = 1
#: malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Steps that go before others of their session: a quarter of a session's time, and half of the others wait for it.
FIRST = ("template",)
#: What a process holds (GB) that gives nothing back after its steps: the largest step's memory, and what is imported.
HELD_GB = 2.0


class SessionBySession(MultiProcPlugin):
    """nipype's MultiProc, but a session is finished before later ones are taken further.

    MultiProc takes steps in the order of the graph: all sessions' first steps, then all second ones. Results would come
    only at the very end, and the intermediate files of every session would lie on the disk at once.
    """

    def __init__(self, order: Sequence[str], plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self._place = {name: place for place, name in enumerate(order)}
        # The pool of the parent class has started no worker yet.
        self.pool = Workers(
            max_workers=self.processors,
            keep_memory=self.processors * HELD_GB <= self.memory_gb / 2,
            initializer=start_worker,
            initargs=(os.getcwd(), os.getpid()),
            mp_context=get_context(self.plugin_args.get("mp_context")),
        )

    def _sort_jobs(self, jobids: Iterable[int], scheduler: str = "tsort") -> list[int]:
        def turn(job: int) -> tuple[int, bool, int]:
            session, step = self.procs[job].fullname.split(".")[1:3]
            return self._place[session], step not in FIRST, job

        return sorted(jobids, key=turn)


class Workers(ProcessPoolExecutor):
    """Processes that keep their memory during a step (`start_worker`) and give it back after it.

    Parameters
    ----------
    keep_memory : bool
        Give it back only at the end: the next step need not ask for it again, which takes up to a tenth of the time.
    **options
        Of the parent class.
    """

    def __init__(self, *, keep_memory: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._keep_memory = keep_memory

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future:
        """As in the parent class."""
        if self._keep_memory:
            return super().submit(function, *args, **options)
        return super().submit(_then_give_back, function, *args, **options)


def _then_give_back(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return function(*args, **options)
    finally:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc; nipype reckons with the memory of running steps alone
            libc.malloc_trim(0)


def start_worker(folder: str, parent: int) -> None:
    """What a process that does steps begins with: it ends with the app, works in `folder`, keeps its memory."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        # However the app ends: a worker that wrote on would meet whoever takes the session over.
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was killed before that took effect
            os._exit(1)
        # Volumes are made and dropped by the hundred: to give each back to the system, and to have its pages zeroed
        # again for the next, takes up to a third of a step's time.
        if hasattr(libc, "mallopt"):
            for option in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
                libc.mallopt(option, 2**30)
    process_initializer(folder)


class DaskPlugin(DistributedPluginBase):
    """Steps on the workers of a Dask cluster (``dask.distributed``), each worker one step at a time.

    ``plugin_args``: ``scheduler`` (address of a running cluster) or ``scheduler_file``; without either a cluster on
    this machine of ``n_procs`` workers is started. ``gpu_resource: true`` sends steps that use a GPU only to workers
    started with ``--resources GPU=1``, one at a time each.
    """

    def __init__(self, plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        try:
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise UsageError("plugin Dask: dask.distributed is not installed (pip install distributed).") from error
        self._cluster = None
        address, file = self.plugin_args.get("scheduler"), self.plugin_args.get("scheduler_file")
        if address is None and file is None:
            # Steps change their process's folder, so no threads; they start processes, so no daemons.
            self._cluster = LocalCluster(
                n_workers=self.plugin_args.get("n_procs", os.cpu_count()), threads_per_worker=1, dashboard_address=None
            )
            address = self._cluster.scheduler_address
        self._client = Client(address=address, scheduler_file=file)
        # Threads and seeds as here, in workers that come later too, before a step imports anything.
        self._client.register_worker_callbacks(_SameEnvironment(self.plugin_args.get("environment", {})))
        self._futures: dict[int, Any] = {}
        self._count = 0

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        self._count += 1
        on_gpu = node.is_gpu_node() and self.plugin_args.get("gpu_resource")
        self._futures[self._count] = self._client.submit(
            run_node, node, updatehash, self._count, pure=False, resources={"GPU": 1} if on_gpu else None
        )
        return self._count

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        future = self._futures[taskid]
        return future.result() if future.done() else None

    def _clear_task(self, taskid: int) -> None:
        del self._futures[taskid]

    def _postrun_check(self) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()


class _SameEnvironment:
    """Sets environment variables on a Dask worker (a class: it is sent there)."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self.variables = dict(variables)

    def __call__(self) -> None:
        os.environ.update(self.variables)


def make_plugin(
    name: str, plugin_args: dict[str, Any], *, order: Sequence[str], environment: Mapping[str, str]
) -> PluginBase:
    """The plugin `name` of ``--nipype-plugin-file``.

    Parameters
    ----------
    name : str
        MultiProc, Dask, or any that nipype has (SLURM, SGE, PBS, Linear, ...).
    plugin_args : dict
        Its arguments.
    order : sequence of str
        Names of the sessions' workflows, in the order in which they are to be done (MultiProc).
    environment : mapping
        Variables that fix threads and seeds, for workers that do not inherit them (Dask).

    Raises
    ------
    UsageError
        There is no such plugin.
    """
    if name == "MultiProc":
        return SessionBySession(order, plugin_args)
    if name == "Dask":
        return DaskPlugin({"environment": dict(environment), **plugin_args})
    known = sorted(each.removesuffix("Plugin") for each in dir(plugins) if each.endswith("Plugin"))
    if name not in known:
        raise UsageError(f"--nipype-plugin-file: there is no plugin {name!r}; choose one of: Dask, {', '.join(known)}.")
    made: PluginBase = getattr(plugins, f"{name}Plugin")(plugin_args=plugin_args)
    return made
