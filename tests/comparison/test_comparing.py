"""References and mutual scoring: against slow loops, identities, files, bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zsad.comparison.batch import Mutual
from zsad.comparison.compare import look_closely
from zsad.comparison.load import save_references
from zsad.comparison.references import Collector, References
from zsad.detector import Detector
from zsad.errors import CheckpointError, ConfigError, DataError
from zsad.loading import load
from zsad.nn.maps import render_map_numpy
from zsad.predict.tiles import Tiling
from zsad.predict.view import InputOptions
from zsad.types import Sample


@pytest.fixture(scope="module")
def detector(toy: Any) -> Detector:
    return load(toy.model, device="cpu")


@pytest.fixture(scope="module")
def parts(toy: Any) -> list[Path]:
    return sorted(toy.images.iterdir())


@pytest.fixture(scope="module")
def compared(detector: Detector, parts: list[Path]) -> Detector:
    return detector.with_references([Sample(path) for path in parts[:3]])


def kinds_of(detector: Detector, path: Path) -> list[torch.Tensor]:
    from zsad.images.decode import load_image

    pixels = torch.from_numpy(detector.model.preprocess(load_image(path))[None])
    return [kind[0] for kind in look_closely(detector.method, pixels)[1]]


def own(detector: Detector) -> References:
    assert isinstance(detector.comparison, References)
    return detector.comparison


# references


def test_references_equal_the_slow_rule(detector: Detector, compared: Detector, parts: list[Path]) -> None:
    memory = [torch.cat([kinds_of(detector, path)[k] for path in parts[:3]]) for k in range(3)]
    for path in (parts[0], parts[4]):
        standard = []
        for kind, bank, (mean, deviation) in zip(
            kinds_of(detector, path), memory, own(compared).statistics, strict=True
        ):
            distance = torch.tensor([min(1 - float(f @ m) for m in bank) for f in kind])
            standard.append((distance.clamp_min(0) - mean) / deviation)
        few = torch.sigmoid(torch.stack(standard).mean(dim=0) - 3).numpy().reshape(8, 8)
        plain, found = detector.predict(path), compared.predict(path)
        np.testing.assert_allclose(1 / (1 + np.exp(-found.grid[3:])), np.stack([few] * 3), atol=2e-3)
        np.testing.assert_allclose(found.grid[:3], plain.grid, atol=1e-5)
        raised = np.log(few / (1 - few))[None].astype(np.float32)
        highest = render_map_numpy(raised, plain.spec, smooth=False).max()
        assert found.score == pytest.approx((plain.score + highest) / 2, abs=2e-3)
        both = (plain.canonical_map() + render_map_numpy(raised, plain.spec)) / 2
        np.testing.assert_allclose(found.canonical_map(), both, atol=3e-3)


def test_a_reference_is_never_odd_and_order_does_not_matter(
    detector: Detector, compared: Detector, parts: list[Path]
) -> None:
    few = [compared.predict(path).terms["compared"] for path in parts]  # type: ignore[index]
    assert max(few[:3]) < min(few[3:])
    others = detector.with_references([Sample(path) for path in (parts[2], parts[0], parts[1])], limit=100)
    again = detector.with_references([Sample(path) for path in parts[:3]], limit=100)
    assert own(others).digest() == own(again).digest()
    assert len(own(again).banks[0]) == 100
    scores = [other.predict(parts[4]).score for other in (others, again)]
    assert scores[0] == scores[1]


def test_statistics_leave_the_own_image_out(detector: Detector, parts: list[Path]) -> None:
    collector = Collector(detector.method)
    from zsad.images.decode import load_image

    for path in parts[:3]:
        collector.add(detector.model.preprocess(load_image(path)))
    made = collector.finish()
    features = [kinds_of(detector, path) for path in parts[:3]]
    for kind, (mean, deviation) in enumerate(made.statistics):
        distances = []
        for number in range(3):
            rest = torch.cat([features[other][kind] for other in range(3) if other != number])
            distances += [min(1 - float(f @ m) for m in rest) for f in features[number][kind]]
        assert mean == pytest.approx(np.mean(distances), abs=2e-3)
        assert deviation == pytest.approx(np.std(distances, ddof=1), abs=2e-3)


def test_one_reference_is_enough(detector: Detector, parts: list[Path]) -> None:
    alone = detector.with_references([Sample(parts[0])])
    assert own(alone).images == 1 and all(mean > 0 for mean, _ in own(alone).statistics)
    assert np.isfinite(alone.predict(parts[4]).score)


def test_papers_rule_takes_distances_as_they_are(detector: Detector, parts: list[Path]) -> None:
    plain = detector.with_references([Sample(parts[0])], scale="distance")
    found = plain.predict(parts[1])
    memory = kinds_of(detector, parts[0])
    rows = [
        (1 - (kind @ bank.T).amax(dim=1)) / 2
        for kind, bank in zip(kinds_of(detector, parts[1]), memory, strict=True)
    ]
    expected = torch.stack(rows).mean(dim=0).numpy().reshape(8, 8)
    np.testing.assert_allclose(1 / (1 + np.exp(-found.grid[3])), expected, atol=2e-3)


def test_a_file_gives_the_same_scores(
    detector: Detector, compared: Detector, parts: list[Path], tmp_path: Path
) -> None:
    path = save_references(compared.model, compared.view, tmp_path / "refs.safetensors")
    read = detector.with_references(path)
    assert read.predict(parts[4]).score == compared.predict(parts[4]).score
    assert read.identity() == compared.identity() != detector.identity()
    other = detector.with_(options=InputOptions(tiling=Tiling(64)))
    with pytest.raises(CheckpointError, match="other tiles"):
        other.with_references(path)
    content = path.read_bytes()
    for broken in (b"", b"junk" * 9, content[: len(content) // 2], content[:40] + b"x" * 60 + content[100:]):
        path.write_bytes(broken)
        with pytest.raises(CheckpointError) as caught:
            detector.with_references(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match="no references to save"):
        save_references(detector.model, detector.view, path)


def test_what_cannot_be_used_is_told(detector: Detector, tmp_path: Path, parts: list[Path]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    told: list[str] = []
    made = detector.with_references(
        [Sample(broken), Sample(parts[0])], on_error=lambda sample, error: told.append(str(error))
    )
    assert len(told) == 1 and own(made).images == 1
    with pytest.raises(DataError, match="no reference image"):
        detector.with_references([Sample(broken)], on_error=lambda sample, error: None)
    with pytest.raises(ConfigError, match="limit is 0"):
        detector.with_references([Sample(parts[0])], limit=0)


def test_tiles_meet_tiles(detector: Detector, parts: list[Path]) -> None:
    cut = detector.with_(options=InputOptions(tiling=Tiling(48)))
    made = cut.with_references([Sample(path) for path in parts[:3]])
    assert len(own(made).banks[0]) > 3 * 64
    found = made.predict(parts[4])
    assert found.grid.shape[0] == 6 and found.terms is not None
    assert found.score == max(found.terms["whole"], found.terms["tiles"])


# mutual scoring


def test_mutual_scoring_equals_the_slow_rule(detector: Detector, parts: list[Path]) -> None:
    made = detector.with_mutual([Sample(path) for path in parts], scale="distance")
    features = [kinds_of(detector, path) for path in parts]
    for number in (0, 3):
        rows = []
        for kind in range(3):
            each = [
                [min(1 - float(f @ m) for m in features[other][kind]) for f in features[number][kind]]
                for other in range(len(parts))
                if other != number
            ]
            count = max(1, int(0.3 * len(each)))
            rows.append(np.sort(np.array(each), axis=0)[:count].mean(axis=0))
        expected = np.mean(rows, axis=0).reshape(8, 8) / 2
        found = made.predict(parts[number])
        np.testing.assert_allclose(1 / (1 + np.exp(-found.grid[3])), np.clip(expected, 1e-4, 1), atol=2e-3)


def test_mutual_order_bound_and_too_few(detector: Detector, parts: list[Path]) -> None:
    forward, backward = (
        detector.with_mutual([Sample(path) for path in order], others=3) for order in (parts, parts[::-1])
    )
    assert forward.identity() == backward.identity()
    assert isinstance(forward.comparison, Mutual) and len(forward.comparison._images) == 3
    for path in parts:
        assert forward.predict(path).score == backward.predict(path).score
    for few in ([parts[0]], [parts[0], parts[0]]):
        with pytest.raises(DataError, match="two different ones"):
            detector.with_mutual([Sample(path) for path in few])
    with pytest.raises(ConfigError, match="others is 1"):
        detector.with_mutual([Sample(path) for path in parts], others=1)


def test_the_odd_one_out_scores_highest() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(30, 8, generator=generator)
    images = []
    for number in range(6):
        features = base + 0.05 * torch.randn(30, 8, generator=generator)
        if number == 4:
            features[7] = torch.randn(8, generator=generator) * 3
        images.append((bytes([number]), [torch.nn.functional.normalize(features, dim=-1)]))
    made = Mutual(images)
    found = torch.stack([made.probabilities(kinds, key) for key, kinds in images])
    assert divmod(int(found.argmax()), 30) == (4, 7)
    assert found[4, 7] > 0.9
