"""Maps of a group in MNI space, image by image: lesion frequency, mean tissue, and where two groups differ."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import nibabel as nib
import numpy as np

from bidsapp.words import count_of

#: Voxels with lesions in fewer subjects are not tested: they could not become significant (Kimberg et al. 2007,
#: J Cogn Neurosci 19:1067, on lesion maps; 5 % or at least this many).
MINIMUM_LESIONED, MINIMUM_SHARE = 4, 0.05
#: Subjects in each group for a test.
MINIMUM_PER_GROUP = 5
#: Degrees of freedom that a test must leave.
MINIMUM_DF = 5
#: Memory for a block of voxels of all subjects (bytes).
BLOCK_BYTES = 256 * 2**20
#: Of nilearn's working arrays, per value of a block.
_BYTES_PER_VALUE = 40


@dataclass(frozen=True)
class MeanMap:
    """Mean of many images.

    Attributes
    ----------
    mean : Nifti1Image
        3D float32; of masks the share of subjects, 0 to 1.
    count : int
        Images in it.
    skipped : tuple of str
        Files that could not be used, each with the reason.
    """

    mean: nib.Nifti1Image
    count: int
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class DifferenceMap:
    """Where lesions are more frequent in one group.

    Attributes
    ----------
    difference : Nifti1Image
        3D float32, share of the second level minus share of the first.
    log_p : Nifti1Image
        3D float32, -log10 of the p-value corrected for all voxels (family-wise), 0 where not tested.
    tested, significant : int
        Voxels.
    permutations : int
    smallest_p : float
        Of all voxels, corrected.
    """

    difference: nib.Nifti1Image
    log_p: nib.Nifti1Image
    tested: int
    significant: int
    permutations: int
    smallest_p: float


def mean_map(paths: Sequence[Path]) -> MeanMap | None:
    """Mean of images on one grid, read one at a time: memory does not grow with their number.

    Parameters
    ----------
    paths : sequence of Path
        3D images; one that cannot be read, or lies on another grid than the first, is skipped and named.

    Returns
    -------
    MeanMap or None
        None where no image can be used.
    """
    total: np.ndarray | None = None
    first: nib.Nifti1Image | None = None
    count, skipped = 0, []
    for path in paths:
        values, image, why = read_map(path, first)
        if values is None or image is None:
            skipped.append(f"{path.name}: {why}")
            continue
        if total is None or first is None:
            total, first = np.zeros(values.shape), image
        total += values
        count += 1
    if total is None or first is None:
        return None
    return MeanMap(nib.Nifti1Image((total / count).astype(np.float32), first.affine), count, tuple(skipped))


def lesion_difference(
    paths: Sequence[Path],
    second: np.ndarray,
    *,
    confounds: np.ndarray | None = None,
    permutations: int = 1000,
    random_seed: int = 1,
) -> DifferenceMap:
    """Difference of lesion frequency between two groups, tested in every voxel by permutation.

    nilearn's `permuted_ols` (Anderson and Robinson 2001, Aust N Z J Stat 43:75): labels are exchanged between subjects,
    and each voxel's t is compared with the largest of all voxels (family-wise error, Westfall and Young 1993). Voxels
    are taken block by block, always with the same permutations, and the largest of the blocks' largest t is that of
    all: the result is that of one block, in memory that does not grow with the voxels or the subjects.

    Parameters
    ----------
    paths : sequence of Path
        Lesion masks on one grid, one for each subject; all must be readable.
    second : ndarray of bool, shape (n,)
        Whether each subject is of the second group.
    confounds : ndarray, shape (n, k), optional
        To be adjusted for, such as age.
    permutations, random_seed : int

    Raises
    ------
    ValueError
        A group has fewer than `MINIMUM_PER_GROUP` subjects, the confounds tell the groups apart, an image cannot be
        used, or no voxel can be tested.
    """
    second = np.asarray(second, dtype=bool)
    confounds = checked_confounds(second, confounds)
    with tempfile.TemporaryFile() as store:
        counts, ends, image = _store(paths, second, store)
        needed = max(MINIMUM_LESIONED, int(np.ceil(MINIMUM_SHARE * len(paths))))
        total = counts.sum(axis=0)
        tested = np.flatnonzero((total >= needed) & (total < len(paths)))
        if not len(tested):
            raise ValueError(f"no voxel has lesions in {needed} subjects or more.")
        blocks = (_block(store, ends, block) for block in voxel_blocks(tested, len(paths)))
        _, p = permutation_test(blocks, second, confounds, permutations=permutations, random_seed=random_seed)
    share = counts / np.array([[(~second).sum()], [second.sum()]])
    return DifferenceMap(
        difference=_image(share[1] - share[0], image),
        log_p=_image(np.bincount(tested, weights=-np.log10(p), minlength=counts.shape[1]), image),
        tested=len(tested),
        significant=int((p < 0.05).sum()),
        permutations=permutations,
        smallest_p=float(p.min()),
    )


def checked_confounds(tested: np.ndarray, confounds: np.ndarray | None) -> np.ndarray | None:
    """What is adjusted for, without columns that the others determine; None where nothing is left.

    Parameters
    ----------
    tested : ndarray, shape (n,)
        Whether each subject is of the second group (bool), or a number.
    confounds : ndarray, shape (n, k), optional

    Raises
    ------
    ValueError
        A group has fewer than `MINIMUM_PER_GROUP` subjects, the confounds determine what is tested, or too few degrees
        of freedom are left.
    """
    if tested.dtype == bool:
        smaller = int(min(tested.sum(), (~tested).sum()))
        if smaller < MINIMUM_PER_GROUP:
            there = count_of(smaller, "subject")
            raise ValueError(f"{there} with a map in the smaller group, at least {MINIMUM_PER_GROUP} are needed.")
    columns = [np.ones(len(tested))]
    for column in () if confounds is None else confounds.T:
        if _rank([*columns, column]) > len(columns):
            columns.append(column)
    if _rank([*columns, tested]) == len(columns):
        what = "the groups are told apart" if tested.dtype == bool else "what is tested is determined"
        raise ValueError(f"{what} by what is adjusted for (such as all women in one of them).")
    left = max(len(tested) - len(columns) - 1, 0)
    if left < MINIMUM_DF:
        spare = count_of(left, "degree")
        raise ValueError(f"{len(tested)} subjects leave {spare} of freedom, at least {MINIMUM_DF} are needed.")
    return np.column_stack(columns[1:]) if len(columns) > 1 else None


def _rank(columns: Sequence[np.ndarray]) -> int:
    """Rank of a matrix, whatever the units of its columns."""
    matrix = np.column_stack(columns).astype(float)
    return int(np.linalg.matrix_rank(matrix / np.linalg.norm(matrix, axis=0).clip(1e-300)))


def voxel_blocks(voxels: np.ndarray, subjects: int) -> Iterator[np.ndarray]:
    """`voxels` in parts small enough to test at once."""
    size = max(1, BLOCK_BYTES // (_BYTES_PER_VALUE * subjects))
    return (voxels[start : start + size] for start in range(0, len(voxels), size))


def permutation_test(
    blocks: Iterable[np.ndarray],
    tested: np.ndarray,
    confounds: np.ndarray | None,
    *,
    permutations: int,
    random_seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """t of every voxel, and its two-sided p-value corrected for all of them (family-wise).

    Parameters
    ----------
    blocks : iterable of ndarray, each of shape (n, voxels)
        Values of all subjects, block by block.
    tested : ndarray, shape (n,)
    confounds : ndarray, shape (n, k), optional
    permutations, random_seed : int
        Of every block the same, so that the largest |t| of the blocks is that of all voxels.
    """
    from nilearn.mass_univariate import permuted_ols

    largest, scores = np.zeros(permutations), []
    for values in blocks:
        found = permuted_ols(
            tested[:, None].astype(float), values, confounding_vars=confounds,
            n_perm=permutations, random_state=random_seed, n_jobs=1, verbose=0,
        )  # fmt: skip
        scores.append(found["t"][0])
        largest = np.maximum(largest, found["h0_max_t"][0])
    t = np.concatenate(scores)
    # How many of the permutations reach a voxel's t; the data as they are count as one more (Phipson and Smyth 2010).
    reached = permutations - np.searchsorted(np.sort(largest), np.abs(t) - 1e-9)
    return t, (reached + 1) / (permutations + 1)


def _store(
    paths: Iterable[Path], second: np.ndarray, store: IO[bytes]
) -> tuple[np.ndarray, np.ndarray, nib.Nifti1Image]:
    """Put the lesion voxels of every subject into a file; returns voxels' counts by group, and where subjects end."""
    counts: np.ndarray | None = None
    first: nib.Nifti1Image | None = None
    ends = [0]
    for path, is_second in zip(paths, second, strict=True):
        values, image, why = read_map(path, first)
        if values is None or image is None:
            raise ValueError(f"{path.name}: {why}")
        where = np.flatnonzero(values.ravel() > 0.5).astype(np.int32)
        if counts is None or first is None:
            counts, first = np.zeros((2, values.size), dtype=np.int32), image
        counts[int(is_second), where] += 1
        store.write(where.tobytes())
        ends.append(ends[-1] + len(where))
    if counts is None or first is None:
        raise ValueError("there is no lesion map.")
    return counts, np.array(ends), first


def _block(store: IO[bytes], ends: np.ndarray, block: np.ndarray) -> np.ndarray:
    """Lesions of all subjects in some voxels, shape (subjects, voxels)."""
    out = np.zeros((len(ends) - 1, len(block)))
    store.seek(0)
    for subject, count in enumerate(np.diff(ends)):
        where = np.frombuffer(store.read(4 * int(count)), dtype=np.int32)
        place = np.searchsorted(block, where)
        inside = place < len(block)
        inside[inside] = block[place[inside]] == where[inside]
        out[subject, place[inside]] = 1
    return out


def read_map(path: Path, first: nib.Nifti1Image | None) -> tuple[np.ndarray | None, nib.Nifti1Image | None, str]:
    """Values of an image on the grid of the first, or why there are none."""
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            return None, None, "is no NIfTI image."
        if first is not None and (image.shape != first.shape or not np.allclose(image.affine, first.affine, atol=1e-3)):
            return None, None, "lies on another grid than the others."
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError) as error:
        return None, None, f"cannot be read ({error})."
    if values.ndim != 3 or not np.isfinite(values).all():
        return None, None, "is no 3D image of finite values."
    return values, image, ""


def _image(values: np.ndarray, like: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(values.reshape(like.shape).astype(np.float32), like.affine)
