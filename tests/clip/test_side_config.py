"""Configurations beside weights: what they say is done, by a path and by a preset's name; what is inferred is said."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig as TheirConfig
from transformers import CLIPModel

from zsad.clip.config import PRESETS, CLIPConfig, TextConfig, VisionConfig
from zsad.clip.convert import infer_config
from zsad.clip.weights import empty_clip, load_backbone
from zsad.errors import BackboneError, InputWarning

VOCABULARY = 49408


def write(folder: Path, **changes: object) -> CLIPModel:
    """A small CLIP of transformers with its configuration, large enough in its weights that all settings show."""
    torch.manual_seed(0)
    common = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        **changes,
    }
    text = {**common, "eos_token_id": VOCABULARY - 1, "max_position_embeddings": 16}
    vision = {**common, "image_size": 32, "patch_size": 16}
    model = CLIPModel(TheirConfig(text_config=text, vision_config=vision, projection_dim=32)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_act": "quick_gelu"},
        {"hidden_act": "gelu"},
        {"hidden_act": "gelu_pytorch_tanh"},
        {"layer_norm_eps": 0.3},
        {"num_attention_heads": 2},
        {"num_attention_heads": 8, "hidden_act": "gelu"},
    ],
)
def test_the_function_is_that_of_transformers(tmp_path: Path, changes: dict[str, object]) -> None:
    model = write(tmp_path / "w", **changes)
    backbone = load_backbone(tmp_path / "w")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([[VOCABULARY - 2, 5, 9, VOCABULARY - 1] + [0] * 12])
    with torch.no_grad():
        image, text = model.get_image_features(pixel_values=pixels), model.get_text_features(input_ids=tokens)
        ours = backbone.clip.visual.encode(pixels)
        ours_text = backbone.clip.text.encode(tokens, eos=VOCABULARY - 1)
    for mine, theirs in ((ours, image), (ours_text, text)):
        torch.testing.assert_close(mine, getattr(theirs, "pooler_output", theirs), rtol=1e-3, atol=1e-3)


def small(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a preset of the shape of `write`."""
    sizes = {"width": 64, "layers": 2, "heads": 1, "mlp_width": 96}
    config = CLIPConfig(
        embed_dim=32,
        vision=VisionConfig(image_size=32, patch_size=16, **sizes),
        text=TextConfig(context_length=16, vocab_size=VOCABULARY, **sizes),
    )
    known = PRESETS["ViT-B/32"].model_copy(update={"name": "ViT-S/16", "config": config})
    monkeypatch.setitem(PRESETS, "ViT-S/16", known)


def test_a_folder_is_the_same_under_a_presets_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(tmp_path, monkeypatch)
    write(tmp_path / "w", hidden_act="gelu", layer_norm_eps=1e-3)
    (tmp_path / "w/preprocessor_config.json").write_text(
        '{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}'
    )
    alone, named = load_backbone(tmp_path / "w"), load_backbone("ViT-S/16", weights=tmp_path / "w")
    assert alone.clip.config == named.clip.config
    assert (named.clip.config.vision.activation, named.clip.config.vision.heads) == ("gelu", 4)
    assert named.clip.config.text.norm_eps == 1e-3
    assert named.preset.mean == alone.preset.mean == (0.5, 0.5, 0.5)
    assert (
        load_backbone("ViT-S/16", weights=tmp_path / "w", activation="quick_gelu").clip.config.text.activation
        == "quick_gelu"
    )


def test_what_is_inferred_is_said(tmp_path: Path) -> None:
    write(tmp_path / "w")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone(tmp_path / "w")
    (tmp_path / "w/config.json").unlink()
    with pytest.warns(InputWarning, match=r"activation quick_gelu .* 1 and 1 heads are inferred"):
        load_backbone(tmp_path / "w")


@pytest.mark.parametrize(
    ("width", "text_width", "heads", "text_heads"),
    [
        (768, 512, 12, 8),
        (1024, 768, 16, 12),
        (1280, 1024, 16, 16),
        (1408, 1024, 16, 16),
        (1664, 1280, 16, 20),
    ],
    ids=["B", "L", "H", "g", "bigG"],
)
def test_heads_of_every_published_clip(width: int, text_width: int, heads: int, text_heads: int) -> None:
    config = CLIPConfig(
        embed_dim=64,
        vision=VisionConfig(image_size=28, patch_size=14, width=width, layers=1, heads=heads, mlp_width=64),
        text=TextConfig(
            context_length=8, vocab_size=9, width=text_width, layers=1, heads=text_heads, mlp_width=64
        ),
    )
    assert infer_config(empty_clip(config).state_dict()) == config


def test_open_clips_configuration_is_obeyed(tmp_path: Path) -> None:
    write(tmp_path / "w")
    (tmp_path / "w/config.json").unlink()
    model: dict[str, object] = {
        "embed_dim": 32,
        "vision_cfg": {
            "width": 64,
            "head_width": 16,
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
        },
        "text_cfg": {"width": 64, "heads": 2},
    }
    beside = tmp_path / "w/open_clip_config.json"
    beside.write_text(json.dumps({"model_cfg": model}))
    found = load_backbone(tmp_path / "w").clip.config
    assert (found.vision.heads, found.vision.activation, found.vision.norm_eps) == (4, "gelu_tanh", 1e-6)
    assert (found.text.heads, found.text.activation) == (2, "gelu")
    beside.write_text(json.dumps({"model_cfg": {**model, "quick_gelu": True}}))
    assert load_backbone(tmp_path / "w").clip.config.text.activation == "quick_gelu"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projection_dim": 48}, "embed_dim is 48, the weights have 32"),
        ({"vision_config": {"hidden_size": 64, "hidden_act": "swish"}}, "activation 'swish'"),
        ({"vision_config": {"hidden_size": 64, "num_attention_heads": 7}}, "not a multiple"),
        ({"vision_config": {"hidden_size": 64, "num_attention_heads": "x"}}, "no known form"),
        (
            {"text_config": {"hidden_size": 96, "num_attention_heads": 4}},
            "text.width is 96, the weights have 64",
        ),
    ],
)
def test_configurations_that_do_not_belong_to_the_weights(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write(tmp_path / "w")
    path = tmp_path / "w/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(BackboneError, match=message) as caught:
        load_backbone(tmp_path / "w")
    assert "\n" not in str(caught.value)
