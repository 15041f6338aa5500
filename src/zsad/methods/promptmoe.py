"""PromptMoE (Shao et al., AAAI 2026, arXiv 2511.18116): text prompts mixed from experts by what an image shows.

For every tapped layer l of a frozen CLIP and each state s (normal n, abnormal a), learnable queries read the
layer's patch tokens F and the global feature, a router weighs E learnable prompt segments ("experts"), and the k
best are mixed:

    (1)  T_n = [S_n][cls][Q_ctx],   T_a = [S_n][S_a][cls][Q_ctx]
    (2)  O = softmax(q (F W_K)^T / sqrt(d)) F W_V,   r = mean over queries of O
         z = Linear(ReLU(Linear(r))),   w = softmax over the k largest z
    (3)  S = sum_i w_i s_i
    (4)  balance = alpha sum_l E sum_j (mean_b softmax(z)_bj)^2
    (5)  decouple = beta sum_l ||S S^T - I||_F^2, rows of S the experts' normalised mean tokens
    (6)  M = mean over l of softmax(Up(F F_T^T) / tau), F_T the frozen text tower's embeddings of T_n and T_a
    (7)  s = (max M + softmax(F_cls F_T^T / tau')) / 2, F_T of the last layer
    (8)  loss = BCE(s, c) + balance + decouple + Dice(M, m) + Focal(M, m)

Dice and Focal are of M and Dice of its abnormal channel, as printed. Of every layer's map and of both channels, as in
AnomalyCLIP (`segmentation`, `dice`), they weigh more the more layers are tapped; what both forms do on the bundled
backbone is in `benchmarks/results/README.md`, step 6.

Deviations: M is the mean, not the sum, over layers, so that s is a probability; maps rank pixels alike. Inferred, as
the paper leaves it open: prompts end with a full stop, one context serves all layers, tokens are read behind the
projection to the joint space, attention scores are over sqrt(D / heads), similarities are cosines, the score's
maximum is taken before smoothing; the frozen CLIP is read as AnomalyCLIP reads it (value-value branch, global feature
without the final norm, bilinear positions). What else is inferred is a setting, marked so in `PromptMoEConfig`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.model import pack
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import ImageFeatures, Internals, Method, Output, PaperModule
from zsad.methods.settings import ClassNames, RoutedConfig
from zsad.methods.similarity import (
    TextCache,
    distinct_names,
    full_precision,
    image_probability,
    join_scores,
    layer_maps,
    map_maximum,
    of_images,
    patch_logits,
    segmentation_losses,
    weighted_terms,
)
from zsad.nn.attention import QueryAttention
from zsad.nn.losses import score_loss
from zsad.nn.moe import Router, balance_loss, decouple_loss, mixture, topk_gates

STATES = ("normal", "abnormal")


class PromptMoEConfig(RoutedConfig):
    """Settings of PromptMoE; the defaults are the paper's."""

    inferred: ClassVar[tuple[str, ...]] = (
        "value_value",
        "value_value_from",
        "cls_norm",
        "activation",
        "positions",
        "align_corners",
    )
    retired: ClassVar[Mapping[str, Any]] = {
        "abnormal_prompt": "concat",
        "full_stop": True,
        "context": "shared",
        "cross_attention_input": "projected",
        "attention_scale": "per_head",
        "query_projection": False,
        "output_projection": False,
        "normalise": True,
        "score_map": "plain",
    }

    prompting: Literal["moe", "static", "static_ensemble"] = Field(
        default="moe",
        description="Mixtures chosen by the image, or the ablation's one learned prompt pair, or the average "
        "of `experts` learned pairs.",
    )
    prompt_layers: tuple[int, ...] | None = Field(
        default=None,
        description="Layers with prompts of their own; others use those of the next such layer. By default "
        "all, for static prompts (inferred) the last alone.",
    )
    sharing: Literal["none", "pool", "attention", "both"] = Field(
        default="none", description="What the normal and the abnormal branch share."
    )
    experts: int = Field(default=8, ge=1, description="Experts E of a pool.")
    top_k: int = Field(default=4, ge=1, description="Experts k that are mixed.")
    queries: int = Field(default=8, ge=1, description="Learnable queries N_q of a layer and state.")
    heads: int = Field(default=8, ge=1, description="Heads of the cross-attention.")
    router_hidden: int = Field(default=256, ge=1, description="Hidden width of the router.")
    normal_tokens: int = Field(default=5, ge=1, description="Tokens M_n of a normal segment.")
    abnormal_tokens: int = Field(default=6, ge=1, description="Tokens M_a of an abnormal segment.")
    context_tokens: int = Field(default=8, ge=1, description="Learnable context tokens M_q.")
    alpha: float = Field(default=0.01, ge=0, description="Weight of the balance loss.")
    beta: float = Field(default=0.005, ge=0, description="Weight of the decoupling loss.")
    tau: float = Field(default=0.07, gt=0, description="Temperature of patches against text.")
    tau_prime: float = Field(
        default=0.01, gt=0, description="Temperature of the global feature against text."
    )
    names: ClassNames = "object"
    class_word: str = Field(default="object", description="What prompts say where `names` is object.")
    segmentation: Literal["mean_map", "per_layer"] = Field(
        default="mean_map",
        description="Dice and Focal on the mean of the layers' maps (Eq. 8), or summed over the layers.",
    )
    dice: Literal["abnormal", "both"] = Field(
        default="abnormal",
        description="Dice on the abnormal channel (Eq. 8), or on both, as in AnomalyCLIP.",
    )
    score: Literal["map_and_global", "map"] = Field(
        default="map_and_global",
        description="Mean of the map's maximum and the global probability (Eq. 7), or the former alone.",
    )

    @model_validator(mode="after")
    def _prompted_layers_are_tapped(self) -> PromptMoEConfig:
        prompted = self.prompted
        if (
            list(prompted) != sorted(set(prompted))
            or not set(prompted) <= set(self.layers)
            or prompted[-1:] != self.layers[-1:]
        ):
            raise ConfigError(
                f"prompt_layers = {prompted} must rise, lie among layers = {self.layers} and include the last"
            )
        return self

    @property
    def prompted(self) -> tuple[int, ...]:
        """Layers that have prompts of their own."""
        if self.prompt_layers is not None:
            return self.prompt_layers
        return self.layers if self.prompting == "moe" else self.layers[-1:]

    @property
    def pools(self) -> tuple[int, ...]:
        """Tokens of an expert in each pool. States that share one take as many of its tokens as they need."""
        tokens = (self.normal_tokens, self.abnormal_tokens)
        return (max(tokens),) if self.sharing in ("pool", "both") else tokens


class PromptMoE(Method):
    """PromptMoE on a backbone: see the module's text for the equations that its functions cite."""

    name = "promptmoe"
    config_class = PromptMoEConfig
    term_weights: ClassVar[Mapping[str, str]] = {"balance": "alpha", "decouple": "beta"}
    config: PromptMoEConfig

    def __init__(self, config: PromptMoEConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self._tokenizer = backbone.tokenizer
        self._ids: dict[str, tuple[Tensor, list[int]]] = {}
        width = self._check(config)
        layers, moe = len(config.prompted), config.prompting == "moe"
        experts = 1 if config.prompting == "static" else config.experts
        self.pools = nn.ParameterList(torch.empty(layers, experts, tokens, width) for tokens in config.pools)
        self.context = nn.Parameter(torch.empty(1, config.context_tokens, width))
        self.attention = self._query_attention(layers, width) if moe else None
        self.router = Router((len(STATES), layers), width, config.router_hidden, experts) if moe else None
        # For each tapped layer the prompted layer whose text it meets.
        self._text_of = [sum(prompted < tap for prompted in config.prompted) for tap in config.layers]
        self._prompted = [config.layers.index(prompted) for prompted in config.prompted]
        self._text_cache = TextCache()
        self.reset_parameters()

    def _check(self, config: PromptMoEConfig) -> int:
        """Width D of the text tower's tokens, in which the prompts live.

        Raises:
            ConfigError: heads that do not divide it, or a prompt too long for the tower.
        """
        width = self.clip.config.text.width
        if config.prompting == "moe" and width % config.heads:
            raise ConfigError(f"heads = {config.heads} do not divide the text width {width}; use a divisor")
        self._fixed_tokens(config.class_word)
        return width

    def _query_attention(self, layers: int, width: int) -> QueryAttention:
        config = self.config
        return QueryAttention(
            1 if config.sharing in ("attention", "both") else len(STATES),
            layers,
            queries=config.queries,
            token_width=self.clip.config.embed_dim,
            width=width,
            heads=config.heads,
        )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew: prompts normal with deviation 0.02 (inferred)."""
        for prompts in (*self.pools, self.context):
            nn.init.normal_(prompts, std=0.02, generator=generator)
        for module in (self.attention, self.router):
            if module is not None:
                module.reset_parameters(generator)

    def _fixed_tokens(self, name: str) -> tuple[Tensor, ...]:
        """Embeddings of what is not learned: [SOS], [cls] for an object's name, and the end.

        Raises:
            ConfigError: the prompt is too long for the tower.
        """
        config, text = self.config, self.clip.text
        if name not in self._ids:
            (sos, *word, eos), stop = self._tokenizer.encode(name), self._tokenizer.encode(".")[1:-1]
            ids = [sos, *word, *stop, eos]
            length = len(ids) + config.abnormal_tokens + config.normal_tokens + config.context_tokens
            if length > text.config.context_length:
                raise ConfigError(
                    f"a prompt of {length} tokens does not fit the text tower's {text.config.context_length}; lower "
                    f"normal_tokens, abnormal_tokens or context_tokens, or shorten {name!r}"
                )
            with torch.inference_mode(mode=False):
                self._ids[name] = torch.tensor(ids), [1, len(word), len(stop) + 1]
        tokens, lengths = self._ids[name]
        return torch.split(text.embed(tokens.to(text.proj.device)), lengths)

    def encode(self, normal: Tensor, abnormal: Tensor, *, name: str) -> Tensor:
        """F_T (B, L', 2, D) of segments S_n, S_a (B, L', M, D) and an object's name: Eq. 1, all prompts in one pass."""
        tower, (batch, layers) = self.clip.text, normal.shape[:2]
        dtype = tower.token_embedding.weight.dtype
        sos, word, end = self._fixed_tokens(name)
        context = self.context.to(dtype).expand(layers, -1, -1).repeat(batch, 1, 1)
        s_n, s_a = normal.flatten(0, 1).to(dtype), abnormal.flatten(0, 1).to(dtype)
        tail = [word, context, end]
        packed, layout = pack([sos, s_n], [tail, [s_a, *tail]], batch=batch * layers)
        text = tower.forward_packed(packed, positions=layout.positions, mask=layout.mask, eos=layout.ends)
        return F.normalize(text.to(self.context.dtype).view(batch, layers, len(STATES), -1), dim=-1)

    def _pools(self) -> list[Tensor]:
        """The pools (L', E, M, D) of S_n and of S_a, tokens as many as each state has."""
        lengths = (self.config.normal_tokens, self.config.abnormal_tokens)
        pools = (self.pools[0], self.pools[-1])
        return [pool[..., :length, :] for pool, length in zip(pools, lengths, strict=True)]

    def _mix(self, features: ImageFeatures) -> tuple[list[Tensor], Tensor]:
        """Eqs. 2 and 3: segments S_n, S_a (B, L', M, D) and routing logits z (B, 2, L', E)."""
        assert self.attention is not None and self.router is not None
        tokens = features.patches
        if self.config.prompted != self.config.layers:
            tokens = tokens[:, self._prompted]
        read = self.attention(tokens, extra=features.cls).expand(-1, len(STATES), -1, -1)
        logits: Tensor = self.router(read)
        weights = topk_gates(logits, self.config.top_k)
        return [mixture(weights[:, index], pool) for index, pool in enumerate(self._pools())], logits

    def _mixed_text(self, segments: Sequence[Tensor], names: Sequence[str], index: Tensor) -> Tensor:
        """F_T (B, L', 2, D) of B images' segments; the images of one name share a pass."""
        if len(names) == 1:
            return self.encode(*segments, name=names[0])
        rows = [(index == number).nonzero()[:, 0] for number in range(len(names))]
        texts = [
            self.encode(*(segment[own] for segment in segments), name=name)
            for name, own in zip(names, rows, strict=True)
        ]
        return torch.cat(texts)[torch.cat(rows).argsort()]

    def _static_text(self, names: Sequence[str], index: Tensor, *, batch: int) -> Tensor:
        """F_T (B, L', 2, D) of prompts that no image changes, cached for each name."""
        sources = (*self.pools, self.context, self.clip.text.proj)

        def text(name: str) -> Tensor:
            # Prompts stand in place of the batch; averaging them averages their similarities.
            return self.encode(*(pool.transpose(0, 1) for pool in self._pools()), name=name).mean(dim=0)

        texts = [self._text_cache.get(partial(text, name), sources=sources, name=name) for name in names]
        return of_images(torch.stack(texts), index, batch=batch)

    def _auxiliary_losses(self, routing: Tensor) -> dict[str, Tensor]:
        """Eqs. 4 and 5 with their weights, of routing logits (B, 2, L', E)."""
        decouple = torch.stack([decouple_loss(pool) for pool in self.pools]).sum()
        balance = balance_loss(routing)
        return weighted_terms(balance=(self.config.alpha, balance), decouple=(self.config.beta, decouple))

    def paper_modules(self) -> dict[str, PaperModule]:
        """Modules of the mixture: its router, both pools, prompts per layer; and the score's two halves."""
        if self.router is None:
            return {}
        even = {"router.second": 0.0, "router.second_bias": 0.0, "config.top_k": self.config.experts}
        last = [len(self.config.prompted) - 1] * len(self.config.layers)
        pools = {
            f"{name} pool": PaperModule(
                "its segments are 0", {f"pools.{index}": 0.0}, (f"pools.{index}",), text=True
            )
            for index, name in enumerate(self.expert_embeddings())
        }
        routed = ("router.*", "attention.*")
        modules = {
            "router": PaperModule("w_i = 1 / E", even, routed, by_image=("attention",), text=True),
            **pools,
            "context": PaperModule("Q_ctx = 0", {"context": 0.0}, ("context",), text=True),
            "prompts per layer": PaperModule("all layers meet F_T of the last", {"_text_of": last}),
        }
        if self.config.score == "map_and_global":
            modules["global half of the score"] = PaperModule("s = max M", {"config.score": "map"})
        return modules

    def internals(self, features: ImageFeatures) -> Internals:
        """F_T, and the inner products of the experts' mean tokens, as Eq. 5 reads them."""
        patches, cls = (tokens.to(self.context.dtype) for tokens in (features.patches, features.cls))
        outputs = {name: vectors @ vectors.mT for name, vectors in self.expert_embeddings().items()}
        return Internals(self._text(replace(features, patches=patches, cls=cls))[0], outputs)

    def expert_embeddings(self) -> dict[str, Tensor]:
        """Mean token of every expert of each pool, (L', E, D): what Eq. 5 keeps apart and figure 8 shows."""
        names = STATES if len(self.pools) == len(STATES) else ("shared",)
        return {name: pool.detach().mean(dim=-2) for name, pool in zip(names, self.pools, strict=True)}

    def _text(self, features: ImageFeatures) -> tuple[Tensor, Tensor | None]:
        """F_T (B, L', 2, D), and routing logits (B, 2, L', E)."""
        named = self.config.names == "data"
        names, index = distinct_names(features.object_names if named else (self.config.class_word,))
        if self.router is None:
            return self._static_text(names, index, batch=features.cls.shape[0]), None
        segments, routing = self._mix(features)
        return self._mixed_text(segments, names, index), routing

    def _compare(self, features: ImageFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
        """Grids (B, L, h, w) of Eq. 6, the global feature's probability (B,), and routing logits (B, 2, L', E)."""
        patches, cls = (tokens.to(self.context.dtype) for tokens in (features.patches, features.cls))
        text, routing = self._text(replace(features, patches=patches, cls=cls))
        # Mixed precision ends here: logits are differences over a small temperature, scores are close to 0 or 1.
        with full_precision(text.device):
            if routing is not None:
                routing = routing.to(self.context.dtype)
            logits = patch_logits(patches, text[:, self._text_of], temperature=self.config.tau)
            probability = image_probability(cls, text[:, -1], temperature=self.config.tau_prime)
        return logits.view(*logits.shape[:2], *features.grid), probability, routing

    def forward(self, features: ImageFeatures) -> Output:
        """Grids (Eq. 6 before Up), scores (Eq. 7) and the weights w of the experts (Eq. 2)."""
        logits, probability, routing = self._compare(features)
        maps = layer_maps(logits, self.map_spec, size=self.spec_of(features.grid).size)
        score = join_scores(map_maximum(maps), probability, kind=self.config.score)
        if routing is None:
            return Output(logits, score)
        weights = topk_gates(routing, self.config.top_k)
        return Output(logits, score, {state: weights[:, index] for index, state in enumerate(STATES)})

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of Eq. 8, auxiliary ones with their weights."""
        config = self.config
        logits, probability, routing = self._compare(features)
        with full_precision(logits.device):
            maps = layer_maps(logits, self.map_spec, size=(masks.shape[-2], masks.shape[-1]))
            per_layer, both_channels = config.segmentation == "per_layer", config.dice == "both"
            terms = segmentation_losses(maps, masks, per_layer=per_layer, both_channels=both_channels)
            score = join_scores(map_maximum(maps), probability, kind=config.score)
            terms["classify"] = score_loss(score, labels)
            if routing is not None:
                terms |= self._auxiliary_losses(routing)
        return terms
