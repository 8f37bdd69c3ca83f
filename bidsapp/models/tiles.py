"""A network over a box, tile by tile: with blending where it has a margin of none, without where it has one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn import functional

from bidsapp.cards import OVERLAP
from bidsapp.image.grid import bounding_box
from bidsapp.models.registry import Model
from bidsapp.models.unet import symmetric_place

Tile = tuple[slice, slice, slice]
Places = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def box_of_tiles(mask: np.ndarray, model: Model) -> Tile:
    """Box around the mask, at least a tile wide; it may reach beyond the end of the image.

    Parameters
    ----------
    mask : ndarray of bool (X, Y, Z)
        Not empty.
    model : Model
        Its card's ``patch``: voxels of a tile along each side.
    """
    box = []
    for low, high in extent(mask):
        start = max(0, low - 4)
        length = max(int(model.card["patch"]), high + 4 - start)
        box.append(slice(start, start + length + -length % model.network.config.step))
    return box[0], box[1], box[2]


def extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """First voxel of the mask along each axis, and the one after its last."""
    return [(side.start, side.stop) for side in bounding_box(mask, margin=0)]


def in_tiles(
    model: Model,
    x: torch.Tensor,
    places: Places,
    *,
    device: str = "cpu",
    bfloat16: bool = False,
    tta: bool = False,
    wanted: np.ndarray | None = None,
) -> np.ndarray:
    """Probabilities of the network's classes in a box.

    Parameters
    ----------
    model : Model
    x : Tensor (channels, X, Y, Z)
        0 outside the brain, and so beyond the box.
    places : tuple of Tensor
        Of the voxels along each axis (see `symmetric_place`).
    device : str
    bfloat16 : bool
        Half precision where it does no harm.
    tta : bool
        Average over the image and its mirror image.
    wanted : ndarray of bool (X, Y, Z), optional
        Tiles without any of these voxels are left out, where the network has a margin; they are the first class.

    Returns
    -------
    ndarray, float32 (classes, X, Y, Z)
        Sums to 1.
    """
    network, patch = model.network.to(torch.device(device)), int(model.card["patch"])
    margin = network.margin
    weight = np.float32(1) if margin else _tile_weight(patch)
    out = np.zeros((network.config.classes, *x.shape[1:]), np.float32)
    total = np.zeros(x.shape[1:], np.float32)
    padded = functional.pad(x, [margin] * 6) if margin else x
    with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
        for tile in tiles(x.shape[1:], patch, step=network.config.step, overlap=0 if margin else OVERLAP):
            if margin and wanted is not None and not wanted[tile].any():
                continue
            around = tuple(slice(s.start, s.stop + 2 * margin) for s in tile)
            part = padded[(slice(None), *around)][None].to(device)
            place = None
            if network.config.place:
                place = symmetric_place(*(axis[s] for axis, s in zip(places, tile, strict=True)))[None].to(device)
            if tta:  # both views at once: a fifth to a quarter less time on a CPU without bfloat16 than one by one
                part = torch.cat([part, part.flip(2)])
                place = None if place is None else torch.cat([place, place.flip(2)])
            found = network(part, place).float().softmax(1)
            found = (found[0] + found[1].flip(1)) / 2 if tta else found[0]
            out[(slice(None), *tile)] += found.cpu().numpy() * weight
            total[tile] += weight
    left_out = total == 0
    out[0][left_out] = total[left_out] = 1
    out /= total
    return out


def tiles(shape: tuple[int, ...], patch: int, *, step: int, overlap: int) -> Iterator[Tile]:
    """Evenly spaced tiles that share at least `overlap` voxels (but for rounding) and start at multiples of `step`."""
    starts = []
    for n in shape:
        count = max(1, int(np.ceil((n - overlap) / (patch - overlap))))
        starts.append(step * np.round(np.linspace(0, n - patch, count) / step).astype(int))
    for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3):
        x, y, z = (slice(int(a), int(a) + patch) for a in corner)
        yield x, y, z


def _tile_weight(patch: int) -> np.ndarray:
    """(patch, patch, patch): 1 in the middle, falling linearly over the outermost `OVERLAP` voxels that tiles share."""
    edge = np.minimum(np.arange(patch), np.arange(patch)[::-1]) + 1
    ramp = np.minimum(1, edge / OVERLAP).astype(np.float32)
    return ramp[:, None, None] * ramp[None, :, None] * ramp[None, None, :]
