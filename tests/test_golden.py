"""What the verbs write and print is what tests/golden holds; `python tools/golden.py check` runs all cases."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import golden

if TYPE_CHECKING:
    from zsad_golden.case import Case
    from zsad_golden.workspace import Workspace


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return golden.Workspace(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("case", [case for case in golden.CASES if case.quick], ids=lambda case: case.name)
def test_outputs_are_those_recorded(case: Case, space: Workspace) -> None:
    if case.missing:
        pytest.skip(f"needs {', '.join(case.missing)}")
    if torch.cuda.is_available():
        pytest.skip("the values are those of a processor")
    assert golden.check_case(space, case) == []


def test_a_small_difference_is_found() -> None:
    recorded = {"rows": [{"score": 0.4889358580112457, "sources": ["a", "b"]}], "lines": ["score 0.489"]}
    changed = {"rows": [{"score": 0.4889359580112457, "sources": ["a"]}], "lines": ["score 0.489"], "more": 1}
    assert [path for path, _, _ in golden.differences(recorded, changed, None)] == [
        "rows > 0 > score",
        "rows > 0 > sources > length",
        "more",
    ]
    near = {"rows": [{"score": 0.48893595, "sources": ["a", "b"]}], "lines": ["score 0.490"]}
    assert list(golden.differences(recorded, near, golden.Tolerance())) == []
    far = {"rows": [{"score": 0.4899, "sources": ["a", "b"]}], "lines": ["mark 0.489"]}
    assert [path for path, _, _ in golden.differences(recorded, far, golden.Tolerance())] == [
        "rows > 0 > score",
        "lines > 0",
    ]
