"""Fetching weights from the Hugging Face hub, into its own cache. The package `huggingface_hub` is optional."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zsad.errors import HubError

# open_clip's file first: some repositories hold the image tower alone as `model.safetensors` beside it.
WEIGHT_FILES = ("open_clip_model.safetensors", "model.safetensors", "model.safetensors.index.json")
SIDE_FILES = ("open_clip_config.json", "config.json", "preprocessor_config.json", "tokenizer.json")


def fetch(repository: str) -> Path:
    """The local folder of a repository's CLIP weights and configs, downloaded unless cached.

    Raises:
        HubError: the package is not installed, the hub cannot be reached, or there is nothing to use in the repository.
    """
    hub = _package(repository)
    for name in WEIGHT_FILES:
        path = _file(hub, repository, name)
        if path is None:
            continue
        if name.endswith(".index.json"):
            for shard in sorted(
                set(json.loads(path.read_text(encoding="utf-8")).get("weight_map", {}).values())
            ):
                _file(hub, repository, shard)
        for side in SIDE_FILES:
            _file(hub, repository, side)
        return path.parent
    raise HubError(
        f"{repository} holds no safetensors weights (looked for {', '.join(WEIGHT_FILES)}); convert its weights "
        f"with torch and safetensors once and pass `--weights PATH`"
    )


def _package(repository: str) -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise HubError(
            f"the weights of {repository} are not here and huggingface-hub is not installed; run "
            f"`pip install zsad[hub]`, or download them by hand and pass `--weights PATH`"
        ) from None
    return huggingface_hub


def _file(hub: Any, repository: str, name: str) -> Path | None:
    """A file of a repository, or None where the repository does not have it."""
    try:
        return Path(hub.hf_hub_download(repository, name))
    except hub.errors.LocalEntryNotFoundError as error:
        if name in SIDE_FILES:
            return None
        raise HubError(f"{_unreachable(repository, error)}") from None
    except hub.errors.EntryNotFoundError:
        return None
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError):
        raise HubError(
            f"the hub has no public repository {repository!r}; check the name, or pass weights with `--weights PATH`"
        ) from None
    except Exception as error:  # whatever the HTTP client of the day raises
        raise HubError(_unreachable(repository, error)) from None


def _unreachable(repository: str, error: Exception) -> str:
    return (
        f"cannot fetch {repository} from the hub ({type(error).__name__}: offline, or no connection) and it is not "
        f"in the local cache; connect once, or copy its safetensors file here and pass `--weights PATH`"
    )
