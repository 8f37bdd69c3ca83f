"""Structures, tissues and lesions by the segmentation network, from any of T1w, T2w and FLAIR."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

from bidsapp.labels import CSF, STRUCTURES, TISSUES, WM
from bidsapp.models.registry import Model, load_model
from bidsapp.models.unet import symmetric_place

#: Channels of the network, in order.
CHANNELS = ("T1w", "T2w", "FLAIR")
#: Keys of ``lesion_threshold`` in the model's card: without FLAIR the network is surer of less.
WITH_FLAIR, WITHOUT_FLAIR = "with FLAIR", "without FLAIR"
#: The network is shown this much around a brain mask: it cuts off what is no brain, but adds nothing it does not see.
SURROUND_MM = 2.0
#: Longest side of the smallest lesion that counts: Thompson et al. 2018, Lancet Neurol 17:162.
SHORTEST_LESION_MM = 3.0
#: Voxels that neighbouring tiles share; their weights ramp across these.
OVERLAP = 16
#: The brain's box in training is that of the tissue; a brain mask holds this much fluid around it.
FLUID_RIM_MM = 2.0


@dataclass(frozen=True)
class NetworkResult:
    """What the network sees in a brain.

    Attributes
    ----------
    classes : tuple of str
        Names, as in the model's ``model.json``; the last is the lesion.
    probability : ndarray
        float32 (classes, X, Y, Z) in `box`, sums to 1.
    box : tuple of slice
        Where in the image that lies; outside is background.
    note : str
        Why it was computed elsewhere than asked for, or nothing.
    """

    classes: tuple[str, ...]
    probability: np.ndarray
    box: tuple[slice, slice, slice]
    note: str = ""


def segment_network(
    images: Mapping[str, np.ndarray],
    mask: np.ndarray,
    *,
    voxel_size_mm: tuple[float, float, float],
    within: np.ndarray | None = None,
    device: str = "cpu",
    tta: bool = False,
    model: Model | None = None,
) -> NetworkResult:
    """Run the network over a brain in overlapping tiles of the size it was trained on.

    Its instance norms run over all that they see: on a whole brain at once they would see other statistics than in
    training. Scale and place in the brain reach it from outside, so a tile loses nothing but distant context.

    Parameters
    ----------
    images : mapping of str to ndarray
        T1w, T2w, FLAIR, or any subset: (X, Y, Z), axes in RAS order, about 1 mm, bias-corrected; any scale.
    mask : ndarray of bool, shape (X, Y, Z)
        Brain: intensities are scaled by it.
    voxel_size_mm : tuple of float
        Along the axes of the images.
    within : ndarray of bool, shape (X, Y, Z), optional
        What the network is shown, if more than `mask`.
    device : str
        ``"cpu"`` or ``"cuda[:N]"``; out of memory there, the CPU does it.
    tta : bool
        Average over the images and their mirror images.
    model : Model, optional
        Instead of the packaged one.

    Returns
    -------
    NetworkResult

    Raises
    ------
    ValueError
        No image of a known contrast, other shapes than the mask's, or an empty mask.
    """
    _check(images, mask)
    model = model or packaged()
    within = mask if within is None else within
    box = _box_of_tiles(within, model.card["patch"])
    x = torch.from_numpy(scaled_channels(images, mask, within, box))
    places, note = brain_places(mask, box, voxel_size_mm), ""
    try:
        probability = _in_tiles(model, x, places, device, tta=tta)
    except torch.cuda.OutOfMemoryError:
        note = f"the memory of {device} did not suffice for the segmentation network, which ran on the CPU"
        probability = _in_tiles(model, x, places, "cpu", tta=tta)
    inside = tuple(slice(0, min(s.stop, n) - s.start) for s, n in zip(box, mask.shape, strict=True))
    box = tuple(slice(s.start, min(s.stop, n)) for s, n in zip(box, mask.shape, strict=True))  # type: ignore[assignment]
    return NetworkResult(tuple(model.card["classes"]), probability[(slice(None), *inside)], box, note)


@functools.lru_cache(maxsize=1)
def packaged() -> Model:
    """The packaged network, on the CPU."""
    return load_model("segment")


def _check(images: Mapping[str, np.ndarray], mask: np.ndarray) -> None:
    known = [name for name in CHANNELS if name in images]
    if not known:
        raise ValueError(f"The network needs one of {', '.join(CHANNELS)}, not {', '.join(images) or 'nothing'}.")
    for name in known:
        if images[name].shape != mask.shape:
            raise ValueError(f"{name} {images[name].shape} and the brain mask {mask.shape} differ in shape.")
    if not mask.any():
        raise ValueError("The brain mask is empty: there is nothing to segment.")


def _extent(mask: np.ndarray) -> list[tuple[int, int]]:
    """First voxel of the mask along each axis, and the one after its last."""
    out = []
    for axis in range(3):
        where = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        out.append((int(where[0]), int(where[-1]) + 1))
    return out


def _box_of_tiles(mask: np.ndarray, patch: int) -> tuple[slice, slice, slice]:
    """Box around the brain, at least a tile wide; it may reach beyond the end of the image."""
    box = []
    for low, high in _extent(mask):
        start = max(0, low - 4)
        length = max(patch, high + 4 - start)
        box.append(slice(start, start + length + length % 2))
    return tuple(box)  # type: ignore[return-value]


def scaled_channels(
    images: Mapping[str, np.ndarray], mask: np.ndarray, within: np.ndarray, box: tuple[slice, ...]
) -> np.ndarray:
    """(3, X, Y, Z) float32 in `box`: z-scored by the brain, kept within +-5; 0 outside `within`, and where missing."""
    out = np.zeros((len(CHANNELS), *(s.stop - s.start for s in box)), np.float32)
    part = within[box]
    there = tuple(slice(0, n) for n in part.shape)
    for channel, name in zip(out, CHANNELS, strict=True):
        if name in images:
            values = images[name][mask].astype(np.float64)
            scaled = (images[name][box] - values.mean()) / max(values.std(), 1e-6)
            channel[there] = np.clip(np.where(part, np.nan_to_num(scaled), 0), -5, 5)
    return out


def brain_places(
    mask: np.ndarray, box: tuple[slice, ...], voxel_size_mm: tuple[float, float, float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Voxel centres of the box along each axis, relative to the brain's: -1 and 1 at its ends."""
    out = []
    for (low, high), part, size in zip(_extent(mask), box, voxel_size_mm, strict=True):
        half = max((high - low) / 2 - FLUID_RIM_MM / size, 1.0)
        out.append((torch.arange(part.start, part.stop, dtype=torch.float32) + 0.5 - (low + high) / 2) / half)
    return tuple(out)  # type: ignore[return-value]


def _in_tiles(model: Model, x: torch.Tensor, places: tuple[torch.Tensor, ...], device: str, *, tta: bool) -> np.ndarray:
    network, patch = model.network.to(torch.device(device)), int(model.card["patch"])
    weight = _tile_weight(patch)
    out = np.zeros((model.network.config.classes, *x.shape[1:]), np.float32)
    total = np.zeros(x.shape[1:], np.float32)
    with torch.inference_mode(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16(device)):
        for tile in _tiles(x.shape[1:], patch):
            part = x[(slice(None), *tile)][None].to(device)
            place = symmetric_place(*(axis[s] for axis, s in zip(places, tile, strict=True)))[None].to(device)
            found = network(part, place).float().softmax(1)
            if tta:
                found = (found + network(part.flip(2), place.flip(2)).float().softmax(1).flip(2)) / 2
            out[(slice(None), *tile)] += found[0].cpu().numpy() * weight
            total[tile] += weight
    out /= total
    return out


def _tiles(shape: tuple[int, ...], patch: int) -> Iterator[tuple[slice, ...]]:
    """Evenly spaced tiles that share at least `OVERLAP` voxels."""
    starts = []
    for n in shape:
        count = max(1, int(np.ceil((n - OVERLAP) / (patch - OVERLAP))))
        starts.append(2 * np.round(np.linspace(0, n - patch, count) / 2).astype(int))  # the network folds pairs
    for corner in np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3):
        yield tuple(slice(int(a), int(a) + patch) for a in corner)


def _tile_weight(patch: int) -> np.ndarray:
    """(patch, patch, patch): 1 in the middle, falling linearly over the outermost `OVERLAP` voxels."""
    edge = np.minimum(np.arange(patch), np.arange(patch)[::-1]) + 1
    ramp = np.minimum(1, edge / OVERLAP).astype(np.float32)
    return ramp[:, None, None] * ramp[None, :, None] * ramp[None, None, :]


def bfloat16(device: str) -> bool:
    """Half the memory on a GPU, a fifth of the time on CPUs that have it in hardware; slower on those without."""
    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Reading:
    """What the network's classes come to, on the grid of the image.

    Attributes
    ----------
    mask : ndarray of bool (X, Y, Z)
        Brain: where background is not the likelier, one piece without holes, within the mask it was given.
    tissues : ndarray, float32 (3, X, Y, Z)
        Order of ``labels.TISSUES``; sums to 1 in `mask`, as if there were no lesions.
    structures : ndarray, uint8 (X, Y, Z)
        FreeSurfer's index of the left one of each pair; lesions are what surrounds them likeliest to be.
    lesion : ndarray, float32 (X, Y, Z)
        Probability of lesion.
    """

    mask: np.ndarray
    tissues: np.ndarray
    structures: np.ndarray
    lesion: np.ndarray


def read_classes(found: NetworkResult, mask: np.ndarray) -> Reading:
    """Brain mask, tissues, structures and lesions from one set of probabilities.

    Parameters
    ----------
    found : NetworkResult
    mask : ndarray of bool, shape (X, Y, Z)
        What the network was shown.

    Returns
    -------
    Reading
    """
    background, *structures, lesion = found.probability
    brain = np.zeros(mask.shape, bool)
    brain[found.box] = _largest_filled((background < 0.5) & mask[found.box])
    inside = brain[found.box]
    tissues = np.zeros((len(TISSUES), *mask.shape), np.float32)
    by_name = dict(zip(found.classes[1:-1], structures, strict=True))
    for structure in STRUCTURES:
        tissues[(TISSUES.index(structure.tissue), *found.box)] += by_name[structure.name]
    # What the network calls background within the mask (a hole, a rim) is fluid; where all is lesion, white matter.
    part = tissues[(slice(None), *found.box)]
    part[TISSUES.index(CSF)] += background
    part[TISSUES.index(WM)] += 1e-3
    part /= part.sum(0)
    part *= inside
    indices = np.array([structure.left for structure in STRUCTURES], np.uint8)
    names = [structure.name for structure in STRUCTURES]
    labels = np.zeros(mask.shape, np.uint8)
    labels[found.box] = indices[np.argmax(np.stack([by_name[name] for name in names]), 0)] * inside
    probability = np.zeros(mask.shape, np.float32)
    probability[found.box] = lesion * inside
    return Reading(brain, tissues, labels, probability)


def lesion_mask(probability: np.ndarray, *, threshold: float, voxel_size_mm: tuple[float, float, float]) -> np.ndarray:
    """Lesions: above `threshold`, 26-connected, at least 3 mm long (McDonald criteria: Thompson et al. 2018).

    Parameters
    ----------
    probability : ndarray, shape (X, Y, Z)
    threshold : float
    voxel_size_mm : tuple of float

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)
    """
    labels, _ = ndimage.label(probability > threshold, np.ones((3, 3, 3)))
    keep = [False]
    for box in ndimage.find_objects(labels):
        sides = [(s.stop - s.start) * size for s, size in zip(box, voxel_size_mm, strict=True)]
        keep.append(max(sides) >= SHORTEST_LESION_MM)
    return np.asarray(keep)[labels]


def grown(mask: np.ndarray, millimetres: float, voxel_size_mm: tuple[float, float, float]) -> np.ndarray:
    """The mask and all within `millimetres` of it."""
    return np.asarray(ndimage.distance_transform_edt(~mask, sampling=voxel_size_mm) <= millimetres)


def _largest_filled(mask: np.ndarray) -> np.ndarray:
    pieces, count = ndimage.label(mask)
    if count == 0:
        return mask
    largest = pieces == np.bincount(pieces.ravel())[1:].argmax() + 1
    return ndimage.binary_fill_holes(largest)
