"""A place in which the pages' commands run as printed: their files, and bundled models a thousand times smaller."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="session")
def small_assets(tmp_path_factory: pytest.TempPathFactory, write_backbone, write_model) -> Iterator[Path]:
    """Random models under the names of the bundled ones; while tests of this folder ask for them, zsad takes these."""
    root = tmp_path_factory.mktemp("assets")
    write_backbone(root / "zsad-tiny", name="zsad-tiny", embed_dim=32)
    with pytest.MonkeyPatch.context() as patch:
        _take(patch, root)
        write_model(root / "promptmoe-tiny", "zsad-tiny", oddness="fused")
        write_model(root / "moeclip-tiny", "zsad-tiny", method_name="moeclip")
    yield root


def _take(patch: pytest.MonkeyPatch, root: Path) -> None:
    patch.setattr("zsad.clip.config.ASSETS", root)
    patch.setattr("zsad.clip.weights.ASSETS", root)
    patch.setattr("zsad.train.checkpoint._ASSETS", root)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, small_assets: Path, write_images, write_set) -> Path:
    """The files that the pages speak of; to be copied, not to be changed."""
    root = tmp_path_factory.mktemp("pages")
    for seed, name in enumerate(("aux", "one", "two", "parts")):
        write_set(root / name, seed=seed)
    write_images(root / "photos", 3)
    write_images(root / "good", 6)
    for name, kind in (("good", 0), ("bad", 1)):
        (root / "labelled" / name).mkdir(parents=True)
        for picture in sorted((root / "good").iterdir())[kind::2]:
            shutil.copy(picture, root / "labelled" / name)
    shutil.copy(root / "good" / "part00.jpg", root / "photo.jpg")
    (root / "large").mkdir()
    Image.effect_noise((400, 150), 40).convert("RGB").save(root / "large" / "board.png")
    return root


@pytest.fixture
def place(world: Path, small_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the world as the current folder, the example method within reach."""
    folder = tmp_path / "place"
    shutil.copytree(world, folder)
    _take(monkeypatch, small_assets)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(DOCS / "examples"))
    yield folder
    sys.modules.pop("my_method", None)


@pytest.fixture
def install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str, dict[str, str]], None]]:
    """Installs a package of a name with entry points for methods, as pip would: `install(name, points)`."""
    from zsad.methods import registry

    def put(name: str, points: dict[str, str]) -> None:
        info = tmp_path / "site" / f"{name.replace('-', '_')}-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        lines = [f"{key} = {value}" for key, value in points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[zsad.methods]", *lines, ""]))
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        registry._plugins.cache_clear()

    yield put
    monkeypatch.undo()
    registry._plugins.cache_clear()
