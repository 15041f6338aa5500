"""The files of an exported model: a graph and the card beside it. Reading them needs no PyTorch.

| file | content |
|---|---|
| model.onnx, model.int8.onnx | the graph with its weights, for ONNX Runtime and OpenVINO |
| model.xml and model.bin | the graph in OpenVINO's own format |
| GRAPH.json | the card: model, preprocessing, inputs and outputs, hash, proof |
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

import zsad
from zsad.card import Card
from zsad.errors import CheckpointError, ConfigError
from zsad.files import file_sha256, parse_document

FORMAT = 1
SUFFIXES = {".onnx": "onnx", ".xml": "openvino"}
_GRAPHS = ("model.onnx", "model.xml", "model.int8.onnx", "model.int8.xml")
Target = Literal["onnx", "openvino"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Proof(_Frozen):
    """Differences between an exported graph and its model over some images."""

    images: int = Field(ge=1, description="Images compared.")
    source: str = Field(description="What they are.")
    score_error: float = Field(ge=0, description="Largest difference of image scores.")
    map_error: float = Field(ge=0, description="Largest difference of map values.")
    routing_error: float = Field(default=0.0, ge=0, description="Largest difference of experts' weights.")
    cosine: float = Field(description="Smallest cosine between an image's grids.")
    score_limit: float = Field(description="Score difference that was allowed.")
    map_limit: float = Field(description="Map difference that was allowed.")
    quality: dict[str, dict[str, float | None]] = Field(
        default_factory=dict,
        description="Metrics on labelled images, each of the model and of the graph: fractions, None undefined.",
    )


class ExportCard(_Frozen):
    """Everything needed to run a graph: its model, inputs, outputs and files."""

    format: int = Field(default=FORMAT, description="Version of the layout of this card.")
    zsad: str = Field(default=zsad.__version__, description="Version of zsad that exported it.")
    name: str = Field(description="By which the model was asked for.")
    target: Target
    precision: Literal["fp32", "int8"] = "fp32"
    model: Card = Field(description="The model's own card: method, backbone, preprocessing, maps, training.")
    identity: str = Field(description="Hash of all that decides a score, up to rounding.")
    object_name: str | None = Field(
        default=None,
        validation_alias="shows",
        serialization_alias="shows",
        description="Name of the object in prompts inside the graph.",
    )
    image: tuple[int, int] = Field(description="Rows and columns of the pixels that go in.")
    grid: tuple[int, int, int] = Field(description="Shape (L, h, w) of the grids that come out.")
    routing: tuple[str, ...] = Field(default=(), description="Pools whose weights come out, as routing.NAME.")
    terms: tuple[str, ...] = Field(default=(), description="Parts of the score that come out, as terms.NAME.")
    calibration: dict[str, str] | None = Field(
        default=None, description="File of a calibration beside the graph, and its sha256."
    )
    flops: float | None = Field(default=None, description="Floating-point operations for an image.")
    files: dict[str, str] = Field(min_length=1, description="sha256 of the graph's files.")
    proof: Proof

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the graph's outputs, in order."""
        routing, terms = (
            (f"routing.{name}" for name in self.routing),
            (f"terms.{name}" for name in self.terms),
        )
        return ("logits", "score", *routing, *terms)

    @property
    def names_object(self) -> bool:
        """True if prompts inside the graph name what an image shows."""
        return self.model.config.get("names") == "data"


def card_path(graph: Path) -> Path:
    """Return the path of a graph's card."""
    return graph.with_name(graph.name + ".json")


def find_graph(model: str | Path, *, target: str | None = None) -> Path | None:
    """Return the graph that `model` refers to, or None.

    Args:
        model: a graph, its card, or a folder with one.
        target: preferred kind if a folder holds both; OpenVINO also reads ONNX graphs.
    """
    path = Path(model).expanduser()
    if path.is_file():
        graph = path.with_name(path.name.removesuffix(".json"))
        return graph if graph.suffix in SUFFIXES else None
    graphs = [path / name for name in _GRAPHS if (path / name).is_file()]
    preferred = [graph for graph in graphs if target is None or SUFFIXES[graph.suffix] == target]
    return next(iter(preferred or (graphs if target == "openvino" else [])), None)


def read_export(graph: Path) -> ExportCard:
    """Read the card of a graph and verify the hashes of the graph's files.

    Raises:
        CheckpointError: the card is missing, broken or of a newer format, or files are missing or changed.
    """
    path = card_path(graph)
    try:
        values = parse_document(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{graph} has no card {path.name} beside it, so zsad does not know how to use it; export the model again"
        ) from None
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"the card {path} cannot be read ({reason}); export the model again") from error
    card = _validated(values, path)
    if graph.name not in card.files:
        raise CheckpointError(
            f"the card {path} is of {', '.join(card.files)}, not of {graph.name}; export again"
        )
    for name, digest in card.files.items():
        _check_file(graph.with_name(Path(name).name), digest)
    return card


def _validated(values: Any, path: Path) -> ExportCard:
    written = values.get("format") if isinstance(values, dict) else None
    if isinstance(written, int) and written > FORMAT:
        raise CheckpointError(
            f"{path} has format {written} (of zsad {values.get('zsad')}), this zsad {zsad.__version__} reads up to "
            f"{FORMAT}; upgrade with: pip install -U zsad"
        )
    try:
        return ExportCard.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise CheckpointError(
            f"the card {path} cannot be used: {where}: {first['msg'].lower()}; export the model again"
        ) from None


def _check_file(path: Path, digest: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing, its graph cannot run without it; export the model again")
    if file_sha256(path) != digest:
        raise CheckpointError(
            f"{path} is not the file that its card describes (sha256 differs): changed or cut off; export again"
        )


def missing_runtime(target: str, module: str, error: ImportError) -> ConfigError:
    """Return the error for a missing package that runs or writes graphs."""
    reason = " ".join(str(error).split())
    return ConfigError(f"{module} cannot be imported ({reason}); get it with: pip install 'zsad[{target}]'")
