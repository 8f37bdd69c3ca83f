"""What synthetic scans are made of: label maps of heads and masks of lesions, gathered once, or carried in one file."""

from __future__ import annotations

import dataclasses
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bidsapp.learn import heads, lesion_masks
from bidsapp.learn.heads import Heads, load_heads
from bidsapp.learn.lesion_masks import Lesions
from bidsapp.writing import replacing
from training.config import TrainConfig
from training.patients import make_label_maps

#: The two halves of the material, by whether they are held out.
HALVES = {False: "trained-on", True: "held-out"}


@dataclass(frozen=True)
class Material:
    """Heads and lesion masks on one device; no masks where none are asked for."""

    heads: Heads
    lesions: Lesions | None

    def to(self, device: str) -> Material:
        """The same on another device."""
        moved = {name: getattr(self.heads, name).to(device) for name in ("labels", "distance", "flow")}
        lesions = self.lesions and dataclasses.replace(self.lesions, masks=self.lesions.masks.to(device))
        return Material(dataclasses.replace(self.heads, **moved), lesions)


def material(config: TrainConfig, folder: Path, *, held_out: bool, packed: Path | None) -> Material:
    """From one file (`pack`), or from the folders that the configuration names (`gather`)."""
    return unpack(packed, held_out=held_out) if packed else gather(config, folder, held_out=held_out)


def gather(config: TrainConfig, folder: Path, *, held_out: bool) -> Material:
    """Heads, patients and lesion masks trained on, or the heads and masks held out; on the CPU.

    What takes long is kept in ``<folder>/../cache``.
    """
    names = config.held_out_heads if held_out else config.train_heads
    cache = folder.parent / "cache"
    found = load_heads(Path(config.heads), names, cache=cache, device="cpu")
    if config.patients and not held_out:
        maps = cache / "patients"
        patients = make_label_maps(Path(config.patients), Path(config.heads), names, out=maps)
        found = heads.joined(found, load_heads(maps, patients, cache=cache, device="cpu"))
    lesions = _masks(config.lesions, config.held_out_lesions, held_out=held_out)
    large = _masks(config.large, config.held_out_large, held_out=held_out)
    if lesions and large:
        lesions = lesion_masks.joined(lesions, large)
    return Material(found, lesions)


def pack(config: TrainConfig, folder: Path, path: Path) -> None:
    """All that `gather` finds, in one file of some 26 MB, for a machine that has the repository alone."""
    with replacing(path) as aside, zipfile.ZipFile(aside, "w", zipfile.ZIP_LZMA) as archive:
        for held_out, half in HALVES.items():
            for name, values in _arrays(gather(config, folder, held_out=held_out)).items():
                with archive.open(f"{half}/{name}.npy", "w", force_zip64=True) as stream:
                    np.lib.format.write_array(stream, values, allow_pickle=False)


def unpack(path: Path, *, held_out: bool) -> Material:
    """What `pack` wrote; on the CPU."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.startswith(HALVES[held_out])]

    def read(name: str) -> np.ndarray:
        with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)

    with ThreadPoolExecutor() as pool:
        arrays = {Path(name).stem: values for name, values in zip(names, pool.map(read, names), strict=True)}
    return _material(arrays)


def _arrays(kept: Material) -> dict[str, np.ndarray]:
    """One array a head and a property, so that they are read side by side; masks as bits."""
    found, lesions = kept.heads, kept.lesions
    out = {"names": np.array(found.names), "centre": found.centre, "extent": found.extent}
    for name in ("labels", "distance", "flow"):
        out |= {f"{name}-{i:03d}": values.numpy() for i, values in enumerate(getattr(found, name))}
    if lesions:
        out |= {"spots": lesions.spots.astype(np.int16), "large": np.array(lesions.large)}
        out |= {f"mask-{i:03d}": np.packbits(mask.numpy()) for i, mask in enumerate(lesions.masks)}
    return out


def _material(arrays: dict[str, np.ndarray]) -> Material:
    def all_of(name: str) -> list[np.ndarray]:
        return [arrays[key] for key in sorted(arrays) if key.startswith(f"{name}-")]

    stacked = {name: torch.from_numpy(np.stack(all_of(name))) for name in ("labels", "distance", "flow")}
    names = tuple(str(name) for name in arrays["names"])
    found = Heads(**stacked, centre=arrays["centre"], extent=arrays["extent"], names=names)
    if "spots" not in arrays:
        return Material(found, None)
    count = int(np.prod(lesion_masks.SHAPE))
    masks = np.stack([np.unpackbits(bits, count=count).reshape(lesion_masks.SHAPE) for bits in all_of("mask")])
    return Material(found, Lesions(torch.from_numpy(masks), arrays["spots"].astype(int), int(arrays["large"])))


def _masks(folder: str, kept_apart: tuple[str, ...], *, held_out: bool) -> Lesions | None:
    """The masks of a folder that are trained on, or those held out; none without a folder."""
    if not folder:
        return None
    names = {"only": kept_apart} if held_out else {"leave_out": kept_apart}
    return lesion_masks.load_lesions(Path(folder), device="cpu", **names)
