"""The app with sessions that cost nothing: everything is real but the steps (and torch, which is not loaded).

A session has two steps: one reads its scans, one writes files slowly and in the app's order, so that a kill finds it
half-way. ``python -c 'import light; light.main()' BIDS_DIR OUT_DIR participant ...``
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, traits
from nipype.pipeline import engine as pe

from bidsapp import __version__, bids
from bidsapp.config import Config
from bidsapp.workflows import session as real
from bidsapp.workflows.plan import plan
from bidsapp.writing import replacing, sha256, write_json

#: Seconds that each of the files takes.
PAUSE = float(os.environ.get("LIGHT_PAUSE", "0.02"))


class _ReadInput(BaseInterfaceInputSpec):
    in_files = traits.List(File(exists=True), mandatory=True)
    use_gpu = traits.Bool(False, usedefault=True, nohash=True)


class _ReadOutput(TraitedSpec):
    out_file = File()


class Read(SimpleInterface):
    """The checksums of the scans; a scan that is empty fails, as it does in the app, and one may be too much."""

    input_spec = _ReadInput
    output_spec = _ReadOutput

    def _run_interface(self, runtime):
        for name in self.inputs.in_files:
            if not Path(name).stat().st_size:
                raise ValueError(f"{name}: the file is empty")
            if Path(name).read_text() == "larger than memory":
                os.kill(os.getpid(), signal.SIGKILL)
        if self.inputs.use_gpu and type(multiprocessing.current_process()).__name__ == "ForkProcess":
            raise RuntimeError("Cannot re-initialize CUDA in forked subprocess")
        out = Path(runtime.cwd) / "sums.txt"
        out.write_text("\n".join(sha256(Path(name)) for name in self.inputs.in_files))
        self._results["out_file"] = str(out)
        return runtime


class _WriteInput(BaseInterfaceInputSpec):
    sums = File(exists=True, mandatory=True)
    session = traits.Dict(mandatory=True)
    options = traits.Dict(mandatory=True)
    methods = traits.Dict(mandatory=True)
    out_dir = traits.Str(mandatory=True)


class _WriteOutput(TraitedSpec):
    record_file = File()


class Write(SimpleInterface):
    """Ten files beside each other, a picture of the subject, and the record at the end."""

    input_spec = _WriteInput
    output_spec = _WriteOutput
    _always_run = True

    def _run_interface(self, runtime):
        session, out_dir = self.inputs.session, Path(self.inputs.out_dir)
        folder = out_dir / session["folder"]
        record = folder / f"{session['name']}_provenance.json"
        record.unlink(missing_ok=True)
        for left_over in folder.glob(".*.tmp"):
            left_over.unlink()
        written = [folder / f"{session['prefix']}_desc-{number}_mask.nii.gz" for number in range(10)]
        written.append(out_dir / f"sub-{session['subject']}" / "figures" / f"{session['name']}_desc-brain_image.png")
        sums = Path(self.inputs.sums).read_text()
        for path in written:
            with replacing(path) as aside, aside.open("w") as stream:
                stream.write(sums)
                stream.flush()
                time.sleep(PAUSE)
                stream.write(path.name)
        write_json(
            record,
            {
                "version": __version__,
                "options": self.inputs.options,
                "methods": self.inputs.methods,
                "inputs": [{"file": scan["file"], "sha256": sha256(Path(scan["path"]))} for scan in session["scans"]],
                "outputs": {path.relative_to(out_dir).as_posix(): path.stat().st_size for path in written},
            },
        )
        self._results["record_file"] = str(record)
        return runtime


def init_light_wf(inputs: bids.SessionInputs, config: Config, *, device: str = "cpu") -> pe.Workflow:
    """Stands in for `bidsapp.workflows.session.init_session_wf`."""
    workflow = pe.Workflow(name=real.workflow_name(inputs))
    read = pe.Node(Read(in_files=[str(scan.path) for scan in inputs.scans], use_gpu=device != "cpu"), "conform")
    about: dict[str, Any] = real.describe(inputs, config.bids_dir)
    chosen = {"options": config.science(), "methods": plan(inputs, config).plain()}
    write = pe.Node(Write(session=about, out_dir=str(config.out_dir), **chosen), "write")
    workflow.connect(read, "out_file", write, "sums")
    return workflow


def main() -> None:
    """The command line of the app."""
    from bidsapp.cli import main as app

    device = ModuleType("bidsapp.models.device")
    device.resolve = lambda name: "cpu" if name == "auto" else name  # type: ignore[attr-defined]
    sys.modules["bidsapp.models.device"] = device
    # Light sessions have no images whose changes could be measured.
    changes = ModuleType("bidsapp.workflows.subject")
    changes.subjects_to_compare = lambda config, subjects: []  # type: ignore[attr-defined]
    changes.left_over = lambda config, subjects: []  # type: ignore[attr-defined]
    changes.run_changes = None  # type: ignore[attr-defined]
    sys.modules["bidsapp.workflows.subject"] = changes
    real.init_session_wf = init_light_wf
    sys.modules.setdefault("torch", ModuleType("torch"))  # loaded ahead of steps that are not there
    sys.modules.setdefault("ants", ModuleType("ants"))
    raise SystemExit(app())
