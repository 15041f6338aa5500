"""Hand-written prompts as data: state phrases and sentence templates."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from typing import Any, cast

_toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


@lru_cache(maxsize=1)
def prompt_table() -> dict[str, Any]:
    """The content of `states.toml`: `states` (normal, abnormal), `templates` by name, `papers` by name."""
    return cast("dict[str, Any]", _toml.loads((files(__name__) / "states.toml").read_text(encoding="utf-8")))


def state_prompts(object_name: str, *, templates: str = "ensemble") -> tuple[list[str], list[str]]:
    """All normal and all abnormal sentences for an object: every state phrase in every template.

    Args:
        object_name: such as "object", "bottle" or "brain scan".
        templates: name of a group of templates.

    Raises:
        KeyError: no group of that name.

    Example:
        >>> normal, abnormal = state_prompts("bottle", templates="single")
        >>> normal[1], abnormal[0]
        ('a photo of a flawless bottle.', 'a photo of a damaged bottle.')
    """
    table = prompt_table()
    return _compose(object_name, table["states"], table["templates"][templates])


def published_prompts(
    paper: str, object_name: str, *, templates: int | None = None
) -> tuple[list[str], list[str]]:
    """All normal and all abnormal sentences that a paper uses for an object.

    Args:
        paper: "clip" (one sentence a state), "winclip" (Jeong et al., CVPR 2023, supplement), "aprilgan" (Chen et
            al., 2023), "adaclip" (Cao et al., ECCV 2024, public code), or "moeclip" (Park et al., CVPR 2026, public
            code).
        object_name: such as "object" or "bottle".
        templates: only the first so many templates; None: all.

    Raises:
        KeyError: no list of that paper.

    Example:
        >>> [len(sentences) for sentences in published_prompts("winclip", "bottle")]
        [154, 88]
    """
    lists = prompt_table()["papers"][paper]
    return _compose(object_name, lists, lists["templates"][:templates])


def _compose(
    object_name: str, states: Mapping[str, Sequence[str]], templates: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Every phrase of both states in every template."""
    normal, abnormal = (
        [
            template.replace("{state}", phrase.replace("{}", object_name))
            for phrase in states[state]
            for template in templates
        ]
        for state in ("normal", "abnormal")
    )
    return normal, abnormal


def class_name(dataset: str, name: str, *, method: str = "") -> str:
    """Return the words that prompts use for an object class: those of a list, or its own name.

    Args:
        dataset: such as "MVTec"; case and punctuation do not matter.
        name: of the class in that data set.
        method: whose prompts they are; some have a published list of their own.

    Example:
        >>> class_name("MVTec", "cable"), class_name("mvtec-ad", "metal_nut"), class_name("BrainMRI", "brain")
        ('cable', 'metal nut', 'scan')
        >>> class_name("MVTec", "cable", method="moeclip")
        'top view of three cables'
    """
    names = _class_names()
    for entry in (names.get((_letters(dataset), method), {}), names.get((_letters(dataset), ""), {})):
        if words := entry.get("classes", {}).get(name) or entry.get("every"):
            return str(words)
    return name.replace("_", " ")


@lru_cache(maxsize=1)
def _class_names() -> dict[tuple[str, str], dict[str, Any]]:
    """The entries of `class_names.toml` by every spelling of their data sets, and by method."""
    table = _toml.loads((files(__name__) / "class_names.toml").read_text(encoding="utf-8"))
    return {
        (_letters(name), entry.get("method", "")): entry for entry in table["names"] for name in entry["sets"]
    }


def _letters(text: str) -> str:
    return "".join(letter for letter in text.casefold() if letter.isalnum())
