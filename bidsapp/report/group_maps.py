"""The group's maps in MNI space: which images go in, what is tested and written, and their pictures."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bidsapp.image.save import write_image
from bidsapp.image.template import load_template
from bidsapp.labels import TEMPLATE
from bidsapp.measure import cohort
from bidsapp.measure.maps import DifferenceMap, MeanMap, lesion_difference, mean_map
from bidsapp.measure.morphometry import FWHM_MM, EffectMap, morphometry
from bidsapp.report.analysis import Analysis, Options
from bidsapp.report.group import Picture
from bidsapp.report.group_figures import LOG_P_LIMIT, save, slices
from bidsapp.report.wording import millilitres
from bidsapp.words import count_of, enumerate_words
from bidsapp.writing import write_json

FOLDER = "group_maps"
TISSUES = ("GM", "WM", "CSF")
MODULATED = "modulated GM"
#: Images by the end of their names.
ENDS = {
    "lesion": "label-lesion_mask",
    **{tissue: f"label-{tissue}_probseg" for tissue in TISSUES},
    MODULATED: "label-GM_desc-modulated_probseg",
}
#: Smaller t of morphometry are left clear, so that the anatomy is seen.
SHOWN_T = 2.0
#: Of the packaged template (docs/architecture.md).
TEMPLATE_SHAPE = (197, 233, 189)
SLICES_TOLD = "Slices are chosen to show what is significant, the largest cluster first, else the peak. Left is left."
_START = f"group_space-{TEMPLATE}"


def maps_of_before(out_dir: Path) -> list[str]:
    """A note where maps of an earlier run are there, for a run that makes none and leaves them, as they took long."""
    if not any((out_dir / FOLDER).glob("group_*.nii.gz")):
        return []
    return [f"The maps in {FOLDER}/ are those of an earlier run, perhaps of other subjects: --no-maps made none."]


def make_maps(
    out_dir: Path, analysis: Analysis, options: Options, *, say: Callable[[str], None]
) -> tuple[list[Picture], list[str]]:
    """Write lesion frequency, mean tissue maps, the difference of two groups, and voxel-based morphometry.

    Of images in MNI space, as far as they are there; one session of each subject, the first with the image in question.

    Returns
    -------
    pictures : list of Picture
    notes : list of str
        What could not be made, and why.
    """
    for old in sorted((out_dir / FOLDER).glob("group_*")):
        old.unlink()
    images = {kind: _images(out_dir, analysis, kind) for kind in ENDS}
    images = {kind: found for kind, found in images.items() if found}
    if not images:
        return [], []
    say(f"Maps in MNI space: {', '.join(f'{kind} of {len(found)}' for kind, found in images.items())} subjects.")
    paths = {kind: [path for _, path in found] for kind, found in images.items() if kind != MODULATED}
    means = _means(paths, options.processes)
    notes = [f"Left out of the maps: {why}" for mean in means.values() if mean for why in mean.skipped]
    about: dict[str, Any] = {}
    pictures: list[Picture] = []
    tissues: list[tuple[str, MeanMap]] = []
    for kind, mean in means.items():
        if mean is None:
            continue
        desc = "frequency" if kind == "lesion" else "mean"
        name = f"{_START}_label-{kind}_desc-{desc}_map.nii.gz"
        write_image(_rounded(mean.mean), out_dir / FOLDER / name)
        what = "Share of subjects with a lesion in the voxel." if kind == "lesion" else f"Mean {kind} probability."
        about[name] = {"Description": what, "Subjects": mean.count}
        if kind == "lesion":
            pictures.append(_lesion_picture(out_dir, mean, name))
        else:
            tissues.append((kind, mean))
    if tissues:
        pictures.append(_tissue_picture(out_dir, tissues, [name for name in about if "_desc-mean_" in name]))
    difference, why = _difference(images.get("lesion", []), analysis, options)
    notes += why
    if difference is not None:
        pictures.append(_write_difference(out_dir, difference, analysis, about))
    effect, why = _morphometry(images.get(MODULATED, []), analysis, options)
    notes += why
    if effect is not None:
        pictures.append(_write_effect(out_dir, *effect, about))
    write_json(out_dir / FOLDER / "group_maps.json", about)
    return pictures, notes


def _images(out_dir: Path, analysis: Analysis, kind: str) -> list[tuple[int, Path]]:
    """(row of the table, image) of each subject's first session that has one."""
    found: dict[str, tuple[int, Path]] = {}
    for place, row in enumerate(analysis.volumes[cohort.KEYS].to_dict("records")):
        subject, session = str(row["participant_id"]), row["session_id"]
        if subject in found:
            continue
        folder = out_dir / subject / ("" if pd.isna(session) else str(session)) / "anat"
        paths = sorted(folder.glob(f"{subject}*_space-{TEMPLATE}_{ENDS[kind]}.nii.gz"))
        if paths:
            found[subject] = (place, paths[0])
    return list(found.values())


def _means(paths: dict[str, list[Path]], processes: int) -> dict[str, MeanMap | None]:
    """Each kind of map in a process of its own: sums stay in order, so the bytes do not depend on their number."""
    if processes < 2 or len(paths) < 2:
        return {kind: mean_map(some) for kind, some in paths.items()}
    with ProcessPoolExecutor(min(processes, len(paths))) as pool:
        return dict(zip(paths, pool.map(mean_map, paths.values()), strict=True))


def _difference(
    lesions: Sequence[tuple[int, Path]], analysis: Analysis, options: Options
) -> tuple[DifferenceMap | None, list[str]]:
    group = analysis.design.group
    if group is None or not lesions:
        return None, []
    levels = list(analysis.frame[group].cat.categories)
    if len(levels) != 2:
        return None, [f"Lesion frequency was not compared: {group} has {len(levels)} levels, two are wanted."]
    rows = analysis.frame.iloc[[place for place, _ in lesions]]
    adjusting = _adjusting_lesions(analysis)
    known, confounds = _adjusted_for(rows, group, adjusting)
    notes = _for_want("Lesion frequency", known, rows[[group, *adjusting]], left_out_of=" of the comparison of groups")
    try:
        return lesion_difference(
            [path for (_, path), use in zip(lesions, known, strict=True) if use],
            (rows[group] == levels[1]).to_numpy()[known],
            confounds=confounds,
            permutations=options.permutations,
            random_seed=options.random_seed,
        ), notes
    except (OSError, ValueError) as error:
        return None, [*notes, f"Lesion frequency was not compared between the groups: {_why(error)}"]


def _why(error: OSError | ValueError) -> str:
    """Why there is no test. Both keep their images in a temporary file: some folders hold no more than 64 MB."""
    if isinstance(error, ValueError):
        return str(error)
    return (
        f"the temporary folder {tempfile.gettempdir()} could not hold the images ({error.strerror or error});"
        " TMPDIR names another."
    )


def _adjusting_lesions(analysis: Analysis) -> list[str]:
    """The columns that the comparison of lesion frequency is adjusted for."""
    design = analysis.design
    return [name for name in (design.age, design.sex, design.site) if name]


@dataclass(frozen=True)
class _Question:
    """What morphometry asks, in words, and adjusted for which columns."""

    words: str
    adjusted: tuple[str, ...]


def _morphometry(
    images: Sequence[tuple[int, Path]], analysis: Analysis, options: Options
) -> tuple[tuple[EffectMap, _Question] | None, list[str]]:
    """Gray matter and the group, where it has two levels; else gray matter and age, whatever the group."""
    design = analysis.design
    if not images:
        return None, []
    levels = list(analysis.frame[design.group].cat.categories) if design.group else []
    column = design.group if len(levels) == 2 else design.age
    if column is None:
        return None, ["Gray matter was not tested voxel by voxel: there are neither two groups nor ages."]
    words = f"{levels[1]} minus {levels[0]}" if column == design.group else f"with {column}"
    known_as = [name for name in (design.group, design.age, design.sex, design.site, design.tiv) if name]
    question = _Question(words, tuple(name for name in known_as if name != column))
    rows = analysis.frame.iloc[[place for place, _ in images]]
    known, confounds = _adjusted_for(rows, column, question.adjusted)
    used = [one for one, use in zip(images, known, strict=True) if use]
    tested = rows[column][known]
    notes = _without_map(analysis, len(images)) + _for_want("Voxel-based morphometry", known, rows[known_as])
    if len(levels) > 2:
        notes.append(f"Gray matter was tested {words}: {design.group} has {len(levels)} levels, two would be compared.")
    try:
        found = morphometry(
            [path for _, path in used],
            (tested == levels[1]).to_numpy() if column == design.group else tested.to_numpy(float),
            confounds=confounds,
            permutations=options.permutations,
            random_seed=options.random_seed,
        )
    except (OSError, ValueError) as error:
        return None, [*notes, f"Gray matter was not tested voxel by voxel ({words}): {_why(error)}"]
    if found.cut:
        names = [str(analysis.volumes["participant_id"].iloc[used[place][0]]) for place in found.cut]
        notes.append(
            "Voxel-based morphometry: left out, as the scans show a part of the brain only, are"
            f" {enumerate_words(names)}."
        )
    return (found, question), notes


def _without_map(analysis: Analysis, with_map: int) -> list[str]:
    """A word on subjects that voxel-based morphometry has no map of."""
    subjects = analysis.volumes["participant_id"].nunique()
    if with_map >= subjects:
        return []
    return [
        f"Voxel-based morphometry: {subjects - with_map} of {subjects} subjects have no map of modulated gray"
        " matter (there is none without MNI images, or where gray and white matter cannot be told apart)."
    ]


def _for_want(what: str, known: np.ndarray, columns: pd.DataFrame, *, left_out_of: str = "") -> list[str]:
    """A word on subjects that a comparison leaves out, as they are not known in all of its columns."""
    if known.all():
        return []
    why = enumerate_words([name for name in columns if columns[name].isna().any()])
    return [f"{what}: {(~known).sum()} of {len(known)} subjects are left out{left_out_of} for want of {why}."]


def _adjusted_for(rows: pd.DataFrame, tested: str, names: Sequence[str | None]) -> tuple[np.ndarray, np.ndarray | None]:
    """Which rows are known in all columns, and the columns of these as numbers; None where there are none."""
    columns = [name for name in names if name]
    known = rows[[tested, *columns]].notna().all(axis=1).to_numpy()
    parts = []
    for name in columns:
        column = rows.loc[known, name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            parts.append(pd.get_dummies(column.cat.remove_unused_categories(), drop_first=True).to_numpy(float))
        else:
            parts.append(column.to_numpy(float)[:, None])
    return known, np.hstack(parts) if parts else None


def _write_difference(out_dir: Path, found: DifferenceMap, analysis: Analysis, about: dict[str, Any]) -> Picture:
    group = str(analysis.design.group)
    first, second = analysis.frame[group].cat.categories[:2]
    adjusted = _adjusting_lesions(analysis)
    names = [f"{_START}_label-lesion_desc-{desc}_map.nii.gz" for desc in ("difference", "logp")]
    write_image(_rounded(found.difference), out_dir / FOLDER / names[0])
    write_image(_rounded(found.log_p), out_dir / FOLDER / names[1])
    test = {"Permutations": found.permutations, "VoxelsTested": found.tested, "VoxelsBelow0.05": found.significant,
            "AdjustedFor": adjusted}  # fmt: skip
    about[names[0]] = {"Description": f"Share of subjects with a lesion: {second} minus {first}.", **test}
    about[names[1]] = {"Description": "-log10 of the p-value, corrected for all voxels by permutation.", **test}
    values = np.asarray(found.difference.dataobj)
    reach = max(float(np.abs(values).max()), 0.01)
    title = f"Lesion frequency: {second} minus {first}"
    extent = f"{found.significant} of {found.tested} tested voxels differ" if found.significant else (
        f"no voxel of {found.tested} differs (smallest corrected p {found.smallest_p:.3f})"
    )  # fmt: skip
    caption = (
        f"Difference of the shares of subjects with a lesion. {found.permutations} permutations, corrected for all"
        f" voxels{', adjusted for ' + enumerate_words(adjusted) if adjusted else ''}: {extent} at 0.05"
        f"{' (outlined in green)' if found.significant else ''}. {SLICES_TOLD}"
    )
    log_p = np.asarray(found.log_p.dataobj)
    figure = slices(
        [(values, "RdBu_r", -reach, reach, "difference")],
        background=_background(found.difference),
        contour=log_p,
        seek=_sought(values, log_p),
    )
    return _picture(out_dir, "group_lesion_difference", figure, title, caption, names)


def _write_effect(out_dir: Path, found: EffectMap, question: _Question, about: dict[str, Any]) -> Picture:
    names = [f"{_START}_label-GM_desc-{desc}_map.nii.gz" for desc in ("t", "tlogp")]
    write_image(_rounded(found.t), out_dir / FOLDER / names[0])
    write_image(_rounded(found.log_p), out_dir / FOLDER / names[1])
    test = {"Subjects": found.subjects, "Permutations": found.permutations, "AdjustedFor": list(question.adjusted),
            "MlTested": round(found.tested_ml, 1), "MlBelow0.05": round(found.significant_ml, 1)}  # fmt: skip
    about[names[0]] = {
        "Description": f"Volume of gray matter, smoothed by {FWHM_MM:g} mm, in voxels of 3 mm: t, {question.words}.",
        **test,
    }
    about[names[1]] = {
        "Description": "-log10 of the two-sided p-value, corrected for all voxels by permutation, in voxels of 3 mm.",
        **test,
    }
    values = np.asarray(found.t.dataobj)
    reach = max(float(np.abs(values).max()), 1.0)
    place = ", ".join(f"{value:.0f}" for value in found.peak_mm).replace("-", "−")
    if found.significant_ml:
        extent = (
            f"{millilitres(1000 * found.significant_ml)} of {found.tested_ml:.0f} ml are significant at 0.05"
            " (outlined in green)"
        )
    else:
        extent = f"no voxel is significant at 0.05 (smallest corrected p {found.smallest_p:.3f})"
    adjusted = f", adjusted for {enumerate_words(question.adjusted)}" if question.adjusted else ""
    caption = (
        f"Voxel-based morphometry of {count_of(found.subjects, 'subject')}: volume of gray matter around each voxel"
        f" (modulated, smoothed by {FWHM_MM:g} mm){adjusted}. {found.permutations} permutations, two-sided, corrected"
        f" for all voxels: {extent}. Colored where t is beyond ±{SHOWN_T:g}; the t farthest from 0 is"
        f" {found.peak_t:.1f} at {place} mm. {SLICES_TOLD}"
    ).replace(" -", " −")
    log_p = np.asarray(found.log_p.dataobj)
    figure = slices(
        [(np.where(np.abs(values) >= SHOWN_T, values, 0), "RdBu_r", -reach, reach, "t")],
        background=_background(found.t),
        contour=log_p,
        seek=_sought(values, log_p),
    )
    return _picture(out_dir, "group_gray_matter", figure, f"Gray matter: {question.words}", caption, names)


def _lesion_picture(out_dir: Path, mean: MeanMap, name: str) -> Picture:
    values = np.asarray(mean.mean.dataobj)
    figure = slices(
        [(values, "inferno", 0.0, max(float(values.max()), 0.01), "share of subjects")],
        background=_background(mean.mean),
        seek=values >= values.max() if values.any() else None,
    )
    caption = (
        f"Share of {count_of(mean.count, 'subject')} with a lesion in each voxel of {TEMPLATE}, at most"
        f" {values.max():.0%}; one session of each. Left is left."
    )
    return _picture(out_dir, "group_lesion_frequency", figure, "Lesion frequency", caption, [name])


def _tissue_picture(out_dir: Path, tissues: list[tuple[str, MeanMap]], names: list[str]) -> Picture:
    rows = [(np.asarray(mean.mean.dataobj), "viridis", 0.0, 1.0, kind) for kind, mean in tissues]
    count = count_of(max(mean.count for _, mean in tissues), "subject")
    caption = f"Mean probability of each tissue over {count} in {TEMPLATE}. Blurred where brains differ. Left is left."
    return _picture(out_dir, "group_tissue_means", slices(rows), "Mean tissue maps", caption, names)


def _picture(out_dir: Path, stem: str, figure: Any, title: str, caption: str, names: list[str]) -> Picture:
    return Picture(title, caption, save(out_dir, stem, figure), tuple(f"{FOLDER}/{name}" for name in names))


def _sought(values: np.ndarray, log_p: np.ndarray) -> np.ndarray:
    """What the slices should show: what is significant, else the value farthest from 0."""
    found = log_p > LOG_P_LIMIT
    return found if found.any() else np.abs(values) >= max(np.abs(values).max(), 1e-6)


def _background(image: nib.Nifti1Image) -> np.ndarray | None:
    """The template, where the maps lie on its grid."""
    return np.asarray(load_template().t1.dataobj) if image.shape == TEMPLATE_SHAPE else None


def _rounded(image: nib.Nifti1Image) -> nib.Nifti1Image:
    return nib.Nifti1Image(np.round(np.asarray(image.dataobj, dtype=np.float32), 4), image.affine)
