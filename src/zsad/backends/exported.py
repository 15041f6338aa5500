"""Base class of the runtimes of exported graphs: the graph's card decides what goes in and what comes out."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zsad.backends.backend import Backend, BackendOutput, Float32, Precision
from zsad.backends.graph_card import ExportCard
from zsad.device import available_cores
from zsad.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from zsad.card import Card
    from zsad.nn.maps import MapSpec


class ExportedBackend(Backend):
    """An exported graph in a runtime.

    Args:
        graph: the file.
        card: of the graph, already checked against it.
        precision: arithmetic that the runtime may use; "auto" leaves the choice to the runtime.
        threads: CPU threads; None means one per core.

    Raises:
        ConfigError: the runtime is not installed, or does not support the precision.
        CheckpointError: the runtime cannot load the graph.
    """

    runtime: str
    """Name of the runtime in messages."""

    def __init__(
        self, graph: Path, card: ExportCard, *, precision: Precision = "auto", threads: int | None = None
    ) -> None:
        self.graph, self.card = graph, card
        self.threads = threads or available_cores()
        self.precision = self._open(precision)

    @abstractmethod
    def _open(self, precision: Precision) -> str:
        """Load the graph and return the precision in which it runs."""

    @abstractmethod
    def _outputs(self, pixels: Float32) -> dict[str, Float32]:
        """Return the graph's outputs by name."""

    @property
    def spec(self) -> MapSpec:
        """Parameters that turn grids into maps."""
        return self.card.model.map_spec

    @property
    def batch_size(self) -> int:
        """Default number of images per batch: one, since larger batches are not faster on a CPU."""
        return 1

    def run(self, pixels: Float32, object_names: tuple[str, ...] | None = None) -> BackendOutput:
        """Compute the graph's outputs for pixels (B, 3, H, W).

        Raises:
            ConfigError: pixels of another size, or object names other than the one in the graph.
            CheckpointError: the runtime fails.
        """
        card = self.card
        if pixels.shape[1:] != (3, *card.image):
            raise ConfigError(
                f"{self.graph} takes pixels of (3, {card.image[0]}, {card.image[1]}), got {pixels.shape[1:]}; use its "
                f"own preprocessing, or export the model at that image size"
            )
        self._check(object_names)
        try:
            outputs = self._outputs(np.ascontiguousarray(pixels, dtype=np.float32))
        except Exception as error:  # the runtimes' own kinds of error
            raise self._refused(error) from error
        return BackendOutput(
            outputs["logits"],
            outputs["score"],
            {name: outputs[f"routing.{name}"] for name in card.routing},
            {name: outputs[f"terms.{name}"] for name in card.terms},
        )

    def _check(self, object_names: tuple[str, ...] | None) -> None:
        if object_names is None or not self.card.names_object:
            return
        exported = self.card.object_name or "object"
        other = next((name for name in object_names if name not in (exported, "object")), None)
        if other is not None:
            raise ConfigError(
                f"{self.graph} was exported for {exported!r}, not for {other!r}; export the model again with "
                f"--object {other!r}, or say --object {exported!r}"
            )

    def identity(self, card: Card) -> str:
        """Return the identity of the model it was exported from; int8 graphs have one of their own."""
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
