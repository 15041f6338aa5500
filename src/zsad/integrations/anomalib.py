"""An anomalib model (2.x) of any method, for its engine, data modules, metrics and visualiser.

    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from zsad.integrations.anomalib import ZeroShot

    Engine().test(ZeroShot("promptmoe-tiny"), datamodule=MVTecAD(category="bottle"))

anomalib resizes tensors, zsad resizes images, so scores differ in the third decimal from `zsad predict`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zsad.errors import ConfigError
from zsad.nn.filters import render_map

try:
    from anomalib import LearningType
    from anomalib.data import Batch, InferenceBatch
    from anomalib.models.components import AnomalibModule
    from anomalib.post_processing import PostProcessor
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, InterpolationMode, Normalize, Resize
except ImportError as error:
    raise ConfigError(
        f"this needs anomalib 2 or newer ({error}), get it with: pip install anomalib"
    ) from error

if TYPE_CHECKING:
    from zsad.methods.base import Method


class ZeroShotModel(nn.Module):
    """A method with the interface of an anomalib model: preprocessed images in, scores and maps out.

    Args:
        method: built, with its weights.
        object_name: what the images show, for methods whose prompts name it.
    """

    def __init__(self, method: Method, *, object_name: str | None = None) -> None:
        super().__init__()
        self.method = method.eval()
        self.object_name = object_name
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Compute scores (B,) and maps (B, H, W), both in [0, 1], of images (B, 3, H, W)."""
        object_names = None if self.object_name is None else (self.object_name,) * len(images)
        output = self.method.predict(replace(self.method.encode_image(images), object_names=object_names))
        spec = self.method.map_spec.model_copy(update={"size": tuple(images.shape[-2:])})
        return InferenceBatch(pred_score=output.score, anomaly_map=render_map(output.logits, spec))


class ZeroShot(AnomalibModule):  # type: ignore[misc]  # anomalib has no types
    """An anomalib model of any method. It is not trained: use `Engine.test`, `validate` or `predict`.

    Args:
        model: as in `zsad.load`: a bundled model, a run folder, a checkpoint, a method without training.
        backbone: as in `zsad.load`.
        weights: as in `zsad.load`.
        object_name: what the images show; None takes the data module's category, if it has one.
        pre_processor: as in anomalib; True uses the model's size and normalisation.
        post_processor: as in anomalib; True computes thresholds and ranges from labelled validation images. For
            thresholds from normal images alone, use False and a calibration.
        evaluator: as in anomalib.
        visualizer: as in anomalib.

    Raises:
        ConfigError: the model is an exported graph.
        ZsadError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path = "promptmoe-tiny",
        *,
        backbone: str | Path | None = None,
        weights: str | Path | None = None,
        object_name: str | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Any = True,
        visualizer: Any = True,
    ) -> None:
        from zsad.loading import load

        detector = load(model, backbone=backbone, weights=weights, device="cpu", calibration=None)
        self._preprocess = detector.model.preprocess  # read by the base class's constructor
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = ZeroShotModel(detector.method, object_name=object_name or detector.object_name)

    @property
    def name(self) -> str:
        """Name of the folder of the results."""
        return f"zsad-{self.model.method.name}"

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot: nothing is learnt from the tested data set."""
        return LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Arguments of the trainer: none."""
        return {}

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """Return the model's resizing and normalisation; ConfigError for another size than the model's."""
        preprocess = self._preprocess
        if image_size not in (None, preprocess.image_size):
            raise ConfigError(
                f"image_size is {image_size}, the model takes {preprocess.image_size}; leave it out"
            )
        mode = InterpolationMode(preprocess.interpolation)
        resize = Resize(preprocess.image_size, interpolation=mode, antialias=True)
        return PreProcessor(
            Compose([resize, Normalize(mean=list(preprocess.mean), std=list(preprocess.std))])
        )

    def configure_post_processor(self) -> PostProcessor:
        """Return anomalib's post-processor."""
        return PostProcessor()

    def configure_optimizers(self) -> None:
        """Do nothing, since the model is not trained."""
        return

    def setup(self, stage: str) -> None:
        """Use the data module's category as the object name, unless one was given."""
        data = getattr(getattr(self, "_trainer", None), "datamodule", None)
        category = getattr(data, "category", None)
        if self.model.object_name is None and isinstance(category, str):
            self.model.object_name = category.replace("_", " ")

    def validation_step(self, batch: Batch, *arguments: Any, **options: Any) -> Any:
        """Return the batch with scores and maps, from which anomalib computes its thresholds."""
        return batch.update(**self.model(batch.image)._asdict())
