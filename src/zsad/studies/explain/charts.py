"""What all figures share: colours, names that fit, axes and legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zsad.studies.explain.explanation import Explanation
from zsad.studies.report.canvas import Drawing, shortened, text_width

POOL_COLOURS = ("normal", "anomalous", "#4c6bb5", "accent", "#8a7a1f", "#5b5563")
GROUP_COLOURS = {"normal": "normal", "anomalous": "anomalous", "unlabelled": "soft"}
MARGIN = 16.0
WIDEST = 1160.0  # of a figure, in CSS pixels


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with the name of its files, a title and what it shows."""

    name: str
    title: str
    caption: str
    drawing: Drawing


def short_names(names: Sequence[str], room: float) -> tuple[list[str], list[str]]:
    """Names that fit into `room` CSS pixels: the experts' own, or numbers and a key to them, else empty."""
    if all(text_width(name, 11) <= room for name in names):
        return list(names), []
    numbers = [str(index + 1) for index in range(len(names))]
    return numbers, [f"{number} {name}" for number, name in zip(numbers, names, strict=True)]


def wrapped(parts: Sequence[str], size: float, room: float) -> list[str]:
    """Parts put into lines no wider than `room` CSS pixels; one that is too long is shortened."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}  ·  {part}" if lines else part
        if lines and text_width(longer, size) <= room:
            lines[-1] = longer
        else:
            lines.append(shortened(part, size, room))
    return lines


def legend(sheet: Drawing, keys: Sequence[tuple[str, str, bool]], x: float, *, lines: bool = False) -> float:
    """A row of keys (name, colour, dashed or square); returns where the row ends."""
    y = 22.0
    for name, colour, odd in keys:
        room = text_width(name, 12)
        if x + 30 + room > sheet.width and x > MARGIN:
            x, y = MARGIN, y + 20
        if lines:
            sheet.line([(x, y - 4), (x + 24, y - 4)], colour, width=2, dashed=odd)
        elif odd:
            sheet.rect(x + 9, y - 10, 11, 11, colour)
        else:
            sheet.circle(x + 15, y - 4.5, 5.5, colour)
        sheet.text(x + 30, y, name, size=12, fill="ink")
        x += 30 + room + 22
    return y + 4


def titled(found: Explanation, title: str, pool: str) -> str:
    """The title, with the pool's name where several pools route patches."""
    several = sum(known.unit == "patch" for known in found.pools.values()) > 1
    return f"{title}: {pool}" if several else title


def slug(name: str) -> str:
    """A name for a file."""
    return "".join(char if char.isascii() and char.isalnum() else "_" for char in name.lower()) or "pool"
