"""Tissue posteriors (GM, WM, CSF) by expectation-maximisation of a Gaussian mixture with partial volume.

Nothing is trained: the model is the subject's own intensities, the ICBM tissue priors, and a Markov random field.

- Mixture, priors, weights: Ashburner and Friston, Unified segmentation, NeuroImage 2005;26:839.
- Partial-volume components with tied parameters: Van Leemput et al., IEEE TMI 2003;22:105.
- Robust moments, so that lesions, vessels and remains of dura do not pull the parameters: Van Leemput et al.,
  IEEE TMI 2001;20:677.
- Means that vary over the brain (deep nuclei are brighter than cortex; residual bias): Rajapakse et al., IEEE TMI
  1997;16:176; Dahnke et al., Local adaptive segmentation (CAT12), OHBM 2012.
- Mean-field approximation of the Markov random field: Van Leemput et al., IEEE TMI 1999;18:897.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import ndimage
from torch.nn import functional

from bidsapp.image.grid import bounding_box
from bidsapp.labels import CONTRASTS, TISSUES

GM, WM, CSF = range(len(TISSUES))
#: The Gaussians: CSF is two, ventricles and the subarachnoid space, where meninges, vessels and partial volume make it
#: look different (Unified segmentation gives CSF two as well). The last is no tissue of its own.
SULCAL = 3
TISSUE_OF = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 1))
#: Who borders on whom: cortex on sulci, ventricles on white matter.
NEIGHBOURS = ((GM, WM), (GM, SULCAL), (WM, CSF))
#: Voxels around the brain that are worked on with it: as far as a blur of 2 voxels reaches. Its box begins at a
#: multiple of `STEP`, so that the coarser grids lie the same way whatever surrounds the head.
MARGIN, STEP = 8, 4
#: Voxels that are worked on at a time: less memory is asked for, and more of it is found in the processor's cache.
BLOCK = 2**16
#: Fewer voxels than this (1 ml at 1 mm) are no brain.
MINIMUM_VOXELS = 1000


@dataclass(frozen=True)
class MixtureSettings:
    """What can be chosen. Lengths are in voxels of the work grid (about 1 mm).

    Attributes
    ----------
    prior_blur : float
        Gaussian sigma: the priors are as uncertain as the registration that brought them.
    prior_floor : float
        Added to each prior: no tissue is impossible anywhere in the brain.
    fractions : tuple of float
        Shares of the first tissue in the partial-volume components of each pair of tissues.
    smoothness : float
        Markov random field: log-odds given by 26 neighbours of one tissue.
    typicality : float
        Mahalanobis distance at which a voxel counts half (kappa of Van Leemput 2001, there 2.7 to 3).
    local_sigma : float
        Gaussian sigma of the neighbourhood in which the means are taken.
    local_strength : float
        Voxels of a tissue that must be near to outweigh its mean over the whole brain.
    separation : float
        Least d' between GM and WM to be called separable; at 2 one voxel in six is misread by its intensity.
    """

    prior_blur: float = 1.0
    prior_floor: float = 0.01
    fractions: tuple[float, ...] = (1 / 3, 2 / 3)
    smoothness: float = 1.0
    typicality: float = 3.0
    local_sigma: float = 8.0
    local_strength: float = 200.0
    separation: float = 2.0
    fit_iterations: int = 60
    local_iterations: int = 12
    field_iterations: int = 6
    tolerance: float = 1e-4


@dataclass(frozen=True)
class MixtureResult:
    """Soft tissue maps and the parameters behind them, in the intensities given.

    Attributes
    ----------
    posteriors : ndarray
        (3, X, Y, Z) float32, order `labels.TISSUES`: the expected share of each tissue in the voxel (0.5 is a voxel
        half full). Sums to 1 inside the mask, 0 outside. GM and WM follow the priors where they are not separable.
    means, covariances : ndarray
        (4, C) and (4, C, C): of GM, WM, CSF and sulcal CSF over the brain, contrasts in the order `contrasts`.
    fields : ndarray
        (4, C, x, y, z) float32: the same means as they are in each part of the brain, on a grid of 4 voxels in the
        `working_box`; at full size by `enlarge`.
    contrasts : tuple of str
        Subset of `CONTRASTS`.
    separable : bool
        Whether GM and WM can be told apart with these contrasts.
    separation : float
        d' between GM and WM: distance of the means in units of the pooled standard deviation.
    reason : str
        Why not separable ("" when separable).
    n_iterations : int
    log_likelihood : float
        Mean over the fitted voxels, in standardised intensities.
    """

    posteriors: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    fields: np.ndarray
    contrasts: tuple[str, ...]
    separable: bool
    separation: float
    reason: str
    n_iterations: int
    log_likelihood: float


@dataclass(frozen=True)
class _Scans:
    """What is segmented: the N voxels of a brain, in its box.

    Attributes
    ----------
    names : tuple of str
    mask : (X, Y, Z) bool
    x : (C, N)
        Standardised: less the `centre` (C,), over the `scale` (C,). 0 where a scan shows nothing.
    seen, empty : (C, N) bool
        Where a scan shows anything, and where there is no signal (`without_signal`).
    prior : (3, N)
    """

    names: tuple[str, ...]
    mask: np.ndarray
    x: torch.Tensor
    centre: np.ndarray
    scale: np.ndarray
    seen: np.ndarray
    empty: np.ndarray
    prior: torch.Tensor


@dataclass(frozen=True)
class _Mix:
    """Shares of the Gaussians in the components, (K, G), and of the tissues in the Gaussians, (G, 3)."""

    composition: torch.Tensor
    to_tissue: torch.Tensor


@dataclass(frozen=True)
class _Model:
    """K components: G pure ones, then mixtures of two. Means are (G, C, 1), or (G, C, N) where local."""

    means: torch.Tensor
    covariances: torch.Tensor  # (G, C, C)
    weights: torch.Tensor  # (K,)

    def at(self, voxels: slice) -> _Model:
        """The same for some voxels."""
        return self if self.means.shape[-1] == 1 else replace(self, means=self.means[..., voxels])


def fit_mixture(
    images: Mapping[str, np.ndarray],
    mask: np.ndarray,
    priors: np.ndarray,
    *,
    device: str = "cpu",
    settings: MixtureSettings | None = None,
) -> MixtureResult:
    """Segment a brain into GM, WM and CSF.

    Parameters
    ----------
    images : mapping of str to ndarray
        Any non-empty subset of `CONTRASTS`; (X, Y, Z), bias-corrected, on one grid of about 1 mm. Adding to or
        multiplying an image changes nothing. NaN where a scan shows nothing, outside its field of view: there the
        others decide.
    mask : ndarray of bool
        (X, Y, Z) brain mask.
    priors : ndarray
        (3, X, Y, Z) prior probabilities in the order of `labels.TISSUES`, brought to the subject.
    device : str
        torch device.
    settings : MixtureSettings, optional

    Returns
    -------
    MixtureResult

    Raises
    ------
    ValueError
        Unknown or missing contrasts, shapes that differ, an empty mask, or voxels in the mask that are infinite, all
        unseen or all the same.
    """
    settings = settings or MixtureSettings()
    names = _check(images, mask, priors)
    threads = torch.get_num_threads()
    # One thread: sums in the same order, hence the same bytes, on every machine.
    torch.set_num_threads(1)
    try:
        box = working_box(mask)
        scans = _scans({name: images[name] for name in names}, mask, box, priors, device, settings)
        found = _segment(scans, settings)
        posteriors = np.zeros((len(TISSUES), *mask.shape), np.float32)
        posteriors[:, *box] = found.posteriors
        return replace(found, posteriors=posteriors)
    finally:
        torch.set_num_threads(threads)


def _scans(
    images: Mapping[str, np.ndarray],
    mask: np.ndarray,
    box: tuple[slice, ...],
    priors: np.ndarray,
    device: str,
    settings: MixtureSettings,
) -> _Scans:
    empty = np.stack([without_signal(image, mask) for image in images.values()])
    raw = np.stack([image[box][mask[box]] for image in images.values()]).astype(np.float64)  # (C, N)
    seen = np.isfinite(raw)
    low, centre, high = np.array(
        [np.percentile(row[some], (25, 50, 75)) for row, some in zip(raw, seen, strict=True)]
    ).T
    scale = high - low
    scaled = np.where(seen, (raw - centre[:, None]) / scale[:, None], 0)
    x = torch.tensor(scaled, dtype=torch.float32, device=device)
    prior = _soften(priors[:, *box], mask[box], settings).to(device)
    return _Scans(tuple(images), mask[box], x, centre, scale, seen, empty, prior)


def _segment(scans: _Scans, settings: MixtureSettings) -> MixtureResult:
    device, mask, scale, centre = scans.x.device, scans.mask, scans.scale, scans.centre
    to_tissue = torch.tensor(TISSUE_OF, dtype=torch.float32, device=device)
    mix = _Mix(_composition(settings.fractions).to(device), to_tissue)

    # Every 2nd voxel along each axis holds all there is to know about a few dozen parameters.
    usable = mask.copy()
    usable[mask] = ~scans.empty.any(axis=0)
    half = np.zeros_like(mask)
    half[::2, ::2, ::2] = usable[::2, ::2, ::2]
    pick = torch.tensor(half[mask], device=device)
    sample = _Sample(scans.x[:, pick], to_tissue @ scans.prior[:, pick], mix.composition, usable[::2, ::2, ::2])
    model, n_iterations, log_likelihood = _fit(sample, settings)
    fields, local = _fit_local(sample, model, settings)

    full = _Model(_values(fields, mask), local.covariances, local.weights)
    shares = _regularise(scans, full, mix, settings)

    separation = _separation(local.covariances, model.means[..., 0])
    reason = _why_inseparable(scans.names, separation, settings)
    if reason:
        shares = _split_by_priors(shares, scans.prior)
    posteriors = np.zeros((len(TISSUES), *mask.shape), np.float32)
    posteriors[:, mask] = shares.cpu().numpy()
    return MixtureResult(
        posteriors=posteriors,
        means=model.means[..., 0].double().cpu().numpy() * scale + centre,
        covariances=local.covariances.double().cpu().numpy() * scale[:, None] * scale,
        fields=(fields.cpu().numpy() * scale[:, None, None, None] + centre[:, None, None, None]).astype(np.float32),
        contrasts=scans.names,
        separable=not reason,
        separation=separation,
        reason=reason,
        n_iterations=n_iterations,
        log_likelihood=log_likelihood,
    )


def enlarge(fields: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Local means of `MixtureResult.fields` at the voxels of the brain mask: (G, C, N) float32."""
    return _values(torch.tensor(fields), mask[working_box(mask)]).numpy()


def working_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The part of the grid that the models work on: the brain and `MARGIN` voxels, from and to a multiple of `STEP`."""
    return tuple(
        slice(side.start // STEP * STEP, min(size, -(-side.stop // STEP) * STEP))
        for side, size in zip(bounding_box(mask, margin=MARGIN), mask.shape, strict=True)
    )


def without_signal(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """(N,) bool: voxels of the mask with exactly the value that fills the background (stripped), or out of view (NaN).

    The background is the commonest value outside the mask, if it makes up at least a tenth of it.
    """
    outside, inside = image[~mask], image[mask]
    outside = outside[~np.isnan(outside)]
    if not outside.size:
        return np.isnan(inside)
    values, counts = np.unique(outside[:: max(1, outside.size // 100_000)], return_counts=True)
    if counts.max() < 0.1 * counts.sum():
        return np.isnan(inside)
    return np.isnan(inside) | (inside == values[counts.argmax()])


def seen_alike(seen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Voxels in groups that the same scans see: which scans, (C,) bool, and which voxels, (N,) bool."""
    code = 2 ** np.arange(len(seen)) @ seen
    for value in np.unique(code):
        yield np.array([bool(value >> scan & 1) for scan in range(len(seen))]), code == value


def _values(fields: torch.Tensor, mask: np.ndarray) -> torch.Tensor:
    where = torch.tensor(mask, device=fields.device)
    return torch.stack([_enlarge(f[None], mask.shape)[0][:, where] for f in fields])


def _check(images: Mapping[str, np.ndarray], mask: np.ndarray, priors: np.ndarray) -> tuple[str, ...]:
    unknown = sorted(set(images) - set(CONTRASTS))
    if unknown or not images:
        raise ValueError(f"The tissue model takes {', '.join(CONTRASTS)}, any of them; it was given {sorted(images)}.")
    names = tuple(name for name in CONTRASTS if name in images)
    for name in names:
        if images[name].shape != mask.shape:
            raise ValueError(f"{name} and the brain mask differ in shape: {images[name].shape} and {mask.shape}.")
    if priors.shape != (len(TISSUES), *mask.shape):
        raise ValueError(f"The priors have shape {priors.shape}, not {(len(TISSUES), *mask.shape)}.")
    if mask.dtype != bool or mask.sum() < MINIMUM_VOXELS:
        raise ValueError(
            f"The brain mask holds {int(np.sum(mask > 0))} voxels ({mask.dtype}): tissues need a mask of type bool"
            f" with at least {MINIMUM_VOXELS}. Check the brain extraction."
        )
    for name in names:
        values = images[name][mask]
        if np.isinf(values).any():
            raise ValueError(f"{name} has voxels in the brain mask that are infinite.")
        values = values[~np.isnan(values)]
        if not values.size:
            raise ValueError(f"{name} shows nothing of the brain (NaN all over the mask).")
        if np.percentile(values, 25) == np.percentile(values, 75):
            raise ValueError(
                f"{name} has no contrast in the brain mask: at least half of its voxels are the same. The mask is"
                " probably not the brain, as where the scan shows a part of it: try another --brain-extraction."
            )
    if not np.isfinite(priors).all():
        raise ValueError("The priors have voxels that are not finite (NaN or infinite).")
    return names


def _composition(fractions: tuple[float, ...]) -> torch.Tensor:
    """(K, G): the share of each Gaussian in each component."""
    rows = list(np.eye(len(TISSUE_OF)))
    for first, second in NEIGHBOURS:
        rows += [share * rows[first] + (1 - share) * rows[second] for share in fractions]
    return torch.tensor(np.array(rows), dtype=torch.float32)


def _soften(priors: np.ndarray, mask: np.ndarray, settings: MixtureSettings) -> torch.Tensor:
    """(3, N): priors blurred, never 0, summing to 1."""
    blurred = [ndimage.gaussian_filter(np.clip(p, 0, 1), settings.prior_blur, output=np.float32)[mask] for p in priors]
    soft = np.stack(blurred) + settings.prior_floor
    return torch.tensor(soft / soft.sum(axis=0), dtype=torch.float32)


# ---- expectation-maximisation


class _Sample:
    """The voxels the parameters are fitted on.

    Attributes
    ----------
    x : (C, n)
    prior : (G, n)
    grid : bool, where on the half-resolution grid they lie
    component_prior, log_prior : (K, n)
        Of the components, which sum to 1, and before they do.
    """

    def __init__(self, x: torch.Tensor, prior: torch.Tensor, composition: torch.Tensor, grid: np.ndarray) -> None:
        self.x, self.prior, self.composition, self.grid = x, prior, composition, grid
        self.log_prior = composition @ torch.log(prior)
        self.component_prior = torch.softmax(self.log_prior, 0)


def _blocks(count: int, device: torch.device) -> Iterator[slice]:
    """All voxels, on a CPU some at a time."""
    step = BLOCK if device.type == "cpu" else count
    return (slice(start, start + step) for start in range(0, count, step))


def _log_likelihood(
    x: torch.Tensor, model: _Model, composition: torch.Tensor, typicality: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log density of each component (K, N), and the typicality of the voxel for each (K, N)."""
    count = len(x)
    covariances = torch.einsum("kt,tij->kij", composition, model.covariances).double()
    constant = -0.5 * (count * math.log(2 * math.pi) + torch.logdet(covariances))
    whiten = torch.linalg.inv(torch.linalg.cholesky(covariances)).float()
    squared = torch.empty((len(composition), x.shape[1]), device=x.device)
    for k, share in enumerate(composition):
        mean = torch.einsum("t,tcn->cn", share, model.means)
        squared[k] = (whiten[k] @ (x - mean)).square_().sum(0)
    # The uniform density of outliers equals the Gaussian at this distance from its mean (Van Leemput 2001, eq. 7).
    outlier = (constant - 0.5 * typicality**2).float()
    log_density = constant.float()[:, None] - 0.5 * squared
    typical = torch.sigmoid(0.5 * (typicality**2 - squared))
    # One floor for all: what is unlike every tissue is told by its prior and its neighbours, not by the widest class.
    return torch.logaddexp(log_density, outlier.min()), typical


def _expect(
    sample: _Sample, model: _Model, settings: MixtureSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Posteriors of the components (K, n), of the pure ones where typical (G, n), and log density of a voxel (n,)."""
    posterior = torch.empty_like(sample.log_prior)
    pure, density = torch.empty_like(sample.prior), torch.empty_like(sample.x[0])
    log_weights = torch.log(model.weights)[:, None]
    for block in _blocks(len(density), density.device):
        log_likelihood, typical = _log_likelihood(
            sample.x[:, block], model.at(block), sample.composition, settings.typicality
        )
        joint = log_likelihood + sample.log_prior[:, block] + log_weights
        posterior[:, block] = torch.softmax(joint, 0)
        # Pure voxels alone give unbiased moments: the mixed ones have components of their own.
        pure[:, block] = (posterior[:, block] * typical)[: len(TISSUE_OF)]
        density[block] = torch.logsumexp(joint, 0)
    return posterior, pure, density


def _fit(sample: _Sample, settings: MixtureSettings) -> tuple[_Model, int, float]:
    """One mean and covariance per tissue."""
    model = _initial(sample)
    last = -math.inf
    for n_iterations in range(1, settings.fit_iterations + 1):  # noqa: B007
        posterior, pure, density = _expect(sample, model, settings)
        means, covariances = _moments(sample.x, pure)
        model = _Model(means, covariances, _weights(posterior, sample.component_prior, model.weights))
        mean_log = float(density.double().mean())
        if abs(mean_log - last) < settings.tolerance:
            break
        last = mean_log
    return model, n_iterations, mean_log


def _initial(sample: _Sample) -> _Model:
    # To the 4th power: mostly the voxels whose tissue the atlas is sure of.
    means, covariances = _moments(sample.x, sample.prior**4)
    means[SULCAL] = (means[GM] + means[CSF]) / 2
    count = len(sample.composition)
    return _Model(means, covariances, torch.full((count,), 1 / count, device=sample.x.device))


def _moments(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted means (G, C, 1) and covariances (G, C, C)."""
    weight = weight.double() / weight.double().sum(1, keepdim=True).clamp_min(1e-6)
    means = (weight @ x.double().T).float()[:, :, None]
    return means, _covariances(x, means, weight)


def _covariances(x: torch.Tensor, means: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted covariances (G, C, C) about means (G, C, 1 or N); weights (G, N) sum to 1."""
    difference = (x - means).double()
    covariances = torch.einsum("tn,tin,tjn->tij", weight, difference, difference)
    # In units of the squared interquartile range: no class narrower than 3 % of it.
    covariances += 1e-3 * torch.eye(len(x), dtype=torch.float64, device=x.device)
    # Noise is much the same everywhere: no tissue has less than half the deviation of white matter, the most uniform.
    factor = torch.linalg.cholesky(covariances[WM])
    inverse = torch.linalg.inv(factor)
    values, vectors = torch.linalg.eigh(inverse @ covariances @ inverse.T)
    basis = factor @ vectors
    return (basis @ torch.diag_embed(values.clamp_min(0.25)) @ basis.mT).float()


def _weights(posterior: torch.Tensor, prior: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Global weights of the components given voxel-wise priors (Ashburner and Friston 2005, eq. 27)."""
    expected = (prior / (weights @ prior)).sum(1)
    updated = (posterior.sum(1) / expected).clamp_min(1e-6)
    return updated / updated.sum()


def _fit_local(sample: _Sample, model: _Model, settings: MixtureSettings) -> tuple[torch.Tensor, _Model]:
    """Let the means vary over the brain; also the covariances about them. Means as fields on a grid of 4 voxels."""
    where = torch.tensor(sample.grid, device=sample.x.device)
    brain = model.means
    local = _Model(brain.expand(-1, -1, sample.x.shape[1]), model.covariances, model.weights)
    for _ in range(settings.local_iterations):
        posterior, pure, _ = _expect(sample, local, settings)
        # Weighted by the prior too: a tissue is averaged where the atlas expects it.
        fields = _local_fields(sample.x, pure * sample.prior, brain, where, settings)
        means = _enlarge(fields, sample.grid.shape)[..., where]
        weight = pure.double() / pure.double().sum(1, keepdim=True).clamp_min(1e-6)
        weights = _weights(posterior, sample.component_prior, local.weights)
        local = _Model(means, _covariances(sample.x, means, weight), weights)
    return fields, local


def _local_fields(
    x: torch.Tensor, weight: torch.Tensor, means: torch.Tensor, where: torch.Tensor, settings: MixtureSettings
) -> torch.Tensor:
    """(G, C, X/4, Y/4, Z/4): weighted means over a Gaussian neighbourhood, drawn to the means over the brain."""
    sigma = settings.local_sigma / 4
    values = torch.cat([weight[:, None] * (x - means), weight[:, None]], dim=1)  # (G, C + 1, n)
    grid = torch.zeros((*values.shape[:2], *where.shape), device=x.device)
    grid[..., where] = values
    # 8 full-resolution voxels stand behind each of the sample.
    pooled = functional.avg_pool3d(grid, 2, ceil_mode=True, divisor_override=1).cpu().numpy() * 8
    blurred = ndimage.gaussian_filter(pooled, (0, 0, sigma, sigma, sigma), mode="constant", truncate=3)
    blurred *= (2 * math.pi) ** 1.5 * sigma**3  # a sum over the neighbourhood, not a mean
    fields = blurred[:, :-1] / (blurred[:, -1:] + settings.local_strength)
    return torch.tensor(fields, device=x.device) + means[..., None, None]  # (G, C, 1, 1, 1)


def _enlarge(fields: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Fields to the grid of `shape` by linear interpolation."""
    return functional.interpolate(fields, size=tuple(shape), mode="trilinear", align_corners=False)


# ---- the field and the answer


def _regularise(scans: _Scans, model: _Model, mix: _Mix, settings: MixtureSettings) -> torch.Tensor:
    """(3, N) expected shares after mean-field iterations over 26 neighbours."""
    x, composition, empty = scans.x, mix.composition, scans.empty
    device, content = x.device, composition @ mix.to_tissue  # (K, 3)
    # Background in one scan: priors and neighbours decide. In all of them: there is no tissue.
    some = torch.tensor((empty & scans.seen).any(axis=0), device=device)
    every = torch.tensor(empty.all(axis=0), device=device)
    evidence = torch.empty((len(composition), x.shape[1]), device=device)
    shares = torch.empty_like(scans.prior)
    log_weights = torch.log(model.weights)[:, None]
    for block in _blocks(x.shape[1], device):
        log_likelihood = _log_likelihood_seen(
            x[:, block], scans.seen[:, block], model.at(block), composition, settings.typicality
        )
        log_likelihood[:, some[block]] = 0
        log_prior = composition @ torch.log(mix.to_tissue @ scans.prior[:, block])
        log_prior += torch.where(every[block], 50 * composition[:, CSF, None], 0)
        evidence[:, block] = log_likelihood + log_prior + log_weights
        shares[:, block] = content.T @ torch.softmax(evidence[:, block], 0)
    where = torch.tensor(scans.mask, device=device)
    neighbours_inside = _neighbour_sum(where.float()[None])[0, where].clamp_min(1)
    volume = torch.zeros((len(TISSUES), *scans.mask.shape), device=device)
    for _ in range(settings.field_iterations):
        volume[:, where] = shares
        mean = _neighbour_sum(volume)[:, where] / neighbours_inside
        for block in _blocks(x.shape[1], device):
            field = settings.smoothness * (content @ mean[:, block])
            shares[:, block] = content.T @ torch.softmax(evidence[:, block] + field, 0)
    return shares / shares.sum(0)


def _log_likelihood_seen(
    x: torch.Tensor, seen: np.ndarray, model: _Model, composition: torch.Tensor, typicality: float
) -> torch.Tensor:
    """Log density of each component (K, N), by the scans that see the voxel: a part of a Gaussian is one, too."""
    log_likelihood, _ = _log_likelihood(x, model, composition, typicality)
    if seen.all():
        return log_likelihood
    for scans, voxels in seen_alike(seen):
        if scans.all():
            continue
        there, by = torch.tensor(voxels, device=x.device), torch.tensor(scans, device=x.device)
        log_likelihood[:, there] = 0
        if scans.any():
            part = _Model(model.means[:, by][..., there], model.covariances[:, by][:, :, by], model.weights)
            log_likelihood[:, there] = _log_likelihood(x[by][:, there], part, composition, typicality)[0]
    return log_likelihood


def _neighbour_sum(volume: torch.Tensor) -> torch.Tensor:
    """Sum over the 26 neighbours of each voxel of (n, X, Y, Z), axis by axis."""
    total = volume
    for axis in (1, 2, 3):  # a third of the time of average pooling
        line, last = total, total.shape[axis] - 1
        total = line.clone()
        total.narrow(axis, 1, last).add_(line.narrow(axis, 0, last))
        total.narrow(axis, 0, last).add_(line.narrow(axis, 1, last))
    return total - volume


def _separation(covariances: torch.Tensor, means: torch.Tensor) -> float:
    pooled = ((covariances[GM] + covariances[WM]) / 2).double()
    difference = (means[GM] - means[WM]).double()
    return float(torch.sqrt(difference @ torch.linalg.solve(pooled, difference)))


def _why_inseparable(names: tuple[str, ...], separation: float, settings: MixtureSettings) -> str:
    if names == ("FLAIR",):
        return (
            "FLAIR alone does not tell grey from white matter: their intensities overlap, and lesions look like grey"
            " matter. A T1w or T2w scan is needed."
        )
    if names == ("T2w",):  # docs/benchmarks.md: cortex a fifth too small on a real head, a quarter too large on others
        return (
            "T2w alone tells grey from white matter badly: the cortex is lost between bright fluid and dark white"
            " matter. A T1w or FLAIR scan is needed."
        )
    if separation < settings.separation:
        return (
            f"The contrast between grey and white matter in {' and '.join(names)} is too low (d' {separation:.1f};"
            f" {settings.separation:.1f} is needed)."
        )
    return ""


def _split_by_priors(shares: torch.Tensor, tissue_prior: torch.Tensor) -> torch.Tensor:
    parenchyma = shares[GM] + shares[WM]
    gm = parenchyma * tissue_prior[GM] / (tissue_prior[GM] + tissue_prior[WM])
    return torch.stack([gm, parenchyma - gm, shares[CSF]])
