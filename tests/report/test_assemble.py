"""The pages, as text."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser

import pandas as pd
import pytest

from bidsapp.labels import STRUCTURE_LESION
from bidsapp.measure.volumes import CORTEX_COLUMNS, LOBE_COLUMNS, STRUCTURE_COLUMNS, VOLUME_COLUMNS
from bidsapp.report import assemble
from bidsapp.report.read import read_subject
from bidsapp.report.subject import view_subject

FLAIR_ONLY_WHY = "GM and WM look alike on FLAIR"


class Page(HTMLParser):
    """Tags and text of a page; every tag must be closed in order."""

    VOID = ("meta", "img", "br", "input", "line", "rect", "polygon", "polyline", "link")

    def __init__(self, path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text()
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if "id" in dict(attrs):
            self.ids.append(dict(attrs)["id"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def attributes(self, tag, name):
        return [attributes[name] for found, attributes in self.tags if found == tag and attributes.get(name)]


def page_of(tmp_path, subject="01"):
    return Page(assemble.assemble_subject(tmp_path, subject))


def test_a_session(tmp_path, write_session):
    write_session("01")
    page = page_of(tmp_path)
    for words in ("sub-01", "Segmented from T1w and FLAIR. Nothing out of range.", "600.0", "25 lesions, 10.0 ml",
                  "the only FLAIR", "a note of the reader", "Tustison et al., 2010", "7 × 8 × 9 voxels"):  # fmt: skip
        assert words in page.text
    assert page.attributes("img", "src")[:2] == [
        "./sub-01/figures/sub-01_desc-brain_image.png",
        "./sub-01/figures/sub-01_desc-brain_overlay.png",
    ]
    assert all(page.attributes("img", "alt")) and len(page.attributes("img", "alt")) == 8


def test_nothing_points_away_and_every_anchor_is_there(tmp_path, write_session):
    write_session("01", "1")
    write_session("01", "2")
    for page in (page_of(tmp_path), Page(assemble.assemble_group(tmp_path))):
        links = page.attributes("a", "href") + page.attributes("img", "src")
        assert links and all(link.startswith(("#", "./")) for link in links)
        assert {link[1:] for link in links if link.startswith("#")} <= set(page.ids)
        assert len(page.ids) == len(set(page.ids))
        assert "http:" not in page.source and "https:" not in page.source and "url(" not in page.source
        assert not page.attributes("script", "src") and not page.attributes("link", "href")


def test_only_the_pages_own_script_may_run(tmp_path, write_session):
    write_session("01")
    page = page_of(tmp_path)
    (policy,) = (content for content in page.attributes("meta", "content") if "default-src" in content)
    assert "default-src 'none'" in policy and "script-src 'sha256-" in policy
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_hostile_strings_stay_text(tmp_path, write_session):
    evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
    record = {
        "contrasts": ["T1w", evil], "reference": "T1w", "version": evil, "warnings": [evil],
        "inputs": [{"contrast": evil, "file": evil, "chosen_because": evil, "not_chosen": [evil], "notes": [evil]}],
        "not_measured": {"gm_mm3": evil}, "outputs": {evil: 3, "javascript:alert(1)": 4},
        "options": {evil: evil, "tissue_model": evil}, "methods": {"tissue_model": evil},
    }  # fmt: skip
    folder = write_session("01", **record)
    (folder / "sub-01_volumes.tsv").write_text(
        f"participant_id\tgm_mm3\t{evil}\ttext\nsub-01\tn/a\t3\t{evil}\n".replace('"', "")
    )
    table = pd.DataFrame({"lesion_id": [evil], "volume_mm3": ["12"], evil: ["1"]})
    table.to_csv(folder / "sub-01_lesions.tsv", sep="\t", index=False)
    about = {"gm_mm3": {"LongName": evil, "Description": evil}, evil: {"LongName": evil}}
    (folder / "sub-01_volumes.json").write_text(json.dumps(about))
    for page in (page_of(tmp_path), Page(assemble.assemble_group(tmp_path))):
        assert evil in page.text or evil.replace('"', "") in page.text
        assert sum(tag == "script" for tag, _ in page.tags) == 1
        assert "x" not in page.attributes("img", "src")
        assert not any(link.startswith("javascript") for link in page.attributes("a", "href"))
        assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)


def test_flair_only_says_why(tmp_path, write_session):
    write_session(
        "01", volumes={"tiv_mm3": "1500000", "brain_mask_mm3": "1200000", "brain_mm3": "1000000", "gm_mm3": "n/a",
                       "wm_mm3": "n/a", "csf_mm3": "200000", "lesion_mm3": "10000"},
        contrasts=["FLAIR"], reference="FLAIR",
        not_measured={"gm_mm3": FLAIR_ONLY_WHY, "wm_mm3": FLAIR_ONLY_WHY},
    )  # fmt: skip
    page = page_of(tmp_path)
    assert f"1 Not measured: {FLAIR_ONLY_WHY}." in page.text or f"Not measured: {FLAIR_ONLY_WHY}." in page.text
    assert "FLAIR, reference" in page.text and "T1w, none" in page.text
    (view,) = view_subject(read_subject(tmp_path, "01"), assemble.layout(), exists=lambda path: True).sessions
    assert [(part.name, round(part.percent, 2)) for part in view.parts] == [
        ("Brain Parenchyma (gray and white matter)", 82.5), ("Lesion", 0.83), ("Cerebrospinal Fluid", 16.67),
    ]  # fmt: skip
    headline = {value.column: value.text for value, _ in view.headline}
    assert headline["gm_mm3"] == "n/a" and headline["brain_mm3"] == "1000.0"


def test_flags_come_first_and_in_words(tmp_path, write_session):
    flag = "gm_to_wm = 0.7, below 0.9: ratio of gray to white matter unusual for an adult"
    write_session("01", qc={"cnr": "2", "gm_to_wm": "0.7", "flags": flag}, warnings=["Look at left and right.", flag])
    (view,) = view_subject(read_subject(tmp_path, "01"), assemble.layout(), exists=lambda path: True).sessions
    assert [warning.text for warning in view.warnings] == [
        "Look at left and right.",
        "Ratio of gray to white matter unusual for an adult",
    ]
    assert view.warnings[1].detail == "Long name of gm_to_wm: 0.700, below 0.9"
    assert {check.value.column: check.flag for check in view.checks} == {"cnr": "", "gm_to_wm": "below"}
    assert "2 points to look at." in page_of(tmp_path).text


def test_volumes_flagged_are_told_in_ml(tmp_path, write_session):
    flag = "brain_mm3 = 5.2e+05, below 7e+05: brain volume unusual for an adult"
    write_session("01", volumes={"brain_mm3": "520000"}, qc={"flags": flag})
    assert "Brain parenchyma: 520.0 ml, below 700.0 ml" in page_of(tmp_path).text


def test_missing_pieces_are_told(tmp_path, write_session):
    folder = write_session("01", pictures=("brain",))
    for ending in ("_volumes.tsv", "_qc.tsv", "_lesions.tsv"):
        (folder / f"sub-01{ending}").unlink()
    text = page_of(tmp_path).text
    assert "The table of volumes, sub-01_volumes.tsv, is missing or cannot be read." in text
    assert "The table of quality control, sub-01_qc.tsv, is missing or cannot be read." in text
    assert "There is no table of lesions." in text
    assert "sub-01_desc-tissue_image.png and _overlay.png are not both in sub-01/figures" in text
    assert "sub-01_gone.nii.gz missing" in text


def test_no_place_for_a_picture_of_lesions_that_were_not_looked_for(tmp_path, write_session):
    write_session("01", pictures=("brain", "tissue", "registration"), methods={"lesion_model": "none"})
    page = page_of(tmp_path)
    assert "No picture" not in page.text and len(page.attributes("img", "src")) == 6


def test_hostile_names_of_folders(tmp_path, write_session):
    write_session("<b onclick=x>&quot;", "'\"><img src=x>")
    for page in (page_of(tmp_path, "<b onclick=x>&quot;"), Page(assemble.assemble_group(tmp_path))):
        assert "sub-<b onclick=x>&quot;" in page.text
        assert not any(tag == "b" or "onclick" in attributes for tag, attributes in page.tags)
        assert "x" not in page.attributes("img", "src")


def test_failed_session(tmp_path, write_session):
    write_session("01", "1")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sub-01_ses-2_problem.json").write_text(
        json.dumps({"status": "failed", "message": "sub-01_ses-2_T1w.nii.gz is truncated: copy it again."})
    )
    (tmp_path / "logs" / "sub-01.log").write_text("last words")
    text = page_of(tmp_path).text
    assert "2 sessions: 1 segmented and 1 failed." in text
    assert "sub-01_ses-2_T1w.nii.gz is truncated: copy it again." in text and "last words" in text


def test_old_results_of_a_failed_run_are_marked(tmp_path, write_session):
    write_session("01")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sub-01_problem.json").write_text('{"status": "failed", "message": "no memory"}')
    text = page_of(tmp_path).text
    assert "these are the results of an earlier one" in text and "no memory" in text


def test_nothing_at_all_still_makes_a_page(tmp_path):
    assert "Not finished." in page_of(tmp_path, "ghost").text
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "sub-ghost_problem.json").write_text('{"status": "failed", "message": "no scan"}')
    assert "No session with volumes was found." in Page(assemble.assemble_group(tmp_path)).text


def test_several_sessions_are_compared(tmp_path, write_session):
    write_session("01", "1", volumes={"brain_mm3": "1000000", "lesion_mm3": "5000"})
    write_session("01", "2", volumes={"brain_mm3": "990000", "lesion_mm3": "n/a"}, contrasts=["T1w"])
    write_session("01", "3", volumes={"brain_mm3": "980000", "lesion_mm3": "6000"})
    view = view_subject(read_subject(tmp_path, "01"), assemble.layout(), exists=lambda path: True)
    trends = {trend.name: trend for trend in view.trends}
    assert trends["Brain parenchyma"].cells == ("1000.0", "990.0", "980.0")
    assert trends["Brain parenchyma"].change == "−2.0\u00a0%"
    assert trends["Brain parenchyma"].points == ()  # what lies between was measured otherwise
    assert trends["Lesions"].cells == ("5.00", "n/a", "6.00") and trends["Lesions"].points == ()
    assert "different contrasts" in view.caution
    view = view_subject(read_subject(tmp_path, "01")[:2], assemble.layout(), exists=lambda path: True)
    assert [(trend.change, trend.href) for trend in view.trends] == [
        ("not comparable", ""), ("confirmed changes", "sub-01_changes.html")
    ]  # fmt: skip
    view = view_subject(read_subject(tmp_path, "01")[:2], assemble.layout(), exists=lambda path: False)
    assert {trend.change for trend in view.trends} == {"not comparable"}


def test_sessions_that_are_alike_have_a_line(tmp_path, write_session):
    for number, brain in enumerate((1000, 990, 980)):
        write_session("01", str(number), volumes={"brain_mm3": f"{brain}000", "tiv_mm3": "1500000"})
    view = view_subject(read_subject(tmp_path, "01"), assemble.layout(), exists=lambda path: True)
    trend = next(trend for trend in view.trends if trend.name == "Brain parenchyma")
    assert trend.points == ((0.0, 2.0), (50.0, 12.0), (100.0, 22.0)) and trend.change == "−2.0\u00a0%"


def test_heads_of_another_size_are_not_compared(tmp_path, write_session):
    for number, tiv in enumerate((1500, 1540)):
        write_session("01", str(number), volumes={"brain_mm3": "1000000", "tiv_mm3": f"{tiv}000"})
    view = view_subject(read_subject(tmp_path, "01"), assemble.layout(), exists=lambda path: True)
    assert "intracranial volume differs by 2.7\u00a0%" in view.caution


def test_results_without_a_record_make_a_page(tmp_path, write_session):
    (write_session("01") / "sub-01_provenance.json").unlink()
    assert "It was not finished" in page_of(tmp_path).text or "has no record" in page_of(tmp_path).text


def test_pages_lead_to_each_other(tmp_path, write_session):
    for label in ("10", "2", "1"):
        write_session(label)
        assemble.assemble_subject(tmp_path, label)
    for label in assemble.to_link(tmp_path):
        assemble.link_subject(tmp_path, label)
    middle = (tmp_path / "sub-2.html").read_text()
    assert 'href="./sub-1.html" rel="prev"' in middle and 'href="./sub-10.html" rel="next"' in middle
    assert "All subjects" not in middle
    (tmp_path / "group.html").touch()
    assert assemble.to_link(tmp_path, ["1"]) == ["1", "2"]
    assemble.link_subject(tmp_path, "2")
    assert 'href="./group.html"' in (tmp_path / "sub-2.html").read_text()


def test_what_makes_sessions_less_comparable_is_told_where_they_are_compared(tmp_path, write_session):
    def caution(subject: str) -> str:
        return view_subject(read_subject(tmp_path, subject), assemble.layout(), exists=lambda path: True).caution

    thin, thick = ([{"contrast": "T1w", "voxel_size_mm": edges}] for edges in ([1, 1, 1], [3, 1, 1]))
    write_session("alike", "1", inputs=thin)
    write_session("alike", "2", inputs=thin)
    assert caution("alike") == ""
    write_session("flagged", "1", inputs=thin)
    write_session("flagged", "2", inputs=thin, qc={"flags": "gm_to_wm = 0.7, below 0.9: odd"})
    assert caution("flagged").endswith(": quality control has something to look at in session 2.")
    write_session("thick", "1", inputs=thin)
    write_session("thick", "2", inputs=thick)
    assert caution("thick").endswith(": voxels of T1w differ.")


@pytest.mark.parametrize(("lesion_mm3", "expected"), [("2000", "0.3 to 1"), ("1999", ""), ("n/a", "")])
def test_few_lesions_need_not_be_those_of_both_models(lesion_mm3, expected, tmp_path, write_session):
    write_session("01", volumes={"lesion_mm3": lesion_mm3}, qc={"agreement_lesion": "0.1", "flags": "none"})
    view = view_subject(read_subject(tmp_path, "01"), assemble.layout(), exists=lambda path: True)
    assert [check.expected for check in view.sessions[0].checks] == [expected]


@pytest.mark.parametrize(("contrasts", "scan"), [(["T1w", "FLAIR"], "FLAIR"), (["T1w"], "T1w")])
def test_pictures_of_lesions_name_the_scan_they_are_drawn_on(contrasts, scan, tmp_path, write_session):
    write_session("01", contrasts=contrasts)
    assert f"Drawn on the {scan}." in page_of(tmp_path).text


def test_lesions_without_a_flair_come_with_a_reservation(tmp_path, write_session):
    write_session("01", contrasts=["T1w", "T2w"])
    assert "only lesions that show on T1w and T2w are found" in page_of(tmp_path).text
    write_session("02", contrasts=["FLAIR"])
    assert "There is no FLAIR" not in page_of(tmp_path, "02").text


def test_lesion_table_opens_beyond_twenty(tmp_path, write_session):
    write_session("01", lesions=25)
    page = page_of(tmp_path)
    rows = [attributes for tag, attributes in page.tags if tag == "tr" and "data-rest" in attributes]
    assert len(rows) == 5 and all("hidden" in attributes for attributes in rows)
    assert "Show all 25" in page.text
    write_session("02", lesions=0)
    assert "No lesion was found." in page_of(tmp_path, "02").text


def test_the_same_files_give_the_same_bytes(tmp_path, write_session):
    write_session("01", "1")
    write_session("02")
    first = [assemble.assemble_subject(tmp_path, "01").read_bytes(), assemble.assemble_group(tmp_path).read_bytes()]
    again = [assemble.assemble_subject(tmp_path, "01").read_bytes(), assemble.assemble_group(tmp_path).read_bytes()]
    assert first == again
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "group.html", "group_lesions.json", "group_lesions.tsv", "group_qc.json", "group_qc.tsv",
        "group_single_lesions.json", "group_single_lesions.tsv", "group_volumes.json", "group_volumes.tsv", "sub-01",
        "sub-01.html", "sub-02",
    ]  # fmt: skip


def test_explanations_are_from_the_data_dictionary(tmp_path, write_session):
    write_session("01")
    assert "Long name of gm_mm3. What gm_mm3 is." in page_of(tmp_path).attributes("span", "title")


@pytest.mark.parametrize(
    ("path", "link"),
    [
        ("sub-01/a b.png", "./sub-01/a%20b.png"),
        ("javascript:alert(1)", "./javascript%3Aalert%281%29"),
        ('x"y', "./x%22y"),
        ("sub-1.html#ses-2", "./sub-1.html#ses-2"),
    ],
)
def test_links(path, link):
    assert assemble._href(path) == link
    assert html.escape(link) == link


def test_the_quality_of_every_scan_is_shown_apart(tmp_path, write_session):
    flag = "flair_wm_ripples = 2.3, above 1.3: stripes in white matter of the FLAIR"
    qc = {"cnr": "2", "snr_wm": "20", "t1w_cnr": "2", "flair_cnr": "0.7", "t2w_cnr": "n/a"}
    write_session("01", contrasts=["FLAIR", "T1w"],
                  qc=qc | {"t1w_wm_ripples": "0.3", "flair_wm_ripples": "2.3", "flags": flag})  # fmt: skip
    write_session("02", qc={"cnr": "2", "flags": "none"})  # of an earlier version
    (view,) = view_subject(read_subject(tmp_path, "01"), assemble.layout(), exists=lambda _: True).sessions
    assert [check.value.column for check in view.checks] == ["cnr"]
    contrasts, rows = view.scan_quality
    assert contrasts == ("T1w", "FLAIR")
    assert [(name, *(check.value.text for check in checks)) for name, checks in rows] == [
        ("Contrast-to-noise, gray to white", "2", "0.700"),
        ("Ripples in white matter, % per mm", "0.300", "2.30"),
    ]
    assert [(check.expected, check.flag) for check in rows[1][1]] == [("at most 0.9", ""), ("at most 1.3", "above")]
    assert [warning.text for warning in view.warnings] == ["Stripes in white matter of the FLAIR"]
    assemble.assemble_subject(tmp_path, "01")
    assemble.assemble_subject(tmp_path, "02")
    assert "Every scan as it was acquired" in (tmp_path / "sub-01.html").read_text()
    assert "Every scan as it was acquired" not in (tmp_path / "sub-02.html").read_text()


def test_layout_names_columns_that_exist():
    from bidsapp.labels import CONTRASTS
    from bidsapp.measure.image_quality import SCAN_COLUMNS
    from bidsapp.measure.lesions import LESION_COLUMNS, LOAD_COLUMNS
    from bidsapp.measure.quality import QC_COLUMNS
    from bidsapp.measure.volumes import VOLUME_COLUMNS

    layout = assemble.layout()
    volumes = layout["volumes"]
    named = {*volumes["headline"], *volumes["names"], *volumes["over_time"], volumes["whole"]}
    named |= set(layout["group"]["distributions"])
    named |= {name for recipe in volumes["parts"] for formula in recipe.values() for name in re.split(" - ", formula)}
    assert named <= set(VOLUME_COLUMNS)
    assert set(VOLUME_COLUMNS) <= set(volumes["names"])
    assert {*layout["quality"]["names"], *layout["quality"]["hidden"]} <= set(QC_COLUMNS)
    measures = layout["quality"]["scans"]
    assert {f"{name.lower()}_{measure}" for name in CONTRASTS for measure in measures} == set(SCAN_COLUMNS)
    lesion = {name for key, entry in layout["lesions"]["columns"].items() for name in entry.get("columns", [key])}
    assert lesion | set(layout["lesions"]["hidden"]) == set(LESION_COLUMNS)
    load = {f"{name}_count" for part in ("regions", "sizes") for name in layout["lesions"][part]}
    assert load < set(LOAD_COLUMNS)


def test_structures_have_their_own_table(tmp_path, write_session):
    """Left 4 ml and right 3 ml differ by 29 % of their mean; a structure without sides has one cell."""
    volumes = dict.fromkeys(VOLUME_COLUMNS, "100000")
    measured = dict.fromkeys(STRUCTURE_COLUMNS, "1000")
    measured |= {"left_hippocampus_mm3": "4000", "right_hippocampus_mm3": "3000", "brain_stem_mm3": "22000"}
    pictures = ("brain", "tissue", "structures", "lesion", "registration")
    write_session("01", volumes=volumes | measured, pictures=pictures)
    page = page_of(tmp_path)
    text = " ".join(page.text.split())
    assert "Hippocampus 4.00 3.00 ml +29" in text and "Brain stem 22.0 ml" in text
    assert text.count("Hippocampus") == 2  # in the legend of the picture, and in the table
    assert "No picture" not in text


def test_lobes_and_cortical_regions_have_tables(tmp_path, write_session):
    volumes = dict.fromkeys(VOLUME_COLUMNS, "100000") | dict.fromkeys(STRUCTURE_COLUMNS, "1000")
    volumes |= dict.fromkeys(LOBE_COLUMNS, "50000") | {"left_frontal_cortex_mm3": "60000"}
    cortex = dict.fromkeys(CORTEX_COLUMNS, "2000") | {"left_precuneus_mm3": "6000", "right_precuneus_mm3": "4000"}
    load = {
        "lesion_mm3": "10000",
        "lesion_frontal_lobe_mm3": "4000",
        "lesion_parietal_lobe_mm3": "6000",
        "lesion_temporal_lobe_mm3": "0",
    }
    pictures = ("brain", "tissue", "structures", "cortex", "lesion", "registration")
    write_session("01", volumes=volumes, cortex=cortex, load=load, pictures=pictures)
    text = " ".join(page_of(tmp_path).text.split())
    assert "Frontal 60.0 50.0 ml +18" in text and "34 cortical regions" in text and "Precuneus 6.00 4.00 ml +40" in text
    assert text.count("Precuneus") == 2  # in the legend of the picture, and in the table
    assert "By lobe: parietal 6.00 ml, frontal 4.00 ml (both sides" in text.replace("\xa0", " ")
    assert "Left frontal cortex" not in text, "lobes do not stand among the tissues"


def test_without_structures_there_is_a_word(tmp_path, write_session):
    write_session("01")
    assert "No anatomical structures were measured." in page_of(tmp_path).text


@pytest.mark.parametrize(("kind", "shown"), [("white-matter", True), ("other", False), (None, True)])
def test_regions_are_those_of_white_matter_lesions(tmp_path, write_session, kind, shown):
    load = {"lesion_mm3": "10000", "periventricular_count": "3", "periventricular_mm3": "4000", "tiny_count": "2"}
    own = {"name": "shells", "version": "1.0", "lesion_classes": ["lesion"], "lesion_kind": kind}
    write_session("01", load=load, methods={"lesion_model": "shells-1.0"} | ({"own_lesion_model": own} if kind else {}))
    text = page_of(tmp_path).text
    assert ("Periventricular 3 4.00" in text) == shown
    assert ("McDonald criteria are not shown" in text and "model shells 1.0" in text) != shown
    assert "By size: 2 below 14 mm³" in text
    assert "Compartments of the lesions" not in text


def test_compartments_have_a_picture_with_a_legend(tmp_path, write_session):
    own = {"name": "shells", "version": "1.0", "lesion_classes": ["oedema", "necrosis", "cyst"]}
    pictures = ("brain", "tissue", "lesion", "compartments", "registration")
    write_session("01", pictures=pictures, methods={"lesion_model": "shells-1.0", "own_lesion_model": own})
    page = page_of(tmp_path)
    assert "Compartments of the lesions" in page.text and "No picture" not in page.text
    legend = page.text[page.text.index("translucent colours on the slices") :][:150]
    assert "Necrotic tumor core Peritumoral edema cyst" in legend
    write_session("02", methods={"lesion_model": "shells-1.0", "own_lesion_model": own})
    assert "sub-02_desc-compartments_image.png and _overlay.png are not both" in page_of(tmp_path, "02").text


def test_the_legend_of_the_structures_tells_lesions_where_there_are_some(tmp_path, write_session):
    structures = dict.fromkeys(STRUCTURE_COLUMNS, "1000")
    for subject, lesion in (("01", "10000"), ("02", "0")):
        write_session(subject, volumes={"brain_mm3": "1000000", "lesion_mm3": lesion} | structures)
        view = view_subject(read_subject(tmp_path, subject), assemble.layout(), exists=lambda path: True)
        legend = next(figure.legend for figure in view.sessions[0].figures if figure.name == "structures")
        color = STRUCTURE_LESION.color
        assert (("Lesion", color) in legend) is (subject == "01") and ("Thalamus", color) not in legend


def test_a_mask_larger_than_the_intracranial_volume_is_explained(tmp_path, write_session):
    write_session("01", volumes={"brain_mask_mm3": "1400000", "tiv_mm3": "1350000"})
    assert "a mask 6\u00a0% smaller to 7\u00a0% larger raises no question" in page_of(tmp_path).source
    write_session("02", volumes={"brain_mask_mm3": "1300000", "tiv_mm3": "1350000"})
    assert "raises no question" not in page_of(tmp_path, "02").text


@pytest.mark.parametrize(("edges", "axis"), [([0.9, 0.9, 3.0], "z"), ([3.0, 0.9, 0.9], "x"), (None, "z")])
def test_lesions_are_sorted_by_the_slices_of_their_picture(edges, axis, tmp_path, write_session):
    scan = {"contrast": "T1w", "voxel_size_mm": edges, "orientation": "LPS"}
    folder = write_session("01", lesions=3, inputs=[scan])
    table = folder / "sub-01_lesions.tsv"
    frame = pd.read_csv(table, sep="\t", dtype=str)
    for letter, places in (("x", "123"), ("y", "456"), ("z", "789")):
        frame[f"centroid_{letter}_mm"] = list(places)
    frame.to_csv(table, sep="\t", index=False)
    view = view_subject(read_subject(tmp_path, "01"), assemble.layout(), exists=lambda path: True)
    lesions = view.sessions[0].lesions
    assert [title for title, _, _ in lesions.headings[:3]] == ["No.", "Volume", "Scan x, y, z"]
    assert lesions.rows[0][2] == ("1, 4, 7", {"x": "1", "z": "7"}[axis])


def test_paper_says_whose_brain_it_is(tmp_path, write_session):
    write_session("01", "1")
    assert '@bottom-right { content: "sub-01' in page_of(tmp_path).source
    write_session('x";}', "1")
    assert "@bottom-right" not in Page(assemble.assemble_subject(tmp_path, 'x";}')).source


def test_regions_of_the_page_differ_by_name(tmp_path, write_session):
    write_session("01", "1")
    write_session("01", "2")
    page = page_of(tmp_path)
    names = page.attributes("section", "aria-labelledby")
    assert len(names) == len(set(names)) and "ses-1-pictures-title ses-1-title" in names
    assert set(" ".join(names).split()) <= set(page.ids)
