"""``bidsapp evaluate REF_DIR PRED_DIR ...``: how well segmentations agree with references (docs/evaluate.md)."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bidsapp.arguments import missing_labels
from bidsapp.errors import OK, PARTICIPANT_FAILED, AppError, InputError, NothingSelectedError, UsageError
from bidsapp.evaluate.options import Options, by_lesion, parse
from bidsapp.evaluate.scans import UNREADABLE, find_brains, find_scans, readable
from bidsapp.words import count_of

if TYPE_CHECKING:  # heavy: --help answers at once
    import numpy as np
    import pandas as pd

    from bidsapp.derivatives import LabelFile, Match

#: Names that a message lists.
LISTED = 20


def main(argv: Sequence[str]) -> int:
    """Run ``bidsapp evaluate``; the return value is the exit code."""
    return run(parse(argv))


# --- the run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loaded:
    """A case in memory, on the reference's grid along the axes nearest to RAS.

    Attributes
    ----------
    affine : ndarray, shape (4, 4)
    references, predictions : mapping
        Labels by rater and by name of the prediction; ndarray of int, shape (X, Y, Z). Masks are label 1.
    indices : mapping
        By name of the label: its number in the references, and in those predictions that have it.
    problems : mapping
        Why a prediction is missing, by its name.
    notes : tuple of str
    """

    affine: np.ndarray
    references: Mapping[str, np.ndarray]
    predictions: Mapping[str, np.ndarray]
    indices: Mapping[str, tuple[int, Mapping[str, int]]]
    problems: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def masks(self, label: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Of a label: the references by rater, and the predictions by name; ndarray of bool, shape (X, Y, Z)."""
        reference, numbers = self.indices[label]
        marked = {rater: data == reference for rater, data in self.references.items()}
        return marked, {name: self.predictions[name] == number for name, number in numbers.items()}


@dataclass
class Tables:
    """Rows as they come in."""

    cases: list[dict[str, Any]] = field(default_factory=list)
    lesions: list[dict[str, Any]] = field(default_factory=list)
    raters: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run(options: Options) -> int:
    """Compare, write tables and page; 1 where a pair could not be compared.

    Raises
    ------
    AppError
        Nothing could be compared at all.
    """
    from bidsapp.derivatives import grid_of

    grid_of.cache_clear()  # files may have changed since a run before
    groups = _read_groups(options)  # what is wrong with it is told before hours are spent on the cases
    matches, notes = _find(options)
    _check_lesions(matches, options)
    tables = Tables(notes=notes)
    for match in matches:
        _compare(match, options, tables)
    found = _together(tables, groups, options)
    _write(found, tables.notes, matches, options)
    failed = found["cases"]["problem"].notna()
    for note in tables.notes:
        print(note, file=sys.stderr)
    for _, row in found["cases"][failed].iterrows():
        print(f"{row['participant_id']} {row['segmentation']} {row['prediction']}: {row['problem']}", file=sys.stderr)
    if failed.all():
        raise InputError("No pair could be compared: see above.")
    return PARTICIPANT_FAILED if failed.any() else OK


def _find(options: Options) -> tuple[list[Match], list[str]]:
    """The cases, and a word on what is left out."""
    from bidsapp.derivatives import choose_pairs, find_labels, match_cases

    subjects = options.subjects or sorted({subject for subject, _ in options.cases or ()})
    every = {name: find_labels(folder, subjects=subjects) for name, folder in options.references.items()}
    raters = {name: _chosen(files, options) for name, files in every.items()}
    predictions = {
        name: _chosen(find_labels(folder, subjects=subjects), options) for name, folder in options.predictions.items()
    }
    marked = [one for files in raters.values() for one in files]
    if not marked:
        raise NothingSelectedError(
            "No reference of the chosen subjects and sessions: check --participant-label and --session-label."
        )
    pairs, notes = choose_pairs(marked, predictions, masks=options.labels, dsegs=options.segs)
    matches = match_cases(raters, predictions, pairs, space=options.space)
    if not matches:
        raise NothingSelectedError(f"No reference has space-{options.space}: leave --space out.")
    if not any(match.predictions for match in matches):
        told = next(why for match in matches for why in match.problems.values())
        raise NothingSelectedError(
            f"No prediction fits a reference. The first of {count_of(len(matches), 'case')}: {told}"
        )
    return matches, [*_left_out([one for files in every.values() for one in files], options), *notes]


def _chosen(files: Sequence[LabelFile], options: Options) -> list[LabelFile]:
    """Those of the sessions and cases asked for."""
    return [
        one for one in files
        if (not options.sessions or one.key[1] in options.sessions)
        and (options.cases is None or one.key in options.cases)
    ]  # fmt: skip


def _left_out(references: Sequence[LabelFile], options: Options) -> list[str]:
    """Subjects that have no sessions to choose from, and labels and cases asked for that have no reference."""
    plain = sorted({f"sub-{one.key[0]}" for one in references if not one.key[1]}) if options.sessions else []
    missing = sorted((options.cases or frozenset()) - {one.key for one in references})
    names = [f"sub-{subject}_ses-{session}" if session else f"sub-{subject}" for subject, session in missing]
    names += missing_labels([one.key for one in references], options.subjects, options.sessions)
    return [
        *([f"Left out by --session-label, since they have no sessions: {', '.join(plain)}."] if plain else []),
        *([f"There is no reference of {', '.join(names)}."] if names else []),
    ]


def _check_lesions(matches: Sequence[Match], options: Options) -> None:
    """Refuse --lesions that are no label of any case."""
    if not options.lesions:
        return
    known = {name for match in matches for name in _label_names(match, options)}
    unknown = [name for name in options.lesions if name not in known]
    if unknown:
        more = f" and {len(known) - LISTED} more" if len(known) > LISTED else ""
        raise UsageError(
            f"--lesions {', '.join(unknown)}: no such label; there is {', '.join(sorted(known)[:LISTED])}{more}."
        )


def _label_names(match: Match, options: Options) -> set[str]:
    """What labels of a case may be called: by the reference's look-up table, else by those of the predictions."""
    from bidsapp.derivatives import read_lookup

    if match.pair.reference.suffix == "mask":
        return {match.pair.reference.name}
    rater, reference = next(iter(match.references.items()))
    try:
        tables = [read_lookup(reference, options.references[rater])]
        if not tables[0]:
            tables = [read_lookup(one, options.predictions[name]) for name, one in match.predictions.items()]
    except AppError:  # told when the case is read
        return set(options.lesions)
    unnamed = {name for name in options.lesions if re.fullmatch(r"label \d+", name)}  # labels that no table names
    return unnamed | {
        form for table in tables for index, (name, _) in table.items() if index for form in (name, f"{name} ({index})")
    }


def _compare(match: Match, options: Options, tables: Tables) -> None:
    """One case: its rows, or why there are none."""
    from bidsapp.measure.evaluation import compare_masks

    who = _who(match)
    where = who | {"segmentation": str(match.pair)}
    try:
        loaded = load_case(match, options)
    except UNREADABLE as error:
        for name in options.predictions:
            tables.cases.append(where | {"label": match.pair.reference.name, "prediction": name, "problem": str(error)})
        return
    tables.notes += [note for note in (*match.notes, *loaded.notes) if note not in tables.notes]
    for name, why in loaded.problems.items():
        tables.cases.append(where | {"label": match.pair.reference.name, "prediction": name, "problem": why})
    first = next(iter(match.references.values()))
    for label in loaded.indices:
        references, predictions = loaded.masks(label)
        here = where | {"label": label}
        reference = _fused(references, options.fusion)
        if len(references) > 1:
            tables.raters += [here | row for row in _rater_rows(references, reference, loaded.affine)]
            _write_consensus(match, label, reference, loaded.affine, options)
        for name, prediction in predictions.items():
            row, lesions = compare_masks(
                reference, prediction, affine=loaded.affine, lesion_wise=by_lesion(label, options),
                minimum_lesion_mm3=options.minimum_lesion_mm3, borders_mm3=options.size_bins,
            )  # fmt: skip
            files = {
                "reference_file": _consensus_path(match, label, options).relative_to(options.out).as_posix()
                if len(references) > 1
                else _relative(first.path, options.references.values()),
                "prediction_file": _relative(match.predictions[name].path, options.predictions.values()),
            }
            tables.cases.append(here | {"prediction": name} | row | files)
            tables.lesions += [here | {"prediction": name} | lesion for lesion in lesions]
    _tell(match, tables)


def _tell(match: Match, tables: Tables) -> None:
    rows = [row for row in tables.cases if (row["segmentation"], _name(row)) == (str(match.pair), match.name)]
    by_name = {name: [r["dsc"] for r in rows if r["prediction"] == name and "dsc" in r] for name in
               dict.fromkeys(row["prediction"] for row in rows)}  # fmt: skip
    for name, values in by_name.items():
        known = [value for value in values if value == value]
        mean = f"{sum(known) / len(known):.3f}" if known else "n/a"
        told = f"mean DSC of {len(values)} labels {mean}" if len(values) > 1 else f"DSC {mean}"
        print(f"{match.name} {match.pair} {name}: {told if values else 'not compared'}", flush=True)


def _name(row: Mapping[str, Any]) -> str:
    return "_".join(part for part in (row["participant_id"], row["session_id"], row["scan"]) if part)


def _who(match: Match) -> dict[str, str]:
    return {
        "participant_id": f"sub-{match.subject}",
        "session_id": f"ses-{match.session}" if match.session else "",
        "scan": match.scan,
    }


def _relative(path: Path, folders: Any) -> str:
    home = next(folder for folder in folders if folder in path.parents)
    return path.relative_to(home).as_posix()


def load_case(match: Match, options: Options) -> Loaded:
    """Read references and predictions of a case, label by label.

    Raises
    ------
    InputError
        A reference cannot be used. What is wrong with a prediction is in `Loaded.problems`.
    """
    import nibabel as nib
    import numpy as np

    from bidsapp.image.label_file import read_labels, read_mask

    masks = match.pair.reference.suffix == "mask"

    def read(path: Path) -> Any:
        return nib.as_closest_canonical(read_mask(path) if masks else read_labels(path))

    references = {name: read(one.path) for name, one in match.references.items()}
    affine = next(iter(references.values())).affine
    arrays = {name: np.asarray(img.dataobj) for name, img in references.items()}
    predicted: dict[str, np.ndarray] = {}
    problems = dict(match.problems)
    for name, one in match.predictions.items():
        try:
            predicted[name] = np.asarray(read(one.path).dataobj)
        except AppError as error:
            problems[name] = str(error)
    if masks:
        numbers = {match.pair.reference.name: (1, dict.fromkeys(predicted, 1))}
        return Loaded(affine, arrays, predicted, numbers, problems)
    found, notes = _same_labels(match, options, arrays, predicted, problems)
    return Loaded(affine, arrays, predicted, found, problems, tuple(notes))


def _same_labels(
    match: Match,
    options: Options,
    references: Mapping[str, np.ndarray],
    predicted: Mapping[str, np.ndarray],
    problems: dict[str, str],
) -> tuple[dict[str, tuple[int, dict[str, int]]], list[str]]:
    """Labels of dsegs by name, matched by the look-up tables of the first rater and of each prediction."""
    import numpy as np

    from bidsapp.derivatives import pair_labels, read_lookup

    first, one = next(iter(match.references.items()))
    names = read_lookup(one, options.references[first])
    found: dict[str, tuple[int, dict[str, int]]] = {}
    notes: list[str] = []
    for name, data in predicted.items():
        try:
            theirs = read_lookup(match.predictions[name], options.predictions[name])
        except AppError as error:
            problems[name] = str(error)
            continue
        present = np.union1d(np.unique(data), np.unique(references[first])).tolist()
        labels, said = pair_labels(names, theirs, present=present)
        notes += [f"{match.pair}, {name}: {note}" for note in said]
        for label in labels:
            known = found.get(label.name, (label.reference, {}))
            # A table may give one name to two labels.
            title = label.name if known[0] == label.reference else f"{label.name} ({label.reference})"
            found.setdefault(title, (label.reference, {}))[1][name] = label.prediction
    return found, notes


# --- raters -----------------------------------------------------------------------------------------------------------


def _fused(references: Mapping[str, np.ndarray], fusion: str) -> np.ndarray:
    from bidsapp.measure.raters import majority, staple

    masks = list(references.values())
    if len(masks) == 1:
        return masks[0]
    return staple(masks).mask if fusion == "staple" else majority(masks)


def _rater_rows(
    references: Mapping[str, np.ndarray], consensus: np.ndarray, affine: np.ndarray
) -> Iterator[dict[str, Any]]:
    import numpy as np

    from bidsapp.measure.raters import fleiss_kappa, pairwise_dice, staple

    names, masks = list(references), list(references.values())
    found, dice = staple(masks), pairwise_dice(masks)
    # One by one: with the consensus among them, the most raters that there may be would be one too many.
    with_consensus = [float(pairwise_dice([consensus, mask])[0, 1]) for mask in masks]
    voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
    for i, name in enumerate(names):
        yield {"kind": "rater", "rater": name, "volume_mm3": float(masks[i].sum()) * voxel_mm3,
               "sensitivity": found.sensitivity[i], "specificity": found.specificity[i],
               "dsc": with_consensus[i]}  # fmt: skip
    for i, j in zip(*np.triu_indices(len(names), 1), strict=True):
        yield {"kind": "pair", "rater": names[i], "other": names[j], "dsc": float(dice[i, j])}
    pairs = dice[np.triu_indices(len(names), 1)]
    mean = float(np.nanmean(pairs)) if np.isfinite(pairs).any() else float("nan")
    yield {"kind": "all", "dsc": mean, "kappa": fleiss_kappa(masks), "volume_mm3": float(consensus.sum()) * voxel_mm3}


def _consensus_path(match: Match, label: str, options: Options) -> Path:
    one = next(iter(match.references.values()))
    entities = {k: v for k, v in one.entities.items() if k not in ("label", "seg", "desc", "atlas")}
    plain = "".join(c for c in label if c.isalnum())
    name = "_".join(f"{k}-{v}" for k, v in entities.items()) + f"_label-{plain}_desc-{options.fusion}_mask.nii.gz"
    folder = options.out / "consensus" / f"sub-{match.subject}"
    return (folder / f"ses-{match.session}" if match.session else folder) / "anat" / name


def _write_consensus(match: Match, label: str, mask: np.ndarray, affine: np.ndarray, options: Options) -> None:
    import nibabel as nib
    import numpy as np

    from bidsapp.image.save import write_image

    write_image(nib.Nifti1Image(mask.astype(np.uint8), affine), _consensus_path(match, label, options))


# --- together ---------------------------------------------------------------------------------------------------------


def _together(tables: Tables, groups: pd.Series | None, options: Options) -> dict[str, pd.DataFrame]:
    """All tables, by the names of their files."""
    import pandas as pd

    from bidsapp.measure import evaluation as ev

    cases = pd.DataFrame(tables.cases).reindex(columns=list(ev.CASE_COLUMNS))
    cases = cases[~_never_there(cases)]
    lesions = pd.DataFrame(tables.lesions, columns=list(ev.LESION_COLUMNS))
    done = cases[cases["problem"].isna()]
    names = list(options.predictions)
    tests = ev.compare_predictions(done, names)
    if groups is not None:
        large, said = _large_groups(groups, done, options)
        tables.notes += said
        apart = ev.compare_groups_of_subjects(done, large, names)
        tests = pd.concat([part for part in (tests, apart) if len(part)] or [tests], ignore_index=True)
    return {
        "cases": cases, "lesions": lesions, "summary": ev.summarise(done), "volumes": ev.agreement_of_volumes(done),
        "sizes": ev.detection_by_size(lesions, options.size_bins), "tests": tests,
        "raters": pd.DataFrame(tables.raters, columns=list(ev.RATER_COLUMNS)),
    }  # fmt: skip


def _never_there(cases: pd.DataFrame) -> pd.Series:
    """Rows of labels of dsegs that no image has: a look-up table lists more than there is."""
    amount = cases[["reference_volume_mm3", "prediction_volume_mm3"]].max(axis=1)
    largest = amount.groupby([cases["segmentation"], cases["label"]]).transform("max")
    return (largest == 0) & cases["segmentation"].str.startswith("seg-") & cases["problem"].isna()


def _read_groups(options: Options) -> pd.Series | None:
    """Group of each subject, NaN without; None where no groups are asked for."""
    import pandas as pd

    if options.participants is None:
        return None
    try:
        table = pd.read_csv(options.participants, sep="\t", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--participants {options.participants}: cannot be read ({error}).") from error
    for column in ("participant_id", options.group):
        if column not in table:
            raise UsageError(
                f"--participants {options.participants}: no column {column}; there is {', '.join(table.columns)}."
            )
    table = table.drop_duplicates("participant_id")
    labels = table["participant_id"].map(lambda label: label if str(label).startswith("sub-") else f"sub-{label}")
    groups = table[options.group].str.strip()
    return pd.Series(groups.where(~groups.isin(["", "n/a"])).to_numpy(), index=labels, name="group")


def _large_groups(groups: pd.Series, cases: pd.DataFrame, options: Options) -> tuple[pd.Series, list[str]]:
    """Subjects of groups that can be compared, and a word on the others."""
    from bidsapp.measure.comparisons import MINIMUM_COMPARED

    here = groups[groups.index.isin(cases["participant_id"])].dropna()
    without = sorted(set(cases["participant_id"]) - set(here.index))
    count = here.value_counts()
    small = sorted(count.index[count < MINIMUM_COMPARED])
    more = f" and {len(small) - LISTED} more" if len(small) > LISTED else ""
    notes = [f"Not in a group of {options.group}: {', '.join(without)}."] if without else []
    if small:
        notes.append(
            f"Groups of {options.group} with fewer than {MINIMUM_COMPARED} subjects are left out:"
            f" {', '.join(small[:LISTED])}{more}."
        )
    if len(count) - len(small) < 2:
        notes.append(f"--group {options.group}: no two groups are large enough, so nothing is compared.")
    return here[~here.isin(small)], notes


# --- writing ----------------------------------------------------------------------------------------------------------


def _write(found: Mapping[str, pd.DataFrame], notes: Sequence[str], matches: Sequence[Match], options: Options) -> None:
    from bidsapp import __version__
    from bidsapp.measure import evaluation as ev
    from bidsapp.out_dataset import BIDS_VERSION
    from bidsapp.writing import write_frame, write_json

    if len(options.references) > 1:
        write_json(options.out / "consensus" / "dataset_description.json", {
            "Name": f"Consensus of {', '.join(options.references)}", "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative", "GeneratedBy": [{"Name": "bidsapp evaluate", "Version": __version__}],
        })  # fmt: skip
    columns = {
        "cases": ev.CASE_COLUMNS, "lesions": ev.LESION_COLUMNS, "summary": ev.SUMMARY_COLUMNS,
        "volumes": ev.VOLUME_COLUMNS, "sizes": ev.SIZE_COLUMNS, "tests": ev.TEST_COLUMNS, "raters": ev.RATER_COLUMNS,
    }  # fmt: skip
    written = []
    for name, table in found.items():
        stem = "evaluation" if name == "cases" else f"evaluation_{name}"
        if table.empty:
            for suffix in (".tsv", ".json"):
                (options.out / f"{stem}{suffix}").unlink(missing_ok=True)
            continue
        write_frame(options.out / stem, table.replace("", "n/a"), columns[name])
        written.append(f"{stem}.tsv")
    _write_page(found, notes, matches, tuple(written), options)


def _write_page(
    found: Mapping[str, pd.DataFrame],
    notes: Sequence[str],
    matches: Sequence[Match],
    files: tuple[str, ...],
    options: Options,
) -> None:
    from bidsapp.report.assemble import assemble_evaluation
    from bidsapp.report.evaluation import Given, view_evaluation

    given = Given(
        tables=found, names=tuple(options.predictions), references=tuple(options.references), fusion=options.fusion,
        minimum_lesion_mm3=options.minimum_lesion_mm3, borders_mm3=options.size_bins, group=options.group,
        notes=tuple(notes), drawn=tuple(_pictures(found["cases"], matches, options)), files=files,
    )  # fmt: skip
    print(assemble_evaluation(options.out / "evaluation.html", view_evaluation(given)))


# --- pictures ---------------------------------------------------------------------------------------------------------


def _pictures(cases: pd.DataFrame, matches: Sequence[Match], options: Options) -> Iterator[Any]:
    """Pictures of the cases with the lowest Dice coefficients; of a dseg, of its worst label."""
    from bidsapp.report.evaluation import Drawn
    from bidsapp.report.evaluation_pictures import draw_case

    by_case = {(match.name, str(match.pair)): match for match in matches}
    known = cases[cases["dsc"].notna()].assign(
        name=[_name(row) for row in cases[cases["dsc"].notna()].to_dict("records")]
    )
    worst = known.sort_values("dsc", kind="stable").drop_duplicates(["name", "segmentation"])
    for row in worst.head(options.pictures).to_dict("records"):
        match = by_case[row["name"], row["segmentation"]]
        try:
            loaded = load_case(match, options)
        except UNREADABLE:  # it was readable a moment ago
            continue
        references, predictions = loaded.masks(row["label"])
        scan, said = readable(find_scans(match, row["label"], options))
        brain, _ = readable(find_brains(match, options))
        picture = draw_case(
            _fused(references, options.fusion),
            [predictions[name] for name in options.predictions if name in predictions],
            affine=loaded.affine,
            scan=scan,
            brain=None if brain is None else brain > 0,
        )
        yield Drawn(row["name"], row["segmentation"], row["label"], said, picture)
