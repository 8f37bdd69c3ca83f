"""The pages in a real browser: no error, no request, and what moves does move."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bidsapp.measure.volumes import VOLUME_COLUMNS
from bidsapp.report import assemble
from bidsapp.report.analysis import analyse
from bidsapp.report.covariates import Covariates
from bidsapp.report.group import collect_cohort, view_group
from bidsapp.report.read import read_subject, subjects

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-default-apps",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator:
    if not CHROMIUM.is_file():
        pytest.skip(f"{CHROMIUM} is not installed: the pages were not opened in a browser")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as api:
        running = api.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield running
        running.close()


@pytest.fixture
def visit(browser) -> Iterator:
    """Open a page; at the end there must have been no message and no request to anything but files."""
    told: list[str] = []
    context = browser.new_context(viewport={"width": 1360, "height": 900})

    def visit(path: Path):
        page = context.new_page()
        page.on("console", lambda message: told.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: told.append(f"error: {error}"))
        page.on("requestfailed", lambda request: told.append(f"failed: {request.url}"))
        page.on("request", lambda request: request.url.startswith("file:") or told.append(f"asked: {request.url}"))
        page.goto(path.as_uri())
        return page

    yield visit
    context.close()
    assert told == []


@pytest.fixture
def subject_page(tmp_path, write_session, visit):
    evil = "<script>document.title='evil'</script><img src=x onerror=\"document.title='evil'\">"
    write_session("01", "1", warnings=[evil])
    write_session("01", "2", pictures=("brain",))
    return visit(assemble.assemble_subject(tmp_path, "01"))


def visible(page, selector: str) -> bool:
    return page.locator(selector).first.evaluate("e => getComputedStyle(e).visibility === 'visible'")


def test_hostile_strings_do_not_run(subject_page):
    assert subject_page.title() == "sub-01: brain segmentation"


def test_pictures_flicker(subject_page):
    page, over = subject_page, "#ses-1-pictures .over"
    figure = page.locator("#ses-1-pictures figure").first
    stage = figure.locator(".stage")
    page.mouse.move(0, 0)
    assert visible(page, over)
    stage.hover()
    assert not visible(page, over)
    page.mouse.move(0, 0)
    stage.focus()
    page.keyboard.press("Space")
    assert figure.get_attribute("data-state") == "image" and not visible(page, over)
    figure.get_by_role("button", name="With the mask").click()
    assert stage.get_attribute("aria-pressed") == "true"
    stage.focus()
    page.keyboard.press("f")
    for state in ("image", "overlay"):
        page.wait_for_selector(f"#ses-1-pictures figure[data-state='{state}'][data-flicker]", timeout=3000)
    page.keyboard.press("f")
    assert figure.get_attribute("data-flicker") is None


def test_a_click_stays_with_the_picture_it_shows(subject_page):
    """Pointing shows the other picture; a click keeps it, and the buttons say so."""
    page, over = subject_page, "#ses-1-pictures .over"
    figure = page.locator("#ses-1-pictures figure").first
    stage = figure.locator(".stage")
    stage.click()
    assert figure.get_attribute("data-state") == "image" and not visible(page, over)
    stage.click()
    assert figure.get_attribute("data-state") == "overlay" and visible(page, over)
    page.mouse.move(0, 0)
    stage.hover()
    assert not visible(page, over)
    page.keyboard.press("Escape")
    page.mouse.move(0, 0)
    stage.focus()
    page.keyboard.press("Control+f")
    assert figure.get_attribute("data-flicker") is None


def test_a_tap_shows_what_the_buttons_say(browser, subject_page):
    context = browser.new_context(viewport={"width": 400, "height": 800}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(subject_page.url)
    figure = page.locator("#ses-1-pictures figure").first
    for state in ("image", "overlay"):
        figure.locator(".stage").tap()
        pressed = figure.locator("[data-show][aria-pressed='true']").get_attribute("data-show")
        assert pressed == state and visible(page, "#ses-1-pictures .over") is (state == "overlay")
    assert page.locator("#over-time th.course").is_hidden()
    wide = page.locator("#ses-1-lesion-table").locator("..")
    assert "more" in wide.get_attribute("class")
    wide.evaluate("box => { box.scrollLeft = box.scrollWidth; }")
    page.locator("#ses-1-lesions .wide:not(.more) > #ses-1-lesion-table").wait_for()
    context.close()


def test_a_page_without_its_pictures_says_what_is_missing(browser, subject_page, tmp_path):
    assert subject_page.locator("[data-unseen]").is_hidden()
    (alone := tmp_path / "mail").mkdir()
    (alone / "sub-01.html").write_bytes((tmp_path / "sub-01.html").read_bytes())
    page = browser.new_page()
    page.goto((alone / "sub-01.html").as_uri())
    page.locator("[data-unseen]").wait_for(state="visible")
    assert "sub-01/figures" in page.locator("[data-unseen]").text_content()
    page.close()


def test_lesion_table_sorts_and_opens(subject_page):
    page = subject_page
    table = page.locator("#ses-1-lesion-table")
    column = "[...document.querySelectorAll('#ses-1-lesion-table tbody tr')].map(row => row.cells[1].dataset.value)"
    before = [float(value) for value in page.evaluate(column)]
    assert before == sorted(before, reverse=True)
    table.get_by_role("button", name="Volume").click()
    assert [float(value) for value in page.evaluate(column)] == sorted(before)
    assert table.locator("th").nth(1).get_attribute("aria-sort") == "ascending"
    shown = [cell.get_attribute("data-value") for cell in table.locator("tbody tr:visible td:nth-child(2)").all()]
    assert [float(value) for value in shown] == sorted(before)[:20]
    table.get_by_role("button", name="Volume").click()
    assert [float(value) for value in page.evaluate(column)] == before
    assert table.locator("tbody tr:visible").count() == 20
    page.get_by_role("button", name="Show all 25").first.click()
    assert table.locator("tbody tr:visible").count() == 25


def test_explanations_for_mouse_and_keyboard(subject_page):
    page = subject_page
    term = page.locator("#ses-1 dl.headline .term").first
    term.focus()
    assert page.locator(".tip").text_content() == "Long name of brain_mm3. What brain_mm3 is."
    page.keyboard.press("Escape")
    assert page.locator(".tip").is_hidden()
    term.hover()
    assert page.locator(".tip").is_visible()


@pytest.mark.parametrize("width", [1360, 820, 360])
def test_nothing_is_wider_than_the_screen(subject_page, width):
    subject_page.set_viewport_size({"width": width, "height": 800})
    assert subject_page.evaluate("document.documentElement.scrollWidth") <= width


def test_text_is_readable_in_light_and_dark(subject_page):
    """Contrast of the main and the quiet text with the page: WCAG 2.2, 1.4.3 asks for 4.5."""
    ratios = """() => {
        const light = (color) => color.match(/[\\d.]+/g).slice(0, 3).map(Number).map(part => part / 255)
            .map(part => part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4)
            .reduce((sum, part, i) => sum + part * [.2126, .7152, .0722][i], 0);
        const paper = light(getComputedStyle(document.body).backgroundColor);
        return ['body', '.lede', '.unit', 'a[href]', '.chips .absent', 'figcaption'].map(selector => {
            const ink = light(getComputedStyle(document.querySelector(`main ${selector}, ${selector}`)).color);
            return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
        });
    }"""
    for scheme in ("light", "dark"):
        subject_page.emulate_media(color_scheme=scheme)
        assert min(subject_page.evaluate(ratios)) >= 4.5, scheme


def test_on_paper_the_overlays_are_shown_and_the_table_is_cut(subject_page, tmp_path):
    pdf = tmp_path / "page.pdf"
    subject_page.pdf(path=str(pdf))
    assert pdf.stat().st_size > 10_000
    subject_page.emulate_media(media="print")
    assert visible(subject_page, "#ses-1-pictures .over")
    assert subject_page.locator("#ses-1-pictures .stage").first.is_visible()
    assert subject_page.locator(".controls").first.is_hidden()
    assert subject_page.locator("#ses-1-lesion-table tbody tr:visible").count() == 20
    assert subject_page.get_by_text("all are in sub-01_ses-1_lesions.tsv").is_visible()


def test_group_page(tmp_path, write_session, visit):
    for number in range(8):
        lesion = "n/a" if number == 3 else str(1000 * ((number * 5) % 8))
        brain = "1000000" if number else "400000"
        write_session(f"{number}", "1", volumes={"brain_mm3": brain, "lesion_mm3": lesion})
        assemble.assemble_subject(tmp_path, f"{number}")
    page = visit(assemble.assemble_group(tmp_path))
    page.mouse.move(0, 0)
    rows = "[...document.querySelectorAll('#volumes tbody tr')]"
    page.locator("#volumes").get_by_role("button", name="Lesions").click()
    values = page.evaluate(f"{rows}.map(row => row.cells[4].dataset.value)")
    assert values == ["0", "1000", "2000", "3000", "4000", "5000", "6000", ""] or values[-1] == ""
    known = [float(value) for value in values[:-1]]
    assert known == sorted(known)
    page.get_by_role("searchbox").fill("sub-5")
    assert page.locator("#volumes tbody tr:visible").count() == 1
    assert page.locator("#volumes-count").text_content() == "1 of 8 rows"
    page.get_by_role("searchbox").fill("")
    page.get_by_role("checkbox").check()
    assert page.locator("#volumes tbody tr:visible th").all_text_contents() == ["sub-0"]
    dot = page.locator(".strip a[data-session='sub-5 ses-1']").first
    dot.hover()
    assert page.locator("#volumes tr.lit th").all_text_contents() == ["sub-5"]
    dot.click()
    assert page.title() == "sub-5: brain segmentation" and page.url.endswith("sub-5.html#ses-1")


@pytest.fixture
def group_models_page(tmp_path, write_session, visit):
    """Thirty subjects in two groups, with models, figures and a table to filter."""
    rows = ["participant_id\tage\tgroup"]
    for i in range(30):
        gm = 600_000 - 2_000 * i - 40_000 * (i % 2) + 7_000 * ((i * 7) % 5)
        write_session(f"{i:02}", volumes={"tiv_mm3": str(1_400_000 + 9_000 * ((i * 11) % 7)), "gm_mm3": str(gm)})
        rows.append(f"sub-{i:02}\t{20 + i}\t{'MS' if i % 2 else 'HC'}")
    (tmp_path / "participants.tsv").write_text("\n".join(rows) + "\n")
    for i in range(30):
        assemble.assemble_subject(tmp_path, f"{i:02}")
    return visit(assemble.assemble_group(tmp_path, say=lambda _: None))


def test_group_models_are_filtered_sorted_and_opened(group_models_page):
    page = group_models_page
    rows = page.locator("#terms tbody tr:not([hidden])")
    before = rows.count()
    page.fill("input[data-filter=terms]", "gray group")
    assert rows.count() == 1 and "MS" in rows.first.inner_text() and f"1 of {before} rows" in page.content()
    page.fill("input[data-filter=terms]", "")
    page.locator("#terms thead button", has_text="Estimate").click()
    cells = page.locator("#terms tbody tr td:nth-child(3)").all()
    values = [float(cell.get_attribute("data-value")) for cell in cells if cell.get_attribute("data-value")]
    assert values == sorted(values) and len(values) > 3
    model = page.locator("details.model", has_text="Gray matter").first
    assert not model.locator("table.checks").is_visible()
    model.locator("summary").click()
    assert model.locator("table.checks").is_visible() and model.locator("svg circle").count() == 60


def test_group_dots_light_up_their_subject_and_lead_to_its_report(group_models_page):
    page = group_models_page
    assert page.locator("#ages figure").count() == 2 and page.locator("#ages a[data-session=sub-07]").count() == 2
    assert page.locator("#ages a[data-session=sub-07]").first.get_attribute("aria-label").endswith(" at 27")
    dot = page.locator(".strip a[data-session=sub-07]").first
    dot.hover()
    assert page.locator("#volumes tr[data-session=sub-07]").get_attribute("class") == "lit"
    assert page.locator(".diagnostics a[data-session=sub-07].lit").count() >= 2
    dot.click()
    page.wait_for_url("**/sub-07.html*")
    assert "sub-07" in page.title() or "07" in page.locator("h1").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_group_colours_differ_from_the_paper(group_models_page, scheme):
    page = group_models_page
    page.emulate_media(color_scheme=scheme)
    colour = "selector => getComputedStyle(document.querySelector(selector)).{}".format
    paper = page.evaluate(colour("backgroundColor"), "body")
    dots = [page.evaluate(colour("fill"), f".strip .c{i} circle") for i in (1, 2)]
    assert len({paper, *dots}) == 3
    assert all(page.eval_on_selector_all("figure.sheet img", "all => all.map(one => one.naturalWidth > 100)"))


def test_group_table_of_models_fits_the_printed_page(group_models_page):
    page = group_models_page
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})
    assert page.evaluate("document.querySelector('#terms').getBoundingClientRect().right") <= 700
    assert not page.locator("input[data-filter=terms]").is_visible()


def test_group_table_of_volumes_does_not_shrink_the_printed_page(tmp_path, write_session, visit):
    columns = [*VOLUME_COLUMNS, *(f"{side}_thalamus_{i}_mm3" for side in ("left", "right") for i in range(20))]
    for i in range(3):
        write_session(f"{i}", volumes=dict.fromkeys(columns, "50000"))
    page = visit(assemble.assemble_group(tmp_path))
    every = page.locator("#volumes thead th:visible").count()
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 700, "height": 1000})
    assert page.evaluate("document.documentElement.scrollWidth") <= 700
    assert page.locator("#volumes thead th:visible").count() == 3 + len(VOLUME_COLUMNS) < every
    assert page.get_by_text("all are in group_volumes.tsv").is_visible()


def test_long_group_tables_show_the_first_rows_and_find_all(tmp_path, write_session, visit):
    for i in range(12):
        write_session(f"{i:02}", volumes={"brain_mm3": str(1_000_000 + 1000 * i)})
    group = collect_cohort([session for subject in subjects(tmp_path) for session in read_subject(tmp_path, subject)])
    found = analyse(group.frame, [], Covariates(), dictionary=group.dictionary)
    view = replace(view_group(group, found, assemble.layout()), limit=5)
    path = tmp_path / "group.html"
    path.write_text(assemble._render("group.jinja", view=view, layout=assemble.layout()))
    page = visit(path)
    rows = page.locator("#volumes tbody tr:not([hidden])")
    assert rows.count() == 5 and page.inner_text("#volumes-count") == "12 rows, the first 5 are shown"
    page.fill("input[data-filter=volumes]", "sub-11")
    assert rows.count() == 1 and page.inner_text("#volumes-count") == "1 of 12 rows"
    page.fill("input[data-filter=volumes]", "")
    heading = page.locator("#volumes thead button", has_text="Brain parenchyma")
    heading.click()
    heading.click()
    assert [row.split("\t")[0] for row in rows.all_inner_texts()] == [
        f"sub-{i}" for i in ("11", "10", "09", "08", "07")
    ]


@pytest.fixture
def evaluation_page(tmp_path, visit):
    """Eight cases, two predictions, one of them with a hostile name."""
    import nibabel as nib
    import numpy as np

    from bidsapp import evaluate

    def write(folder: str, number: int, *boxes: tuple) -> None:
        data = np.zeros((20, 21, 22), np.uint8)
        for box in boxes:
            data[box] = 1
        path = tmp_path / folder / f"sub-{number}" / "anat" / f"sub-{number}_label-lesion_mask.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(data, np.eye(4)), path)

    large, small = np.s_[3:8, 3:8, 3:8], np.s_[15:16, 15:17, 15:16]
    for number in range(8):
        write("manual", number, large, small)
        write("a", number, np.s_[3:8, 3:8, 3 : 5 + number % 3])
        write("b", number, np.s_[3:8, 3:8, 3 : 6 + number % 2], np.s_[12:13, 2 : 3 + number, 2:4])
    names = ["A", "<img src=x onerror=\"document.title='evil'\">"]
    command = [str(tmp_path / name) for name in ("manual", "a", "b")]
    assert evaluate.main([*command, "--names", *names, "--out", str(tmp_path / "out"), "--pictures", "3"]) == 0
    return visit(tmp_path / "out" / "evaluation.html")


def test_evaluation_page(evaluation_page):
    page = evaluation_page
    assert page.title().startswith("Evaluation: A, <img") and page.locator("main img[src='x']").count() == 0
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(ids) == len(set(ids))
    links = page.evaluate(
        "[...document.querySelectorAll('a[href^=\"#\"]')].map(one => one.getAttribute('href').slice(1))"
    )
    assert len(links) > 50 and set(links) <= set(ids)
    assert page.locator("#pictures figure").count() == 3
    over = page.locator("#pictures .over").first
    page.get_by_role("button", name="Scan", exact=True).first.click()
    page.mouse.move(0, 0)
    assert not over.is_visible()
    assert page.locator("#case-table tbody tr").count() == 16
    page.get_by_role("searchbox").fill("sub-3")
    assert page.locator("#case-table tbody tr:visible").count() == 2
    page.locator(".charts a[data-session='sub-5'] circle").first.hover()
    assert page.locator("#case-table tr.lit").count() == 2
    for width in (1360, 420):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
