"""Who runs the steps, and in which order: nipype's execution plugins."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from traceback import format_exception
from typing import Any

from nipype import config as nipype_config
from nipype import logging as nipype_logging
from nipype.pipeline import plugins
from nipype.pipeline.plugins.base import DistributedPluginBase, PluginBase
from nipype.pipeline.plugins.multiproc import MultiProcPlugin, process_initializer, run_node

from bidsapp import machine
from bidsapp.errors import TryAgainError, UsageError

#: linux/prctl.h
PR_SET_PDEATHSIG = 1
#: malloc.h of glibc
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: Steps that go before others of their session: a quarter of a session's time, and half of the others wait for it.
FIRST = ("template",)
#: What a process holds (GB) that gives nothing back after its steps: the largest step's memory (of a usual scan), and
#: what is imported.
HELD_GB = 2.0
#: Told of what died twice.
KILLED = (
    "its process was killed twice, probably for lack of memory. Lower --nprocs, or --mem where it is more than there"
    " is; or give the job, container or machine more memory. Then run the same command again."
)


class SessionBySession(MultiProcPlugin):
    """nipype's MultiProc, but a session is finished before later ones are taken further, and a killed step is noticed.

    MultiProc takes steps in the order of the graph: all sessions' first steps, then all second ones. Results would come
    only at the very end, and the intermediate files of every session would lie on the disk at once.

    When the system kills a process (for want of memory, most often), Python gives up all steps of that pool, and
    MultiProc would wait for them for ever. Here each of them is done once more, by a process of its own and one after
    the other: what dies even so is the step's own failure.

    ``plugin_args``: those of MultiProc, and ``measure``: what each step takes of the machine is given to the callback,
    as the node's ``used`` and the status "used", before its end.
    """

    def __init__(self, order: Sequence[str], plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self._place = {name: place for place, name in enumerate(order)}
        self._context = get_context(self.plugin_args.get("mp_context"))
        self._held_gb = HELD_GB
        # The pool of the parent class has started no worker yet.
        self.pool = self._new_pool(self.processors)
        self._sent: dict[int, tuple[Any, bool]] = {}  # what is needed to send a task again
        self._again: list[int] = []  # tasks that wait for their second try
        self._tried_again: set[int] = set()
        self._alone: Future = Future()  # the second try at work
        self._alone.set_result(None)

    def _new_pool(self, processes: int) -> Workers:
        forked = self._context.get_start_method() == "fork"
        measure = bool(self.plugin_args.get("measure"))  # what is kept of one step would be counted with the next
        return Workers(
            max_workers=processes,
            keep_memory=not measure and self.processors * self._held_gb <= self.memory_gb / 2,
            measure=measure,
            initializer=start_worker,
            initargs=(os.getcwd(), os.getpid(), None if forked else _nipype_settings()),
            mp_context=self._context,
        )

    def _prerun_check(self, graph: Any) -> None:
        super()._prerun_check(graph)
        self._held_gb = max([HELD_GB, *(node.mem_gb for node in graph.nodes())])
        self.pool = self._new_pool(self.processors)

    def _submit_job(self, node: Any, updatehash: bool = False) -> int:
        try:
            taskid: int = super()._submit_job(node, updatehash)
        except BrokenProcessPool:
            self.pool.shutdown(wait=False)
            self.pool = self._new_pool(self.processors)
            taskid = super()._submit_job(node, updatehash)
        self._sent[taskid] = (node, updatehash)
        return taskid

    def _async_callback(self, args: Future) -> None:
        """Nothing: what is raised here is lost, so `_get_result` asks the future itself."""

    def _get_result(self, taskid: int) -> dict[str, Any] | None:
        future = self._task_obj[taskid]
        if future.done():
            try:
                result: dict[str, Any] = future.result()
                if "used" in result and self._status_callback:
                    node, _ = self._sent[taskid]
                    node.used = result.pop("used")
                    self._status_callback(node, "used")
                return result
            except BrokenProcessPool as error:
                if taskid in self._tried_again:
                    return _failed(taskid, _killed(self._sent[taskid][0].name, error))
                self._plan_second_try(taskid)
            except Exception as error:  # what it returned cannot be sent, say
                return _failed(taskid, error)
        if self._again and self._alone.done():
            self._try_again(self._again.pop(0))
        return None

    def _plan_second_try(self, taskid: int) -> None:
        self._tried_again.add(taskid)
        self._again.append(taskid)
        self._task_obj[taskid] = Future()  # stands for the one that comes
        if self._status_callback:
            self._status_callback(self._sent[taskid][0], "again")

    def _try_again(self, taskid: int) -> None:
        pool = self._new_pool(1)
        self._alone = self._task_obj[taskid] = pool.submit(run_node, *self._sent[taskid], taskid)
        pool.shutdown(wait=False)  # it ends with its only task

    def _clear_task(self, taskid: int) -> None:
        super()._clear_task(taskid)
        del self._sent[taskid]

    def _sort_jobs(self, jobids: Iterable[int], scheduler: str = "tsort") -> list[int]:
        def turn(job: int) -> tuple[int, bool, int]:
            session, step = self.procs[job].fullname.split(".")[1:3]
            return self._place[session], step not in FIRST, job

        return sorted(jobids, key=turn)


def _failed(taskid: int, error: Exception) -> dict[str, Any]:
    """A task's result as nipype wants it (raised within `_get_result`, an error would make it stumble)."""
    return {"result": None, "traceback": format_exception(error), "taskid": taskid}


def _killed(step: str, cause: Exception) -> TryAgainError:
    error = TryAgainError(f"step {step}: {KILLED}")
    error.__cause__ = cause
    return error


def _nipype_settings() -> dict[str, Any]:
    """nipype's settings in this process, for processes that do not inherit them."""
    return {name: dict(nipype_config._sections[name]) for name in ("execution", "logging")}


class Workers(ProcessPoolExecutor):
    """Processes that keep their memory during a step (`start_worker`) and give it back after it.

    Parameters
    ----------
    keep_memory : bool
        Give it back only at the end: the next step need not ask for it again, which takes up to a tenth of the time.
    measure : bool
        Put the seconds of processor time and the most memory (GB) that a step took into its result, as "used".
    **options
        Of the parent class.
    """

    def __init__(self, *, keep_memory: bool = False, measure: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._keep_memory = keep_memory
        self._measure = measure

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future:
        """As in the parent class."""
        if self._measure:
            function, args = _measured, (function, *args)
        if self._keep_memory:
            return super().submit(function, *args, **options)
        return super().submit(_then_give_back, function, *args, **options)


def _measured(function: Callable[..., dict[str, Any]], *args: Any, **options: Any) -> dict[str, Any]:
    machine.forget_peak_memory()
    before = machine.cpu_seconds()
    result = function(*args, **options)
    return {**result, "used": (machine.cpu_seconds() - before, machine.peak_memory_gb())}


def _then_give_back(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return function(*args, **options)
    finally:
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc; nipype reckons with the memory of running steps alone
            libc.malloc_trim(0)


def start_worker(folder: str, parent: int, settings: Mapping[str, Any] | None = None) -> None:
    """What a process that does steps begins with: it ends with the app, works in `folder`, keeps its memory.

    Parameters
    ----------
    folder : str
        To work in.
    parent : int
        The process that started it (whether by fork or by spawn).
    settings : mapping, optional
        nipype's, for a process that was not forked: without them it would tell of every step on the terminal.
    """
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
    if settings is not None:
        nipype_config.update_config(settings)
        nipype_logging.update_logging(nipype_config)
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
        if not future.done():
            return None
        try:
            result: dict[str, Any] = future.result()
            return result
        except Exception as error:  # every worker that took it was killed, say
            return _failed(taskid, error)

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
