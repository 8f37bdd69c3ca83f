"""Cross-validation by subject, then one model of all: each training continues where it was interrupted.

A training, its model and its predictions are used again only where all that they depend on is still the same
(`bidsapp.learn.fingerprint`): a model of other folds may have seen the subjects that are held out now.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bidsapp import __version__
from bidsapp.cards import CARD, FIRST, threshold_key
from bidsapp.errors import UsageError
from bidsapp.image.grid import on_grid
from bidsapp.image.save import write_image
from bidsapp.learn import fingerprint
from bidsapp.learn.cases import Case, Stored, load_case
from bidsapp.learn.run import THRESHOLD_KEYS, Training, predict_drawn, train_model
from bidsapp.models.registry import Model, read_model
from bidsapp.writing import json_or_nothing, write_text

#: With early stopping so many of the subjects are set aside to stop by, one at least, where there are so many.
SHARE_SET_ASIDE, SUBJECTS_TO_SET_ASIDE = 0.1, 3
#: Seconds between two lines of progress.
TOLD_EVERY = 30.0


def split(subjects: Sequence[str], folds: str, *, seed: int) -> list[list[str]]:
    """Subjects held out in each fold; a subject's sessions stay together.

    Raises
    ------
    UsageError
        Fewer subjects than folds.
    """
    different = sorted(set(subjects))
    count = len(different) if folds == "loo" else int(folds)
    if count == 0:
        return []
    if len(different) < 2:
        raise UsageError(
            f"there is one labelled subject (sub-{different[0]}): nothing can be held out. Train with --folds 0, and"
            " judge the model on other subjects with 'bidsapp evaluate'."
        )
    if count > len(different) or count == 1:
        possible = "2" if len(different) == 2 else f"2 to {len(different)}"
        raise UsageError(f"--folds {folds}: there are {len(different)} labelled subjects; give {possible}, loo or 0.")
    order = np.random.default_rng(seed).permutation(different).tolist()
    return [sorted(order[number::count]) for number in range(count)]


@dataclass
class Folds:
    """Trainings on parts of the cases, and predictions of those left out.

    Attributes
    ----------
    folders : mapping
        Prepared cases by name.
    training, first : Training
        The network; `first` is a cascade's semantic stage.
    before : Model or None
        What fine-tuning began with: it predicts the held-out cases too, for comparison.
    out : Path
        Gets ``folds/``, ``crossvalidation/{trained,before}/`` and ``model/``; what is there of other cases or settings
        is made anew.
    device : str
    card : mapping
        More entries of the models' cards.
    deadline : float
        Of `time.monotonic`.
    say : callable
        Takes a line of progress.
    """

    folders: Mapping[str, Path]
    training: Training
    first: Training | None
    before: Model | None
    out: Path
    device: str
    card: Mapping[str, Any]
    deadline: float
    say: Callable[[str], None]
    _cases: dict[str, Case] = field(default_factory=dict)

    def fold(self, number: int, subjects: Sequence[str], names: Mapping[str, Path]) -> bool:
        """Train without `subjects` and predict them into files of these `names`; False where time ran out."""
        records = {name: Stored.read(folder).record for name, folder in self.folders.items()}
        out = [name for name, record in records.items() if record["subject"] in subjects]
        folder = self.out / "folds" / f"fold-{number}"
        what = f"fold {number} (without {', '.join(subjects)})"
        keys = {threshold_key(set(records[name]["contrasts"]) & set(self.training.channels)) for name in out}
        model = self._train([name for name in records if name not in out], folder, what, self.card, keys)
        if model is None:
            return False
        for name in out:
            self._predict(model, name, self.out / "crossvalidation/trained" / names[name])
            if self.before is not None:
                self._predict(self.before, name, self.out / "crossvalidation/before" / names[name])
        return True

    def forget_others(self, names: Mapping[str, Path]) -> None:
        """Remove predictions that are none of this run's `names`: of cases left out now, of a model begun with then."""
        for kind, kept in (("trained", names), ("before", names if self.before is not None else {})):
            folder = self.out / "crossvalidation" / kind
            own = {folder / path.with_name(path.name.removesuffix(".nii.gz")) for path in kept.values()}
            for path in folder.rglob("*.*"):
                if path.is_file() and path.with_name(path.name.split(".")[0]) not in own:
                    path.unlink()

    def whole(self, figures: Mapping[str, Any]) -> bool:
        """Train on all cases and put the model into ``model``; False where time ran out."""
        card = {**self.card, "figures": dict(figures)}
        model = self._train(list(self.folders), self.out / "folds/all", "all cases", card, THRESHOLD_KEYS)
        if model is None:
            return False
        aside = self.out / ".model.new"
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(self.out / "folds/all/model", aside)
        # It may have been trained before: what is said of it, not learned, is as of now.
        whole = json.loads((aside / CARD).read_text()) | card | {"name": self.training.name}
        (aside / CARD).write_text(json.dumps(whole, indent=1) + "\n")
        shutil.rmtree(self.out / "model", ignore_errors=True)
        aside.rename(self.out / "model")
        return True

    def _load(self, names: Sequence[str]) -> list[Case]:
        new = [name for name in names if name not in self._cases]
        self._cases |= {name: load_case(self.folders[name], self.training.channels) for name in new}
        return [self._cases[name] for name in names]

    def _train(
        self, names: Sequence[str], folder: Path, what: str, card: Mapping[str, Any], wanted: Collection[str]
    ) -> Model | None:
        first = None
        if self.first is not None:
            first = self._stage(names, self.first, folder / FIRST, f"{what}, first stage", card, ())
            if first is None:
                return None
        return self._stage(names, replace(self.training, first=first), folder, what, card, wanted)

    def _stage(
        self,
        names: Sequence[str],
        training: Training,
        folder: Path,
        what: str,
        card: Mapping[str, Any],
        wanted: Collection[str],
    ) -> Model | None:
        now = fingerprint.of_training({name: self.folders[name] for name in names}, training, wanted)
        different = fingerprint.begin(folder, now, keep=(FIRST,) if training.first is not None else ())
        if different:
            self.say(f"{what}: trained anew, as what is in {folder} was trained otherwise ({different}).")
        if (folder / "model/model.json").exists():
            return read_model(folder / "model")
        judges = self._set_aside(names, training, what)
        return train_model(
            self._load([name for name in names if name not in judges]),
            training,
            folder=folder,
            held_out=self._load(judges),
            device=self.device,
            card=card,
            wanted=wanted,
            max_seconds=max(0.0, self.deadline - time.monotonic()),
            on_step=_Teller(self.say, training.steps, what),
            say=lambda line: self.say(f"{what}: {line}"),
        )

    def _set_aside(self, names: Sequence[str], training: Training, what: str) -> list[str]:
        """Cases that early stopping goes by: the loss of what is trained on would hardly ever tell when to stop."""
        if not training.patience:
            return []
        subjects = {name: Stored.read(self.folders[name]).record["subject"] for name in names}
        different = sorted(set(subjects.values()))
        if len(different) < SUBJECTS_TO_SET_ASIDE:
            self.say(
                f"{what}: --patience goes by the cases trained on, as there are too few subjects to set one aside."
            )
            return []
        count = max(1, round(SHARE_SET_ASIDE * len(different)))
        chosen = sorted(np.random.default_rng(training.seed).permutation(different)[:count].tolist())
        self.say(f"{what}: --patience goes by {', '.join(chosen)}, set aside and not trained on.")
        return [name for name in names if subjects[name] in chosen]

    def _predict(self, model: Model, name: str, path: Path) -> None:
        case = self.folders[name]
        sidecar = path.with_name(path.name.replace(".nii.gz", ".json"))
        made_of = {"model": fingerprint.of_model(model), "case": fingerprint.of_case(case), "app": __version__}
        if path.exists() and json_or_nothing(sidecar) == made_of:
            return
        sidecar.unlink(missing_ok=True)  # before the image is another
        stored = Stored.read(case)
        values = stored.record["indices"]
        found = as_labelled(predict_drawn(model, case, device=self.device), values)
        write_image(on_grid(found, stored.drawn()), path)
        if values:
            _write_table(path.with_name(path.name.replace(".nii.gz", ".tsv")), values, self.training.classes[1:])
        fingerprint.write_record(sidecar, made_of)


def as_labelled(classes: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Classes 0, 1, ... as the values that the labels have in their files; a mask where there are none."""
    if not values:
        return (classes > 0).astype(np.uint8)
    if len(values) == 1:  # the model begun with may tell apart what is one here
        classes = classes > 0
    wide = np.uint8 if min(values) > 0 and max(values) < 256 else np.int32
    return np.array([0, *values], wide)[classes.astype(np.intp)]


def _write_table(path: Path, values: Sequence[int], names: Sequence[str]) -> None:
    """The look-up table of a dseg."""
    lines = ["index\tname", *(f"{value}\t{name}" for value, name in zip(values, names, strict=True))]
    write_text(path, "\n".join(lines) + "\n")


class _Teller:
    """Says now and then how far a training is."""

    def __init__(self, say: Callable[[str], None], steps: int, what: str) -> None:
        self.say, self.steps, self.what = say, steps, what
        self.began = self.last = time.monotonic()
        self.first: int | None = None
        self.average = math.nan

    def __call__(self, step: int, loss: float) -> None:
        now = time.monotonic()
        self.first = step - 1 if self.first is None else self.first
        self.average = loss if math.isnan(self.average) else 0.95 * self.average + 0.05 * loss
        if now - self.last > TOLD_EVERY or step == self.steps:
            self.last = now
            left = (now - self.began) / (step - self.first) * (self.steps - step)
            self.say(f"{self.what}: step {step} of {self.steps}, loss {self.average:.3f}, {left / 60:.0f} min left")
