"""The node that divides lesions into the compartments that a model tells apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits

from bidsapp.interfaces.files import by_name, load


class _DivideLesionsInput(BaseInterfaceInputSpec):
    results = traits.List(File(exists=True), mandatory=True, desc="with the lesion mask on the native grid")
    compartments_file = File(exists=True, mandatory=True, desc="4D on the work grid, probability of each compartment")
    names = traits.List(traits.Str, mandatory=True, desc="the model's names of them")


class _DivideLesionsOutput(TraitedSpec):
    labels_file = File(desc="likeliest compartment within the lesions, native grid")


class DivideLesions(SimpleInterface):
    """Likeliest compartment of each voxel of the lesions, on the grid on which they are measured."""

    input_spec = _DivideLesionsInput
    output_spec = _DivideLesionsOutput

    def _run_interface(self, runtime):
        from bidsapp import labels
        from bidsapp.image.grid import average_onto, on_grid
        from bidsapp.image.save import write_image
        from bidsapp.measure.compartments import divide

        lesion = load(by_name(self.inputs.results)["native_lesion_mask"])
        on_work = load(self.inputs.compartments_file)
        parts = labels.compartments(self.inputs.names)
        shares = np.stack([
            average_onto(on_work.slicer[..., index], lesion).get_fdata(dtype=np.float32) for index in range(len(parts))
        ])  # fmt: skip
        path = Path(runtime.cwd) / "compartments.nii.gz"
        found = divide(shares, np.asarray(lesion.dataobj) > 0, parts)
        write_image(on_grid(found, lesion), path)
        self._results["labels_file"] = str(path)
        return runtime
