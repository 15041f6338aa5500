from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import zsad
from zsad.detector import Detector
from zsad.errors import CheckpointError, ConfigError, DataError, ImageError


@pytest.fixture(scope="module")
def detector(toy) -> Detector:
    return zsad.load(toy.model, device="cpu")


def test_path_array_and_picture_agree(detector: Detector, toy) -> None:
    path = toy.images / "part01.png"
    picture = Image.open(path)
    first, second, third = (detector.predict(x) for x in (path, picture, np.asarray(picture)))
    assert first.score == second.score == third.score
    np.testing.assert_array_equal(first.grid, third.grid)
    assert first.source == str(path) and second.source is None
    assert first.size == (80, 104) and first.map.shape == (80, 104)
    assert third.overlay().size == (104, 80)


def test_score_is_the_methods_own(detector: Detector, toy) -> None:
    import torch

    image = Image.open(toy.images / "part01.png")
    pixels = torch.from_numpy(detector.model.preprocess(image))[None]
    with torch.no_grad():
        output = detector.method(detector.method.features(pixels))
    found = detector.predict(image)
    assert found.score == pytest.approx(output.score.item(), abs=1e-6)
    assert found.verdict is None
    assert found.routing is not None
    np.testing.assert_allclose(found.routing["normal"], output.routing["normal"][0], atol=1e-6)
    np.testing.assert_allclose(found.routing["normal"].sum(axis=1), 1, atol=1e-5)


def test_folder_keeps_order_and_equals_single_images(detector: Detector, toy) -> None:
    found = list(detector.predict_folder(toy.images, batch_size=2))
    assert [Path(str(p.source)).name for p in found] == sorted(path.name for path in toy.images.iterdir())
    for prediction in found:
        assert prediction.score == pytest.approx(detector.predict(prediction.source).score, abs=1e-5)


def test_folder_is_read_as_results_are_taken(detector: Detector, make_images, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "many", 12)
    results = detector.predict_folder(folder, batch_size=1)
    next(results)
    for path in sorted(folder.iterdir())[6:]:
        path.unlink()  # not read yet, so they are missed
    failed: list[str] = []
    with pytest.warns(UserWarning, match="does not exist"):
        rest = list(results)
    assert 3 <= len(rest) <= 9 and not failed


def test_bad_file_is_handed_over_and_skipped(detector: Detector, make_images, tmp_path: Path) -> None:
    folder = make_images(tmp_path / "some", 3)
    (folder / "part01.png").write_bytes(b"")
    failed: list[tuple[str, str]] = []
    found = list(detector.predict_folder(folder, on_error=lambda s, e: failed.append((s.image.name, str(e)))))
    assert [Path(str(p.source)).name for p in found] == ["part00.jpg", "part02.png"]
    assert failed[0][0] == "part01.png" and "empty" in failed[0][1]


def test_errors_of_single_images_and_folders(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        detector.predict(tmp_path / "none.png")
    with pytest.raises(ImageError, match="channels last"):
        detector.predict(np.zeros((3, 40, 40), np.uint8))
    with pytest.raises(DataError):
        list(detector.predict_folder(tmp_path))


def test_saved_detector_is_the_same(detector: Detector, toy, tmp_path: Path) -> None:
    detector.save(tmp_path / "copy")
    again = zsad.load(tmp_path / "copy", device="cpu")
    path = toy.images / "part02.png"
    assert again.predict(path).score == detector.predict(path).score
    assert again.card.method == "promptmoe"


def test_impossible_numbers(detector: Detector, toy) -> None:
    for size in (0, -1):
        with pytest.raises(ConfigError, match=f"batch_size is {size}"):
            list(detector.predict_folder(toy.images, batch_size=size))
        with pytest.raises(ConfigError, match=f"max_side is {size}"):
            detector.predict(toy.images / "part00.jpg").overlay(max_side=size)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"method": "nope"}, "no method is called 'nope'"),
        ({"config": {"nope": 3}}, "unknown setting 'nope'"),
        ({"config": {"experts": 3, "top_k": 2, "heads": 4}}, "tensor 'pools.0' has shape"),
    ],
)
def test_checkpoint_of_another_make_is_named(toy, tmp_path: Path, change: dict, word: str) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    path = toy.model / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        card = json.loads(file.metadata()["card"])
    broken = tmp_path / "broken.safetensors"
    save_file(load_file(path), broken, {"card": json.dumps({**card, **change})})
    with pytest.raises(CheckpointError, match=word) as caught:
        zsad.load(broken, device="cpu")
    assert str(broken) in str(caught.value)


def test_untrained_method_on_any_backbone(toy) -> None:
    detector = zsad.load("clip", backbone=toy.backbone, device="cpu")
    prediction = detector.predict(toy.images / "part00.jpg")
    assert 0 <= prediction.score <= 1 and prediction.routing is None
    assert detector.card.training is None and detector.card.backbone.name == "toy"


def test_untrained_method_without_backbone_says_what_to_name() -> None:
    with pytest.raises(CheckpointError, match="--backbone"):
        zsad.load("clip")


def test_model_on_another_backbone_is_refused(toy, tmp_path: Path) -> None:
    import shutil

    other = shutil.copytree(toy.backbone, tmp_path / "other")
    data = bytearray((other / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (other / "model.safetensors").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="trained on backbone"):
        zsad.load(toy.model, backbone=other, device="cpu")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta", "xla"])
def test_device_that_is_not_there(toy, device: str) -> None:
    with pytest.raises(ConfigError, match="device"):
        zsad.load(toy.model, device=device)
