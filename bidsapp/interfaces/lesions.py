"""The tables of lesions and lesion load, from the images of a session: read, one pure call each, rows out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bidsapp.interfaces.files import array, load
from bidsapp.labels import Compartment

Table = tuple[str, list[dict[str, Any]], Mapping[str, Mapping[str, Any]], list[str]]


def lesion_tables(
    files: Mapping[str, str],
    scans: Mapping[str, str],
    *,
    box: tuple[slice, ...],
    to_subject: str,
    posteriors: np.ndarray,
    priors: np.ndarray,
    volumes: Mapping[str, float | None],
    who: Mapping[str, str],
    compartments: tuple[np.ndarray, Sequence[Compartment]] | None = None,
) -> Iterator[Table]:
    """(name, rows, data dictionary, columns) of the two tables.

    Parameters
    ----------
    files : mapping
        Results on the native grid by name: ``native_brain_mask``, ``native_lesion_mask``,
        ``native_lesion_probability``, ``native_structures``.
    scans : mapping
        Preprocessed scans on the native grid by contrast.
    box : tuple of slice
        The box of the brain in these, which the arrays below fill.
    to_subject : str
        Displacement field that carries points of the subject to the template.
    posteriors, priors : ndarray
        Tissue on the native grid: GM, WM, CSF; posteriors may be parenchyma and CSF.
    volumes : mapping
        The session's volumes.
    who : mapping
        ``participant_id`` and, if any, ``session_id``.
    compartments : tuple, optional
        Labels of the lesions' compartments, and what they stand for.
    """
    from bidsapp.image.cortex import nearest, template_lobes
    from bidsapp.image.preprocess import only_seen
    from bidsapp.image.results import carry_points
    from bidsapp.measure import lesions, regions
    from bidsapp.measure.compartments import columns, compartment_row

    image = load(files["native_lesion_mask"]).slicer[box]
    mask = array(files["native_lesion_mask"], bool, box)
    probability = array(files["native_lesion_probability"], box=box)
    brain = array(files["native_brain_mask"], bool, box)
    edges = [float(edge) for edge in np.linalg.norm(image.affine[:3, :3], axis=0)]
    field = load(to_subject)
    separable = len(posteriors) == 3
    structures = array(files["native_structures"], np.int32, box)
    anatomy = _anatomy(structures, image, field, posteriors, priors, edges)
    lobes = np.zeros(mask.shape, np.uint8)
    lobes[mask] = nearest(template_lobes(), image.affine, np.nonzero(mask), field)
    lobes[anatomy.infratentorial | anatomy.deep_gray] = 0
    context = lesions.Context(
        anatomy=anatomy,
        images={contrast: only_seen(array(path, box=box), brain) for contrast, path in scans.items()},
        tissues=regions.normal_appearing(posteriors, mask, voxel_size_mm=edges, separable=separable),
        lobes=lobes,
    )
    table = lesions.lesion_table(
        mask,
        probability,
        affine=image.affine,
        to_mni=lambda points: carry_points(points, field),
        context=context,
    )
    yield "lesions", table.to_dict("records"), lesions.LESION_COLUMNS, list(table.columns)
    voxel = float(abs(np.linalg.det(image.affine[:3, :3])))
    row = lesions.load_row(table, mask, probability, voxel_volume_mm3=voxel, volumes=volumes, lobes=lobes)
    about = dict(lesions.LOAD_COLUMNS)
    if compartments is not None:
        labels, parts = compartments
        row |= compartment_row(labels, parts, voxel_volume_mm3=voxel)
        about |= columns(parts)
    yield "load", [{**who, **row}], about, [*who, *row]


def _anatomy(
    structures: np.ndarray, image: Any, field: Any, posteriors: np.ndarray, priors: np.ndarray, edges: list[float]
) -> Any:
    """From the segmentation into structures where it can tell, else from tissue and the template's zones."""
    from bidsapp.image.resample import resample
    from bidsapp.image.zones import template_zones
    from bidsapp.measure import regions

    if regions.can_locate(structures):
        return regions.anatomy_from_structures(structures, voxel_size_mm=edges)
    zones = resample(template_zones(), image, transform=field, interpolation="nearest")
    return regions.anatomy_from_tissue(posteriors, np.asarray(zones.dataobj), voxel_size_mm=edges, priors=priors)
