"""The cerebral cortex in regions and lobes, by an atlas of the template."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine

from bidsapp.image.grid import on_grid
from bidsapp.image.results import carry_points
from bidsapp.labels import CORTEX, CORTEX_SIDES


@cache
def template_regions() -> nib.Nifti1Image:
    """The cortical region that each point of the template is in, or nearest to.

    Returns
    -------
    Nifti1Image
        3D uint8 in MNI152NLin2009aSym at 1 mm: `CorticalRegion.index`, the same on both sides of the midplane; 0 far
        from the brain.

    Notes
    -----
    Made by ``scripts/cortical_atlas.py`` (its sources are named there, and in ``docs/models/cortex.md``).
    """
    return _packaged("desikan_killiany")


@cache
def template_lobes() -> nib.Nifti1Image:
    """The lobe that each point of the template is in, or nearest to: 1 and up in the order of `labels.LOBES`.

    As `template_regions`, at 2 mm; but beyond 3 mm of insula and cingulate gyrus the nearest other cortex tells:
    the deep white matter is that of the four great lobes.
    """
    return _packaged("lobes")


def cortical_regions(structures: nib.Nifti1Image, to_subject: nib.Nifti1Image | None = None) -> nib.Nifti1Image:
    """A segmentation into structures with the cortex in its regions.

    Parameters
    ----------
    structures : Nifti1Image
        3D, labels of `labels.STRUCTURE_LOOKUP`: they say what is cortex, and on which side.
    to_subject : Nifti1Image, optional
        Displacement field that carries points of the subject to the template; None where they lie there already.

    Returns
    -------
    Nifti1Image
        3D int16, labels of `labels.CORTICAL_LOOKUP`. Cortex that is carried beyond the atlas stays cortex.
    """
    labels = np.asanyarray(structures.dataobj).astype(np.int16)
    where = np.nonzero((labels == CORTEX.left) | (labels == CORTEX.right))
    cortex = labels[where]
    regions = nearest(template_regions(), structures.affine, where, to_subject).astype(np.int16)
    first = np.where(cortex == CORTEX.left, CORTEX_SIDES["left"], CORTEX_SIDES["right"])
    labels[where] = np.where(regions > 0, first + regions, cortex)
    return on_grid(labels, structures)


def nearest(
    atlas: nib.Nifti1Image,
    affine: np.ndarray,
    voxels: tuple[np.ndarray, ...],
    to_subject: nib.Nifti1Image | None = None,
) -> np.ndarray:
    """The atlas at some voxels of a scan.

    Parameters
    ----------
    atlas : Nifti1Image
        3D labels in the template's space.
    affine : ndarray, shape (4, 4)
        Of the scan.
    voxels : tuple of three ndarray, each of shape (n,)
        As `numpy.nonzero` gives them.
    to_subject : Nifti1Image, optional
        As in `cortical_regions`.

    Returns
    -------
    ndarray, shape (n,)
        0 beyond the atlas.
    """
    points = apply_affine(affine, np.column_stack(voxels))
    if to_subject is not None:
        points = carry_points(points, to_subject)
    index = np.round(apply_affine(np.linalg.inv(atlas.affine), points)).astype(int).T
    inside = np.all([(i >= 0) & (i < size) for i, size in zip(index, atlas.shape, strict=True)], axis=0)
    found = np.zeros(len(points), atlas.get_data_dtype())
    found[inside] = np.asarray(atlas.dataobj)[tuple(index[:, inside])]
    return found


def _packaged(name: str) -> nib.Nifti1Image:
    with as_file(files("bidsapp") / f"image/atlas/{name}.nii.gz") as path:
        img = nib.Nifti1Image.from_filename(path)
        return nib.Nifti1Image(np.asarray(img.dataobj), img.affine, img.header)
