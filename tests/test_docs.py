"""The documentation names what there is."""

from __future__ import annotations

import doctest
import importlib
import math
import re
import tomllib
from pathlib import Path

import pytest

from bidsapp import __version__, cards, cli, config
from bidsapp.measure.change import INTERVAL_COLUMNS, LESION_CHANGE_COLUMNS
from bidsapp.measure.lesions import LESION_COLUMNS, LOAD_COLUMNS
from bidsapp.measure.quality import QC_COLUMNS, RANGES
from bidsapp.measure.volumes import VOLUME_COLUMNS

ROOT = Path(__file__).resolve().parents[1]


EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "bidsapp").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_of_the_docstrings(module):
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted and not found.failed


def _undocumented(options: list[str], text: str) -> list[str]:
    return [option for option in options if not re.search(rf"`{re.escape(option)}[ `]", text)]


def test_every_option_is_in_the_usage():
    # Of an option's spellings, the first long one with dashes is the documented one.
    longs = [[s for s in action.option_strings if s.startswith("--")] for action in cli._parser()._actions]
    options = [names[0] for names in longs if names]
    assert len(options) > 20
    assert _undocumented(options, (ROOT / "docs" / "usage.md").read_text()) == []


def test_every_choice_is_in_the_usage():
    text = (ROOT / "docs" / "usage.md").read_text()
    choices = (
        *config.BRAIN_EXTRACTIONS,
        *config.TISSUE_MODELS,
        *config.LESION_MODELS,
        *cards.packaged_lesion_models(),
        *config.NORMALIZATIONS,
        *config.OUTPUT_SPACES,
    )
    assert [choice for choice in choices if f"`{choice}`" not in text] == []


def test_an_undocumented_option_would_be_found():
    assert _undocumented(["--mem", "--memory"], "| `--mem GB` | ... |") == ["--memory"]


@pytest.mark.parametrize(
    "columns",
    [VOLUME_COLUMNS, LESION_COLUMNS, LOAD_COLUMNS, QC_COLUMNS, INTERVAL_COLUMNS, LESION_CHANGE_COLUMNS],
    ids=["volumes", "lesions", "load", "qc", "changes", "lesionchanges"],
)
def test_every_column_is_in_the_outputs_with_the_text_of_its_dictionary(columns):
    text = (ROOT / "docs" / "outputs.md").read_text()
    rows = [f"| `{name}` | {about.get('Units', '')} | {about['Description']} |" for name, about in columns.items()]
    assert [row for row in rows if row not in text] == []


def test_every_range_is_in_the_outputs_with_its_limits():
    def shown(limit: float) -> str:
        return "" if math.isinf(limit) else f"{limit:,g}" if abs(limit) < 1e6 else f"{limit:,.0f}"

    text = (ROOT / "docs" / "outputs.md").read_text()
    rows = [f"| `{r.name}` | {shown(r.low)} | {shown(r.high)} | {r.meaning} | {r.source} |" for r in RANGES]
    assert [row for row in rows if row not in text] == []


def test_one_version_everywhere():
    assert f"\nversion: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^## (\S+)", (ROOT / "CHANGES.md").read_text(), re.MULTILINE)[1] == __version__


PAGES = ["README.md", "CHANGES.md", *(p.relative_to(ROOT).as_posix() for p in sorted((ROOT / "docs").rglob("*.md")))]


def _anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them: lower case, words joined by dashes, without other signs."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
    lost = []
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", (ROOT / page).read_text()):
        file = (ROOT / page).parent / target if target else ROOT / page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            lost.append(f"{target}#{anchor}")
    assert lost == []


@pytest.mark.parametrize("page", PAGES)
def test_rows_of_a_table_have_as_many_cells_as_its_head(page):
    odd, cells = [], 0
    for line in (ROOT / page).read_text().splitlines():
        count = len(re.split(r"(?<!\\)\|", line.rstrip())) if line.startswith("|") else 0
        cells = cells if cells and count else count
        odd += [line] if count != cells else []
    assert odd == []


def test_the_image_holds_what_the_dockerfile_copies():
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    sources = [name for line in copied for name in line.split()]
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert sorted(sources) == sorted(allowed)
    assert all((ROOT / name).exists() for name in sources)


def _locked(name: str) -> dict[str, list[str]]:
    """Versions of a lock file, each with its hashes."""
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return {line.split()[0]: line.split()[1:] for line in text.splitlines()}


def test_locks_agree_and_hold_torch_apart():
    runtime, dev, torch, cuda = (_locked(f"requirements{part}.txt") for part in ("", "-dev", "-torch", "-cuda"))
    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", line) for line in dev)
    assert runtime.items() < dev.items()
    assert not [line for line in dev if line.startswith(("torch=", "nvidia", "customtkinter"))]
    assert list(torch) == ["torch==2.13.0"]
    assert all(line.startswith(("nvidia-", "cuda-", "triton=")) for line in cuda)


def test_every_locked_package_has_hashes():
    for part in ("", "-dev", "-torch", "-cuda"):
        for version, hashes in _locked(f"requirements{part}.txt").items():
            assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", text) for text in hashes), version


@pytest.mark.parametrize("contract", ["nipype", "torch", "ants", "pybids", "config-users"])
def test_no_module_is_outside_the_import_contracts(contract: str):
    """Those that are not forbidden to import something are the ones that the contract's name allows it."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    (found,) = (each for each in settings["contracts"] if each["id"] == contract)
    allowed = set(re.findall(r"[a-z]+", re.sub(r"^.*only in|^Only|know .*$", "", found["name"]))) - {"and"}
    modules = {path.stem for path in (ROOT / "bidsapp").iterdir() if path.suffix == ".py" or path.is_dir()}
    modules -= {"__init__", "__pycache__"} | ({"config"} if contract == "config-users" else set())
    assert {f"bidsapp.{name}" for name in modules - allowed} == set(found["source_modules"])
