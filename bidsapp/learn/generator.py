"""Synthetic scans from label maps, wholly in torch: domain randomisation (SynthSeg, Billot et al. 2023).

One call makes one anatomy and any number of contrasts of it. All arrays live on the device of the heads;
scalar choices come from a NumPy generator on the CPU, so that nothing waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from bidsapp.labels import CONTRASTS
from bidsapp.learn.anatomy import KIND, KINDS, LEFT_LESION, POSITION, RIGHT_LESION, STRUCTURES
from bidsapp.learn.fields import apply_along, moved, rotation, slice_profiles, smooth_field, touching
from bidsapp.learn.heads import DISTANCE_SPACING_MM, Heads
from bidsapp.learn.lesion_masks import BRAIN_MM, ORIGIN_MM, Lesions

Range = tuple[float, float]
#: Lesion signal on the scale of `anatomy.KINDS`. Raters' lesions on three real FLAIR are 1.2 to 1.9 times as bright as
#: white matter (0.6 here), most of them 1.3 to 1.6 times; on T1w many hardly differ from it (docs/training.md).
LESION_SIGNAL = ((0.45, 0.92), (0.57, 1.15), (0.82, 1.5))
#: What is no lesion is at most this many times the difference of cortex and white matter off white matter.
DIRT = 1.7
#: ... or of this, where the two hardly differ: what is no lesion does not fade with the contrast of the tissues.
LEAST_DIRT = 0.08
#: The same of infarcts: an acute one, the scar around an old one, the cavity in it, which is fluid.
ACUTE_SIGNAL = ((0.60, 0.95), (0.55, 1.0), (0.80, 1.5))
SCAR_SIGNAL = ((0.50, 0.85), (0.60, 1.0), (0.70, 1.3))
CAVITY_SIGNAL = ((0.12, 0.35), (0.85, 1.1), (0.10, 0.40))
#: The lesions that a patient's label map has, where others have the number of a mask; how often they are drawn there.
OWN, P_OWN = -1, 0.5
#: Large lesions and their shares: infarcts (real masks), masses with their oedema, broad seams of the ventricles.
LARGE = {"infarct": 0.4, "mass": 0.35, "seam": 0.25}
#: Their signal: on FLAIR clearly brighter than cortex, or raters would not have drawn them so large.
LARGE_SIGNAL = ((0.45, 0.90), (0.58, 1.10), (0.95, 1.6))
#: A mass within its oedema: what takes up contrast agent, as some do, and what is dead within that.
P_ENHANCING = 0.6
RIM_SIGNAL = ((0.9, 1.4), (0.55, 0.95), (0.6, 1.3))
DEAD_SIGNAL = ((0.2, 0.5), (0.75, 1.1), (0.3, 1.3))
#: Voxels of a brain on the grid of the lesion masks (nilearn's load_mni152_brain_mask, 1 mm).
MNI_BRAIN_VOXELS = 1_886_539
#: Where the real masks seldom reach, blobs are drawn on their own.
BELOW_TENTORIUM = ("brain stem", "cerebellar white matter", "ventral DC", "thalamus")
#: Kinds of matter that lesions may lie in; of the cortex only what the real mask covers.
LESION_HOSTS = (
    "white matter", "cerebellar white matter", "brain stem", "thalamus", "caudate", "putamen", "pallidum", "ventral DC",
    "cortex",
)  # fmt: skip


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


@dataclass(frozen=True)
class Pathology:
    """What is drawn into the tissue, as shares (X, Y, Z) of each voxel.

    Attributes
    ----------
    lesion : Tensor
        What is to be found.
    severity : Tensor or float
        How far it is from normal, within (0, 1].
    cavity : Tensor or None
        The part of it that is fluid: old infarcts.
    rim, dead : Tensor or None
        The parts of a mass that take up contrast agent, and that are dead; both belong to the lesion.
    spots : Tensor or None
        Bright white matter that is not to be found, where infarcts are.
    dirt : Tensor
        White matter on its way to cortex in its signal, and beyond: 1 is there.
    large : str
        Which of `LARGE` it is, if any.
    share : float
        How much of the whole brain a large one takes, of which a patch may see a part.
    """

    lesion: torch.Tensor
    severity: torch.Tensor | float
    cavity: torch.Tensor | None
    spots: torch.Tensor | None
    dirt: torch.Tensor
    large: str = ""
    share: float = 0.0
    rim: torch.Tensor | None = None
    dead: torch.Tensor | None = None


@dataclass(frozen=True)
class Anatomy:
    """What lesions are drawn into.

    Attributes
    ----------
    points : Tensor
        (3, X, Y, Z), for each voxel of the sample its place in the head's label map, in voxels.
    labels, kinds : Tensor
        int64 (X, Y, Z), positions in ``anatomy.STRUCTURES`` and in ``anatomy.KINDS``.
    head : int
        Number of the head.
    """

    points: torch.Tensor
    labels: torch.Tensor
    kinds: torch.Tensor
    head: int


@dataclass(frozen=True)
class Scene:
    """What is rendered.

    Attributes
    ----------
    kinds : Tensor
        int64 (X, Y, Z), positions in ``anatomy.KINDS``.
    kept : Tensor
        bool (X, Y, Z), what a stripping or defacing leaves.
    border : Tensor
        float32 (X, Y, Z), how much of the cortex's signal the fluid around it and the white matter below it have.
    lining : Tensor
        float32 (X, Y, Z), how much of a lesion's FLAIR signal walls and septum of the ventricles have, and are none.
    drawn : Pathology
    shift : ndarray
        Voxels by which this contrast lies off the others, along each axis.
    """

    kinds: torch.Tensor
    kept: torch.Tensor
    border: torch.Tensor
    lining: torch.Tensor
    drawn: Pathology
    shift: np.ndarray


@dataclass(frozen=True)
class Sample:
    """One anatomy and its scans, on a grid of `spacing_mm`, RAS.

    Attributes
    ----------
    image : Tensor
        float32 (contrasts, X, Y, Z), >= 0; all zero where a contrast is missing.
    labels : Tensor
        int64 (X, Y, Z), positions in ``anatomy.STRUCTURES``.
    distance : Tensor
        float32 (X, Y, Z), mm to the brain's border, positive inside.
    view : Tensor
        bool (X, Y, Z), the field of view; what is outside is padding.
    lesion : Tensor
        float32 (X, Y, Z), the share of each voxel that is lesion.
    place : tuple of Tensor
        Along each axis, voxel centres relative to the brain's box: -1 at its left, back, bottom and 1 at the other end.
    level : ndarray
        (contrasts, 2): mean and standard deviation within the whole brain, of which a patch sees a part.
    """

    image: torch.Tensor
    labels: torch.Tensor
    distance: torch.Tensor
    view: torch.Tensor
    lesion: torch.Tensor
    place: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    level: np.ndarray


class Generator:
    """Makes samples from heads; the same seed makes the same sample on the same kind of device."""

    def __init__(self, heads: Heads, config: GeneratorConfig, lesions: Lesions | None = None) -> None:
        if config.p_lesions and lesions is None:
            raise ValueError("p_lesions is set, but there are no lesion masks: name their folder under 'lesions'")
        if config.p_large and not (lesions and lesions.large):
            raise ValueError("p_large is set, but there are no masks of large lesions: name their folder under 'large'")
        self.heads, self.config, self.lesions = heads, config, lesions
        self.device = heads.labels.device
        table = torch.tensor([KIND[s.kind] for s in STRUCTURES], device=self.device)
        swap = torch.tensor([POSITION[s.partner] for s in STRUCTURES], device=self.device)
        self._kind, self._swap = table, swap
        self._cerebral = np.array([kind.cerebral for kind in KINDS])
        self._tissue = self._cerebral & np.array([kind.name not in ("csf", "choroid plexus") for kind in KINDS])
        self._tissue_of = torch.from_numpy(self._tissue).to(self.device)
        hosts = self._tissue if config.strokes else np.array([kind.name in LESION_HOSTS for kind in KINDS])
        self._hosts = torch.from_numpy(hosts).to(self.device)
        self._means = np.array([(k.t1w, k.t2w, k.flair) for k in KINDS]).T
        self._fractions = np.stack([self._count_kinds(head) for head in range(len(heads))])
        self._brain_mm3 = [float((heads.distance[i] > 0).sum()) * DISTANCE_SPACING_MM**3 for i in range(len(heads))]
        self._share_of_mask = [float(one.sum()) / MNI_BRAIN_VOXELS for one in lesions.masks] if lesions else []
        self._in_brain = torch.from_numpy(self._cerebral).to(self.device)
        sides = [[name in s.name and "lateral ventricle" in s.name for s in STRUCTURES] for name in ("left", "right")]
        self._ventricle_of_side = torch.tensor(sides, device=self.device)
        self._fluid = np.array([kind.name == "csf" for kind in KINDS])
        self._ventricle = self._ventricle_of_side.any(0)
        self._sulcal_fluid = torch.tensor([s.name == "CSF" for s in STRUCTURES], device=self.device)
        ill = [POSITION[index] for index in (LEFT_LESION, RIGHT_LESION)]
        self._ill = torch.tensor(ill, device=self.device)
        self._own_spots = [self._find_own(head) for head in range(len(heads))]
        self._below = torch.tensor([kind.name in BELOW_TENTORIUM for kind in KINDS], device=self.device)
        self._bright_fluid = torch.tensor([KIND["csf"], KIND["choroid plexus"]], device=self.device)

    def sample(self, seed: int, head: int | None = None) -> Sample:
        """Sample number `seed`, of head number `head` or any."""
        rng = np.random.default_rng(seed)
        torch_rng = torch.Generator(self.device).manual_seed(seed)
        head = int(rng.integers(len(self.heads))) if head is None else head
        scale = rng.uniform(*self.config.scale) * rng.uniform(0.94, 1.06, 3)
        masks = self._choose_masks(rng, head)
        shape, view, middle = self._field_of_view(rng, head, scale, masks)
        points = self._points(rng, torch_rng, head, shape, middle, scale)
        labels, distance = self._look_up(head, points)
        place = self._place(rng, shape, middle, self.heads.extent[head] * scale)
        if rng.random() < 0.5:
            labels, distance, points = self._swap[labels.flip(0)], distance.flip(0), points.flip(1)
            view, place = view.flip(0), (-place[0].flip(0), *place[1:])
        kept = self._kept(rng, torch_rng, points, distance, head) & view
        labels = self._thinned(rng, torch_rng, labels)
        kinds = self._kinds(rng, torch_rng, labels)
        drawn = self._pathology(rng, torch_rng, Anatomy(points, labels, kinds, head), masks)
        if drawn.large and drawn.cavity is not None:  # what has become fluid is fluid, beside the infarcts' bright rim
            labels = torch.where(drawn.cavity > 0.5, POSITION[24], labels)
        which = rng.permutation(3)[: self.config.contrasts] if self.config.contrasts < 3 else range(3)
        there = self._there(rng)
        border = self._border(rng, torch_rng, labels, kinds)
        lining = self._lining(rng, torch_rng, labels, kinds, drawn.lesion)
        clean = kept if rng.random() < self.config.p_clean else view
        images, level = (
            torch.zeros((len(there), *kinds.shape), device=self.device),
            np.tile([0.0, 1.0], (len(there), 1)),
        )
        for i, contrast in enumerate(which):
            if there[i]:
                shift = self.config.misaligned_mm / self.config.spacing_mm * (there.sum() > 1)
                scene = Scene(kinds, kept, border, lining, drawn, rng.normal(0, shift, 3))
                images[i], level[i] = self._render(rng, torch_rng, scene, contrast, head)
        return Sample(images * clean, labels, distance, view, drawn.lesion, place, level)

    def _count_kinds(self, head: int) -> np.ndarray:
        """Share of each kind of matter in a brain."""
        step = DISTANCE_SPACING_MM
        kinds = self._kind[self.heads.labels[head, ::step, ::step, ::step].long()]
        counts = torch.bincount(kinds[self.heads.distance[head] > 0], minlength=len(KINDS)).double()
        return (counts / counts.sum()).cpu().numpy()

    def _find_own(self, head: int) -> np.ndarray:
        """(N, 3): where a patient's own lesions are, mm from the middle of the brain."""
        where = torch.isin(self.heads.labels[head].long(), self._ill).nonzero().cpu().numpy()
        return where - self.heads.centre[head]

    # Geometry ---------------------------------------------------------------------------------------------------

    def _field_of_view(
        self, rng: np.random.Generator, head: int, scale: np.ndarray, masks: list[int]
    ) -> tuple[tuple[int, ...], torch.Tensor, np.ndarray]:
        """Shape of the sample, its field of view, and the middle of the brain in mm from the sample's corner."""
        c, extent = self.config, self.heads.extent[head] * scale
        if c.patch:
            shape = (c.patch,) * 3
            half = c.patch * c.spacing_mm / 2
            offset = rng.uniform(-1, 1, 3) * np.maximum(0, extent + 8 - half)
            if masks and rng.random() < c.p_centred:  # close to a lesion: the elastic field moves it a little
                offset = self._some_spot(rng, head, masks[0]) * scale + rng.uniform(-0.3, 0.3, 3) * half
            return shape, torch.ones(shape, dtype=torch.bool, device=self.device), half - offset
        sides = rng.uniform(*c.view_sides_mm, (2, 2))
        low = -extent - np.array([*sides[0], rng.uniform(*c.view_bottom_mm)])
        high = extent + np.array([*sides[1], rng.uniform(*c.view_top_mm)])
        size = np.minimum(high - low, c.view_most_mm)
        voxels = np.maximum(1, np.round(size / c.spacing_mm)).astype(int)
        shape = tuple(math.ceil(n / c.multiple) * c.multiple for n in voxels)
        view = torch.zeros(shape, dtype=torch.bool, device=self.device)
        start = [int(rng.integers(0, n - v + 1)) for n, v in zip(shape, voxels, strict=True)]
        view[tuple(slice(a, a + v) for a, v in zip(start, voxels, strict=True))] = True
        # What does not fit is cut from below: the neck, not the brain.
        return shape, view, np.array(start) * c.spacing_mm + size - high

    def _points(
        self, rng: np.random.Generator, torch_rng: torch.Generator, head: int, shape: tuple[int, ...],
        middle: np.ndarray, scale: np.ndarray,
    ) -> torch.Tensor:  # fmt: skip
        """(3, X, Y, Z): for each voxel of the sample its place in the head's label map, in voxels (1 mm)."""
        c = self.config
        angles = np.deg2rad(rng.uniform(-c.rotation_deg, c.rotation_deg, 3))
        matrix = rotation(angles) @ (np.eye(3) + rng.uniform(-c.shear, c.shear, (3, 3)) * (1 - np.eye(3)))
        matrix = (matrix / scale).astype(np.float32)
        axes = [
            torch.arange(n, device=self.device, dtype=torch.float32) * c.spacing_mm - float(m)
            for n, m in zip(shape, middle, strict=True)
        ]
        centre = self.heads.centre[head]
        strength = rng.uniform(*c.elastic_mm)
        points = torch.empty((3, *shape), device=self.device)
        for i in range(3):
            x, y, z = (float(matrix[i, j]) * axes[j] for j in range(3))
            points[i] = x[:, None, None] + y[:, None] + z + float(centre[i])
            points[i] += strength * smooth_field(shape, rng.uniform(30, 45) / c.spacing_mm, torch_rng)
        if any(c.ventricles_mm) and rng.random() < 0.5:
            points = moved(points, self.heads.flow[head], rng.uniform(*c.ventricles_mm))
        return points

    def _place(
        self, rng: np.random.Generator, shape: tuple[int, ...], middle: np.ndarray, extent: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        c, out = self.config, []
        for n, centre, half in zip(shape, middle, extent, strict=True):
            low, high = rng.normal(0, c.box_error_mm, 2) if c.box_error_mm else (0.0, 0.0)
            millimetres = (torch.arange(n, device=self.device, dtype=torch.float32) + 0.5) * c.spacing_mm
            out.append((millimetres - float(centre + (low + high) / 2)) / float(half + (high - low) / 2))
        return tuple(out)  # type: ignore[return-value]

    def _look_up(self, head: int, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        labels = self.heads.labels[head]
        nearest = points.round().long()
        inside = torch.ones(points.shape[1:], dtype=torch.bool, device=self.device)
        for axis, n in enumerate(labels.shape):
            inside &= (nearest[axis] >= 0) & (nearest[axis] < n)
            nearest[axis].clamp_(0, n - 1)
        x, y, z = nearest
        found = labels[x, y, z].long() * inside
        field = self.heads.distance[head].float()
        # Voxel i of the 2 mm map covers voxels 2i and 2i+1; grid_sample wants (z, y, x) in [-1, 1].
        places = [(points[i] - 0.5) / DISTANCE_SPACING_MM / (field.shape[i] - 1) * 2 - 1 for i in (2, 1, 0)]
        distance = functional.grid_sample(
            field[None, None], torch.stack(places, -1)[None], align_corners=True, padding_mode="border"
        )[0, 0]
        return found, distance

    def _kept(
        self, rng: np.random.Generator, torch_rng: torch.Generator, points: torch.Tensor, distance: torch.Tensor,
        head: int,
    ) -> torch.Tensor:  # fmt: skip
        """What a defacing or a stripping leaves of the head."""
        c = self.config
        kept = torch.ones_like(distance, dtype=torch.bool)
        if rng.random() < c.p_stripped:
            error = smooth_field(distance.shape, 20 / c.spacing_mm, torch_rng) * rng.uniform(0, 2)
            return distance + rng.uniform(*c.strip_error_mm) + error > 0
        if rng.random() < c.p_defaced:
            angle = np.deg2rad(rng.uniform(0, 60))  # the face lies before and below the brain
            forward, up = points[1] - float(self.heads.centre[head][1]), points[2] - float(self.heads.centre[head][2])
            face = math.cos(angle) * forward - math.sin(angle) * up > rng.uniform(45, 85)
            kept = ~(face & (distance < -rng.uniform(1, 12)))
        return kept

    def _thinned(self, rng: np.random.Generator, torch_rng: torch.Generator, labels: torch.Tensor) -> torch.Tensor:
        """Cortex that fluid has eaten into from outside and white matter from below, in places, never from both.

        The cortex of the label maps is 2.2 to 3.1 mm thick; people's is 1 to 4.5 mm, thinner with age (Fischl & Dale
        2000). What a network takes for cortex should follow from what it sees, not from how thick it always was.
        """
        outer, inner = (rng.uniform(*range_) for range_ in (self.config.thinning, self.config.thinning_below))
        if not (outer or inner):
            return labels
        kinds = self._kind[labels]
        cortex = kinds == KIND["cortex"]
        fluid = self._sulcal_fluid[labels] | ~self._in_brain[kinds]
        taken = cortex & touching(fluid) & self._in_places(rng, torch_rng, labels.shape, outer)
        white = labels.new_tensor([POSITION[2], POSITION[41]])  # left, right
        for side in white:
            below = cortex & touching(labels == side) & ~touching(fluid | taken)
            below &= self._in_places(rng, torch_rng, labels.shape, inner)
            labels = torch.where(below, side, labels)
        return torch.where(taken, POSITION[24], labels)

    def _in_places(
        self, rng: np.random.Generator, torch_rng: torch.Generator, shape: torch.Size, share: float
    ) -> torch.Tensor:
        """Patches of 3 to 12 mm that make up about this share of a volume, bool."""
        if not share:
            return torch.zeros(shape, dtype=torch.bool, device=self.device)
        field = smooth_field(shape, rng.uniform(3, 12) / self.config.spacing_mm, torch_rng)
        return field < math.sqrt(2) * float(torch.erfinv(torch.tensor(2 * share - 1)))

    # Lesions ----------------------------------------------------------------------------------------------------

    def _choose_masks(self, rng: np.random.Generator, head: int) -> list[int]:
        """No mask, one, or two to unite; the first one may be the lesions that the head has itself."""
        if self.lesions is None or rng.random() >= self.config.p_lesions:
            return []
        common = self.lesions.common
        if self.config.p_large and rng.random() < self.config.p_large:
            return [int(rng.integers(common, len(self.lesions)))]
        masks = [int(i) for i in rng.integers(common, size=rng.integers(1, 3))]
        if len(self._own_spots[head]) and rng.random() < P_OWN:
            masks[0] = OWN
        return masks

    def _some_spot(self, rng: np.random.Generator, head: int, mask: int) -> np.ndarray:
        """A place in a mask's lesions, mm from the middle of the head's brain."""
        if mask == OWN:
            return self._own_spots[head][rng.integers(len(self._own_spots[head]))]
        spots = self.lesions.spots[mask]  # type: ignore[union-attr]
        return self._from_mni(spots[rng.integers(len(spots))], head)

    def _from_mni(self, voxel: np.ndarray, head: int) -> np.ndarray:
        """Voxel of a lesion mask -> mm from the middle of this head's brain (boxes of both brains made to coincide)."""
        half = (BRAIN_MM[1] - BRAIN_MM[0]) / 2
        return (voxel + ORIGIN_MM - BRAIN_MM.mean(0)) / half * self.heads.extent[head]

    def _pathology(
        self, rng: np.random.Generator, torch_rng: torch.Generator, anatomy: Anatomy, masks: list[int]
    ) -> Pathology:
        """Real masks, thinned, and blobs; inside the tissues that may have them."""
        if self.lesions is not None and masks and masks[0] >= self.lesions.common:
            return self._large(rng, torch_rng, anatomy, masks)
        kinds = anatomy.kinds
        lesion, cavity, spots = torch.zeros(kinds.shape, device=self.device), None, None
        if masks:
            lesion = self._placed(rng, anatomy, masks)
            field = smooth_field(kinds.shape, rng.uniform(6, 15) / self.config.spacing_mm, torch_rng)
            lesion *= field > rng.uniform(-3, -1.0 if self.config.strokes else 0.5)
        if masks or self.config.strokes:
            blobs = smooth_field(kinds.shape, rng.uniform(4, 9) / self.config.spacing_mm, torch_rng)
            blobs = (blobs > rng.uniform(2.8, 4.5)).float()
            use = rng.random() < 0.6  # above all where the real masks seldom are
            if self.config.strokes:
                white = kinds == KIND["white matter"]
                spots = self._soften(blobs * use, rng.uniform(0.3, 0.9)) * white * (1 - lesion)
                cavity = self._cavity(rng, torch_rng, lesion)
            elif use:
                lesion = torch.maximum(lesion, blobs)
                if rng.random() < 0.5:
                    field = smooth_field(kinds.shape, rng.uniform(2.5, 6) / self.config.spacing_mm, torch_rng)
                    lesion = torch.maximum(lesion, (field > rng.uniform(2.2, 3.5)) * self._below[kinds])
            lesion = self._soften(lesion, rng.uniform(0.3, 0.9)) * self._hosts[kinds]
        severity = self._severity(rng, torch_rng, kinds.shape) if masks else 1.0
        return Pathology(lesion, severity, cavity, spots, self._dirt(rng, torch_rng, anatomy.labels, kinds))

    def _large(
        self, rng: np.random.Generator, torch_rng: torch.Generator, anatomy: Anatomy, masks: list[int]
    ) -> Pathology:
        """An infarct, a mass or a broad seam of the ventricles, in any tissue, and blobs that are lesions, too."""
        labels, kinds = anatomy.labels, anatomy.kinds
        spacing, tissue = self.config.spacing_mm, self._tissue_of[kinds]
        large, cavity, rim, dead = str(rng.choice(list(LARGE), p=list(LARGE.values()))), None, None, None
        if large == "infarct":
            lesion = self._placed(rng, anatomy, masks)
            lesion *= smooth_field(kinds.shape, rng.uniform(6, 15) / spacing, torch_rng) > rng.uniform(-3, -0.5)
        elif large == "mass":
            lesion, rim, dead = self._mass(rng, torch_rng, kinds.shape)
        else:
            lesion = self._seam(rng, torch_rng, labels, kinds)
        if rng.random() < 0.5:
            blobs = smooth_field(kinds.shape, rng.uniform(4, 9) / spacing, torch_rng) > rng.uniform(2.4, 4.0)
            lesion = torch.maximum(lesion, blobs * self._hosts[kinds])
        if large == "mass":  # it fills the sulci
            tissue = tissue | self._sulcal_fluid[labels]
        lesion = self._soften(lesion, rng.uniform(0.3, 1.5)) * tissue
        rim, dead = (part if part is None else part * tissue for part in (rim, dead))
        if large == "infarct":
            cavity = self._cavity(rng, torch_rng, lesion)
            lesion = lesion * (1 - cavity)
        severity = self._severity(rng, torch_rng, kinds.shape)
        share = float(lesion.sum()) * spacing**3 / self._brain_mm3[anatomy.head]
        if large == "infarct":  # the patch sees a part of the mask
            share = max(share, 0.7 * self._share_of_mask[masks[0]]) * bool(lesion.any())
        dirt = self._dirt(rng, torch_rng, labels, kinds)
        return Pathology(
            lesion, severity, cavity, spots=None, dirt=dirt, large=large, share=min(share, 0.4), rim=rim, dead=dead
        )

    def _seam(
        self, rng: np.random.Generator, torch_rng: torch.Generator, labels: torch.Tensor, kinds: torch.Tensor
    ) -> torch.Tensor:
        """White matter and caudate around the ventricles, as far as a ragged border."""
        spacing = self.config.spacing_mm
        white = (kinds == KIND["white matter"]) | (kinds == KIND["caudate"])
        reach = self._soften(self._ventricle[labels].float(), rng.uniform(3, 8) / spacing)
        field = smooth_field(kinds.shape, rng.uniform(6, 20) / spacing, torch_rng)
        return ((4 * reach).clamp(max=1) + 0.2 * field > rng.uniform(0.3, 0.9)).float() * white

    def _mass(
        self, rng: np.random.Generator, torch_rng: torch.Generator, shape: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """A ball of 5 to 25 mm with a knobbly surface; what of it takes up contrast agent, and what is dead."""
        spacing = self.config.spacing_mm
        away = torch.zeros(shape, device=self.device)
        for axis, n in enumerate(shape):
            along = torch.arange(n, device=self.device, dtype=torch.float32) - n * float(rng.uniform(0.2, 0.8))
            away = away + (along * spacing).square().view([-1 if i == axis else 1 for i in range(3)])
        radius = rng.uniform(5, 25)
        field = smooth_field(shape, rng.uniform(8, 20) / spacing, torch_rng)
        depth = radius * (1 + 0.3 * field) - away.sqrt()  # mm below the surface
        mass = (depth > 0).float()
        if rng.random() >= P_ENHANCING:
            return mass, None, None
        oedema = rng.uniform(0, 0.6) * radius
        thickness = rng.uniform(2, radius)  # solid where it is thicker than what it encloses
        rim, dead = (depth > oedema).float(), (depth > oedema + thickness).float()
        return mass, self._soften(rim, 0.6), self._soften(dead, 0.6)

    def _placed(self, rng: np.random.Generator, anatomy: Anatomy, masks: list[int]) -> torch.Tensor:
        """Masks brought from MNI space into the brain, united, and a patient's own lesions."""
        points, head = anatomy.points, anatomy.head
        lesion = torch.zeros(anatomy.labels.shape, device=self.device)
        half = (BRAIN_MM[1] - BRAIN_MM[0]) / 2 / self.heads.extent[head]
        shift = BRAIN_MM.mean(0) - ORIGIN_MM - self.heads.centre[head] * half
        if OWN in masks:
            lesion = torch.isin(anatomy.labels, self._ill).float()
        for mask in (mask for mask in masks if mask != OWN):
            volume = self.lesions.masks[mask]  # type: ignore[union-attr]
            place = [(points[i] * float(half[i]) + float(shift[i])).round().long() for i in range(3)]
            if rng.random() < 0.5 and not self.config.patch:  # a centred patch relies on the mask's own side
                place[0] = volume.shape[0] - 1 - place[0]
            x, y, z = (p.clamp_(0, n - 1) for p, n in zip(place, volume.shape, strict=True))
            lesion = torch.maximum(lesion, volume[x, y, z].float())
        return lesion

    def _cavity(self, rng: np.random.Generator, torch_rng: torch.Generator, lesion: torch.Tensor) -> torch.Tensor:
        """The fluid within an old infarct, away from its border; none in an acute one."""
        if rng.random() < 0.5:
            return torch.zeros_like(lesion)
        inside = self._soften(lesion, rng.uniform(1.5, 4.0) / self.config.spacing_mm)
        field = smooth_field(lesion.shape, rng.uniform(8, 20) / self.config.spacing_mm, torch_rng)
        return self._soften((inside + 0.15 * field > rng.uniform(0.55, 0.95)).float() * lesion, 0.6)

    def _dirt(
        self, rng: np.random.Generator, torch_rng: torch.Generator, labels: torch.Tensor, kinds: torch.Tensor
    ) -> torch.Tensor:
        """White matter that is "dirty" near cortex, near ventricles or elsewhere, but holds no lesion.

        Caps and bands of the ventricles, corticospinal and optic tracts: brighter than cortex on some real FLAIR, and
        drawn by no rater.
        """
        c = self.config
        if not c.p_lesions or rng.random() >= c.p_dirty:
            return torch.zeros(kinds.shape, device=self.device)
        field = smooth_field(kinds.shape, rng.uniform(6, 25) / c.spacing_mm, torch_rng)
        where = rng.integers(3)
        if where == 0:
            border = torch.isin(kinds, torch.tensor([KIND["cortex"], KIND["csf"]], device=self.device)).float()
            field = field.clamp(0, 1) * self._soften(border, 2.0 / c.spacing_mm)
        elif where == 1:
            ventricle = self._soften(self._ventricle[labels].float(), rng.uniform(4, 8) / c.spacing_mm)
            field = (field + 0.5).clamp(0, 1) * (4 * ventricle).clamp(max=1)
        else:
            field = (field - rng.uniform(0, 1)).clamp(0, 1)
        return rng.uniform(0, DIRT) * field * (kinds == KIND["white matter"])

    def _border(
        self, rng: np.random.Generator, torch_rng: torch.Generator, labels: torch.Tensor, kinds: torch.Tensor
    ) -> torch.Tensor:
        """How much of the cortex's signal its surroundings have.

        FreeSurfer, whose labels the maps hold, puts both surfaces of the cortex within the edges that are seen: on its
        T1w of ``bids_t1_freesurfer`` the white matter next to it looks four tenths like cortex, the fluid seven tenths.
        And all of the fluid in sulci, with its meninges and vessels, looks half like cortex there.
        """
        c, none = self.config, torch.zeros(kinds.shape, device=self.device)
        border, sulcal, below = (rng.uniform(*range_) for range_ in (c.border, c.sulcal, c.below))
        if not (border or sulcal or below):
            return none
        cortex = ((kinds == KIND["cortex"]) | (kinds == KIND["cerebellar cortex"])).float()
        near = self._soften(cortex, 0.8 / c.spacing_mm)
        fluid = none
        if sulcal:
            field = smooth_field(kinds.shape, rng.uniform(3, 10) / c.spacing_mm, torch_rng)
            fluid = (sulcal * (1 + 0.5 * field)).clamp(0, 0.9)
        fluid = torch.maximum((border * near).clamp(max=0.8), fluid) * self._sulcal_fluid[labels]
        white = (kinds == KIND["white matter"]) | (kinds == KIND["cerebellar white matter"])
        return fluid + (below * near).clamp(max=0.6) * white

    def _lining(
        self, rng: np.random.Generator, torch_rng: torch.Generator, labels: torch.Tensor, kinds: torch.Tensor,
        lesion: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        """Walls of the lateral ventricles, and what lies between the two: septum and fornix.

        Both are bright on the FLAIR of healthy people, the one about a voxel thick, the other a sheet in the midline.
        """
        if rng.random() >= self.config.p_lining:
            return torch.zeros(kinds.shape, device=self.device)
        left, right = self._ventricle_of_side[:, labels]
        wall = touching(left | right) & self._tissue_of[kinds]
        width = rng.uniform(0.7, 2.0) / self.config.spacing_mm
        between = 4 * self._soften(left.float(), width) * self._soften(right.float(), width)
        between = (2 * between).clamp(max=1) * (self._tissue_of[kinds] | left | right)
        field = smooth_field(kinds.shape, rng.uniform(8, 30) / self.config.spacing_mm, torch_rng)
        lining = torch.maximum(rng.uniform(0, 1) * (0.5 + 0.5 * field).clamp(0, 1) * wall, rng.uniform(0, 1) * between)
        return lining * (1 - lesion)

    def _severity(
        self, rng: np.random.Generator, torch_rng: torch.Generator, shape: torch.Size
    ) -> torch.Tensor | float:
        """How far the lesions of each place are from normal, in all contrasts."""
        range_ = rng.uniform(*self.config.severity)
        if not range_:
            return 1.0
        field = smooth_field(shape, rng.uniform(8, 25) / self.config.spacing_mm, torch_rng)
        return 1 - range_ * torch.sigmoid(2 * field)

    def _soften(self, image: torch.Tensor, sigma: float) -> torch.Tensor:
        of_length = {
            n: slice_profiles(n, spacing=1, thickness=0.5, blur=sigma, phase=0, device=self.device)[0]
            for n in set(image.shape)
        }
        for axis, n in enumerate(image.shape):
            image = apply_along(image, of_length[n], axis)
        return image.clamp(0, 1)

    # Contrast ---------------------------------------------------------------------------------------------------

    def _kinds(self, rng: np.random.Generator, torch_rng: torch.Generator, labels: torch.Tensor) -> torch.Tensor:
        """Kind of matter of each voxel; soft tissue and skin, one label each in the maps, get fat and muscle."""
        kinds = self._kind[labels]
        field = smooth_field(labels.shape, rng.uniform(6, 16) / self.config.spacing_mm, torch_rng)
        outer = (kinds == KIND["soft tissue"]) | (kinds == KIND["skin"])
        kinds = torch.where(outer & (field > rng.uniform(-0.5, 1.5)), KIND["fat"], kinds)
        return torch.where(outer & (field < rng.uniform(-2.0, -0.5)), KIND["muscle"], kinds)

    def _signals(self, rng: np.random.Generator, contrast: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of each kind of matter."""
        c, n = self.config, len(KINDS)
        means = self._means[contrast] * np.exp(rng.normal(0, c.jitter, n)) + rng.normal(0, 0.03, n)
        middle = means[[KIND["cortex"], KIND["white matter"]]].mean()
        means[self._tissue] = middle + rng.uniform(*c.tissue_contrast) * (means[self._tissue] - middle)
        if rng.random() < c.p_random_contrast:
            means = rng.uniform(0, 1.2, n)
        outside = ~self._cerebral
        if rng.random() < c.p_strange_outside:
            means[outside] = rng.uniform(0, 1.6, int(outside.sum())) * rng.uniform(0.5, 1.5)
        else:
            means[outside] *= np.exp(rng.normal(0, 2 * c.jitter, int(outside.sum())))
        means[KIND["air"]] = rng.uniform(0, 0.06) if rng.random() < 0.9 else rng.uniform(0, 0.3)
        deviations = rng.uniform(*c.texture, n)
        return np.clip(means, 0, None), deviations

    def _render(
        self, rng: np.random.Generator, torch_rng: torch.Generator, scene: Scene, contrast: int, head: int
    ) -> tuple[torch.Tensor, np.ndarray]:
        """One contrast, and its mean and standard deviation within the whole brain."""
        c, kinds = self.config, scene.kinds
        means, deviations = self._signals(rng, contrast)
        tables = torch.tensor(np.stack([means, deviations]), dtype=torch.float32).to(self.device)
        # What lies in the sulci is not as bright on one contrast as on another.
        border = (scene.border * rng.uniform(0.6, 1.2)).clamp(max=0.9) if c.sulcal[1] else scene.border
        image = torch.lerp(tables[0][kinds], tables[0][KIND["cortex"]], border)
        image = image + tables[1][kinds] * torch.randn(kinds.shape, generator=torch_rng, device=self.device)
        image = self._mottle(rng, torch_rng, image, kinds)
        if c.p_lesions:
            image = self._draw(rng, torch_rng, image, scene.drawn, contrast)
            share = rng.uniform(0.6, 1.1) if contrast else rng.uniform(0.2, 0.6)
            image = image + share * _dirt_signal(means) * scene.drawn.dirt
        ill = float((image * scene.drawn.lesion).sum() / scene.drawn.lesion.sum()) if scene.drawn.share else 0.0
        image = self._brighten(rng, torch_rng, image, scene, contrast)
        image = image.clamp_(min=0) * scene.kept
        image = image * torch.exp(
            rng.uniform(*c.bias) * smooth_field(image.shape, rng.uniform(50, 120) / c.spacing_mm, torch_rng)
        )
        image = self._acquire(rng, torch_rng, image, scene.shift)
        gamma = rng.uniform(*c.gamma)
        shares, powered = self._fractions[head] * np.where(self._fluid, rng.uniform(*c.fluid), 1), means**gamma
        shares = shares / shares.sum()
        if scene.drawn.share:  # a large lesion moves the mean and deviation of the whole brain
            shares = np.append(shares * (1 - scene.drawn.share), scene.drawn.share)
            powered = np.append(powered, max(ill, 0) ** gamma)
        mean = float(shares @ powered)
        deviation = math.sqrt(float(shares @ (powered - mean) ** 2)) + 1e-3
        shift, stretch = rng.normal(0, c.level_error, 2) if c.level_error else (0.0, 0.0)
        return image.clamp(min=0) ** gamma, np.array([mean + shift * deviation, deviation * math.exp(stretch)])

    def _draw(
        self, rng: np.random.Generator, torch_rng: torch.Generator, image: torch.Tensor, drawn: Pathology, contrast: int
    ) -> torch.Tensor:
        """Lesions in the signal of their kind, with a texture of low frequency."""
        body = LESION_SIGNAL
        if drawn.large:
            body = LARGE_SIGNAL
        elif drawn.cavity is not None:
            body = SCAR_SIGNAL if drawn.cavity.any() else ACUTE_SIGNAL
        parts = [
            (drawn.spots, LESION_SIGNAL), (drawn.lesion, body), (drawn.rim, RIM_SIGNAL), (drawn.dead, DEAD_SIGNAL),
            (drawn.cavity, CAVITY_SIGNAL),
        ]  # fmt: skip
        shares = [(share, signals) for share, signals in parts if share is not None]
        for share, signals in shares:
            low, high = signals[contrast]
            texture = smooth_field(image.shape, rng.uniform(3, 8) / self.config.spacing_mm, torch_rng)
            signal = rng.uniform(low, high) * (1 + rng.uniform(0, 0.12) * texture)
            image = torch.lerp(image, signal, share * drawn.severity * rng.uniform(0.7, 1.0))
        return image

    def _mottle(
        self, rng: np.random.Generator, torch_rng: torch.Generator, image: torch.Tensor, kinds: torch.Tensor
    ) -> torch.Tensor:
        """White matter that is a little brighter here and darker there, as tracts are, without any lesion."""
        strength = rng.uniform(*self.config.mottle)
        if not strength:
            return image
        field = smooth_field(kinds.shape, rng.uniform(8, 30) / self.config.spacing_mm, torch_rng)
        return image * (1 + strength * field * (kinds == KIND["white matter"]))

    def _brighten(
        self, rng: np.random.Generator, torch_rng: torch.Generator, image: torch.Tensor, scene: Scene, contrast: int
    ) -> torch.Tensor:
        """Bright cortex, flow in fluid, choroid plexus, the ventricles' lining: what is taken for lesions on FLAIR."""
        c, kinds, name = self.config, scene.kinds, CONTRASTS[contrast]
        if name != "T1w" and rng.random() < c.p_bright_cortex:
            field = smooth_field(kinds.shape, rng.uniform(12, 30) / c.spacing_mm, torch_rng).clamp(0, 2)
            image = image * (1 + rng.uniform(0, 0.2) * field * (kinds == KIND["cortex"]))
        if name == "FLAIR" and rng.random() < c.p_flow:
            field = smooth_field(kinds.shape, rng.uniform(6, 20) / c.spacing_mm, torch_rng).clamp(0, 2)
            image = image + rng.uniform(0, 0.5) * field * torch.isin(kinds, self._bright_fluid)
        if name == "FLAIR" and rng.random() < c.p_choroid:
            image = image + rng.uniform(0, 0.6) * (kinds == KIND["choroid plexus"])
        if name == "FLAIR" and c.p_lining:
            image = image + scene.lining * (rng.uniform(*LESION_SIGNAL[contrast]) - image)
        return image

    def _acquire(
        self, rng: np.random.Generator, torch_rng: torch.Generator, image: torch.Tensor, shift: np.ndarray
    ) -> torch.Tensor:
        """Slices of a random thickness along one axis, noise on the acquired grid, and back by interpolation."""
        c = self.config
        thick_axis = int(rng.integers(3)) if rng.random() < c.p_thick else -1
        back = []
        for axis in range(3):
            spacing = thickness = 1.0  # in voxels
            if axis == thick_axis:
                spacing = max(1.0, rng.uniform(*c.thick_mm) / c.spacing_mm)
                thickness = spacing * rng.uniform(0.75, 1.0)  # gaps between slices
            to_slices, from_slices = slice_profiles(
                image.shape[axis], spacing=spacing, thickness=thickness, blur=rng.uniform(0.2, 0.75),
                phase=rng.uniform(0, 1), shift=float(shift[axis]), device=self.device,
            )  # fmt: skip
            image = apply_along(image, to_slices, axis)
            back.append(from_slices)
        deviation = rng.uniform(*c.noise)
        real, imaginary = torch.randn((2, *image.shape), generator=torch_rng, device=self.device) * deviation
        image = torch.sqrt((image + real) ** 2 + imaginary**2)  # Rician (Gudbjartsson & Patz 1995)
        for axis, matrix in enumerate(back):
            image = apply_along(image, matrix, axis)
        return image

    def _there(self, rng: np.random.Generator) -> np.ndarray:
        """Which of the contrasts the sample has; at least one."""
        keep = rng.random(self.config.contrasts) >= self.config.p_drop
        if not keep.any():
            keep[rng.integers(len(keep))] = True
        return keep


def _dirt_signal(means: np.ndarray) -> float:
    """How far dirt of 1 is from white matter: as far as cortex, and on the same side of it."""
    difference = float(means[KIND["cortex"]] - means[KIND["white matter"]])
    return math.copysign(max(abs(difference), LEAST_DIRT), difference)


def scaled(sample: Sample) -> torch.Tensor:
    """The images with mean 0 and standard deviation 1 in the whole brain, kept within +-5; 0 outside, or missing."""
    levels = torch.as_tensor(sample.level, dtype=torch.float32, device=sample.image.device)
    means, deviations = levels.T[:, :, None, None, None]
    return ((sample.image - means) / deviations * (sample.image > 0)).clamp(-5, 5)
