"""A few of the broken inputs that `tools/fuzz.py` makes by the thousand, and what it found before."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from zsad.backends.graph_card import read_export
from zsad.errors import CheckpointError, ConfigError
from zsad.files import parse_json
from zsad.predict.roi import read_region

TOOLS = Path(__file__).parents[2] / "tools"
pytest.importorskip("fastapi", reason="needs the extra serve")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="its time limits are signals")


@pytest.fixture(scope="module")
def fuzz() -> Iterator[ModuleType]:
    sys.path.insert(0, str(TOOLS))
    spec = importlib.util.spec_from_file_location("zsad_tools_fuzz", TOOLS / "fuzz.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(TOOLS))


@pytest.fixture(scope="module")
def sound(fuzz: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return fuzz.make_sound(tmp_path_factory.mktemp("sound"), export=False)


@pytest.mark.parametrize(
    ("kind", "count"), [("images", 25), ("models", 14), ("listings", 16), ("requests", 24)]
)
def test_broken_inputs_end_in_a_line_or_in_an_answer(
    fuzz: ModuleType,
    sound: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    count: int,
) -> None:
    (tmp_path / "case").mkdir()
    monkeypatch.chdir(tmp_path / "case")
    ledger = fuzz.Ledger(tmp_path, seconds=600)
    fuzz.KINDS[kind](ledger, sound, count, random.Random(f"{kind} tests"))
    assert ledger.failures == []
    assert sum(ledger.tried.values()) >= count


def test_deep_nesting_is_no_bug(tmp_path: Path) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(deep)
    (tmp_path / "model.onnx.json").write_text(deep)
    with pytest.raises(CheckpointError, match=r"cannot be read .*nested too deeply"):
        read_export(tmp_path / "model.onnx")
    (tmp_path / "area.json").write_text(deep)
    with pytest.raises(ConfigError, match="it is not JSON"):
        read_region(tmp_path / "area.json", None)
