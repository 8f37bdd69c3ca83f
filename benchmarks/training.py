"""Samples a second of the generator, and seconds a step of the network, apart from each other.

``python -m benchmarks.training training/configs/segment.yml --packed runs/packed.zip``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from bidsapp.learn.loop import samples_ahead
from bidsapp.models.unet import FoldedUNet
from training.batches import Batches
from training.config import TrainConfig, load_config
from training.loop import loss, on_device
from training.material import Material, material
from training.tasks import make_task


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--packed", type=Path, help="python -m training CONFIG --pack FILE")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement (default: 5)")
    parser.add_argument("--workers", nargs="*", default=["cpu:1"], help="e.g. cpu:15 cuda:4 (default: cpu:1)")
    parser.add_argument("--batches", nargs="*", type=int, default=[1, 8], help="samples a step (default: 1 8)")
    args = parser.parse_args()
    config = load_config(args.config)
    began = time.monotonic()
    here = material(config, Path("runs/benchmark"), held_out=False, packed=args.packed)
    print(f"material read in {time.monotonic() - began:.1f} s", flush=True)
    torch.set_num_threads(1)
    for each in args.workers:  # before this process uses a GPU: processes are forked
        device, _, count = each.partition(":")
        print(f"generator, {count} on {device}: {workers(here, config, device, int(count), args.seconds)}", flush=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"generator in the process itself, {device}: {alone(here, config, device, args.seconds)}", flush=True)
    for batch in args.batches:
        print(f"network, {device}, batch {batch}: {network(here, config, device, batch, args.seconds)}", flush=True)


def workers(here: Material, config: TrainConfig, device: str, count: int, seconds: float) -> str:
    """Samples a second from other processes, once all of them have delivered."""
    make = Batches(here, config.generator, seed=config.seed, batch=config.batch, device=device, packed=True)
    began = time.monotonic()
    batches = iter(samples_ahead(make, range(10**6), workers=count, start="spawn" if device != "cpu" else None))
    for _ in range(3 * count):
        next(batches)
    ready, done = time.monotonic(), 0
    while time.monotonic() - ready < seconds:
        next(batches)
        done += config.batch
    rate = done / (time.monotonic() - ready)
    return f"{rate:.1f} samples/s (ready after {ready - began:.1f} s)"


def alone(here: Material, config: TrainConfig, device: str, seconds: float) -> str:
    """Samples a second in this process."""
    make = Batches(here, config.generator, seed=config.seed, batch=1, device=device)
    for number in range(3):
        make(number)
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        make(done)
        done += 1
    if device == "cuda":
        torch.cuda.synchronize()
    return f"{done / (time.monotonic() - began):.1f} samples/s"


def network(here: Material, config: TrainConfig, device: str, batch: int, seconds: float) -> str:
    """Seconds a step of loss, gradient and optimiser, on one batch again and again."""
    samples = Batches(here, config.generator, seed=config.seed, batch=batch, device=device)(0)
    task, net = make_task(config.task), on_device(FoldedUNet(config.network), device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-3)

    def step() -> float:
        value = loss(net, task, samples, config)
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(value.detach())

    step()
    step()
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        step()
        done += 1
    spent = (time.monotonic() - began) / done
    return f"{1000 * spent:.1f} ms a step, {batch / spent:.1f} samples/s"


if __name__ == "__main__":
    main()
