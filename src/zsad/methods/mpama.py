"""MPA and MPAMA, re-designed from the public description: prompts for several perception levels, then experts.

Of "Learning Multi-granularity Visual-textual Alignment for Zero-shot Anomaly Detection" (OpenReview JwSFgHCXeg,
2025) only the abstract and four reviews are public. They say: a prompt pair for each perception level p, whose
visual side is pooled over a neighbourhood of that size; separate prompts for the global feature, joined to the local
ones by max-pooling fusion; a pool of frozen, learnable and zero experts to which patch tokens are routed; two stages
of training, text first. All else is AnomalyCLIP's, or inferred and a setting. There are no published numbers.

With F the patch tokens in the joint space, f the global feature, t^p and g the embeddings of the prompts:

    (1)  S^p = softmax(<F^p, t^p> / tau),   F^p = average of F over p x p patches, at the border over those there are
    (2)  P = softmax(<f, g~> / tau'),       g~_s = the elementwise maximum of g_s and all t_s^p, of length one
    (3)  loss 1 = CE(P, y) + lambda / |P| sum_p [Focal(Up S^p, m) + Dice(Up S_a^p, m) + Dice(Up S_n^p, 1 - m)]
    (4)  w = softmax(W_r x), its K largest brought to the sum 1,   x = ln_post of a patch token
    (5)  F = sum_e w_e E_e(x) / sum of w_e but the zero experts',
         E = W x (frozen), W x + (alpha / R) B_i A_i x (learnable), 0 (zero)
    (6)  loss 2 = loss 1 with frozen text, without CE where the score has nothing to learn; + mu balance
    (7)  M = mean over p of S_a^p, smoothed;   s = P_a, or its mean with max M

B starts at zero, so that stage 2 starts exactly where stage 1 ended, whatever the routing. Without the division in
Eq. 5 (`token_length` = "weighted") a zero expert shortens its token. Similarities do not see that, but averages of
Eq. 1 do, where the token then counts less among its neighbours, from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from zsad.clip.blocks import Block
from zsad.clip.vision import Pixels
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.anomalyclip import (
    AnomalyCLIP,
    AnomalyCLIPConfig,
    image_logits,
    image_score,
    pair_losses,
)
from zsad.methods.base import ImageFeatures, Method, Output, Stage
from zsad.methods.learned_prompts import PromptLearner
from zsad.methods.similarity import full_precision, patch_logits
from zsad.nn.experts import load_balance_loss
from zsad.nn.pool_experts import ExpertPool
from zsad.nn.pooling import average_pool
from zsad.nn.windows import check_window

POOL = "experts"


class MPAConfig(AnomalyCLIPConfig):
    """All settings of MPA. With levels = (1,) and bridge = "none" it is AnomalyCLIP."""

    levels: tuple[int, ...] = Field(
        default=(1, 3, 5),
        min_length=1,
        description="Perception levels: sides, in patches, of the neighbourhoods that prompts look at (inferred).",
    )
    pooling: Literal["features", "normalised", "similarities", "none"] = Field(
        default="features",
        description="What is averaged over a neighbourhood: tokens as they are (inferred), tokens of length one, "
        "or similarities; none: levels differ in their prompts alone.",
    )
    bridge: Literal["embedding", "two_way", "context", "score", "separate", "none"] = Field(
        default="embedding",
        description="Where local prompts are fused into the global ones, by maximum: in their embeddings "
        "(inferred), there and back, in their contexts, or in the logits; separate: nowhere; none: the global "
        "feature has no prompts of its own and meets those of the first level.",
    )
    deep_sharing: Literal["all", "groups"] = Field(
        default="all",
        description="Deep tokens shared by all prompts (inferred), or by local and global ones.",
    )

    @model_validator(mode="after")
    def _levels_have_centres(self) -> MPAConfig:
        if len(set(self.levels)) < len(self.levels) or any(p < 1 or p % 2 == 0 for p in self.levels):
            raise ConfigError(
                f"levels = {self.levels} must be odd numbers of patches that do not repeat; use such as (1, 3, 5)"
            )
        return self


class MPA(Method):
    """MPA, re-designed from the public description: see the module's text for the equations."""

    name = "mpa"
    config_class = MPAConfig
    training_defaults: ClassVar[Mapping[str, Any]] = AnomalyCLIP.training_defaults
    config: MPAConfig

    def __init__(self, config: MPAConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        check_window(self.grid, max(config.levels))
        word, levels = config.class_word, len(config.levels)
        groups = levels + (config.bridge != "none")
        shape, own = (groups, config.context_tokens), int(config.deep_sharing == "groups")
        self.prompts = PromptLearner(
            backbone,
            [
                template
                for group in range(groups)
                for template in (f"{{normal.{group}}} {word}.", f"{{abnormal.{group}}} damaged {word}.")
            ],
            contexts={"normal": shape, "abnormal": shape},
            deep=config.deep_sets,
            deep_tokens=config.deep_tokens,
            deep_groups=[own * (group == levels) for group in range(groups) for _ in range(2)],
            fuse=_fused_contexts if config.bridge == "context" else None,
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the adapter anew: all tokens normal with deviation 0.02, different for every level."""
        self.prompts.reset_parameters(generator)

    def forward(self, features: ImageFeatures) -> Output:
        """Grids (B, L |P|, h, w), those of a layer's levels side by side, and scores."""
        grids, image, _ = self._compare(features)
        return self._output(grids, image)

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of Eq. 3, with their weights."""
        grids, image, _ = self._compare(features)
        return self._losses(grids, image, masks, labels)

    def _output(self, grids: Tensor, image: Tensor) -> Output:
        spec = self.spec_of((grids.shape[-2], grids.shape[-1]))
        score = image_score(image, grids, kind=self.config.score, spec=spec)
        return Output(grids, score, terms={"global": image.sigmoid()})

    def _losses(self, grids: Tensor, image: Tensor, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        weight, kind = self.config.local_weight / len(self.config.levels), self.config.score
        return pair_losses(grids, image, masks, labels, spec=self.map_spec, weight=weight, kind=kind)

    def text(self) -> tuple[Tensor, Tensor]:
        """The levels' pairs t (|P|, 2, D) and the pairs (M, 2, D) that the global feature meets, of length one."""
        bridge, levels = self.config.bridge, len(self.config.levels)
        text = F.normalize(self.prompts(self.clip.text), dim=-1)
        pairs = text.view(-1, 2, text.shape[-1])
        local, own = pairs[:levels], pairs[levels:]
        if bridge == "none":
            return local, local[:1]
        if bridge == "score":
            return local, pairs
        if bridge in ("embedding", "two_way"):
            fused = F.normalize(pairs.amax(dim=0, keepdim=True), dim=-1)
            return (F.normalize(local.maximum(own), dim=-1) if bridge == "two_way" else local), fused
        return local, own

    @torch.no_grad()
    def state_cosines(self) -> Tensor:
        """Cosines (|P| + M,) between normal and abnormal text: close to one, a pair tells nothing apart."""
        pairs = torch.cat(self.text())
        return (pairs[:, 0] * pairs[:, 1]).sum(dim=-1)

    def _compare(self, features: ImageFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
        """Grids (B, L |P|, h, w), logits (B,) of the global feature, router logits (B, L, N, E) if it routes."""
        config = self.config
        local, image_text = self.text()
        # Mixed precision ends here: cosines are divided by a small temperature.
        with full_precision(local.device):
            tokens, cls, router = self._joint(features)
            levels = [
                self._level(tokens, pair, features.grid, size=size)
                for pair, size in zip(local, config.levels, strict=True)
            ]
            grids = torch.stack(levels, dim=2)
            image = image_logits(cls, image_text, temperature=config.tau_prime)
        return torch.unflatten(grids.flatten(1, 2), -1, features.grid), image, router

    def _level(self, tokens: Tensor, pair: Tensor, grid: tuple[int, int], *, size: int) -> Tensor:
        """Eq. 1's logits (B, L, N) of one level: tokens (B, L, N, D) meet its text (2, D)."""
        kind, tau = self.config.pooling, self.config.tau
        if kind == "normalised":
            tokens = F.normalize(tokens, dim=-1)
        if kind in ("features", "normalised"):
            tokens = average_pool(tokens, grid, size=size, zero_padded=False)
        logits = patch_logits(tokens, pair[None, None], temperature=tau)
        if kind != "similarities":
            return logits
        return average_pool(logits.unsqueeze(-1), grid, size=size, zero_padded=False).squeeze(-1)

    def _joint(self, features: ImageFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
        """Patch tokens (B, L, N, D) and global feature (B, D) in the joint space; router logits if it routes."""
        dtype = self.prompts.contexts["normal"].dtype
        return features.patches.to(dtype), features.cls.to(dtype), None


class MPAMAConfig(MPAConfig):
    """All settings of MPAMA; all that concerns the experts is inferred."""

    ma_form: Literal["projection", "residual", "ffn"] = Field(
        default="projection",
        description="What the experts stand in place of: the projection to the joint space (inferred); nothing, "
        "they add bottlenecks behind it; or the feed-forward half that the value-value branch lacks, in the last "
        "block, where training then does not start from stage 1.",
    )
    frozen_experts: int = Field(
        default=1, ge=0, description="Experts that do what the frozen tower does (inferred)."
    )
    learnable_experts: int = Field(default=4, ge=1, description="Experts that learn an update (inferred).")
    zero_experts: int = Field(default=1, ge=0, description="Experts that give nothing (inferred).")
    token_length: Literal["kept", "weighted"] = Field(
        default="kept",
        description="Whether zero experts leave a token's length as it is, so that training goes on exactly where "
        "stage 1 ended (inferred), or shorten it; `ffn` experts are always weighted.",
    )
    top_k: int = Field(default=2, ge=1, description="Experts chosen for a patch (inferred).")
    rank: int = Field(default=8, ge=1, description="Rank of an update (inferred).")
    alpha: float = Field(default=16.0, gt=0, description="Scale of an update times its rank (inferred).")
    bottleneck: int | None = Field(
        default=None,
        ge=1,
        description="Hidden width of `residual` experts; default: an eighth of the joint space (inferred).",
    )
    routers: Literal["shared", "per_layer"] = Field(
        default="shared", description="One router for all tapped layers (inferred), or one for each."
    )
    balance: float = Field(default=0.0, ge=0, description="Weight mu of the load balance loss (inferred).")
    experts_share: float = Field(
        default=0.25, gt=0, lt=1, description="Share of the epochs in which the experts learn (inferred)."
    )
    experts_rate: float = Field(
        default=0.5, gt=0, description="Factor on the learning rate while the experts learn (inferred)."
    )


class MPAMA(MPA):
    """MPAMA, re-designed from the public description: MPA, then experts for its patch tokens (Eqs. 4 to 6)."""

    name = "mpama"
    config_class = MPAMAConfig
    feature_kind = "normed"
    feature_fields = (*Method.feature_fields, "ma_form")
    stages = (Stage("prompts"), Stage("experts"))
    training_defaults: ClassVar[Mapping[str, Any]] = {**MPA.training_defaults, "epochs": 20}
    config: MPAMAConfig

    def __init__(self, config: MPAMAConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape = self.clip.config
        inner, out, routed = {
            "projection": (shape.vision.width, shape.embed_dim, shape.vision.width),
            "residual": (shape.embed_dim, shape.embed_dim, shape.embed_dim),
            "ffn": (shape.vision.mlp_width, shape.vision.width, shape.vision.width),
        }[config.ma_form]
        residual = config.ma_form == "residual"
        rank = (config.bottleneck or max(1, out // 8)) if residual else config.rank
        if config.ma_form == "ffn":
            self._check_branch(backbone)
        self.pool = ExpertPool(
            inner,
            out,
            learnable=config.learnable_experts,
            frozen=config.frozen_experts,
            zero=config.zero_experts,
            top_k=config.top_k,
            rank=rank,
            alpha=rank if residual else config.alpha,
            routers=len(config.layers) if config.routers == "per_layer" else 1,
            route_width=routed,
            residual=residual,
            keep_length=config.token_length == "kept" and config.ma_form != "ffn",
        )
        self.stages = (
            Stage("prompts", share=1 - config.experts_share),
            Stage("experts", share=config.experts_share, learning_rate=config.experts_rate),
        )
        self._stage: str | None = None

    def _check_branch(self, backbone: Backbone) -> None:
        depth, config = len(self.clip.visual.blocks), self.config
        if not config.value_value or config.layers != (depth,):
            raise ConfigError(
                f"ma_form = 'ffn' takes the place of what the value-value branch lacks in the last block of "
                f"{backbone.name}; set value_value to true and layers to ({depth},), or use ma_form = 'projection'"
            )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the adapter anew: the prompts as MPA does, then the pool."""
        self.prompts.reset_parameters(generator)
        self.pool.reset_parameters(generator)

    def begin_stage(self, name: str) -> None:
        """Stage "prompts" leaves the pool out; stage "experts" freezes the text, which is then encoded once."""
        self._stage = name
        self.prompts.requires_grad_(name == "prompts")
        self.pool.requires_grad_(name == "experts")

    def load_adapter(self, state: dict[str, Tensor]) -> None:
        """As for every method; the pool is in use from then on, whatever stage came before."""
        super().load_adapter(state)
        self._stage = None

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Patch tokens behind `ln_post` (before it for `ffn` experts) and the class token, all D_x wide."""
        if self.config.ma_form == "ffn":
            return ImageFeatures(*self._read_tower(pixels))
        return self.normed_features(pixels)

    def forward(self, features: ImageFeatures) -> Output:
        """As MPA, with the mean weights of all patches; they are None while the pool is left out."""
        grids, image, router = self._compare(features)
        output = self._output(grids, image)
        if router is not None:
            output.routing = {POOL: self.pool.gates(router).mean(dim=2)}
        return output

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of Eq. 3, or in the stage "experts" of Eq. 6, with their weights."""
        config = self.config
        grids, image, router = self._compare(features)
        terms = self._losses(grids, image, masks, labels)
        if self._stage == "experts" and config.score == "global":
            del terms["classify"]  # neither text nor global feature learns any more
        if router is not None and config.balance:
            flat = router.flatten(0, 2)
            terms["balance"] = config.balance * load_balance_loss(flat, top_k=config.top_k)
        return terms

    def token_routing(self, features: ImageFeatures) -> dict[str, Tensor]:
        """Weights (B, L, N, E) of every patch; empty while the pool is left out."""
        router = self._joint(features)[2]
        return {} if router is None else {POOL: self.pool.gates(router)}

    def expert_labels(self) -> dict[str, tuple[str, ...]]:
        """Names of the E experts: frozen, learnable, zero."""
        return {POOL: self.pool.labels}

    def expert_embeddings(self) -> dict[str, Tensor]:
        """For every expert the direction (L, E, D_r) in which a token chooses it: the router's rows."""
        return {POOL: self.pool.router.detach().expand(len(self.config.layers), -1, -1)}

    def _joint(self, features: ImageFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
        """As MPA, of tokens before projection; Eqs. 4 and 5."""
        dtype, visual, form = self.pool.router.dtype, self.clip.visual, self.config.ma_form
        x, cls = features.patches.to(dtype), self.project_cls(features.cls.to(dtype))
        if self._stage == "prompts":
            return visual.project(x, norm=form == "ffn"), cls, None
        read, base, routed = self._frozen_expert(x)
        router = self.pool.route(routed)
        mixed = self.pool(read, self.pool.gates(router), base=base)
        return (visual.project(x + mixed) if form == "ffn" else mixed), cls, router

    def _frozen_expert(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What learnable experts read, what the frozen one gives, and what routers read, of x (B, L, N, D_x)."""
        visual = self.clip.visual
        if self.config.ma_form == "ffn":
            block = cast("Block", visual.blocks[-1])
            normed = block.ln_2(x)
            hidden = block.act(block.fc(normed))
            return hidden, block.proj(hidden), normed
        projected = visual.project(x, norm=False)
        return (x, projected, x) if self.config.ma_form == "projection" else (projected,) * 3


def _fused_contexts(contexts: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contexts (G, M, D_t), of which the global one, the last, becomes the maximum of all."""
    return {name: torch.cat([own[:-1], own.amax(dim=0, keepdim=True)]) for name, own in contexts.items()}
