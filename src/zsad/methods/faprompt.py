"""FAPrompt (Zhu et al., ICCV 2025, arXiv 2410.10289): several abnormal prompts, adapted by what an image shows.

One normal prompt and K abnormal ones, which begin with the normal prompt's tokens and add some of their own, go
through a frozen text tower with deep tokens as in AnomalyCLIP (compound abnormality prompting):

    t_n = f(V_1 .. V_E object.),   t_a = mean over k of f(V_1 .. V_E A_k1 .. A_kE' damaged object.)
    p_1 = softmax(cos(x, t) / tau) of every patch x of the last block

The image's k most anomalous patches give a prior, which moves all abnormal tokens before a second pass of the
text (data-dependent abnormality prior):

    r = MLP(x_(1) .. x_(k)),   t'_a = mean over k of f(V, A_k + r, damaged object.),   p_2 = softmax(cos(x, t') / tau)
    M = (Up(p_1) + Up(p_2)) / 2
    s = (softmax(cos(x_cls, t') / tau) + (2 max p_1 + max p_2) / 3) / 2
    loss = S(p_1) + S(p_2) / 2 + CE + focal(s, y) + 0.1 sum over pairs |cos(f_k, f_m)| + sum over normal b of mean r_b^2

with S = Focal + Dice of both channels. What no image changes (t_n, t_a) is encoded once for all images. For an image
the K abnormal prompts are one packed sequence: V, which they begin with, is in it once.

Where the released code strays from the paper, the default is the paper's: the code takes the first patches of an
image in place of the selected ones, its focal loss reads the score as a logit, and its test smooths with sigma 10;
the setting `recipe` has these forms. In tokens (E = 5, E' = 2, K = 10) and in the sum of losses both are the same; an
earlier revision of the code had one token of its own a prompt, and left CE out of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import COMMON_TRAINING, ImageFeatures, Internals, Method, Output, PaperModule
from zsad.methods.learned_prompts import DeepPromptConfig, PromptLearner
from zsad.methods.settings import Layers, Order
from zsad.methods.similarity import (
    full_precision,
    image_probability,
    join_scores,
    layer_maps,
    map_maximum,
    patch_logits,
    segmentation_losses,
)
from zsad.nn.hybrid import start_linear
from zsad.nn.losses import focal_loss, score_loss


class FAPromptConfig(DeepPromptConfig):
    """Settings of FAPrompt."""

    retired: ClassVar[Mapping[str, Any]] = {"prior_hidden": None}
    groups: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "recipe": {
            "released": {"prior_patches": "first", "score_loss": "focal_of_logit", "sigma": 10.0},
        },
    }

    recipe: Literal["paper", "released"] = Field(
        default="paper",
        description="As the paper has it, or as the released code does. Sets prior_patches, score_loss and sigma "
        "where not given.",
    )

    layers: Layers = (24,)
    map_order: Order = "after_softmax"
    normal_tokens: int = Field(default=5, ge=1, description="Learnable tokens E that all prompts begin with.")
    abnormal_tokens: int = Field(
        default=2, ge=1, description="Learnable tokens E' that an abnormal prompt adds to them."
    )
    abnormal_prompts: int = Field(default=10, ge=1, description="Abnormal prompts K.")
    class_word: str = Field(default="object", description="Name of the object in the prompts.")
    prior_tokens: int = Field(default=10, ge=1, description="Patches k that the prior is made of.")
    prior_patches: Literal["selected", "first"] = Field(
        default="selected",
        description="The image's most anomalous patches (the paper's), or its first ones (the released code's).",
    )
    tau: float = Field(
        default=0.07, gt=0, description="Temperature of patches and global feature against text."
    )
    score: Literal["fused", "map_and_global", "map", "global"] = Field(
        default="fused",
        description="The paper's score, or the mean of the map's maximum and the global part, or one of these.",
    )
    score_loss: Literal["focal", "focal_of_logit"] = Field(
        default="focal",
        description="Focal loss of the score (the paper's; its form is inferred), or of the score's sigmoid (the "
        "released code's).",
    )
    second_map: float = Field(
        default=0.5, ge=0, description="Weight of the losses of the map with the prior."
    )
    cross_entropy: float = Field(
        default=1.0,
        ge=0,
        description="Weight of the global part's own cross-entropy, which paper and released code have.",
    )
    apart: float = Field(default=0.1, ge=0, description="Weight of the cosines between abnormal prompts.")
    prior_weight: float = Field(default=1.0, ge=0, description="Weight of the prior's size on normal images.")


class FAPrompt(Method):
    """FAPrompt on a backbone: see the module's text for the equations."""

    name = "faprompt"
    config_class = FAPromptConfig
    training_defaults: ClassVar[Mapping[str, Any]] = COMMON_TRAINING
    term_weights: ClassVar[dict[str, str]] = {
        "focal_with_prior": "second_map",
        "dice_with_prior": "second_map",
        "cross_entropy": "cross_entropy",
        "apart": "apart",
        "prior": "prior_weight",
    }
    config: FAPromptConfig

    def __init__(self, config: FAPromptConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        patches, taken = math.prod(self.grid), config.prior_tokens
        if patches < taken:
            raise ConfigError(
                f"prior_tokens = {taken} exceeds the {patches} patches of an image of "
                f"{config.image_size} pixels; lower it or enlarge image_size"
            )
        word = config.class_word
        abnormal = [f"{{normal}} {{abnormal.{k}}} damaged {word}." for k in range(config.abnormal_prompts)]
        self.prompts = PromptLearner(
            backbone,
            [f"{{normal}} {word}.", *abnormal],
            contexts={
                "normal": config.normal_tokens,
                "abnormal": (config.abnormal_prompts, config.abnormal_tokens),
            },
            deep=config.deep_sets,
            deep_tokens=config.deep_tokens,
        )
        width = taken * self.clip.config.embed_dim
        hidden = max(1, width // 16)
        self.prior_in = nn.Linear(width, hidden)
        self.prior_out = nn.Linear(hidden, self.clip.config.text.width)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew: tokens normal with deviation 0.02, the prior's MLP as linear layers start."""
        self.prompts.reset_parameters(generator)
        for layer in (self.prior_in, self.prior_out):
            start_linear(layer, generator)

    def paper_modules(self) -> dict[str, PaperModule]:
        """Compound abnormal prompts, deep tokens, the data-dependent prior."""
        one = {"prompts.contexts.abnormal": self.prompts.contexts["abnormal"].detach()[:1]}
        prior = {"prior_out.weight": 0.0, "prior_out.bias": 0.0}
        modules = {
            "compound prompts": PaperModule("all A_k = A_1", one, ("prompts.contexts.*",), text=True),
            "prior": PaperModule("r = 0", prior, ("prior_*",), ("prior_out",), text=True),
        }
        if self.prompts.deep is not None:
            modules["deep tokens"] = PaperModule(
                "no deep tokens", {"prompts.deep": None}, ("prompts.deep",), text=True
            )
        return modules

    def internals(self, features: ImageFeatures) -> Internals:
        """t' of every image."""
        return Internals(self._compare(features)[4])

    def forward(self, features: ImageFeatures) -> Output:
        """Grids of both versions, without and with the prior (B, 2 L, h, w), and the scores."""
        logits, probability, *_ = self._compare(features)
        both = torch.cat(logits, dim=1)
        size = self.spec_of(features.grid).size
        maps = [layer_maps(version, self.map_spec, size=size) for version in logits]
        without, with_prior = (_highest(version) for version in logits)
        parts = {"global": probability, "map": without, "map_with_prior": with_prior}
        return Output(both, self._score(logits, maps, probability), terms=parts)

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of the loss, with their weights."""
        config = self.config
        logits, probability, abnormal, prior, _ = self._compare(features)
        with full_precision(probability.device):
            size = (masks.shape[-2], masks.shape[-1])
            maps = [layer_maps(version, self.map_spec, size=size) for version in logits]
            terms, second = (segmentation_losses(version, masks) for version in maps)
            terms |= {f"{name}_with_prior": config.second_map * term for name, term in second.items()}
            terms["cross_entropy"] = config.cross_entropy * score_loss(probability, labels)
            score = self._score(logits, maps, probability)
            if config.score_loss == "focal_of_logit":
                terms["classify"] = focal_loss(score.sigmoid(), labels, smooth=0.0)
            else:
                terms["classify"] = focal_loss(score, labels)
            terms["apart"] = config.apart * pairwise_cosines(abnormal)
            size_of_prior = prior.to(probability.dtype).square().mean(dim=-1)
            terms["prior"] = config.prior_weight * ((1 - labels) * size_of_prior).sum()
        return terms

    def _score(self, logits: list[Tensor], maps: list[Tensor], probability: Tensor) -> Tensor:
        """Scores (B,) of both versions' grids and maps (B, L, H, W), and the global feature's part (B,)."""
        kind = self.config.score
        if kind == "global":
            return probability
        if kind == "fused":
            without, with_prior = (_highest(version) for version in logits)
            return (probability + (2 * without + with_prior) / 3) / 2
        return join_scores(map_maximum(torch.cat(maps, dim=1)), probability, kind=kind)

    def _compare(self, features: ImageFeatures) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """Grids (B, L, h, w) of both versions, the global part (B,), abnormal text (K, D), priors (B, D_t), and t'."""
        tau, context = self.config.tau, self.prompts.contexts["abnormal"]
        patches, cls = (tokens.to(context.dtype) for tokens in (features.patches, features.cls))
        shape = (*patches.shape[:2], *features.grid)
        text = self.prompts(self.clip.text)
        with full_precision(text.device):
            first = patch_logits(patches, states(text)[None, None], temperature=tau)
        taken = self._prior_patches(patches[:, -1], first[:, -1])
        prior = self.prior_out(self.prior_in(taken).relu())
        abnormal = self.prompts.encode(
            self.clip.text,
            contexts={"abnormal": context + prior[:, None, None]},
            prompts=range(1, 1 + self.config.abnormal_prompts),
        )
        adapted = torch.cat([text[:1].expand(abnormal.shape[0], -1, -1), abnormal], dim=1)
        # Mixed precision ends here: cosines are divided by a small temperature.
        with full_precision(text.device):
            own = states(adapted)
            second = patch_logits(patches, own.unsqueeze(1), temperature=tau)
            probability = image_probability(cls, own, temperature=tau)
        return [first.view(shape), second.view(shape)], probability, text[1:], prior, own

    def _prior_patches(self, patches: Tensor, logits: Tensor) -> Tensor:
        """Patches (B, k D) that the prior is made of, each of length one, most anomalous first."""
        count = self.config.prior_tokens
        if self.config.prior_patches == "selected":
            chosen = logits.topk(count, dim=-1).indices
            patches = patches.gather(1, chosen.unsqueeze(-1).expand(-1, -1, patches.shape[-1]))
        return F.normalize(patches[:, :count], dim=-1).flatten(1)


def states(text: Tensor) -> Tensor:
    """Text of both states (..., 2, D) of length one: the first of prompts (..., 1 + K, D), and the others' mean."""
    return F.normalize(torch.stack([text[..., 0, :], text[..., 1:, :].mean(dim=-2)], dim=-2), dim=-1)


def pairwise_cosines(text: Tensor) -> Tensor:
    """Sum over all pairs of |cosine| of text (K, D)."""
    text = F.normalize(text, dim=-1)
    return (text @ text.T).abs().triu(diagonal=1).sum()


def _highest(logits: Tensor) -> Tensor:
    """Highest patch probability (B,) of a version's grids (B, L, h, w)."""
    return logits.sigmoid().mean(dim=1).amax(dim=(-2, -1))
