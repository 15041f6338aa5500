"""Fetching weights from the Hugging Face hub, into its own cache.

The package `huggingface_hub` is optional; its cache folder, tokens and `HF_HUB_OFFLINE` are honoured by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zsad.errors import HubError
from zsad.files import parse_json

# open_clip's file first: some repositories hold the image tower alone as `model.safetensors` beside it.
WEIGHT_FILES = ("open_clip_model.safetensors", "model.safetensors", "model.safetensors.index.json")
SIDE_FILES = ("open_clip_config.json", "config.json", "preprocessor_config.json", "tokenizer.json")


def fetch(repository: str, *, token: bool | None = None) -> Path:
    """The local folder of a repository's CLIP weights and configs, downloaded unless cached.

    Args:
        repository: "owner/name".
        token: False sends none; None sends that of the user's login, which only a repository that the user named may
            get.

    Raises:
        HubError: the package is not installed, the hub cannot be reached, or the repository has no weights.
    """
    hub = _package(repository)
    try:
        # Unlike a download, this call does not retry for half a minute when there is no network.
        siblings = hub.HfApi().model_info(repository, timeout=10, token=token).siblings or ()
    except (hub.errors.RepositoryNotFoundError, hub.errors.HFValidationError):
        raise HubError(
            f"the hub has no public repository {repository!r}; check the name, or give a local file with "
            f"`--weights PATH`"
        ) from None
    except Exception as error:  # whatever the HTTP client of the day raises: then only the cache is left
        return _cached(hub, repository, error)
    return _download(hub, repository, [sibling.rfilename for sibling in siblings], token=token)


def _package(repository: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise HubError(
            f"the weights of {repository} are not here and huggingface-hub is not installed; run "
            f"`pip install 'zsad[hub]'`, or download them by hand and pass `--weights PATH`"
        ) from None
    return huggingface_hub


def _download(hub: Any, repository: str, present: Sequence[str], *, token: bool | None) -> Path:
    name = next((name for name in WEIGHT_FILES if name in present), None)
    if name is None:
        raise HubError(
            f"{repository} holds no safetensors weights (looked for {', '.join(WEIGHT_FILES)}); convert its "
            f"weights once with torch and safetensors and pass `--weights PATH`"
        )
    try:
        path = Path(hub.hf_hub_download(repository, name, token=token))
        for other in (*_shards(path), *(side for side in SIDE_FILES if side in present)):
            hub.hf_hub_download(repository, other, token=token)
    except Exception as error:
        raise HubError(
            f"the download of {repository} broke off ({type(error).__name__}); try again, it resumes, or "
            f"pass `--weights PATH`"
        ) from None
    return path.parent


def _cached(hub: Any, repository: str, error: Exception) -> Path:
    """The folder of weights that were downloaded before."""
    for name in WEIGHT_FILES:
        path = hub.try_to_load_from_cache(repository, name)
        if isinstance(path, str):
            return Path(path).parent
    raise HubError(
        f"cannot fetch {repository} from the hub ({type(error).__name__}: no connection) and it is "
        f"not in the local cache; connect once, or copy its safetensors file here and pass `--weights PATH`"
    ) from None


def _shards(index: Path) -> list[str]:
    """The shards that an index names; none for a single file."""
    if not index.name.endswith(".index.json"):
        return []
    return sorted(set(parse_json(index.read_text(encoding="utf-8")).get("weight_map", {}).values()))
