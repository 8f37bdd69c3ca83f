from __future__ import annotations

from pathlib import Path

import pytest

from bidsapp.learn.generator_config import STRIPPED
from training.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "training/configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yml")), ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path, steps=7)
    assert config.steps == 7
    assert isinstance(config.learning_rate, float) and isinstance(config.network.features, tuple)
    assert config.generator.multiple % config.network.multiple == 0


def test_unknown_setting_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("name: a\nversion: 0.1.0\ntask: brain\nheads: b\ngenerator: {spacing: 2}\n")
    with pytest.raises(ValueError, match="no such setting: spacing"):
        load_config(path)


def test_a_head_cannot_be_trained_on_and_held_out(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text("name: a\nversion: 0.1.0\ntask: brain\nheads: b\ntrain_heads: ['17', '01']\n")
    with pytest.raises(ValueError, match="17"):
        load_config(path)


def test_settings_win_over_what_they_are_like(tmp_path: Path) -> None:
    path = tmp_path / "x.yml"
    path.write_text(
        "name: a\nversion: 0.1.0\ntask: segment\nheads: b\ngenerator: {like: stripped, p_drop: 0.1, patch: 48}\n"
    )
    generator = load_config(path).generator
    assert (generator.p_drop, generator.patch, generator.p_stripped) == (0.1, 48, STRIPPED.p_stripped)
    path.write_text("name: a\nversion: 0.1.0\ntask: segment\nheads: b\ngenerator: {like: naked}\n")
    with pytest.raises(ValueError, match="naked"):
        load_config(path)
