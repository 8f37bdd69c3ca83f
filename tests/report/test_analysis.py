"""The group's numbers, without files."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bidsapp.report.analysis import Analysis, analyse
from bidsapp.report.covariates import Covariates
from bidsapp.report.merge import Changes


def analysed(rng, years) -> Analysis:
    """Twenty subjects of three sessions, and what changed between these; `years` of each interval."""
    subjects = [f"sub-{i:02}" for i in range(20)]
    merged = pd.DataFrame({
        "participant_id": np.repeat(subjects, 3), "session_id": ["ses-1", "ses-2", "ses-3"] * 20,
        "gm_mm3": rng.normal(6e5, 1e4, 60),
    })  # fmt: skip
    changes = pd.DataFrame({
        "participant_id": np.repeat(subjects, 2), "session_from": ["ses-1", "ses-2"] * 20,
        "session_to": ["ses-2", "ses-3"] * 20, "years": years, "brain_change_percent": rng.normal(size=40),
        "brain_change_percent_per_year": rng.normal(size=40),
    })  # fmt: skip
    people = pd.DataFrame({"participant_id": subjects, "group": ["HC", "MS"] * 10})
    covariates = Covariates((("participants.tsv", people),))
    return analyse(merged, [], covariates, dictionary={}, changes=Changes({"changes": changes}))


def models_of(analysis: Analysis) -> dict[str, str]:
    return {fit.formula.outcome: fit.formula.right for fit in analysis.fits if not fit.refused}


@pytest.mark.parametrize(("known", "right"), [(40, "group + years"), (20, "group + years"), (19, "group")])
def test_default_models_of_changes(rng, known, right):
    years = np.where(np.arange(40) < known, rng.uniform(1, 2, 40), np.nan)
    found = analysed(rng, years)
    models = models_of(found)
    assert models["gm"] == "group*session_id"
    assert models["brain_change_percent"] == right and models["brain_change_percent_per_year"] == "group"
    assert ("years" in " ".join(found.notes)) == (known < 20)
