"""The benchmark's command on drawn data and a tiny random backbone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from zsad.cli.main import main

Call = Callable[..., tuple[int, str, str]]

RECIPES = """\
[common.training]
epochs = 1
batch_size = 4
limit_per_class = 2

[promptmoe.settings]
heads = 4
router_hidden = 8
context_tokens = 2
queries = 2
"""


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Runs the command in this process: exit code, output, remarks."""

    def run(*words: object) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def words(toy, drawn: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a benchmark into `tmp_path / "out"`, without its report and cost."""
    recipes = tmp_path / "recipes.toml"
    recipes.write_text(RECIPES)

    def make(
        *more: object, methods: str = "clip promptmoe", out: str = "out", data: Path = drawn
    ) -> list[str]:
        found = ["benchmark", "--methods", *methods.split(), "--data", data, "--out", tmp_path / out]
        found += ["--backbone", toy.backbone, "--recipes", recipes, "--device", "cpu", "--threads", 1]
        return [str(word) for word in (*found, "--no-cost", *more)]

    return make


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves the report out, whose pictures take longer than a tiny benchmark."""
    monkeypatch.setattr("zsad.studies.benchmark.write_results.find_spec", lambda name: None)
