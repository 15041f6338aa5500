"""Parts that the figures of an explanation share: colours, names that fit, keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zsad.studies.explain.explanation import Explanation
from zsad.studies.report.drawing import COLOURS, INK, SOFT, Drawing, shortened, text_width

POOL_COLOURS = tuple(
    COLOURS[name] for name in ("normal", "anomalous", "series1", "accent", "series5", "series10")
)
GROUP_COLOURS = {"normal": COLOURS["normal"], "anomalous": COLOURS["anomalous"], "unlabelled": SOFT}
MARGIN = 16.0
MAX_WIDTH = 1160.0  # of a figure, in CSS pixels


@dataclass(frozen=True, slots=True)
class ExplanationFigure:
    """A drawing with the name of its files, a title and a caption."""

    name: str
    title: str
    caption: str
    drawing: Drawing


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A name in a key, with its colour and its marker or, where `line` is given, a stretch of line in that style."""

    name: str
    colour: str
    marker: str = "o"
    line: str | tuple[int, tuple[float, ...]] = ""


def key_places(entries: Sequence[KeyEntry], width: float) -> tuple[list[tuple[float, float]], float]:
    """Return where the entries of a key begin (x, base line) on a drawing of a width, and where the key ends."""
    places = []
    x, y = MARGIN, 22.0
    for entry in entries:
        room = 52 + text_width(entry.name, 12)
        if x + room - 22 > width and x > MARGIN:
            x, y = MARGIN, y + 20
        places.append((x, y))
        x += room
    return places, y + 4


def draw_key(drawing: Drawing, entries: Sequence[KeyEntry]) -> float:
    """Draw a key at the top; return where it ends."""
    places, end = key_places(entries, drawing.width)
    for entry, (x, y) in zip(entries, places, strict=True):
        if entry.line:
            drawing.line((x, x + 24), (y - 4, y - 4), color=entry.colour, linewidth=2, linestyle=entry.line)
        else:
            drawing.line(
                (x + 15, x + 15), (y - 4, y - 4), color=entry.colour, marker=entry.marker, markersize=10
            )
        drawing.text(x + 30, y, entry.name, color=INK)
    return end


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
