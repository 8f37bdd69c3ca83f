"""The only place with label integers: look-up tables of the segmentations.

Indices 1, 2, 3 and 7 are those of the BIDS derivatives specification
("Common image-derived labels"); 20 is ours and lies outside its range.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Label:
    """One row of a BIDS look-up table (``*_dseg.tsv``)."""

    index: int
    name: str
    abbreviation: str
    color: str


BACKGROUND = Label(0, "Background", "BG", "#000000")
GM = Label(1, "Gray Matter", "GM", "#d98880")
WM = Label(2, "White Matter", "WM", "#f4ecd8")
CSF = Label(3, "Cerebrospinal Fluid", "CSF", "#5dade2")
LESION = Label(7, "Lesion", "L", "#f1c40f")
# FLAIR alone cannot tell grey from white matter; the two are then one class.
PARENCHYMA = Label(20, "Brain Parenchyma (gray and white matter)", "PAR", "#e5b9a8")

#: Order of the first axis of every array of tissue posteriors or priors.
TISSUES = (GM, WM, CSF)

TISSUE_LOOKUP = (BACKGROUND, GM, WM, CSF, LESION, PARENCHYMA)
