"""The cerebral cortex in regions and lobes, by an atlas of the template."""

from __future__ import annotations

from functools import cache
from importlib.resources import as_file, files

import nibabel as nib
import numpy as np

from bidsapp.image.grid import on_grid
from bidsapp.image.register import Resampler
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


def cortical_regions(structures: nib.Nifti1Image, onto_scan: Resampler) -> nib.Nifti1Image:
    """A segmentation into structures with the cortex in its regions.

    Parameters
    ----------
    structures : Nifti1Image
        3D, labels of `labels.STRUCTURE_LOOKUP`: they say what is cortex, and on which side.
    onto_scan : Resampler
        From the template onto the grid of `structures`.

    Returns
    -------
    Nifti1Image
        3D int16, labels of `labels.CORTICAL_LOOKUP`. Cortex that is carried beyond the atlas stays cortex.
    """
    labels = np.asanyarray(structures.dataobj).astype(np.int16)
    sides = {"left": labels == CORTEX.left, "right": labels == CORTEX.right}
    cortex = sides["left"] | sides["right"]
    regions = np.asarray(onto_scan.only(cortex)(template_regions(), interpolation="nearest").dataobj)
    for side, here in sides.items():
        known = here & (regions > 0)
        labels[known] = CORTEX_SIDES[side] + regions[known].astype(np.int16)
    return on_grid(labels, structures)


def _packaged(name: str) -> nib.Nifti1Image:
    with as_file(files("bidsapp") / f"image/atlas/{name}.nii.gz") as path:
        img = nib.Nifti1Image.from_filename(path)
        return nib.Nifti1Image(np.asarray(img.dataobj), img.affine, img.header)
