"""Every method behind anomalib's model interface (2.x), for its engine, data modules, metrics and visualiser.

    from anomalib.data import MVTecAD
    from anomalib.engine import Engine
    from zsad.integrations.anomalib import ZeroShot

    Engine().test(ZeroShot("promptmoe-tiny"), datamodule=MVTecAD(category="bottle"))

anomalib resizes tensors where zsad resizes pictures, so scores differ in the third decimal from `zsad predict`.
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
    """A method as anomalib calls models: preprocessed images in, scores and maps out.

    Args:
        method: built, with its weights.
        shows: what the images show, for methods whose prompts name it.
    """

    def __init__(self, method: Method, *, shows: str | None = None) -> None:
        super().__init__()
        self.method = method.eval()
        self.shows = shows
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, images: Tensor) -> InferenceBatch:
        """Scores (B,) in [0, 1] and maps (B, H, W) in [0, 1] of images (B, 3, H, W)."""
        words = None if self.shows is None else (self.shows,) * len(images)
        output = self.method.predict(replace(self.method.encode_image(images), words=words))
        spec = self.method.map_spec.model_copy(update={"size": tuple(images.shape[-2:])})
        return InferenceBatch(pred_score=output.score, anomaly_map=render_map(output.logits, spec))


class ZeroShot(AnomalibModule):  # type: ignore[misc]  # anomalib has no types
    """Any method of zsad as a model of anomalib. It is never trained: use `Engine.test`, `validate` or `predict`.

    Args:
        model: as in `zsad.load`: a bundled model, a run folder, a checkpoint, a method without training.
        backbone: as in `zsad.load`.
        weights: as in `zsad.load`.
        shows: what the images show; None: the data module's category, if it has one.
        pre_processor: anomalib's; True: the model's own size and normalisation.
        post_processor: anomalib's; True: thresholds and ranges from its validation images, which have labels. For
            zsad's own, from normal images alone, say False and use a calibration.
        evaluator: anomalib's.
        visualizer: anomalib's.

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
        shows: str | None = None,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Any = True,
        visualizer: Any = True,
    ) -> None:
        from zsad.loading import load

        detector = load(model, backbone=backbone, weights=weights, device="cpu", calibration=None)
        self._preprocess = detector.model.preprocess  # asked for while the base class builds its parts
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.model = ZeroShotModel(detector.method, shows=shows or detector.object_name)

    @property
    def name(self) -> str:
        """Of the folders that results are written to."""
        return f"zsad-{self.model.method.name}"

    @property
    def learning_type(self) -> LearningType:
        """Zero-shot: nothing is learnt from the data set that is looked at."""
        return LearningType.ZERO_SHOT

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """None are needed."""
        return {}

    def configure_pre_processor(self, image_size: tuple[int, int] | None = None) -> PreProcessor:
        """The model's own size and normalisation.

        Raises:
            ConfigError: another size, which is set in the method's configuration instead.
        """
        own = self._preprocess
        if image_size not in (None, own.image_size):
            raise ConfigError(f"image_size is {image_size}, the model takes {own.image_size}; leave it out")
        mode = InterpolationMode(own.interpolation)
        resize = Resize(own.image_size, interpolation=mode, antialias=True)
        return PreProcessor(Compose([resize, Normalize(mean=list(own.mean), std=list(own.std))]))

    def configure_post_processor(self) -> PostProcessor:
        """anomalib's own."""
        return PostProcessor()

    def configure_optimizers(self) -> None:
        """There is nothing to optimise."""
        return

    def setup(self, stage: str) -> None:
        """Takes the data module's category as what the images show, where nothing else was said."""
        data = getattr(getattr(self, "_trainer", None), "datamodule", None)
        category = getattr(data, "category", None)
        if self.model.shows is None and isinstance(category, str):
            self.model.shows = category.replace("_", " ")

    def validation_step(self, batch: Batch, *arguments: Any, **options: Any) -> Any:
        """The batch with scores and maps, from which anomalib takes its thresholds."""
        return batch.update(**self.model(batch.image)._asdict())
