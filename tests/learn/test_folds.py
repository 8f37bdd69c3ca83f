from __future__ import annotations

import pytest

from bidsapp.errors import UsageError
from bidsapp.learn.folds import split

SESSIONS = ("01", "01", "02", "03", "03", "04", "05")


@pytest.mark.parametrize("folds", ["2", "3", "5", "loo"])
def test_each_subject_is_held_out_once(folds: str) -> None:
    found = split(SESSIONS, folds, seed=1)
    assert len(found) == (5 if folds == "loo" else int(folds))
    assert sorted(subject for fold in found for subject in fold) == ["01", "02", "03", "04", "05"]
    assert max(map(len, found)) - min(map(len, found)) <= 1
    assert split(SESSIONS, folds, seed=1) == found


def test_no_folds() -> None:
    assert split(SESSIONS, "0", seed=1) == []


@pytest.mark.parametrize(("subjects", "folds", "message"), [
    (SESSIONS, "6", "5 labelled subjects; give 2 to 5"),
    (SESSIONS, "1", "give 2 to 5"),
    (("07", "07"), "2", "one labelled subject .sub-07."),
    (("07",), "loo", "--folds 0"),
])  # fmt: skip
def test_too_few_subjects(subjects: tuple[str, ...], folds: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        split(subjects, folds, seed=1)
