"""The scans and brain masks that labels lie on, for the pictures of ``bidsapp evaluate``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from bidsapp.errors import AppError
from bidsapp.evaluate.options import Options, by_lesion
from bidsapp.labels import LESION_ORDER, REFERENCE_ORDER

if TYPE_CHECKING:  # heavy: --help answers at once
    import numpy as np

    from bidsapp.derivatives import Match

#: What reading an image may raise.
UNREADABLE = (AppError, ValueError, OSError, EOFError, MemoryError)


def readable(paths: Iterable[Path]) -> tuple[np.ndarray | None, str]:
    """Voxels of the first image that can be read, along the axes nearest to RAS, and a word on which that is.

    A broken scan must not cost the page: nothing but a picture needs it.
    """
    broken = []
    for path in paths:
        try:
            return _voxels(path), f"Drawn on {path.name}."
        except UNREADABLE:
            broken.append(path.name)
    if broken:
        return None, f"{', '.join(broken)} cannot be read."
    return None, "No scan was found on this grid (--scans names one)."


def _voxels(path: Path) -> np.ndarray:
    import nibabel as nib
    import numpy as np

    from bidsapp.image.label_file import open_labels
    from bidsapp.image.load import read_voxels

    img = open_labels(path)
    data = read_voxels(img, path, np.float32).reshape(img.shape[:3])
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(data, img.affine)).dataobj)


def find_scans(match: Match, label: str, options: Options) -> Iterator[Path]:
    """Scans on the case's grid: of the dataset named, beside the derivatives, or in them; FLAIR first for lesions."""
    contrasts = LESION_ORDER if by_lesion(label, options) else REFERENCE_ORDER
    folders = [*([options.scans] if options.scans else []), *_raw(options), *options.predictions.values()]
    return _on_grid(match, [(folder, f"*_{contrast}.nii*") for contrast in contrasts for folder in folders])


def find_brains(match: Match, options: Options) -> Iterator[Path]:
    """Brain masks on the case's grid in the derivatives."""
    folders = [*options.predictions.values(), *options.references.values()]
    return _on_grid(match, [(folder, "*_desc-brain_mask.nii*") for folder in folders])


def _on_grid(match: Match, places: Sequence[tuple[Path, str]]) -> Iterator[Path]:
    """Images in order of their places; in each those first whose names are most like the reference's.

    Images of another scan by their names (another run) come last, wherever they are.
    """
    from bidsapp.derivatives import entities_of, grid_of, may_be_one_scan, scan_entities

    reference = next(iter(match.references.values()))
    wanted = grid_of(reference.path)

    def unlike(path: Path) -> int:
        return len(scan_entities(entities_of(path.name)).items() ^ reference.scan.items())

    def of_another_scan(path: Path) -> bool:
        return not may_be_one_scan(scan_entities(entities_of(path.name)), reference.scan)

    paths: list[Path] = []
    for folder, pattern in places:
        home = folder / f"sub-{match.subject}"
        home = home / f"ses-{match.session}" if match.session else home
        paths += sorted(sorted(home.glob(f"anat/{pattern}")), key=unlike)
    for path in sorted(paths, key=of_another_scan):
        try:
            if path.is_file() and grid_of(path).same_as(wanted):
                yield path
        except UNREADABLE:
            continue


def _local(link: str) -> str:
    """A ``file://`` link as a path (blanks and letters beyond ASCII are written as %20 and the like); others as is."""
    return unquote(link.removeprefix("file://")) if link.startswith("file://") else link


def _raw(options: Options) -> list[Path]:
    """Datasets that the derivatives lie in or link to."""
    from bidsapp.out_dataset import description

    found: list[Path] = []
    for folder in (*options.references.values(), *options.predictions.values()):
        if folder.parent.name == "derivatives":
            found.append(folder.parent.parent)
        links = description(folder).get("DatasetLinks")
        paths = [_local(str(link)) for link in links.values()] if isinstance(links, dict) else []
        found += [(folder / path).resolve() for path in paths if "://" not in path and "\0" not in path]
    return [folder for folder in dict.fromkeys(found) if folder.is_dir()]
