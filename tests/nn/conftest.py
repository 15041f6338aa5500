"""Makes the slow forms of `tests/oracles/promptmoe.py` importable as `promptmoe_oracles`."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def _load(name: str, path: Path) -> None:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


_load("promptmoe_oracles", Path(__file__).parents[1] / "oracles" / "promptmoe.py")
