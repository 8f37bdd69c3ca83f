"""White-matter lesions as what the subject's own tissue model does not explain: bright on FLAIR, in white matter.

A lesion class joins the tissues of `mixture`: a Gaussian of its own, whose parameters are learned on the subject from a
conjugate prior (so that a brain without lesions teaches it nothing wrong), a spatial prior from white matter, and a
Markov random field. Then what anatomy rules out is removed.

- Outliers of a tissue model: Van Leemput et al., IEEE TMI 2001;20:677.
- A lesion class with a conjugate prior tied to white matter: Cerri et al. (SAMSEG), NeuroImage 2021;225:117471.
- Seeds that grow into less certain surroundings: Schmidt et al. (LST), NeuroImage 2012;59:3774.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from bidsapp.image.grid import bounding_box
from bidsapp.image.morphology import grown
from bidsapp.models.mixture import CSF, GM, WM, MixtureResult, enlarge, seen_alike, without_signal, working_box

PAIRS = ((GM, WM), (WM, CSF), (GM, CSF))
CONNECTED = ndimage.generate_binary_structure(3, 2)
#: A voxel at a lesion's border is lesion if it is this much as bright as the lesion within `REACH_MM` along each axis:
#: on ``bids_ms_mni`` the voxels just inside the raters' border have a share of 0.65, those just outside 0.25 (medians).
SHARE = 0.4
REACH_MM = 3.0
#: Only this near to the border: what is dark deep inside is a cavity, and lesion.
RIM_MM = 2.0


@dataclass(frozen=True)
class OutlierSettings:
    """What can be chosen. Lengths are in voxels of the work grid (about 1 mm).

    Attributes
    ----------
    prevalence : float
        Prior probability of a lesion in pure white matter. 27 MS lesion masks in MNI space (Lesjak et al. 2017) give
        0.04 there, and fall with the square of the white-matter prior blurred by 2 mm.
    brightness : float
        Expected distance of lesions from white matter on FLAIR, in its standard deviations.
    pseudo_voxels : float
        Strength of the expectation against the subject's lesions (500 in SAMSEG).
    smoothness : float
        Markov random field: half the log-odds between 26 lesion neighbours and none.
    threshold, seed : float
        A lesion is where the probability exceeds `threshold`, provided that it somewhere exceeds `seed`.
    """

    prevalence: float = 0.06
    region_blur: float = 2.0
    prior_blur: float = 1.5
    prior_floor: float = 0.02
    brightness: float = 5.0
    pseudo_voxels: float = 2000.0
    smoothness: float = 2.0
    iterations: int = 8
    threshold: float = 0.5
    seed: float = 0.9
    rim: float = 2.0
    least_fluid: int = 100
    surround: float = 0.5


@dataclass(frozen=True)
class LesionResult:
    """Lesions.

    Attributes
    ----------
    probability : ndarray
        (X, Y, Z) float32, 0 to 1.
    mask : ndarray of bool
        (X, Y, Z): probability above the threshold, seeded, of the minimum volume; `without_rim`.
    excess : ndarray
        (X, Y, Z) float32: FLAIR less that of white matter in this part of the brain; 0 outside it.
    """

    probability: np.ndarray
    mask: np.ndarray
    excess: np.ndarray


def segment_lesions(
    images: Mapping[str, np.ndarray],
    mask: np.ndarray,
    mixture: MixtureResult,
    priors: np.ndarray,
    *,
    voxel_size_mm: tuple[float, float, float] = (1.0, 1.0, 1.0),
    minimum_volume_mm3: float = 10.0,
    settings: OutlierSettings | None = None,
) -> LesionResult:
    """Segment white-matter lesions.

    Parameters
    ----------
    images : mapping of str to ndarray
        The images the mixture was fitted to, FLAIR among them; (X, Y, Z). NaN where a scan shows nothing, outside its
        field of view: no lesion is found where that is the FLAIR.
    mask : ndarray of bool
        (X, Y, Z) brain mask.
    mixture : MixtureResult
        The subject's tissue model.
    priors : ndarray
        (3, X, Y, Z) GM, WM and CSF priors.
    voxel_size_mm : tuple of float
    minimum_volume_mm3 : float
        Smaller lesions are dropped, from the probability, too; what `without_rim` leaves of others in the mask may be
        less. 10 mm3: a lesion of 3 mm across in clinical practice (Grahl et al., NeuroImage Clin 2019) has 14 mm3.

    Returns
    -------
    LesionResult

    Raises
    ------
    ValueError
        No FLAIR, or images other than those the mixture was fitted to.
    """
    settings = settings or OutlierSettings()
    _check(images, mask, mixture)
    box, shape = working_box(mask), mask.shape
    lit = ~without_signal(images["FLAIR"], mask)
    images, mask, priors = {name: image[box] for name, image in images.items()}, mask[box], priors[:, *box]
    names = mixture.contrasts
    flair = names.index("FLAIR")
    x = np.stack([images[name][mask] for name in names]).astype(np.float32)  # (C, N)
    tissue = _blur(priors, mask, settings.prior_blur) + settings.prior_floor
    tissue /= tissue.sum(axis=0)
    (region,) = _blur(priors[WM, None], mask, settings.region_blur)
    tissue = np.stack([*tissue, tissue[CSF] * (1 - region) ** 4 + 1e-6])
    local = enlarge(mixture.fields, mask)
    sd = np.sqrt(mixture.covariances[WM][flair, flair])
    bright = (x[flair] > local[WM, flair] + 2 * sd) & lit
    healthy = _healthy_log_density(x, tissue, mixture, local)
    prior = np.log(settings.prevalence * region**2 + 1e-6)
    probability = _fit_lesions(
        x, healthy, np.where(bright, prior, -50).astype(np.float32), mask, mixture, flair, settings
    )
    volume = np.zeros(mask.shape, np.float32)
    volume[mask] = probability
    least = minimum_volume_mm3 / float(np.prod(voxel_size_mm))
    candidates = volume > settings.threshold
    csf = np.where(mask, mixture.posteriors[CSF][box], 1)
    lesions = _anatomical(candidates, volume, csf, least, settings)
    volume[candidates & ~lesions] = 0
    whole, excess, found = np.zeros(shape, np.float32), np.zeros(shape, np.float32), np.zeros(shape, bool)
    inner = np.zeros(mask.shape, np.float32)
    inner[mask] = np.nan_to_num(x[flair] - local[WM, flair])
    whole[box], excess[box] = volume, inner
    found[box] = without_rim(lesions, inner, voxel_size_mm=voxel_size_mm)
    return LesionResult(whole, found, excess)


def without_rim(lesions: np.ndarray, excess: np.ndarray, *, voxel_size_mm: tuple[float, float, float]) -> np.ndarray:
    """Lesions without the voxels at their border that are mostly something else.

    A bright lesion brightens the voxels that it fills in part, and against little noise each of these stands out from
    white matter: the lesion comes out too wide by a voxel all around.

    Parameters
    ----------
    lesions : ndarray of bool, shape (X, Y, Z)
    excess : ndarray, shape (X, Y, Z)
        FLAIR less that of white matter nearby.
    voxel_size_mm : tuple of float

    Returns
    -------
    ndarray of bool, shape (X, Y, Z)
    """
    if not lesions.any():
        return lesions
    box = bounding_box(lesions, margin=2)
    inside, size = lesions[box], np.array(voxel_size_mm)
    smooth = ndimage.gaussian_filter(excess[box], 0.5 / size)
    brightest = ndimage.maximum_filter(
        np.where(inside, smooth, 0), tuple(2 * np.round(REACH_MM / size).astype(int) + 1)
    )
    deep = ndimage.distance_transform_edt(inside, sampling=size) > RIM_MM
    out = np.zeros_like(lesions)
    out[box] = inside & (deep | (smooth >= SHARE * brightest))
    return out


def _check(images: Mapping[str, np.ndarray], mask: np.ndarray, mixture: MixtureResult) -> None:
    if "FLAIR" not in images:
        raise ValueError(
            "Lesions are found by their brightness on FLAIR, and this session has no FLAIR: lesions are not measured."
        )
    if set(images) != set(mixture.contrasts):
        raise ValueError(f"The tissue model was fitted to {mixture.contrasts}, the images are {sorted(images)}.")
    for name, image in images.items():
        if image.shape != mask.shape:
            raise ValueError(f"{name} and the brain mask differ in shape: {image.shape} and {mask.shape}.")


def _blur(priors: np.ndarray, mask: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian means of maps (M, X, Y, Z) within the mask: (M, N)."""
    weight = np.maximum(ndimage.gaussian_filter(mask.astype(np.float32), sigma)[mask], 0.1)
    inside = (np.where(mask, prior, 0).astype(np.float32) for prior in priors)
    return np.stack([ndimage.gaussian_filter(prior, sigma)[mask] / weight for prior in inside])


def _gaussian(x: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Log density (N,) of x (C, N); mean (C, 1) or (C, N). By the scans that see the voxel, where some do not (NaN)."""
    seen = np.isfinite(x)
    if not seen.all():
        out, mean = np.zeros(x.shape[1], np.float32), np.broadcast_to(mean, x.shape)
        for scans, voxels in seen_alike(seen):
            if scans.any():
                some = np.ix_(scans, voxels)
                out[voxels] = _gaussian(x[some], mean[some], covariance[np.ix_(scans, scans)])
        return out
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    squared = np.square(whiten.astype(np.float32) @ (x - mean).astype(np.float32)).sum(axis=0)
    return -0.5 * squared + np.float32(np.log(np.diag(whiten)).sum() - 0.5 * len(x) * np.log(2 * np.pi))


def _healthy_log_density(x: np.ndarray, tissue: np.ndarray, mixture: MixtureResult, local: np.ndarray) -> np.ndarray:
    """Log density (N,) of each voxel's intensities if it were healthy, pure or mixed."""
    log_tissue = np.log(tissue)
    total = np.full(x.shape[1], -np.inf, np.float32)
    eye = np.eye(4, dtype=np.float32)
    shares = [*eye, *(f * eye[a] + (1 - f) * eye[b] for a, b in PAIRS for f in (1 / 3, 2 / 3))]
    for share in shares:
        mean = np.tensordot(share, local, 1)
        covariance = np.tensordot(share, mixture.covariances, 1)
        weight = 0.0 if share.max() == 1 else np.log(0.5)
        total = np.logaddexp(total, _gaussian(x, mean, covariance) + share @ log_tissue + np.float32(weight))
    return total


def _expectation(mixture: MixtureResult, flair: int, settings: OutlierSettings) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of lesions before any were seen."""
    wm, csf = mixture.means[WM], mixture.means[CSF]
    # On T1w and T2w lesions lie anywhere from white matter to CSF.
    mean = wm + 0.35 * (csf - wm)
    deviation = 0.25 * np.abs(csf - wm) + np.sqrt(np.diag(mixture.covariances[WM]))
    sd = np.sqrt(mixture.covariances[WM][flair, flair])
    mean[flair] = wm[flair] + settings.brightness * sd
    deviation[flair] = 1.5 * sd
    return mean, np.diag(deviation**2)


def _fit_lesions(
    x: np.ndarray,
    healthy: np.ndarray,
    prior: np.ndarray,
    mask: np.ndarray,
    mixture: MixtureResult,
    flair: int,
    settings: OutlierSettings,
) -> np.ndarray:
    """Posterior probability (N,) of the lesion class."""
    expected_mean, expected_covariance = _expectation(mixture, flair, settings)
    mean, covariance = expected_mean, expected_covariance
    volume = np.zeros(mask.shape, np.float32)
    inside = mask.astype(np.float32)
    neighbours = np.maximum(_neighbour_sum(inside)[mask], 1)
    field = np.zeros(len(healthy), np.float32)
    whole = np.isfinite(x).all(axis=0)  # what all scans see teaches the lesions' intensities
    known = np.nan_to_num(x)
    for _ in range(settings.iterations):
        log_odds = _gaussian(x, mean[:, None], covariance) + prior - healthy + field
        probability = 1 / (1 + np.exp(-np.clip(log_odds, -50, 50)))
        volume[mask] = probability
        field = settings.smoothness * (2 * _neighbour_sum(volume)[mask] / neighbours - 1)
        weight = np.where((probability > 0.5) & whole, probability, 0).astype(np.float64)
        total = settings.pseudo_voxels + weight.sum()
        mean = (settings.pseudo_voxels * expected_mean + known.astype(np.float64) @ weight) / total
        difference = known - mean[:, None]
        covariance = (settings.pseudo_voxels * expected_covariance + (difference * weight) @ difference.T) / total
    return probability


def _neighbour_sum(volume: np.ndarray) -> np.ndarray:
    return 27 * ndimage.uniform_filter(volume, 3, mode="constant") - volume


def _anatomical(
    candidates: np.ndarray, probability: np.ndarray, csf: np.ndarray, least_voxels: float, settings: OutlierSettings
) -> np.ndarray:
    """Candidates that may be lesions: with a seed and a core away from CSF, large enough, not lying in CSF.

    The rim of the ventricles, septum, choroid plexus and meninges are bright too, but thin or surrounded by CSF;
    a periventricular cap has a core.
    """
    fluid = _large_parts((csf > 0.5) & ~candidates, settings.least_fluid)
    core = candidates.copy()
    if core.any():  # distances are costly, so only where they can matter
        near = bounding_box(candidates, margin=int(np.ceil(settings.rim)))
        core[near] &= ~grown(fluid[near], settings.rim, (1, 1, 1))
    if not core.any():
        return core
    near_core = candidates & grown(core, settings.rim + 0.5, (1, 1, 1))
    labels, count = ndimage.label(near_core, CONNECTED)
    index = np.arange(1, count + 1)
    highest = ndimage.maximum(np.where(core, probability, 0)[near_core], labels[near_core], index)
    size = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    shell = ndimage.grey_dilation(labels, footprint=ndimage.iterate_structure(CONNECTED, 2)) * ~candidates
    fluid_around = np.nan_to_num(ndimage.mean(csf, shell, index))
    keep = (np.asarray(highest) > settings.seed) & (size >= least_voxels) & (fluid_around < settings.surround)
    return np.concatenate([[False], keep])[labels]


def _large_parts(region: np.ndarray, least_voxels: int) -> np.ndarray:
    labels, _ = ndimage.label(region)
    size = np.bincount(labels.ravel())
    size[0] = 0
    return (size >= least_voxels)[labels]
