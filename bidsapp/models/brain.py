"""Where the brain is: one image of a head in, the probability of brain out."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from bidsapp.errors import InputError
from bidsapp.image.grid import antialias, bounding_box
from bidsapp.image.morphology import largest_piece
from bidsapp.models.registry import Model, load_model

#: Dice of two brain masks of one head: 0.96 and more in whole real heads; 0.90 and less where one of them was
#: wrong, or the scan showed a part of a head (docs/benchmarks.md).
AGREEMENT = 0.9
#: Volume (l) of a mask that may be a brain's, with the fluid around it: the check believes no other.
BRAIN_LITRES = (0.6, 2.2)
#: The network's probability rises from 0 to 1 over this distance (mm) across the border (training/tasks.py).
RAMP_MM = 6.0


def find_brain(
    image: np.ndarray, *, voxel_size_mm: tuple[float, float, float], device: str = "cpu", model: Model | None = None
) -> np.ndarray:
    """Probability of brain, for a head of any contrast and resolution, whole, defaced or already stripped.

    A small U-Net on the image at 2.5 mm, trained on synthetic heads only (docs/models/brain.md; the idea:
    SynthStrip, Hoopes et al. 2022, NeuroImage), averaged over the image and its mirror image.

    Parameters
    ----------
    image : ndarray
        3D, axes in RAS order, about 1 mm (any size works).
    voxel_size_mm : tuple of float
        Along the axes of `image`.
    device : str
        ``"cpu"`` or ``"cuda"``.
    model : Model, optional
        Instead of the packaged one.

    Returns
    -------
    ndarray
        float32 in [0, 1], shape of `image`; 0.5 at the brain's border, which is interpolated from the distance the
        network sees: one connected piece above 0.5, without holes.

    Raises
    ------
    InputError
        No brain is found.
    """
    model = model or _packaged(device)
    small, scale = _downsample(np.nan_to_num(np.asarray(image, np.float32)), voxel_size_mm, model.spacing_mm)
    coarse = _predict(model, np.clip(small, 0, None))
    # Linear interpolation of the ramp, then a border as sharp as the image's voxels.
    fine = ndimage.affine_transform(
        coarse, np.diag(1 / scale), offset=(1 / scale - 1) / 2, output_shape=image.shape, order=1, mode="nearest",
        output=np.float32,
    )  # fmt: skip
    outwards = model.card.get("border_offset_mm", 0.0) / RAMP_MM
    steeper = RAMP_MM / (2 * min(voxel_size_mm))
    return _one_piece(np.clip(0.5 + (fine - 0.5 + outwards) * steeper, 0, 1).astype(np.float32))


def second_opinion(mask: np.ndarray, found: np.ndarray | None, wrong: str) -> tuple[np.ndarray, str]:
    """A brain mask that another method made, or the network's in its stead where the two disagree grossly.

    Parameters
    ----------
    mask : ndarray of bool, shape (X, Y, Z)
        The other method's.
    found, wrong
        What `find_plausible_brain` says of the same head.

    Returns
    -------
    mask : ndarray of bool, shape (X, Y, Z)
    note : str
        What to tell whoever reads the results; empty where the two agree.

    Notes
    -----
    The network draws the border less exactly than deepbet (T1w at 1 mm) and the template (thick slices), but found the
    brain in heads that these missed (docs/benchmarks.md).
    """
    if found is None:  # it fails, too: on the noise around an MP2RAGE's head
        return mask, f"a second method, run for a check, found {wrong}: look at the brain mask"
    dice = 2 * np.count_nonzero(mask & found) / (np.count_nonzero(mask) + np.count_nonzero(found))
    if dice >= AGREEMENT:
        return mask, ""
    return found, (
        f"two methods disagree about where the brain is (Dice {dice:.2f}); the network's brain mask was taken, which"
        " has been the better one in such cases: look at it"
    )


def find_plausible_brain(
    image: np.ndarray, *, voxel_size_mm: tuple[float, float, float], device: str = "cpu"
) -> tuple[np.ndarray | None, str]:
    """The mask of `find_brain`, or None and what was found in its stead, where that cannot be a brain by its size."""
    try:
        found = find_brain(image, voxel_size_mm=voxel_size_mm, device=device) > 0.5
    except InputError:
        return None, "no brain"
    litres = np.count_nonzero(found) * float(np.prod(voxel_size_mm)) / 1e6
    if BRAIN_LITRES[0] <= litres <= BRAIN_LITRES[1]:
        return found, ""
    return None, f"{litres:.1f} l, no brain"


@functools.lru_cache(maxsize=1)
def _packaged(device: str) -> Model:
    return load_model("brain", device=device)


def _downsample(
    image: np.ndarray, voxel_size_mm: tuple[float, float, float], spacing_mm: float
) -> tuple[np.ndarray, np.ndarray]:
    """The image at `spacing_mm` with the same edges, and the size of its voxels in voxels of `image`."""
    scale = spacing_mm / np.asarray(voxel_size_mm, float)
    shape = tuple(int(n) for n in np.ceil(np.array(image.shape) / scale))
    out = ndimage.affine_transform(
        antialias(image, scale), np.diag(scale), offset=(scale - 1) / 2, output_shape=shape, order=1, mode="nearest",
        output=np.float32,
    )  # fmt: skip
    return out, scale


def _predict(model: Model, image: np.ndarray) -> np.ndarray:
    """Probabilities on the grid of `image`; the network sees the head's box, padded with zeros to what it takes.

    Its norms run over all it sees: much air around the head misleads them (a healthy T1w of 256 mm cubed: Dice with
    the air 0.72, without 0.88, early in training).
    """
    box = _head_box(image)
    multiple = model.network.config.multiple
    part = image[box]
    padding = [(0, -n % multiple) for n in part.shape]
    device = next(model.network.parameters()).device
    x = normalise(torch.from_numpy(np.pad(part, padding)).to(device))[None, None]
    with torch.inference_mode():
        both = model.network(x).sigmoid() + model.network(x.flip(2)).sigmoid().flip(2)
    nx, ny, nz = part.shape
    out = np.zeros_like(image)
    out[box] = (both[0, 0, :nx, :ny, :nz] / 2).float().cpu().numpy()
    return out


def _head_box(image: np.ndarray) -> tuple[slice, ...]:
    """Box of what is brighter than air (15 % of the bright voxels' level), specks left out, and a voxel around it."""
    bright = normalise(torch.from_numpy(image)).numpy() > 0.15
    whole = ndimage.binary_opening(bright)
    return bounding_box(whole, margin=1) if whole.any() else tuple(slice(0, n) for n in image.shape)


def deepbet_brain(image: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Probability of brain by deepbet (Fisch et al. 2024, Computers in Biology and Medicine), for T1w images only.

    Parameters
    ----------
    image : ndarray
        3D, axes in RAS order, about 1 mm; whole head or already stripped.
    device : str
        ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    ndarray
        float32 in [0, 1], shape of `image`: one connected piece above 0.5, without holes.

    Raises
    ------
    InputError
        deepbet finds no brain in the image.
    """
    tool = _deepbet(device)
    try:
        probability = tool.run_model(np.array(image, dtype=np.float32, order="C"))
    except (ValueError, AssertionError) as error:  # an empty mask: bincount of nothing, or no bounding box
        raise InputError(
            "deepbet finds no brain in this image; if it is no T1w, choose another brain extraction"
        ) from error
    return _one_piece(np.clip(probability, 0, 1).astype(np.float32))


@functools.lru_cache(maxsize=1)
def _deepbet(device: str) -> Any:  # deepbet has no type stubs
    from deepbet.bet import BrainExtraction  # imported here: it pulls in pandas and tqdm

    with warnings.catch_warnings():  # torch.jit.load is deprecated, and all that deepbet ships
        warnings.simplefilter("ignore", DeprecationWarning)
        tool = BrainExtraction(no_gpu=True)
    for model in (tool.model, tool.bbox_model):
        model.to(torch.device(device))
    return tool


def _one_piece(probability: np.ndarray) -> np.ndarray:
    """Largest connected piece above 0.5 only, its holes filled with 1; the soft border is kept."""
    above = probability > 0.5
    if not above.any():
        raise InputError("no brain was found in this image: is it a head, and not cut or empty?")
    largest = largest_piece(above)
    out = np.where(above & ~largest, 0, probability)
    out[ndimage.binary_fill_holes(largest) & ~largest] = 1
    return out.astype(np.float32)


def normalise(image: torch.Tensor) -> torch.Tensor:
    """Scale an image to about [0, 1] by the 90th percentile of what is brighter than its mean; kept below 3.

    The mean leaves out the air around the head, whose share depends on the field of view.
    """
    bright = image[image > image.mean()]
    if bright.numel() == 0:
        return torch.zeros_like(image)
    top = bright.kthvalue(max(1, int(0.9 * bright.numel()))).values
    return (image / top).clamp(0, 3)
