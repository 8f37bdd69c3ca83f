from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest


def test_the_app_loads_no_pickle(audit: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.main() == 0
    assert "no pickle is loaded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import loads",
        "x = torch.load('m.pt', weights_only=True)",
        "np.load('x.npy', allow_pickle=True)",
        "np.load('x.npy', allow_pickle=flag)",
        "pd.read_pickle('x')",
    ],
)
def test_what_could_unpickle_is_found(audit: ModuleType, line: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"np.load('fine.npy', allow_pickle=False)\n{line}\n")
    (problem,) = audit.loads(path)
    assert problem.startswith(f"{path}:2:")


def test_weights_that_are_no_safetensors_are_found(audit: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "model.json").write_text("{}")
    (tmp_path / "good.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    assert list(audit.weights(tmp_path)) == []
    (tmp_path / "bad.safetensors").write_bytes(b"\x80\x04" * 20)
    (tmp_path / "model.pt").touch()
    assert len(list(audit.weights(tmp_path))) == 2
