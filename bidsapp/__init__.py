"""Brain-MRI segmentation as a BIDS app: tissues, lesions, volumes and their report."""

from __future__ import annotations

from pathlib import Path


def _version() -> str:
    # A checkout and the images carry the file itself; an installed wheel its metadata.
    beside = Path(__file__).resolve().parent.parent / "version"
    if beside.is_file():
        return beside.read_text().strip()
    from importlib.metadata import version

    return version("bidsapp")


__version__ = _version()
