"""Compartments of lesions: names, labels, volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bidsapp.labels import EDEMA, ENHANCING_TUMOR, NECROTIC_CORE, compartments
from bidsapp.measure.compartments import columns, compartment_row, divide

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("edema", EDEMA), ("Peritumoural oedema", EDEMA), ("ED", EDEMA), ("necrotic core", NECROTIC_CORE),
        ("Necrotic and non-enhancing tumour core", NECROTIC_CORE), ("NCR", NECROTIC_CORE),
        ("enhancing tumour", ENHANCING_TUMOR), ("GD-enhancing tumor", ENHANCING_TUMOR),
    ],
)  # fmt: skip
def test_tumor_compartments_by_whatever_spelling(name, label):
    (part,) = compartments([name])
    assert part.label is label


def test_numbers_are_those_of_brats():
    assert [part.label.index for part in compartments(["edema", "necrotic core", "enhancing tumour"])] == [2, 1, 3]


def test_other_names_are_kept_and_never_meet():
    parts = compartments(["acute", "chronic", "edema", "oedema", "Acute!", "acute?"])
    assert [part.label.name for part in parts] == [
        "acute",
        "chronic",
        "Peritumoral edema",
        "oedema",
        "Acute!",
        "acute?",
    ]
    assert [part.label.index for part in parts] == [101, 102, 2, 103, 104, 105]
    assert len({part.column for part in parts}) == len(parts)
    assert parts[0].column == "compartment_acute_mm3"


def test_likeliest_compartment_within_the_lesions():
    parts = compartments(["edema", "enhancing tumour"])
    shares = np.zeros((2, 4, 1, 1))
    shares[0, :, 0, 0], shares[1, :, 0, 0] = [0.6, 0.2, 0.3, 0.9], [0.3, 0.5, 0.3, 0.0]
    lesion = np.array([True, True, True, False]).reshape(4, 1, 1)
    assert divide(shares, lesion, parts).ravel().tolist() == [2, 3, 2, 0]


def test_volumes_and_regions_by_hand():
    """3 voxels necrotic, 5 edema, 2 enhancing, of 1.5 mm3."""
    parts = compartments(["necrotic core", "edema", "enhancing tumour"])
    labels = np.array([1] * 3 + [2] * 5 + [3] * 2 + [0] * 4).reshape(2, 7, 1)
    row = compartment_row(labels, parts, voxel_volume_mm3=1.5)
    assert row == {
        "compartment_necrotic_tumor_core_mm3": 4.5, "compartment_peritumoral_edema_mm3": 7.5,
        "compartment_enhancing_tumor_mm3": 3.0, "whole_tumor_mm3": 15.0,
        "tumor_core_mm3": 7.5, "enhancing_tumor_mm3": 3.0,
    }  # fmt: skip
    assert list(columns(parts)) == list(row)


def test_what_is_no_tumor_has_no_tumor_regions():
    parts = compartments(["edema", "hemorrhage"])
    row = compartment_row(np.zeros((7, 8, 9)), parts, voxel_volume_mm3=1.0)
    assert row == {"compartment_peritumoral_edema_mm3": 0, "compartment_hemorrhage_mm3": 0}
    assert "whole_tumor_mm3" not in columns(parts)


def test_columns_are_in_the_documentation():
    text = (ROOT / "docs" / "outputs.md").read_text()
    about = columns(compartments(["necrotic core", "edema", "enhancing tumour"]))
    rows = [f"| `{name}` | {entry['Units']} | {entry['Description']} |" for name, entry in about.items()]
    assert [row for row in rows if row not in text] == []
