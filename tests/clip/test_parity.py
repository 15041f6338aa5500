"""Equality with transformers' CLIP over shapes, activations, taps and position grids."""

from __future__ import annotations

import warnings

import pytest
import torch
from tests.clip.layouts import to_huggingface

from zsad.clip.config import CLIPConfig, TextConfig, VisionConfig
from zsad.clip.convert import to_zsad
from zsad.clip.model import CLIP

modeling = pytest.importorskip("transformers.models.clip.modeling_clip")

SHAPES = {
    "small": (
        {"image_size": 32, "patch_size": 8, "width": 32, "layers": 3, "heads": 4, "mlp_width": 80},
        48,
        3,
        24,
    ),
    "deep": (
        {"image_size": 28, "patch_size": 14, "width": 64, "layers": 6, "heads": 1, "mlp_width": 256},
        32,
        2,
        40,
    ),
    "wide": (
        {"image_size": 48, "patch_size": 16, "width": 128, "layers": 2, "heads": 2, "mlp_width": 512},
        64,
        4,
        64,
    ),
}


def pair(shape: str, activation: str) -> tuple[CLIP, torch.nn.Module]:
    """Our model and transformers', with the same random weights."""
    from clip_oracles import randomised
    from transformers import CLIPConfig as Theirs

    vision, width, heads, embed_dim = SHAPES[shape]
    text = {
        "context_length": 20,
        "vocab_size": 50,
        "width": width,
        "layers": 3,
        "heads": heads,
        "mlp_width": 2 * width,
    }
    ours = CLIP(
        CLIPConfig(
            embed_dim=embed_dim,
            vision=VisionConfig(**vision, activation=activation),
            text=TextConfig(**text, activation=activation),
        )
    )
    ours = randomised(ours, seed=7)
    towers = {
        name: {
            "hidden_size": sizes["width"],
            "intermediate_size": sizes["mlp_width"],
            "num_hidden_layers": sizes["layers"],
            "num_attention_heads": sizes["heads"],
            "hidden_act": activation,
            "projection_dim": embed_dim,
        }
        for name, sizes in (("vision", vision), ("text", text))
    }
    towers["vision"].update(image_size=vision["image_size"], patch_size=vision["patch_size"])
    towers["text"].update(
        vocab_size=50, max_position_embeddings=20, bos_token_id=48, eos_token_id=49, pad_token_id=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = modeling.CLIPModel(
            Theirs(text_config=towers["text"], vision_config=towers["vision"], projection_dim=embed_dim)
        ).eval()
    theirs.load_state_dict(to_huggingface(ours.state_dict()), strict=True)
    return ours, theirs


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("shape", list(SHAPES))
@torch.no_grad()
def test_image_tower_equals_transformers(shape: str, activation: str) -> None:
    ours, theirs = pair(shape, activation)
    config = ours.config.vision
    pixels = torch.randn(2, 3, config.image_size, config.image_size)
    numbers = tuple(range(1, config.layers + 1))
    found = ours.visual(pixels, taps=numbers)
    wanted = theirs.vision_model(pixels, output_hidden_states=True)
    assert len(wanted.hidden_states) == config.layers + 1
    close(ours.visual.embed(pixels)[0], wanted.hidden_states[0])
    for tap, state in zip(found.taps, wanted.hidden_states[1:], strict=True):
        close(tap, state)
    close(ours.visual.ln_post(found.cls), wanted.pooler_output)
    close(ours.visual.encode(pixels), theirs.visual_projection(wanted.pooler_output))


@pytest.mark.parametrize("size", [(56, 56), (40, 72), (24, 32)])
@torch.no_grad()
def test_interpolated_grids_equal_transformers(size: tuple[int, int]) -> None:
    ours, theirs = pair("small", "quick_gelu")
    pixels = torch.randn(1, 3, *size)
    found = ours.visual(pixels, taps=(1, 3))
    wanted = theirs.vision_model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
    assert found.grid == (size[0] // 8, size[1] // 8)
    close(found.taps[0], wanted.hidden_states[1])
    close(found.taps[1], wanted.hidden_states[3])


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("shape", list(SHAPES))
@torch.no_grad()
def test_text_tower_equals_transformers(shape: str, activation: str) -> None:
    ours, theirs = pair(shape, activation)
    ids = torch.randint(1, 48, (3, 20))
    ids[:, 0] = 48
    for row, end in zip(ids, (19, 4, 11), strict=True):
        row[end] = 49
        row[end + 1 :] = 0
    wanted = theirs.text_model(ids)
    close(ours.text.encode(ids, eos=49), theirs.text_projection(wanted.pooler_output))


@torch.no_grad()
def test_whole_model_equals_transformers() -> None:
    ours, theirs = pair("small", "quick_gelu")
    ids = torch.tensor([[48, 3, 4, 49], [48, 7, 49, 0]])
    pixels = torch.randn(3, 3, 32, 32)
    wanted = theirs(input_ids=ids, pixel_values=pixels).logits_per_image
    found = ours.similarity(ours.visual.encode(pixels), ours.text.encode(ids, eos=49))
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)


def test_their_state_dict_loads_back_bit_for_bit() -> None:
    ours, theirs = pair("wide", "gelu")
    state = to_zsad(dict(theirs.state_dict()))
    assert state.keys() == ours.state_dict().keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(state[name], tensor), name
