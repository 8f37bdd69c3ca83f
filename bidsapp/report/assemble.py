"""Write the reports, from files on disk only: ``sub-X.html``, ``group.html`` and the group's table."""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import yaml
from markupsafe import Markup

from bidsapp.image.save import replacing
from bidsapp.report.group import collect_cohort, table_text, view_group
from bidsapp.report.read import read_subject, subjects
from bidsapp.report.subject import view_subject

HERE = Path(__file__).parent


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
        ``out_dir/sub-X.html``. A page is made whatever is missing or broken, and says so.
    """
    sessions = read_subject(out_dir, subject)
    view = view_subject(sessions, layout(), exists=lambda path: (out_dir / path).is_file())
    return _write(out_dir / f"sub-{subject}.html", _render("subject.jinja", view=view, layout=layout()))


def assemble_group(out_dir: Path) -> Path:
    """Write the group's table (``group_volumes.tsv`` and its data dictionary) and its page.

    Parameters
    ----------
    out_dir : Path
        Folder of the derivatives; nothing else is read.

    Returns
    -------
    Path
        ``out_dir/group.html``. Sessions without a usable table are left out and named there.
    """
    sessions = [session for subject in subjects(out_dir) for session in read_subject(out_dir, subject)]
    group = collect_cohort(sessions)
    _write(out_dir / "group_volumes.tsv", table_text(group.frame))
    about = {str(column): group.dictionary.get(str(column), {}) for column in group.frame.columns}
    _write(out_dir / "group_volumes.json", json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    return _write(out_dir / "group.html", _render("group.jinja", view=view_group(group, layout()), layout=layout()))


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


def _write(path: Path, text: str) -> Path:
    """Write aside, then rename: a reader never sees half a page."""
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path
