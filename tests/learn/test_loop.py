from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bidsapp.errors import AppError, TryAgainError
from bidsapp.learn import loop
from bidsapp.learn.loop import CHECKPOINT, Schedule, fit
from bidsapp.learn.samples import Batch

SCHEDULE = Schedule(steps=12, learning_rate=0.05, warm_up=1, average_over=3, validate_every=4)


class Line(nn.Module):
    """y = head(dropout(norm(body(x))))."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm, self.head = nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.dropout(self.norm(self.body(x))))


def sample(number: int) -> torch.Tensor:
    return torch.randn(8, 2, generator=torch.Generator().manual_seed(number))


def loss(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (network(x)[:, 0] - x.sum(1)).square().mean()


def score(network: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        return {"dice_x": -float(loss(network, sample(10**6)))}


def test_a_checkpoint_keeps_how_the_optimisers_memory_lies(tmp_path: Path) -> None:
    """Channels last, as on a GPU: moments that lie otherwise than their parameters make each step slower."""

    def begin() -> loop._State:
        convolution = nn.Conv3d(4, 6, 3).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        return loop._State(convolution, SCHEDULE)

    before, after = begin(), begin()
    before.network(torch.randn(1, 4, 5, 5, 5)).square().mean().backward()
    before.optimiser.step()
    before.save(tmp_path / CHECKPOINT)
    after.load(tmp_path / CHECKPOINT)
    kept, found = (state.optimiser.state[state.network.weight] for state in (before, after))
    for key, value in kept.items():
        torch.testing.assert_close(found[key], value)
        assert (found[key].stride(), found[key].device.type) == (value.stride(), value.device.type)


def weights(network: nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def test_learns_and_writes_log_and_curve(tmp_path: Path) -> None:
    before = score(Line())["dice_x"]
    done = fit(Line(), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path)
    assert done.finished and done.step == 12
    assert score(done.network)["dice_x"] > before
    rows = (tmp_path / "log.tsv").read_text().splitlines()
    assert [row.split("\t")[0] for row in rows] == ["step", "4", "8", "12"]
    assert (tmp_path / "curve.png").stat().st_size > 1000


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = fit(Line(0.5), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path / "whole")

    def stop(step: int, _: float) -> None:
        if step == 7:
            raise KeyboardInterrupt

    every_step = Schedule(**{**vars(SCHEDULE), "checkpoint_seconds": 0.0})
    with pytest.raises(KeyboardInterrupt):
        fit(Line(0.5), sample, loss=loss, validate=score, schedule=every_step, folder=tmp_path / "cut", on_step=stop)
    went_on: list[int] = []
    done = fit(
        Line(0.5), sample, loss=loss, validate=score, schedule=every_step, folder=tmp_path / "cut",
        on_step=lambda step, _: went_on.append(step),
    )  # fmt: skip
    assert went_on[0] == 7  # the seventh step's checkpoint was not written when it was stopped
    torch.testing.assert_close(weights(done.network), weights(whole.network), rtol=0, atol=0)


def test_a_run_that_was_killed_leaves_no_row_twice(tmp_path: Path) -> None:
    """It went on from step 0, its last checkpoint, and came to the validations at 4 and 8 again."""

    def kill(step: int, _: float) -> None:
        if step == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(Line(), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path, on_step=kill)
    table = tmp_path / "log.tsv"
    with table.open("a") as stream:
        stream.write("12\t0.")  # of a disk that was full
    fit(Line(), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path)
    assert [row.split("\t")[0] for row in table.read_text().splitlines()] == ["step", "4", "8", "12"]
    fit(Line(), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path)
    assert len(table.read_text().splitlines()) == 4


def test_samples_are_not_made_ahead_where_they_have_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's /dev/shm has 64 MB."""
    asked, said, ahead = [], [], loop.samples_ahead
    free = SimpleNamespace(free=64e6)
    monkeypatch.setattr(loop, "SHARED", tmp_path)
    monkeypatch.setattr(loop.shutil, "disk_usage", lambda _: free)
    monkeypatch.setattr(
        loop,
        "samples_ahead",
        lambda *args, workers, start: asked.append(workers) or ahead(*args, workers=0, start=None),
    )

    def run(megabytes: float, workers: int) -> None:
        batch = Batch(torch.zeros(int(megabytes * 1e6 / 4)), torch.zeros(0), None)
        fit(
            Line(), lambda _: batch, loss=lambda network, _: loss(network, sample(0)), validate=score,
            schedule=Schedule(steps=1), folder=tmp_path / f"{megabytes}-{workers}", workers=workers, say=said.append,
        )  # fmt: skip

    run(11, 1), run(11, 2), run(27.7, 1), run(1000, 0)
    assert asked == [1, 0, 0, 0] and len(said) == 2
    assert "64 MB free" in said[1] and "--shm-size" in said[1]


@pytest.mark.parametrize("end", ["killed", "silent"])
def test_a_process_that_makes_no_more_samples_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(loop, "SAMPLE_SECONDS", 3.0)
    here = os.getpid()

    def make(number: int) -> torch.Tensor:
        if number == 2 and os.getpid() != here:
            if end == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(60)
        return sample(number)

    with pytest.raises(TryAgainError, match=r"makes samples died.*--workers 0"):
        fit(Line(), make, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path, workers=1)


def test_errors_of_other_processes_are_their_own(tmp_path: Path) -> None:
    def make(number: int) -> torch.Tensor:
        if number == 2:
            raise RuntimeError("no such layer")
        return sample(number)

    with pytest.raises(RuntimeError, match="no such layer"):
        fit(Line(), make, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path, workers=1)


def test_the_average_follows_the_running_statistics_of_norms(tmp_path: Path) -> None:
    network = Line()
    done = fit(network, sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path)
    torch.testing.assert_close(done.network.norm.running_mean, network.norm.running_mean)
    assert not torch.equal(done.network.head.weight, network.head.weight)


def test_patience_keeps_the_best_weights(tmp_path: Path) -> None:
    scores = iter([0.3, 0.5, 0.4, 0.2, 0.9])
    kept: list[torch.Tensor] = []

    def falling(network: nn.Module) -> dict[str, float]:
        kept.append(weights(network).clone())
        return {"dice_x": next(scores)}

    schedule = Schedule(steps=100, warm_up=1, validate_every=2, patience=2)
    done = fit(Line(), sample, loss=loss, validate=falling, schedule=schedule, folder=tmp_path)
    assert (done.step, done.finished) == (8, True)
    torch.testing.assert_close(weights(done.network), kept[1])


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    network, first = Line(), Line()
    schedule = Schedule(steps=5, warm_up=1, validate_every=5, frozen=("body",))
    fit(network, sample, loss=loss, validate=score, schedule=schedule, folder=tmp_path)
    assert torch.equal(network.body.weight, first.body.weight)
    assert not torch.equal(network.head.weight, first.head.weight)


def test_second_phase_trains_the_head_alone(tmp_path: Path) -> None:
    bodies: list[torch.Tensor] = []
    network = Line()
    schedule = Schedule(steps=10, warm_up=1, validate_every=10, head_from=0.5)
    fit(
        network, sample, loss=loss, validate=score, schedule=schedule, folder=tmp_path,
        on_step=lambda *_: bodies.append(network.body.weight.detach().clone()),
    )  # fmt: skip
    assert not torch.equal(bodies[3], bodies[4])
    assert torch.equal(bodies[5], bodies[9])


def test_time_is_kept(tmp_path: Path) -> None:
    done = fit(Line(), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path, max_seconds=0)
    assert not done.finished and done.step == 0


def test_a_run_is_done_in_the_time_it_is_given(tmp_path: Path) -> None:
    assert SCHEDULE.rate(3, spent=1.0) == pytest.approx(0.02 * SCHEDULE.learning_rate)
    assert SCHEDULE.rate(3, spent=0.0) == SCHEDULE.rate(3) > SCHEDULE.rate(3, spent=0.5)
    done = fit(
        Line(), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path, finish_seconds=1e-9
    )  # fmt: skip
    assert done.finished and done.step == 1
    assert (tmp_path / "log.tsv").read_text().splitlines()[-1].startswith("1\t")  # judged at its end


@pytest.mark.parametrize("content", [b"", b"half of a checkpoint", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(AppError, match=r"checkpoint is damaged.*Delete it"):
        fit(Line(), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    fit(Line(), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path)
    with pytest.raises(AppError, match="other settings"):
        fit(nn.Linear(2, 1), sample, loss=loss, validate=score, schedule=SCHEDULE, folder=tmp_path)
