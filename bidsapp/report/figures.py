"""The pictures of a session's report: what is drawn on which scan, and on which slices."""

from __future__ import annotations

from collections.abc import Sequence

import nibabel as nib
import numpy as np

from bidsapp.labels import (
    BACKGROUND,
    CORTICAL_REGIONS,
    EXTRA_AXIAL_CSF,
    LESION,
    STRUCTURE_LESION,
    STRUCTURE_LOOKUP,
    TISSUE_LOOKUP,
    Label,
)
from bidsapp.report.mosaic import Layer, Picture, mosaic, pair
from bidsapp.report.slices import plan_detail, plan_overview

#: Voxels that a mosaic can show (mm): it has 1.1 to 1.6 pixels a millimetre.
DRAWN_MM = 1.0

BRAIN_COLOR = "#ff6b5e"
TEMPLATE_BRAIN_COLOR = "#4dd0e1"
TEMPLATE_WM_COLOR = "#ffb74d"


def draw_session(
    *,
    reference: nib.Nifti1Image,
    mask: nib.Nifti1Image,
    dseg: nib.Nifti1Image | None = None,
    structures: nib.Nifti1Image | None = None,
    cortex: nib.Nifti1Image | None = None,
    lesion: nib.Nifti1Image | None = None,
    flair: nib.Nifti1Image | None = None,
    compartments: tuple[nib.Nifti1Image, Sequence[Label]] | None = None,
    template: nib.Nifti1Image | None = None,
    template_mask: nib.Nifti1Image | None = None,
    template_wm: nib.Nifti1Image | None = None,
) -> dict[str, bytes]:
    """All pictures of a session; all images share one grid.

    Parameters
    ----------
    reference, mask : Nifti1Image
        Preprocessed reference scan with its head, and the brain mask.
    dseg : Nifti1Image, optional
        Labels of `labels.TISSUE_LOOKUP`.
    structures : Nifti1Image, optional
        Labels of `labels.STRUCTURE_LOOKUP`.
    cortex : Nifti1Image, optional
        Labels of `labels.CORTICAL_LOOKUP`.
    lesion, flair : Nifti1Image, optional
        Lesion mask, drawn on the FLAIR (on the reference without one).
    compartments : tuple, optional
        Labels of the lesions' compartments and their look-up table, drawn likewise.
    template, template_mask, template_wm : Nifti1Image, optional
        The template's T1w, brain mask and white matter (0 to 1) brought to the reference.

    Returns
    -------
    dict
        PNG by name: ``brain_image``, ``brain_overlay``, ``tissue_image`` and so on, for what was given.

    Raises
    ------
    ValueError
        When two images do not share the grid.
    """
    # Read every image once: the pictures share them.
    reference, mask = _in_memory(reference), _in_memory(mask)
    dseg, structures, cortex, lesion, flair, template, template_mask, template_wm = (
        None if img is None else _in_memory(img)
        for img in (dseg, structures, cortex, lesion, flair, template, template_mask, template_wm)
    )
    pictures = {"brain": brain_picture(reference, mask)}
    if dseg is not None:
        pictures["tissue"] = tissue_picture(reference, dseg, mask=mask)
    if structures is not None:
        pictures["structures"] = structures_picture(reference, structures, mask=mask)
    if cortex is not None:
        pictures["cortex"] = cortex_picture(reference, cortex, mask=mask)
    if lesion is not None:
        pictures["lesion"] = lesion_picture(reference if flair is None else flair, lesion, mask=mask)
    if compartments is not None:
        labels, lookup = compartments
        pictures["compartments"] = compartments_picture(
            reference if flair is None else flair, _in_memory(labels), lookup=lookup, mask=mask
        )
    if template_mask is not None:
        pictures["registration"] = registration_picture(
            reference, template_mask, mask=mask, template_wm=template_wm, template=template
        )
    return {
        f"{name}_{kind}": getattr(picture, kind) for name, picture in pictures.items() for kind in ("image", "overlay")
    }


def brain_picture(reference: nib.Nifti1Image, mask: nib.Nifti1Image) -> Picture:
    """The outline of the brain mask on the head."""
    layout = plan_overview(mask, margin_mm=12)
    layers = [Layer(mask, BRAIN_COLOR, outline=True)]
    return pair(reference, layers, layout=layout, window_mask=mask)


def tissue_picture(reference: nib.Nifti1Image, dseg: nib.Nifti1Image, *, mask: nib.Nifti1Image) -> Picture:
    """Tissue classes as translucent colours."""
    return pair(reference, label_layers(dseg), layout=plan_overview(mask, margin_mm=3), window_mask=mask)


def structures_picture(reference: nib.Nifti1Image, structures: nib.Nifti1Image, *, mask: nib.Nifti1Image) -> Picture:
    """Anatomical structures in FreeSurfer's colours; the fluid around the brain is left clear."""
    layers = label_layers(structures, lookup=STRUCTURE_LOOKUP, clear=(EXTRA_AXIAL_CSF,))
    return pair(reference, layers, layout=plan_overview(mask, margin_mm=3), window_mask=mask)


def cortex_picture(reference: nib.Nifti1Image, cortex: nib.Nifti1Image, *, mask: nib.Nifti1Image) -> Picture:
    """The cortical regions in FreeSurfer's colours."""
    lookup = [label for region in CORTICAL_REGIONS for label in region.labels]
    return pair(
        reference, label_layers(cortex, lookup=lookup), layout=plan_overview(mask, margin_mm=3), window_mask=mask
    )


def lesion_picture(flair: nib.Nifti1Image, lesion: nib.Nifti1Image, *, mask: nib.Nifti1Image) -> Picture:
    """Lesions outlined on the slices that have them."""
    layout = plan_detail(mask, lesion)
    return pair(flair, [Layer(lesion, LESION.color, opacity=0.18, outline=True)], layout=layout, window_mask=mask)


def compartments_picture(
    background: nib.Nifti1Image, compartments: nib.Nifti1Image, *, lookup: Sequence[Label], mask: nib.Nifti1Image
) -> Picture:
    """The compartments of the lesions as translucent colours, on the slices that have most of them."""
    whole = nib.Nifti1Image((np.asanyarray(compartments.dataobj) > 0).astype(np.uint8), compartments.affine)
    return pair(
        background,
        label_layers(compartments, lookup=lookup),
        layout=plan_detail(mask, whole),
        window_mask=mask,
    )


def registration_picture(
    subject: nib.Nifti1Image,
    template_mask: nib.Nifti1Image,
    *,
    mask: nib.Nifti1Image,
    template_wm: nib.Nifti1Image | None = None,
    template: nib.Nifti1Image | None = None,
) -> Picture:
    """Outlines of the template's brain and white matter on the template (first) and on the subject (overlay).

    Without `template` the first picture is the subject without outlines.
    """
    layers = [Layer(template_mask, TEMPLATE_BRAIN_COLOR, outline=True)]
    if template_wm is not None:
        layers.append(Layer(template_wm, TEMPLATE_WM_COLOR, outline=True))
    layout = plan_overview(mask, margin_mm=6)
    overlay = mosaic(subject, layers, layout=layout, window_mask=mask)
    if template is None:
        return Picture(mosaic(subject, layout=layout, window_mask=mask), overlay)
    return Picture(mosaic(template, layers, layout=layout, window_mask=template_mask), overlay)


def label_layers(
    dseg: nib.Nifti1Image,
    *,
    lookup: Sequence[Label] = TISSUE_LOOKUP,
    clear: tuple[int, ...] = (),
) -> list[Layer]:
    """A translucent layer for each label of a look-up table that the segmentation has, but for those left `clear`."""
    present = np.unique(np.asanyarray(dseg.dataobj))
    return [
        Layer(dseg, label.color, label=label.index, opacity=0.9 if label in (LESION, STRUCTURE_LESION) else 0.55)
        for label in lookup
        if label != BACKGROUND and label.index in present and label.index not in clear
    ]


def coarser(img: nib.Nifti1Image) -> nib.Nifti1Image:
    """Every second voxel of half a millimetre, as far as voxels stay within `DRAWN_MM`; others as they are.

    A scan of half a millimetre has 100 million voxels, of which a picture shows none that a screen could.
    """
    steps = [max(1, int(DRAWN_MM / size + 0.01)) for size in img.header.get_zooms()[:3]]
    return img if max(steps) == 1 else img.slicer[tuple(slice(None, None, step) for step in steps)]


def _in_memory(img: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.as_closest_canonical(nib.Nifti1Image(np.asanyarray(img.dataobj), img.affine))
