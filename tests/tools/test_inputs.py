"""The check of what weights are trained on."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).parents[2] / "tools" / "inputs.py"


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("inputs", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    listing = tmp_path / "inputs.toml"
    listing.write_text('[parts]\nabout = "two parts"\npatterns = ["**/*.png"]\nfiles = 0\nsha256 = ""\n')
    monkeypatch.setattr(module, "LISTING", listing)
    return module


def run(module: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["inputs.py", *arguments])
    code: int = module.main()
    return code


def test_what_was_noted_is_recognised_and_nothing_else(
    inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "parts"
    (folder / "good").mkdir(parents=True)
    for name in ("a", "b"):
        (folder / "good" / f"{name}.png").write_bytes(name.encode())
    given = f"parts={folder}"
    assert run(inputs, monkeypatch, given, "--write") == 0
    assert run(inputs, monkeypatch, given) == 0
    (folder / "notes.txt").write_text("no picture")
    assert run(inputs, monkeypatch, given) == 0
    (folder / "good" / "a.png").write_bytes(b"other")
    assert run(inputs, monkeypatch, given) == 1
    assert re.search(r"parts in .*: 2 files, .*\(two parts\)", capsys.readouterr().err)
    (folder / "good" / "a.png").write_bytes(b"a")
    (folder / "good" / "b.png").rename(folder / "good" / "c.png")
    assert run(inputs, monkeypatch, given) == 1


def test_a_folder_that_is_not_there_and_an_unknown_input(
    inputs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs.LISTING.write_text(inputs.LISTING.read_text().replace("files = 0", "files = 2"))
    assert run(inputs, monkeypatch, f"parts={tmp_path / 'absent'}") == 1
    assert "0 files" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(inputs, monkeypatch, "cars=anywhere")
    assert "no input is called cars" in capsys.readouterr().err


def test_every_shipped_input_is_noted() -> None:
    text = TOOL.with_suffix(".toml").read_text(encoding="utf-8")
    assert (
        text.count("[") - text.count("patterns = [")
        == len(re.findall(r'sha256 = "[0-9a-f]{64}"', text))
        == 12
    )
