"""The order in which the steps of many sessions run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nipype.pipeline.plugins import MultiProcPlugin


class SessionBySession(MultiProcPlugin):
    """nipype's MultiProc, but a session is finished before later ones are taken further.

    MultiProc takes steps in the order of the graph: all sessions' first steps, then all second ones. Results would come
    only at the very end, and the intermediate files of every session would lie on the disk at once.
    """

    def __init__(self, order: Sequence[str], plugin_args: dict[str, Any]) -> None:
        super().__init__(plugin_args=plugin_args)
        self._place = {name: place for place, name in enumerate(order)}

    def _sort_jobs(self, jobids: Iterable[int], scheduler: str = "tsort") -> list[int]:
        return sorted(jobids, key=lambda job: (self._place[self.procs[job].fullname.split(".")[1]], job))
