"""The node that keeps a labelled session for training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from bidsapp.interfaces.files import load, save


class _StoreCaseInput(BaseInterfaceInputSpec):
    in_files = traits.List(File(exists=True), mandatory=True, desc="preprocessed scans on the work grid")
    contrasts = traits.List(traits.Str, mandatory=True)
    mask_file = File(exists=True, mandatory=True)
    label_file = File(exists=True, mandatory=True, desc="as drawn")
    indices = traits.List(traits.Int, desc="values of the classes; none: a mask")
    native_file = File(exists=True, mandatory=True, desc="the scan under the labels, on its own grid")
    work_file = File(exists=True, mandatory=True, desc="the same on its work grid")
    transform_file = File(exists=True, desc="rigid transform of that scan onto the reference")
    folder = traits.Str(mandatory=True)
    record = traits.Dict(mandatory=True, desc="what it was made of; written last")


class _StoreCaseOutput(TraitedSpec):
    record_file = File()


class StoreCase(SimpleInterface):
    """Scans, brain mask and labels of a session on its work grid, and the labels as drawn."""

    input_spec = _StoreCaseInput
    output_spec = _StoreCaseOutput

    def _run_interface(self, runtime):
        import json
        import shutil

        from bidsapp.image.drawn import load_drawn, onto_work
        from bidsapp.image.itk import read_itk_affine
        from bidsapp.writing import write_text

        inputs, folder = self.inputs, Path(self.inputs.folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "case.json").unlink(missing_ok=True)  # before any image is another: if stopped halfway it is no case
        mask = load(inputs.mask_file)
        drawn = load_drawn(Path(inputs.label_file), load(inputs.native_file), inputs.indices)
        matrix = read_itk_affine(Path(inputs.transform_file)) if isdefined(inputs.transform_file) else None
        labels = onto_work(drawn, mask, matrix)
        if not np.asarray(labels.dataobj).any():
            raise ValueError(f"{inputs.label_file}: nothing is left of the labels on the scan's 1 mm grid.")
        for contrast, path in zip(inputs.contrasts, inputs.in_files, strict=True):
            shutil.copyfile(path, folder / f"{contrast}.nii")
        shutil.copyfile(inputs.mask_file, folder / "mask.nii")
        save(labels, str(folder), "labels")
        save(drawn, str(folder), "drawn")
        for name in ("to_drawn.txt", "drawn_work.nii"):  # of an earlier run, whose labels lay on another scan
            (folder / name).unlink(missing_ok=True)
        if matrix is not None:
            shutil.copyfile(inputs.transform_file, folder / "to_drawn.txt")
            shutil.copyfile(inputs.work_file, folder / "drawn_work.nii")
        record_file = write_text(folder / "case.json", json.dumps(inputs.record, indent=1, sort_keys=True) + "\n")
        self._results["record_file"] = str(record_file)
        return runtime
