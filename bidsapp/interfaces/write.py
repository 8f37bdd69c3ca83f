"""The node that writes a session's derivatives under their BIDS names, its record last."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
from nipype.interfaces.base import BaseInterfaceInputSpec, File, SimpleInterface, TraitedSpec, isdefined, traits

from bidsapp import __version__, bids, out_dataset
from bidsapp.interfaces.files import by_name, voxel_size_mm
from bidsapp.labels import TEMPLATE
from bidsapp.writing import replacing, sha256, write_json, write_text

WITHOUT_T1W = (
    "Gray and white matter were told apart without a T1w: do not compare their volumes with those of sessions that have"
    " one."
)
#: docs/benchmarks.md: sub-26, and six sessions of bids_ms_longitudinal.
FLAIR_ALONE = (
    " In seven sessions FLAIR alone gave 8 % less to 11 % more gray and 3 % less to 10 % more white matter than all"
    " contrasts of the session."
)
#: Slices of the reference from this spacing on (mm) come with a caution.
THICK_MM = 5.0
THICK = (
    "The slices of the {contrast} lie {mm:.3g} mm apart: do not compare volumes of single structures with those of"
    " thinner slices, and look at lesions beside the ventricles, where slices show tissue and fluid at once. In a"
    " healthy head resliced to 6 mm and more, small structures came out up to a third larger or smaller, and 2 ml of"
    " lesions that were none."
)


#: End of the name, and what is particular in the sidecar, of each result; ``{reference}`` is that scan's contrast.
PRODUCTS: dict[str, tuple[str, dict[str, Any]]] = {
    "modulated_GM": (
        "label-GM_desc-modulated_probseg",
        {
            "Description": "Share of GM in each voxel times the determinant of the Jacobian of the deformation"
            " to the subject: its sum is the subject's volume. No probability: it may exceed 1."
        },
    ),
    "filled": (
        "desc-lesionfilled_{reference}",
        {
            "SkullStripped": False,
            "Description": "The scan as it is, but for the lesions: they have the brightness and the noise of"
            " the white matter around them (after Battaglini et al. 2012, Hum Brain Mapp 33:2062).",
        },
    ),
    "preproc": ("desc-preproc_{reference}", {"SkullStripped": False, "Description": "Preprocessed scan."}),
    "brain_mask": ("desc-brain_mask", {"Type": "Brain", "Description": "Brain, ventricles included."}),
    "dseg": (
        "seg-tissue_dseg",
        {
            "Manual": False,
            "Description": "Most probable tissue, and lesions; the look-up table names the labels.",
        },
    ),
    "structures": (
        "seg-structures_dseg",
        {
            "Manual": False,
            "Description": "Most probable anatomical structure, and lesions; FreeSurfer's label numbers.",
        },
    ),
    "cortex": (
        f"{out_dataset.CORTEX_ATLAS}_dseg",
        {
            "Manual": False,
            "Description": "Structures, with the cerebral cortex in the regions of Desikan et al. 2006, by an"
            " atlas of the template; FreeSurfer's label numbers (aparc+aseg).",
        },
    ),
    "lesion_mask": ("label-lesion_mask", {"Type": "Lesion", "Description": "Lesions."}),
    "lesion_probability": ("label-lesion_probseg", {"Description": "Probability of lesion."}),
}


class _WriteSessionInput(BaseInterfaceInputSpec):
    out_dir = traits.Str(mandatory=True)
    session = traits.Dict(mandatory=True, desc="bids.SessionInputs as plain values (see workflows.session.describe)")
    options = traits.Dict(mandatory=True)
    plan = traits.Dict(mandatory=True, desc="methods chosen for this session")
    results = traits.List(File(exists=True), mandatory=True)
    preprocessed = traits.List(File(exists=True), mandatory=True)
    to_template = File(exists=True, mandatory=True)
    to_subject = File(exists=True, mandatory=True)
    rigid_files = traits.List(File(exists=True), desc="per further contrast: onto the reference, and back")
    tables = traits.List(File(exists=True), mandatory=True)
    flags = traits.Str(mandatory=True)
    pictures = traits.List(File(exists=True), mandatory=True)
    not_separable_because = traits.Str("", usedefault=True)
    no_lesions_because = traits.Str("", usedefault=True, desc="of the model of outliers, where that alone was asked")
    brain_note = traits.Str(mandatory=True)
    template_note = traits.Str(mandatory=True)
    network_note = traits.Str(mandatory=True)
    tissue_note = traits.Str(mandatory=True)
    lesion_note = traits.Str("", usedefault=True)
    compartments_file = File(exists=True, desc="labels of the lesions' compartments, native grid")
    compartments = traits.List(traits.Str, desc="what the model calls them")
    notes = traits.List(traits.List(traits.Str), mandatory=True, desc="per contrast")
    warnings = traits.List(traits.List(traits.Str), mandatory=True, desc="per contrast")


class _WriteSessionOutput(TraitedSpec):
    record_file = File()


class WriteSession(SimpleInterface):
    """Write a session's derivatives; its record comes last, so that what has a record is whole."""

    input_spec = _WriteSessionInput
    output_spec = _WriteSessionOutput
    # The files may have been removed since: always run, it only copies.
    _always_run = True

    def _run_interface(self, runtime):
        session = self.inputs.session
        out_dir = Path(self.inputs.out_dir)
        folder = out_dir / session["folder"]
        record_file = folder / f"{session['name']}_provenance.json"
        record = self._record()
        self._remove_earlier(out_dir, folder, record_file)
        written: list[Path] = []
        for name, source, sidecar in self._products():
            target = folder / name
            _copy(source, target)
            written.append(target)
            if sidecar is not None:
                beside = folder / f"{name.split('.')[0]}.json"
                write_json(beside, sidecar)
                written.append(beside)
        written += [folder / name for name in self._lookup_tables()]
        for source in self.inputs.tables:
            written.append(folder / f"{session['name']}_{Path(source).name}")
            _copy(source, written[-1])
        for source in self.inputs.pictures:
            written.append(out_dir / f"sub-{session['subject']}" / "figures" / f"{session['name']}_{Path(source).name}")
            _copy(source, written[-1])
        outputs = {path.relative_to(out_dir).as_posix(): path.stat().st_size for path in sorted(written)}
        write_json(record_file, record | {"outputs": outputs})
        self._results["record_file"] = str(record_file)
        return runtime

    def _remove_earlier(self, out_dir: Path, folder: Path, record_file: Path) -> None:
        """What an earlier run wrote, with other scans or options perhaps: whoever reads by name would take it for ours.

        The session is locked. Where a run was killed while it wrote there is no record, but names that tell.
        """
        from bidsapp.report.read import TABLES

        name = self.inputs.session["name"]
        earlier = out_dataset.recorded_outputs(record_file, out_dir)
        record_file.unlink(missing_ok=True)
        for table in TABLES:
            earlier += folder.glob(f"{name}_{table}.*")
        earlier += (out_dir / f"sub-{self.inputs.session['subject']}" / "figures").glob(f"{name}_desc-*.png")
        for path in (*earlier, *folder.glob(".*.tmp")):
            path.unlink(missing_ok=True)

    def _products(self) -> Iterable[tuple[str, str, dict[str, Any] | None]]:
        """(name, source, sidecar) of every image and transform."""
        scans, prefix = self.inputs.session["scans"], self.inputs.session["prefix"]
        reference = scans[0]
        source_uris = [f"bids:raw:{scan['file']}" for scan in scans]
        here = {"SpatialReference": source_uris[0]}
        for index, (scan, image) in enumerate(zip(scans, self.inputs.preprocessed, strict=True)):
            space = "orig" if index == 0 else reference["contrast"]
            name = f"{_prefix(scan)}_space-{space}_desc-preproc_{scan['contrast']}.nii.gz"
            about = {"SkullStripped": False, "Sources": [source_uris[index]], **here, "Description": self._chain(index)}
            yield name, image, about
        files = by_name(self.inputs.results)
        flair = next((scan for scan in scans if scan["contrast"] == "FLAIR"), None)
        grids = {"native": (prefix, "orig", here), "mni": (prefix, TEMPLATE, {})}
        if flair is not None:
            grids["flair"] = (_prefix(flair), "FLAIR", {"SpatialReference": f"bids:raw:{flair['file']}"})
        for key, path in files.items():
            grid, _, product = key.partition("_")
            start, space, about = grids[grid]
            tail, more = _product(product, reference["contrast"])
            yield f"{start}_space-{space}_{tail}.nii.gz", path, {**more, "Sources": source_uris, **about}
        if isdefined(self.inputs.compartments_file):
            said = "Likeliest compartment of each voxel of the lesions; the look-up table names the labels."
            about = {"Manual": False, "Description": said, "Sources": source_uris, **here}
            yield f"{prefix}_space-orig_seg-lesions_dseg.nii.gz", self.inputs.compartments_file, about
        yield f"{prefix}_from-orig_to-{TEMPLATE}_mode-image_xfm.nii.gz", self.inputs.to_template, None
        yield f"{prefix}_from-{TEMPLATE}_to-orig_mode-image_xfm.nii.gz", self.inputs.to_subject, None
        rigid = iter(self.inputs.rigid_files if isdefined(self.inputs.rigid_files) else ())
        for scan in scans[1:]:
            contrast = scan["contrast"]
            yield f"{_prefix(scan)}_from-{contrast}_to-orig_mode-image_xfm.txt", next(rigid), None
            yield f"{_prefix(scan)}_from-orig_to-{contrast}_mode-image_xfm.txt", next(rigid), None

    def _chain(self, index: int) -> str:
        options = self.inputs.options
        steps = ["bias-corrected (N4)"]
        if options["denoise"]:
            steps.append("denoised (non-local means)")
        steps.append(
            {"zscore": "z-scored within the brain", "nyul": "normalised by Nyul's landmarks"}[options["normalization"]]
        )
        if index:
            steps.append(f"rigidly registered to the {self.inputs.session['scans'][0]['contrast']}")
        told = ", ".join(steps)
        return f"{told[:1].upper()}{told[1:]}."

    def _lookup_tables(self) -> Iterator[str]:
        """Write them beside the segmentations, one for all spaces (BIDS' inheritance), and give their names."""
        from bidsapp.labels import CORTICAL_LOOKUP, STRUCTURE_LOOKUP, TISSUE_LOOKUP, compartment_lookup

        folder = Path(self.inputs.out_dir) / self.inputs.session["folder"]
        tables = {
            "seg-tissue": TISSUE_LOOKUP,
            "seg-structures": STRUCTURE_LOOKUP,
            out_dataset.CORTEX_ATLAS: CORTICAL_LOOKUP,
        }
        if isdefined(self.inputs.compartments_file):
            tables["seg-lesions"] = compartment_lookup(self.inputs.compartments)
        for kind, table in tables.items():
            name = f"{self.inputs.session['prefix']}_{kind}_dseg.tsv"
            write_text(folder / name, out_dataset.lookup_table(table))
            yield name

    def _record(self) -> dict[str, Any]:
        """All but the ``outputs``."""
        from bidsapp.image.load import read_grid

        session = self.inputs.session
        inputs = []
        for scan, notes in zip([*session["scans"], *session.get("more_scans", [])], self.inputs.notes, strict=True):
            grid = read_grid(Path(scan["path"]))  # as it was used, whatever else the header says
            inputs.append(
                {key: value for key, value in scan.items() if key != "path"}
                | {
                    "bytes": Path(scan["path"]).stat().st_size,
                    "sha256": sha256(Path(scan["path"])),
                    "shape": list(grid.shape),
                    "voxel_size_mm": [round(size, 3) for size in voxel_size_mm(grid)],
                    "orientation": "".join(nib.aff2axcodes(grid.affine)),
                    "notes": list(notes),
                }
            )
        warnings = [warning for of_scan in self.inputs.warnings for warning in of_scan]
        notes = (
            self.inputs.brain_note, self.inputs.template_note, self.inputs.network_note, self.inputs.tissue_note,
            self.inputs.lesion_note,
        )  # fmt: skip
        warnings += dict.fromkeys(note for note in notes if note)
        contrasts = [scan["contrast"] for scan in session["scans"]]
        reservations = []
        if "T1w" not in contrasts and self.inputs.plan.get("tissue_model", "mixture") != "mixture":
            reservations.append(WITHOUT_T1W + (FLAIR_ALONE if contrasts == ["FLAIR"] else ""))
        if max(inputs[0]["voxel_size_mm"]) >= THICK_MM:
            reservations.append(THICK.format(contrast=contrasts[0], mm=max(inputs[0]["voxel_size_mm"])))
        if self.inputs.flags != "none":
            warnings += self.inputs.flags.split("; ")
        return {
            "version": __version__,
            "subject": session["subject"],
            "session": session["session"] or None,
            "reference": session["scans"][0]["contrast"],
            "contrasts": contrasts,
            "inputs": inputs,
            "options": dict(self.inputs.options),
            "methods": dict(self.inputs.plan),
            "not_measured": self._not_measured(),
            "warnings": warnings,
            "reservations": reservations,
        }

    def _not_measured(self) -> dict[str, str]:
        """Why a column of the volumes is n/a."""
        out = {}
        if self.inputs.not_separable_because:
            columns = ("gm_mm3", "wm_mm3", "gm_with_lesions_mm3", "wm_with_lesions_mm3", "lesion_load_percent_wm")
            out |= dict.fromkeys(columns, self.inputs.not_separable_because)
        if reason := self.inputs.plan["no_lesions_because"] or self.inputs.no_lesions_because:
            columns = ("lesion_mm3", "lesion_count", "lesion_load_percent_tiv", "lesion_load_percent_wm",
                       "gm_with_lesions_mm3", "wm_with_lesions_mm3")  # fmt: skip
            out |= dict.fromkeys(columns, reason)
        return out


def _product(name: str, reference: str) -> tuple[str, dict[str, Any]]:
    """End of the name, and what is particular in the sidecar."""
    if name.startswith("tissue_"):
        label = name.removeprefix("tissue_")
        return f"label-{label}_probseg", {"Description": f"Share of {label} in each voxel, lesions excluded."}
    ending, about = PRODUCTS[name]
    return ending.format(reference=reference), about


def _prefix(scan: Mapping[str, str]) -> str:
    return bids.derived_prefix(Path(scan["file"]).name)


def _copy(source: str, target: Path) -> None:
    """Copy aside, then rename."""
    with replacing(target) as aside:
        shutil.copyfile(source, aside)
