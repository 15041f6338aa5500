"""How long the rest will take, from what the work so far has taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean


@dataclass(slots=True)
class Estimate:
    """Seconds so far, by method; a method not seen yet is taken as the mean of those that were."""

    _scoring: dict[str, list[float]] = field(default_factory=dict)  # an image
    _training: dict[str, list[float]] = field(default_factory=dict)
    _reading: list[float] = field(default_factory=list)  # an image's features, for all methods

    def read(self, images: int, seconds: float) -> None:
        """Takes notice of images whose features are there now."""
        if images:
            self._reading.append(seconds / images)

    def scored(self, label: str, images: int, seconds: float) -> None:
        """Takes notice of a cell without its training."""
        if images:
            self._scoring.setdefault(label, []).append(seconds / images)

    def trained(self, label: str, seconds: float) -> None:
        """Takes notice of a training."""
        self._training.setdefault(label, []).append(seconds)

    def left(
        self, *, cells: Iterable[tuple[str, int]], runs: Iterable[str], images: int, workers: int
    ) -> float | None:
        """Seconds for what is left, shared by `workers`; None before anything is known.

        Args:
            cells: label and images of each.
            runs: label of each training.
            images: whose features are not there yet.
            workers: processes at work.

        Example:
            >>> estimate = Estimate()
            >>> estimate.scored("clip", 10, 2.0)
            >>> estimate.left(cells=[("clip", 20), ("mpa", 5)], runs=["mpa"], images=0, workers=1)
            5.0
        """
        if not self._scoring:
            return None
        seconds = sum(images * _of(self._scoring, label) for label, images in cells)
        seconds += sum(_of(self._training, label) for label in runs)
        seconds += images * (fmean(self._reading) if self._reading else 0.0)
        return seconds / workers


def _of(known: dict[str, list[float]], label: str) -> float:
    """The mean of a label; without any that of the others, 0 without those."""
    if label in known:
        return fmean(known[label])
    return fmean(map(fmean, known.values())) if known else 0.0
