"""The simulation that judges the group level."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import cohort
from bidsapp.report import assemble
from bidsapp.report.assemble import Options


def test_simulated_effects_are_those_stated(rng):
    frame = cohort.simulate(rng, 4000)
    x = np.c_[
        np.ones(4000),
        frame["group"] == "patient",
        frame["age"] - 40,
        frame["sex"] == "M",
        frame["tiv_mm3"] / 1e3 - 1500,
    ]
    found = np.linalg.lstsq(x.astype(float), frame["gm_mm3"] / 1e3, rcond=None)[0]
    assert found == pytest.approx([650, -15, -2, 30, 0.3], abs=3)
    some = frame[frame["lesion_mm3"] > 0]
    logs = np.log(some["lesion_mm3"]).groupby(some["group"]).mean()
    assert logs["patient"] - logs["control"] == pytest.approx(np.log(2), abs=0.1)
    null = cohort.simulate(rng, 4000, effect=0.0)
    assert abs(np.subtract(*null["gm_mm3"].groupby(null["group"]).mean())) < 12e3


def test_a_model_that_is_off_is_seen(monkeypatch, capsys):
    question = cohort.Question("linear", (20, 1), "gm ~ group + age + sex + tiv", -15.0)
    monkeypatch.setattr(cohort, "QUESTIONS", (question,))
    assert cohort.judge_statistics(40)
    wrong = cohort.Question("linear", (20, 1), "gm ~ group + age + sex + tiv", 60.0)
    monkeypatch.setattr(cohort, "QUESTIONS", (wrong,))
    assert not cohort.judge_statistics(40)
    told = capsys.readouterr().out
    assert "PASS" in told and "FAIL" in told


def test_what_is_written_is_what_the_group_level_reads(tmp_path):
    cohort.write_cohort(tmp_path / "bids", tmp_path / "out", 12)
    page = assemble.assemble_group(tmp_path / "out", bids_dir=tmp_path / "bids", options=Options(maps=False))
    assert "12 sessions of 12 subjects" in page.read_text()
    assert (tmp_path / "out" / "group_lesions.tsv").read_text().count("\n") == 13
