"""What a segmentation network sees in a brain, from any of T1w, T2w and FLAIR: structures, tissues, lesions."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage

from bidsapp import cards
from bidsapp.image.morphology import grown, label_lesions, largest_piece
from bidsapp.labels import CONTRASTS, CSF, STRUCTURES, TISSUES, Structure
from bidsapp.models import crf, tiles
from bidsapp.models.device import or_on_cpu
from bidsapp.models.registry import Model, load_model

#: Keys of ``lesion_threshold`` in the model's card: without FLAIR the network is surer of less.
WITH_FLAIR, WITHOUT_FLAIR = cards.WITH_FLAIR, cards.WITHOUT_FLAIR
WHITE_MATTER, EXTRA_AXIAL = "cerebral white matter", "CSF"
#: The network is shown this much around a brain mask: it cuts off what is no brain, but adds nothing it does not see.
#: A card's ``surround_mm`` may say otherwise: a network trained on heads with their skulls wants to see some of them.
SURROUND_MM = 2.0
#: Longest side of the smallest lesion that counts: Thompson et al. 2018, Lancet Neurol 17:162.
SHORTEST_LESION_MM = 3.0
#: Three voxels of 1 mm are 3 mm long, whatever the header's last digits say.
ROUNDING_MM = 0.05
#: Clefts and holes in the brain mask that are no wider than twice this many voxels (of about 1 mm) are brain: flow
#: voids and dark cisterns. In training all is brain that a closing of 10 mm fills.
BRAIN_CLOSING = 3
#: The brain's box in training is that of the tissue; a brain mask holds this much fluid around it.
FLUID_RIM_MM = 2.0


@dataclass(frozen=True)
class NetworkResult:
    """What the network sees in a brain.

    Attributes
    ----------
    classes : tuple of str
        Names, as in the model's ``model.json``; those of the packaged network end with the lesion.
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
    """Run a network over a brain in tiles of the size it was trained on; both of a cascade, and its CRF if it has one.

    The instance norms of the U-Net run over all that they see: on a whole brain at once they would see other statistics
    than in training. Scale and place in the brain reach it from outside, so a tile loses nothing but distant context.

    Parameters
    ----------
    images : mapping of str to ndarray
        T1w, T2w, FLAIR, or any subset: (X, Y, Z), axes in RAS order, about 1 mm, bias-corrected; any scale. NaN where
        a scan shows nothing, outside its field of view.
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
        No image of a contrast that the model knows, other shapes than the mask's, or an empty mask.
    """
    model = model or packaged()
    _check(images, mask, contrasts_of(model))
    brain = _Brain(images, mask, mask if within is None else within, voxel_size_mm)
    found, note = or_on_cpu(lambda where: _segment(brain, model, where, tta=tta), device, "the segmentation network")
    return replace(found, note=note)


@functools.lru_cache(maxsize=1)
def packaged() -> Model:
    """The packaged network, on the CPU."""
    return load_model("segment")


def shown(mask: np.ndarray, voxel_size_mm: tuple[float, float, float], model: Model) -> np.ndarray:
    """What of a scan the network is shown, given a first brain mask: as much around it as in training."""
    return grown(mask, float(model.card.get("surround_mm", SURROUND_MM)), voxel_size_mm)


def contrasts_of(model: Model) -> tuple[str, ...]:
    """Contrasts that the model can use, in the order of its channels."""
    return tuple(model.card.get("channels", CONTRASTS))


def lesion_classes(model: Model) -> list[int]:
    """Indices of the classes that are lesion, or parts of one."""
    classes = list(model.card["classes"])
    return [classes.index(name) for name in model.card.get("lesion_classes", ["lesion"])]


def lesion_probability(found: NetworkResult, within: np.ndarray, model: Model) -> np.ndarray:
    """Probability of lesion on the grid of the image: float32, the shape of `within`, and 0 outside that."""
    return compartment_probabilities(found, within, model).sum(0)


def compartment_probabilities(found: NetworkResult, within: np.ndarray, model: Model) -> np.ndarray:
    """Probability of each lesion class on the grid of the image: float32 (classes, X, Y, Z), 0 outside `within`."""
    kinds = lesion_classes(model)
    out = np.zeros((len(kinds), *within.shape), np.float32)
    out[(slice(None), *found.box)] = found.probability[kinds] * within[found.box]
    return out


@dataclass(frozen=True)
class _Brain:
    """What is to be segmented: scans and mask as `segment_network` is given them."""

    images: Mapping[str, np.ndarray]
    mask: np.ndarray
    within: np.ndarray
    voxel_size_mm: tuple[float, float, float]


def _segment(brain: _Brain, model: Model, device: str, *, tta: bool) -> NetworkResult:
    """The network over a brain; of a cascade, after the first over all of it, the second where that found something."""
    box = tiles.box_of_tiles(brain.within, model)
    names = contrasts_of(model)
    channels = scaled_channels(brain.images, brain.mask, brain.within, box, names)
    wanted, proposed = _cut(brain.within, box), None
    if model.first is not None:
        first = _segment(brain, model.first, device, tta=tta)
        proposed = lesion_probability(first, brain.within, model.first)
        wanted = _cut(_candidates(proposed, brain, model.card["cascade"]), box)
        proposed = _cut(proposed, box)
        channels = np.concatenate([channels, proposed[None]])
    probability = tiles.in_tiles(
        model,
        torch.from_numpy(channels),
        brain_places(brain.mask, box, brain.voxel_size_mm),
        device=device,
        bfloat16=bfloat16(device),
        tta=tta,
        wanted=wanted,
    )
    _even_out(probability, model, [name for name in names if name in brain.images])
    if proposed is not None:
        probability = np.where(wanted, probability, _as_proposed(proposed, model))
    if "crf" in model.card:
        probability = _smoothed(probability, channels[: len(names)], model, brain.voxel_size_mm, device)
    shape = brain.mask.shape
    inside = tuple(slice(0, min(s.stop, n) - s.start) for s, n in zip(box, shape, strict=True))
    x, y, z = (slice(s.start, min(s.stop, n)) for s, n in zip(box, shape, strict=True))
    return NetworkResult(tuple(model.card["classes"]), probability[(slice(None), *inside)], (x, y, z))


def _even_out(probability: np.ndarray, model: Model, there: Sequence[str]) -> None:
    """Add the card's ``class_offsets`` for these contrasts to the logits, in place.

    From fewer contrasts a network draws borders that it does not see to one side, always the same: the offsets make
    volumes on synthetic scans those from all of its contrasts (``training.export``).
    """
    offsets = model.card.get("class_offsets", {}).get("+".join(there), {})
    if offsets:
        factors = [np.exp(offsets.get(name, 0.0)) for name in model.card["classes"]]
        probability *= np.array(factors, probability.dtype)[:, None, None, None]
        probability /= probability.sum(0)


def _candidates(proposed: np.ndarray, brain: _Brain, cascade: Mapping[str, float]) -> np.ndarray:
    """Where the second model of a cascade decides: at and around what the first holds for possible."""
    found = proposed > cascade["propose_above"]
    if not found.any():
        return found
    return grown(found, cascade["grow_mm"], brain.voxel_size_mm) & brain.within


def _as_proposed(proposed: np.ndarray, model: Model) -> np.ndarray:
    """The second model's classes where it was not asked: lesion, of whichever kind, as probable as the first says."""
    kinds = lesion_classes(model)
    out = np.zeros((len(model.card["classes"]), *proposed.shape), np.float32)
    out[0] = 1 - proposed
    out[kinds] = proposed / len(kinds)
    return out


def _smoothed(
    probability: np.ndarray,
    channels: np.ndarray,
    model: Model,
    voxel_size_mm: tuple[float, float, float],
    device: str,
) -> np.ndarray:
    """The CRF decides between the kinds of lesion and all else; what else there is keeps its proportions."""
    kinds = lesion_classes(model)
    others = [index for index in range(len(probability)) if index not in kinds]
    rest = probability[others].sum(0)
    settings = crf.CrfSettings.of(model.card["crf"])
    found = crf.refine(
        np.concatenate([rest[None], probability[kinds]]), channels, settings, voxel_size_mm=voxel_size_mm, device=device
    )
    out = np.empty_like(probability)
    out[kinds] = found[1:]
    out[others] = probability[others] * (found[0] / np.maximum(rest, 1e-6))
    out[0] += np.maximum(found[0] - out[others].sum(0), 0)  # where nothing else was held for possible
    return out


def _cut(volume: np.ndarray, box: tiles.Tile) -> np.ndarray:
    """What of a volume lies in a box, which may reach beyond its end; nothing is there."""
    part = volume[box]
    out = np.zeros(tuple(s.stop - s.start for s in box), volume.dtype)
    out[tuple(slice(0, n) for n in part.shape)] = part
    return out


def _check(images: Mapping[str, np.ndarray], mask: np.ndarray, names: Sequence[str]) -> None:
    known = [name for name in names if name in images]
    if not known:
        raise ValueError(f"The network needs one of {', '.join(names)}, not {', '.join(images) or 'nothing'}.")
    for name in known:
        if images[name].shape != mask.shape:
            raise ValueError(f"{name} {images[name].shape} and the brain mask {mask.shape} differ in shape.")
    if not mask.any():
        raise ValueError("The brain mask is empty: there is nothing to segment.")


def scaled_channels(
    images: Mapping[str, np.ndarray],
    mask: np.ndarray,
    within: np.ndarray,
    box: tuple[slice, ...],
    names: Sequence[str] = CONTRASTS,
) -> np.ndarray:
    """(channels, X, Y, Z) float32 in `box`: z-scored by the brain, within 5; 0 outside `within`, and where missing.

    Where a scan shows nothing (NaN) it is as bright as its mean, 0: the network knows that from contrasts it lacks.
    """
    out = np.zeros((len(names), *(s.stop - s.start for s in box)), np.float32)
    part = within[box]
    there = tuple(slice(0, n) for n in part.shape)
    for channel, name in zip(out, names, strict=True):
        if name in images:
            values = images[name][mask].astype(np.float64)
            values = values[np.isfinite(values)]
            scaled = (images[name][box] - values.mean()) / max(values.std(), 1e-6)
            channel[there] = np.clip(np.where(part, np.nan_to_num(scaled), 0), -5, 5)
    return out


def brain_places(mask: np.ndarray, box: tuple[slice, ...], voxel_size_mm: tuple[float, float, float]) -> tiles.Places:
    """Voxel centres of the box along each axis, relative to the brain's: -1 and 1 at its ends."""
    out = []
    for (low, high), part, size in zip(tiles.extent(mask), box, voxel_size_mm, strict=True):
        half = max((high - low) / 2 - FLUID_RIM_MM / size, 1.0)
        out.append((torch.arange(part.start, part.stop, dtype=torch.float32) + 0.5 - (low + high) / 2) / half)
    return out[0], out[1], out[2]


def bfloat16(device: str) -> bool:
    """Half the memory on a GPU, a fifth of the time on CPUs that have it in hardware; slower on those without."""
    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@dataclass(frozen=True)
class Reading:
    """What the network's classes come to, on the grid of the image.

    Attributes
    ----------
    mask : ndarray of bool (X, Y, Z)
        Brain: where background is not the likelier, one piece without holes or clefts, within the mask it was given.
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
    background, *_, lesion = found.probability
    brain = np.zeros(mask.shape, bool)
    brain[found.box] = _closed(largest_piece((background < 0.5) & mask[found.box])) & mask[found.box]
    inside = brain[found.box]
    tissues = np.zeros((len(TISSUES), *mask.shape), np.float32)
    part = tissues[(slice(None), *found.box)]
    likeliest, best = np.zeros(background.shape, np.uint8), np.full(background.shape, -1, np.float32)
    for structure, share in _without_lesions(found):
        if structure.name == EXTRA_AXIAL:
            share += background  # what the network calls background within the mask: a hole, a rim
        part[TISSUES.index(structure.tissue)] += share
        better = share > best
        likeliest[better] = structure.left
        np.maximum(best, share, out=best)
    part /= part.sum(0)
    part *= inside
    labels = np.zeros(mask.shape, np.uint8)
    labels[found.box] = likeliest * inside
    probability = np.zeros(mask.shape, np.float32)
    probability[found.box] = lesion * inside
    return Reading(brain, tissues, labels, probability)


def _closed(mask: np.ndarray) -> np.ndarray:
    """The mask without holes and narrow clefts."""
    padded = np.pad(mask, BRAIN_CLOSING)  # at its end the box would count as eroded
    closed = ndimage.binary_closing(padded, iterations=BRAIN_CLOSING)
    return ndimage.binary_fill_holes(closed)[(slice(BRAIN_CLOSING, -BRAIN_CLOSING),) * 3]


def _without_lesions(found: NetworkResult) -> Iterator[tuple[Structure, np.ndarray]]:
    """Each structure and its probability, had there been no lesions: a lesion lies in one that is no fluid.

    P(structure) + P(lesion) * P(structure | not fluid), the latter white matter where nothing is known. One after the
    other: all of them together are as large as all that the network says.
    """
    lesion = found.probability[-1]

    def said(structure: Structure) -> np.ndarray:
        share = found.probability[found.classes.index(structure.name)]
        return share + np.float32(1e-6) if structure.name == WHITE_MATTER else share

    factor = 1 + lesion / sum(said(structure) for structure in STRUCTURES if structure.tissue != CSF)
    for structure in STRUCTURES:
        yield structure, said(structure) * (factor if structure.tissue != CSF else 1)


def lesion_mask(
    probability: np.ndarray, *, threshold: float, voxel_size_mm: tuple[float, float, float], seed: float = 0.0
) -> np.ndarray:
    """Lesions: above `threshold`, 26-connected, at least 3 mm long (McDonald criteria: Thompson et al. 2018).

    Parameters
    ----------
    probability : ndarray, shape (X, Y, Z)
    threshold : float
    voxel_size_mm : tuple of float
    seed : float
        A lesion is one only if it exceeds this somewhere.

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)
    """
    labels, _ = label_lesions(probability > threshold)
    lesions = np.zeros(labels.shape, bool)
    for number, box in enumerate(ndimage.find_objects(labels), 1):
        sides = [(s.stop - s.start) * size for s, size in zip(box, voxel_size_mm, strict=True)]
        lesion = labels[box] == number
        if max(sides) >= SHORTEST_LESION_MM - ROUNDING_MM and probability[box][lesion].max() > seed:
            lesions[box] |= lesion
    return lesions
