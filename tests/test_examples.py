"""Examples in docstrings are run (those of `zsad.nn` in `tests/nn/test_examples.py`)."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

import zsad

ROOT = Path(zsad.__file__).parent


def modules() -> list[str]:
    """Names of all modules outside `zsad.nn` that show an example."""
    shown = [path for path in sorted(ROOT.rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8")]
    parts = [path.relative_to(ROOT.parent).with_suffix("").parts for path in shown]
    names = [".".join(part for part in own if part != "__init__") for own in parts]
    return [name for name in names if not name.startswith("zsad.nn.")]


@pytest.mark.parametrize("name", modules())
def test_examples_run(name):
    result = doctest.testmod(import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0 < result.attempted
