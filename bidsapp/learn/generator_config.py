"""What synthetic scans are like: every range and probability that they are drawn with."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]


@dataclass(frozen=True)
class GeneratorConfig:
    """Ranges are uniform; ``p_*`` are probabilities a sample (or, where said, a contrast)."""

    spacing_mm: float = 2.5
    contrasts: int = 1  # rendered of one anatomy; 1: any of the three at random
    multiple: int = 16  # axes of a sample are multiples of this
    rotation_deg: float = 20.0
    scale: Range = (0.88, 1.12)
    shear: float = 0.08
    elastic_mm: Range = (0.0, 2.5)  # standard deviation at the control points, 30-45 mm apart
    ventricles_mm: Range = (0.0, 0.0)  # by how much the lateral ventricles' walls move outwards, in half of the samples
    # Field of view beyond the brain's box, mm: (least, most); negative cuts the brain.
    view_sides_mm: Range = (-4.0, 40.0)
    view_top_mm: Range = (-8.0, 30.0)
    view_bottom_mm: Range = (-12.0, 90.0)
    view_most_mm: float = 240.0
    p_random_contrast: float = 0.25  # class means wholly random
    jitter: float = 0.15  # of class means inside the brain, relative
    p_strange_outside: float = 0.5  # classes outside the brain wholly random
    tissue_contrast: Range = (1.0, 1.0)  # differences between brain tissues, relative to the table's; fluid stays
    texture: Range = (0.01, 0.08)
    mottle: Range = (0.0, 0.0)  # standard deviation of slow changes within white matter that are no lesion
    # How much of the cortex's signal has the fluid at its surface, all fluid of the sulci, the white matter below it.
    border: Range = (0.0, 0.0)
    sulcal: Range = (0.0, 0.0)
    below: Range = (0.0, 0.0)
    # Share of the cortex's outermost voxels that fluid takes: wider sulci; of its innermost that white matter takes.
    thinning: Range = (0.0, 0.0)
    thinning_below: Range = (0.0, 0.0)
    misaligned_mm: float = 0.0  # standard deviation of a contrast's shift along each axis, where there are others
    p_thick: float = 0.6  # a contrast
    thick_mm: Range = (3.0, 8.0)
    bias: Range = (0.0, 0.35)  # standard deviation of the field's logarithm at its control points
    noise: Range = (0.0, 0.07)
    p_motion: float = 0.0  # a contrast, whose head moves while it is scanned
    p_ringing: float = 0.0  # a contrast, of which the outer lines of k-space are missing
    uneven: Range = (0.0, 0.0)  # standard deviation of the signal of thick slices, relative
    gamma: Range = (0.7, 1.4)
    p_stripped: float = 0.15
    strip_error_mm: Range = (-1.0, 5.0)
    p_defaced: float = 0.4
    p_clean: float = 0.6  # what is stripped or defaced is exactly zero, as tools leave it, not noisy
    p_drop: float = 0.0  # a contrast, as long as one is left
    patch: int = 0  # voxels along each side of a patch inside the brain's box; 0: the whole head
    p_lesions: float = 0.0  # a sample; the others are free of lesions
    strokes: bool = False  # lesions are infarcts, acute or old; bright spots in white matter are none
    p_large: float = 0.0  # of samples with lesions: an infarct, a mass or a broad seam of the ventricles
    p_centred: float = 0.5  # of samples with lesions: the patch is centred on one
    severity: Range = (0.0, 0.0)  # how much fainter some lesions of a sample are than others
    p_dirty: float = 0.4  # faint white matter around cortex or ventricles that is no lesion
    p_bright_cortex: float = 0.0  # cortex brighter in places on T2w and FLAIR, as insula and cingulum are
    p_flow: float = 0.0  # cerebrospinal fluid bright in places on FLAIR
    p_choroid: float = 0.0  # choroid plexus as bright as a lesion on FLAIR
    p_lining: float = 0.0  # walls and septum of the lateral ventricles as bright as a lesion on FLAIR
    box_error_mm: float = 0.0  # standard deviation of the borders of the brain's box, for `Sample.place`
    fluid: Range = (1.0, 1.0)  # share of the brain's fluid that counts for `Sample.level`: masks differ in tightness
    level_error: float = 0.0  # standard deviation of `Sample.level`, relative to the image's deviation


#: Scans as the app prepares real ones: brain alone, bias-corrected, lying straight; in the contrasts and with the
#: defects that they were seen to have (docs/training.md). Patches, and what is to be found, are set by who uses it.
STRIPPED = GeneratorConfig(
    spacing_mm=1.0, contrasts=3, rotation_deg=8, shear=0.05, elastic_mm=(0.5, 3.0), ventricles_mm=(-2.0, 10.0),
    jitter=0.1, p_random_contrast=0.08, tissue_contrast=(0.35, 1.1), mottle=(0.0, 0.05), border=(0.3, 2.0),
    sulcal=(0.0, 0.85), below=(0.0, 0.9), thinning=(0.0, 0.8), thinning_below=(0.0, 0.5), misaligned_mm=0.4,
    severity=(0.0, 0.35), p_choroid=0.4, p_lining=0.5, p_dirty=0.75, p_stripped=1.0, strip_error_mm=(-1.0, 3.0),
    p_defaced=0.0, p_clean=1.0, p_thick=0.4, thick_mm=(1.5, 7.5), bias=(0.0, 0.15), noise=(0.0, 0.06),
    gamma=(0.8, 1.25), p_drop=0.5, p_bright_cortex=0.4, p_flow=0.35, box_error_mm=3.0, level_error=0.12,
    fluid=(0.15, 0.9),
)  # fmt: skip
