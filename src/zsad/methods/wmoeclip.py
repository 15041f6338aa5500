"""WMoE-CLIP (Chen and Huang, 2026, arXiv 2603.06313), re-designed from the abstract: no code is public,
and the paper could not be read where zsad was built. Of its ten equations 5 and 6 are as published, the others
reconstructed.

A frozen CLIP gives patch tokens of L layers, F = Norm(W_l ln_post(x^l)), and the global feature f. A variational
autoencoder of f shifts the learned tokens of prompts, so that text follows the image (CTDS); wavelet bands of the
patches refine the text (WCMA); experts that pool patches enrich the global feature (SA-MoE):

    (1)  p = softmax(<., T> / tau), T = (t_n, t_a), everything of length one
    (2)  mu, logvar = Enc(f),   z = mu + exp(logvar / 2) eps
    (3)  b = Dec(z),   T = TextEnc([V_1] .. [V_12][c_1][c_2].), TextEnc([W_1] .. [W_12] damaged [c_1][c_2].),
         every V, W and c plus b
    (4)  F_L, F_LH, F_HL, F_HH = Haar(F)
    (5)  F_H = F_LH + F_HL + F_HH
    (6)  F_p = N(F_H) * W_h + N(F_L), N: mean 0 and deviation 1 in every token; as published without N
    (7)  T'^l = Norm(T + gamma_l Attn(T W_q, F_p W_k, F_p W_v) W_o)
    (8)  g = Norm(f + sum over top-k of w_e E_e(F^L)),   w = TopK(softmax(W_r [f, t_a - t_n]))
    (9)  M = Gauss(Up(mean over l of softmax(<F^l, T'^l> / tau)_a))
    (10) loss = CE(<g, T'> / tau_g, y) + sum over l of (Focal + Dice_a + Dice_n) + |f - b|^2 + KL + balance

    score = (softmax(<g, T'> / tau_g)_a + mean of the top 1 % of M) / 2, without statistics of a test set

CTDS and WCMA start as nothing: b = 0, W_o = 0; W_l starts as CLIP's projection. Experts start small and unlike each
other: from zero, all would learn the same direction. With a KL of the same weight a mean over dimensions in place
of the sum |f - b|^2 would make every z the prior: to tell images apart would cost more than it restores.

Inferred and fixed: patch tokens of the ordinary path, the final norm on the global feature, bilinear positions and
map corners; in training z is one sample of the posterior, afterwards its mean; hidden layers and z of the
autoencoder are as wide as f, which is read as it is and restored at length one; F_p has mean 0 and deviation 1 in
every token before text reads it; W_h is a number a channel and starts at 1, as published at 0.1; the global feature
meets the text of the last layer; an expert reads the patches of that layer with one query and has a quarter of their
width inside; the map's losses weigh 4 over the layers; a score takes the map after smoothing. What else is inferred
is a setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.vision import Pixels
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import COMMON_TRAINING, ImageFeatures, Internals, Method, Output, PaperModule
from zsad.methods.learned_prompts import DeepPromptConfig, PromptLearner
from zsad.methods.settings import Order, RoutedConfig, ValueValue
from zsad.methods.similarity import full_precision, layer_maps, patch_logits, segmentation_losses
from zsad.nn.experts import SemanticExperts, load_balance_loss
from zsad.nn.filters import render_map
from zsad.nn.losses import score_loss
from zsad.nn.vae import Gaussian, GaussianVAE
from zsad.nn.wavelet import FrequencyFusion, WaveletRefinement

POOL = "semantic"
_FULL_RATE = ("prompts.", "vae.", "refine.gamma", "refine.fusion", "enrich.router")
_BEFORE = {"shifted": "class", "bands": "published", "image_tau": 0.07}
"""What cards mean that name `reconstruct_over`, once a setting of the loss: these settings came when it went."""


class WMoECLIPConfig(RoutedConfig, DeepPromptConfig):
    """Settings of WMoE-CLIP; all but the switches of its modules are inferred."""

    retired: ClassVar[Mapping[str, Any]] = {
        "patch_proj": "learned",
        "abnormal_word": "damaged",
        "ctds_test": "mean",
        "ctds_samples": 10,
        "ctds_seed": 0,
        "vae_input": "raw",
        "vae_hidden": None,
        "vae_latent": None,
        "wavelet_high": "sum",
        "wavelet_weight": "channel",
        "residual_start": "output",
        "image_text": "last",
        "expert_hidden": None,
        "samoe_tokens": "patches",
        "score_map": "smoothed",
        "pixel_weight": None,
    }

    value_value: ValueValue = False
    map_order: Order = "after_softmax"
    context_tokens: int = Field(
        default=12, ge=1, description="Learnable tokens of a state's prompt (inferred)."
    )
    class_tokens: int = Field(
        default=2, ge=1, description="Learnable class tokens of both prompts (inferred)."
    )
    use_ctds: bool = Field(default=True, description="Shift prompts by the image; else b = 0.")
    shifted: Literal["all", "class"] = Field(
        default="all",
        description="Tokens that b is added to: all learned ones, or the class tokens alone, which a small text "
        "tower hardly reads (inferred).",
    )
    use_wcma: bool = Field(default=True, description="Refine text by wavelet bands; else T' = T.")
    bands: Literal["normalised", "published"] = Field(
        default="normalised",
        description="High and low bands as they are added: each of deviation 1 in every token, so that the high "
        "ones count (inferred), or as published.",
    )
    use_samoe: bool = Field(default=True, description="Enrich the global feature by experts; else g = f.")
    heads: int = Field(default=8, ge=1, description="Heads of the text's cross-attention (inferred).")
    tau: float = Field(default=0.07, gt=0, description="Temperature of the patches' similarities (inferred).")
    image_tau: float = Field(
        default=0.5,
        gt=0,
        description="Temperature of the global feature's: at that of patches its probability is 0 or 1 (inferred).",
    )
    score: Literal["top_and_global", "map_and_global", "map", "global"] = Field(
        default="top_and_global",
        description="Mean of the map's highest part and the global probability (inferred), or of the map's "
        "maximum and that, or one of the two alone. What is trained is the global probability, where it is part "
        "of the score.",
    )
    top_share: float = Field(
        default=0.01, gt=0, le=1, description="Share of the pixels in the map's highest part (inferred)."
    )
    reconstruct_weight: float = Field(
        default=4.0, ge=0, description="Weight of the reconstruction of f (inferred)."
    )
    kl_weight: float = Field(default=0.01, ge=0, description="Weight of the KL divergence (inferred).")
    balance_weight: float = Field(default=0.1, ge=0, description="Weight of the experts' balance (inferred).")
    linear_rate: float = Field(
        default=0.1,
        gt=0,
        description="Factor on the learning rate of projections, attention and experts (inferred).",
    )

    @classmethod
    def _without_retired(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and data.get("reconstruct_over") in ("mean", "sum"):
            data = {**_BEFORE, **data}
            del data["reconstruct_over"]
        return super()._without_retired(data)

    @model_validator(mode="after")
    def _deep_tokens_replace_context_alone(self) -> WMoECLIPConfig:
        if self.deep_sets and self.deep_tokens > self.context_tokens:
            raise ConfigError(
                f"deep_tokens = {self.deep_tokens} would replace class tokens behind the {self.context_tokens} "
                f"context_tokens; use at most as many"
            )
        return self


@dataclass(slots=True)
class _Comparison:
    """Results of Eqs. 1 to 9 for a batch: logits (B, L, h, w) and (B,), routing (B, 1, E), and CTDS's parts.

    T' (B, L, 2, D) and the last layer's patches (B, N, D) are what logits compare and experts read.
    """

    logits: Tensor
    image: Tensor
    f: Tensor
    routing: Tensor | None
    gates: Tensor | None
    posterior: Gaussian | None
    shift: Tensor | None
    texts: Tensor
    patches: Tensor


class WMoECLIP(Method):
    """WMoE-CLIP on a backbone: see the module's text for the equations that its functions cite."""

    name = "wmoeclip"
    config_class = WMoECLIPConfig
    feature_kind = "normed"
    training_defaults: ClassVar[Mapping[str, Any]] = COMMON_TRAINING
    config: WMoECLIPConfig

    def __init__(self, config: WMoECLIPConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape, layers = self.clip.config, len(config.layers)
        width, decoded = shape.embed_dim, shape.text.width
        if config.use_wcma and width % config.heads:
            raise ConfigError(f"heads = {config.heads} do not divide the width {width}; use a divisor")
        self.prompts = PromptLearner(
            backbone,
            ["{normal} {shared}.", "{abnormal} damaged {shared}."],
            contexts={
                "normal": config.context_tokens,
                "abnormal": config.context_tokens,
                "shared": config.class_tokens,
            },
            deep=config.deep_sets,
            deep_tokens=config.deep_tokens,
        )
        self.projection = nn.Parameter(torch.empty(layers, shape.vision.width, width))
        self.vae = GaussianVAE(width, decoded, hidden=width, latent=width) if config.use_ctds else None
        self.refine: WaveletRefinement | None = None
        if config.use_wcma:
            fusion = FrequencyFusion(layers, width, normalise=config.bands == "normalised")
            self.refine = WaveletRefinement(fusion, heads=config.heads)
        self.enrich: SemanticExperts | None = None
        # A score of the map alone would never train the experts.
        if config.use_samoe and config.score != "map":
            self.enrich = SemanticExperts(
                config.experts, width, max(1, width // 4), router_width=2 * width, top_k=config.top_k
            )
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew, prompts first; CTDS and WCMA then change nothing."""
        self.prompts.reset_parameters(generator)
        with torch.no_grad():
            self.projection.copy_(self.clip.visual.proj)
        for module in (self.vae, self.refine, self.enrich):
            if module is not None:
                module.reset_parameters(generator)

    def rate_of(self, parameter: str) -> float:
        """Factor `linear_rate` for projections, attention and experts, 1 for all else."""
        return 1.0 if parameter.startswith(_FULL_RATE) else self.config.linear_rate

    def paper_modules(self) -> dict[str, PaperModule]:
        """CTDS, WCMA and its high bands, SA-MoE and its router, as far as the configuration has them."""
        modules = {}
        if self.vae is not None:
            modules["CTDS"] = PaperModule("b = 0", {"vae": None}, ("vae.*",), ("vae.mean",), text=True)
        if self.refine is not None:
            modules["WCMA"] = PaperModule(
                "T' = T", {"refine": None}, ("refine.*",), ("refine.fusion",), text=True
            )
            high = {"refine.fusion.weight": 0.0}
            modules["high bands"] = PaperModule("W_h = 0", high, ("refine.fusion.weight",), text=True)
        if self.enrich is not None:
            even = {
                "enrich.router.weight": 0.0,
                "enrich.router.bias": 0.0,
                "enrich.top_k": self.config.experts,
            }
            modules["SA-MoE"] = PaperModule("g = f", {"enrich": None}, ("enrich.pool.*",), ("enrich.pool",))
            modules["router of SA-MoE"] = PaperModule(
                "w_e = 1 / E", even, ("enrich.router.*",), ("enrich.router",)
            )
        return modules

    def internals(self, features: ImageFeatures) -> Internals:
        """T', the inner products of SA-MoE's outputs, and the KL divergence of CTDS's posterior."""
        compared, outputs = self._compare(features, sampled=False), {}
        if self.enrich is not None:
            alone = torch.eye(self.config.experts, device=compared.f.device, dtype=compared.f.dtype)
            patches = compared.patches
            each = [self.enrich.pool(patches, gates.expand(len(patches), -1)) for gates in alone]
            outputs[POOL] = (torch.stack(each, dim=1) @ torch.stack(each, dim=-1))[None]
        kl = None if compared.posterior is None else compared.posterior.kl()
        return Internals(compared.texts, outputs, kl)

    def expert_embeddings(self) -> dict[str, Tensor]:
        """Queries (1, E, D) with which experts read an image."""
        return {} if self.enrich is None else {POOL: self.enrich.pool.queries.detach()[None]}

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Patch tokens behind `ln_post` and the class token of pixels (B, 3, H, W)."""
        return self.normed_features(pixels)

    def _text(self, cls: Tensor, *, sampled: bool) -> tuple[Tensor, Gaussian | None, Tensor | None]:
        """Eqs. 2 and 3: T (B or 1, 2, D) for global features (B, D), not normalised; the posterior and b."""
        if self.vae is None:
            return self.prompts(self.clip.text)[None], None, None
        posterior = self.vae.encode(cls)
        z = posterior.mean
        if sampled:
            z = posterior.sample(torch.randn_like(z, dtype=cls.dtype))
        shift = self.vae.decode(z)
        slots = ("shared",) if self.config.shifted == "class" else tuple(self.prompts.contexts)
        contexts = {slot: self.prompts.contexts[slot] + shift.unsqueeze(-2) for slot in slots}
        return self.prompts.encode(self.clip.text, contexts=contexts), posterior, shift

    def _compare(self, features: ImageFeatures, *, sampled: bool) -> _Comparison:
        """Eqs. 1 to 9 before Up; `sampled` takes one z of each image's posterior."""
        dtype, visual, tau = self.projection.dtype, self.clip.visual, self.config.tau
        cls = self.project_cls(features.cls.to(visual.proj.dtype)).to(dtype)
        # All layers in one product.
        patches = torch.einsum("blnx,lxd->blnd", features.patches.to(dtype), self.projection)
        text, posterior, shift = self._text(cls, sampled=sampled)
        # Mixed precision ends here: cosines are divided by a small temperature.
        with full_precision(cls.device):
            f, patches, text = (F.normalize(x.to(dtype), dim=-1) for x in (cls, patches, text))
            text = text.expand(f.shape[0], -1, -1)
            if self.refine is None:
                texts = text.unsqueeze(1).expand(-1, patches.shape[1], -1, -1)
            else:
                texts, _ = self.refine(text, patches, grid=features.grid)
            logits = patch_logits(patches, texts, temperature=tau, normalise=False)
            last, g, routing, gates = texts[:, -1], f, None, None
            if self.enrich is not None:
                meaning = torch.cat([f, last[:, 1] - last[:, 0]], dim=-1)
                g, routing, gates = self.enrich(f, meaning, patches[:, -1])
            image = patch_logits(g[:, None, None], last[:, None], temperature=self.config.image_tau)
        grid = logits.view(*logits.shape[:2], *features.grid)
        if posterior is not None:
            posterior = Gaussian(posterior.mean.to(dtype), posterior.log_variance.to(dtype))
            shift = None if shift is None else shift.to(dtype)
        return _Comparison(grid, image.flatten(), f, routing, gates, posterior, shift, texts, patches[:, -1])

    def forward(self, features: ImageFeatures) -> Output:
        """Grids (Eq. 9 before Up), scores and the image's weights w (Eq. 8)."""
        compared = self._compare(features, sampled=False)
        parts = self._score_parts(compared, size=self.spec_of(features.grid).size)
        routing = None if compared.gates is None else {POOL: compared.gates}
        return Output(compared.logits, _mean(parts), routing, terms=parts)

    def _score_parts(self, compared: _Comparison, *, size: tuple[int, int]) -> dict[str, Tensor]:
        """Parts that the score is the mean of, each (B,): the global one, and that of a map of `size`."""
        kind, spec, parts = self.config.score, self.map_spec, {}
        if kind != "map":
            parts["global"] = compared.image.sigmoid()
        if kind != "global":
            scale = (
                (size[0] * size[1] / (spec.size[0] * spec.size[1])) ** 0.5 if spec.smooth == "map" else 1.0
            )
            spec = spec.model_copy(update={"size": size, "sigma": spec.sigma * scale})
            pixels = render_map(compared.logits, spec).flatten(1)
            share = self.config.top_share if kind == "top_and_global" else 0.0
            count = max(1, int(share * int(pixels.shape[1])))
            parts["map"] = pixels.topk(count, dim=1, sorted=False).values.mean(dim=1)
        return parts

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of Eq. 10 with their weights, for one z of each image's posterior."""
        config, compared = self.config, self._compare(features, sampled=True)
        size = (masks.shape[-2], masks.shape[-1])
        with full_precision(compared.logits.device):
            maps = layer_maps(compared.logits, self.map_spec, size=size)
            terms = {
                name: 4 / len(config.layers) * term for name, term in segmentation_losses(maps, masks).items()
            }
            if config.score == "map":
                terms["classify"] = score_loss(_mean(self._score_parts(compared, size=size)), labels)
            else:
                wanted = labels.to(compared.image.dtype)
                terms["classify"] = F.binary_cross_entropy_with_logits(compared.image, wanted)
            if compared.posterior is not None and compared.shift is not None:
                terms["reconstruct"] = config.reconstruct_weight * self._reconstruct(
                    compared.f, compared.shift
                )
                terms["kl"] = config.kl_weight * compared.posterior.kl()
            if compared.routing is not None:
                balance = load_balance_loss(compared.routing, top_k=config.top_k)
                terms["balance"] = config.balance_weight * balance
        return terms

    def _reconstruct(self, f: Tensor, shift: Tensor) -> Tensor:
        """`|f - b|^2`; where the text tower is of another width, its projection brings b to the joint space."""
        if shift.shape[-1] != f.shape[-1]:
            shift = shift @ self.clip.text.proj.to(shift.dtype)
        return (f - shift).square().sum(dim=-1).mean()


def _mean(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).mean(dim=0)
