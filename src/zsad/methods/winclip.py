"""WinCLIP (Jeong et al., CVPR 2023, arXiv 2303.14814), zero-shot: windows of patches against hand-written prompts.

A window of r x r patches goes through the image tower alone: its tokens and the class token, with the positions they
have in the whole image. Its class token behind the last block is an embedding that CLIP has aligned with text. Text is
the mean over the compositional ensemble, every state phrase in every template, for a normal and an abnormal object:

    (1)  s(f) = softmax(<f, t_n> / tau, <f, t_a> / tau)_a       of windows and of the whole image
    (3)  M_r  = for each patch the harmonic mean of s over the windows of size r that hold it
         M    = harmonic mean of M_2, M_3 and s(image)
         score = s(image)

Harmonic means are taken on logits (`zsad.nn.windows`), so that no probability has to be inverted.

Deviations: the paper runs ViT-B/16+ at 240 x 240, here any backbone at its detection size (`image_size`). There
windows of 2 and 3 patches are 13 % and 20 % of a side; on finer grids they are less, unless `window_unit` = "share".
Sentences are brought to length one before they are averaged, as CLIP averages its own; both public codes average them
as they are (`sentence_mean` = "raw"). The reference images of WinCLIP+ are left out.

Cost: beside the whole image's 1 + h w tokens the blocks see 5 (h - 1)(w - 1) + 10 (h - 2)(w - 2) in windows: 2670 and
226 at 240 pixels, 5045 and 401 on zsad-tiny, 18730 and 1370 on ViT-L/14@336 at 518 (there 76364 as shares of the
side). The patch embedding runs once, and the last block only evaluates class tokens. `stride` 2 costs about a quarter,
and is not the paper's.

Where tokens come from a convolutional stem (zsad-tiny) they have seen a little beyond their patch, and the class token
a summary of the whole image: windows are then not quite alone.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from zsad.clip.vision import Pixels
from zsad.clip.weights import Backbone
from zsad.errors import ConfigError
from zsad.methods.base import ImageFeatures, Method, MethodConfig, Output
from zsad.methods.sentences import ClassText
from zsad.methods.settings import ClassNames, Order, Score, Sigma
from zsad.methods.similarity import join_scores, layer_maps, map_maximum, patch_logits
from zsad.nn.windows import check_window, harmonic_cover, harmonic_mean, window_table
from zsad.prompts import published_prompts

PAPER_GRID = 15
"""Patches along a side of the paper's images: 240 pixels in patches of 16."""


class WinCLIPConfig(MethodConfig):
    """Settings of WinCLIP; the defaults are the paper's, but for the backbone and its image size."""

    inferred: ClassVar[tuple[str, ...]] = ("positions", "align_corners", "sigma")

    layers: tuple[int, ...] = Field(
        default=(24,), min_length=1, description="Not read: windows stand in the place of tapped blocks."
    )
    value_value: bool = Field(default=False, description="Impossible: windows are read by their class token.")
    map_order: Order = "after_softmax"
    sigma: Sigma = 0.0
    scales: tuple[int, ...] = Field(
        default=(2, 3), min_length=1, description="Patches along the sides of the windows."
    )
    window_unit: Literal["patches", "share"] = Field(
        default="patches",
        description="Count scales in the grid's own patches, or as shares of the side: in fifteenths, the patches of "
        "the paper's grid at 240 pixels.",
    )
    stride: int = Field(default=1, ge=1, description="Patches between neighbouring windows.")
    chunk: int = Field(
        default=256, ge=1, description="Windows that go through the tower at once; bounds the memory."
    )
    tau: float = Field(default=0.07, gt=0, description="Temperature of windows and image against text.")
    names: ClassNames = "data"
    sentence_mean: Literal["normalised", "raw"] = Field(
        default="normalised",
        description="Average sentences of length one (inferred), or as the tower gives them, as public codes do.",
    )
    score: Score = "global"

    @model_validator(mode="after")
    def _possible(self) -> WinCLIPConfig:
        if self.value_value:
            raise ConfigError(
                "value_value = True is impossible: WinCLIP reads class tokens, which that branch has none of; "
                "set it to false"
            )
        if list(self.scales) != sorted(set(self.scales)) or self.scales[0] < self.stride:
            raise ConfigError(
                f"scales = {self.scales} must rise, not repeat, and be at least stride = {self.stride}, or "
                f"patches are left out"
            )
        return self

    def sizes(self, grid: tuple[int, int]) -> tuple[int, ...]:
        """Patches along the sides of the windows on a grid (h, w)."""
        if self.window_unit == "patches":
            return self.scales
        return tuple(max(1, self.stride, round(scale * min(grid) / PAPER_GRID)) for scale in self.scales)


class WinCLIP(Method):
    """WinCLIP on a backbone. It has no adapter; text is encoded once for every object class met.

    Raises:
        ConfigError: the image's grid is smaller than a window.
    """

    name = "winclip"
    config_class = WinCLIPConfig
    feature_kind = "windows"
    feature_fields = ("image_size", "activation", "positions", "cls_norm", "scales", "window_unit", "stride")
    config: WinCLIPConfig

    def __init__(self, config: WinCLIPConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        check_window(self.grid, config.sizes(self.grid)[-1])
        sentences = partial(published_prompts, self.name)
        self._text = ClassText(backbone, sentences, names=config.names, mean=config.sentence_mean)

    @torch.no_grad()
    def features(self, pixels: Pixels) -> ImageFeatures:
        """Embeddings of all windows (B, scales, N, D), each at its top left patch, and of the images (B, D).

        Where no window begins there are zeros.
        """
        visual = self.clip.visual
        x, grid = visual.stream(pixels, after=0, **self.position_mode())
        cls = self.project_cls(visual.resume(x, grid=grid, after=0).cls)
        empty, scales = cls.new_zeros(x.shape[0], grid[0] * grid[1], cls.shape[-1]), []
        for size in self.config.sizes(grid):
            table = window_table(grid, size, stride=self.config.stride).to(x.device)
            corners = table[:, :1].expand(x.shape[0], -1, cls.shape[-1])
            scales.append(empty.scatter(1, corners, self._windows(x, table, size)))
        return ImageFeatures(torch.stack(scales, dim=1), cls, grid)

    def _windows(self, x: Tensor, table: Tensor, size: int) -> Tensor:
        """Embeddings (B, W, D) of the windows (W, size * size) of the tokens x (B, 1 + N, D_x)."""
        visual, width = self.clip.visual, int(x.shape[-1])
        tokens = torch.cat([table.new_zeros(len(table), 1), table + 1], dim=1)
        # The same windows of all images together, so that passes are of about one size whatever the batch.
        embeddings = [
            visual.resume(x[:, part].flatten(0, 1), grid=(size, size), after=0).cls.view(-1, len(part), width)
            for part in torch.split(tokens, max(1, self.config.chunk // len(x)))
        ]
        return visual.project(torch.cat(embeddings, dim=1))

    def forward(self, features: ImageFeatures) -> Output:
        """Grid that fuses all scales (Eq. 3), and scores (Eq. 1)."""
        config = self.config
        text = self._text(features.object_names, batch=features.cls.shape[0])
        # A probability near 0 rules a harmonic mean: it needs more digits than half precision has.
        text = text if text.dtype.itemsize > 2 else text.float()
        patches, cls = features.patches.to(text.dtype), features.cls.to(text.dtype)
        image, windows = (
            patch_logits(tokens, text[:, None], temperature=config.tau)
            for tokens in (cls[:, None, None], patches)
        )
        windows = windows.view(*windows.shape[:2], *features.grid)
        maps = [
            harmonic_cover(windows[:, index], size, stride=config.stride)
            for index, size in enumerate(config.sizes(features.grid))
        ]
        scales = torch.stack([*maps, image.expand_as(maps[0])], dim=1)
        return self._output(harmonic_mean(scales, dim=1)[:, None], image[:, 0, 0].sigmoid())

    def _output(self, logits: Tensor, whole: Tensor) -> Output:
        """Grids (B, 1, h, w) and image probabilities (B,) as the score asks for them."""
        if self.config.score == "global":
            return Output(logits, whole)
        size = self.spec_of((logits.shape[-2], logits.shape[-1])).size
        highest = map_maximum(layer_maps(logits, self.map_spec, size=size))
        score = join_scores(highest, whole, kind=self.config.score)
        return Output(logits, score, terms={"map": highest, "global": whole})

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Refuse training: there is nothing to train.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("method 'winclip' has nothing to train; train 'promptmoe', or use it as it is")
