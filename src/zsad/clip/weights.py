"""Loading a backbone: from a preset's name, a safetensors file, a folder, or the Hugging Face hub.

Only safetensors are read: pickles (`.pt`, `.bin`, `.pth`) can run code when opened and are refused.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zsad.clip import hub
from zsad.clip.config import (
    ASSETS,
    TINY,
    Activation,
    CLIPConfig,
    Preset,
    activated,
    nearest,
    preset,
    preset_names,
    read_json,
    read_preset,
)
from zsad.clip.convert import OWN_NAME, State, to_zsad
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.errors import BackboneError, ConfigError, HubError
from zsad.files import file_sha256, parse_json

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_CONVERT = (
    'convert it once: python -c "import torch, safetensors.torch as s; m = {how}; '
    "s.save_file({{k: v.clone().contiguous() for k, v in m.items()}}, 'model.safetensors')\""
)


@dataclass(slots=True)
class Backbone:
    """A loaded CLIP and what belongs to it.

    Attributes:
        clip: both towers, frozen, in evaluation mode.
        tokenizer: of its text tower.
        preset: its shape, preprocessing and default taps.
        sha256: of the weights' file content ("random:<seed>" for random weights).
        name: of the preset, or of the file or folder it came from.
    """

    clip: CLIP
    tokenizer: Tokenizer
    preset: Preset
    sha256: str
    name: str

    def with_activation(self, activation: Activation) -> Backbone:
        """Return the same backbone, weights shared, with another activation in both towers."""
        preset = activated(self.preset, activation)
        if preset.config == self.clip.config:
            return self
        with torch.no_grad():
            clip = empty_clip(preset.config)
            clip.load_state_dict(self.clip.state_dict(), assign=True)
        return replace(self, clip=clip.freeze(), preset=preset)


def load_backbone(
    name_or_path: str | Path,
    *,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    activation: Activation | None = None,
    random_seed: int | None = None,
) -> Backbone:
    """Loads a frozen CLIP.

    Args:
        name_or_path: a preset's name, a `.safetensors` file, a folder that holds one, or a hub repository
            ("owner/name").
        weights: file or folder of weights for a named preset, instead of the hub.
        device: where to put it.
        dtype: of all weights.
        activation: overrides the preset's, or the config file's beside the weights. Shapes do not show it:
            weights without a config file are taken for OpenAI's ("quick_gelu"); LAION's need "gelu".
        random_seed: random weights for a named preset, for timings and tests.

    Raises:
        ConfigError: no such preset; the message names the nearest.
        BackboneError: weights missing, broken, of an unknown layout, a pickle, or not of the shape named.
        HubError: the hub is needed and cannot give them.
    """
    named, source = _resolve(name_or_path, weights)
    if random_seed is not None:
        if named is None:
            raise ConfigError(
                f"random weights need a preset's name, got {str(name_or_path)!r}: {preset_names()}"
            )
        named = activated(named, activation)
        return Backbone(
            clip=_random_clip(named.config, random_seed).to(device=device, dtype=dtype).freeze(),
            tokenizer=_tokenizer(named, None),
            preset=named,
            sha256=f"random:{random_seed}",
            name=named.name,
        )
    # A preset's own repositories hold its weights, whatever is written beside them.
    is_given = named is None or source is not None
    if source is None:
        source = _fetch(named, str(name_or_path))
    files = weight_files(source)
    state = read_weights(files)
    if OWN_NAME not in state:
        state = to_zsad(state)
    resolved = _preset_of(state, files[0], named=named, activation=activation, given=is_given)
    return Backbone(
        clip=_load_state(state, resolved, files[0], device=device, dtype=dtype),
        tokenizer=_tokenizer(resolved, files[0].parent),
        preset=resolved,
        sha256=weights_sha256(files),
        name=resolved.name,
    )


def _resolve(name_or_path: str | Path, weights: str | Path | None) -> tuple[Preset | None, Path | None]:
    """The preset that is named, if any, and the local file or folder to read, if any."""
    name = str(name_or_path)
    if name in preset_names():
        local = weights if weights is not None else (ASSETS / TINY if name == TINY else None)
        return preset(name), None if local is None else Path(local)
    path = Path(name_or_path)
    if weights is not None:
        return preset(name), Path(weights)  # raises, naming the nearest
    looks_local = isinstance(name_or_path, Path) or path.suffix in (".safetensors", *PICKLES)
    if path.exists() or looks_local:
        return None, path
    if nearest(name) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        preset(name)  # raises, naming the nearest
    return None, None


def _fetch(named: Preset | None, name: str) -> Path:
    """The local folder of hub weights: the first of a preset's repositories that has them."""
    if named is None:
        return hub.fetch(name)
    failures: list[HubError] = []
    for repository in named.hub_ids:
        try:
            return hub.fetch(repository, token=False)
        except HubError as error:
            failures.append(error)
    if failures:
        raise failures[0]
    raise BackboneError(f"{named.name} names no repository to fetch it from; pass `--weights PATH`")


def _preset_of(
    state: State, file: Path, *, named: Preset | None, activation: Activation | None, given: bool
) -> Preset:
    """The preset of loaded weights: the named one, ours beside the file, a known shape's, or made up.

    `given`: what lies beside the file counts.
    """
    config_file = file.parent / "config.json"
    side = read_json(config_file) if given else {}
    if "clip" in side:
        own = read_preset(config_file)
        return activated(
            own if named is None else named.model_copy(update={"config": own.config}), activation
        )
    from zsad.clip.side_config import infer_preset

    return infer_preset(state, file, named=named, activation=activation, huggingface=side if given else None)


class _SkipRandom(TorchFunctionMode):
    """Leaves tensors unfilled: drawing numbers for meta tensors imports PyTorch's compiler, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_"):
            return args[0] if args else (kwargs or {})["tensor"]  # `nn.init` passes it by name
        return func(*args, **(kwargs or {}))


def empty_clip(config: CLIPConfig) -> CLIP:
    """A model of shapes alone, on the meta device."""
    with torch.device("meta"), _SkipRandom():
        return CLIP(config)


def _load_state(
    state: State, preset: Preset, file: Path, *, device: str | torch.device, dtype: torch.dtype
) -> CLIP:
    """The model with the tensors in place of its own, which are never allocated."""
    clip = empty_clip(preset.config)
    expected = clip.state_dict()
    _check_shapes(state, expected, preset, file)
    placed = {name: _placed(state.pop(name), device=device, dtype=dtype) for name in expected}
    clip.load_state_dict(placed, assign=True)
    return clip.freeze()


def _placed(tensor: Tensor, *, device: str | torch.device, dtype: torch.dtype) -> Tensor:
    try:
        return tensor.to(device=device, dtype=dtype)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(
            f"cannot put the backbone on device {str(device)!r} ({reason}); use device 'cpu'"
        ) from None


def _check_shapes(state: State, expected: State, preset: Preset, file: Path) -> None:
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(())
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    other = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in expected
        if name in state and state[name].shape != expected[name].shape
    ]
    problems = [
        f"{len(names)} tensors {verb} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for verb, names in (("missing", missing), ("unknown", unknown), ("of another shape", other))
        if names
    ]
    if problems:
        raise BackboneError(
            f"weights in {file} do not fit {preset.name}: {'; '.join(problems)}; name the backbone they are "
            f"of, or fetch them again"
        )


def _tokenizer(preset: Preset, folder: Path | None) -> Tokenizer:
    """The tokenizer beside the weights, or CLIP's own where the vocabulary has its size."""
    if preset.name == TINY and folder is None:
        folder = ASSETS / TINY
    if folder is not None and (folder / "tokenizer.json").is_file():
        tokenizer = Tokenizer.from_file(folder / "tokenizer.json")
        if tokenizer.vocab_size > preset.config.text.vocab_size:
            raise BackboneError(
                f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, the text tower of "
                f"{preset.name} {preset.config.text.vocab_size}; they do not belong together"
            )
        return tokenizer
    tokenizer = Tokenizer()
    if tokenizer.vocab_size != preset.config.text.vocab_size:
        raise BackboneError(
            f"the text tower of {preset.name} has {preset.config.text.vocab_size} tokens, CLIP's vocabulary "
            f"{tokenizer.vocab_size}; put its tokenizer.json beside the weights"
        )
    return tokenizer


def _random_clip(config: CLIPConfig, seed: int) -> CLIP:
    """A model with weights that keep activations near unit size, from its own generator."""
    clip = empty_clip(config).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if name == "logit_scale":
                parameter.fill_(2.6592600)  # log(1 / 0.07)
            elif parameter.ndim == 1 and name.endswith("weight"):
                parameter.fill_(1.0)
            elif parameter.ndim == 1:
                parameter.normal_(std=0.02, generator=generator)
            else:
                fan_in = parameter.shape[1:].numel() if name.endswith("weight") else parameter.shape[0]
                parameter.normal_(std=fan_in**-0.5, generator=generator)
    return clip


def weight_files(source: Path) -> list[Path]:
    """The safetensors files of a file or folder, in a fixed order.

    Raises:
        BackboneError: nothing there, nothing to use there, or a pickle.
    """
    if source.is_dir():
        for name in hub.WEIGHT_FILES:
            if (source / name).is_file():
                return weight_files(source / name)
        pickles = sorted(path.name for path in source.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise _refused(source / pickles[0])
        raise BackboneError(
            f"folder {source} holds none of {', '.join(hub.WEIGHT_FILES)}; name the weights' file"
        )
    if not source.exists():
        raise BackboneError(
            f"no weights at {source}; give a .safetensors file, a folder with one, or a backbone's name"
        )
    if source.name.endswith(".index.json"):
        return _shards(source)
    if source.suffix in PICKLES:
        raise _refused(source)
    if source.suffix != ".safetensors":
        raise BackboneError(f"{source} is not a .safetensors file, the only kind of weights that zsad reads")
    return [source]


def _shards(index: Path) -> list[Path]:
    try:
        names = sorted(set(parse_json(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise BackboneError(f"{index} is no index of sharded weights; fetch it again") from None
    # Only the name counts: an index must not reach outside its folder.
    files = [index.parent / Path(str(name)).name for name in names]
    missing = [path.name for path in files if not path.is_file()]
    if missing or not files:
        raise BackboneError(
            f"{index} names {len(files)} shards, missing {missing[:3]}; fetch them into its folder"
        )
    return files


def _refused(path: Path) -> BackboneError:
    how = "torch.load(PATH, weights_only=True)"
    if path.suffix == ".pt":
        how = "torch.jit.load(PATH, 'cpu').state_dict()"
    command = _CONVERT.format(how=how.replace("PATH", repr(str(path))))
    return BackboneError(
        f"{path} is a pickle or TorchScript archive, which can run code when opened, so zsad refuses it; "
        f"if you trust it, {command}"
    )


def read_weights(files: list[Path]) -> State:
    """All tensors of safetensors files, in the names they have there.

    Raises:
        BackboneError: a file is broken, cut off or not safetensors.
    """
    state: State = {}
    for path in files:
        try:
            state.update(load_file(path))
        except (SafetensorError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            with path.open("rb") as file:
                if file.read(40).startswith(b"version https://git-lfs"):
                    reason = "it is a git-lfs pointer, not the weights"
            raise BackboneError(
                f"cannot read {path} of {path.stat().st_size} bytes as safetensors ({reason}); fetch it again"
            ) from None
    return state


def weights_sha256(files: list[Path]) -> str:
    """SHA-256 of a file's content; of several, that of their digests in order."""
    digests = [_file_sha256(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@lru_cache(maxsize=64)
def _file_sha256(path: str, size: int, modified: int) -> str:
    """Digest of a file; size and time are in the key of the cache alone."""
    return file_sha256(Path(path))
