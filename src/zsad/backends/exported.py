"""What the runtimes of exported graphs share: the card decides what goes in and what comes out."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zsad.backends.base import Answer, Backend, Float32, Precision
from zsad.backends.graph_card import ExportCard
from zsad.device import available_cores
from zsad.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from zsad.card import Card
    from zsad.nn.maps import MapSpec


class ExportedBackend(Backend):
    """A graph with its card in the hands of a runtime.

    Args:
        graph: the file.
        card: of the graph, already checked against it.
        precision: in which the runtime may compute; "auto" is the runtime's choice.
        threads: of the processor; None: one a core.

    Raises:
        ConfigError: the runtime is not installed, or lacks the precision.
        CheckpointError: the runtime does not take the graph.
    """

    runtime: str
    """What it is called in sentences."""

    def __init__(
        self, graph: Path, card: ExportCard, *, precision: Precision = "auto", threads: int | None = None
    ) -> None:
        self.graph, self.card = graph, card
        self.threads = threads or available_cores()
        self.precision = self._open(precision)

    @abstractmethod
    def _open(self, precision: Precision) -> str:
        """Loads the graph; returns the precision in which it runs."""

    @abstractmethod
    def _outputs(self, pixels: Float32) -> dict[str, Float32]:
        """The graph's outputs by name."""

    @property
    def spec(self) -> MapSpec:
        """How grids become maps."""
        return self.card.model.map_spec

    @property
    def batch_size(self) -> int:
        """One: larger batches gain nothing on a processor."""
        return 1

    def run(self, pixels: Float32, words: tuple[str, ...] | None = None) -> Answer:
        """The graph's outputs.

        Raises:
            ConfigError: pixels of another size, or images that show something else than the graph was made for.
            CheckpointError: the runtime gives up on the graph.
        """
        card = self.card
        if pixels.shape[1:] != (3, *card.image):
            raise ConfigError(
                f"{self.graph} takes pixels of (3, {card.image[0]}, {card.image[1]}), got {pixels.shape[1:]}; use its "
                f"own preprocessing, or export the model at that image size"
            )
        self._check(words)
        try:
            outputs = self._outputs(np.ascontiguousarray(pixels, dtype=np.float32))
        except Exception as error:  # the runtimes' own kinds of error
            raise self._refused(error) from error
        return Answer(
            outputs["logits"],
            outputs["score"],
            {name: outputs[f"routing.{name}"] for name in card.routing},
            {name: outputs[f"terms.{name}"] for name in card.terms},
        )

    def _check(self, words: tuple[str, ...] | None) -> None:
        if words is None or not self.card.names_object:
            return
        own = self.card.shows or "object"
        other = next((word for word in words if word not in (own, "object")), None)
        if other is not None:
            raise ConfigError(
                f"{self.graph} was exported for {own!r}, not for {other!r}; export the model again with "
                f"--object {other!r}, or say --object {own!r}"
            )

    def identity(self, card: Card) -> str:
        """That of the model it was made from; of its own where eight bits changed it."""
        if self.card.precision == "fp32":
            return self.card.identity
        return hashlib.sha256((self.card.identity + "".join(self.card.files.values())).encode()).hexdigest()[
            :16
        ]

    def _refused(self, error: Exception) -> CheckpointError:
        reason = " ".join(str(error).split())[:300]
        return CheckpointError(
            f"{self.runtime} does not take {self.graph} ({reason}); update it or export again"
        )
