"""Axes of drawings: round numbers, and boxes that know their values."""

from __future__ import annotations

import math
from dataclasses import dataclass

from zsad.studies.report.canvas import Drawing


def ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """At most `most` round numbers within [low, high]."""
    span = max(high - low, 1e-12)
    for power in range(math.floor(math.log10(span)) - 1, math.floor(math.log10(span)) + 2):
        for factor in (1, 2, 2.5, 5):
            step = factor * 10.0**power
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if 1 <= last - first + 1 <= most:
                return [index * step for index in range(first, last + 1)]
    return [low, high]


@dataclass(frozen=True, slots=True)
class Axis:
    """A box on the sheet and the values of its edges; places outside are moved to the edge."""

    x: float
    y: float
    width: float
    height: float
    x0: float
    x1: float
    y0: float
    y1: float

    @property
    def bottom(self) -> float:
        return self.y + self.height

    def place(self, first: float, second: float) -> tuple[float, float]:
        across = min(max((first - self.x0) / max(self.x1 - self.x0, 1e-12), 0.0), 1.0)
        up = min(max((second - self.y0) / max(self.y1 - self.y0, 1e-12), 0.0), 1.0)
        return self.x + float(across) * self.width, self.bottom - float(up) * self.height

    def frame(self, sheet: Drawing, *, labelled: bool, percent: bool = False) -> None:
        """Grid lines at round values, numbers beside them, and the base line."""
        for tick in ticks(self.y0, self.y1, most=5):
            y = self.place(self.x0, tick)[1]
            sheet.line([(self.x, y), (self.x + self.width, y)], "line")
            if labelled:
                text = f"{100 * tick:.4g} %" if percent else f"{tick:.6g}"
                sheet.text(self.x - 6, y + 4, text, size=11, anchor="end")
        sheet.line([(self.x, self.bottom), (self.x + self.width, self.bottom)], "soft")
