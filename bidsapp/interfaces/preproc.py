"""Nodes of the preprocessing: scan -> work grid -> brain -> bias -> template -> normalised intensities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bidsapp.interfaces.files import array, load, save, voxel_size_mm

#: Voxels of the work grid around the brain mask where priors are kept: others may put the brain's border elsewhere.
PRIORS_MARGIN = 15


class _ConformInput(BaseInterfaceInputSpec):
    in_file = File(exists=False, mandatory=True, desc="scan of the dataset (checked here, so that the message is ours)")


class _ConformOutput(TraitedSpec):
    native_file = File(desc="harmonised scan on its own grid")
    work_file = File(desc="the scan on its work grid")
    notes = traits.List(traits.Str)
    warnings = traits.List(traits.Str)


class Conform(SimpleInterface):
    """Check a scan and bring it onto its work grid."""

    input_spec = _ConformInput
    output_spec = _ConformOutput

    def _run_interface(self, runtime):
        from bidsapp.image.grid import work_image
        from bidsapp.image.load import load_scan

        scan = load_scan(Path(self.inputs.in_file))
        self._results["native_file"] = save(scan.image, runtime.cwd, "native")
        self._results["work_file"] = save(work_image(scan.image), runtime.cwd, "work")
        self._results["notes"] = list(scan.notes)
        self._results["warnings"] = list(scan.warnings)
        return runtime


class _FindBrainInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="reference on the work grid, whole head")
    device = traits.Str("cpu", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


class _ExtractBrainInput(_FindBrainInput):
    contrast = traits.Str(mandatory=True)
    method = traits.Enum("deepbet", "template", "network", mandatory=True)
    check = traits.Bool(False, usedefault=True, desc="of the network's: whether it may be a brain")


class _ExtractBrainOutput(TraitedSpec):
    mask_file = File()
    note = traits.Str(desc="what a check said, if it mattered; which device was too small")


class ExtractBrain(SimpleInterface):
    """Brain mask of the reference scan."""

    input_spec = _ExtractBrainInput
    output_spec = _ExtractBrainOutput

    def _run_interface(self, runtime):
        from bidsapp.models.device import or_on_cpu

        img = load(self.inputs.in_file)
        (mask, said), note = or_on_cpu(lambda device: self._find(img, device), self.inputs.device, "the brain mask")
        self._results["note"] = "; ".join(filter(None, (said, note)))
        self._results["mask_file"] = save(mask, runtime.cwd, "mask")
        return runtime

    def _find(self, img, device):
        """The mask, and what the check said."""
        from bidsapp.image.grid import on_grid

        if self.inputs.method == "network":
            return self._find_by_network(img, device)
        if self.inputs.method == "deepbet":
            from bidsapp.image.brain import clean_mask
            from bidsapp.models.brain import deepbet_brain

            probability = deepbet_brain(img.get_fdata(dtype=np.float32), device=device)
            return clean_mask(on_grid(probability > 0.5, img)), ""
        from bidsapp.image.brain import extract_brain_by_template

        return extract_brain_by_template(img, contrast=self.inputs.contrast), ""

    def _find_by_network(self, img, device):
        """The network's mask; if that is to be checked and cannot be a brain, the template's, and a note."""
        from bidsapp.image.brain import extract_brain_by_template, stripped_brain
        from bidsapp.image.grid import on_grid
        from bidsapp.models.brain import find_brain, find_plausible_brain

        stripped = stripped_brain(img)
        if stripped is not None:
            return stripped, ""
        data, size = img.get_fdata(dtype=np.float32), voxel_size_mm(img)
        if not self.inputs.check:
            return on_grid(find_brain(data, voxel_size_mm=size, device=device) > 0.5, img), ""
        found, wrong = find_plausible_brain(data, voxel_size_mm=size, device=device)
        if found is not None:
            return on_grid(found, img), ""
        mask = extract_brain_by_template(img, contrast=self.inputs.contrast)
        return mask, f"the network found {wrong}; the template's brain mask was taken: look at it"


class _FindBrainOutput(TraitedSpec):
    mask_file = File(desc="where it may be a brain, and the scan is not stripped")
    wrong = traits.Str(desc="what was found instead of a brain")
    note = traits.Str(desc="which device was too small")


class FindBrain(SimpleInterface):
    """Brain by the network, to check another method's mask by; a stripped scan needs no check."""

    input_spec = _FindBrainInput
    output_spec = _FindBrainOutput

    def _run_interface(self, runtime):
        from bidsapp.image.brain import stripped_brain
        from bidsapp.image.grid import on_grid
        from bidsapp.models.brain import find_plausible_brain
        from bidsapp.models.device import or_on_cpu

        img = load(self.inputs.in_file)
        self._results |= {"wrong": "", "note": ""}
        if stripped_brain(img) is not None:
            return runtime
        data, size = img.get_fdata(dtype=np.float32), voxel_size_mm(img)
        (found, self._results["wrong"]), self._results["note"] = or_on_cpu(
            lambda device: find_plausible_brain(data, voxel_size_mm=size, device=device),
            self.inputs.device,
            "the brain mask",
        )
        if found is not None:
            self._results["mask_file"] = save(on_grid(found, img), runtime.cwd, "mask")
        return runtime


class _CheckBrainInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="mask by another method")
    second_file = File(exists=True, desc="mask by the network")
    wrong = traits.Str("", usedefault=True, desc="what the network found instead of a brain")
    notes = traits.List(traits.Str, usedefault=True, desc="of both")


class CheckBrain(SimpleInterface):
    """A mask, or the network's where the two disagree grossly."""

    input_spec = _CheckBrainInput
    output_spec = _ExtractBrainOutput

    def _run_interface(self, runtime):
        from bidsapp.image.grid import on_grid
        from bidsapp.models.brain import second_opinion

        inputs, mask, said = self.inputs, load(self.inputs.in_file), ""
        if isdefined(inputs.second_file) or inputs.wrong:
            found = array(inputs.second_file) > 0 if isdefined(inputs.second_file) else None
            taken, said = second_opinion(np.asarray(mask.dataobj) > 0, found, inputs.wrong)
            mask = on_grid(taken, mask)
        self._results["mask_file"] = save(mask, runtime.cwd, "mask")
        self._results["note"] = "; ".join(dict.fromkeys(filter(None, [said, *inputs.notes])))
        return runtime


class _CleanMaskInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True)


class CleanMask(SimpleInterface):
    """Largest component of a mask, holes filled (after FSL's BET)."""

    input_spec = _CleanMaskInput
    output_spec = _ExtractBrainOutput

    def _run_interface(self, runtime):
        from bidsapp.image.brain import clean_mask

        self._results["mask_file"] = save(clean_mask(load(self.inputs.in_file)), runtime.cwd, "mask")
        self._results["note"] = ""
        return runtime


class _CoregisterInput(BaseInterfaceInputSpec):
    moving_file = File(exists=True, mandatory=True, desc="scan on its own work grid")
    fixed_file = File(exists=True, mandatory=True, desc="reference on its work grid")
    fixed_mask = File(exists=True, mandatory=True, desc="brain mask of the reference")


class _CoregisterOutput(TraitedSpec):
    out_file = File(desc="the scan on the reference's work grid")
    transform_file = File(desc="ITK text transform: resamples the scan onto the reference")
    inverse_file = File(desc="ITK text transform: resamples the reference onto the scan")


class Coregister(SimpleInterface):
    """Rigid registration of a scan to the reference."""

    input_spec = _CoregisterInput
    output_spec = _CoregisterOutput

    def _run_interface(self, runtime):
        from bidsapp.image.itk import write_itk_affine
        from bidsapp.image.register import register_rigid
        from bidsapp.image.resample import resample

        moving, fixed = load(self.inputs.moving_file), load(self.inputs.fixed_file)
        matrix = register_rigid(moving, fixed, fixed_mask=load(self.inputs.fixed_mask))
        for name, transform in (("transform_file", matrix), ("inverse_file", np.linalg.inv(matrix))):
            path = Path(runtime.cwd) / f"{name}.txt"
            write_itk_affine(transform, path)
            self._results[name] = str(path)
        out = resample(moving, fixed, transform=matrix, interpolation="linear")
        self._results["out_file"] = save(out, runtime.cwd, "work")
        return runtime


class _CorrectBiasInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True)
    mask_file = File(exists=True, mandatory=True)


class _CorrectBiasOutput(TraitedSpec):
    out_file = File(desc="corrected image")
    field_file = File(desc="bias field (image = corrected x field)")


class CorrectBias(SimpleInterface):
    """N4 bias field correction on the work grid."""

    input_spec = _CorrectBiasInput
    output_spec = _CorrectBiasOutput

    def _run_interface(self, runtime):
        from bidsapp.image.bias import correct_bias
        from bidsapp.image.grid import on_grid

        img, mask = load(self.inputs.in_file), load(self.inputs.mask_file)
        if np.asarray(img.dataobj)[np.asarray(mask.dataobj) > 0].any():
            out, field = correct_bias(img, mask)
        else:  # another scan whose field of view misses the brain: `Normalize` tells of it
            out, field = img, on_grid(np.ones(img.shape, np.float32), img)
        self._results["out_file"] = save(out, runtime.cwd, "corrected")
        self._results["field_file"] = save(field, runtime.cwd, "field")
        return runtime


class _RegisterTemplateInput(BaseInterfaceInputSpec):
    in_file = File(exists=True, mandatory=True, desc="bias-corrected reference")
    mask_file = File(exists=True, mandatory=True)
    contrast = traits.Str(mandatory=True)


class _RegisterTemplateOutput(TraitedSpec):
    to_template = File(desc="displacement field that resamples the subject onto the template")
    to_subject = File(desc="displacement field that resamples the template onto the subject")
    priors_file = File(desc="tissue priors on the work grid")
    similarity = traits.Float()
    tiv_mm3 = traits.Float(desc="intracranial volume by the size of the affine")
    note = traits.Str(desc="what seems to be wrong with the head's orientation")


TURNED = (
    "The head seems to lie in another direction than its header says, upside down or turned by a right angle: check the"
    " orientation in a viewer, mend the header of the scan, and run again. These results are most likely wrong."
)


class RegisterTemplate(SimpleInterface):
    """Affine and SyN registration to the template; the priors come back."""

    input_spec = _RegisterTemplateInput
    output_spec = _RegisterTemplateOutput

    def _run_interface(self, runtime):
        from bidsapp.image.grid import bounding_box
        from bidsapp.image.register import register_template
        from bidsapp.image.resample import Resampler
        from bidsapp.image.template import load_template
        from bidsapp.measure.volumes import estimate_tiv

        img, mask = load(self.inputs.in_file), load(self.inputs.mask_file)
        result = register_template(img, mask, contrast=self.inputs.contrast)
        self._results["to_template"] = save(result.to_template, runtime.cwd, "to_template")
        self._results["to_subject"] = save(result.to_subject, runtime.cwd, "to_subject")
        near_brain = np.zeros(img.shape, bool)
        near_brain[bounding_box(np.asarray(mask.dataobj), margin=PRIORS_MARGIN)] = True
        priors = Resampler(img, result.to_subject).only(near_brain)(load_template(1).priors)
        self._results["priors_file"] = save(priors, runtime.cwd, "priors")
        self._results["similarity"] = float(result.similarity)
        self._results["note"] = TURNED if result.turned else ""
        mask_mm3 = float(np.count_nonzero(load_template(1).mask.dataobj))  # the template has voxels of 1 mm3
        self._results["tiv_mm3"] = estimate_tiv(result.affine, mask_mm3)
        return runtime


class _NormalizeInput(BaseInterfaceInputSpec):
    work_file = File(exists=True, mandatory=True, desc="bias-corrected scan on the work grid")
    mask_file = File(exists=True, mandatory=True)
    field_file = File(exists=True, mandatory=True)
    native_file = File(exists=True, mandatory=True, desc="harmonised scan on its own grid")
    reference_file = File(exists=True, mandatory=True, desc="harmonised reference: the grid of native_out")
    transform_file = File(exists=True, desc="rigid transform of the scan onto the reference")
    own_work_file = File(exists=True, desc="the scan on its own work grid: its field of view, with a transform")
    contrast = traits.Str(mandatory=True, desc="T1w, T2w, FLAIR or T1wCE")
    method = traits.Enum("zscore", "nyul", mandatory=True)
    denoise = traits.Bool(False, usedefault=True)


class _NormalizeOutput(TraitedSpec):
    work_out = File(desc="preprocessed scan on the work grid; NaN outside its field of view, if that cuts the brain")
    native_out = File(desc="preprocessed scan on the reference's native grid")
    warnings = traits.List(traits.Str)


class Normalize(SimpleInterface):
    """Intensity normalisation (and noise reduction) on the work grid and, alike, at native resolution."""

    input_spec = _NormalizeInput
    output_spec = _NormalizeOutput

    def _run_interface(self, runtime):
        from bidsapp.image import preprocess
        from bidsapp.image.itk import read_itk_affine

        transform = seen = None
        warning, mask = "", load(self.inputs.mask_file)
        kind = self.inputs.contrast.removesuffix("CE")  # with a contrast agent too, it is a T1w
        if isdefined(self.inputs.transform_file):
            transform, scan = read_itk_affine(Path(self.inputs.transform_file)), load(self.inputs.own_work_file)
            seen, warning = preprocess.in_view(scan, mask, transform, contrast=self.inputs.contrast)
        work, native = preprocess.normalize_pair(
            load(self.inputs.work_file),
            mask,
            native=load(self.inputs.native_file),
            field=load(self.inputs.field_file),
            reference=load(self.inputs.reference_file),
            transform=transform,
            contrast=kind,
            method=self.inputs.method,
            denoise=self.inputs.denoise,
            seen=seen,
        )
        self._results["work_out"] = save(work, runtime.cwd, "work")
        self._results["native_out"] = save(native, runtime.cwd, "native")
        self._results["warnings"] = [warning] if warning else []
        return runtime
