"""Volumes in mm3 from posteriors: partial volume counts, lesions are a class of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from bidsapp.image.morphology import label_lesions
from bidsapp.labels import (
    CORTEX_SIDES,
    CORTICAL_REGIONS,
    EXTRA_AXIAL_CSF,
    LOBES,
    STRUCTURES,
    CorticalRegion,
    Structure,
)
from bidsapp.measure.lesions import SHARED_LOAD_COLUMNS

#: Data dictionary of what names the row of a table.
KEY_COLUMNS: dict[str, dict[str, str]] = {
    "participant_id": {"LongName": "Subject", "Description": "Label of the subject, with sub-."},
    "session_id": {
        "LongName": "Session",
        "Description": "Label of the session, with ses-; n/a where the subject has none.",
    },
}
#: Data dictionary of the volume table, in the order of its columns. ``n/a``: not measured.
VOLUME_COLUMNS: dict[str, dict[str, str]] = {
    "tiv_mm3": {
        "LongName": "Total intracranial volume, estimated",
        "Description": "Volume of the template's brain mask times the determinant of the affine registration "
        "(Buckner et al. 2004, NeuroImage 23:724-738). The masked brain is what is registered: a wrong mask makes "
        "this volume wrong.",
        "Units": "mm^3",
    },
    "brain_mask_mm3": {
        "LongName": "Volume of the brain mask",
        "Description": "Number of voxels of the brain mask times the voxel volume.",
        "Units": "mm^3",
    },
    "brain_mm3": {
        "LongName": "Brain parenchyma",
        "Description": "Gray matter, white matter and lesions together.",
        "Units": "mm^3",
    },
    "gm_mm3": {
        "LongName": "Gray matter",
        "Description": "Sum over the voxels of their share of gray matter, lesions excluded, times the voxel volume.",
        "Units": "mm^3",
    },
    "wm_mm3": {
        "LongName": "White matter",
        "Description": "Sum over the voxels of their share of white matter, lesions excluded, times the voxel volume.",
        "Units": "mm^3",
    },
    "csf_mm3": {
        "LongName": "Cerebrospinal fluid",
        "Description": "Sum over the voxels of the brain mask of their share of fluid, lesions excluded, times the "
        "voxel volume.",
        "Units": "mm^3",
    },
    "lesion_mm3": {
        "LongName": "Lesions",
        "Description": "Number of voxels of the lesion mask times the voxel volume.",
        "Units": "mm^3",
    },
    "gm_with_lesions_mm3": {
        "LongName": "Gray matter with the lesions in it",
        "Description": "Gray matter and the lesion voxels in cortex or deep gray matter: those where the template's "
        "tissue maps give gray matter more than one half.",
        "Units": "mm^3",
    },
    "wm_with_lesions_mm3": {
        "LongName": "White matter with the lesions in it",
        "Description": "White matter and all lesion voxels that are not counted in gm_with_lesions_mm3.",
        "Units": "mm^3",
    },
    "brain_parenchymal_fraction": {
        "LongName": "Brain parenchymal fraction",
        "Description": "Brain parenchyma divided by the volume within the brain's outer surface, here the brain mask "
        "(Rudick et al. 1999, Neurology 53:1698-1704).",
    },
    **SHARED_LOAD_COLUMNS,
}

#: Data dictionary of the structures' volumes, in the order of their columns.
STRUCTURE_COLUMNS: dict[str, dict[str, str]] = {
    column: {
        "LongName": label.name[0].upper() + label.name[1:],
        "Description": f"Number of voxels with label {label.index} in *_seg-structures_dseg.nii.gz, lesions excluded, "
        "times the voxel volume.",
        "Units": "mm^3",
    }
    for structure in STRUCTURES
    if structure.left != EXTRA_AXIAL_CSF
    for label, column in zip(structure.labels, structure.columns, strict=True)
}

#: Data dictionary of the cortical regions' volumes, in the order of their columns.
CORTEX_COLUMNS: dict[str, dict[str, str]] = {
    column: {
        "LongName": f"Cortex, {label.name}",
        "Description": f"Number of voxels with label {label.index} in *_atlas-DesikanKilliany_dseg.nii.gz (Desikan et "
        "al. 2006, NeuroImage 31:968-980), lesions excluded, times the voxel volume.",
        "Units": "mm^3",
    }
    for region in CORTICAL_REGIONS
    for label, column in zip(region.labels, region.columns, strict=True)
}

#: Columns of the lobes' volumes, left and right: those of their regions.
_LOBE_PARTS: dict[str, tuple[str, ...]] = {
    f"{side}_{lobe}_cortex_mm3": tuple(region.columns[which] for region in CORTICAL_REGIONS if region.lobe == lobe)
    for lobe in LOBES
    for which, side in enumerate(CORTEX_SIDES)
}
#: Data dictionary of the lobes' volumes, in the order of their columns.
LOBE_COLUMNS: dict[str, dict[str, str]] = {
    column: {
        "LongName": column.removesuffix("_mm3").replace("_", " ").capitalize(),
        "Description": "Sum of the cortical regions "
        + ", ".join(part.partition("_")[2].removesuffix("_mm3").replace("_", " ") for part in parts)
        + ".",
        "Units": "mm^3",
    }
    for column, parts in _LOBE_PARTS.items()
}

#: A lesion voxel is in grey matter where this much of the tissue priors is grey matter.
GREY_MATTER_PRIOR = 0.5
#: Posteriors written in steps of 1/1000 may sum to a little more than one.
ROUNDING = 0.005


def estimate_tiv(affine: np.ndarray, template_volume_mm3: float) -> float:
    """Estimate the total intracranial volume from an affine registration.

    The atlas scaling factor of Buckner et al. 2004 (NeuroImage 23:724-738, doi:10.1016/j.neuroimage.2004.06.018).

    Parameters
    ----------
    affine : ndarray, shape (4, 4) or (3, 3)
        Points of the *template* in mm to points of the *scan* in mm (what ITK uses to bring a scan to the template).
        RAS or LPS make no difference.
    template_volume_mm3 : float
        Volume of the template's brain mask.

    Returns
    -------
    float
        mm3.

    Raises
    ------
    ValueError
        When the affine is not finite or has no inverse, or the volume is not positive.
    """
    matrix = np.asarray(affine, dtype=float)
    if matrix.shape not in ((3, 3), (4, 4)):
        raise ValueError(f"An affine has shape (4, 4) or (3, 3), not {matrix.shape}.")
    scale = abs(float(np.linalg.det(matrix[:3, :3]))) if np.isfinite(matrix).all() else 0.0
    if not (scale > 0 and template_volume_mm3 > 0):
        raise ValueError("The affine to the template has no inverse or the template is empty: no TIV can be estimated.")
    return template_volume_mm3 * scale


def structure_volumes(structures: np.ndarray, *, voxel_volume_mm3: float) -> dict[str, float]:
    """Volumes of the anatomical structures, in the order of `STRUCTURE_COLUMNS`.

    Parameters
    ----------
    structures : ndarray of int, shape (X, Y, Z)
        FreeSurfer's labels (`labels.STRUCTURES`).
    voxel_volume_mm3 : float
        Absolute determinant of the affine.

    Returns
    -------
    dict
        mm3; 0 where a structure has no voxel.
    """
    inside = [structure for structure in STRUCTURES if structure.left != EXTRA_AXIAL_CSF]
    return _label_volumes(structures, inside, voxel_volume_mm3=voxel_volume_mm3)


def cortex_volumes(labels: np.ndarray, *, voxel_volume_mm3: float) -> dict[str, float]:
    """Volumes of the cortical regions, in the order of `CORTEX_COLUMNS`.

    Parameters
    ----------
    labels : ndarray of int, shape (X, Y, Z)
        Labels of `labels.CORTICAL_LOOKUP`.
    voxel_volume_mm3 : float
        Absolute determinant of the affine.

    Returns
    -------
    dict
        mm3; 0 where a region has no voxel.
    """
    return _label_volumes(labels, CORTICAL_REGIONS, voxel_volume_mm3=voxel_volume_mm3)


def _label_volumes(
    labels: np.ndarray, parts: Sequence[Structure | CorticalRegion], *, voxel_volume_mm3: float
) -> dict[str, float]:
    """Voxels of each label of the parts, times the voxel volume, by the name of its column."""
    columns = {column: label.index for part in parts for label, column in zip(part.labels, part.columns, strict=True)}
    counts = np.bincount(labels.ravel(), minlength=max(columns.values()) + 1)
    return {column: float(counts[index]) * voxel_volume_mm3 for column, index in columns.items()}


def lobe_volumes(regions: Mapping[str, float]) -> dict[str, float]:
    """Volumes of the cortex of each lobe and side, in the order of `LOBE_COLUMNS`: sums of `cortex_volumes`."""
    return {column: sum(regions[part] for part in parts) for column, parts in _LOBE_PARTS.items()}


def exclude_lesions(posteriors: np.ndarray, lesion: np.ndarray) -> np.ndarray:
    """Make tissues give way to lesions, so that nothing is counted twice.

    Parameters
    ----------
    posteriors : ndarray, shape (n, X, Y, Z)
        Tissue probabilities.
    lesion : ndarray, shape (X, Y, Z)
        Lesion mask, or the fraction of each voxel that is lesion.

    Returns
    -------
    ndarray of float32, shape (n, X, Y, Z)
        Where tissues and lesion sum to more than one (and `ROUNDING`), the tissues are scaled down to fill what the
        lesion leaves; elsewhere unchanged. A second call changes nothing.
    """
    posteriors = np.asarray(posteriors, dtype=np.float32)
    room = np.clip(1 - np.asarray(lesion, dtype=np.float32), 0, 1)
    total = posteriors.sum(axis=0)
    too_much = total > room + ROUNDING
    return posteriors * np.divide(room, total, out=np.ones_like(room), where=too_much)


def tissue_volumes(
    posteriors: np.ndarray,
    lesion: np.ndarray | None,
    *,
    voxel_volume_mm3: float,
    separable: bool = True,
    brain_mask: np.ndarray | None = None,
    tiv_mm3: float | None = None,
    priors: np.ndarray | None = None,
) -> dict[str, float | None]:
    """Volumes of one session, in the order of `VOLUME_COLUMNS`; None where not measured (``n/a`` in tables).

    Parameters
    ----------
    posteriors : ndarray, shape (3, X, Y, Z) or (2, X, Y, Z)
        GM, WM, CSF (or parenchyma, CSF). Where they and `lesion` sum to more than one, the tissues give way
        (`exclude_lesions`); posteriors that exclude lesions already are taken as they are.
    lesion : ndarray, shape (X, Y, Z), or None
        Lesion mask (a number of voxels) or lesion fraction (a soft volume); None where lesions were not looked for.
    voxel_volume_mm3 : float
        Absolute determinant of the affine.
    separable : bool
        False where the contrasts cannot tell GM from WM: their own volumes are None, that of the brain is not.
    brain_mask : ndarray, shape (X, Y, Z), optional
        Brain where not zero.
    tiv_mm3 : float, optional
        From `estimate_tiv`.
    priors : ndarray, shape (3, X, Y, Z), optional
        Template GM, WM, CSF brought to the scan: they say which lesions lie in grey matter. Without them all lesions
        count to white matter, where most lesions of multiple sclerosis and small vessel disease are.

    Returns
    -------
    dict
        ``gm_with_lesions_mm3 + wm_with_lesions_mm3 == brain_mm3``.

    Raises
    ------
    ValueError
        When shapes do not fit, a value is NaN, or the voxel volume is not positive.
    """
    posteriors = np.asarray(posteriors)
    _check(posteriors, lesion, brain_mask=brain_mask, priors=priors, voxel_volume_mm3=voxel_volume_mm3)
    if posteriors.shape[0] == 2 and separable:
        raise ValueError("Two posteriors (parenchyma, CSF) cannot be separable: give GM, WM and CSF.")
    tissue = posteriors if lesion is None else exclude_lesions(posteriors, lesion)
    # float64 sums: float32 ones lose mm3 over millions of voxels.
    volumes = tissue.reshape(len(tissue), -1).sum(axis=1, dtype=np.float64) * voxel_volume_mm3
    mask_mm3 = None if brain_mask is None else float(np.count_nonzero(brain_mask)) * voxel_volume_mm3
    lesion_mm3 = None if lesion is None else float(np.sum(lesion, dtype=np.float64)) * voxel_volume_mm3
    brain = float(volumes[:-1].sum()) + (lesion_mm3 or 0.0)

    out: dict[str, float | None] = dict.fromkeys(VOLUME_COLUMNS)
    out |= {"tiv_mm3": tiv_mm3, "brain_mask_mm3": mask_mm3, "brain_mm3": brain, "csf_mm3": float(volumes[-1])}
    out["brain_parenchymal_fraction"] = brain / mask_mm3 if mask_mm3 else None
    if separable:
        out |= {"gm_mm3": float(volumes[0]), "wm_mm3": float(volumes[1])}
    if lesion is not None and lesion_mm3 is not None:
        out["lesion_mm3"] = lesion_mm3
        out["lesion_load_percent_tiv"] = 100 * lesion_mm3 / tiv_mm3 if tiv_mm3 else None
        out["lesion_count"] = len(label_lesions(np.asarray(lesion) >= 0.5)[1])
        if separable:
            in_grey = _in_grey_matter(np.asarray(lesion), priors) * voxel_volume_mm3
            white = float(volumes[1]) + lesion_mm3 - in_grey
            out |= {"gm_with_lesions_mm3": float(volumes[0]) + in_grey, "wm_with_lesions_mm3": white}
            out["lesion_load_percent_wm"] = 100 * lesion_mm3 / white if white else None
    return out


def _in_grey_matter(lesion: np.ndarray, priors: np.ndarray | None) -> float:
    """Lesion, in voxels, where the priors say cortex or deep grey matter."""
    if priors is None:
        return 0.0
    total = priors.sum(axis=0)
    grey = (total > 0) & (priors[0] > GREY_MATTER_PRIOR * total)
    return float(lesion[grey].sum(dtype=np.float64))


def _check(
    posteriors: np.ndarray,
    lesion: np.ndarray | None,
    *,
    brain_mask: np.ndarray | None,
    priors: np.ndarray | None,
    voxel_volume_mm3: float,
) -> None:
    if posteriors.ndim != 4 or posteriors.shape[0] not in (2, 3):
        raise ValueError(f"Posteriors have shape (3, X, Y, Z) or (2, X, Y, Z), not {posteriors.shape}.")
    grid = posteriors.shape[1:]
    for name, array in (("lesion map", lesion), ("brain mask", brain_mask)):
        if array is not None and array.shape != grid:
            raise ValueError(f"The {name} {array.shape} and the posteriors {grid} differ in shape.")
    if priors is not None and priors.shape != (3, *grid):
        raise ValueError(f"Priors have the shape {(3, *grid)} here, not {priors.shape}.")
    if not voxel_volume_mm3 > 0:
        raise ValueError(f"The voxel volume must be positive, not {voxel_volume_mm3}.")
    if np.isnan(posteriors.sum()) or (lesion is not None and np.isnan(np.sum(lesion))):
        raise ValueError("The posteriors or the lesion map hold NaN: no volume can be given.")
