"""A dataset whose every text is markup: the pages show it as text, links stay inside OUT_DIR."""

from __future__ import annotations

import json
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bidsapp.report import assemble

HOSTILE = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
LINK = "javascript:alert(1)//../../../etc/passwd"


class Page(HTMLParser):
    """Elements of a page that could do harm."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.scripts = 0
        self.harm: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.scripts += tag == "script"
        if tag in ("iframe", "object", "embed", "base", "form", "svg-script"):
            self.harm.append(tag)
        for name, value in attrs:
            place = (value or "").strip().lower()
            if name.startswith("on"):
                self.harm.append(f"{tag} {name}")
            if name in ("src", "href") and not place.startswith(("./", "#", "data:image/", "https://doi.org/")):
                self.harm.append(f"{tag} {name}={value}")


def check(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    found = Page(text)
    assert found.scripts == 1, "the page's own script is the only one"
    assert found.harm == []
    assert "default-src 'none'" in text
    return text


def test_a_hostile_participants_table(write_session: Callable[..., Path], tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = [["participant_id", "sex", "age", "group", HOSTILE, f"site{HOSTILE}"]]
    for number in range(12):
        write_session(f"{number:02d}", "1", lesions=1, pictures=())
        group = HOSTILE if number % 2 else f"control{HOSTILE}"
        rows.append([f"sub-{number:02d}", "FM"[number % 2], str(30 + number), group, str(number), HOSTILE])
    rows += [["sub-../../x", "M", "40", "=cmd|' /C calc'!A0", "1", "n/a"], [HOSTILE, "M", "40", "a", "1", "n/a"]]
    (data / "participants.tsv").write_text("\n".join("\t".join(row) for row in rows) + "\n")
    (data / "participants.json").write_text(
        json.dumps({"group": {"Description": HOSTILE, "Levels": {HOSTILE: HOSTILE}}})
    )
    page = assemble.assemble_group(tmp_path, bids_dir=data)
    assert "&lt;script&gt;alert(" in check(page)  # it is shown, as text
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert not [name for name in written if "script" in name or ".." in name]
    assert not (tmp_path.parent / "x").exists()


def test_a_hostile_record_and_file_names(write_session: Callable[..., Path], tmp_path: Path) -> None:
    scan = {
        "contrast": HOSTILE, "file": f"sub-01/anat/{LINK}", "sha256": HOSTILE, "chosen_because": HOSTILE,
        "not_chosen": [HOSTILE], "shape": [1, 2, 3], "voxel_size_mm": [1, 1, 1], "orientation": HOSTILE,
        "notes": [HOSTILE],
    }  # fmt: skip
    folder = write_session(
        "01", inputs=[scan], warnings=[HOSTILE], not_measured={"gm_mm3": HOSTILE}, version=HOSTILE,
        outputs={LINK: 1, f"sub-01/{HOSTILE}": 2}, methods={HOSTILE: HOSTILE, "brain_extraction": HOSTILE},
    )  # fmt: skip
    for table in ("volumes", "qc"):
        about = folder / f"sub-01_{table}.json"
        about.write_text(
            json.dumps({"gm_mm3": {"Description": HOSTILE, "Units": HOSTILE}, "flags": {"Description": HOSTILE}})
        )
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sub-02_problem.json").write_text(
        json.dumps({"subject": "02", "session": None, "status": "failed", "message": HOSTILE})
    )
    (tmp_path / "logs" / "sub-02.log").write_text(HOSTILE)
    assert "&lt;script&gt;alert(" in check(assemble.assemble_subject(tmp_path, "01"))
    assert "&lt;script&gt;alert(" in check(assemble.assemble_subject(tmp_path, "02"))
    check(assemble.assemble_group(tmp_path))


@pytest.mark.parametrize(
    "text", ["<script>1</script><script>2</script>", "<a onclick=x>", "<a href=javascript:x>", "<img src=/x>"]
)
def test_harm_would_be_seen(text: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(f"default-src 'none'{text}")
    with pytest.raises(AssertionError):
        check(tmp_path / "page.html")


def test_a_hostile_model_card(write_session: Callable[..., Path], tmp_path: Path) -> None:
    """Name, version, training data and classes of a lesion model come from a file that anybody may have written."""
    own = {
        "name": HOSTILE, "version": HOSTILE, "architecture": HOSTILE, "contrasts": [HOSTILE], "threshold": 0.5,
        "cascade": False, "crf": False, "trained_on": [HOSTILE, "[@nobody]"], "lesion_classes": [HOSTILE, "cyst"],
        "lesion_kind": "other",
    }  # fmt: skip
    folder = write_session(
        "01", load={"lesion_mm3": "100", "compartment_script_mm3": "40"}, options={"lesion_model": HOSTILE},
        methods={"lesion_model": HOSTILE, "own_lesion_model": own}, pictures=("compartments",),
    )  # fmt: skip
    about = {"compartment_script_mm3": {"LongName": HOSTILE, "Description": HOSTILE}}
    (folder / "sub-01_load.json").write_text(json.dumps(about))
    text = check(assemble.assemble_subject(tmp_path, "01"))
    assert "those of the model &lt;script&gt;" in text and "#8e24aa" in text  # the legend of the compartments
    assert "segmented from &lt;script&gt;" in text and ">Compartment</span>" in text and "Tumor region" not in text
