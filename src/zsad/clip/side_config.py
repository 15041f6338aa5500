"""Configurations beside weights: what shapes of tensors do not show, as Hugging Face and open_clip write it."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zsad.clip.config import (
    PRESETS,
    Activation,
    CLIPConfig,
    Preset,
    TextConfig,
    VisionConfig,
    activated,
    default_detection_size,
    default_taps,
    read_json,
    with_activation,
)
from zsad.clip.convert import State, infer_config
from zsad.clip.hub import WEIGHT_FILES
from zsad.errors import BackboneError, InputWarning

_ACTIVATIONS: dict[str, Activation] = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# Sizes that tensors show, too, by the names of Hugging Face and open_clip.
_SIZES = {
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "intermediate_size": "mlp_width",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "max_position_embeddings": "context_length",
    "vocab_size": "vocab_size",
    "width": "width",
    "layers": "layers",
    "context_length": "context_length",
}


@dataclass(slots=True)
class SideConfig:
    """What the files beside weights say.

    Attributes:
        vision: fields of `VisionConfig` that shapes do not show.
        text: fields of `TextConfig` that shapes do not show.
        sizes: fields of both that tensors must agree with, by "vision.width" and the like.
        colours: mean and standard deviation of the images, where they are given.
    """

    vision: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    colours: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def applied(self, config: CLIPConfig, where: Path) -> CLIPConfig:
        """Return a config with what the files say.

        Raises:
            BackboneError: sizes that differ from those of the config, or values that make no sense.
        """
        for name, size in self.sizes.items():
            tower, _, key = name.rpartition(".")
            actual = getattr(getattr(config, tower) if tower else config, key, size)
            if actual != size:
                raise BackboneError(
                    f"the configuration beside {where} says {name} is {size}, the weights have {actual}; they do not "
                    "belong together"
                )
        try:
            vision = VisionConfig(**{**config.vision.model_dump(), **self.vision})
            text = TextConfig(**{**config.text.model_dump(), **self.text})
        except ValidationError as error:
            reason = error.errors()[0]
            raise BackboneError(
                f"the configuration beside {where} makes no CLIP: {'.'.join(map(str, reason['loc']))} {reason['msg']}"
            ) from None
        return config.model_copy(update={"vision": vision, "text": text})

    def applied_to(self, preset: Preset, where: Path) -> Preset:
        """Return a preset with what the files say; errors as `applied`."""
        return preset.model_copy(update={"config": self.applied(preset.config, where), **self.colours})


def read_side_config(folder: Path, huggingface: dict[str, Any]) -> SideConfig | None:
    """Read the configuration files of a folder of weights.

    Args:
        folder: with open_clip_config.json and preprocessor_config.json, where there are any.
        huggingface: the content of config.json.

    Returns:
        None where nothing describes the towers.

    Raises:
        BackboneError: an activation that is not known, or a file of another form.
    """
    found = SideConfig()
    processor = read_json(folder / "preprocessor_config.json")
    mean, std = processor.get("image_mean"), processor.get("image_std")
    open_clip = read_json(folder / "open_clip_config.json")
    try:
        if "model_cfg" in open_clip:
            _add_open_clip(found, open_clip["model_cfg"])
            given = open_clip.get("preprocess_cfg", {})
            mean, std = given.get("mean", mean), given.get("std", std)
        elif "vision_config" in huggingface or "text_config" in huggingface:
            _add_huggingface(found, huggingface)
        if mean and std:
            found.colours = {"mean": tuple(map(float, mean)), "std": tuple(map(float, std))}
    except (TypeError, ValueError, KeyError, AttributeError, ZeroDivisionError) as error:
        raise BackboneError(
            f"the configuration in {folder} is of no known form ({error}); repair or remove it"
        ) from None
    return found if found.vision or found.text or found.colours else None


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise BackboneError(
            f"the configuration names the activation {name!r}, expected one of {sorted(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def _add_sizes(found: SideConfig, tower: str, values: dict[str, Any]) -> None:
    for theirs, ours in _SIZES.items():
        if isinstance(values.get(theirs), int):
            found.sizes[f"{tower}.{ours}"] = values[theirs]


def _add_huggingface(found: SideConfig, values: dict[str, Any]) -> None:
    """Add a config.json of transformers' CLIP, which leaves out what equals its defaults."""
    for tower, heads in (("vision", 12), ("text", 8)):
        given = {**(values.get(f"{tower}_config") or {}), **(values.get(f"{tower}_config_dict") or {})}
        fields = {
            "activation": _activation(given.get("hidden_act", "quick_gelu")),
            "heads": int(given.get("num_attention_heads", heads)),
            "norm_eps": float(given.get("layer_norm_eps", 1e-5)),
        }
        getattr(found, tower).update(fields)
        _add_sizes(found, tower, given)
    if isinstance(values.get("projection_dim"), int):
        found.sizes["embed_dim"] = values["projection_dim"]


def _add_open_clip(found: SideConfig, values: dict[str, Any]) -> None:
    """Add the model_cfg of open_clip, whose defaults are GELU, heads of 64 in the image tower, 8 in the text tower."""
    for tower in ("vision", "text"):
        given = values.get(f"{tower}_cfg") or {}
        approximate = (given.get("act_kwargs") or {}).get("approximate")
        fields = {
            "activation": "quick_gelu"
            if values.get("quick_gelu")
            else "gelu_tanh"
            if approximate == "tanh"
            else "gelu",
            "norm_eps": float((given.get("norm_kwargs") or {}).get("eps", 1e-5)),
        }
        if tower == "text":
            fields["heads"] = int(given.get("heads", 8))
        elif "width" in given:
            fields["heads"] = int(given["width"]) // int(given.get("head_width", 64))
        getattr(found, tower).update(fields)
        _add_sizes(found, tower, given)
    if isinstance(values.get("embed_dim"), int):
        found.sizes["embed_dim"] = values["embed_dim"]


def infer_preset(
    state: State,
    file: Path,
    *,
    named: Preset | None,
    activation: Activation | None,
    huggingface: dict[str, Any] | None,
) -> Preset:
    """Return the preset of weights that are not zsad's own: the named one, a known shape's, or one made of the shapes.

    Args:
        state: the tensors, under zsad's names.
        file: where they were read.
        named: the preset that the user named.
        activation: overrides what is found.
        huggingface: the content of config.json beside the file; None where nothing beside it counts.

    Raises:
        BackboneError: shapes that make no CLIP, or files that do not go with them.
    """
    found = None if huggingface is None else read_side_config(file.parent, huggingface)
    if named is not None:
        return activated(named if found is None else found.applied_to(named, file), activation)
    try:
        config = infer_config(state, activation=activation or "quick_gelu")
    except ValidationError as error:
        raise BackboneError(f"weights in {file} make no CLIP: {error.errors()[0]['msg']}") from None
    if found is not None:
        config = with_activation(found.applied(config, file), activation)
    elif activation is None:
        warnings.warn(
            f"no configuration lies beside {file}: activation quick_gelu (OpenAI's; LAION's weights need gelu), "
            f"{config.vision.heads} and {config.text.heads} heads are inferred; put its configuration beside it",
            InputWarning,
            stacklevel=3,
        )
    colours: dict[str, Any] = {} if found is None else found.colours
    for known in PRESETS.values():
        if activated(known, config.vision.activation).config == config:
            return known.model_copy(update={"config": config, **colours})
    taps = default_taps(config.vision.layers)
    return Preset(
        name=file.parent.name if file.name in WEIGHT_FILES else file.stem,
        clip=config,
        detection_size=default_detection_size(config.vision.patch_size),
        taps=taps,
        value_value=True,
        value_value_from=taps[0],
        description=f"CLIP ViT read from {file.name}, its shape inferred from the tensors.",
        **colours,
    )
