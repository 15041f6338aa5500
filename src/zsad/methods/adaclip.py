"""AdaCLIP (Cao et al., ECCV 2024, arXiv 2407.15795): prompts that the image itself makes, in both frozen towers.

A first, plain pass of the image tower gives the global feature g. One linear layer a tower makes dynamic prompts
of it, which are added to static, learned ones (hybrid prompts):

    P_v[j] = static_v[j] + dynamic_v(g), j = 1 .. depth: M tokens behind the patches at the input of image block j
    P_t[j] = static_t[j] + dynamic_t(g), j = 2 .. depth: in place of positions 1 .. M at the input of text block j

A second pass with these prompts gives patch tokens F_l of the tapped blocks and a global feature. Linear heads
bring them to the joint space, where they meet the mean text F_T of a class's sentences for each state:

    x_l = W_l F_l, of length one,   A_l = <x_l, F_T> / tau,   M = softmax(Up(mean over l of A_l))
    c = mean of the most anomalous cluster (k-means) of the patches' mean over l of x_l   (hybrid semantic fusion)
    s = softmax(<alpha c + (1 - alpha) W g', F_T> / tau)
    loss = focal(s, y) + sum over l of Focal + Dice of both channels, of softmax(Up(A_l))

What it costs: two passes of the image tower an image, the second of which cannot be cached; in training it is also
the way of the gradients to the prompts. `features` therefore gives the tokens that enter the first block, and the
class token behind the plain pass. With dynamic text prompts all sentences (48 by default) are encoded for every
image.

Deviations: k-means starts from greedy centres in place of random ones, so that scores repeat; the released code has
one more static text prompt, for the first block, which nothing reads. It trains with AdamW of decay 0.01, here
with Adam without decay, and keeps the epoch that is best on target data, which here is no option. Its semantic
fusion is not the paper's; the setting `recipe` has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.config import Preset
from zsad.clip.vision import Hook, Pixels
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import (
    COMMON_TRAINING,
    ImageFeatures,
    Internals,
    Method,
    MethodConfig,
    Output,
    PaperModule,
)
from zsad.methods.settings import Activation, AlignCorners, ClassNames, Order, Positions, Score, ValueValue
from zsad.methods.similarity import (
    TextCache,
    distinct_names,
    full_precision,
    image_probability,
    join_scores,
    layer_maps,
    of_images,
    patch_logits,
    segmentation_losses,
)
from zsad.nn.clusters import kmeans, mean_of_means, most_anomalous_mean
from zsad.nn.filters import render_map
from zsad.nn.hybrid import HybridPrompts, start_linear
from zsad.nn.losses import focal_loss
from zsad.prompts import published_prompts

CANDIDATES = 5
"""Patches a cluster among which `mean_of_means` looks for clusters, as in the released code."""


class AdaCLIPConfig(MethodConfig):
    """Settings of AdaCLIP."""

    retired: ClassVar[Mapping[str, Any]] = {"candidates": CANDIDATES, "score_loss": "focal"}
    groups: ClassVar[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
        "recipe": {"released": {"fusion": "mean_of_means"}},
    }

    recipe: Literal["paper", "released"] = Field(
        default="paper",
        description="As the paper has it, or as the released code does. Sets fusion where not given.",
    )
    value_value: ValueValue = False
    activation: Activation = "gelu"
    positions: Positions = "bicubic"
    map_order: Order = "mean_logits"
    align_corners: AlignCorners = True
    prompted: Literal["both", "vision", "text", "none"] = Field(
        default="both", description="Towers that get prompts."
    )
    prompts: Literal["both", "static", "dynamic"] = Field(
        default="both", description="Learned prompts, prompts made from the image, or their sums."
    )
    vision_depth: int = Field(default=4, ge=1, description="Blocks of the image tower that get prompts.")
    text_depth: int = Field(
        default=4,
        ge=2,
        description="Last block of the text tower that gets prompts, of those from the second on.",
    )
    prompt_tokens: int = Field(default=5, ge=1, description="Tokens M of a prompt.")
    head_start: Literal["random", "clip"] = Field(
        default="random",
        description="Heads start as linear layers do, or (not the paper's) near the tower's own projection.",
    )
    names: ClassNames = "data"
    templates: int = Field(
        default=4, ge=1, le=4, description="How many of the released code's four sentence templates are used."
    )
    tau: float = Field(
        default=0.01, gt=0, description="Temperature of patches and global feature against text."
    )
    fusion: Literal["most_anomalous", "mean_of_means", "none"] = Field(
        default="most_anomalous",
        description="What joins the global feature in the score: the mean of the most anomalous cluster of patches "
        "(the paper's), or of all clusters' means among the most anomalous patches (the released code's).",
    )
    clusters: int = Field(default=20, ge=1, description="Clusters of the k-means.")
    alpha: float = Field(
        default=0.2, ge=0, le=1, description="Weight of the clusters against the global feature."
    )
    score: Score = "global"

    @classmethod
    def _defaults_on(cls, preset: Preset) -> dict[str, Any]:
        """Return those of every method, and prompts no deeper than the towers.

        Small text towers, which are trained on captions of few words, get one template.
        """
        vision, text = preset.config.vision.layers, preset.config.text.layers
        return {
            **super()._defaults_on(preset),
            "vision_depth": min(4, vision),
            "text_depth": max(2, min(4, text)),
            "templates": 4 if text >= 12 else 1,
            "prompted": "vision" if text < 2 else "both",
        }


class AdaCLIP(Method):
    """AdaCLIP on a backbone: see the module's text for the equations.

    Raises:
        ConfigError: prompts deeper than a tower, or longer than a sentence.
    """

    name = "adaclip"
    config_class = AdaCLIPConfig
    feature_kind = "prompted"
    feature_fields = ("image_size", "activation", "positions")
    training_defaults: ClassVar[Mapping[str, Any]] = {
        **COMMON_TRAINING,
        "epochs": 5,
        "batch_size": 1,
        "learning_rate": 0.01,
    }
    config: AdaCLIPConfig

    def __init__(self, config: AdaCLIPConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        self._tokenizer = backbone.tokenizer
        self._sentences: dict[str, tuple[Tensor, Tensor]] = {}
        self._normal = 0
        self._text_cache = TextCache()
        self._check(config)
        vision, text, joint = (
            self.clip.config.vision.width,
            self.clip.config.text.width,
            self.clip.config.embed_dim,
        )
        tokens, kinds, towers = config.prompt_tokens, config.prompts, config.prompted
        self.vision_prompts = self.text_prompts = None
        if towers in ("both", "vision"):
            self.vision_prompts = HybridPrompts(config.vision_depth, tokens, vision, joint, kinds=kinds)
        if towers in ("both", "text"):
            self.text_prompts = HybridPrompts(config.text_depth - 1, tokens, text, joint, kinds=kinds)
        self.patch_heads = nn.ModuleList(nn.Linear(vision, joint) for _ in config.layers)
        self.cls_head = nn.Linear(joint, joint)
        self.reset_parameters()

    def _check(self, config: AdaCLIPConfig) -> None:
        depths = {"vision": self.clip.visual.blocks, "text": self.clip.text.blocks}
        for tower, blocks in depths.items():
            depth = getattr(config, f"{tower}_depth")
            if config.prompted in ("both", tower) and depth > len(blocks):
                raise ConfigError(
                    f"{tower}_depth = {depth} exceeds the {len(blocks)} blocks of that tower; lower it, or leave "
                    f"the tower out with prompted"
                )
        normal, abnormal = published_prompts(self.name, "object", templates=config.templates)
        shortest = min(len(self._tokenizer.encode(sentence)) - 2 for sentence in (*normal, *abnormal))
        if config.prompted in ("both", "text") and config.prompt_tokens > shortest:
            raise ConfigError(
                f"prompt_tokens = {config.prompt_tokens} would replace the end of a sentence of {shortest} "
                f"tokens; use at most {shortest}"
            )

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the adapter anew."""
        for prompts in (self.vision_prompts, self.text_prompts):
            if prompts is not None:
                prompts.reset_parameters(generator)
        for head in (*self.patch_heads, self.cls_head):
            if isinstance(head, nn.Linear):
                start_linear(head, generator)
        if self.config.head_start == "clip" and not self.cls_head.weight.is_meta:
            self._start_as_projection()

    @torch.no_grad()
    def _start_as_projection(self) -> None:
        """Start heads that do what the final norm and the projection do, up to a token's length."""
        norm, proj = self.clip.visual.ln_post, self.clip.visual.proj
        for head in self.patch_heads:
            if isinstance(head, nn.Linear):
                matrix = norm.weight.unsqueeze(-1) * proj
                # Subtracting the mean over channels is linear, too; dividing by the deviation changes the length.
                head.weight.copy_((matrix - matrix.mean(dim=0)).T)
                head.bias.copy_(norm.bias @ proj)
        nn.init.eye_(self.cls_head.weight)
        nn.init.zeros_(self.cls_head.bias)

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Tokens (B, 1, 1 + N, D_x) that enter the first block, and the class token behind a plain pass."""
        visual = self.clip.visual
        x, grid = visual.stream(pixels, after=0, **self.position_mode())
        return ImageFeatures(x.unsqueeze(1), visual.resume(x, grid=grid, after=0).cls, grid)

    def paper_modules(self) -> dict[str, PaperModule]:
        """Static and dynamic prompts of both towers, heads, hybrid semantic fusion."""
        modules = {}
        for tower, prompts in (("vision", self.vision_prompts), ("text", self.text_prompts)):
            place, text = f"{tower}_prompts", tower == "text"
            if prompts is not None and prompts.static is not None:
                static = f"{place}.static"
                modules[f"static {tower} prompts"] = PaperModule(
                    "P_j = dynamic(g)", {static: 0.0}, (static,), text=text
                )
            if prompts is not None and prompts.dynamic is not None:
                source = f"{place}.dynamic"
                off, own = {f"{source}.weight": 0.0, f"{source}.bias": 0.0}, (f"{source}.*",)
                modules[f"dynamic {tower} prompts"] = PaperModule(
                    "P_j = static_j", off, own, (source,), text=text
                )
        if self.config.fusion != "none":
            modules["semantic fusion"] = PaperModule("alpha = 0", {"config.fusion": "none"})
        return modules

    def internals(self, features: ImageFeatures) -> Internals:
        """F_T of every image."""
        plain = self.project_cls(features.cls.to(self.cls_head.weight.dtype))
        return Internals(self._encode(plain, features.object_names))

    def forward(self, features: ImageFeatures) -> Output:
        """Grids (B, L, h, w) and scores of features."""
        logits, probability = self._compare(features)
        return Output(logits, self._score(logits, probability, size=self.spec_of(features.grid).size))

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Terms of the loss."""
        logits, probability = self._compare(features)
        with full_precision(logits.device):
            size = (masks.shape[-2], masks.shape[-1])
            maps = layer_maps(logits, self.map_spec, size=size)
            terms = segmentation_losses(maps, masks)
            score = self._score(logits, probability, size=size)
            terms["classify"] = focal_loss(score, labels.to(score.dtype))
        return terms

    def _score(self, logits: Tensor, probability: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Scores (B,) of grids (B, L, h, w), made maps of `size` where they count, and the fused feature's part."""
        if self.config.score == "global":
            return probability
        spec = self.map_spec.model_copy(update={"size": size})
        highest = render_map(logits, spec, smooth=False).amax(dim=(-2, -1))
        return join_scores(highest, probability, kind=self.config.score)

    def _compare(self, features: ImageFeatures) -> tuple[Tensor, Tensor]:
        """Grids A (B, L, h, w) and the probability of the fused global feature (B,)."""
        dtype, tau = self.cls_head.weight.dtype, self.config.tau
        plain = self.project_cls(features.cls.to(dtype))
        taps, pooled = self._second_pass(features.patches[:, 0].to(dtype), plain, features.grid)
        heads = [head(tap) for head, tap in zip(self.patch_heads, taps, strict=True)]
        whole, text = self.cls_head(pooled), self._encode(plain, features.object_names)
        # Mixed precision ends here: cosines are divided by a very small temperature.
        with full_precision(text.device):
            text = text.to(dtype)
            patches = F.normalize(torch.stack(heads, dim=1).to(dtype), dim=-1)
            logits = patch_logits(patches, text.unsqueeze(1), temperature=tau, normalise=False)
            fused = self._fuse(patches, logits, F.normalize(whole.to(dtype), dim=-1))
            probability = image_probability(fused, text, temperature=tau)
        return logits.view(*logits.shape[:2], *features.grid), probability

    def _second_pass(self, x: Tensor, plain: Tensor, grid: tuple[int, int]) -> tuple[list[Tensor], Tensor]:
        """Tapped patches (B, N, D_x) and global feature (B, D) of a pass over x (B, 1 + N, D_x) with prompts."""
        config, length = self.config, x.shape[1]
        hooks: dict[int, Hook] = {}
        if self.vision_prompts is not None:
            prompts = self.vision_prompts(plain).to(x.dtype)
            x = _tail(prompts[:, 0], length=length)(x)
            for block in range(1, config.vision_depth):
                # Behind a block, before the next: that one's own prompts take the place of the former.
                hooks[block] = _tail(prompts[:, block], length=length)
        read = self.clip.visual.resume(
            x,
            grid=grid,
            after=0,
            taps=config.layers,
            value_value_from=config.value_value_from if config.value_value else None,
            hooks=hooks,
        )
        return [tap[:, 1:length] for tap in read.taps], self.project_cls(read.cls)

    def _fuse(self, patches: Tensor, logits: Tensor, whole: Tensor) -> Tensor:
        """Semantic fusion: patches (B, L, N, D) and global feature (B, D) of length one, logits (B, L, N): (B, D)."""
        config = self.config
        if config.fusion == "none" or not config.alpha:
            return whole
        tokens = patches.mean(dim=1)
        if config.fusion == "most_anomalous":
            labels, anomaly = kmeans(tokens, config.clusters), logits.mean(dim=1).sigmoid()
            cluster = most_anomalous_mean(tokens, labels, anomaly, config.clusters)
        else:
            count = min(CANDIDATES * config.clusters, tokens.shape[1])
            chosen = logits.mean(dim=1).topk(count, dim=-1).indices.unsqueeze(-1)
            tokens = tokens.gather(1, chosen.expand(-1, -1, tokens.shape[-1]))
            layers = patches.transpose(1, 2).flatten(2)
            labels = kmeans(layers.gather(1, chosen.expand(-1, -1, layers.shape[-1])), config.clusters)
            cluster = mean_of_means(tokens, labels, config.clusters)
        return config.alpha * F.normalize(cluster, dim=-1) + (1 - config.alpha) * whole

    def _encode(self, plain: Tensor, object_names: Sequence[str] | None) -> Tensor:
        """Text (B, 2, D) of length one for global features (B, D).

        With dynamic prompts all sentences of all images are one pass; without, each class is encoded once.
        """
        distinct, index = distinct_names(object_names if self.config.names == "data" else None)
        prompts = self.text_prompts
        if prompts is not None and prompts.dynamic is not None:
            return self._text(distinct, prompts(plain), index)
        sources = [self.clip.text.proj, *(() if prompts is None else prompts.parameters())]

        def of(word: str) -> Tensor:
            def make() -> Tensor:
                return self._text([word], None if prompts is None else prompts(plain[:1]), index[:0])

            return self._text_cache.get(make, sources=sources, name=word)

        return of_images(torch.cat([of(word) for word in distinct]), index, batch=plain.shape[0])

    def _text(self, words: Sequence[str], prompts: Tensor | None, index: Tensor) -> Tensor:
        """Text (G, 2, D) of length one for deep tokens (G, J, M, D_t) of G images or classes: one pass.

        Args:
            words: the distinct class names.
            prompts: None without deep tokens, where G is 1.
            index: (G,) whose name is whose, as `distinct_names` gives it.
        """
        tower, dtype = self.clip.text, self.cls_head.weight.dtype
        rows = zip(*map(self._tokens, words), strict=True)
        ids, ends = (torch.stack(own).to(tower.proj.device) for own in rows)
        groups, sentences = 1 if prompts is None else prompts.shape[0], ids.shape[1]
        embedded = tower.embed(ids[..., : int(ends.max()) + 1])
        embedded, ends = (of_images(own, index, batch=groups).flatten(0, 1) for own in (embedded, ends))
        deep = None
        if prompts is not None:
            deep = prompts.unsqueeze(1).expand(-1, sentences, -1, -1, -1).flatten(0, 1).transpose(0, 1)
        text = tower(embedded, eos=ends, deep_tokens=deep)
        # The mean over sentences of either state, as of any prompt ensemble.
        text = torch.unflatten(F.normalize(text.to(dtype), dim=-1), 0, (-1, sentences))
        means = [text[:, : self._normal].mean(dim=1), text[:, self._normal :].mean(dim=1)]
        return F.normalize(torch.stack(means, dim=1), dim=-1)

    def _tokens(self, word: str) -> tuple[Tensor, Tensor]:
        """Ids (P, S) of a class's sentences, normal ones first, and the index (P,) of each one's EOS.

        Raises:
            ConfigError: a name that does not fit the text tower.
        """
        if word not in self._sentences:
            name, count = word.replace("-", " "), self.config.templates
            normal, abnormal = published_prompts(self.name, name, templates=count)
            limit = self.clip.text.config.context_length
            ids = self._tokenizer.encode_batch([*normal, *abnormal], context_length=limit)
            self._normal = len(normal)
            self._sentences[word] = ids, (ids == self._tokenizer.eos).int().argmax(dim=-1)
        return self._sentences[word]


def _tail(prompts: Tensor, *, length: int) -> Hook:
    """Return a hook that puts prompts (B, M, D_x) behind the first `length` tokens, in place of what stands there."""
    return lambda x: torch.cat([x[:, :length], prompts], dim=1)
