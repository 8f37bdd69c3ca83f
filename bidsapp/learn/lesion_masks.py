"""Real lesion masks in MNI space, held on the device."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

#: Grid of all masks: 1 mm, RAS, voxel (0, 0, 0) at this place in MNI space (mm).
SHAPE = (182, 218, 182)
ORIGIN_MM = np.array([-91.0, -126.0, -72.0])
#: Bounding box of the brain in MNI space (nilearn's load_mni152_brain_mask), mm.
BRAIN_MM = np.array([[-72.0, -107.0, -72.0], [72.0, 73.0, 82.0]])
SPOTS = 512


@dataclass(frozen=True)
class Lesions:
    """Lesion masks on one grid.

    Attributes
    ----------
    masks : Tensor
        uint8 (masks, 182, 218, 182), 1 in the lesions.
    spots : ndarray
        (masks, 512, 3): voxels of each mask drawn at random (fixed seed), to centre patches on.
    large : int
        So many of the masks, the last ones, are of large lesions of other kinds: infarcts.
    """

    masks: torch.Tensor
    spots: np.ndarray
    large: int = 0

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def common(self) -> int:
        """How many masks come before those of large lesions."""
        return len(self) - self.large


def load_lesions(folder: Path, *, device: str, leave_out: tuple[str, ...] = (), only: tuple[str, ...] = ()) -> Lesions:
    """Read ``<folder>/*.nii.gz``; `leave_out` and `only` (unless empty) are names without the ending."""
    paths = sorted(folder.glob("*.nii.gz"))
    names = [path.name.removesuffix(".nii.gz") for path in paths]
    wanted = [
        path for path, name in zip(paths, names, strict=True) if name not in leave_out and (not only or name in only)
    ]
    if not wanted:
        raise FileNotFoundError(f"no lesion masks in {folder}; name the folder under 'lesions' in the config")
    return assemble(np.stack([_on_grid(nib.Nifti1Image.from_filename(path)) for path in wanted]), device)


def assemble(masks: np.ndarray, device: str) -> Lesions:
    """`Lesions` of masks (n, *SHAPE), none of them empty."""
    rng = np.random.default_rng(0)
    spots = np.stack([rng.permutation(np.argwhere(mask))[np.arange(SPOTS) % int(mask.sum())] for mask in masks])
    return Lesions(torch.from_numpy(masks).to(device), spots)


def joined(lesions: Lesions, large: Lesions) -> Lesions:
    """Masks of two kinds as one set; those of large lesions come last."""
    masks = torch.cat([lesions.masks, large.masks])
    return Lesions(masks, np.concatenate([lesions.spots, large.spots]), large=len(large))


def _on_grid(image: nib.Nifti1Image) -> np.ndarray:
    """Reordered to RAS and shifted by whole voxels; raises ValueError where that does not do."""
    image = nib.as_closest_canonical(image)
    start = image.affine[:3, 3] - ORIGIN_MM
    whole = np.round(start).astype(int)
    if not np.allclose(image.affine[:3, :3], np.eye(3), atol=1e-3) or np.abs(start - whole).max() > 0.01:
        raise ValueError(f"lesion mask {image.get_filename()} is not on a 1 mm MNI grid")
    data = (np.asanyarray(image.dataobj) > 0.5).astype(np.uint8)
    out = np.zeros(SHAPE, np.uint8)
    sink = tuple(slice(max(0, a), min(n, a + m)) for a, n, m in zip(whole, SHAPE, data.shape, strict=True))
    source = tuple(slice(s.start - a, s.stop - a) for s, a in zip(sink, whole, strict=True))
    out[sink] = data[source]
    return out
