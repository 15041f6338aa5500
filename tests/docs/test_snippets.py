"""Runs what the README and the pages of the documentation show: commands in this process, Python as it stands.

A block that cannot run here says why in a comment above it; its commands are parsed, so that no option is made up.
Lines that install are not run: `.ci/run` installs as the README says, and a test here compares the extras.
"""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from zsad.cli.main import build_app, main

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n)?"
    r"^```(?:(?P<language>\w+)|\{\.(?P<included>\w+))(?: title=\"(?P<title>[^\"]+)\")?\}?\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PAGES = [
    "README.md",
    *sorted(
        path.relative_to(DOCS).as_posix()
        for path in DOCS.rglob("*.md")
        if "```" in path.read_text(encoding="utf-8")
    ),
]
toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of a page; `why` it is not run, or None."""

    page: str
    line: int
    language: str
    title: str | None
    body: str
    why: str | None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command; `a && b` are two."""
        lines = self.body.replace("\\\n", " ").splitlines()
        split = [shlex.split(command, comments=True) for line in lines for command in line.split(" && ")]
        return [words for words in split if words]


def path_of(page: str) -> Path:
    return (ROOT if page == "README.md" else DOCS) / page


def blocks(page: str) -> Iterator[Block]:
    text = path_of(page).read_text(encoding="utf-8")
    assert text.count("```") % 2 == 0, f"{page} has a fence that does not end"
    found = list(FENCE.finditer(text))
    assert len(found) == text.count("```") // 2, f"{page} has a fence of a form that is not known here"
    for one in found:
        line = text.count("\n", 0, one.start("body")) + 1
        yield Block(page, line, one["language"] or "include", one["title"], one["body"], one["why"])


def run_python(block: Block, names: dict[str, Any]) -> None:
    # Empty lines in front let a traceback point into the page.
    code = "\n" * (block.line - 1) + block.body
    exec(compile(code, str(path_of(block.page)), "exec"), names)


def run_commands(block: Block, said: Callable[[], Any]) -> None:
    for words in block.commands:
        if words[0] == "pip":
            continue
        assert words[0] == "zsad", f"{block.page}:{block.line} runs {words[0]}, which nothing here can"
        code = main(words[1:])
        assert code == 0, f"{block.page}:{block.line}: {shlex.join(words)} ended with {code}: {said().err}"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prepare_readme(assets: Path) -> None:
    """The folders that the README names and no command of it makes."""
    shutil.copytree(assets / "promptmoe-tiny", "runs/promptmoe")
    shutil.copytree("one", "mvtec")


def check_readme(names: dict[str, Any]) -> None:
    rows = lines_of(Path("results/judged/predictions.jsonl"))
    assert len(rows) == 3 and all(row["verdict"] in ("normal", "anomalous") for row in rows)
    assert len(lines_of(Path("results/parts/predictions.jsonl"))) == 10
    assert Path("heat.jpg").stat().st_size > 0 and any(Path("results/experts").glob("*.html"))


def check_start(names: dict[str, Any]) -> None:
    page = (DOCS / "start.md").read_text(encoding="utf-8")
    table = page.split("## In Python")[0]
    for name in re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE):
        assert (Path("results") / name).exists()
    assert Path("heat.jpg").stat().st_size > 0


def check_score(names: dict[str, Any]) -> None:
    page = (DOCS / "score.md").read_text(encoding="utf-8")
    table = page.split("## A row")[1].split("## ")[0]
    told = set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))
    row = lines_of(Path("results/predictions.jsonl"))[0]
    assert told == row.keys()
    assert all(path.is_file() for path in names["paths"].values())
    assert json.loads(Path("results/ignoring/run.json").read_text())["settings"]["region"] is not None


def check_calibrate(names: dict[str, Any]) -> None:
    rows = lines_of(Path("results/judged/predictions.jsonl"))
    assert all(row["verdict"] in ("normal", "anomalous") and 0 < row["p_value"] <= 1 for row in rows)
    assert {"p_value", "threshold", "pixel_threshold", "regions"} <= rows[0].keys()
    for name in ("regions.jsonl", "regions.csv", "regions.coco.json", "regions.labelstudio.json"):
        assert (Path("results/regions") / name).is_file()
    needed, promised = names["scores_needed"], names["promised_rate"]
    assert (needed(0.01, 0.95), needed(0.01, 0.0)) == (299, 99)  # as the comments on the page say
    assert promised(40, 0.95) == pytest.approx(0.072, abs=5e-4)
    assert names["detector"].calibration == names["calibration"]


def check_export(names: dict[str, Any]) -> None:
    assert names["detector"].backend.name == "onnx"


def check_train(names: dict[str, Any]) -> None:
    for name in ("model.safetensors", "card.json", "log.jsonl", "run.json"):
        assert (Path("runs/promptmoe") / name).is_file()
    card = json.loads(Path("runs/anomalyclip/card.json").read_text())
    assert card["config"]["oddness"] == "fused" and card["training"]["epochs"] == 1


def check_metrics(names: dict[str, Any]) -> None:
    with Path("results/clip/metrics.csv").open() as stream:
        assert {"pixel_aupimo", "pixel_aupro@0.05"} <= set(csv.DictReader(stream).fieldnames or ())
    document = json.loads(Path("results/clip/metrics.json").read_text())
    assert {"class", "mean"} == {row["kind"] for row in document["rows"]}


def check_reproduce(names: dict[str, Any]) -> None:
    for suffix in ("html", "csv", "json", "tex", "md", "png"):
        assert (Path("bench") / f"benchmark.{suffix}").is_file()
    assert len(list(Path("bench/cells").glob("*.json"))) == 4


def check_new_method(names: dict[str, Any]) -> None:
    losses = [row["total"] for row in lines_of(Path("runs/direct/log.jsonl"))]
    assert losses and all(math.isfinite(loss) for loss in losses)
    # The direction starts at zero, so whatever is not zero was learned.
    assert names["method"].shift.abs().amax(dim=1).min() > 0
    assert names["detector"].method.name == "probe" and Path("results/probe/metrics.csv").is_file()


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "README.md": check_readme,
    "start.md": check_start,
    "score.md": check_score,
    "calibrate.md": check_calibrate,
    "export.md": check_export,
    "train.md": check_train,
    "metrics.md": check_metrics,
    "reproduce.md": check_reproduce,
    "new-method.md": check_new_method,
}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_top_to_end(
    page: str, place: Path, small_assets: Path, install, capsys: pytest.CaptureFixture[str]
) -> None:
    if page == "README.md":
        prepare_readme(small_assets)
    names: dict[str, Any] = {"__name__": "page"}
    found = list(blocks(page))
    for block in found:
        if block.title is not None and block.language != "include":
            Path(block.title).write_text(block.body)
        if block.title == "pyproject.toml":
            own = toml.loads(block.body)["project"]
            install(own["name"], own["entry-points"]["zsad.methods"])
    for block in found:
        if block.why is not None:
            continue
        if block.language == "python":
            run_python(block, names)
        elif block.language == "bash":
            run_commands(block, capsys.readouterr)
    CHECKS.get(page, lambda names: None)(names)


def test_commands_that_are_not_run_have_options_that_exist() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language != "bash" or block.why is None:
                continue
            for words in block.commands:
                if "zsad" in words:
                    own = words[words.index("zsad") + 1 :]
                    build_app().parse_args(own, exit_on_error=False, print_error=False)


def test_extras_that_are_named_exist() -> None:
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "".join(path_of(page).read_text(encoding="utf-8") for page in PAGES)
    named = {
        extra for found in re.findall(r"pip install .*?\[([\w,]+)\]", text) for extra in found.split(",")
    }
    named |= set(re.findall(r"\(extra `(\w+)`\)", text))
    assert len(named) >= 4 and named <= project["optional-dependencies"].keys()


def test_every_block_is_run_or_says_why() -> None:
    known = {"python", "bash", "json", "csv", "toml", "text", "include"}
    for page in PAGES:
        for block in blocks(page):
            assert block.language in known, f"{page}:{block.line}: a block of {block.language}"
            assert block.why is None or block.language == "bash", f"{page}:{block.line}: Python always runs"
