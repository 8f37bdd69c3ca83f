"""Write the reports, from files on disk only: ``sub-X.html``, ``group.html`` and the group's table."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from markupsafe import Markup

from bidsapp.arguments import missing_labels
from bidsapp.errors import NothingSelectedError
from bidsapp.measure.cohort import natural
from bidsapp.report import merge
from bidsapp.report.analysis import FormulaError, Options, analyse, write_tables
from bidsapp.report.changes import compared_facts, has_changes, view_changes
from bidsapp.report.covariates import read_covariates
from bidsapp.report.evaluation import anchor
from bidsapp.report.group import collect_cohort, draw_figures, view_group
from bidsapp.report.group_maps import make_maps, maps_of_before
from bidsapp.report.read import read_subject, subjects
from bidsapp.report.subject import view_subject
from bidsapp.report.wording import percent_text
from bidsapp.writing import write_text

__all__ = ["FormulaError", "Options", "assemble_evaluation", "assemble_group", "assemble_subject", "layout"]

HERE = Path(__file__).parent
#: Where a page's links to other pages are.
_PAGES = re.compile("<!-- pages -->.*?<!-- /pages -->", re.DOTALL)


def assemble_subject(out_dir: Path, subject: str) -> Path:
    """Write the page of a subject.

    Parameters
    ----------
    out_dir : Path
        Folder of the derivatives.
    subject : str
        Label, without ``sub-``.

    Returns
    -------
    Path
        ``out_dir/sub-X.html``. A page is made whatever is missing or broken, and says so. Where there are changes
        between sessions, ``sub-X_changes.html`` is made as well.
    """
    compared: dict[str, str] = {}
    if has_changes(out_dir, subject):
        changes = view_changes(out_dir, subject)
        compared = compared_facts(changes)
        write_text(out_dir / f"sub-{subject}_changes.html", _render("changes.jinja", view=changes, layout=layout()))
    sessions = read_subject(out_dir, subject)
    view = view_subject(sessions, layout(), exists=lambda path: (out_dir / path).is_file(), compared=compared)
    return write_text(out_dir / f"sub-{subject}.html", _render("subject.jinja", view=view, layout=layout()))


def to_link(out_dir: Path, changed: Iterable[str] | None = None) -> list[str]:
    """Subjects whose pages lead to others that have changed: these and those beside them, or all."""
    labels = _with_page(out_dir)
    if changed is None:
        return labels
    places = {place for place, label in enumerate(labels) if label in set(changed)}
    return [label for place, label in enumerate(labels) if places & {place - 1, place, place + 1}]


def link_subject(out_dir: Path, subject: str) -> None:
    """Put the links to other pages into those of a subject, which were written when others may not have been there.

    The caller holds the subject's lock, and pages are looked for only now: of two that link at the same time, the
    second sees all.
    """
    labels = ["", *_with_page(out_dir), ""]
    place = labels.index(subject)
    before, after = (f"sub-{label}.html" if label else "" for label in (labels[place - 1], labels[place + 1]))
    is_there = (out_dir / "group.html").is_file()
    links = _environment().get_template("pages.jinja").render(before=before, after=after, group=is_there)
    for path in (out_dir / f"sub-{subject}.html", out_dir / f"sub-{subject}_changes.html"):
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            new = _PAGES.sub(lambda _: links.strip(), text, count=1)
            if new != text:
                write_text(path, new)


def _with_page(out_dir: Path) -> list[str]:
    """Labels of the subjects that have a page, in order."""
    found = (re.fullmatch(r"sub-([^_]+)\.html", name) for name in os.listdir(out_dir))
    return sorted((match[1] for match in found if match), key=natural)


def assemble_group(
    out_dir: Path,
    *,
    bids_dir: Path | None = None,
    options: Options | None = None,
    only_subjects: Sequence[str] = (),
    only_sessions: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Path:
    """Write the group's tables (``group_*.tsv`` with their data dictionaries), figures, maps and page.

    Parameters
    ----------
    out_dir : Path
        Folder of the derivatives.
    bids_dir : Path, optional
        The dataset, of which only ``participants.tsv``, ``sessions.tsv`` and ``phenotype/`` are read, where there are.
    options : Options
    only_subjects, only_sessions : sequence of str
        Labels; all by default.
    say : callable
        Takes a line on what goes on.

    Returns
    -------
    Path
        ``out_dir/group.html``. Sessions without a usable table are left out and named there.

    Raises
    ------
    FormulaError
        A model that was asked for cannot be read.
    NothingSelectedError
        There is nothing in the folder that the participant level left, or not of these labels.
    """
    labels = [label for label in subjects(out_dir) if not only_subjects or label in only_subjects]
    sessions = [session for label in labels for session in read_subject(out_dir, label)]
    sessions = [session for session in sessions if not only_sessions or session.session in only_sessions]
    if not any(session.row or session.record or session.problem for session in sessions):
        which = " of these labels" if only_subjects or only_sessions else ""
        raise NothingSelectedError(f"{out_dir}: no results of any session{which}. Run the participant level first.")
    there = [*((label, None) for label in labels), *((session.subject, session.session) for session in sessions)]
    for label in missing_labels(there, only_subjects, only_sessions):
        say(f"warning: {label} was asked for but has no results in {out_dir}.")
    group = collect_cohort(sessions)
    options = options or Options()
    found = analyse(
        group.frame,
        list(group.sessions.values()),
        read_covariates(bids_dir, out_dir),
        dictionary=group.dictionary,
        options=options,
        changes=merge.read_changes(out_dir, labels, only_sessions),
    )
    write_tables(out_dir, found)
    pictures = draw_figures(out_dir, found, group, layout())
    if options.maps:
        maps, notes = make_maps(out_dir, found, options, say=say)
        pictures += maps
    else:
        notes = maps_of_before(out_dir)
    found = replace(found, notes=(*found.notes, *notes))
    view = view_group(group, found, layout(), pictures=pictures)
    return write_text(out_dir / "group.html", _render("group.jinja", view=view, layout=layout()))


def assemble_evaluation(path: Path, view: Any) -> Path:
    """Write the page of ``bidsapp evaluate``; `view` is from `evaluation.view_evaluation`."""
    return write_text(path, _render("evaluation.jinja", view=view, layout=layout()))


@cache
def layout() -> dict[str, Any]:
    """``report.yml``."""
    content: dict[str, Any] = yaml.safe_load((HERE / "report.yml").read_text(encoding="utf-8"))
    return content


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,  # everything from the dataset is text, never markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["href"] = _href
    environment.filters["percent"] = percent_text
    environment.filters["anchor"] = lambda name: anchor("case", name)
    return environment


def _render(template: str, **context: Any) -> str:
    style = (HERE / "style.css").read_text(encoding="utf-8")
    script = (HERE / "script.js").read_text(encoding="utf-8")
    # The page's own script is the only one that may run, and nothing is fetched from anywhere.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(style=Markup(style), script=Markup(script), script_hash=digest, **context)
    )


def _href(path: str) -> str:
    """A path relative to OUT_DIR as a link; never a scheme, whatever its name."""
    place, _, anchor = path.partition("#")
    return "./" + quote(place) + (f"#{quote(anchor)}" if anchor else "")
