"""Where the brain is: one image of a head in, the probability of brain out."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from bidsapp.errors import InputError


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
    except (
        ValueError,
        AssertionError,
    ) as error:  # an empty mask: bincount of nothing, or no bounding box
        raise InputError(
            "deepbet finds no brain in this image; if it is no T1w, choose another brain extraction"
        ) from error
    return _one_piece(np.clip(probability, 0, 1).astype(np.float32))


@functools.lru_cache(maxsize=1)
def _deepbet(device: str) -> Any:  # deepbet has no type stubs
    from deepbet.bet import (
        BrainExtraction,
    )  # imported here: it pulls in pandas and tqdm

    with warnings.catch_warnings():  # torch.jit.load is deprecated, and all that deepbet ships
        warnings.simplefilter("ignore", DeprecationWarning)
        tool = BrainExtraction(no_gpu=True)
    for model in (tool.model, tool.bbox_model):
        model.to(torch.device(device))
    return tool


def _one_piece(probability: np.ndarray) -> np.ndarray:
    """Largest connected piece above 0.5 only, its holes filled with 1; the soft border is kept."""
    above = probability > 0.5
    pieces, count = ndimage.label(above)
    if count == 0:
        raise InputError("no brain was found in this image: is it a head, and not cut or empty?")
    sizes = np.bincount(pieces.ravel())
    largest = pieces == sizes[1:].argmax() + 1
    out = np.where(above & ~largest, 0, probability)
    out[ndimage.binary_fill_holes(largest) & ~largest] = 1
    return out.astype(np.float32)
