"""Nodes of the output: results on every grid, measured and drawn there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from bidsapp.interfaces.files import array, by_name, load, save, voxel_size_mm
from bidsapp.interfaces.lesions import lesion_tables
from bidsapp.writing import write_table


class _TellSidesInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="labels of the left structures for both sides")
    to_subject = File(exists=True, mandatory=True)


class _TellSidesOutput(TraitedSpec):
    out_file = File()


class TellSides(SimpleInterface):
    """Left and right structures, by the template's midplane."""

    input_spec = _TellSidesInput
    output_spec = _TellSidesOutput

    def _run_interface(self, runtime):
        from bidsapp.image.results import with_sides

        out = with_sides(load(self.inputs.in_file), load(self.inputs.to_subject))
        self._results["out_file"] = save(out, runtime.cwd, "structures")
        return runtime


class _PackScansInput(BaseInterfaceInputSpec):
    preprocessed = traits.List(File(exists=True), mandatory=True, desc="native grid, reference first")
    to_template = File(exists=True, mandatory=True)
    to_subject = File(exists=True, mandatory=True)
    in_template = traits.Bool(mandatory=True, desc="the reference is wanted in the template's space")


class _PackScansOutput(TraitedSpec):
    preprocessed = traits.List(File)
    to_template = File()
    to_subject = File()
    results = traits.List(File, desc="mni_preproc.nii.gz, where it is wanted")


class PackScans(SimpleInterface):
    """Scans and transforms as they are written: they need no model, and are ready before one is."""

    input_spec = _PackScansInput
    output_spec = _PackScansOutput

    def _run_interface(self, runtime):
        from bidsapp.image.resample import Resampler
        from bidsapp.image.results import carry_scan
        from bidsapp.image.save import as_int16
        from bidsapp.image.template import load_template

        scans, to_template = [load(path) for path in self.inputs.preprocessed], load(self.inputs.to_template)
        fields = {"to_template": to_template, "to_subject": load(self.inputs.to_subject)}
        self._results |= _written(runtime.cwd, fields)
        packed = _written(runtime.cwd, {f"preproc_{index}": as_int16(scan) for index, scan in enumerate(scans)})
        self._results["preprocessed"] = list(packed.values())
        carried = {}
        if self.inputs.in_template:
            carried["mni_preproc"] = as_int16(carry_scan(scans[0], Resampler(load_template(1).t1, to_template)))
        self._results["results"] = list(_written(runtime.cwd, carried).values())
        return runtime


def _written(folder: str, images: Mapping[str, nib.Nifti1Image], grid: nib.Nifti1Image | None = None) -> dict[str, str]:
    """Write images, compressed; their paths, by name. With a `grid` they may fill a box of it: whole one by one."""
    from bidsapp.image.grid import whole
    from bidsapp.image.save import write_image

    paths = {name: Path(folder) / f"{name}.nii.gz" for name in images}
    for name, image in images.items():
        write_image(image if grid is None else whole(image, grid), paths[name])
    return {name: str(path) for name, path in paths.items()}


class _CarryInput(BaseInterfaceInputSpec):
    reference_file = File(exists=True, mandatory=True, desc="harmonised reference on its native grid")
    mask_file = File(exists=True, mandatory=True)
    posteriors_file = File(exists=True, mandatory=True)
    separable = traits.Bool(True, usedefault=True)
    lesion_mask = File(exists=True)
    lesion_probability = File(exists=True)
    structures_file = File(exists=True, mandatory=True, desc="left and right told apart")
    to_template = File(exists=True, mandatory=True)
    to_subject = File(exists=True, mandatory=True)
    grids = traits.List(traits.Enum("native", "mni"), mandatory=True)
    fill_lesions = traits.Bool(False, usedefault=True, desc="of a T1w, where lesions are those of white matter")
    flair_file = File(exists=True, desc="harmonised FLAIR, where it is not the reference")
    flair_work_file = File(exists=True)
    flair_transform = File(exists=True, desc="rigid, resamples the FLAIR onto the reference")


class _CarryOutput(TraitedSpec):
    results = traits.List(File, desc="{native,mni,flair}_*.nii.gz")


class Carry(SimpleInterface):
    """Bring what the models found to the grids of the output."""

    input_spec = _CarryInput
    output_spec = _CarryOutput

    def _run_interface(self, runtime):
        from bidsapp.image import results
        from bidsapp.image.cortex import cortical_regions
        from bidsapp.image.filling import fill_lesions
        from bidsapp.image.grid import whole
        from bidsapp.image.itk import read_itk_affine
        from bidsapp.image.resample import Resampler
        from bidsapp.image.save import as_probability
        from bidsapp.image.template import load_template

        inputs = self.inputs
        lesions = isdefined(inputs.lesion_mask)
        found = results.Segmentation(
            mask=load(inputs.mask_file),
            posteriors=load(inputs.posteriors_file),
            separable=inputs.separable,
            lesion_mask=load(inputs.lesion_mask) if lesions else None,
            lesion_probability=load(inputs.lesion_probability) if lesions else None,
            structures=load(inputs.structures_file),
        )
        images, paths = {}, {}
        if "native" in inputs.grids:
            reference = load(inputs.reference_file)
            native = _named(results.on_native(found, reference), "native", separable=found.separable)
            native["native_cortex"] = cortical_regions(native["native_structures"], load(inputs.to_subject))
            paths |= _written(runtime.cwd, native, reference)
            if inputs.fill_lesions and lesions and found.separable:
                on_lesions = (whole(native[f"native_{name}"], reference) for name in ("lesion_mask", "tissue_WM"))
                images["native_filled"] = fill_lesions(reference, *on_lesions)
        if "mni" in inputs.grids:
            to_template = load(inputs.to_template)
            onto_template = Resampler(load_template(1).t1, to_template)
            images |= _named(results.in_template(found, onto_template), "mni", separable=found.separable)
            images["mni_cortex"] = cortical_regions(images["mni_structures"])
            if found.separable:
                images["mni_modulated_GM"] = as_probability(results.modulated(images["mni_tissue_GM"], to_template))
        if lesions and isdefined(inputs.flair_file):
            flair, flair_work = load(inputs.flair_file), load(inputs.flair_work_file)
            matrix = read_itk_affine(Path(inputs.flair_transform))
            mask, probability = results.lesions_on_scan(found, flair, flair_work, matrix)
            images |= {"flair_lesion_mask": mask, "flair_lesion_probability": probability}
        paths |= _written(runtime.cwd, images)
        self._results["results"] = list(paths.values())
        return runtime


def _named(found, grid: str, *, separable: bool) -> dict[str, nib.Nifti1Image]:
    """The images of one grid under the names that `Measure` and `WriteSession` know."""
    from bidsapp.image.save import as_probability
    from bidsapp.labels import PARENCHYMA, TISSUES

    out = {"brain_mask": found.mask, "dseg": found.dseg}
    gm, wm, csf = (found.posteriors.slicer[..., index] for index in range(len(TISSUES)))
    if separable:
        tissues = dict(zip((label.abbreviation for label in TISSUES), (gm, wm, csf), strict=True))
    else:
        both = nib.Nifti1Image(gm.get_fdata(dtype=np.float32) + wm.get_fdata(dtype=np.float32), gm.affine, gm.header)
        tissues = {PARENCHYMA.abbreviation: both, TISSUES[2].abbreviation: csf}
    out |= {f"tissue_{name}": as_probability(image) for name, image in tissues.items()}
    out["structures"] = found.structures
    if found.lesion_mask is not None:
        out |= {"lesion_mask": found.lesion_mask, "lesion_probability": found.lesion_probability}
    return {f"{grid}_{name}": image for name, image in out.items()}


class _MeasureInput(BaseInterfaceInputSpec):
    results = traits.List(File(exists=True), mandatory=True)
    corrected_file = File(exists=True, mandatory=True, desc="bias-corrected reference on the work grid")
    fields = traits.List(File(exists=True), mandatory=True, desc="bias fields on the work grid, reference first")
    scans = traits.List(File(exists=True), mandatory=True, desc="harmonised, each on its native grid, reference first")
    other_work_files = traits.List(File(exists=True), desc="the other contrasts on their own work grids")
    other_transforms = traits.List(File(exists=True), desc="rigid, resample them onto the reference")
    priors_file = File(exists=True, mandatory=True)
    to_subject = File(exists=True, mandatory=True)
    separable = traits.Bool(True, usedefault=True)
    agreement = traits.Dict(mandatory=True, desc="of the network and the unsupervised models")
    preprocessed = traits.List(File(exists=True), mandatory=True, desc="on the reference's native grid")
    contrasts = traits.List(traits.Str, mandatory=True, desc="of the preprocessed scans")
    similarity = traits.Float(mandatory=True)
    tiv_mm3 = traits.Float(mandatory=True)
    compartments_file = File(exists=True, desc="labels of the lesions' compartments, native grid")
    compartments = traits.List(traits.Str, desc="what the model calls them")
    subject = traits.Str(mandatory=True)
    session = traits.Str("", usedefault=True)


class _MeasureOutput(TraitedSpec):
    tables = traits.List(
        File, desc="volumes, qc and, where lesions were looked for, lesions and load; each .tsv and .json"
    )
    flags = traits.Str(desc="what quality control found")


class Measure(SimpleInterface):
    """Volumes, lesions and quality, from the very images that are written, in the box of the brain."""

    input_spec = _MeasureInput
    output_spec = _MeasureOutput

    def _run_interface(self, runtime):
        from bidsapp.image.grid import average_onto
        from bidsapp.image.results import brain_box
        from bidsapp.measure import quality, volumes

        files = by_name(self.inputs.results)
        whole_mask = array(files["native_brain_mask"], bool)
        box = brain_box(whole_mask)
        native, mask = load(files["native_brain_mask"]).slicer[box], whole_mask[box]
        labels = ("GM", "WM", "CSF") if self.inputs.separable else ("PAR", "CSF")
        posteriors = np.stack([array(files[f"native_tissue_{label}"], box=box) for label in labels])
        lesion = array(files["native_lesion_mask"], bool, box) if "native_lesion_mask" in files else None
        work_priors = load(self.inputs.priors_file)
        priors = np.stack([
            average_onto(work_priors.slicer[..., index], native).get_fdata(dtype=np.float32) for index in range(3)
        ])  # fmt: skip
        voxel_volume_mm3 = float(abs(np.linalg.det(native.affine[:3, :3])))
        row = volumes.tissue_volumes(
            posteriors,
            lesion,
            voxel_volume_mm3=voxel_volume_mm3,
            separable=self.inputs.separable,
            brain_mask=mask,
            tiv_mm3=self.inputs.tiv_mm3,
            priors=priors,
        ) | volumes.structure_volumes(
            array(files["native_structures"], np.int16, box), voxel_volume_mm3=voxel_volume_mm3
        )
        regions = volumes.cortex_volumes(
            array(files["native_cortex"], np.int16, box), voxel_volume_mm3=voxel_volume_mm3
        )
        row |= volumes.lobe_volumes(regions)
        checks = quality.qc_row(
            image=average_onto(load(self.inputs.corrected_file), native).get_fdata(dtype=np.float32),
            brain_mask=mask,
            posteriors=posteriors,
            volumes=row,
            separable=self.inputs.separable,
            mask_on_edge=quality.mask_on_edge(whole_mask, array(self.inputs.preprocessed[0])),
            registration_similarity=self.inputs.similarity,
            agreement=self.inputs.agreement,
            scans=self._scans(posteriors[:-1], native, box),
        )
        who = {"participant_id": f"sub-{self.inputs.subject}"}
        if self.inputs.session:
            who["session_id"] = f"ses-{self.inputs.session}"
        dictionary = volumes.VOLUME_COLUMNS | volumes.STRUCTURE_COLUMNS | volumes.LOBE_COLUMNS
        tables = _write_table(runtime.cwd, "volumes", [who | row], dictionary)
        tables += _write_table(runtime.cwd, "cortex", [who | regions], volumes.CORTEX_COLUMNS)
        tables += _write_table(runtime.cwd, "qc", [who | checks], quality.QC_COLUMNS)
        if lesion is not None:
            found = lesion_tables(
                files,
                dict(zip(self.inputs.contrasts, self.inputs.preprocessed, strict=True)),
                box=box,
                to_subject=self.inputs.to_subject,
                posteriors=posteriors,
                priors=priors,
                volumes=row,
                who=who,
                compartments=self._compartments(box),
            )
            for name, rows, about, columns in found:
                tables += _write_table(runtime.cwd, name, rows, about, columns)
        self._results["tables"] = tables
        self._results["flags"] = str(checks["flags"])
        return runtime

    def _scans(self, tissues, native, box):
        """Quality of every contrast as it was acquired: it does not depend on what is beside it."""
        from bidsapp.image.grid import average_onto, on_grid
        from bidsapp.image.itk import read_itk_affine
        from bidsapp.image.results import tissues_on_scan, without_field
        from bidsapp.measure.image_quality import scan_quality

        scans, fields = ([load(path) for path in paths] for paths in (self.inputs.scans, self.inputs.fields))
        field = average_onto(fields[0], native).get_fdata(dtype=np.float32)
        image = without_field(array(self.inputs.scans[0], box=box), field)
        out = {self.inputs.contrasts[0]: scan_quality(image, tissues, field, voxel_size_mm(scans[0]))}
        if len(scans) == 1:
            return out
        shares = [on_grid(tissue, native) for tissue in tissues]
        ways = zip(self.inputs.other_work_files, self.inputs.other_transforms, strict=True)
        for contrast, scan, field, (work, way) in zip(
            self.inputs.contrasts[1:], scans[1:], fields[1:], ways, strict=True
        ):
            seen = tissues_on_scan(shares, field, scan, load(work), read_itk_affine(Path(way)))
            out[contrast] = scan_quality(*seen, voxel_size_mm(scan))
        return out

    def _compartments(self, box):
        """Labels, and the compartments that they stand for; None where the lesions are of one kind."""
        from bidsapp import labels

        if not isdefined(self.inputs.compartments_file):
            return None
        return array(self.inputs.compartments_file, np.uint8, box), labels.compartments(self.inputs.compartments)


def _write_table(
    folder: str,
    name: str,
    rows: list[dict[str, Any]],
    dictionary: Mapping[str, Mapping[str, str]],
    columns: list[str] | None = None,
) -> list[str]:
    """A table and its data dictionary, with what is said of the columns that every table has; their paths."""
    from bidsapp.measure.volumes import KEY_COLUMNS

    return [str(path) for path in write_table(Path(folder) / name, rows, KEY_COLUMNS | dict(dictionary), columns)]


class _DrawFiguresInput(BaseInterfaceInputSpec):
    results = traits.List(File(exists=True), mandatory=True)
    preprocessed = traits.List(File(exists=True), mandatory=True)
    contrasts = traits.List(traits.Str, mandatory=True)
    to_subject = File(exists=True, mandatory=True)
    compartments_file = File(exists=True, desc="labels of the lesions' compartments, native grid")
    compartments = traits.List(traits.Str, desc="what the model calls them")


class _DrawFiguresOutput(TraitedSpec):
    pictures = traits.List(File)


class DrawFigures(SimpleInterface):
    """The report's pictures, on the reference's native grid."""

    input_spec = _DrawFiguresInput
    output_spec = _DrawFiguresOutput

    def _run_interface(self, runtime):
        from bidsapp.image.resample import Resampler
        from bidsapp.image.template import load_template
        from bidsapp.labels import compartment_lookup
        from bidsapp.report.figures import coarser, draw_session

        native = {name: path for name, path in by_name(self.inputs.results).items() if name.startswith("native_")}
        files = {name: coarser(load(path)) for name, path in native.items()}
        scans = {
            name: coarser(load(path))
            for name, path in zip(self.inputs.contrasts, self.inputs.preprocessed, strict=True)
        }
        reference, template = scans[self.inputs.contrasts[0]], load_template(1)
        onto_reference = Resampler(reference, load(self.inputs.to_subject))
        parts = None
        if isdefined(self.inputs.compartments_file):
            parts = coarser(load(self.inputs.compartments_file)), compartment_lookup(self.inputs.compartments)
        pictures = draw_session(
            reference=reference,
            mask=files["native_brain_mask"],
            dseg=files["native_dseg"],
            structures=files["native_structures"],
            cortex=files["native_cortex"],
            lesion=files.get("native_lesion_mask"),
            flair=scans.get("FLAIR"),
            compartments=parts,
            template=onto_reference(template.t1),
            template_mask=onto_reference(template.mask, interpolation="nearest"),
            template_wm=onto_reference(template.priors.slicer[..., 1]),
        )
        self._results["pictures"] = []
        for name, png in sorted(pictures.items()):
            path = Path(runtime.cwd) / f"desc-{name}.png"
            path.write_bytes(png)
            self._results["pictures"].append(str(path))
        return runtime
