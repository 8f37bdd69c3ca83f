#!/usr/bin/env python3
"""What the supply chain of the app rests on, checked in its own code (``make audit``): exit code 1 with what was found.

No module of the app loads a pickle (nor anything that unpickles), and every file of weights is a safetensors file.
Not covered, because it is others' code: deepbet's weights, which are TorchScript files inside its wheel (the wheel's
hash is in the lock), and nipype, which keeps the intermediate results of its own runs in ``--work-dir`` as pickles.
"""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Modules and functions that unpickle. numpy and pandas do when asked to.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "pd.read_pickle", "pandas.read_pickle", "torch.jit.load", "torch.hub.load", "eval", "exec"}
WEIGHTS = {".safetensors", ".json"}


def main() -> int:
    """Print what was found."""
    found = [problem for path in sorted((ROOT / "bidsapp").rglob("*.py")) for problem in loads(path)]
    found += weights(ROOT / "bidsapp" / "models" / "weights")
    print("\n".join(found) or "no pickle is loaded, and all weights are safetensors")
    return int(bool(found))


def loads(path: Path) -> Iterator[str]:
    """Places of a module that could unpickle something."""
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.partition(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module.partition(".")[0] in MODULES else []
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            unsafe = any(
                word.arg == "allow_pickle" and not (isinstance(word.value, ast.Constant) and word.value.value is False)
                for word in node.keywords
            )
            names = [name] if name in CALLS or unsafe else []
        for name in names:
            yield f"{path}:{node.lineno}: {name}"


def weights(folder: Path) -> Iterator[str]:
    """Files among the weights that are neither safetensors nor their description, or not what they say."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        if path.suffix not in WEIGHTS:
            yield f"{path}: neither safetensors nor JSON"
        elif path.suffix == ".safetensors":
            # The format: 8 bytes of length, little-endian, then as many bytes of JSON.
            head = path.read_bytes()
            try:
                json.loads(head[8 : 8 + int.from_bytes(head[:8], "little")])
            except ValueError:
                yield f"{path}: not a safetensors file"


if __name__ == "__main__":
    sys.exit(main())
