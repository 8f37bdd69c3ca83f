"""Label maps and signed distances to the brain's border, held on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import load_file, save_file
from scipy import ndimage

from bidsapp.image.grid import bounding_box
from bidsapp.learn.anatomy import INSIDE_BRAIN, POSITION, STRUCTURES

#: Voxels kept around the middle of the 256-cubed maps, RAS; every head lies within.
SHAPE = (208, 256, 256)
DISTANCE_SPACING_MM = 2
FAR_MM = 20.0
#: The brain mask is the hull of the tissue: sulci narrower than twice this are filled, wider ones are not.
CLOSING_MM = 10.0
#: Rim of CSF counted as brain, about that of the manual masks of Lesjak et al. 2016 and less than that of deepbet.
RIM_MM = 1.5
#: Where ventricles widen, tissue moves by a share of 1/e as far at this distance from them, ...
REACH_MM = 25.0
#: ... and less where the brain's border is nearer than this.
STILL_MM = 15.0
#: Positions of the lateral ventricles, left and right.
LATERAL = tuple(position for position, s in enumerate(STRUCTURES) if "lateral ventricle" in s.name)


@dataclass(frozen=True)
class Heads:
    """Heads of the same shape on one device.

    Attributes
    ----------
    labels : Tensor
        uint8 (heads, X, Y, Z), 1 mm, RAS; positions in ``anatomy.STRUCTURES``.
    distance : Tensor
        float16 (heads, X/2, Y/2, Z/2), 2 mm: distance to the brain's border in mm, positive inside, kept within
        +-20 mm.
    flow : Tensor
        float16 (heads, 3, X/4, Y/4, Z/4), 4 mm: where tissue goes when the lateral ventricles widen (`outwards`).
    centre : ndarray
        (heads, 3), voxel coordinates of the middle of the brain's bounding box.
    extent : ndarray
        (heads, 3), half the size in mm of that box.
    names : tuple of str
    """

    labels: torch.Tensor
    distance: torch.Tensor
    flow: torch.Tensor
    centre: np.ndarray
    extent: np.ndarray
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


def load_heads(folder: Path, names: tuple[str, ...], *, cache: Path, device: str) -> Heads:
    """Read label maps ``<folder>/<name>.nii.gz``; what takes long is kept in `cache` (one file a head)."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no label maps: {folder} is not there; name the folder under 'heads' in the config")
    cache.mkdir(parents=True, exist_ok=True)
    parts = [_load_head(folder / f"{name}.nii.gz", cache / f"head-{name}.safetensors") for name in names]
    return assemble(parts, names, device)


def assemble(parts: list[dict[str, torch.Tensor]], names: tuple[str, ...], device: str) -> Heads:
    """`Heads` of what `prepare` made of each."""
    boxes = torch.stack([part["box"] for part in parts]).numpy()
    return Heads(
        labels=torch.stack([part["labels"] for part in parts]).to(device),
        distance=torch.stack([part["distance"] for part in parts]).to(device),
        flow=torch.stack([part["flow"] for part in parts]).to(device),
        centre=boxes.mean(1),
        extent=(boxes[:, 1] - boxes[:, 0]) / 2,
        names=tuple(names),
    )


def joined(first: Heads, second: Heads) -> Heads:
    """Both, those of `first` first."""
    return Heads(
        labels=torch.cat([first.labels, second.labels]),
        distance=torch.cat([first.distance, second.distance]),
        flow=torch.cat([first.flow, second.flow]),
        centre=np.concatenate([first.centre, second.centre]),
        extent=np.concatenate([first.extent, second.extent]),
        names=(*first.names, *second.names),
    )


def _load_head(path: Path, kept: Path) -> dict[str, torch.Tensor]:
    if kept.exists() and "flow" in (part := load_file(kept)):  # files of older versions lack it
        return part
    image = nib.as_closest_canonical(nib.Nifti1Image.from_filename(path))
    part = prepare(np.asanyarray(image.dataobj))
    save_file(part, kept)
    return part


def prepare(labels: np.ndarray) -> dict[str, torch.Tensor]:
    """What `Heads` holds of a label map (FreeSurfer's labels, 1 mm, RAS), and the brain's box."""
    labels = to_positions(_centred(labels))
    inside = np.isin(labels, [POSITION[index] for index in INSIDE_BRAIN])
    where = np.argwhere(inside)
    distance = signed_distance(brain_hull(labels, inside))
    return {
        "labels": torch.from_numpy(labels),
        "distance": torch.from_numpy(distance),
        "flow": torch.from_numpy(outwards(np.isin(labels, LATERAL), distance.astype(np.float32))),
        "box": torch.from_numpy(np.stack([where.min(0), where.max(0)]).astype(np.float32)),
    }


def to_positions(labels: np.ndarray) -> np.ndarray:
    """FreeSurfer labels to positions in ``STRUCTURES`` (uint8); raises ValueError on a label not listed."""
    table = np.full(1024, 255, np.uint8)
    for index, position in POSITION.items():
        table[index] = position
    out = table[labels]
    if (out == 255).any():
        unknown = sorted(np.unique(labels[out == 255]).tolist())
        raise ValueError(f"labels {unknown} are not in bidsapp/learn/anatomy.py")
    return out


def brain_hull(labels: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Brain mask at 1 mm: tissue closed by `CLOSING_MM` and a rim, as far as that is tissue or CSF; holes filled."""
    box = bounding_box(inside, margin=int(CLOSING_MM) + 4)
    tissue = inside[box]
    outwards = ndimage.distance_transform_edt(~tissue)
    closed = ndimage.distance_transform_edt(outwards <= CLOSING_MM) > CLOSING_MM
    hull = ndimage.distance_transform_edt(~(closed | tissue)) <= RIM_MM
    within = np.isin(labels[box], [POSITION[index] for index in (24, 85, 502, 514)]) | tissue
    # Dura and sinuses are thin in the maps: what is soft tissue or bone on the hull's rim stays outside.
    mask = np.zeros(labels.shape, bool)
    mask[box] = ndimage.binary_fill_holes(tissue | (hull & within))
    return mask


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance to the border in mm, positive inside, at 2 mm (mean of 8 voxels), float16, kept within +-20 mm."""
    box = bounding_box(mask, margin=int(FAR_MM) + 2)
    part = mask[box]
    inside, outside = ndimage.distance_transform_edt(part), ndimage.distance_transform_edt(~part)
    distance = np.full(mask.shape, -FAR_MM, np.float32)
    distance[box] = np.clip(np.where(part, inside - 0.5, 0.5 - outside), -FAR_MM, FAR_MM)
    x, y, z = (n // DISTANCE_SPACING_MM for n in mask.shape)
    return distance.reshape(x, 2, y, 2, z, 2).mean((1, 3, 5)).astype(np.float16)


def outwards(ventricles: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Away from the lateral ventricles: the direction in which tissue goes where they widen, and how far of each mm.

    Parameters
    ----------
    ventricles : ndarray
        bool (X, Y, Z), 1 mm.
    distance : ndarray
        (X/2, Y/2, Z/2), as `signed_distance` makes it: at the brain's border nothing moves.

    Returns
    -------
    ndarray
        float16 (3, X/4, Y/4, Z/4): length at most about 1, less with each mm from the ventricles.
    """
    step = DISTANCE_SPACING_MM
    wall = ventricles[::step, ::step, ::step]
    field = np.zeros((3, *wall.shape), np.float32)
    if wall.any():
        box = bounding_box(wall, margin=round(3 * REACH_MM / step))
        away = ndimage.distance_transform_edt(~wall[box]) - ndimage.distance_transform_edt(wall[box])
        away = ndimage.gaussian_filter(away * step, 1)
        share = np.exp(-np.clip(away, 0, None) / REACH_MM) * np.clip(distance[box] / STILL_MM, 0, 1)
        field[(slice(None), *box)] = np.stack(np.gradient(away, step)) * share
    x, y, z = (n // 2 for n in wall.shape)
    return field.reshape(3, x, 2, y, 2, z, 2).mean((2, 4, 6)).astype(np.float16)


def _centred(data: np.ndarray) -> np.ndarray:
    out = np.zeros(SHAPE, data.dtype)
    source, sink = [], []
    for n, m in zip(data.shape, SHAPE, strict=True):
        lost = (n - m) // 2
        source.append(slice(max(lost, 0), max(lost, 0) + min(n, m)))
        sink.append(slice(max(-lost, 0), max(-lost, 0) + min(n, m)))
    out[tuple(sink)] = data[tuple(source)]
    return out
