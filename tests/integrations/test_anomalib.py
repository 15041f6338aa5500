"""A method as a model of anomalib: through its engine, data modules and metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("anomalib")

from anomalib import LearningType
from anomalib.data import Folder, InferenceBatch
from anomalib.engine import Engine
from anomalib.models.components import AnomalibModule

import zsad
from zsad.errors import ConfigError
from zsad.integrations.anomalib import ZeroShot


@pytest.fixture(scope="module")
def model(toy) -> ZeroShot:
    return ZeroShot(toy.model, visualizer=False)


def test_it_is_a_model_of_anomalib(model) -> None:
    assert isinstance(model, AnomalibModule) and model.learning_type is LearningType.ZERO_SHOT
    assert model.name == "zsad-promptmoe" and model.trainer_arguments == {}
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (
        tuple(model.input_size) == zsad.load(model.hparams["model"], device="cpu").model.preprocess.image_size
    )


def test_scores_and_maps_are_the_detectors(toy, model) -> None:
    detector = zsad.load(toy.model, device="cpu")
    paths = sorted(toy.images.iterdir())
    pixels = torch.from_numpy(
        np.concatenate([detector.model.preprocess(Image.open(path))[None] for path in paths])
    )
    found = model.model(pixels)
    own = [detector.predict(path) for path in paths]
    assert isinstance(found, InferenceBatch)
    np.testing.assert_allclose(found.pred_score, [one.score for one in own], atol=1e-5)
    np.testing.assert_allclose(found.anomaly_map, [one.canonical_map() for one in own], atol=1e-4)
    image = torch.from_numpy(np.asarray(Image.open(paths[1]))).permute(2, 0, 1)[None] / 255
    assert abs(float(model(image).pred_score) - own[1].score) < 0.02, "resized as tensors, not as pictures"


def test_engine_tests_and_predicts(toy, model, drawn, tmp_path: Path) -> None:
    data = next(path for path in sorted((drawn / "one").rglob("test")) if path.is_dir()).parent
    kinds = [path.name for path in sorted((data / "test").iterdir())]
    normal = next(kind for kind in kinds if kind in ("good", "normal"))
    module = Folder(
        name="drawn",
        root=data,
        normal_dir=f"test/{normal}",
        abnormal_dir=[f"test/{kind}" for kind in kinds if kind != normal],
        num_workers=0,
        eval_batch_size=4,
        train_batch_size=4,
    )
    engine = Engine(default_root_dir=tmp_path, accelerator="cpu", logger=False, barebones=False)
    [metrics] = engine.test(model, datamodule=module)
    assert 0 <= metrics["image_AUROC"] <= 1


def test_category_names_the_object_and_sizes_are_the_models(toy, model) -> None:
    class Trainer:
        class datamodule:
            category = "metal_nut"

    model.model.object_name, model._trainer = None, Trainer()
    try:
        model.setup("test")
    finally:
        model._trainer = None
    assert model.model.object_name == "metal nut"
    with pytest.raises(ConfigError, match="leave it out"):
        model.configure_pre_processor((32, 32))
