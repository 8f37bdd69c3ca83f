"""Label maps of real patients: their tissue classes and lesions, with the structures of the heads laid on them.

``training/ms_tissue_and_lesions`` of the training material holds what the heads lack: sulci and ventricles of people
with multiple sclerosis, and lesions where they were. Its three tissue classes become label maps like those of the heads
by registration: heads that resemble a patient most are warped onto them, vote, and every voxel takes the nearest of
the labels that its tissue class allows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from bidsapp.image.itk import Stage, ants_registration, shift
from bidsapp.image.register import FIXED_MARGIN, center_of_mass, deform, similarity_matrix
from bidsapp.image.resample import coarsen, compose, crop, resample
from bidsapp.image.save import write_image
from bidsapp.learn.anatomy import KINDS, LEFT_LESION, RIGHT_LESION, STRUCTURES

log = logging.getLogger("training")

TISSUE_ENDING, LESION_ENDING = "_tissue.nii.gz", "_lesion.nii.gz"
OUTSIDE, CSF, GM, WM = range(4)
#: Deep structures that the patients' classes call white matter on one scan and grey on another: the heads decide.
DEEP = (
    "thalamus", "caudate", "putamen", "pallidum", "accumbens", "ventral DC", "brain stem", "hippocampus", "amygdala",
)  # fmt: skip
#: What each tissue class may be besides.
ALLOWED = {
    CSF: ("csf", "choroid plexus"),
    GM: ("cortex", "cerebellar cortex", "choroid plexus", *DEEP),
    WM: ("white matter", "cerebellar white matter", *DEEP),
}
#: Registration sees the classes as a T1w would; deep structures lie between grey and white matter.
SIGNAL = {OUTSIDE: 0.0, CSF: 0.3, GM: 0.65, WM: 1.0}
DEEP_SIGNAL = 0.9
HEADS_THAT_VOTE = 3
AFFINE = [Stage("Affine[0.1]", "Mattes", "32,Regular,0.1", "60", "2", "1")]
SYN = Stage("SyN[0.3,3,0]", "Mattes", "32,Regular,0.5", "40x20", "2x1", "1x0")
SPACING_MM, REGISTRATION_MM = 1.0, 2.0


def patient_names(folder: Path) -> tuple[str, ...]:
    """Names of the patients in a folder of ``<name>_tissue.nii.gz`` and ``<name>_lesion.nii.gz``."""
    names = tuple(sorted(path.name.removesuffix(TISSUE_ENDING) for path in folder.glob(f"*{TISSUE_ENDING}")))
    if not names:
        raise FileNotFoundError(f"no patients: {folder} holds no *{TISSUE_ENDING}; name the folder under 'patients'")
    return names


def make_label_maps(folder: Path, heads: Path, head_names: Sequence[str], *, out: Path) -> tuple[str, ...]:
    """Write ``<out>/<name>.nii.gz`` for each patient that has none yet; minutes each.

    Parameters
    ----------
    folder : Path
        Tissue classes (1 CSF, 2 GM, 3 WM) and lesions of the patients.
    heads : Path
        Label maps of whole heads, of which `head_names` may vote.
    out : Path

    Returns
    -------
    tuple of str
        Names of the patients.
    """
    names = patient_names(folder)
    out.mkdir(parents=True, exist_ok=True)
    wanted = [name for name in names if not (out / f"{name}.nii.gz").exists()]
    atlases = [Atlas.of(_canonical(heads / f"{name}.nii.gz")) for name in head_names] if wanted else []
    for name in wanted:
        log.info("label map of patient %s", name)
        found = label_map(*(_canonical(folder / f"{name}{end}") for end in (TISSUE_ENDING, LESION_ENDING)), atlases)
        write_image(found, out / f"{name}.nii.gz")
    return names


@dataclass(frozen=True)
class Atlas:
    """A head's label map, and its brain as registration sees it, at `REGISTRATION_MM`."""

    labels: nib.Nifti1Image
    seen: nib.Nifti1Image

    @classmethod
    def of(cls, labels: nib.Nifti1Image) -> Atlas:
        """An atlas of a label map (FreeSurfer's labels, RAS axes)."""
        values = np.asarray(labels.dataobj)
        signal = _signal(_classes_of(values))
        signal[np.isin(values, [s.index for s in STRUCTURES if s.kind in DEEP])] = DEEP_SIGNAL
        return cls(labels, coarsen(_image(signal, labels), REGISTRATION_MM))


def label_map(tissue: nib.Nifti1Image, lesion: nib.Nifti1Image, atlases: Sequence[Atlas]) -> nib.Nifti1Image:
    """One patient's label map, FreeSurfer's labels, 1 mm.

    Parameters
    ----------
    tissue, lesion : Nifti1Image
        Classes (1 CSF, 2 GM, 3 WM) and lesions on one grid, RAS axes.
    atlases : sequence of Atlas
        The most like the patient vote.

    Returns
    -------
    Nifti1Image
        uint16: the brain with its lesions (``anatomy.LEFT_LESION``, ``RIGHT_LESION``), in the heads' surroundings.
    """
    grid = _grid(tissue)
    classes = np.asarray(resample(tissue, grid, interpolation="nearest").dataobj).astype(np.uint8)
    share = resample(coarsen(_image(np.asarray(lesion.dataobj) > 0, tissue), SPACING_MM), grid)
    brain = ndimage.binary_fill_holes(classes > 0)
    classes[brain & (classes == OUTSIDE)] = CSF
    fixed = coarsen(_image(_signal(classes), grid), REGISTRATION_MM)
    votes = [np.asarray(vote.dataobj) for vote in _votes(fixed, grid, atlases)]
    labels = by_tissue(_majority(votes), classes)
    ill = (np.asarray(share.dataobj) > 0.5) & brain
    labels[ill] = np.where(_on_left(labels)[ill], LEFT_LESION, RIGHT_LESION)
    return _image(labels.astype(np.uint16), grid)


def by_tissue(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Each voxel's label where its tissue class allows that, else the nearest label that it allows.

    Parameters
    ----------
    labels : ndarray of int, shape (X, Y, Z)
        FreeSurfer's, of a head.
    classes : ndarray of int, shape (X, Y, Z)
        0 outside the brain, 1 CSF, 2 GM, 3 WM.

    Returns
    -------
    ndarray, shape (X, Y, Z)
    """
    out = np.zeros_like(labels)
    for tissue in (OUTSIDE, CSF, GM, WM):
        allowed = np.isin(labels, _labels_of(tissue))
        where = classes == tissue
        nearest = ndimage.distance_transform_edt(~allowed, return_distances=False, return_indices=True)
        out[where] = labels[tuple(axis[where] for axis in nearest)]
    return out


def _labels_of(tissue: int) -> list[int]:
    if tissue == OUTSIDE:
        cerebral = {kind.name for kind in KINDS if kind.cerebral}
        return [s.index for s in STRUCTURES if s.kind not in cerebral]
    kinds = ALLOWED[tissue]
    return [s.index for s in STRUCTURES if s.kind in kinds and s.index not in (LEFT_LESION, RIGHT_LESION)]


def _votes(fixed: nib.Nifti1Image, grid: nib.Nifti1Image, atlases: Sequence[Atlas]) -> list[nib.Nifti1Image]:
    """Labels of the heads that fit best after an affine registration, warped; the best one first."""
    fixed = crop(fixed, margin=FIXED_MARGIN)
    affines = [_affine(atlas.seen, fixed) for atlas in atlases]
    target = np.asarray(fixed.dataobj).ravel()
    fits = [
        np.corrcoef(np.asarray(resample(atlas.seen, fixed, transform=affine).dataobj).ravel(), target)[0, 1]
        for atlas, affine in zip(atlases, affines, strict=True)
    ]
    out = []
    for best in np.argsort(fits)[::-1][:HEADS_THAT_VOTE]:
        warp, _ = deform(atlases[best].seen, fixed, affine=affines[best], stage=SYN)
        field = compose(grid, [warp, affines[best]])
        out.append(resample(atlases[best].labels, grid, transform=field, interpolation="nearest"))
        log.info("head number %d, similarity %.3f", best, fits[best])
    return out


def _affine(moving: nib.Nifti1Image, fixed: nib.Nifti1Image) -> np.ndarray:
    """Fixed point -> moving point."""
    volumes = [np.count_nonzero(np.asarray(img.dataobj) > 0.1) for img in (moving, fixed)]
    scale = float((volumes[0] / volumes[1]) ** (1 / 3))
    center = center_of_mass(fixed)
    start = shift(center_of_mass(moving)) @ similarity_matrix(scale) @ shift(-center)
    matrix, _, _ = ants_registration(
        crop(moving, margin=FIXED_MARGIN), fixed, start=start, center=center, stages=AFFINE
    )
    return matrix


def _majority(votes: Sequence[np.ndarray]) -> np.ndarray:
    """The label that most give; of as many votes the first one's."""
    counts = [sum((vote == other).astype(np.uint8) for other in votes) for vote in votes]
    return np.choose(np.argmax(counts, axis=0), votes)


def _classes_of(labels: np.ndarray) -> np.ndarray:
    out = np.zeros(labels.shape, np.uint8)
    for tissue in (GM, WM, CSF):
        kinds = [kind for kind in ALLOWED[tissue] if kind not in DEEP]
        out[np.isin(labels, [s.index for s in STRUCTURES if s.kind in kinds])] = tissue
    return out


def _signal(classes: np.ndarray) -> np.ndarray:
    return np.array([SIGNAL[tissue] for tissue in (OUTSIDE, CSF, GM, WM)], np.float32)[classes]


def _on_left(labels: np.ndarray) -> np.ndarray:
    """Whether the nearest cerebral white matter or cortex is the left one."""
    left, right = (np.isin(labels, pair) for pair in ((2, 3), (41, 42)))
    return ndimage.distance_transform_edt(~left) < ndimage.distance_transform_edt(~right)


def _grid(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """1 mm over the field of view."""
    sizes = np.array(img.header.get_zooms()[:3])
    shape = np.ceil(np.array(img.shape) * sizes / SPACING_MM).astype(int)
    affine = np.array(img.affine)
    affine[:3, :3] = affine[:3, :3] / sizes * SPACING_MM
    affine[:3, 3] += affine[:3, :3] @ (0.5 - 0.5 * sizes / SPACING_MM)
    return nib.Nifti1Image(np.zeros(tuple(shape), np.uint8), affine)


def _canonical(path: Path) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image.from_filename(path))


def _image(data: np.ndarray, like: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(data.astype(np.float32) if data.dtype == bool else data, like.affine)
