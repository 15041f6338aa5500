"""Parts that the figures of an explanation share: colours, names that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zsad.studies.explain.explanation import Explanation
from zsad.studies.report.drawing import COLOURS, SOFT, Drawing, shortened, text_width

POOL_COLOURS = tuple(
    COLOURS[name] for name in ("normal", "anomalous", "series1", "accent", "series5", "series10")
)
GROUP_COLOURS = {"normal": COLOURS["normal"], "anomalous": COLOURS["anomalous"], "unlabelled": SOFT}
MAX_WIDTH = 1160.0  # of a figure, in CSS pixels


@dataclass(frozen=True, slots=True)
class ExplanationFigure:
    """A drawing with the name of its files, a title and a caption."""

    name: str
    title: str
    caption: str
    drawing: Drawing


def short_names(names: Sequence[str], room: float) -> tuple[list[str], list[str]]:
    """Return names that fit into `room` CSS pixels: the experts' own, or numbers and a key to them, else empty."""
    if all(text_width(name, 11) <= room for name in names):
        return list(names), []
    numbers = [str(index + 1) for index in range(len(names))]
    key = [f"{number} {name}" for number, name in zip(numbers, names, strict=True)]
    return numbers, [] if all(entry == f"{n} E{n}" for n, entry in zip(numbers, key, strict=True)) else key


def wrapped(parts: Sequence[str], size: float, room: float) -> list[str]:
    """Return parts put into lines no wider than `room` CSS pixels; one that is too long is shortened."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}  ·  {part}" if lines else part
        if lines and text_width(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(shortened(part, size, room))
    return lines


def titled(explanation: Explanation, title: str, pool: str) -> str:
    """Return the title, with the pool's name where several pools route patches."""
    several = sum(known.unit == "patch" for known in explanation.pools.values()) > 1
    return f"{title}: {pool}" if several else title


def slug(name: str) -> str:
    """Return a name for a file."""
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in name.lower()) or "pool"
