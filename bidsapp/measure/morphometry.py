"""Voxel-based morphometry: where the volume of grey matter goes with a group, or with age."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from scipy import ndimage

from bidsapp.image.grid import block_affine, block_mean
from bidsapp.image.resample import resample
from bidsapp.measure.maps import MINIMUM_PER_GROUP, checked_confounds, permutation_test, read_map, voxel_blocks
from bidsapp.words import count_of

#: Smoothing: what is compared is the volume within a few mm, which makes up for what the registration leaves, and for
#: values that are not normal (Ashburner and Friston 2000, NeuroImage 11:805-821; Salmond et al. 2002, NeuroImage
#: 17:1027-1030).
FWHM_MM = 8.0
#: Blocks of this many voxels along each axis are one: of maps as smooth as these nothing is lost.
BLOCK = 3
#: Voxels with less grey matter on average, as a share of the volume, are not tested. (SPM's absolute masking asks it of
#: every scan: one that is cut, or one severe atrophy, then takes voxels from all.)
LEAST_GM = 0.1
#: Next to no grey matter where others have some: beyond the scan's field of view, not lost.
NOTHING = 0.02
#: Voxels that more than this share of the scans does not show are not tested ...
HIDDEN_SHARE = 0.1
#: ... and a scan that does not show more than this share of the others is left out.
CUT_SHARE = 0.02
#: Subjects of a test without groups.
MINIMUM_SUBJECTS = 2 * MINIMUM_PER_GROUP


@dataclass(frozen=True)
class EffectMap:
    """Where grey matter goes with what was tested.

    Attributes
    ----------
    t : Nifti1Image
        3D float32 on the grid of the images, t of what was tested; 0 where not tested.
    log_p : Nifti1Image
        3D float32, -log10 of the p-value corrected for all voxels (family-wise), 0 where not tested.
    subjects, permutations : int
    tested_ml, significant_ml : float
        Volume that was tested, and that is significant at 0.05.
    smallest_p, peak_t : float
        Of all voxels: corrected p, and the t farthest from 0.
    peak_mm : tuple of float
        Where that is, RAS mm in the space of the images.
    cut : tuple of int
        Places among the images of those that were left out: their scans show a part of the brain only.
    """

    t: nib.Nifti1Image
    log_p: nib.Nifti1Image
    subjects: int
    permutations: int
    tested_ml: float
    significant_ml: float
    smallest_p: float
    peak_t: float
    peak_mm: tuple[float, float, float]
    cut: tuple[int, ...]


def morphometry(
    paths: Sequence[Path],
    tested: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    permutations: int = 1000,
    random_seed: int = 1,
) -> EffectMap:
    """Test the smoothed volume of grey matter in every voxel, by permutation.

    Parameters
    ----------
    paths : sequence of Path
        Modulated grey matter on one grid, one for each subject (`image.results.modulated`); all must be readable.
    tested : ndarray, shape (n,)
        Of each subject: whether of the second group (bool), or a number such as age.
    confounds : ndarray, shape (n, k), optional
        To be adjusted for, such as age, sex and TIV.
    permutations, random_seed : int

    Returns
    -------
    EffectMap
        Two-sided, on blocks of 3 x 3 x 3 voxels of the images; the linear model and its permutations are nilearn's, as
        in `maps.lesion_difference`.

    Raises
    ------
    ValueError
        Too few subjects, what is tested goes with the confounds, an image cannot be used, or no voxel holds enough
        grey matter.
    """
    if tested.dtype != bool and len(tested) < MINIMUM_SUBJECTS:
        raise ValueError(f"{count_of(len(tested), 'subject')} with a map, at least {MINIMUM_SUBJECTS} are needed.")
    checked_confounds(tested, confounds)  # before the images are read
    with tempfile.TemporaryFile() as store:
        grid, fine = _store_smoothed(paths, store)
        maps = np.memmap(store, np.float32, "r", shape=(len(paths), int(np.prod(grid.shape))))
        whole, where = _shown(maps)
        tested = tested[whole]
        confounds = checked_confounds(tested, None if confounds is None else confounds[whole])
        blocks = (np.asarray(maps[:, block][whole], dtype=float) for block in voxel_blocks(where, len(tested)))
        t, p = permutation_test(blocks, tested, confounds, permutations=permutations, random_seed=random_seed)
    peak = int(np.abs(t).argmax())
    x, y, z = apply_affine(grid.affine, np.unravel_index(where[peak], grid.shape))
    voxel_ml = float(np.prod(voxel_sizes(grid.affine))) / 1000
    return EffectMap(
        t=_on_fine(t, where, grid, fine),
        log_p=_on_fine(-np.log10(p), where, grid, fine),
        subjects=len(tested),
        permutations=permutations,
        tested_ml=len(where) * voxel_ml,
        significant_ml=int((p < 0.05).sum()) * voxel_ml,
        smallest_p=float(p.min()),
        peak_t=float(t[peak]),
        peak_mm=(float(x), float(y), float(z)),
        cut=tuple(map(int, np.flatnonzero(~whole))),
    )


def _store_smoothed(paths: Sequence[Path], store: IO[bytes]) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Write the smoothed maps into a file, one after the other; returns their grid and the images' grid."""
    fine = None
    for path in paths:
        values, image, why = read_map(path, fine)
        if values is None or image is None:
            raise ValueError(f"{path.name}: {why}")
        fine = image
        coarse = block_mean(values, BLOCK)
        # The blocks have smoothed already: a box of n voxels has the variance n^2 / 12.
        sigma = np.sqrt((FWHM_MM / np.sqrt(8 * np.log(2)) / voxel_sizes(image.affine)) ** 2 - BLOCK**2 / 12) / BLOCK
        smooth = ndimage.gaussian_filter(coarse, sigma, mode="constant")
        store.write(smooth.astype(np.float32).tobytes())
    if fine is None:
        raise ValueError("there is no map of gray matter.")
    store.flush()
    return nib.Nifti1Image(np.zeros(coarse.shape, np.uint8), fine.affine @ block_affine(BLOCK)), fine


def _shown(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which maps (bool) show what the others show, and the voxels to test.

    A field of view that ends within the brain would look like a loss of grey matter.
    """
    candidates = np.flatnonzero(np.mean(maps, axis=0) > LEAST_GM)
    hidden = np.stack([one[candidates] < NOTHING for one in maps])
    candidates, hidden = (part[..., hidden.mean(axis=0) <= HIDDEN_SHARE] for part in (candidates, hidden))
    if not len(candidates):
        raise ValueError("no voxel holds enough gray matter.")
    whole = hidden.mean(axis=1) <= CUT_SHARE
    if not whole.any():
        raise ValueError("every scan shows a part of the brain only.")
    return whole, candidates


def _on_fine(values: np.ndarray, where: np.ndarray, grid: nib.Nifti1Image, fine: nib.Nifti1Image) -> nib.Nifti1Image:
    data = np.zeros(grid.shape, np.float32)
    data.ravel()[where] = values
    return resample(nib.Nifti1Image(data, grid.affine), fine, interpolation="nearest")
