"""Files of weights: which ones a path means, reading them, and what they are worth (a hash of their content).

Only safetensors are read: pickles (`.pt`, `.bin`, `.pth`) can run code when opened and are refused.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from zsad.clip.convert import State
from zsad.clip.hub import WEIGHT_FILES
from zsad.errors import BackboneError
from zsad.files import file_sha256, parse_json

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
_CONVERT = (
    'convert it once: python -c "import torch, safetensors.torch as s; m = {how}; '
    "s.save_file({{k: v.clone().contiguous() for k, v in m.items()}}, 'model.safetensors')\""
)


def weight_files(source: Path) -> list[Path]:
    """The safetensors files of a file or folder, in a fixed order.

    Raises:
        BackboneError: nothing there, nothing to use there, or a pickle.
    """
    if source.is_dir():
        for name in WEIGHT_FILES:
            if (source / name).is_file():
                return weight_files(source / name)
        pickles = sorted(path.name for path in source.iterdir() if path.suffix in PICKLES)
        if pickles:
            raise _refused(source / pickles[0])
        raise BackboneError(
            f"folder {source} holds none of {', '.join(WEIGHT_FILES)}; name the weights' file"
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


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object beside the weights; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"cannot read {path} beside the weights ({error}); repair or remove it") from None
    return content if isinstance(content, dict) else {}
