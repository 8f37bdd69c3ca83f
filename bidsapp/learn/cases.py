"""Labelled sessions as a network sees them: scaled channels, place in the brain, classes; their synthetic doubles."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from scipy import ndimage

from bidsapp.errors import AppError
from bidsapp.image.drawn import WayBack
from bidsapp.image.grid import bounding_box, on_grid
from bidsapp.image.itk import read_itk_affine
from bidsapp.image.morphology import grown
from bidsapp.labels import CONTRASTS
from bidsapp.learn import anatomy, heads, lesion_masks
from bidsapp.models import segment
from bidsapp.models.registry import Model
from bidsapp.writing import replacing, sha256

#: A cascade's first stage proposes what it holds for lesion with at least this probability: there the second decides,
#: and on that, right or wrong, it is trained.
PROPOSE_ABOVE = 0.1
#: Points kept of each case to centre patches on; drawn once, with a fixed seed.
POINTS = 20_000
#: Where the anatomy of a case is kept.
HEAD = "head.safetensors"


@dataclass(frozen=True)
class Case:
    """A labelled session on its work grid, cut to the brain's box.

    Attributes
    ----------
    name, subject : str
    folder : Path
        Where ``interfaces.cases.StoreCase`` left it.
    contrasts : tuple of str
        Those of the channels that are at hand.
    channels : ndarray, float16 (channels, X, Y, Z)
        As the network is shown them.
    places : tuple of ndarray
        Along each axis, voxel centres relative to the brain's box.
    labels : ndarray, uint8 (X, Y, Z)
        Classes 0, 1, ...
    foreground, brain : ndarray (n, 3)
        Voxels to centre patches on.
    """

    name: str
    subject: str
    folder: Path
    contrasts: tuple[str, ...]
    channels: np.ndarray
    places: tuple[np.ndarray, ...]
    labels: np.ndarray
    foreground: np.ndarray
    brain: np.ndarray


def load_case(folder: Path, channels: Sequence[str] = CONTRASTS) -> Case:
    """Read what `StoreCase` wrote, for a network of these `channels`; raises AppError where something is missing."""
    stored = Stored.read(folder)
    mask, within, size = stored.brain()
    box = bounding_box(within, margin=0)
    scaled = segment.scaled_channels(stored.images(), mask, within, box, channels)
    places = tuple(axis.numpy() for axis in segment.brain_places(mask, box, size))
    labels = stored.labels()[box]
    rng = np.random.default_rng(0)
    return Case(
        name=stored.record["name"],
        subject=stored.record["subject"],
        folder=folder,
        contrasts=tuple(name for name in stored.record["contrasts"] if name in channels),
        channels=scaled.astype(np.float16),
        places=places,
        labels=labels,
        foreground=_some(np.argwhere(labels > 0), rng),
        brain=_some(np.argwhere(mask[box]), rng),
    )


@dataclass(frozen=True)
class Stored:
    """A case's folder, read piece by piece."""

    folder: Path
    record: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> Stored:
        """Raises AppError where the folder holds no whole case."""
        try:
            return cls(folder, json.loads((folder / "case.json").read_text()))
        except (OSError, ValueError) as error:
            raise AppError(f"{folder}: no prepared case ({error}). Delete this folder and run again.") from error

    def images(self) -> dict[str, np.ndarray]:
        """Preprocessed scans on the work grid, by contrast."""
        return {name: np.asarray(_image(self.folder, name).dataobj, np.float32) for name in self.record["contrasts"]}

    def mask(self) -> tuple[np.ndarray, tuple[float, float, float]]:
        """Brain mask and voxel size in mm."""
        image = _image(self.folder, "mask")
        sizes = tuple(float(size) for size in image.header.get_zooms()[:3])
        return np.asarray(image.dataobj) > 0, (sizes[0], sizes[1], sizes[2])

    def brain(self, model: Model | None = None) -> tuple[np.ndarray, np.ndarray, tuple[float, float, float]]:
        """Brain mask, what a network is shown of the head (`model`, or one to be trained), and voxel size in mm."""
        mask, size = self.mask()
        if model is not None:
            return mask, segment.shown(mask, size, model), size
        return mask, grown(mask, segment.SURROUND_MM, size), size

    def labels(self) -> np.ndarray:
        """Classes 0, 1, ... on the work grid."""
        return np.asarray(_image(self.folder, "labels").dataobj, np.uint8)

    def drawn(self) -> nib.Nifti1Image:
        """The labels as drawn: classes 0, 1, ... on the scan's own grid."""
        return _image(self.folder, "drawn")

    def as_drawn(self, probability: np.ndarray) -> np.ndarray:
        """A probability on the work grid averaged over the voxels of the drawn labels."""
        return self._way_back().mean(self._on_work(probability))

    def mask_as_drawn(self, mask: np.ndarray) -> np.ndarray:
        """The voxels of the drawn labels that a mask on the work grid covers by half."""
        return self._way_back().mask(self._on_work(mask))

    def _on_work(self, data: np.ndarray) -> nib.Nifti1Image:
        return on_grid(data.astype(np.float32), _image(self.folder, "mask"))

    def _way_back(self) -> WayBack:
        transform = self.folder / "to_drawn.txt"
        if not transform.exists():
            return WayBack(self.drawn())
        return WayBack(self.drawn(), _image(self.folder, "drawn_work"), read_itk_affine(transform))

    def predict(self, model: Model, *, device: str, without: Sequence[str] = ()) -> np.ndarray:
        """Probability of each lesion class of `model`, (classes, X, Y, Z), on the work grid."""
        mask, within, size = self.brain(model)
        images = {name: image for name, image in self.images().items() if name not in without}
        found = segment.segment_network(images, mask, voxel_size_mm=size, within=within, device=device, model=model)
        return segment.compartment_probabilities(found, within, model)


def with_proposals(case: Case, first: Model, device: str) -> Case:
    """The case with one channel more, what `first` holds for foreground; its proposals are looked at as labels are."""
    stored = Stored.read(case.folder)
    _, within, _ = stored.brain()
    box = bounding_box(within, margin=0)
    probability = stored.predict(first, device=device).sum(0)[box]
    proposed = np.argwhere((probability > PROPOSE_ABOVE) & (case.labels == 0)).astype(np.int16)
    rng = np.random.default_rng(0)
    return dataclasses.replace(
        case,
        channels=np.concatenate([case.channels, probability[None].astype(np.float16)]),
        foreground=np.concatenate([case.foreground, _some(proposed, rng)]),
    )


def synthetic_doubles(cases: Sequence[Case], *, device: str) -> tuple[heads.Heads, lesion_masks.Lesions] | None:
    """Label maps and lesion masks of the cases themselves, to make synthetic scans of (domain randomisation).

    The anatomy is what the packaged network sees in each; lesions are brought to the template by the brain's box, so
    that every lesion can be drawn into every brain. Lesions of single voxels may be lost on the way: None where no case
    has any left.
    """
    masks = [mask for mask in map(_in_template, cases) if mask.any()]
    if not masks:
        return None
    parts = [head_of(case, device=device) for case in cases]
    lesions = lesion_masks.assemble(np.stack(masks), device)
    return heads.assemble(parts, tuple(case.name for case in cases), device), lesions


def head_of(case: Case, *, device: str) -> dict[str, torch.Tensor]:
    """The anatomy of a case (`heads.prepare`): predicted once, and kept beside the case for other folds and runs."""
    path = case.folder / HEAD
    made_of = f"{sha256(case.folder / 'case.json')} {segment.packaged().card['weights']['sha256']}"
    try:
        with safe_open(path, "pt") as kept:
            if kept.metadata()["made_of"] == made_of:
                return {key: kept.get_tensor(key) for key in kept.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError):  # none, or half of one
        pass
    head = _head(case, device)
    with replacing(path) as aside:
        aside.write_bytes(save(head, {"made_of": made_of}))
    return head


def _head(case: Case, device: str) -> dict[str, torch.Tensor]:
    stored = Stored.read(case.folder)
    mask, within, size = stored.brain(segment.packaged())
    found = segment.segment_network(stored.images(), mask, voxel_size_mm=size, within=within, device=device)
    seen = segment.read_classes(found, within)
    labels = seen.structures.astype(np.int32)
    middle = (labels.shape[0] - 1) / 2 if not seen.mask.any() else np.argwhere(seen.mask)[:, 0].mean()
    pairs = {s.index: s.partner for s in anatomy.STRUCTURES if s.partner != s.index}
    right = np.arange(labels.shape[0])[:, None, None] > middle
    for left, partner in pairs.items():
        labels[right & (labels == left) & (left < partner)] = partner
    scale = np.array(size)  # the generator works at 1 mm
    if np.abs(scale - 1).max() > 0.01:
        labels = ndimage.zoom(labels, scale, order=0)
    return heads.prepare(labels)


def _in_template(case: Case) -> np.ndarray:
    """The labels in the grid of the lesion masks, by the brain's box."""
    grids = [
        (np.arange(n) + origin - low) / (high - low) * 2 - 1
        for n, origin, low, high in zip(lesion_masks.SHAPE, lesion_masks.ORIGIN_MM, *lesion_masks.BRAIN_MM, strict=True)
    ]
    voxels = [
        np.interp(grid, place, np.arange(len(place)), left=-1, right=-1)
        for grid, place in zip(grids, case.places, strict=True)
    ]
    index = [np.round(v).astype(int) for v in voxels]
    out = case.labels[np.ix_(*[np.clip(i, 0, None) for i in index])] > 0
    for axis, i in enumerate(index):
        out &= (i >= 0).reshape([-1 if a == axis else 1 for a in range(3)])
    return out.astype(np.uint8)


def _some(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if len(points) > POINTS:
        points = points[np.sort(rng.choice(len(points), POINTS, replace=False))]
    return points.astype(np.int16)


def _image(folder: Path, name: str) -> nib.Nifti1Image:
    try:
        return nib.Nifti1Image.from_filename(folder / f"{name}.nii")
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise AppError(f"{folder}: {name}.nii is missing or damaged. Delete this folder and run again.") from error
