"""Layouts of CLIP weights: Hugging Face's, open_clip's, OpenAI's and ours, told apart by their keys.

A layout is a mapping of names and, in places, of shapes: Hugging Face keeps queries, keys and values apart
and its projections transposed. Nothing is rounded on the way.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from zsad.clip.config import Activation, CLIPConfig, TextConfig, VisionConfig
from zsad.errors import BackboneError

Layout = Literal["zsad", "huggingface", "open_clip", "openai"]
State = dict[str, Tensor]
OWN_NAME = "visual.blocks.0.ln_1.weight"
"""Name of a tensor that is in every file of our layout, and in none of another."""

_OPENAI_SCALARS = ("input_resolution", "context_length", "vocab_size")
_HUGGINGFACE_BLOCK = (
    ("ln_1", "layer_norm1"),
    ("ln_2", "layer_norm2"),
    ("attn.out_proj", "self_attn.out_proj"),
    ("fc", "mlp.fc1"),
    ("proj", "mlp.fc2"),
)
_OPEN_CLIP_BLOCK = (
    ("ln_1.weight", "ln_1.weight"),
    ("ln_1.bias", "ln_1.bias"),
    ("ln_2.weight", "ln_2.weight"),
    ("ln_2.bias", "ln_2.bias"),
    ("attn.in_proj.weight", "attn.in_proj_weight"),
    ("attn.in_proj.bias", "attn.in_proj_bias"),
    ("attn.out_proj.weight", "attn.out_proj.weight"),
    ("attn.out_proj.bias", "attn.out_proj.bias"),
    ("fc.weight", "mlp.c_fc.weight"),
    ("fc.bias", "mlp.c_fc.bias"),
    ("proj.weight", "mlp.c_proj.weight"),
    ("proj.bias", "mlp.c_proj.bias"),
)
_HUGGINGFACE_TOP = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.position_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.patch_embedding.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "text.token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "text.position_embedding": "text_model.embeddings.position_embedding.weight",
    "text.ln_final.weight": "text_model.final_layer_norm.weight",
    "text.ln_final.bias": "text_model.final_layer_norm.bias",
    "text.proj": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_OPEN_CLIP_TOP = {
    "visual.class_embedding": "visual.class_embedding",
    "visual.position_embedding": "visual.positional_embedding",
    "visual.patch_embedding.weight": "visual.conv1.weight",
    "visual.ln_pre.weight": "visual.ln_pre.weight",
    "visual.ln_pre.bias": "visual.ln_pre.bias",
    "visual.ln_post.weight": "visual.ln_post.weight",
    "visual.ln_post.bias": "visual.ln_post.bias",
    "visual.proj": "visual.proj",
    "text.token_embedding.weight": "token_embedding.weight",
    "text.position_embedding": "positional_embedding",
    "text.ln_final.weight": "ln_final.weight",
    "text.ln_final.bias": "ln_final.bias",
    "text.proj": "text_projection",
    "logit_scale": "logit_scale",
}
_IMAGE_HEADS = {1280: 16, 1408: 16, 1664: 16}  # by width: ViT-H, ViT-g, ViT-bigG
_TRANSPOSED = ("visual.proj", "text.proj")


def detect_layout(state: State) -> Layout:
    """The layout that the names of a state dict follow.

    Raises:
        BackboneError: none of the known ones.
    """
    if "vision_model.embeddings.class_embedding" in state:
        return "huggingface"
    if "visual.conv1.weight" in state:
        return "openai" if "input_resolution" in state else "open_clip"
    if OWN_NAME in state:
        return "zsad"
    names = ", ".join(sorted(state)[:3]) or "none"
    raise BackboneError(
        f"weights are of no known layout: {len(state)} tensors ({names}, ...), expected a whole CLIP ViT as "
        f"Hugging Face, open_clip, OpenAI or zsad name it (image and text tower in one file)"
    )


def to_zsad(state: State, *, layout: Layout | None = None) -> State:
    """A state dict of any known layout in our names; unknown tensors keep theirs, for loading to name."""
    layout = layout or detect_layout(state)
    if layout == "huggingface":
        return _from_huggingface(state)
    if layout in ("open_clip", "openai"):
        return _from_open_clip(state)
    return dict(state)


def _from_huggingface(state: State) -> State:
    rest = {name: tensor for name, tensor in state.items() if not name.endswith("position_ids")}
    result: State = {}
    for ours, theirs in _HUGGINGFACE_TOP.items():
        if theirs in rest:
            tensor = rest.pop(theirs)
            result[ours] = tensor.T.contiguous() if ours in _TRANSPOSED else tensor
    for tower, prefix in (("visual", "vision_model"), ("text", "text_model")):
        for index in range(count_blocks(rest, f"{prefix}.encoder.layers.")):
            source, target = f"{prefix}.encoder.layers.{index}.", f"{tower}.blocks.{index}."
            for kind in ("weight", "bias"):
                names = [f"{source}self_attn.{part}_proj.{kind}" for part in "qkv"]
                if all(name in rest for name in names):
                    result[f"{target}attn.in_proj.{kind}"] = torch.cat([rest.pop(name) for name in names])
                for ours, theirs in _HUGGINGFACE_BLOCK:
                    if f"{source}{theirs}.{kind}" in rest:
                        result[f"{target}{ours}.{kind}"] = rest.pop(f"{source}{theirs}.{kind}")
    return {**result, **rest}


def _from_open_clip(state: State) -> State:
    rest = {
        name.removeprefix("text."): tensor
        for name, tensor in state.items()
        if name not in _OPENAI_SCALARS and not name.endswith("attn_mask")
    }
    result = {ours: rest.pop(theirs) for ours, theirs in _OPEN_CLIP_TOP.items() if theirs in rest}
    for tower, prefix in (("visual", "visual.transformer"), ("text", "transformer")):
        for index in range(count_blocks(rest, f"{prefix}.resblocks.")):
            source, target = f"{prefix}.resblocks.{index}.", f"{tower}.blocks.{index}."
            for ours, theirs in _OPEN_CLIP_BLOCK:
                if source + theirs in rest:
                    result[target + ours] = rest.pop(source + theirs)
    return {**result, **rest}


def count_blocks(state: State, prefix: str) -> int:
    """One more than the largest index behind `prefix` among the names."""
    indices = [int(name[len(prefix) :].split(".", 1)[0]) for name in state if name.startswith(prefix)]
    return max(indices, default=-1) + 1


def infer_config(state: State, *, activation: Activation = "quick_gelu") -> CLIPConfig:
    """The config of a state dict in our names, from the shapes of its tensors.

    Heads are those of every published CLIP ViT: width / 64, but 16 in the image towers of ViT-H, ViT-g and ViT-bigG.

    Args:
        state: a plain CLIP ViT; with a convolutional stem the shapes do not tell.
        activation: not visible in shapes.

    Raises:
        BackboneError: a tensor that fixes a size is missing or of an unexpected rank.
    """
    patch = _shape(state, "visual.patch_embedding.weight", 4)
    positions = _shape(state, "visual.position_embedding", 2)
    vocab_size, text_width = _shape(state, "text.token_embedding.weight", 2)
    grid = round((positions[0] - 1) ** 0.5)
    if grid * grid != positions[0] - 1 or grid == 0:
        raise BackboneError(
            f"weights hold {positions[0]} image positions, which is no square grid and a class token"
        )
    vision = VisionConfig(
        image_size=grid * patch[-1],
        patch_size=patch[-1],
        width=patch[0],
        layers=count_blocks(state, "visual.blocks."),
        heads=_IMAGE_HEADS.get(patch[0], max(1, patch[0] // 64)),
        mlp_width=_shape(state, "visual.blocks.0.fc.weight", 2)[0],
        activation=activation,
    )
    text = TextConfig(
        context_length=_shape(state, "text.position_embedding", 2)[0],
        vocab_size=vocab_size,
        width=text_width,
        layers=count_blocks(state, "text.blocks."),
        heads=max(1, text_width // 64),
        mlp_width=_shape(state, "text.blocks.0.fc.weight", 2)[0],
        activation=activation,
    )
    return CLIPConfig(embed_dim=_shape(state, "visual.proj", 2)[1], vision=vision, text=text)


def _shape(state: State, name: str, rank: int) -> tuple[int, ...]:
    if name not in state or state[name].ndim != rank:
        present = f"shape {tuple(state[name].shape)}" if name in state else "nothing"
        raise BackboneError(
            f"weights hold {present} for {name!r}, expected a tensor of {rank} axes; the file is incomplete "
            f"or not a CLIP"
        )
    return tuple(state[name].shape)
