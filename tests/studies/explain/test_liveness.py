"""Whether modules live: the measure against slow forms, what it says in words, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from zsad.card import Training
from zsad.cli.main import main
from zsad.clip.weights import load_backbone
from zsad.detector import Detector
from zsad.errors import ConfigError, DataError
from zsad.loading import load
from zsad.methods.modules import switched
from zsad.methods.registry import build
from zsad.predict.pipeline import read
from zsad.predict.view import View
from zsad.studies.explain.liveness import mean_cosine, measure_liveness, spearman
from zsad.studies.explain.liveness_report import findings
from zsad.train.samples import start_generator


@pytest.fixture(scope="module")
def wmoe(toy, write_model, tmp_path_factory: pytest.TempPathFactory) -> Detector:
    """WMoE-CLIP as it starts, when all but prompts changes nothing."""
    folder = write_model(
        tmp_path_factory.mktemp("wmoe") / "model", toy.backbone, method_name="wmoeclip", experts=3, heads=4
    )
    return load(str(folder), device="cpu", backbone=str(toy.backbone))


def test_spearman_is_scipys() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=(2, 40)), rng.integers(0, 5, size=(2, 40)).astype(float)):
        assert spearman(*values) == pytest.approx(spearmanr(*values).statistic, abs=1e-10)
    same, other = np.ones(3), np.arange(3.0)
    assert spearman(same, same) == 1.0 and spearman(same, other) == 0.0


def test_mean_cosine_is_the_mean_over_pairs_and_cases() -> None:
    outputs = torch.randn(2, 5, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs[1, 0, 2] = 0  # an output of nothing is like no other
    for layer, found in zip(outputs, mean_cosine(outputs @ outputs.mT), strict=True):
        cosines = [
            float(a @ b / (a.norm() * b.norm()))
            for case in layer
            for i, a in enumerate(case)
            for j, b in enumerate(case)
            if i != j and a.norm() > 0 and b.norm() > 0
        ]
        assert float(found) == pytest.approx(np.mean(cosines), abs=1e-12)


def test_numbers_are_those_of_two_passes(router: Detector, toy) -> None:
    """Against the whole set as one batch, compared by hand."""
    images = sorted(toy.images.iterdir())
    result = measure_liveness(router, [toy.images], images=5, batch_size=5)
    method = router.method
    pixels = torch.from_numpy(np.stack([read(path, router.model, View()).pixels for path in images]))
    with torch.no_grad():
        features = method.encode_image(pixels)
        before = method(features)
        for line in result.modules:
            with switched(method, line.module.off):
                off, text = method(features), method.internals(features).text
            change = (off.logits - before.logits).norm() / before.logits.norm()
            assert line.off.maps == pytest.approx(float(change), rel=1e-4, abs=1e-7)
            assert line.off.ranks == pytest.approx(
                spearman(before.score.double().numpy(), off.score.double().numpy())
            )
            assert line.off.score == pytest.approx(float((off.score - before.score).abs().max()), abs=1e-6)
            if line.module.text:
                cosine = (text * method.internals(features).text).sum(dim=-1)
                assert line.off.text == pytest.approx(float(1 - cosine.mean()), abs=1e-6)
    chosen = (before.routing["normal"] > 0).float().mean(dim=0).numpy()
    rows = [layer for layer in result.pools if layer.pool == "normal"]
    np.testing.assert_allclose(np.stack([row.chosen for row in rows]), chosen)
    assert result.kl is None and sum(result.datasets.values()) == 5


def test_modules_that_change_nothing_are_said_in_words(wmoe: Detector, toy) -> None:
    with torch.no_grad():
        wmoe.method.enrich.pool.second.zero_()
    found = findings(measure_liveness(wmoe, [toy.images], images=5, batch_size=5))
    assert "WCMA of wmoeclip changes nothing: without it (T' = T)" in found["WCMA: off"]
    assert "SA-MoE of wmoeclip changes nothing" in found["SA-MoE: off"]
    assert "cosine is 1.0000000" in found["CTDS: text"]
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        wmoe.method.enrich.pool.second.normal_(std=5.0, generator=generator)
        wmoe.method.vae.decode_out.weight.normal_(std=3.0, generator=generator)
    found = findings(measure_liveness(wmoe, [toy.images], images=5, batch_size=5))
    assert "changes nothing:" in found["WCMA: off"]
    assert "changes nothing:" not in found.get("SA-MoE: off", "") + found.get("CTDS: off", "")


def test_parameters_are_compared_with_the_start_of_their_seed(router: Detector, toy) -> None:
    method = build("promptmoe", router.card.config, load_backbone(toy.backbone))
    method.reset_parameters(start_generator(7, torch.device("cpu")))
    trained = router.card.model_copy(update={"training": Training(seed=7)})
    detector = Detector.from_method(method, trained)
    moved = {line.name: line.moved for line in measure_liveness(detector, [toy.images]).modules}
    assert moved["router"] == moved["context"] == 0.0 and moved["prompts per layer"] is None
    with torch.no_grad():
        method.context.mul_(1.25)
    result = measure_liveness(detector, [toy.images])
    moved = {line.name: line.moved for line in result.modules}
    assert moved["context"] == pytest.approx(0.2, rel=1e-5) and moved["router"] == 0.0
    assert "router: moved" in findings(result) and "context: moved" not in findings(result)


def test_the_command_writes_and_tells_by_its_exit_code(toy, tmp_path: Path, capsys) -> None:
    words = ["explain", str(toy.model), "--data", str(toy.images), "--alive", "--out", str(tmp_path / "out")]
    code = main([*words, "--device", "cpu", "--images", "4"])
    printed = capsys.readouterr().out
    document = json.loads((tmp_path / "out" / "modules.json").read_text())
    assert code == (4 if document["findings"] else 0)
    assert {line["name"] for line in document["modules"]} >= {"router", "normal pool", "prompts per layer"}
    assert all(sentence in printed for sentence in document["findings"].values())
    assert "abnormal pool" in printed and "wrote modules.json" in printed
    assert main([*words, "--images", "1"]) == 2 and "expected 2 or more" in capsys.readouterr().err
    clip = ["explain", "clip", "--backbone", str(toy.backbone), *words[2:]]
    assert main(clip) == 2 and "names no modules" in capsys.readouterr().err


def test_unusable_images_are_named_and_one_alone_is_too_few(
    router: Detector, make_images, tmp_path: Path
) -> None:
    folder = make_images(tmp_path / "set", 3)
    paths = sorted(folder.iterdir())
    paths[0].write_bytes(b"")
    said = []
    result = measure_liveness(router, [folder], on_error=lambda sample, _: said.append(sample.image))
    assert said == [paths[0]] and sum(result.datasets.values()) == 2 and len(result.skipped) == 1
    paths[1].write_bytes(b"")
    with pytest.raises(DataError, match="1 of 3 images"):
        measure_liveness(router, [folder])
    with pytest.raises(ConfigError, match="batch_size 1"):
        measure_liveness(router, [folder], batch_size=1)
