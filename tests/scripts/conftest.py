"""The scripts are no package: each is loaded from its file."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    return load("audit")


@pytest.fixture
def images() -> ModuleType:
    return load("images")


@pytest.fixture
def stress() -> ModuleType:
    return load("stress")


@pytest.fixture
def lock() -> ModuleType:
    return load("lock")
