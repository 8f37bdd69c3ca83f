"""What an earlier run left: which of it still holds, and what does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bidsapp import __version__, writing
from bidsapp.bids import SessionInputs
from bidsapp.config import Config


def is_current(inputs: SessionInputs, config: Config, *, by_checksum: bool = True) -> bool:
    """Whether the session's record is there and still true: same app, networks, options and inputs; all files in place.

    Without `by_checksum` the inputs are compared by name and size only, and not read.
    """
    from bidsapp.workflows.plan import plan

    from_disk = writing.json_or_nothing(_record(inputs, config.out_dir))
    if from_disk.get("version") != __version__ or from_disk.get("options") != config.science():
        return False
    if from_disk.get("methods") != plan(inputs, config).plain():
        return False
    outputs: dict[str, int] = from_disk.get("outputs", {})
    in_place = all(_size(config.out_dir / name) == size for name, size in outputs.items())
    recorded = {scan["file"]: scan for scan in from_disk.get("inputs", [])}
    used = inputs.used_by(config.own_channels)
    chosen = {scan.path.relative_to(config.bids_dir).as_posix(): scan.path for scan in used}
    return (
        in_place
        and recorded.keys() == chosen.keys()
        and all(_is_same(path, recorded[name], by_checksum=by_checksum) for name, path in chosen.items())
    )


def _record(inputs: SessionInputs, out_dir: Path) -> Path:
    return out_dir / inputs.folder / f"{inputs.name}_provenance.json"


def _is_same(path: Path, recorded: Mapping[str, Any], *, by_checksum: bool) -> bool:
    """Whether a scan is what the record says of it; one that cannot be read is not, and its session says why."""
    try:
        if recorded.get("bytes", path.stat().st_size) != path.stat().st_size:
            return False
        return not by_checksum or writing.sha256(path) == recorded["sha256"]
    except OSError:
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def page_is_stale(inputs: SessionInputs, out_dir: Path) -> bool:
    """Whether a subject's page is missing, or older than this session's record (a run was stopped between the two)."""
    page, record = out_dir / f"sub-{inputs.subject}.html", _record(inputs, out_dir)
    try:
        return page.stat().st_mtime_ns < record.stat().st_mtime_ns
    except OSError:
        return True
