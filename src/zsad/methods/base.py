"""Base class of the methods: image features from a frozen CLIP, text that meets them, a map, a score, losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from zsad.errors import CheckpointError, ConfigError
from zsad.methods.fusion import OddnessFusion
from zsad.methods.settings import MethodConfig
from zsad.nn.maps import MapSpec
from zsad.nn.oddness import oddness

if TYPE_CHECKING:
    from typing_extensions import Self

    from zsad.clip.vision import PatchTokens, Pixels
    from zsad.clip.weights import Backbone
    from zsad.types import Domain

__all__ = [
    "COMMON_TRAINING",
    "ImageFeatures",
    "Internals",
    "MapSpec",
    "Method",
    "MethodConfig",
    "Output",
    "PaperModule",
    "Stage",
]

COMMON_TRAINING: Mapping[str, Any] = {
    "epochs": 15,
    "batch_size": 8,
    "learning_rate": 1e-3,
    "betas": (0.5, 0.999),
    "warmup_epochs": 0.0,
}
"""Fields of `TrainConfig` as APRIL-GAN's and AnomalyCLIP's code has them, and most that came later took over."""


@dataclass(slots=True)
class ImageFeatures:
    """Output of the frozen image tower for a batch: all that a method may cache.

    Attributes:
        patches: (B, L, N, D) patch tokens of the tapped layers, not normalised. A method that goes on through
            the tower keeps the class token in front: N is then 1 + h * w.
        cls: (B, D) the global feature.
        grid: rows and columns (h, w) of the patches, N = h * w.
        object_names: the images' object classes, for methods whose text names them; None: all "object".
        cues: (B, J, h * w) how odd each patch is within its own picture; None where the method does not ask.
    """

    patches: Tensor
    cls: Tensor
    grid: tuple[int, int]
    object_names: tuple[str, ...] | None = None
    cues: Tensor | None = None


@dataclass(slots=True)
class Output:
    """Output of a method for a batch.

    Attributes:
        logits: (B, L, h, w) how much more abnormal than normal a patch looks, over the temperature: its
            sigmoid is the probability of abnormal. One grid a layer, or one where a method fuses them itself.
        score: (B,) image scores, higher is more anomalous, in [0, 1].
        routing: for each pool the weights (B, L, E) of its experts, exactly k of them not zero; None without
            experts. Where patches are routed, the mean of their weights.
        terms: the parts (B,) that a score is made of, by name, where a method has them apart.
    """

    logits: Tensor
    score: Tensor
    routing: dict[str, Tensor] | None = None
    terms: dict[str, Tensor] | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """Part of a training.

    Attributes:
        name: passed to `Method.begin_stage`.
        share: of the epochs.
        learning_rate: factor on the rate.
    """

    name: str
    share: float = 1.0
    learning_rate: float = 1.0


@dataclass(frozen=True, slots=True)
class PaperModule:
    """Named module of a method.

    Attributes:
        means: what the method does while it is switched off, in a few words or as an equation.
        off: what stands elsewhere then; see `zsad.methods.modules`.
        parameters: names of its parameters; `*` stands for any letters.
        by_image: submodules whose output (B, ...) follows the image: they may be given that of another image.
        text: it acts on text; with `by_image`, it makes text follow the image.
    """

    means: str
    off: Mapping[str, Any]
    parameters: tuple[str, ...] = ()
    by_image: tuple[str, ...] = ()
    text: bool = False


@dataclass(slots=True)
class Internals:
    """Values inside a method for a batch, beside its output.

    Attributes:
        text: (B, ..., D) embeddings of length one that images meet; (1, ..., D) where no image changes them; None
            without text.
        outputs: for each pool the inner products (L, ..., E, E) of its experts' outputs, whether chosen or not.
        kl: divergence of a posterior from its prior, in nats, mean over images; None without one.
    """

    text: Tensor | None = None
    outputs: dict[str, Tensor] = field(default_factory=dict)
    kl: Tensor | None = None


class Method(nn.Module, ABC):
    """Zero-shot anomaly detector on a frozen backbone.

    The backbone is a submodule named `clip`, without gradients; everything else is the adapter, which is all
    that a checkpoint holds.

    Args:
        config: of the method.
        backbone: its towers are frozen.

    Raises:
        ConfigError: the configuration taps blocks that the backbone lacks, or its images have no patch.
    """

    name: ClassVar[str]
    config_class: ClassVar[type[MethodConfig]]
    feature_kind: ClassVar[str] = "projected"
    """What `features` gives. Methods of one kind and equal `feature_fields` share a cache."""
    feature_fields: ClassVar[tuple[str, ...]] = (
        "layers",
        "image_size",
        "value_value",
        "value_value_from",
        "cls_norm",
        "activation",
        "positions",
    )
    """Settings on which `features` depends: what a cache of features is keyed by."""
    stages: tuple[Stage, ...] = (Stage("adapter"),)
    """The parts of a training, in order; a method may set its own by its configuration."""
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    """Fields of `TrainConfig` in which the paper's training differs from its defaults."""
    term_weights: ClassVar[Mapping[str, str]] = {}
    """For loss terms that a setting weighs the name of that setting: curves show them without it."""
    config: MethodConfig

    def __init__(self, config: MethodConfig, backbone: Backbone) -> None:
        super().__init__()
        depth = len(backbone.clip.visual.blocks)
        if config.layers[-1] > depth or config.layers[0] < 1:
            raise ConfigError(
                f"layers = {config.layers} do not all exist: the image tower of {backbone.name} has blocks "
                f"1 to {depth}; its default is {backbone.preset.taps}"
            )
        patch = backbone.clip.config.vision.patch_size
        if config.image_size < patch:
            raise ConfigError(
                f"image_size = {config.image_size} is smaller than one {patch}-pixel patch of {backbone.name}; its "
                f"default is {backbone.preset.detection_size}"
            )
        self.config = config
        self.clip = backbone.clip.freeze()
        self.map_scale = (0.0, 1.0)
        self.fusion: OddnessFusion | None = None
        if config.oddness == "fused":
            self.fusion = OddnessFusion(
                map_weights=config.oddness_in_map, score_weights=config.oddness_in_score
            )

    @property
    def map_spec(self) -> MapSpec:
        """Specification of how this method's grids become maps."""
        config = self.config
        return MapSpec(
            size=(config.image_size, config.image_size),
            order=config.map_order,
            sigma=config.sigma,
            smooth=config.smooth,
            align_corners=config.align_corners,
            scale=self.map_scale,
        )

    def spec_of(self, grid: tuple[int, int]) -> MapSpec:
        """Specification for grids of (h, w) patches: `map_spec`, but for images of other proportions in the size."""
        spec, patch = self.map_spec, self.clip.config.vision.patch_size
        if grid == self.grid:
            return spec
        return spec.model_copy(update={"size": (grid[0] * patch, grid[1] * patch)})

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns (h, w) of the patches of an image of `image_size`."""
        side = self.config.image_size // self.clip.config.vision.patch_size
        return side, side

    @property
    def train_map_size(self) -> tuple[int, int]:
        """Rows and columns (H, W) of the masks in training."""
        side = self.config.train_map_size or self.config.image_size
        return side, side

    @torch.no_grad()
    def encode_image(self, pixels: Pixels) -> ImageFeatures:
        """Features of pixels (B, 3, H, W), without gradients, with the cues where they are fused in."""
        if self.fusion is None:
            return self.features(pixels)
        patches = self.clip.visual.patch_tokens(pixels) if isinstance(pixels, Tensor) else pixels
        return self.with_cues(self.features(patches), patches)

    @torch.no_grad()
    def with_cues(self, features: ImageFeatures, patches: PatchTokens) -> ImageFeatures:
        """Features with the cues of the image they are of: of its stem's texture, or of the first tapped layer."""
        texture = patches.texture
        if texture is None:
            texture = features.patches[:, 0, -patches.grid[0] * patches.grid[1] :]
        return replace(features, cues=oddness(texture, patches.grid))

    def predict(self, features: ImageFeatures) -> Output:
        """Output of `forward`, with the cues fused in where the configuration asks for them."""
        return self.fuse(self(features), features)

    def fuse(self, output: Output, features: ImageFeatures) -> Output:
        """Output with the features' cues fused in, its own score among the terms; without cues as it is."""
        if self.fusion is None or features.cues is None:
            return output
        logits, score = self.fusion(output.logits, features.cues)
        terms = {**(output.terms or {}), "method": output.score}
        return replace(output, logits=logits, score=score.to(output.score.dtype), terms=terms)

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Frozen side of the method for pixels (B, 3, H, W): projected patch tokens of the taps."""
        patches, cls, grid = self._read_tower(pixels)
        return ImageFeatures(self.clip.visual.project(patches), self.project_cls(cls), grid)

    @torch.no_grad()
    def normed_features(self, pixels: Pixels) -> ImageFeatures:
        """Features of the kind "normed": taps behind `ln_post`, and the class token as the stream has it.

        Both are D_x wide; `project_cls` and the tower's projection bring them to the joint space.
        """
        patches, cls, grid = self._read_tower(pixels)
        return ImageFeatures(self.clip.visual.ln_post(patches), cls, grid)

    def project_cls(self, cls: Tensor) -> Tensor:
        """Global feature (B, D) of class tokens (B, D_x), through the final norm if `cls_norm` says so."""
        norm = not self.config.value_value if self.config.cls_norm is None else self.config.cls_norm
        return self.clip.visual.project(cls, norm=norm)

    def position_mode(self) -> dict[str, Any]:
        """Arguments of `VisionTower.stream` by which it resizes its position embeddings."""
        name = self.config.positions
        return {"interpolation": name.split("_")[0], "antialias": name == "bicubic_antialiased"}

    def _read_tower(self, pixels: Pixels) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """Tapped patch tokens (B, L, N, D_x), class token (B, D_x) and grid, before projection."""
        config = self.config
        read = self.clip.visual(
            pixels,
            taps=config.layers,
            value_value_from=config.value_value_from if config.value_value else None,
            **self.position_mode(),
        )
        return torch.stack([tap[:, 1:] for tap in read.taps], dim=1), read.cls, read.grid

    @abstractmethod
    def forward(self, features: ImageFeatures) -> Output:
        """Grids, scores and routing of cached or fresh features."""

    @abstractmethod
    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Weighted loss terms; their sum is what training descends.

        A term "raw_..." is only logged: what a term of weight 0 would have been, without its weight.

        Args:
            features: of the batch.
            masks: (B, H, W) in {0, 1}, of `train_map_size`.
            labels: (B,) in {0, 1}.
        """

    def begin_stage(self, name: str) -> None:
        """Set what requires gradients, before the first step of a stage and when a run goes on in it.

        What is frozen from then on may be computed once. By default all parameters learn.
        """

    def for_domain(self, domain: Domain) -> Self:
        """Return the method for industrial or medical images: itself, unless its paper scores the two differently.

        Tensors are shared.
        """
        return self

    def rate_of(self, parameter: str) -> float:
        """Factor on the learning rate of a parameter, by its name."""
        return 1.0

    def token_routing(self, features: ImageFeatures) -> dict[str, Tensor]:
        """Weights (B, L, N, E) of each pool that routes patches; empty for other methods."""
        return {}

    def expert_labels(self) -> dict[str, tuple[str, ...]]:
        """Names of the E experts of each pool, where they are more than numbers."""
        return {}

    def expert_embeddings(self) -> dict[str, Tensor]:
        """Vectors (L, E, D) of each pool, one an expert, for drawing them; empty without experts."""
        return {}

    def paper_modules(self) -> dict[str, PaperModule]:
        """Modules by the names that the paper gives them; empty where there is nothing to switch off."""
        return {}

    def internals(self, features: ImageFeatures) -> Internals:
        """Text, and inner products of the experts' outputs, as far as a method has them."""
        return Internals()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew; reproducible with a seeded generator. Nothing to do without an adapter."""

    def train(self, mode: bool = True) -> Self:
        """Set the adapter to training mode; the backbone stays in evaluation mode."""
        super().train(mode)
        self.clip.eval()
        return self

    def adapter_state(self) -> dict[str, Tensor]:
        """Tensors of everything but the backbone."""
        return {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("clip.")}

    def load_adapter(self, state: dict[str, Tensor]) -> None:
        """Copy an adapter's tensors into this one.

        Raises:
            CheckpointError: tensors missing, unknown or of another shape.
        """
        adapter = self.adapter_state()
        for name in sorted(adapter.keys() | state.keys()):
            if name not in state:
                raise CheckpointError(
                    f"checkpoint lacks the tensor {name!r} that {self.name} needs; is it of another method?"
                )
            if name not in adapter:
                raise CheckpointError(
                    f"checkpoint holds the tensor {name!r}, unknown to {self.name}; is it of another method?"
                )
            if adapter[name].shape != state[name].shape:
                raise CheckpointError(
                    f"tensor {name!r} has shape {tuple(state[name].shape)} in the checkpoint and "
                    f"{tuple(adapter[name].shape)} in {self.name} on this backbone; use the backbone and the config "
                    f"it was trained with"
                )
        with torch.no_grad():
            for name, tensor in adapter.items():
                tensor.copy_(state[name])
