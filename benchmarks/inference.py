"""What runs the network fastest on a CPU: ``python -m benchmarks.inference``.

torch in single precision and in bfloat16, and OpenVINO if it is installed (``pip install openvino``; the app does not
need it): CPU seconds until the first tile can be run, seconds a tile on one thread, and how far the probabilities lie
from those of torch in single precision.

``python -m benchmarks.inference --scans T1w.nii.gz T2w.nii.gz FLAIR.nii.gz``: both networks on the scans of a session
that share a grid, as the app runs them, on the CPU and on the GPU if there is one: seconds, and how far they agree.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from bidsapp.models.brain import find_brain
from bidsapp.models.registry import Model, load_model
from bidsapp.models.segment import segment_network

Run = Callable[[], np.ndarray]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=8, help="tiles to average over")
    parser.add_argument("--scans", nargs="+", type=Path, help="named ..._T1w.nii.gz and so on, on one grid")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.scans:
        whole(args.scans)
        return
    model = load_model("segment")
    rng = torch.Generator().manual_seed(0)
    patch = int(model.card["patch"])
    scan = torch.randn((1, model.network.config.channels, *[patch] * 3), generator=rng)
    place = torch.rand((1, 3, *[patch // 2] * 3), generator=rng)
    print(
        "| engine | until the first tile, CPU s | a tile, CPU s | mean difference of probabilities |\n|---|---|---|---|"
    )
    reference = None
    for name, prepare in engines(model, scan, place):
        began = time.process_time()
        run = prepare()
        found = run()
        ready = time.process_time() - began
        reference = found if reference is None else reference
        began = time.process_time()
        for _ in range(args.tiles):
            run()
        seconds = (time.process_time() - began) / args.tiles
        print(
            f"| {name} | {ready - seconds:.1f} | {seconds:.3f} | {np.abs(found - reference).mean():.5f} |", flush=True
        )


def whole(scans: Sequence[Path]) -> None:
    """Brain and classes of a session, each device twice: the first time the device and its kernels are made ready."""
    loaded = [nib.as_closest_canonical(nib.Nifti1Image.from_filename(path)) for path in scans]
    names = [path.name.removesuffix(".nii.gz").rsplit("_", 1)[-1] for path in scans]
    images = {name: img.get_fdata(dtype=np.float32) for name, img in zip(names, loaded, strict=True)}
    voxel_size_mm = tuple(float(n) for n in loaded[0].header.get_zooms()[:3])
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    print("| device | time | brain, s | classes, s | ... with --tta, s | labels as on the CPU |")
    print("|---|---|---|---|---|---|")
    reference = None
    for device in devices:
        for time_ in ("first", "second"):
            spent = []
            began = time.monotonic()
            mask = find_brain(images[names[0]], voxel_size_mm=voxel_size_mm, device=device) > 0.5
            spent.append(time.monotonic() - began)
            for tta in (False, True):
                began = time.monotonic()
                found = segment_network(images, mask, voxel_size_mm=voxel_size_mm, device=device, tta=tta)
                spent.append(time.monotonic() - began)
            labels = np.zeros(mask.shape, int)
            labels[found.box] = found.probability.argmax(0)
            reference = labels if reference is None else reference
            same = (labels == reference)[mask].mean()
            print(f"| {device} | {time_} | {' | '.join(f'{s:.2f}' for s in spent)} | {same:.4f} |", flush=True)


def engines(model: Model, scan: torch.Tensor, place: torch.Tensor) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Name of each way there is, and what makes it ready."""
    yield "torch, float32", lambda: in_torch(model, scan, place, bfloat16=False)
    yield "torch, bfloat16", lambda: in_torch(model, scan, place, bfloat16=True)
    if importlib.util.find_spec("openvino") is None:
        print("OpenVINO is not installed: pip install openvino")
        return
    yield "OpenVINO, float32", lambda: in_openvino(model, scan, place, precision="f32")
    yield "OpenVINO, bfloat16", lambda: in_openvino(model, scan, place, precision="bf16")


def in_torch(model: Model, scan: torch.Tensor, place: torch.Tensor, *, bfloat16: bool) -> Run:
    """As the app does it."""

    def run() -> np.ndarray:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return model.network(scan, place).float().softmax(1).numpy()

    return run


def in_openvino(model: Model, scan: torch.Tensor, place: torch.Tensor, *, precision: str) -> Run:
    """The same network, converted."""
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a trace cannot follow is the check of the shape
        converted = openvino.convert_model(model.network, example_input=(scan, place))
    converted.reshape({converted.inputs[0]: list(scan.shape), converted.inputs[1]: list(place.shape)})
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": 1}
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    inputs = (scan.numpy(), place.numpy())
    return lambda: torch.from_numpy(compiled(inputs)[0]).softmax(1).numpy()


if __name__ == "__main__":
    main()
