"""Where things are in the template: ventricles, deep grey matter, cerebellum and brainstem.

For want of a segmentation of the subject itself.
The template's package (nilearn) carries tissue maps but no atlas, so the zones are drawn from the tissue maps and from
landmarks. They say which of a subject's tissue is meant ("CSF near the lateral ventricles"), not where its border runs.
"""

from __future__ import annotations

from functools import cache

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine
from scipy import ndimage

from bidsapp.image.grid import on_grid
from bidsapp.image.template import load_template

#: Labels of the zones.
VENTRICLES, DEEP_GRAY, INFRATENTORIAL, CEREBRUM = 1, 2, 3, 4

#: CSF this deep (mm) under the brain's surface and in this box (MNI mm) is lateral ventricle.
VENTRICLE_BOX = np.array([(-45, 45), (-58, 38), (-26, 34)])
#: Thalamus, striatum, pallidum and amygdala-hippocampus lie within this box (MNI mm).
DEEP_GRAY_BOX = np.array([(-33, 33), (-36, 20), (-14, 19)])
#: Third ventricle, quadrigeminal cistern and pericallosal fluid (MNI mm): not lateral ventricle.
MIDLINE_BOXES = np.array([[(-6, 6), (-60, 40), (-30, 3)], [(-6, 6), (-60, -26), (-30, 40)],
                          [(-15, 15), (-60, -26), (-30, 6)]])  # fmt: skip
#: Seeds (MNI mm) of the watershed between cerebrum and what is below the tentorium: balls of this radius (mm) around
#: these points and their mirror images.
SEED_RADIUS_MM = 4
SEEDS_ABOVE = [(30, -70, 10), (12, -90, 0), (40, -55, -5), (30, -35, -10), (35, -20, -25), (25, -90, -5), (10, -65, 5),
               (40, 0, -30), (30, 20, 0), (30, -20, 30), (45, -60, 10), (50, -40, -15), (15, -45, 0),
               (30, -75, -5), (42, -70, -5), (20, -36, -12), (25, -28, -18), (24, -45, -6), (18, -58, -4),
               (35, -40, -18), (30, -12, -30)]  # fmt: skip
SEEDS_BELOW = [(25, -65, -40), (10, -60, -25), (35, -55, -40), (10, -80, -32), (25, -50, -30), (4, -30, -35),
               (4, -25, -25), (3, -38, -50), (3, -40, -60), (20, -75, -30), (40, -65, -33), (3, -50, -12)]  # fmt: skip
#: The midbrain ends and the diencephalon begins at this height (MNI mm).
MIDBRAIN_TOP_MM = -6


@cache
def template_zones() -> nib.Nifti1Image:
    """Zones of the template at 2 mm: `VENTRICLES`, `DEEP_GRAY`, `INFRATENTORIAL`, the rest of the brain `CEREBRUM`.

    Returns
    -------
    Nifti1Image
        3D uint8, 0 outside the brain.

    Notes
    -----
    The tentorium is found by a watershed on the template's T1w, where it is a dark gap, from seeds in the cerebrum and
    in cerebellum and brainstem; the midbrain is cut from the diencephalon at z = -6 mm.
    """
    template = load_template(2)
    brain = np.asarray(template.mask.dataobj) > 0
    t1 = np.asarray(template.t1.dataobj)
    gray, _, fluid = np.moveaxis(np.asarray(template.priors.dataobj), -1, 0)
    points = _points(template.t1)
    zones = np.where(brain, np.uint8(CEREBRUM), np.uint8(0))
    zones[_below_tentorium(t1, brain, points)] = INFRATENTORIAL
    above = zones == CEREBRUM
    zones[above & _inside(points, DEEP_GRAY_BOX) & (gray > 0.4)] = DEEP_GRAY
    depth = ndimage.distance_transform_edt(ndimage.binary_fill_holes(brain), sampling=2.0)
    midline = np.any([_inside(points, box) for box in MIDLINE_BOXES], axis=0)
    fluid_inside = above & (fluid > 0.4) & (depth > 14) & _inside(points, VENTRICLE_BOX) & ~midline
    zones[_ventricles(fluid_inside)] = VENTRICLES
    return on_grid(zones, template.t1)


def _points(img: nib.Nifti1Image) -> np.ndarray:
    """MNI mm of every voxel, shape (x, y, z, 3)."""
    return np.asarray(apply_affine(img.affine, np.moveaxis(np.indices(img.shape), 0, -1)))


def _inside(points: np.ndarray, box: np.ndarray) -> np.ndarray:
    return np.all((points >= box[:, 0]) & (points <= box[:, 1]), axis=-1)


def _ventricles(candidates: np.ndarray) -> np.ndarray:
    """The largest connected parts: the sulci and cisterns left in the box are small."""
    labels, count = ndimage.label(candidates)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return (sizes > 0.1 * sizes.max())[labels]


def _below_tentorium(t1: np.ndarray, brain: np.ndarray, points: np.ndarray) -> np.ndarray:
    height = np.where(brain, np.clip(255 * (1 - t1), 0, 255), 255).astype(np.uint8)
    markers = np.zeros(t1.shape, dtype=np.int16)
    markers[~brain] = -1
    for seeds, label in ((SEEDS_ABOVE, 1), (SEEDS_BELOW, 2)):
        for seed in seeds:
            for side in (1, -1):
                ball = np.linalg.norm(points - np.array(seed) * (side, 1, 1), axis=-1) <= SEED_RADIUS_MM
                markers[ball & brain] = label
    markers[brain & (points[..., 2] > 14)] = 1
    middle = (np.abs(points[..., 0]) < 22) & (points[..., 1] > -38)
    markers[brain & middle & (points[..., 2] >= MIDBRAIN_TOP_MM)] = 1
    below = (ndimage.watershed_ift(height, markers) == 2) & brain
    return below & below[::-1]  # the template is symmetric; where ties were broken to one side, it is not
