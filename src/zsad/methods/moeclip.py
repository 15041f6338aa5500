"""MoECLIP (Park et al., CVPR 2026, arXiv 2603.03101): low-rank experts for every token inside the image tower.

Behind every tapped block l of a frozen CLIP a router sends each token x, the class token too, to k of E experts, and
the blocks that follow see the result:

    w = topk(softmax(W_g x)) / sum,   y = sum_n w_n (alpha / R) B_n A_n x
    x <- lambda y ||x|| / ||y|| + (1 - lambda) x

A_n is frozen and orthonormal on the n-th part of the features alone (FOFS). Patches of each tapped layer are read at
three scales, as means over r x r neighbours (patch average aggregation), and meet the text of the image's class:

    v = P_l ln_post(mean_r(x)),   p = softmax_{n,a}(100 cos(v, t))       12 maps: 4 layers, r = 1, 3, 5
    f = mean over patches of v / ||v||, v = head(ln_post(x)) of the last layer, r = 1
    t = normalised mean over sentences of normalised LeakyReLU(W e), e the sentence before CLIP's own projection
    loss = CE(f^T t, y) + sum over maps [Focal + Dice_n + Dice_a] + 0.01 balance + 0.01 ETF
    map = sum over maps of cos(v, t_a) - cos(v, t_n), smoothed on the grid, enlarged
    s = (max map + (f^T t_a + 1) / 2) / 2;   medical images: max map

ETF: a token's E outputs should form a simplex equiangular tight frame. Balance: (std / mean)^2 of experts' shares.

Deviations. The paper's map is a sum without a softmax, its values brought to [0, 1] class by class over the whole
test set, which one image does not have: here the map is the sigmoid of the mean difference over `map_temperature`,
which ranks pixels alike; `zsad.metrics.transductive` gives the paper's scores. Masks are resized as for every method,
not to the nearest pixel. The training's `augment` = "moeclip" is the released code's;
off by default, as it excludes kept features. In the released code routers start at 0, and 1e-6 is added to ||y||: two
experts get all tokens first and a gradient that Adam remembers for long. By default routers start at random, 0.1 is
added, and the Gaussian reaches 4 sigma, not 3, and repeats the border's sample. What else differs is in `recipe`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.config import PRESETS, Preset
from zsad.clip.vision import Pixels
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import COMMON_TRAINING, ImageFeatures, Internals, Method, Output, PaperModule
from zsad.methods.sentences import SentenceBank
from zsad.methods.settings import (
    Activation,
    AlignCorners,
    ClassNames,
    Order,
    Positions,
    RoutedConfig,
    Smooth,
    ValueValue,
)
from zsad.methods.similarity import (
    distinct_names,
    full_precision,
    join_scores,
    layer_maps,
    of_images,
    patch_logits,
    segmentation_losses,
    weighted_terms,
)
from zsad.nn.filters import render_map
from zsad.nn.heads import TokenHead
from zsad.nn.lora import LoRAMixture, Routed, etf_loss, imbalance_loss
from zsad.nn.losses import score_loss
from zsad.nn.pooling import average_pool
from zsad.nn.windows import check_window
from zsad.prompts import published_prompts
from zsad.types import Domain

if TYPE_CHECKING:
    from typing_extensions import Self

TRAIN_TEMPERATURE = 0.01
GLOBAL_TEMPERATURE = 0.07
"""Temperature of the image feature where a score takes its probability (inferred)."""
SLOPE = 0.01
RELEASED: Mapping[str, Any] = {
    **dict.fromkeys(("etf_weight", "balance_weight", "dropout"), 0.0),
    "gate_init": "zero",
    "norm_floor": 1e-6,
    "smooth": "grid_reflect",
}
DOMAINS: Mapping[str, Mapping[str, Any]] = {
    "industrial": {"sigma": 1.0, "score": "map_and_cosine"},
    "medical": {"sigma": 1.5, "score": "map"},
}


class MoECLIPConfig(RoutedConfig):
    """Settings of MoECLIP; the defaults are the paper's."""

    retired: ClassVar[Mapping[str, Any]] = {"projectors": "shared", "relu": False, "global_temperature": 0.07}
    groups: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "recipe": {"released": RELEASED},
        "domain": DOMAINS,
    }

    value_value: ValueValue = False
    activation: Activation = "gelu"
    positions: Positions = "bicubic_antialiased"
    map_order: Order = "mean_logits"
    align_corners: AlignCorners = True
    sigma: float = Field(default=1.0, ge=0, description="Gaussian of maps in inference, in patches.")
    smooth: Smooth = "grid"
    recipe: Literal["paper", "released"] = Field(
        default="paper",
        description="As the paper trains, or as the released code: no auxiliary losses, no dropout, a tenth of the "
        "training's learning_rate. Sets etf_weight, balance_weight, dropout, gate_init, norm_floor, smooth.",
    )
    domain: Domain = Field(
        default="industrial",
        description="What images are of. Sets sigma and score where they are not given. Measured on a data set of the "
        "catalogue, a model takes that set's.",
    )
    rank: int = Field(default=8, ge=1, description="Rank R of an expert.")
    alpha: float = Field(default=16.0, gt=0, description="Experts are scaled by alpha / rank.")
    dropout: float = Field(default=0.05, ge=0, lt=1, description="Share of features hidden in training.")
    blend: float = Field(default=0.1, ge=0, le=1, description="Share lambda of the experts in a token.")
    norm_floor: float = Field(
        default=0.1,
        gt=0,
        description="Added to the norm that experts' outputs are divided by (inferred; released code: 1e-6).",
    )
    fofs: bool = Field(
        default=True,
        description="Experts read frozen orthonormal projections of their own features, not trained ones of all.",
    )
    gate_init: Literal["zero", "random"] = Field(
        default="random", description="Start of the routers: deviation 0.02 (inferred), or 0 (released code)."
    )
    etf_weight: float = Field(default=0.01, ge=0, description="Weight of the loss that keeps experts apart.")
    balance_weight: float = Field(default=0.01, ge=0, description="Weight of the experts' balance loss.")
    windows: tuple[int, ...] = Field(
        default=(1, 3, 5),
        min_length=1,
        description="Sides of the neighbourhoods that patches are averaged over.",
    )
    start: Literal["random", "clip"] = Field(
        default="random",
        description="Start of projectors and text adapter: Xavier's, or CLIP's own (inferred).",
    )
    head: Literal["depthwise", "linear"] = Field(
        default="depthwise",
        description="The image feature's head: a depth-wise convolution along the patches, or a projection alone.",
    )
    names: ClassNames = "data"
    map_temperature: float = Field(
        default=0.25,
        gt=0,
        description="Temperature of the maps' cosines in inference (inferred); it changes no ranking of pixels.",
    )
    score: Literal["map_and_cosine", "map_and_global", "global", "map"] = Field(
        default="map_and_cosine",
        description="Mean of the map's maximum and of (cos_a + 1) / 2 (published for industrial images) or of the "
        "global probability (inferred); or one of these; map is published for medical images.",
    )

    @model_validator(mode="after")
    def _possible(self) -> MoECLIPConfig:
        if self.experts == 1 and self.etf_weight:
            raise ConfigError(
                "etf_weight keeps experts apart, but experts = 1; set it to 0 or use more experts"
            )
        if self.value_value:
            raise ConfigError(
                "value_value = true is not for MoECLIP, which adapts the ordinary path; drop it"
            )
        if list(self.windows) != sorted(set(self.windows)) or any(r < 1 or r % 2 == 0 for r in self.windows):
            raise ConfigError(f"windows = {self.windows} must rise and be odd, such as (1, 3, 5)")
        return self

    @classmethod
    def _defaults_on(cls, preset: Preset) -> dict[str, Any]:
        """Return those of every method, and plain GELU for OpenAI's weights alone."""
        activation = "gelu" if preset.name in PRESETS else "as_trained"
        return {**super()._defaults_on(preset), "activation": activation}


@dataclass(slots=True)
class _Comparison:
    """Results of one pass: differences of cosines (B, L', h, w), cosines of the image feature (B, 2), routing."""

    difference: Tensor
    cosines: Tensor
    routed: list[Routed]


class MoECLIP(Method):
    """MoECLIP on a backbone: see the module's text for the equations."""

    name = "moeclip"
    config_class = MoECLIPConfig
    feature_kind = "stream"
    feature_fields = ("layers", "image_size", "activation", "positions")
    training_defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON_TRAINING,
        "epochs": 20,
        "batch_size": 2,
        "learning_rate": 5e-4,
        "milestones": (16_000, 32_000),
        "decay": 0.5,
    }
    term_weights: ClassVar[Mapping[str, str]] = {"etf": "etf_weight", "balance": "balance_weight"}
    config: MoECLIPConfig

    def __init__(self, config: MoECLIPConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        clip = self.clip.config
        width, embed_dim, layers = clip.vision.width, clip.embed_dim, len(config.layers)
        check_window(self.grid, config.windows[-1])
        self.experts = nn.ModuleList(self._mixture(width) for _ in range(layers))
        self.projectors = nn.Parameter(torch.empty(layers, 1, embed_dim, width))
        self.head = TokenHead(width, embed_dim, depthwise=config.head == "depthwise")
        self.text_adapter = nn.Parameter(torch.empty(embed_dim, clip.text.width))
        self._bank = SentenceBank(backbone)
        self.reset_parameters()

    def _mixture(self, width: int) -> LoRAMixture:
        config = self.config
        shared = ("experts", "top_k", "rank", "alpha", "dropout", "blend", "norm_floor")
        return LoRAMixture(
            width,
            **{name: getattr(config, name) for name in shared},
            orthogonal=config.fofs,
            router_std=0.02 if config.gate_init == "random" else 0.0,
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew: experts that give 0, projectors Xavier-uniform or CLIP's own (`start`)."""
        for mixture in self._mixtures:
            mixture.reset_parameters(generator)
        for matrix in (*self.projectors.flatten(0, 1), self.text_adapter):
            nn.init.xavier_uniform_(matrix, generator=generator)
        self.head.reset_parameters(generator)
        if self.config.start == "clip":
            with torch.no_grad():
                self.projectors.copy_(self.clip.visual.proj.T.expand_as(self.projectors))
                self.text_adapter.copy_(self.clip.text.proj.T)

    @property
    def _mixtures(self) -> list[LoRAMixture]:
        return [mixture for mixture in self.experts if isinstance(mixture, LoRAMixture)]

    def for_domain(self, domain: Domain) -> Self:
        """Return the method with the sigma and score of a domain, where its own are those of the other one."""
        config, own = self.config, DOMAINS[self.config.domain]
        changes = {
            name: value for name, value in DOMAINS[domain].items() if getattr(config, name) == own[name]
        }
        method = copy.copy(self)
        method.config = config.model_copy(update={"domain": domain, **changes})
        return method

    def rate_of(self, parameter: str) -> float:
        """Factor on the rate: the released code trains at 5e-5, the paper at 5e-4."""
        return 0.1 if self.config.recipe == "released" else 1.0

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Stream (B, 1, 1 + N, D_x) behind the first tapped block, which nothing trained has touched yet."""
        stream, grid = self.clip.visual.stream(pixels, after=self.config.layers[0], **self.position_mode())
        return ImageFeatures(stream.unsqueeze(1), stream[:, 0], grid)

    def _adapt(self, features: ImageFeatures) -> tuple[list[Tensor], list[Routed]]:
        """Adapted streams (B, 1 + N, D_x) of the tapped layers, and what the experts did in each."""
        visual, routed = self.clip.visual, list[Routed]()

        def adapt(index: int, stream: Tensor) -> Tensor:
            routed.append(self._mixtures[index](stream))
            return routed[-1].tokens

        first, *later = self.config.layers
        start = adapt(0, features.patches[:, 0].to(visual.proj.dtype))
        hooks = {
            layer: (lambda stream, index=index: adapt(index, stream)) for index, layer in enumerate(later, 1)
        }
        if not later:
            return [start], routed
        read = visual.resume(start, grid=features.grid, after=first, taps=later, hooks=hooks)
        return [start, *read.taps], routed

    def _patch_weights(self, routed: Routed, features: ImageFeatures) -> Tensor:
        return routed.weights.detach().view(features.cls.shape[0], -1, self.config.experts)[:, 1:]

    def token_routing(self, features: ImageFeatures) -> dict[str, Tensor]:
        """Weights (B, L, N, E) of the experts for every patch."""
        routed = self._adapt(features)[1]
        return {"experts": torch.stack([self._patch_weights(one, features) for one in routed], dim=1)}

    def paper_modules(self) -> dict[str, PaperModule]:
        """Experts, their own features (FOFS), router, scales (PAA), projectors, text adapter, image head."""
        even = {"experts.*.router": 0.0, "experts.*.top_k": self.config.experts}
        swapped = {f"experts.{i}.down": layer.down.roll(1, 0) for i, layer in enumerate(self._mixtures)}
        visual, text = {"projectors": self.clip.visual.proj.T}, {"text_adapter": self.clip.text.proj.T}
        one = {"config.windows": (1,) * len(self.config.windows)}
        return {
            "experts": PaperModule("y = 0", {"experts.*.up": 0.0}, ("experts.*.up",)),
            "FOFS": PaperModule("each expert reads its neighbour's features", swapped),
            "router": PaperModule("w_n = 1 / E", even, ("experts.*.router",)),
            "PAA": PaperModule("r = 1 alone", one),
            "projectors": PaperModule("P_l = CLIP's projection", visual, ("projectors",)),
            "text adapter": PaperModule("W = CLIP's projection", text, ("text_adapter",), text=True),
            "image head": PaperModule("its projection is 0", {"head.project": 0.0}, ("head.*",)),
        }

    def internals(self, features: ImageFeatures) -> Internals:
        """Text, and the inner products of the experts' outputs of every token and layer."""
        gram = torch.stack([routed.gram for routed in self._adapt(features)[1]])
        text = self.encode(features.object_names, batch=features.cls.shape[0])
        return Internals(text, {"experts": gram})

    def expert_embeddings(self) -> dict[str, Tensor]:
        """Columns of each B_n behind one another, (L, E, R D_x): what an expert can put into a token."""
        return {"experts": torch.stack([mixture.up.detach().flatten(1) for mixture in self._mixtures])}

    def _differences(self, tap: Tensor, index: int, grid: tuple[int, int], text: Tensor) -> Tensor:
        """`cos(v, t_a) - cos(v, t_n)` (B, W, h, w) of one layer's stream at every window."""
        ln_post, rows = self.clip.visual.ln_post, []
        # One window at a time: in inference no two of these large tensors are there at once.
        for window in self.config.windows:
            pooled = average_pool(tap[:, 1:], grid, size=window, zero_padded=True)
            tokens = F.linear(ln_post(pooled), self.projectors[index, 0])
            with full_precision(text.device):
                tokens = tokens.to(text.dtype).unsqueeze(1)
                rows.append(patch_logits(tokens, text.unsqueeze(1), temperature=1.0))
        return torch.unflatten(torch.cat(rows, dim=1), -1, grid)

    def encode(self, object_names: Sequence[str] | None, *, batch: int) -> Tensor:
        """Text (B, 2, D) of length one, normal first, of the classes of B images.

        Raises:
            ConfigError: a class name too long for the text tower.
        """
        distinct, index = distinct_names(object_names if self.config.names == "data" else None)
        sentences = [published_prompts("moeclip", name) for name in distinct]
        flat = [text for states in sentences for state in states for text in state]
        raw = self._bank.embed(flat, projected=False).to(self.text_adapter.dtype)
        with full_precision(raw.device):
            text = F.normalize(F.leaky_relu(F.linear(raw, self.text_adapter), SLOPE), dim=-1)
            each = text.view(len(distinct), -1, text.shape[-1])
            normal = len(sentences[0][0])
            means = torch.stack([each[:, :normal].mean(dim=1), each[:, normal:].mean(dim=1)], dim=1)
            return of_images(F.normalize(means, dim=-1), index, batch=batch)

    def _compare(self, features: ImageFeatures) -> _Comparison:
        """Comparison of the whole image side behind the cached stream with the text of the images' classes."""
        layers, routed = self._adapt(features)
        text = self.encode(features.object_names, batch=features.cls.shape[0])
        rows = [self._differences(tap, index, features.grid, text) for index, tap in enumerate(layers)]
        image = self.head(self.clip.visual.ln_post(layers[-1][:, 1:]))
        with full_precision(text.device):
            cosines = (image.to(text.dtype).unsqueeze(1) * text).sum(dim=-1)
        return _Comparison(torch.cat(rows, dim=1), cosines, routed)

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of the loss, with their weights."""
        config, compared = self.config, self._compare(features)
        size = (masks.shape[-2], masks.shape[-1])
        with full_precision(masks.device):
            maps = layer_maps(compared.difference / TRAIN_TEMPERATURE, self.map_spec, size=size)
            terms = segmentation_losses(maps, masks)
            terms["classify"] = self._classify(compared, labels, size=size)
            etf = torch.stack([etf_loss(routed.gram) for routed in compared.routed]).sum()
            balance = torch.stack([imbalance_loss(routed.logits) for routed in compared.routed]).sum()
            terms |= weighted_terms(etf=(config.etf_weight, etf), balance=(config.balance_weight, balance))
        return terms

    def _classify(self, compared: _Comparison, labels: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Cross-entropy of the cosines, without temperature; of the score where it is none of the paper's."""
        if self.config.score in ("map_and_cosine", "map"):
            return F.cross_entropy(compared.cosines, labels.long())
        maps = render_map(compared.difference / self.config.map_temperature, self.map_spec, size=size)
        return score_loss(self._score(maps.amax(dim=(-2, -1)), compared.cosines), labels)

    def _score(self, highest: Tensor, cosines: Tensor) -> Tensor:
        """Scores (B,) of the maps' maxima (B,) and the image feature's cosines (B, 2)."""
        if self.config.score == "map_and_cosine":
            return (highest + (cosines[:, 1] + 1) / 2) / 2
        probability = ((cosines[:, 1] - cosines[:, 0]) / GLOBAL_TEMPERATURE).sigmoid()
        return join_scores(highest, probability, kind=self.config.score)

    def forward(self, features: ImageFeatures) -> Output:
        """Grids of all layers and windows, layer by layer, scores with their parts, and the experts' weights."""
        compared = self._compare(features)
        logits = compared.difference / self.config.map_temperature
        maps = render_map(logits, self.spec_of(features.grid))
        highest, cosine = maps.amax(dim=(-2, -1)), (compared.cosines[:, 1] + 1) / 2
        terms = {"map": highest, "global": cosine, "map_low": maps.amin(dim=(-2, -1))}
        weights = torch.stack([self._patch_weights(routed, features) for routed in compared.routed], dim=1)
        return Output(logits, self._score(highest, compared.cosines), {"experts": weights.mean(dim=2)}, terms)
