"""Nodes of the segmentation: the network, and the unsupervised models of tissues and lesions."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np
from nipype.interfaces.base import (
    BaseInterfaceInputSpec,
    Directory,
    File,
    SimpleInterface,
    TraitedSpec,
    isdefined,
    traits,
)

from bidsapp.cards import threshold_of
from bidsapp.interfaces.files import array, load, save, voxel_size_mm


class _ScansInput(BaseInterfaceInputSpec):
    """What every model is given."""

    in_files = traits.List(File(exists=True), mandatory=True, desc="preprocessed scans on the work grid")
    contrasts = traits.List(traits.Str, mandatory=True, desc="their contrasts")
    mask_file = File(exists=True, mandatory=True, desc="brain")


class _ModelInput(_ScansInput):
    device = traits.Str("cpu", usedefault=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


def _all_scans(inputs):
    """The scans of a node by contrast."""
    return {name: array(path) for name, path in zip(inputs.contrasts, inputs.in_files, strict=True)}


def _scans(inputs):
    """The scans of a node by contrast, but those that show too little of the brain (`image.preprocess.in_view`)."""
    from bidsapp.image.preprocess import LEAST_SHOWN

    mask = array(inputs.mask_file) > 0
    return {name: image for name, image in _all_scans(inputs).items() if np.isfinite(image[mask]).mean() >= LEAST_SHOWN}


class _SegmentAllInput(_ModelInput):
    tta = traits.Bool(True, usedefault=True, desc="average over mirror images")


class _SegmentAllOutput(TraitedSpec):
    mask_file = File(desc="brain, as the network sees it")
    posteriors_file = File(desc="4D, order of labels.TISSUES")
    structures_file = File(desc="labels of the left structures for both sides")
    lesion_mask = File()
    lesion_probability = File()
    note = traits.Str(desc="where it was computed, if not where it was meant to be")


class SegmentAll(SimpleInterface):
    """Brain mask, tissues, structures and lesions from one pass of the network."""

    input_spec = _SegmentAllInput
    output_spec = _SegmentAllOutput

    def _run_interface(self, runtime):
        from bidsapp.image.grid import on_grid
        from bidsapp.models import segment

        images = _scans(self.inputs)
        mask_image, within, size, found = _see(self.inputs, images, segment.packaged(), tta=self.inputs.tta)
        seen = segment.read_classes(found, within)
        threshold = threshold_of(segment.packaged().card, images)
        lesions = segment.lesion_mask(seen.lesion, threshold=threshold, voxel_size_mm=size)
        for name, data in (
            ("mask_file", seen.mask), ("posteriors_file", np.moveaxis(seen.tissues, 0, 3)),
            ("structures_file", seen.structures), ("lesion_mask", lesions), ("lesion_probability", seen.lesion),
        ):  # fmt: skip
            self._results[name] = save(on_grid(data, mask_image), runtime.cwd, name)
        self._results["note"] = found.note
        return runtime


def _see(inputs, images, model, *, tta):
    """Run a network over scans: mask, what it was shown, voxel size, result."""
    from bidsapp.models import segment

    mask_image = load(inputs.mask_file)
    mask = np.asarray(mask_image.dataobj) > 0
    size = voxel_size_mm(mask_image)
    within = segment.shown(mask, size, model)
    found = segment.segment_network(
        images,
        mask,
        voxel_size_mm=size,
        within=within,
        device=inputs.device,
        tta=tta,
        model=model,
    )
    return mask_image, within, size, found


class _SegmentByModelInput(_ModelInput):
    model_dir = Directory(exists=True, mandatory=True, nohash=True)
    model_label = traits.Str(mandatory=True, desc="tells the model from any other: the folder may hold another later")


class _SegmentByModelOutput(TraitedSpec):
    lesion_mask = File()
    lesion_probability = File()
    compartments_file = File(desc="4D, probability of each compartment, where the model has several")
    note = traits.Str(desc="where it was computed, if not where it was meant to be")


class SegmentByModel(SimpleInterface):
    """Lesions by a model that somebody trained (``--lesion-model FOLDER``)."""

    input_spec = _SegmentByModelInput
    output_spec = _SegmentByModelOutput

    def _run_interface(self, runtime):
        from bidsapp.cards import read_lesion_model
        from bidsapp.errors import InputError
        from bidsapp.image.grid import on_grid
        from bidsapp.models import registry, segment

        about = read_lesion_model(Path(self.inputs.model_dir))
        if about.label != self.inputs.model_label:
            raise InputError(
                f"{self.inputs.model_dir}: the model was replaced during the run (now {about.label}); run again."
            )
        model = registry.read_whole_lesion_model(about.folder)
        # All scans, however little they show: the model may know no other.
        images = _all_scans(self.inputs)
        mask_image, within, size, found = _see(self.inputs, images, model, tta=False)
        probability = segment.lesion_probability(found, within, model)
        threshold = about.threshold(self.inputs.contrasts)
        lesions = segment.lesion_mask(probability, threshold=threshold, voxel_size_mm=size)
        self._results["lesion_mask"] = save(on_grid(lesions, mask_image), runtime.cwd, "lesion_mask")
        self._results["lesion_probability"] = save(on_grid(probability, mask_image), runtime.cwd, "lesion_probability")
        if len(about.compartments) > 1:
            shares = np.moveaxis(segment.compartment_probabilities(found, within, model), 0, 3)
            self._results["compartments_file"] = save(on_grid(shares, mask_image), runtime.cwd, "compartments")
        self._results["note"] = found.note
        return runtime


class _SegmentTissueInput(_ModelInput):
    priors_file = File(exists=True, mandatory=True)


class _SegmentTissueOutput(TraitedSpec):
    posteriors_file = File(desc="4D, order of labels.TISSUES")
    result_file = File(desc="the model's parameters (.npz)")
    separable = traits.Bool()
    reason = traits.Str(desc="why GM and WM are not told apart")
    note = traits.Str(desc="that the device's memory did not suffice")


class SegmentTissue(SimpleInterface):
    """GM, WM and CSF posteriors."""

    input_spec = _SegmentTissueInput
    output_spec = _SegmentTissueOutput

    def _run_interface(self, runtime):
        from bidsapp.image.grid import on_grid
        from bidsapp.models.device import or_on_cpu
        from bidsapp.models.mixture import fit_mixture

        mask = load(self.inputs.mask_file)
        scans, inside, priors = _scans(self.inputs), np.asarray(mask.dataobj) > 0, array(self.inputs.priors_file)
        result, self._results["note"] = or_on_cpu(
            lambda device: fit_mixture(scans, inside, priors, device=device), self.inputs.device, "the tissue model"
        )
        posteriors = on_grid(np.moveaxis(result.posteriors, 0, 3).astype(np.float32), mask)
        self._results["posteriors_file"] = save(posteriors, runtime.cwd, "posteriors")
        result_file = Path(runtime.cwd) / "mixture.npz"
        np.savez(result_file, **{field.name: np.asarray(getattr(result, field.name)) for field in fields(result)})
        self._results["result_file"] = str(result_file)
        self._results["separable"] = bool(result.separable)
        self._results["reason"] = str(result.reason)
        return runtime


class _SegmentLesionsInput(_ScansInput):
    priors_file = File(exists=True, mandatory=True)
    result_file = File(exists=True, mandatory=True, desc="tissue model")


class _SegmentLesionsOutput(TraitedSpec):
    mask_file = File()
    probability_file = File()
    excess_file = File(desc="FLAIR less that of white matter")
    reason = traits.Str(desc="why there are none of these; empty where there are")


class SegmentLesions(SimpleInterface):
    """Lesion probability and mask; no outputs where the FLAIR shows too little of the brain."""

    input_spec = _SegmentLesionsInput
    output_spec = _SegmentLesionsOutput

    def _run_interface(self, runtime):
        from bidsapp.image.grid import on_grid
        from bidsapp.models.mixture import MixtureResult
        from bidsapp.models.outlier import segment_lesions

        mask, images = load(self.inputs.mask_file), _scans(self.inputs)
        self._results["reason"] = ""
        if "FLAIR" not in images:
            self._results["reason"] = "the FLAIR shows less than half of the brain"
            return runtime
        with np.load(self.inputs.result_file, allow_pickle=False) as stored:
            mixture = MixtureResult(**{name: _plain(stored[name]) for name in stored.files})
        result = segment_lesions(
            images,
            np.asarray(mask.dataobj) > 0,
            mixture,
            array(self.inputs.priors_file),
            voxel_size_mm=voxel_size_mm(mask),
        )
        self._results["mask_file"] = save(on_grid(result.mask.astype(bool), mask), runtime.cwd, "lesions")
        probability = on_grid(result.probability.astype(np.float32), mask)
        self._results["probability_file"] = save(probability, runtime.cwd, "probability")
        self._results["excess_file"] = save(on_grid(result.excess, mask), runtime.cwd, "excess")
        return runtime


class _CombineModelsInput(BaseInterfaceInputSpec):
    mask_file = File(exists=True, mandatory=True, desc="brain, as the network sees it")
    network_posteriors = File(exists=True, mandatory=True)
    mixture_posteriors = File(exists=True, mandatory=True)
    separable = traits.Bool(mandatory=True, desc="whether the mixture tells GM from WM")
    network_lesions = File(exists=True, mandatory=True)
    network_lesion_probability = File(exists=True, mandatory=True)
    outlier_lesions = File(exists=True, desc="where there is a FLAIR")
    outlier_lesion_probability = File(exists=True)
    excess_file = File(exists=True, desc="FLAIR less that of white matter")
    structures_file = File(exists=True, mandatory=True, desc="left and right")


class _CombineModelsOutput(TraitedSpec):
    posteriors_file = File(desc="mean of both; the network's, where the mixture does not tell GM from WM")
    lesion_mask = File(desc="by the mean of both; the network's, where it is alone")
    lesion_probability = File()
    structures_file = File(desc="cortex redrawn by the mean; the network's, where that has the tissues alone")
    agreement = traits.Dict(desc="Dice of the two by class; None where one has no opinion")


class CombineModels(SimpleInterface):
    """The network and the unsupervised models: how far they agree, and what they say together."""

    input_spec = _CombineModelsInput
    output_spec = _CombineModelsOutput

    def _run_interface(self, runtime):
        from bidsapp.image.grid import on_grid
        from bidsapp.measure.quality import model_agreement
        from bidsapp.models import consensus, segment
        from bidsapp.models.outlier import without_rim

        inputs, mask_image = self.inputs, load(self.inputs.mask_file)
        network, mixture = array(inputs.network_posteriors), array(inputs.mixture_posteriors)
        both_lesions = isdefined(inputs.outlier_lesions)
        lesions = None
        if both_lesions:
            lesions = tuple(array(path, np.uint8) > 0 for path in (inputs.network_lesions, inputs.outlier_lesions))
        self._results["agreement"] = model_agreement(network, mixture, separable=inputs.separable, lesions=lesions)
        structures = array(inputs.structures_file, np.int32)
        self._results["posteriors_file"] = inputs.network_posteriors
        self._results["structures_file"] = inputs.structures_file
        if inputs.separable:
            tissues = consensus.mean_tissues(network, mixture, np.asarray(mask_image.dataobj) > 0)
            image = on_grid(np.moveaxis(tissues, 0, 3), mask_image)
            self._results["posteriors_file"] = save(image, runtime.cwd, "posteriors")
            redrawn = consensus.redraw_cortex(structures, tissues).astype(np.uint8)
            self._results["structures_file"] = save(on_grid(redrawn, mask_image), runtime.cwd, "structures")
        self._results["lesion_mask"] = inputs.network_lesions
        self._results["lesion_probability"] = inputs.network_lesion_probability
        if both_lesions:
            probability = consensus.mean_lesions(
                array(inputs.network_lesion_probability), array(inputs.outlier_lesion_probability)
            )
            size = voxel_size_mm(mask_image)
            lesion_mask = partial(
                segment.lesion_mask,
                threshold=consensus.LESION_THRESHOLD,
                seed=consensus.LESION_SEED,
                voxel_size_mm=size,
            )
            found = without_rim(lesion_mask(probability), array(inputs.excess_file), voxel_size_mm=size)
            found = lesion_mask(np.where(found, probability, 0))  # what is left of small ones may be too short
            found = consensus.without_septum(found, structures, voxel_width_mm=size[0])
            self._results["lesion_mask"] = save(on_grid(found, mask_image), runtime.cwd, "lesions")
            self._results["lesion_probability"] = save(on_grid(probability, mask_image), runtime.cwd, "probability")
        return runtime


def _plain(value: np.ndarray) -> object:
    """A field of the result as it was: scalars and tuples of names come out of the file as arrays."""
    if value.ndim == 0:
        return value.item()
    return tuple(value.tolist()) if value.dtype.kind == "U" else value
