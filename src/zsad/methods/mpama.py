"""MPA and MPAMA, re-designed from the abstract: prompts for several perception levels, then experts.

"Learning Multi-granularity Visual-textual Alignment for Zero-shot Anomaly Detection" (OpenReview JwSFgHCXeg, 2025)
could not be read where zsad was built. Its abstract and four reviews say: a prompt pair for each perception level p,
whose visual side is pooled over a neighbourhood of that size; separate prompts for the global feature, joined to the
local ones by max-pooling fusion; a pool of frozen, learnable and zero experts to which patch tokens are routed; two
stages of training, text first. All else is inferred, from AnomalyCLIP where it has it. No numbers are known.

With F the patch tokens in the joint space, f the global feature, t^p and g the embeddings of the prompts:

    (1)  S^p = softmax(<F^p, t^p> / tau),   F^p = average of F over p x p patches, at the border over those there are
    (2)  P = softmax(<f, g~> / tau'),       g~_s = the elementwise maximum of g_s and all t_s^p, of length one
    (3)  loss 1 = CE(s, y) + lambda / |P| sum_p [Focal(Up S^p, m) + Dice(Up S_a^p, m) + Dice(Up S_n^p, 1 - m)]
    (4)  w = softmax(W_r x), its K largest brought to the sum 1,   x = ln_post of a patch token
    (5)  F = sum_e w_e E_e(x) / sum of w_e but the zero experts',
         E = W x (frozen), W x + (alpha / R) B_i A_i x (learnable), 0 (zero)
    (6)  loss 2 = loss 1 with frozen text, without CE where s is P alone; + mu balance
    (7)  M = mean over p of S_a^p, smoothed;   s = (P_a + max M) / 2

Inferred and fixed: neighbourhoods average tokens as they are, prompts are fused in their embeddings, all prompts share
their deep tokens, experts stand in place of the projection to the joint space, and all layers share one router.

The balance is `E sum_e f_e p_e`, with f_e the share of choices and p_e the mean of the softmax. The reviews tell of an
unbalanced use in the paper (one expert has half of the patches), so it may have none; without it most patches of the
bundled backbone had one expert, and one expert had none.

B starts at zero, so that stage 2 starts exactly where stage 1 ended, whatever the routing. Without the division in
Eq. 5 (`token_length` = "weighted") a zero expert shortens its token. Similarities do not see that, but averages of
Eq. 1 do, where the token then counts less among its neighbours, from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

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
from zsad.methods.base import ImageFeatures, Internals, Method, Output, PaperModule, Stage
from zsad.methods.learned_prompts import PromptLearner
from zsad.methods.settings import Score
from zsad.methods.similarity import full_precision, patch_logits
from zsad.nn.experts import load_balance_loss
from zsad.nn.pool_experts import ExpertPool
from zsad.nn.pooling import average_pool
from zsad.nn.windows import check_window

POOL = "experts"


class MPAConfig(AnomalyCLIPConfig):
    """Settings of MPA. With levels = (1,) its maps are AnomalyCLIP's."""

    retired: ClassVar[Mapping[str, Any]] = {
        "pooling": "features",
        "bridge": "embedding",
        "deep_sharing": "all",
    }
    inferred: ClassVar[tuple[str, ...]] = tuple(
        AnomalyCLIPConfig.model_fields.keys()
        - {"train_map_size", "oddness", "oddness_in_map", "oddness_in_score"}
    )

    score: Score = "map_and_global"
    levels: tuple[int, ...] = Field(
        default=(1, 3, 5),
        min_length=1,
        description="Perception levels: sides, in patches, of the neighbourhoods that prompts look at (inferred).",
    )

    @model_validator(mode="after")
    def _levels_have_centres(self) -> MPAConfig:
        if len(set(self.levels)) < len(self.levels) or any(p < 1 or p % 2 == 0 for p in self.levels):
            raise ConfigError(
                f"levels = {self.levels} must be odd numbers of patches that do not repeat; use such as (1, 3, 5)"
            )
        return self


class MPA(Method):
    """MPA, re-designed from the abstract: see the module's text for the equations."""

    name = "mpa"
    config_class = MPAConfig
    training_defaults: ClassVar[Mapping[str, Any]] = AnomalyCLIP.training_defaults
    config: MPAConfig

    def __init__(self, config: MPAConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        check_window(self.grid, max(config.levels))
        # A pair a level, and the global feature's own behind them.
        word, pairs = config.class_word, len(config.levels) + 1
        self.prompts = PromptLearner(
            backbone,
            [
                template
                for pair in range(pairs)
                for template in (f"{{normal.{pair}}} {word}.", f"{{abnormal.{pair}}} damaged {word}.")
            ],
            contexts={"normal": (pairs, config.context_tokens), "abnormal": (pairs, config.context_tokens)},
            deep=config.deep_sets,
            deep_tokens=config.deep_tokens,
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew: all tokens normal with deviation 0.02, different for every level."""
        self.prompts.reset_parameters(generator)

    def text(self) -> tuple[Tensor, Tensor]:
        """Pairs t (|P|, 2, D) of the levels and g~ (1, 2, D) of the global feature (Eq. 2), of length one."""
        text = F.normalize(self.prompts(self.clip.text), dim=-1)
        pairs = text.view(-1, 2, text.shape[-1])
        return pairs[:-1], F.normalize(pairs.amax(dim=0, keepdim=True), dim=-1)

    def paper_modules(self) -> dict[str, PaperModule]:
        """Perception levels on both sides, prompts, deep tokens."""
        levels = len(self.config.levels)
        zero = {"prompts.contexts.normal": 0.0, "prompts.contexts.abnormal": 0.0}
        modules = {
            "neighbourhoods of the levels": PaperModule("F^p = F", {"config.levels": (1,) * levels}),
            "prompts": PaperModule("all context tokens are 0", zero, ("prompts.contexts.*",), text=True),
        }
        if self.prompts.deep is not None:
            modules["deep tokens"] = PaperModule(
                "no deep tokens", {"prompts.deep": None}, ("prompts.deep",), text=True
            )
        return modules

    def internals(self, features: ImageFeatures) -> Internals:
        """All pairs of text as one image has them, which no image changes."""
        return Internals(torch.cat(self.text())[None])

    @torch.no_grad()
    def state_cosines(self) -> Tensor:
        """Cosines (|P| + 1,) between normal and abnormal text: close to one, a pair tells nothing apart."""
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
                patch_logits(
                    average_pool(tokens, features.grid, size=size, zero_padded=False),
                    pair[None, None],
                    temperature=config.tau,
                )
                for pair, size in zip(local, config.levels, strict=True)
            ]
            grids = torch.stack(levels, dim=2)
            image = image_logits(cls, image_text, temperature=config.tau_prime)
        return torch.unflatten(grids.flatten(1, 2), -1, features.grid), image, router

    def _joint(self, features: ImageFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
        """Patch tokens (B, L, N, D) and global feature (B, D) in the joint space; router logits if it routes."""
        dtype = self.prompts.contexts["normal"].dtype
        return features.patches.to(dtype), features.cls.to(dtype), None

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of Eq. 3, with their weights."""
        grids, image, _ = self._compare(features)
        return self._losses(grids, image, masks, labels)

    def _losses(self, grids: Tensor, image: Tensor, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        weight, kind = self.config.local_weight / len(self.config.levels), self.config.score
        return pair_losses(grids, image, masks, labels, spec=self.map_spec, weight=weight, kind=kind)

    def forward(self, features: ImageFeatures) -> Output:
        """Grids (B, L |P|, h, w), those of a layer's levels side by side, and scores."""
        grids, image, _ = self._compare(features)
        return self._output(grids, image)

    def _output(self, grids: Tensor, image: Tensor) -> Output:
        spec = self.spec_of((grids.shape[-2], grids.shape[-1]))
        score = image_score(image, grids, kind=self.config.score, spec=spec)
        return Output(grids, score, terms={"global": image.sigmoid()})


class MPAMAConfig(MPAConfig):
    """Settings of MPAMA; all that concerns the experts is inferred."""

    retired: ClassVar[Mapping[str, Any]] = {
        **MPAConfig.retired,
        "ma_form": "projection",
        "bottleneck": None,
        "routers": "shared",
    }

    frozen_experts: int = Field(
        default=1, ge=0, description="Experts that do what the frozen tower does (inferred)."
    )
    learnable_experts: int = Field(default=4, ge=1, description="Experts that learn an update (inferred).")
    zero_experts: int = Field(default=1, ge=0, description="Experts that give nothing (inferred).")
    token_length: Literal["kept", "weighted"] = Field(
        default="kept",
        description="Whether zero experts leave a token's length as it is, so that training goes on exactly where "
        "stage 1 ended (inferred), or shorten it.",
    )
    top_k: int = Field(default=2, ge=1, description="Experts chosen for a patch (inferred).")
    rank: int = Field(default=8, ge=1, description="Rank of an update (inferred).")
    alpha: float = Field(default=16.0, gt=0, description="Scale of an update times its rank (inferred).")
    balance: float = Field(
        default=1.0,
        ge=0,
        description="Weight mu of the load balance loss (inferred). Without it most patches have one expert.",
    )
    experts_share: float = Field(
        default=0.25, gt=0, lt=1, description="Share of the epochs in which the experts learn (inferred)."
    )
    experts_rate: float = Field(
        default=0.5, gt=0, description="Factor on the learning rate while the experts learn (inferred)."
    )


class MPAMA(MPA):
    """MPAMA, re-designed from the abstract: MPA, then experts for its patch tokens (Eqs. 4 to 6)."""

    name = "mpama"
    config_class = MPAMAConfig
    feature_kind = "normed"
    stages = (Stage("prompts"), Stage("experts"))
    training_defaults: ClassVar[Mapping[str, Any]] = {**MPA.training_defaults, "epochs": 20}
    config: MPAMAConfig

    def __init__(self, config: MPAMAConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self.pool = ExpertPool(
            self.clip.config.vision.width,
            self.clip.config.embed_dim,
            learnable=config.learnable_experts,
            frozen=config.frozen_experts,
            zero=config.zero_experts,
            top_k=config.top_k,
            rank=config.rank,
            alpha=config.alpha,
            keep_length=config.token_length == "kept",
        )
        self.stages = (
            Stage("prompts", share=1 - config.experts_share),
            Stage("experts", share=config.experts_share, learning_rate=config.experts_rate),
        )
        self._stage: str | None = None

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew: the prompts as MPA does, then the pool."""
        self.prompts.reset_parameters(generator)
        self.pool.reset_parameters(generator)

    def begin_stage(self, name: str) -> None:
        """Leave the pool out in the stage "prompts"; freeze the text, then encoded once, in the stage "experts"."""
        self._stage = name
        self.prompts.requires_grad_(name == "prompts")
        self.pool.requires_grad_(name == "experts")

    def load_adapter(self, state: dict[str, Tensor]) -> None:
        """Copy an adapter's tensors into this one; the pool is in use from then on, whatever stage came before."""
        super().load_adapter(state)
        self._stage = None

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Patch tokens behind `ln_post` and the class token, all D_x wide."""
        return self.normed_features(pixels)

    def _joint(self, features: ImageFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
        """As MPA, of tokens before projection; Eqs. 4 and 5."""
        dtype, visual = self.pool.router.dtype, self.clip.visual
        x, cls = features.patches.to(dtype), self.project_cls(features.cls.to(dtype))
        projected = visual.project(x, norm=False)
        if self._stage == "prompts":
            return projected, cls, None
        router = self.pool.route(x)
        return self.pool(x, self.pool.gates(router), base=projected), cls, router

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of Eq. 3, or in the stage "experts" of Eq. 6, with their weights."""
        config = self.config
        grids, image, router = self._compare(features)
        terms = self._losses(grids, image, masks, labels)
        if self._stage == "experts" and config.score == "global":
            del terms["classify"]  # neither text nor global feature learns any more
        if router is not None and config.balance:
            flat = router.flatten(0, 2)
            terms["balance"] = config.balance * load_balance_loss(flat, top_k=config.top_k)
        return terms

    def forward(self, features: ImageFeatures) -> Output:
        """As MPA, with the mean weights of all patches; they are None while the pool is left out."""
        grids, image, router = self._compare(features)
        output = self._output(grids, image)
        if router is not None:
            output.routing = {POOL: self.pool.gates(router).mean(dim=2)}
        return output

    def token_routing(self, features: ImageFeatures) -> dict[str, Tensor]:
        """Weights (B, L, N, E) of every patch; empty while the pool is left out."""
        router = self._joint(features)[2]
        return {} if router is None else {POOL: self.pool.gates(router)}

    def expert_labels(self) -> dict[str, tuple[str, ...]]:
        """Names of the E experts: frozen, learnable, zero."""
        return {POOL: self.pool.labels}

    def paper_modules(self) -> dict[str, PaperModule]:
        """As MPA, and the pool: its router, and each kind of experts."""
        pool, router = self.pool, self.pool.router.detach()
        # A zero expert's row is put in front, where frozen experts are.
        merged = {
            "pool.router": router.roll(pool.zero, dims=1),
            "pool.frozen": pool.frozen + pool.zero,
            "pool.zero": 0,
        }
        return super().paper_modules() | {
            "learnable experts": PaperModule("B_i = 0", {"pool.up": 0.0}, ("pool.up", "pool.down")),
            "router": PaperModule(
                "W_r = 0: two experts for all patches", {"pool.router": 0.0}, ("pool.router",)
            ),
            "zero experts": PaperModule("they act as frozen ones", merged),
        }

    def internals(self, features: ImageFeatures) -> Internals:
        """As MPA, and the inner products of the updates that learnable experts make of each patch."""
        x = features.patches.to(self.pool.router.dtype)
        hidden = torch.einsum("blnx,erx->blner", x, self.pool.down)
        updates = torch.einsum("blner,erd->blned", hidden, self.pool.up)
        return Internals(super().internals(features).text, {POOL: (updates @ updates.mT).transpose(0, 1)})

    def expert_embeddings(self) -> dict[str, Tensor]:
        """Direction (L, E, D_r) in which a token chooses each expert: the router's rows."""
        return {POOL: self.pool.router.detach().expand(len(self.config.layers), -1, -1)}
