"""Counts against a slow reading image by image, the rules for patches, and what may go wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import zsad
from zsad.card import BackboneReference, Card
from zsad.clip.weights import load_backbone
from zsad.datasets.manifest import discover
from zsad.detector import Detector
from zsad.errors import ConfigError, DataError
from zsad.images.decode import read_image
from zsad.images.picture import Preprocess
from zsad.methods.registry import METHODS, build
from zsad.studies.explain import explain
from zsad.studies.explain.collect import Usage, choose_pictures, patch_regions
from zsad.studies.explain.explanation_json import explanation_json
from zsad.types import Sample

PATCH_KINDS = ("activation", "regions", "patches")


@pytest.fixture(scope="module")
def found(router, discs):
    return explain(router, [discs], kinds=PATCH_KINDS, images=4, batch_size=2)


def slow_routing(router, sample: Sample) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Weights (L, E) of the image and (L, N, E) of its patches, of one image alone."""
    pixels = torch.from_numpy(router.model.preprocess(read_image(sample.image)[0]))[None]
    with torch.no_grad():
        features = router.method.features(pixels)
        images = router.method(features).routing
        tokens = router.method.token_routing(features)["patches"][0]
    return {name: weights[0].numpy() for name, weights in images.items()}, tokens.numpy()


def test_usage_is_the_slow_count(router, discs, found) -> None:
    assert {name: pool.unit for name, pool in found.pools.items()} == {
        "normal": "image",
        "abnormal": "image",
        "patches": "patch",
    }
    assert found.pools["patches"].experts[0] == "frozen" and found.pools["normal"].experts[3] == "E4"
    assert found.pools["normal"].layers == ("layer 2", "layer 3", "layer 4")
    assert found.pools["patches"].layers == ("routing 1", "routing 2")
    for group, label in (("normal", 0), ("anomalous", 1)):
        own = [slow_routing(router, sample) for sample in discs.samples if sample.label == label]
        for pool in ("normal", "abnormal"):
            usage = next(entry for entry in found.usage if (entry.group, entry.pool) == (group, pool))
            weights = np.stack([images[pool] for images, _ in own])
            assert usage.count == usage.images == len(own)
            np.testing.assert_array_equal(usage.chosen, (weights > 0).sum(0))
            np.testing.assert_allclose(usage.weight, weights.sum(0), atol=1e-5)
            assert (usage.chosen.sum(-1) == 2 * len(own)).all()  # top_k of the toy model
        usage = next(entry for entry in found.usage if (entry.group, entry.pool) == (group, "patches"))
        tokens = np.concatenate([tokens for _, tokens in own], axis=1)
        assert usage.count == 64 * len(own) == tokens.shape[1]
        np.testing.assert_array_equal(usage.chosen, (tokens > 0).sum(1))
        np.testing.assert_allclose(usage.share("weight").sum(-1), 1, atol=1e-5)
        np.testing.assert_allclose(usage.weight, tokens.sum(1), atol=1e-4)
        winners = tokens.argmax(-1)
        for expert in range(5):
            np.testing.assert_array_equal(usage.strongest[:, expert], (winners == expert).sum(1))


def test_regions_split_the_patches_by_the_mask(router, discs, found) -> None:
    normal, anomalous = (
        next(entry for entry in found.regions if entry.group == f"{kind} pixels")
        for kind in ("normal", "anomalous")
    )
    # The marked quarter is 4 x 4 of 8 x 8 patches, whatever the image's size.
    assert (normal.count, anomalous.count) == (3 * 64 + 2 * 48, 2 * 16)
    expected = np.zeros((2, 5))
    for sample in discs.samples:
        if sample.label == 1:
            inside = np.zeros((8, 8), bool)
            inside[:4, :4] = True
            expected += slow_routing(router, sample)[1][:, inside.reshape(-1)].sum(1)
    np.testing.assert_allclose(anomalous.weight, expected, atol=1e-5)
    everything = sum(entry.weight for entry in found.usage if entry.pool == "patches")
    np.testing.assert_allclose(normal.weight + anomalous.weight, everything, atol=1e-4)
    line = next(line for line in found.contrasts if line.pool == "patches")
    shares = [entry.weight / entry.count for entry in (normal, anomalous)]
    assert line.pixels == pytest.approx(np.abs(shares[0] - shares[1]).sum(-1).mean() / 2)
    assert line.datasets is None and 0 < line.labels < 1 and 1 < line.effective < 5


def test_batches_and_order_change_nothing(router, discs, found) -> None:
    other = explain(router, [discs], kinds=("activation",), batch_size=5)
    for first, second in zip(found.usage, other.usage, strict=True):
        np.testing.assert_array_equal(first.chosen, second.chosen)
        np.testing.assert_allclose(first.weight, second.weight, atol=1e-5)
    reverse = explain(
        router, [replace(discs, samples=discs.samples[::-1])], kinds=("activation",), batch_size=3
    )
    found_by = {(entry.group, entry.pool): entry for entry in reverse.usage}
    for entry in found.usage:
        np.testing.assert_array_equal(entry.chosen, found_by[entry.group, entry.pool].chosen)


def test_pictures_show_the_strongest_expert(router, found) -> None:
    pictures = found.collected.pictures
    assert [picture.sample.label for picture in pictures] == [0, 0, 1, 1]
    for picture in pictures:
        tokens = slow_routing(router, picture.sample)[1]
        np.testing.assert_array_equal(picture.strongest["patches"].reshape(2, -1), tokens.argmax(-1))
        assert picture.defect is not None and picture.defect.sum() == 16 * picture.sample.label
        width, height = Image.open(picture.sample.image).size
        assert picture.picture.width / picture.picture.height == pytest.approx(width / height, rel=0.05)


def test_two_sets_of_one_name_stay_apart(router, discs, renamed) -> None:
    both = explain(router, [discs, renamed, discs], kinds=("activation",))
    assert list(both.datasets) == ["parts", "others", "parts (2)"]
    assert all(counts == (3, 2, 0) for counts in both.datasets.values())
    lines = {line.pool: line for line in both.contrasts}
    assert lines["normal"].datasets == pytest.approx(0, abs=1e-6)


def test_effective_experts_between_one_and_all() -> None:
    def usage(weights: list[float]) -> Usage:
        zeros = np.zeros((1, len(weights)), np.int64)
        return Usage("d", "normal", "p", "image", 4, 4, zeros, zeros, 4 * np.array([weights]))

    assert usage([1, 0, 0]).effective_experts() == pytest.approx([1])
    assert usage([0.25] * 4).effective_experts() == pytest.approx([4])
    assert usage([0.5, 0.5, 0, 0]).effective_experts() == pytest.approx([2])


def test_patches_by_both_rules() -> None:
    mask = np.zeros((6, 8), bool)  # patches of 3 x 2 pixels on a grid of 2 x 4
    mask[0:3, 0:2] = True  # all of the first
    mask[0:3, 2] = True  # half of the second
    mask[5, 7] = True  # a sixth of the last
    normal, anomalous = patch_regions(mask, (2, 4), rule="any")
    assert anomalous.tolist() == [[True, True, False, False], [False, False, False, True]]
    np.testing.assert_array_equal(normal, ~anomalous)
    normal, anomalous = patch_regions(mask, (2, 4), rule="majority")
    assert anomalous.tolist() == [[True, True, False, False], [False] * 4]
    assert not (normal & anomalous).any() and normal.sum() == 5  # the last is neither
    small = np.zeros((6, 8), bool)
    small[3:5, 4] = True
    small[5, 7] = True
    _, anomalous = patch_regions(small, (2, 4), rule="majority")
    assert np.argwhere(anomalous).tolist() == [[1, 2]]
    normal, anomalous = patch_regions(np.zeros((6, 8), bool), (2, 4), rule="majority")
    assert normal.all() and not anomalous.any()


def test_pictures_are_chosen_evenly() -> None:
    def samples(dataset: str, label: int | None, count: int) -> list[Sample]:
        return [Sample(f"{dataset}{label}{i}", label=label, dataset=dataset) for i in range(count)]

    both = [*samples("a", 0, 9), *samples("a", 1, 9), *samples("b", 0, 9), *samples("b", 1, 9)]
    chosen = choose_pictures(both, 8)
    assert [(sample.dataset, sample.label) for sample in chosen] == [
        (dataset, label) for label in (0, 1) for dataset in ("a", "b", "a", "b")
    ]
    assert len({sample.image for sample in chosen}) == 8
    assert [s.label for s in choose_pictures(samples("a", 1, 5) + samples("a", 0, 1), 4)] == [0, 1, 1, 1]
    assert [s.label for s in choose_pictures(samples("a", None, 5) + samples("a", 1, 1), 3)] == [
        1,
        None,
        None,
    ]
    assert choose_pictures(samples("a", 0, 3), 8) == samples("a", 0, 3)
    assert [s.label for s in choose_pictures(both, 1)] == [1]


def test_broken_files_are_named_and_left_out(router, discs, tmp_path) -> None:
    root = tmp_path / "set"
    shutil.copytree(discs.root, root)
    good, bad = (sorted((root / "disc" / "test" / kind).iterdir()) for kind in ("good", "bad"))
    good[0].write_bytes(b"")
    mask = next((root / "disc" / "ground_truth" / "bad").iterdir())
    Image.new("L", (9, 11), 1).save(mask)
    named = []
    found = explain(
        router,
        [root],
        kinds=PATCH_KINDS,
        on_error=lambda sample, error: named.append((sample.image, str(error))),
    )
    assert {path for path, _ in named} == {good[0], bad[0]} and "9x11 px" in dict(named)[bad[0]]
    assert len(found.collected.skipped) == 2 and found.collected.images == 4
    counts = {entry.group: entry.images for entry in found.regions}
    assert counts == {"normal pixels": 3, "anomalous pixels": 1}


def test_images_without_label_or_mask(router, toy) -> None:
    found = explain(router, [toy.images], kinds=PATCH_KINDS, images=2)
    assert {entry.group for entry in found.usage} == {"unlabelled"} and not found.regions
    assert any("5 images not known as normal have no mask" in note for note in found.notes)
    assert [picture.defect for picture in found.collected.pictures] == [None, None]


class Odd:
    """What a wrong method may return."""

    def __init__(self, shape: tuple[int, ...], value: float = 1.0) -> None:
        self.weights = torch.full(shape, value)

    def __call__(self, features) -> dict[str, torch.Tensor]:
        return {"patches": self.weights[: len(features.cls)]}


@pytest.mark.parametrize("shape", [(5, 2, 65, 4), (5, 2, 4), (1, 2, 64, 4)])
def test_impossible_shapes_are_told(router, discs, monkeypatch, shape) -> None:
    monkeypatch.setattr(router.method, "token_routing", Odd(shape))
    with pytest.raises(ConfigError, match=r"token_routing of method 'promptmoe' has shape .* expected \(B=5"):
        explain(router, [discs], kinds=("activation",), batch_size=5)


def test_overflow_is_an_error_of_the_image(router, discs, monkeypatch) -> None:
    monkeypatch.setattr(router.method, "token_routing", Odd((5, 2, 64, 4), float("nan")))
    with (
        pytest.raises(DataError, match="none of the 5 images"),
        pytest.warns(UserWarning, match="no finite routing"),
    ):
        explain(router, [discs], kinds=("activation",))


def test_methods_without_experts_and_without_data(discs, router, toy, tmp_path) -> None:
    clip = zsad.load("clip", backbone=toy.backbone, device="cpu")
    with pytest.raises(ConfigError, match=r"'clip' has no experts to explain, unlike .*promptmoe"):
        explain(clip, [discs])
    with pytest.raises(ConfigError, match="no experts"):
        explain(clip, kinds=("embeddings", "curves"))
    with pytest.raises(DataError, match="no images to explain activation with"):
        explain(router, kinds=("activation", "embeddings"))
    with pytest.raises(DataError, match="does not exist"):
        explain(router, [tmp_path / "none"])
    for wrong in ({"kinds": ("maps",)}, {"images": 0}, {"batch_size": 0}):
        with pytest.raises(ConfigError):
            explain(router, [discs], **wrong)


@pytest.mark.parametrize("name", [name for name, entry in METHODS.items() if entry.routes])
def test_every_method_with_experts_can_be_explained(toy, discs, name: str) -> None:
    tower = load_backbone(toy.backbone)
    method = build(name, {"heads": 4} if name == "promptmoe" else None, tower)
    method.reset_parameters(torch.Generator().manual_seed(2))
    size = (method.config.image_size,) * 2
    card = Card(
        method=name,
        provenance=METHODS[name].provenance,
        config=method.config.model_dump(mode="json"),
        backbone=BackboneReference(name="toy", sha256=tower.sha256),
        preprocess=Preprocess(image_size=size).to_dict(),
        map_spec=method.map_spec,
    )
    found = explain(Detector.from_method(method, card), [discs], kinds=(*PATCH_KINDS, "embeddings"), images=2)
    assert found.pools and found.collected.images == 5
    for entry in found.usage:
        np.testing.assert_allclose(entry.share("weight").sum(-1), 1, atol=1e-4)
    by_patch = any(pool.unit == "patch" for pool in found.pools.values())
    assert by_patch == bool(found.regions) == bool(found.collected.pictures)
    json.dumps(explanation_json(found), allow_nan=False)
    told = [note for note in found.notes if "re-designed from the abstract" in note]
    assert len(told) == (name in ("mpama", "wmoeclip"))


def test_memory_does_not_grow_with_images(router, discs) -> None:
    many = replace(discs, samples=discs.samples * 4)
    found = explain(router, [many], kinds=("activation", "regions"), batch_size=4)
    assert found.collected.images == 20 and len(found.usage) == 6 and not found.collected.pictures
    assert {entry.chosen.shape for entry in found.usage} == {(3, 4), (2, 5)}


def test_discover_and_paths_are_alike(router, discs) -> None:
    by_path = explain(router, [str(discs.root)], kinds=("activation",))
    assert by_path.datasets == explain(router, [discover(discs.root)], kinds=("activation",)).datasets
