"""Weights of zsad written in the layouts of others, for tests of the way back."""

from __future__ import annotations

import re

import torch

from zsad.clip import convert
from zsad.clip.config import CLIPConfig
from zsad.clip.convert import State


def to_huggingface(state: State) -> State:
    """Our state dict in the names and shapes of Hugging Face's `CLIPModel`."""
    result: State = {}
    for name, tensor in state.items():
        block = _block(name)
        if block is None:
            renamed = convert._HUGGINGFACE_TOP[name]
            result[renamed] = tensor.T.contiguous() if name in convert._TRANSPOSED else tensor
            continue
        tower, index, inner = block
        prefix = f"{'vision' if tower == 'visual' else 'text'}_model.encoder.layers.{index}."
        part, kind = inner.rsplit(".", 1)
        if part == "attn.in_proj":
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                result[f"{prefix}self_attn.{letter}_proj.{kind}"] = third.contiguous()
        else:
            result[f"{prefix}{dict(convert._HUGGINGFACE_BLOCK)[part]}.{kind}"] = tensor
    return result


def to_open_clip(state: State) -> State:
    """Our state dict in open_clip's names."""
    result: State = {}
    for name, tensor in state.items():
        block = _block(name)
        if block is None:
            result[convert._OPEN_CLIP_TOP[name]] = tensor
        else:
            tower, index, inner = block
            prefix = "visual.transformer" if tower == "visual" else "transformer"
            result[f"{prefix}.resblocks.{index}.{dict(convert._OPEN_CLIP_BLOCK)[inner]}"] = tensor
    return result


def to_openai(state: State, config: CLIPConfig) -> State:
    """Our state dict as OpenAI's original archives hold it: open_clip's names and three scalars."""
    sizes = (config.vision.image_size, config.text.context_length, config.text.vocab_size)
    scalars = {name: torch.tensor(size) for name, size in zip(convert._OPENAI_SCALARS, sizes, strict=True)}
    return {**to_open_clip(state), **scalars}


def _block(name: str) -> tuple[str, int, str] | None:
    """Tower, index and inner name of a block's tensor; None for any other tensor."""
    match = re.fullmatch(r"(visual|text)\.blocks\.(\d+)\.(.+)", name)
    return None if match is None else (match[1], int(match[2]), match[3])
