"""WMoE-CLIP (Chen and Huang, 2026, arXiv 2603.06313), re-designed from the public description: no code is out, and
neither was the full text at hand. Of its ten equations 5 and 6 are as published, the others reconstructed.

A frozen CLIP gives patch tokens of L layers, F = Norm(W_l ln_post(x^l)), and the global feature f. A variational
autoencoder of f shifts the class tokens of learned prompts, so that text follows the image (CTDS); wavelet bands of
the patches refine the text (WCMA); experts that pool patches enrich the global feature (SA-MoE):

    (1)  p = softmax(<., T> / tau), T = (t_n, t_a), everything of length one
    (2)  mu, logvar = Enc(f),   z = mu + exp(logvar / 2) eps
    (3)  b = Dec(z),   T = TextEnc([V_1 .. V_12][c_1 + b][c_2 + b].), TextEnc([W_1 .. W_12] damaged [c_1 + b][c_2 + b].)
    (4)  F_L, F_LH, F_HL, F_HH = Haar(F)
    (5)  F_H = F_LH + F_HL + F_HH
    (6)  F_p = F_H * W_h + F_L
    (7)  T'^l = Norm(T + gamma_l Attn(T W_q, F_p W_k, F_p W_v) W_o)
    (8)  g = Norm(f + sum over top-k of w_e E_e(F^L)),   w = TopK(softmax(W_r [f, t_a - t_n]))
    (9)  M = Gauss(Up(mean over l of softmax(<F^l, T'^l> / tau)_a))
    (10) loss = CE(<g, T'> / tau, y) + sum over l of (Focal + Dice_a + Dice_n) + |f - b|^2 + KL + balance

    score = (softmax(<g, T'> / tau)_a + mean of the top 1 % of M) / 2, without statistics of a test set

Every module starts as nothing: b = 0, W_o = 0, E_e = 0, W_l = CLIP's projection. In training z is one sample of the
posterior; what a trained detector takes is a setting, by default mu. What is inferred is a setting, but for this:
F_p has mean 0 and deviation 1 in every token before text reads it, W_h starts at 0.1, an expert reads patches with
one query, f is restored at length one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.presets import Preset
from zsad.clip.vision import Pixels
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import COMMON_TRAINING, ImageFeatures, Method, MethodConfig, Output
from zsad.methods.learned_prompts import PromptLearner, deep_sets
from zsad.methods.similarity import full_precision, layer_maps, patch_logits, segmentation_losses
from zsad.methods.text_cache import TextCache
from zsad.nn.experts import SemanticExperts, load_balance_loss
from zsad.nn.filters import render_map
from zsad.nn.losses import score_loss
from zsad.nn.maps import MapOrder
from zsad.nn.vae import Gaussian, GaussianVAE, fixed_noise
from zsad.nn.wavelet import FrequencyFusion, WaveletRefinement

POOL = "semantic"
_FULL_RATE = ("prompts.", "vae.", "refine.gamma")


class WMoECLIPConfig(MethodConfig):
    """All settings of WMoE-CLIP; all but the wavelet's defaults are inferred."""

    value_value: bool = Field(
        default=False,
        description="Take patch tokens from AnomalyCLIP's value-value branch, not the ordinary path (inferred).",
    )
    map_order: MapOrder = Field(
        default="after_softmax",
        description="Upsample the map before the softmax or after it, or take the softmax of the layers' mean "
        "(inferred).",
    )
    patch_proj: Literal["learned", "frozen"] = Field(
        default="learned",
        description="A trained W_l for each layer, or CLIP's projection: then with the last layer alone, from the "
        "value-value branch where the backbone has one (inferred).",
    )
    context_tokens: int = Field(
        default=12, ge=1, description="Learnable tokens of a state's prompt (inferred)."
    )
    class_tokens: int = Field(
        default=2, ge=1, description="Learnable class tokens, shifted by the image (inferred)."
    )
    abnormal_word: str = Field(
        default="damaged", description="What the abnormal prompt calls the object (inferred)."
    )
    deep_sets: int = Field(
        default=8, ge=0, description="Text blocks, from the second on, that get deep tokens (inferred)."
    )
    deep_tokens: int = Field(default=4, ge=1, description="Deep tokens of a text block (inferred).")
    use_ctds: bool = Field(default=True, description="Shift class tokens by the image; else b = 0.")
    use_wcma: bool = Field(default=True, description="Refine text by wavelet bands; else T' = T.")
    use_samoe: bool = Field(default=True, description="Enrich the global feature by experts; else g = f.")
    ctds_test: Literal["mean", "sample", "prior"] = Field(
        default="mean",
        description="What a trained detector decodes: the posterior's mean, samples of it, or of N(0, I), "
        "which makes text independent of the image, as in CoPS (inferred).",
    )
    ctds_samples: int = Field(default=10, ge=1, description="Samples R averaged then (inferred).")
    ctds_seed: int = Field(default=0, ge=0, description="Seed of these samples' noise.")
    vae_input: Literal["raw", "unit"] = Field(
        default="raw", description="The encoder reads f as it is, or of length one (inferred)."
    )
    vae_hidden: int | None = Field(
        default=None, ge=1, description="Hidden width of the autoencoder; default: that of f (inferred)."
    )
    vae_latent: int | None = Field(
        default=None, ge=1, description="Width of z; default: that of f (inferred)."
    )
    wavelet_high: Literal["sum", "absolute"] = Field(
        default="sum", description="F_H as published, or the sum of the bands' absolute values."
    )
    wavelet_weight: Literal["channel", "position", "pointwise"] = Field(
        default="channel",
        description="W_h: a number a channel, one a channel and position, or a 1 x 1 convolution (inferred).",
    )
    heads: int = Field(default=8, ge=1, description="Heads of the text's cross-attention (inferred).")
    residual_start: Literal["output", "gamma"] = Field(
        default="output", description="Whether W_o or gamma is zero at the start (inferred)."
    )
    image_text: Literal["last", "mean"] = Field(
        default="last",
        description="The global feature meets the last layer's text, or the layers' mean (inferred).",
    )
    experts: int = Field(default=4, ge=1, description="Experts E (inferred).")
    top_k: int = Field(default=2, ge=1, description="Experts k that an image uses (inferred).")
    expert_hidden: int | None = Field(
        default=None, ge=1, description="Hidden width of an expert; default: a quarter of f's (inferred)."
    )
    samoe_tokens: Literal["patches", "wavelet"] = Field(
        default="patches", description="What experts read: patches of the last layer, or its F_p (inferred)."
    )
    tau: float = Field(default=0.07, gt=0, description="Temperature of all similarities (inferred).")
    score: Literal["top_and_global", "map_and_global", "map", "global"] = Field(
        default="top_and_global",
        description="Mean of the map's highest part and the global probability (inferred), or of the map's "
        "maximum and that, or one of the two alone. With a maximum in it the score itself is trained, else the "
        "global probability.",
    )
    top_share: float = Field(
        default=0.01, gt=0, le=1, description="Share of the pixels in the map's highest part (inferred)."
    )
    score_map: Literal["smoothed", "plain"] = Field(
        default="smoothed", description="Take the score of the map after or before smoothing (inferred)."
    )
    pixel_weight: float | None = Field(
        default=None, ge=0, description="Weight of the map's losses; default: 4 over the layers (inferred)."
    )
    reconstruct_weight: float = Field(
        default=1.0, ge=0, description="Weight of the reconstruction of f (inferred)."
    )
    reconstruct_over: Literal["mean", "sum"] = Field(
        default="mean", description="Its squares averaged or summed over dimensions (inferred)."
    )
    kl_weight: float = Field(default=0.01, ge=0, description="Weight of the KL divergence (inferred).")
    balance_weight: float = Field(
        default=0.01, ge=0, description="Weight of the experts' balance (inferred)."
    )
    linear_rate: float = Field(
        default=0.1,
        gt=0,
        description="Factor on the learning rate of all but prompts, autoencoder and gamma (inferred).",
    )

    @model_validator(mode="after")
    def _possible(self) -> WMoECLIPConfig:
        if self.top_k > self.experts:
            raise ConfigError(
                f"top_k = {self.top_k} exceeds the {self.experts} experts; lower it or add experts"
            )
        if self.samoe_tokens == "wavelet" and not self.use_wcma:
            raise ConfigError(
                "samoe_tokens = 'wavelet' reads what use_wcma = false leaves out; use 'patches', or use_wcma"
            )
        if self.deep_sets and self.deep_tokens > self.context_tokens:
            raise ConfigError(
                f"deep_tokens = {self.deep_tokens} would replace class tokens behind the {self.context_tokens} "
                f"context_tokens; use at most as many"
            )
        return self

    @classmethod
    def for_backbone(cls, preset: Preset, **settings: Any) -> WMoECLIPConfig:
        """As for every method, with as many deep tokens as the text tower takes, and taps as `patch_proj` says."""
        own: dict[str, Any] = {"deep_sets": deep_sets(preset), "value_value": False}
        if settings.get("patch_proj") == "frozen":
            own |= {"layers": preset.taps[-1:], "value_value": preset.value_value}
        return super().for_backbone(preset, **{**own, **settings})


@dataclass(slots=True)
class _Reading:
    """What Eqs. 1 to 9 make of a batch: logits (B, L, h, w) and (B,), routing (B, 1, E), and CTDS's parts."""

    logits: Tensor
    image: Tensor
    f: Tensor
    routing: Tensor | None
    gates: Tensor | None
    posterior: Gaussian | None
    shift: Tensor | None


class WMoECLIP(Method):
    """The method on a backbone: see the module's text for the equations that its functions cite."""

    name = "wmoeclip"
    config_class = WMoECLIPConfig
    feature_kind = "normed"
    training_defaults: ClassVar[Mapping[str, Any]] = COMMON_TRAINING
    config: WMoECLIPConfig
    _noise: Tensor

    def __init__(self, config: WMoECLIPConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        shape, layers = self.clip.config, len(config.layers)
        width, decoded = shape.embed_dim, shape.text.width
        if config.use_wcma and width % config.heads:
            raise ConfigError(f"heads = {config.heads} do not divide the width {width}; use a divisor")
        self.prompts = PromptLearner(
            backbone,
            ["{normal} {shared}.", f"{{abnormal}} {config.abnormal_word} {{shared}}."],
            contexts={
                "normal": config.context_tokens,
                "abnormal": config.context_tokens,
                "shared": config.class_tokens,
            },
            deep=config.deep_sets,
            deep_tokens=config.deep_tokens,
        )
        learned = config.patch_proj == "learned"
        self.projection = nn.Parameter(torch.empty(layers, shape.vision.width, width)) if learned else None
        latent = config.vae_latent or width
        noise = fixed_noise(config.ctds_samples, latent, seed=config.ctds_seed)
        self.register_buffer("_noise", noise.to(self.clip.visual.proj.device), persistent=False)
        hidden = config.vae_hidden or width
        self.vae = GaussianVAE(width, decoded, hidden=hidden, latent=latent) if config.use_ctds else None
        self.refine = self._refinement(layers, width) if config.use_wcma else None
        # A score of the map alone would never train the experts.
        routed = config.use_samoe and config.score != "map"
        self.enrich = self._experts(width) if routed else None
        self._text_cache = TextCache()
        self.reset_parameters()

    def _refinement(self, layers: int, width: int) -> WaveletRefinement:
        config = self.config
        shape, high = config.wavelet_weight, config.wavelet_high
        fusion = FrequencyFusion(layers, width, shape=shape, grid=self.grid, high=high)
        return WaveletRefinement(fusion, heads=config.heads, start=config.residual_start)

    def _experts(self, width: int) -> SemanticExperts:
        config = self.config
        hidden = config.expert_hidden or max(1, width // 4)
        return SemanticExperts(config.experts, width, hidden, router_width=2 * width, top_k=config.top_k)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draws the adapter anew, prompts first; every module but the prompts then changes nothing."""
        self.prompts.reset_parameters(generator)
        if self.projection is not None:
            with torch.no_grad():
                self.projection.copy_(self.clip.visual.proj)
        for module in (self.vae, self.refine, self.enrich):
            if module is not None:
                module.reset_parameters(generator)

    def rate_of(self, parameter: str) -> float:
        """Prompts, autoencoder and gamma at the full rate, projections, attention and experts at `linear_rate`."""
        return 1.0 if parameter.startswith(_FULL_RATE) else self.config.linear_rate

    def expert_embeddings(self) -> dict[str, Tensor]:
        """The queries (1, E, D) with which experts read an image."""
        return {} if self.enrich is None else {POOL: self.enrich.pool.queries.detach()[None]}

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Patch tokens behind `ln_post` and the class token of pixels (B, 3, H, W)."""
        return self.normed_features(pixels)

    def forward(self, features: ImageFeatures) -> Output:
        """Grids (Eq. 9 before Up), scores and the image's weights w (Eq. 8), with text as `ctds_test` says."""
        read = self._read(features, sampled=False)
        parts = self._parts(read, size=self.spec_of(features.grid).size)
        routing = None if read.gates is None else {POOL: read.gates}
        return Output(read.logits, _mean(parts), routing, terms=parts)

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms of Eq. 10 with their weights, for one z of each image's posterior."""
        config, read = self.config, self._read(features, sampled=True)
        size = (masks.shape[-2], masks.shape[-1])
        weight = 4 / len(config.layers) if config.pixel_weight is None else config.pixel_weight
        with full_precision(read.logits.device):
            maps = layer_maps(read.logits, self.map_spec, size=size)
            terms = segmentation_losses(maps, masks, per_layer=True, both_channels=True)
            terms = {name: weight * term for name, term in terms.items()}
            if config.score in ("top_and_global", "global"):
                own = F.binary_cross_entropy_with_logits(read.image, labels.to(read.image.dtype))
            else:
                own = score_loss(_mean(self._parts(read, size=size)), labels)
            terms["classify"] = own
            if read.posterior is not None and read.shift is not None:
                terms["reconstruct"] = config.reconstruct_weight * self._reconstruct(read.f, read.shift)
                terms["kl"] = config.kl_weight * read.posterior.kl()
            if read.routing is not None:
                terms["balance"] = config.balance_weight * load_balance_loss(read.routing, top_k=config.top_k)
        return terms

    def _parts(self, read: _Reading, *, size: tuple[int, int]) -> dict[str, Tensor]:
        """What the score is the mean of, each (B,): the global part, and that of a map of `size`."""
        kind, spec, parts = self.config.score, self.map_spec, {}
        if kind != "map":
            parts["global"] = read.image.sigmoid()
        if kind != "global":
            scale = (
                (size[0] * size[1] / (spec.size[0] * spec.size[1])) ** 0.5 if spec.smooth == "map" else 1.0
            )
            spec = spec.model_copy(update={"size": size, "sigma": spec.sigma * scale})
            pixels = render_map(read.logits, spec, smooth=self.config.score_map == "smoothed").flatten(1)
            share = self.config.top_share if kind == "top_and_global" else 0.0
            count = max(1, int(share * int(pixels.shape[1])))
            parts["map"] = pixels.topk(count, dim=1, sorted=False).values.mean(dim=1)
        return parts

    def _reconstruct(self, f: Tensor, shift: Tensor) -> Tensor:
        """`|f - b|^2`; where the text tower is of another width, its projection brings b to the joint space."""
        if shift.shape[-1] != f.shape[-1]:
            shift = shift @ self.clip.text.proj.to(shift.dtype)
        squares = (f - shift).square()
        return (squares if self.config.reconstruct_over == "mean" else squares.sum(dim=-1)).mean()

    def _read(self, features: ImageFeatures, *, sampled: bool) -> _Reading:
        """Eqs. 1 to 9 before Up; `sampled` takes one z of each image's posterior."""
        dtype, visual = self.prompts.contexts["shared"].dtype, self.clip.visual
        cls = self.project_cls(features.cls.to(visual.proj.dtype)).to(dtype)
        patches = self._project(features.patches.to(dtype))
        text, posterior, shift = self._text(cls, sampled=sampled)
        # Mixed precision ends here: cosines are divided by a small temperature.
        with full_precision(cls.device):
            f, patches, text = (F.normalize(x.to(dtype), dim=-1) for x in (cls, patches, text))
            text = text.expand(f.shape[0], -1, -1)
            if self.refine is None:
                own, tokens = text.unsqueeze(1).expand(-1, patches.shape[1], -1, -1), patches
            else:
                own, bands = self.refine(text, patches, grid=features.grid)
                tokens = bands if self.config.samoe_tokens == "wavelet" else patches
            logits = patch_logits(patches, own, temperature=self.config.tau, normalise=False)
            mean = self.config.image_text == "mean"
            text = F.normalize(own.mean(dim=1), dim=-1) if mean else own[:, -1]
            g, routing, gates = f, None, None
            if self.enrich is not None:
                meaning = torch.cat([f, text[:, 1] - text[:, 0]], dim=-1)
                g, routing, gates = self.enrich(f, meaning, tokens[:, -1])
            image = patch_logits(g[:, None, None], text[:, None], temperature=self.config.tau)
        grid = logits.view(*logits.shape[:2], *features.grid)
        if posterior is not None:
            posterior = Gaussian(posterior.mean.to(dtype), posterior.log_variance.to(dtype))
            shift = None if shift is None else shift.to(dtype)
        return _Reading(grid, image.flatten(), f, routing, gates, posterior, shift)

    def _project(self, patches: Tensor) -> Tensor:
        """`W_l x` (B, L, N, D) of tokens (B, L, N, D_x), all layers in one product."""
        if self.projection is None:
            return patches @ self.clip.visual.proj.to(patches.dtype)
        return torch.einsum("blnx,lxd->blnd", patches, self.projection)

    def _text(self, cls: Tensor, *, sampled: bool) -> tuple[Tensor, Gaussian | None, Tensor | None]:
        """Eqs. 2 and 3: T (B or 1, 2, D) for global features (B, D), not normalised; the posterior and b."""
        if self.vae is None:
            return self.prompts(self.clip.text)[None], None, None
        if not sampled and self.config.ctds_test == "prior":
            return self._prior_text(self.vae)[None], None, None
        posterior = self.vae.encode(F.normalize(cls, dim=-1) if self.config.vae_input == "unit" else cls)
        if sampled:
            z = posterior.sample(torch.randn_like(posterior.mean, dtype=cls.dtype))
        elif self.config.ctds_test == "mean":
            z = posterior.mean
        else:
            z = posterior.sample(self._noise[:, None])
        shift = self.vae.decode(z)
        text = self._encode(shift)
        return (text if text.dim() == 3 else text.mean(dim=0)), posterior, shift

    def _encode(self, shift: Tensor) -> Tensor:
        """Text (..., 2, D) of shifts b (..., D_t): all prompts in one pass."""
        shared = self.prompts.contexts["shared"] + shift.unsqueeze(-2)
        text = self.prompts.encode(self.clip.text, contexts={"shared": shared.flatten(0, -3)})
        return text.view(*shift.shape[:-1], *text.shape[-2:])

    def _prior_text(self, vae: GaussianVAE) -> Tensor:
        """Mean text (2, D) over samples of the prior, kept while no gradient is asked for and nothing changes."""
        sources = (*self.prompts.parameters(), *vae.parameters(), self._noise, self.clip.text.proj)
        return self._text_cache.get(
            lambda: self._encode(vae.decode(self._noise)).mean(dim=0), sources=sources
        )


def _mean(parts: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(parts.values())).mean(dim=0)
