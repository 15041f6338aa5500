"""A linear probe that starts as CLIP: one direction for each tapped layer, from "normal" to "damaged".

With F_l the patch tokens of layer l, f the global feature, both of length one, and t_n, t_a the text embeddings:

    M_l  = sigmoid(Up(F_l (t_a + r_l - t_n) / tau)),   r_l learned, 0 at the start
    s    = (max of the mean of M_l + sigmoid(f (t_a - t_n) / tau)) / 2
    loss = sum over l of Dice(M_l, m) + Focal(M_l, m), and the cross-entropy of s
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from zsad.clip.weights import Backbone
from zsad.methods.base import ImageFeatures, Method, MethodConfig, Output, PaperModule
from zsad.methods.registry import MethodEntry
from zsad.methods.sentences import SentenceBank
from zsad.methods.similarity import image_probability, layer_maps, patch_logits, segmentation_losses
from zsad.nn.losses import score_loss
from zsad.prompts import state_prompts


class ProbeConfig(MethodConfig):
    tau: float = Field(default=0.07, gt=0, description="Temperature of patches and image against text.")


class Probe(Method):
    name = "probe"
    config_class = ProbeConfig
    config: ProbeConfig
    text: Tensor

    def __init__(self, config: ProbeConfig, backbone: Backbone) -> None:
        super().__init__(config, backbone)
        text = SentenceBank(backbone).states(*state_prompts("object"))
        self.register_buffer("text", text[None], persistent=False)  # (1, 2, D), normal first
        self.shift = nn.Parameter(torch.zeros(len(config.layers), text.shape[-1]))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.shift.data.zero_()

    def paper_modules(self) -> dict[str, PaperModule]:
        return {"directions": PaperModule("r_l = 0", off={"shift": 0.0}, parameters=("shift",))}

    def forward(self, features: ImageFeatures) -> Output:
        tau, spec = self.config.tau, self.map_spec
        text = torch.stack([self.text[:, 0].expand_as(self.shift), self.text[:, 1] + self.shift], dim=1)
        logits = patch_logits(features.patches, text[None], temperature=tau).unflatten(-1, features.grid)
        peak = layer_maps(logits, spec, size=spec.size).mean(dim=1).amax(dim=(-2, -1))
        whole = image_probability(features.cls, self.text, temperature=tau)
        return Output(logits, (peak + whole) / 2, terms={"map": peak, "global": whole})

    def losses(self, features: ImageFeatures, masks: Tensor, labels: Tensor) -> dict[str, Tensor]:
        output = self(features)
        maps = layer_maps(output.logits, self.map_spec, size=(masks.shape[-2], masks.shape[-1]))
        terms = segmentation_losses(maps, masks, per_layer=True, both_channels=False)
        return {**terms, "classify": score_loss(output.score, labels)}


ENTRY = MethodEntry("probe", "my_method:Probe", title="A linear probe", paper="none", venue="an example")
