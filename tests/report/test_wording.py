"""Numbers in words."""

from __future__ import annotations

import pytest

from bidsapp.report import wording


@pytest.mark.parametrize(
    ("column", "number", "units", "said"),
    [
        ("brain_mm3", 1_107_043.0, "mm^3", ("1107.0", "ml")),
        ("lesion_mm3", 8_227.0, "mm^3", ("8.23", "ml")),
        ("lesion_mm3", 0.0, "mm^3", ("0", "ml")),
        ("lesion_load_percent_wm", 1.7099, "percent", ("1.71", "%")),
        ("lesion_count", 19.0, "", ("19", "")),
        ("brain_parenchymal_fraction", 0.77986, "", ("0.780", "")),
        ("diameter_mm", 3.0, "mm", ("3.0", "mm")),
        ("gm_to_wm", 1.4567, "", ("1.46", "")),
        ("snr_wm", 13.996, "", ("14.0", "")),
        ("snr_wm", 99.97, "", ("100", "")),
        ("lesion_load_percent_wm", 0.003, "percent", ("<0.01", "%")),
        ("brain_change_percent_per_year", -0.5, "percent/year", ("−0.50", "%/year")),
        ("lesion_change_mm3_per_year", 150.0, "mm^3/year", ("0.150", "ml/year")),
        ("years", 1.5, "year", ("1.50", "years")),
        ("brain_change_percent", -0.003, "percent", ("0.00", "%")),
        ("lesion_change_mm3_per_year", -0.3, "mm^3/year", ("0.000", "ml/year")),
    ],
)
def test_amount(column, number, units, said):
    assert wording.amount(column, number, units) == said


def test_describe_prefers_the_short_name_and_keeps_the_long_one():
    dictionary = {"gm_mm3": {"LongName": "Gray matter of the brain", "Description": "Sum.", "Units": "mm^3"}}
    value = wording.describe("gm_mm3", 600_000, names={"gm_mm3": "GM"}, dictionary=dictionary)
    assert (value.name, value.about, value.with_unit) == ("GM", "Gray matter of the brain. Sum.", "600.0\u00a0ml")
    assert wording.describe("gm_mm3", 1, names={}, dictionary=dictionary).name == "Gray matter of the brain"


def test_not_measured_is_never_zero():
    value = wording.describe("gm_mm3", None, names={}, dictionary={}, why="FLAIR alone")
    assert (value.text, value.unit, value.with_unit, value.why) == ("n/a", "", "n/a", "FLAIR alone")


def test_grouped():
    assert wording.grouped(9_999) == "9999"
    assert wording.grouped(12_345.6, 1) == "12\u202f345.6"


def test_a_share_reads_alike_wherever_it_stands():
    for percent in (0.004, 0.0096, 0.06, 0.5):
        text, unit = wording.amount("lesion_load_percent_tiv", percent, "percent")
        if percent < 0.1:
            assert wording.percent_text(percent) == f"{text}\u00a0{unit}"


def test_no_change_has_no_sign():
    assert [wording.with_sign(number) for number in (0.04, -0.04, 0.06, -3)] == ["0.0", "0.0", "+0.1", "−3.0"]
