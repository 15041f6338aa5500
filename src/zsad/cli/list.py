"""`zsad list`: methods, backbones and bundled models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal


def list_command(what: Literal["methods", "backbones", "models"] = "models", /) -> int:
    """List methods, backbones or bundled models.

    Args:
        what: Which of them.
    """
    from zsad.cli.console import say

    table = {"methods": _methods, "backbones": _backbones, "models": _models}[what]()
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]) - 1)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        say("  ".join([*cells, row[-1]]).rstrip())
    return 0


def _methods() -> list[tuple[str, ...]]:
    from zsad.methods.registry import find, names

    rows: list[tuple[str, ...]] = [("method", "trains", "written from", "routes", "paper")]
    for name in names():
        entry = find(name)
        trains = f"{entry.parameters:,}" if entry.parameters else ("yes" if entry.needs_training else "-")
        source = f"{entry.sources} only" if entry.sources != "paper and code" else entry.sources
        reference = f"{entry.paper} ({entry.venue}" + (f", arXiv {entry.arxiv})" if entry.arxiv else ")")
        rows.append((name, trains, source, entry.routes or "-", reference))
    return rows


def _backbones() -> list[tuple[str, ...]]:
    from zsad.clip.config import preset, preset_names
    from zsad.errors import ZsadError

    rows: list[tuple[str, ...]] = [("backbone", "input", "layers", "description")]
    for name in preset_names():
        try:
            known = preset(name)
        except ZsadError as error:
            rows.append((name, "-", "-", f"cannot be used: {error}"))
            continue
        taps = ",".join(str(tap) for tap in known.taps)
        rows.append((name, f"{known.detection_size} px", taps, known.description))
    return rows


def _models() -> list[tuple[str, ...]]:
    from zsad.methods.registry import METHODS
    from zsad.train.checkpoint import bundled_models, read_card, resolve_model

    rows: list[tuple[str, ...]] = [("model", "method", "backbone", "image score", "trained on")]
    for name in bundled_models():
        card = read_card(resolve_model(name))
        sets = ", ".join(card.training.datasets) if card.training else "-"
        rows.append((name, card.method, card.backbone.name, _image_score(card.config), sets))
    for name, entry in METHODS.items():
        if not entry.needs_training:
            rows.append((f"{name}-tiny", name, "zsad-tiny", "the method's", "- (hand-written prompts)"))
            rows.append((name, name, "--backbone NAME", "the method's", "- (hand-written prompts)"))
    return rows


def _image_score(config: Mapping[str, Any]) -> str:
    """Parts of a model's image score: a method's score setting in words, and oddness where it is fused in."""
    parts = str(config.get("score", "the method's")).replace("_", " ")
    return f"{parts}, oddness" if config.get("oddness") == "fused" else parts
