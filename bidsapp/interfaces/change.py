"""Changes between a subject's sessions, from the files the sessions left in OUT_DIR: read, pure calls, write.

Nothing here looks at intermediate files: the sessions may have been segmented by other runs, on other machines.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from bidsapp import __version__
from bidsapp.interfaces.files import load
from bidsapp.interfaces.finished import FLAIR, Finished
from bidsapp.labels import HALFWAY, LESION_ORDER, REFERENCE_ORDER, TEMPLATE
from bidsapp.measure import comparability
from bidsapp.out_dataset import lookup_table
from bidsapp.writing import json_or_nothing, sha256, write_json, write_table, write_text

SPACE = HALFWAY
#: Changes whenever what is computed here does: results of other versions are made again.
METHOD = 4
#: What makes two sessions less comparable, beside their scans (`measure.comparability`): registrations that disagree by
#: more than a voxel; brains of which less than this is seen by both.
LEAST_AGREEMENT_MM, LEAST_COMMON_PERCENT = 1.0, 90.0
#: Next to what a FLAIR does not show voxels are air in part (mm); a note where so much less of the brain is compared.
EDGE_MM, CUT_PERCENT = 3.0, 3.0


def record_of_changes(sessions: Sequence[Finished], dates: Mapping[str, Any]) -> dict[str, Any]:
    """What the changes are made from; they are made again when it differs."""
    return {
        "version": __version__,
        "method": METHOD,
        "sessions": [one.record["session"] for one in sessions],
        "records": {one.record["session"]: sha256(one.record_file) for one in sessions},
        "dates": {label: when.isoformat() for label, when in sorted(dates.items())},
    }


def is_current(out_dir: Path, subject: str, wanted: Mapping[str, Any]) -> bool:
    """Whether the changes on disk were made from just that, and all their files are in place."""
    record = json_or_nothing(_record_file(out_dir, subject))
    outputs = record.pop("outputs", None)
    try:
        sizes = {name: (out_dir / name).stat().st_size for name in outputs} if isinstance(outputs, dict) else {}
    except OSError:
        return False
    return record == wanted and sizes == outputs


def write_changes(
    out_dir: Path, subject: str, sessions: Sequence[Finished], dates: Mapping[str, Any], wanted: Mapping[str, Any]
) -> Path:
    """Compare the sessions of a subject and write what changed; the record comes last.

    Parameters
    ----------
    out_dir : Path
    subject : str
        Label.
    sessions : sequence of Finished
        At least two, in order.
    dates : mapping of str to datetime
        By session label, as far as they are known.
    wanted : mapping
        From `record_of_changes`.

    Returns
    -------
    Path
        The record.
    """
    remove_changes(out_dir, subject)  # of an earlier comparison, perhaps of other sessions
    record_file = _record_file(out_dir, subject)
    written = list(_write_all(out_dir, subject, sessions, dates))
    outputs = {path.relative_to(out_dir).as_posix(): path.stat().st_size for path in sorted(written)}
    write_json(record_file, {**wanted, "outputs": outputs})
    return record_file


def remove_changes(out_dir: Path, subject: str) -> None:
    """Take away what an earlier comparison wrote: the record first, so that nobody takes the rest for valid."""
    record_file = _record_file(out_dir, subject)
    record_file.unlink(missing_ok=True)
    folder, name = record_file.parent, f"sub-{subject}"
    tables = [folder / f"{name}_{kind}{end}" for kind in ("changes", "lesionchanges") for end in (".tsv", ".json")]
    figures = (out_dir / name / "figures").glob(f"{name}_desc-change*.png")
    maps = [
        path for what in (f"space-{SPACE}_*", f"*-{SPACE}_*", "seg-change_*") for path in folder.glob(f"{name}_{what}")
    ]
    for old in (*tables, *figures, *maps, out_dir / f"{name}_changes.html"):
        old.unlink(missing_ok=True)


def has_changes(out_dir: Path, subject: str) -> bool:
    """Whether an earlier comparison is there."""
    return _record_file(out_dir, subject).is_file()


def _record_file(out_dir: Path, subject: str) -> Path:
    return out_dir / f"sub-{subject}" / "anat" / f"sub-{subject}_desc-changes_provenance.json"


def _write_all(out_dir: Path, subject: str, sessions: Sequence[Finished], dates: Mapping[str, Any]) -> Iterator[Path]:
    from bidsapp.image.halfway import halfway_space
    from bidsapp.labels import CHANGE_LOOKUP
    from bidsapp.measure import change

    folder, name = _record_file(out_dir, subject).parent, f"sub-{subject}"
    contrast = common_contrast(sessions)
    halfway = halfway_space(
        [one.scan(contrast or one.record["reference"]) for one in sessions], [one.mask for one in sessions]
    )
    yield from _write_space(folder, name, sessions, halfway, contrast or sessions[0].record["reference"])
    intervals, lesions = [], []
    for index in range(len(sessions) - 1):
        pair = _Pair(out_dir, name, sessions[index], sessions[index + 1], index, halfway)
        row, rows = yield from _interval(pair, dates)
        intervals.append(row)
        lesions += rows
    table = folder / f"{name}_seg-change_dseg.tsv"
    write_text(table, lookup_table(CHANGE_LOOKUP))
    yield table
    for kind, rows, dictionary in (
        ("changes", intervals, change.INTERVAL_COLUMNS),
        ("lesionchanges", lesions, change.LESION_CHANGE_COLUMNS),
    ):
        yield from _write_rows(folder / f"{name}_{kind}", name, rows, dictionary)


def common_contrast(sessions: Sequence[Finished]) -> str | None:
    """What the sessions are registered by: FLAIR where all have it, since lesions are compared on it, else another."""
    return next((name for name in LESION_ORDER if all(name in one.contrasts for one in sessions)), None)


def _write_space(folder: Path, name: str, sessions: Sequence[Finished], halfway: Any, contrast: str) -> Iterator[Path]:
    """The mean scan that shows the space, and the transforms to and from every session."""
    from bidsapp.image.grid import on_grid
    from bidsapp.image.halfway import carry
    from bidsapp.image.itk import write_itk_affine
    from bidsapp.image.save import as_int16, write_image

    shown = [index for index, one in enumerate(sessions) if contrast in one.contrasts]
    scans = [np.asarray(carry(sessions[index].scan(contrast), halfway, index).dataobj) for index in shown]
    mean = folder / f"{name}_space-{SPACE}_desc-mean_{contrast}.nii.gz"
    write_image(as_int16(on_grid(np.asarray(np.mean(scans, axis=0, dtype=np.float32)), halfway.grid)), mean)
    yield mean
    about = {
        "SkullStripped": False,
        "Sources": [f"bids::{sessions[index].path(f'_desc-preproc_{contrast}.nii.gz').relative_to(folder.parents[1])}"
                    for index in shown],
        "SpatialReference": _reference(name, contrast),
        "Description": "Mean of the sessions' scans in the space half-way between them.",
    }  # fmt: skip
    write_json(sidecar := mean.with_name(mean.name.replace(".nii.gz", ".json")), about)
    yield sidecar
    for one, matrix in zip(sessions, halfway.transforms, strict=True):
        there = folder / f"{name}_{one.label}_from-orig_to-{SPACE}_mode-image_xfm.txt"
        back = folder / f"{name}_{one.label}_from-{SPACE}_to-orig_mode-image_xfm.txt"
        write_itk_affine(matrix, there)
        write_itk_affine(np.linalg.inv(matrix), back)
        yield from (there, back)


def _reference(name: str, contrast: str) -> str:
    return f"bids::{name}/anat/{name}_space-{SPACE}_desc-mean_{contrast}.nii.gz"


@dataclass(frozen=True)
class _Pair:
    """Two sessions that follow each other, and the space between all of them."""

    out_dir: Path
    name: str
    first: Finished
    second: Finished
    index: int
    halfway: Any

    @property
    def both(self) -> tuple[tuple[Finished, int], ...]:
        return (self.first, self.index), (self.second, self.index + 1)

    def carried(self, which: int, image: nib.Nifti1Image, interpolation: str = "linear") -> np.ndarray:
        """An image of the first (0) or second (1) session in the half-way space."""
        from bidsapp.image.halfway import carry

        img = carry(image, self.halfway, self.index + which, interpolation=interpolation)
        return np.asarray(img.dataobj)

    def carried_mask(self, which: int, mask: np.ndarray, like: nib.Nifti1Image) -> np.ndarray:
        return self.carried(which, nib.Nifti1Image(mask.astype(np.float32), like.affine)) > 0.5


def _interval(pair: _Pair, dates: Mapping[str, Any]) -> Any:  # a generator of paths that returns (row, rows of lesions)
    from bidsapp.measure import change

    row: dict[str, Any] = {
        "session_from": pair.first.label,
        "session_to": pair.second.label,
        "years": _years(pair, dates),
        "minimum_change_mm3": change.minimum_change_mm3(pair.first.edges + pair.second.edges),
        "registration_disagreement_mm": max(_disagreements(pair)),
    }
    notes = list(_comparability(pair))
    rows: list[dict[str, Any]] = []
    dsegs = [load(one.path("_seg-tissue_dseg.nii.gz")) for one, _ in pair.both]
    brains = [pair.carried_mask(which, np.asarray(one.mask.dataobj) > 0, one.mask)
              for which, (one, _) in enumerate(pair.both)]  # fmt: skip
    row["common_brain_percent"] = _common_percent(brains)
    if row["common_brain_percent"] < LEAST_COMMON_PERCENT:
        notes.append(f"only {row['common_brain_percent']:.0f} % of the brain is seen by both sessions")
    notes += _undated(pair, dates)
    if pair.first.has_lesions and pair.second.has_lesions:
        try:
            visits = [_visit(pair, which, dsegs[which], brains[which]) for which in (0, 1)]
            on_flair = _common_percent([visit.brain for visit in visits])
            if on_flair < row["common_brain_percent"] - CUT_PERCENT:
                notes.append(f"lesions were compared in {on_flair:.0f} % of the brain, which both FLAIRs show")
            found = change.compare(*visits, voxel_mm3=1.0, minimum_mm3=row["minimum_change_mm3"])
        except ValueError as error:
            notes.append(f"lesions were not compared: {error}")
        else:
            row |= change.interval_row(found, *visits, voxel_mm3=1.0)
            rows = _lesion_rows(pair, found)
            yield from _write_map(pair, found)
            yield from _draw(pair, visits, found)
    else:
        notes.append(
            "lesions were not compared: they were not looked for, or there is no FLAIR, in one of the sessions"
        )
    row["brain_change_percent"] = _brain_change(pair, dsegs, brains)
    if row["brain_change_percent"] is None:
        notes.append("the change of the brain's volume was not measured: the scans differ in more than the brain")
    row |= change.rates(row)
    row["notes"] = "; ".join(notes) or "none"
    return row, rows


def _common_percent(brains: Sequence[np.ndarray]) -> float:
    return 100 * float((brains[0] & brains[1]).sum() / max(1, (brains[0] | brains[1]).sum()))


def _undated(pair: _Pair, dates: Mapping[str, Any]) -> list[str]:
    """A word where a date is missing, and the labels (``pre``, ``post``) do not tell which session was first."""
    from bidsapp.measure.cohort import natural

    labels = [one.record["session"] for one, _ in pair.both]
    missing = [f"ses-{label}" for label in labels if label not in dates]
    numbered = all(any(sign.isdigit() for sign in label) for label in labels)
    if not missing or (numbered and natural(labels[0]) < natural(labels[1])):
        return []
    return [f"the dataset gives no date of {' and '.join(missing)}: earlier and later may be exchanged"]


def _years(pair: _Pair, dates: Mapping[str, Any]) -> float | None:
    from bidsapp.measure.cohort import DAYS_PER_YEAR

    days = [dates.get(one.record["session"]) for one, _ in pair.both]
    if days[0] is None or days[1] is None:
        return None
    return float((days[1] - days[0]).total_seconds() / 86400 / DAYS_PER_YEAR)


def _disagreements(pair: _Pair) -> list[float]:
    """Of the registrations of either session to the first of all."""
    known = [0.0, *pair.halfway.disagreement_mm]
    return [known[index] for _, index in pair.both]


def _comparability(pair: _Pair) -> Iterator[str]:
    yield from _protocol(pair)
    if differing := _processed_differently(pair.first.record, pair.second.record):
        yield f"processed differently ({', '.join(differing)}): run both sessions with the same options and version"
    if (worst := max(_disagreements(pair))) > LEAST_AGREEMENT_MM:
        yield f"the registrations disagree by {worst:.1f} mm: look at the pictures"


def _processed_differently(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Which of the options, the networks and the version differ between two records."""
    facts = [
        {"version": one.get("version"), "networks": one.get("methods", {}).get("networks"), **one.get("options", {})}
        for one in (first, second)
    ]
    names = dict.fromkeys([*facts[0], *facts[1]])
    return [name.replace("_", " ") for name in names if facts[0].get(name) != facts[1].get(name)]


def _protocol(pair: _Pair) -> Iterator[str]:
    """What of the scans themselves differs between the sessions."""
    first, second = pair.first, pair.second
    records = [first.record, second.record]
    if comparability.contrasts_differ(records):
        yield f"segmented from {'+'.join(first.contrasts)} and from {'+'.join(second.contrasts)}"
    for contrast in (name for name in REFERENCE_ORDER if name in first.contrasts and name in second.contrasts):
        if comparability.voxels_differ(records, contrast):
            edges = [comparability.edges(record, contrast) for record in records]
            sizes = [" x ".join(f"{edge:.2g}" for edge in some) for some in edges]
            yield f"voxels of {contrast} differ: {sizes[0]} and {sizes[1]} mm"
    before, after = first.intracranial_mm3, second.intracranial_mm3
    if before is not None and after is not None and comparability.heads_differ([before, after]):
        yield (
            f"the estimated intracranial volume differs by {100 * (after / before - 1):+.1f} %: the scanners may not"
            " agree on lengths"
        )


def _visit(pair: _Pair, which: int, dseg: nib.Nifti1Image, brain: np.ndarray) -> Any:
    from nibabel.affines import voxel_sizes
    from scipy import ndimage

    from bidsapp.image.preprocess import only_seen
    from bidsapp.labels import PARENCHYMA, WM
    from bidsapp.measure.change import Visit

    one = pair.both[which][0]
    labels = np.asarray(dseg.dataobj)
    lesion, flair = load(one.path("_label-lesion_mask.nii.gz")), one.scan(FLAIR)
    # Where a FLAIR shows nothing it is as dark as air, and every lesion there would be one that came or went.
    seen = np.isfinite(only_seen(np.asarray(flair.dataobj), np.asarray(one.mask.dataobj) > 0))
    if not seen.all():
        depth = ndimage.distance_transform_edt(seen, sampling=voxel_sizes(flair.affine))
        brain = brain & pair.carried_mask(which, depth > EDGE_MM, flair)
    return Visit(
        lesion=pair.carried_mask(which, np.asarray(lesion.dataobj) > 0, lesion),
        flair=pair.carried(which, flair),
        brain=brain,
        white=pair.carried_mask(which, np.isin(labels, (WM.index, PARENCHYMA.index)), dseg),
    )


def _brain_change(pair: _Pair, dsegs: Sequence[nib.Nifti1Image], brains: Sequence[np.ndarray]) -> float | None:
    """Percent, or None where the sessions' scans differ in more than the brain.

    A deformation cannot tell another protocol or scanner from atrophy: on real pairs of other voxels and contrasts,
    where the estimates of the intracranial volume differed by 0.4 to 4 %, it made changes of -1.3 to +3.4 %.
    """
    from bidsapp.image.grid import on_grid
    from bidsapp.image.halfway import carry, jacobians
    from bidsapp.image.resample import field_of_view
    from bidsapp.labels import CSF
    from bidsapp.measure.change import mean_volume_change

    if any(_protocol(pair)):
        return None
    common = brains[0] & brains[1]
    tissue = []
    for which in (0, 1):
        labels = np.asarray(dsegs[which].dataobj)
        tissue.append(pair.carried_mask(which, (labels > 0) & (labels != CSF.index), dsegs[which]) & common)
    if not (tissue[0].any() and tissue[1].any()):
        return None
    contrast = next(name for name in REFERENCE_ORDER if name in pair.first.contrasts)
    native = [one.scan(contrast) for one, _ in pair.both]
    transforms = [pair.halfway.transforms[index] for _, index in pair.both]
    seen = [field_of_view(img, pair.halfway.grid, matrix) for img, matrix in zip(native, transforms, strict=True)]
    scans = [carry(img, pair.halfway, index) for img, (_, index) in zip(native, pair.both, strict=True)]
    near = on_grid(brains[0] | brains[1], pair.halfway.grid)
    fields = jacobians(scans[0], scans[1], near, seen=seen[0] & seen[1])
    return mean_volume_change(fields, tissue)


def _lesion_rows(pair: _Pair, found: Any) -> list[dict[str, Any]]:
    """The table of `change.compare` with places, and the lesions of the sessions' own tables."""
    own = [_own_lesions(pair, which, found) for which in (0, 1)]
    regions = [_regions(one) for one, _ in pair.both]
    centroids = _centroids(pair, found)
    rows = []
    for row, place, in_mni in zip(found.table.to_dict("records"), centroids, _in_mni(pair, centroids), strict=True):
        ids = [own[which].get(row["change_id"], []) for which in (0, 1)]
        which = 1 if ids[1] else 0
        largest = min(ids[which], default=None)  # lesions are numbered by size
        rows.append({
            "session_from": pair.first.label,
            "session_to": pair.second.label,
            **row,
            **{f"halfway_{axis}_mm": float(value) for axis, value in zip("xyz", place, strict=True)},
            **{f"mni_{axis}_mm": float(value) for axis, value in zip("xyz", in_mni, strict=True)},
            "lesions_from": ",".join(map(str, ids[0])) or None,
            "lesions_to": ",".join(map(str, ids[1])) or None,
            "region": None if largest is None else regions[which].get(largest),
        })  # fmt: skip
    return rows


def _own_lesions(pair: _Pair, which: int, found: Any) -> dict[int, list[int]]:
    """Numbers in the session's table of the lesions that each row is made of."""
    from bidsapp.image.morphology import label_lesions

    one = pair.both[which][0]
    mask = load(one.path("_label-lesion_mask.nii.gz"))
    labels, _ = label_lesions(np.asarray(mask.dataobj) > 0)
    carried = pair.carried(which, nib.Nifti1Image(labels.astype(np.int32), mask.affine), "nearest").astype(int)
    meet = (carried > 0) & (found.lesions > 0)
    pairs = np.unique(np.stack([found.lesions[meet], carried[meet]], axis=-1), axis=0)
    out: dict[int, list[int]] = {}
    for change_id, lesion_id in pairs.tolist():
        out.setdefault(change_id, []).append(lesion_id)
    status = found.table.set_index("change_id")
    empty = "volume_from_mm3" if which == 0 else "volume_to_mm3"
    return {change_id: ids for change_id, ids in out.items() if status.loc[change_id, empty] > 0}


def _regions(one: Finished) -> dict[int, str]:
    import pandas as pd

    path = next(one.out_dir / name for name in one.record["outputs"] if name.endswith("_lesions.tsv"))
    table = pd.read_csv(path, sep="\t", keep_default_na=False)
    return dict(zip(table["lesion_id"], table["region"], strict=True)) if "region" in table else {}


def _centroids(pair: _Pair, found: Any) -> np.ndarray:
    """Centroids of the rows' lesions in the half-way space, mm; shape (n, 3)."""
    from nibabel.affines import apply_affine
    from scipy import ndimage

    ids = found.table["change_id"].to_numpy()
    if not len(ids):
        return np.zeros((0, 3))
    centres = np.atleast_2d(ndimage.center_of_mass(found.lesions > 0, found.lesions, ids))
    return np.asarray(apply_affine(pair.halfway.grid.affine, centres))


def _in_mni(pair: _Pair, points: np.ndarray) -> np.ndarray:
    """Points of the half-way space in MNI mm, by way of the later session; shape (n, 3)."""
    from nibabel.affines import apply_affine

    from bidsapp.image.results import carry_points

    if not len(points):
        return points
    in_second = apply_affine(pair.halfway.transforms[pair.index + 1], points)
    return carry_points(in_second, load(pair.second.path(f"_from-{TEMPLATE}_to-orig_mode-image_xfm.nii.gz")))


def _write_map(pair: _Pair, found: Any) -> Iterator[Path]:
    from bidsapp.image.grid import on_grid
    from bidsapp.image.save import write_image

    folder = _record_file(pair.out_dir, pair.name.removeprefix("sub-")).parent
    path = folder / f"{pair.name}_space-{SPACE}_seg-change_desc-{_word(pair)}_dseg.nii.gz"
    write_image(on_grid(found.map, pair.halfway.grid), path)
    yield path
    masks = [one.path("_label-lesion_mask.nii.gz").relative_to(pair.out_dir).as_posix() for one, _ in pair.both]
    mean = next(folder.glob(f"{pair.name}_space-{SPACE}_desc-mean_*.nii.gz"))
    about = {
        "Manual": False,
        "Sources": [f"bids::{name}" for name in masks],
        "SpatialReference": f"bids::{mean.relative_to(pair.out_dir).as_posix()}",
        "Description": f"What became of lesions between {pair.first.label} and {pair.second.label}.",
    }
    write_json(sidecar := path.with_name(path.name.replace(".nii.gz", ".json")), about)
    yield sidecar


def _draw(pair: _Pair, visits: Sequence[Any], found: Any) -> Iterator[Path]:
    from bidsapp.report.change_pictures import draw_change

    pictures = draw_change(
        flairs=[visit.flair for visit in visits],
        brain=found.common,
        lesions=[visit.lesion for visit in visits],
        change=found.map,
        affine=pair.halfway.grid.affine,
    )
    for kind, png in sorted(pictures.items()):
        path = pair.out_dir / pair.name / "figures" / f"{pair.name}_desc-change{_word(pair)}{kind}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png)
        yield path


def _word(pair: _Pair) -> str:
    return f"{pair.first.record['session']}to{pair.second.record['session']}"


def _write_rows(
    path: Path, name: str, rows: Sequence[Mapping[str, Any]], dictionary: Mapping[str, Mapping[str, Any]]
) -> tuple[Path, Path]:
    from bidsapp.measure.volumes import KEY_COLUMNS

    whole = [{"participant_id": name, **{column: row.get(column) for column in dictionary}} for row in rows]
    return write_table(path, whole, KEY_COLUMNS | dict(dictionary), ["participant_id", *dictionary])
