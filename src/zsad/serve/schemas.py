"""Answers of the service as data: the source of the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

from zsad.calibration.calibration import Calibration

Include = Literal["heatmap", "picture", "grid"]


class ProblemDetails(BaseModel):
    """Reason why a request was not served (RFC 9457)."""

    title: str = Field(description="The status in words.")
    status: int = Field(description="Of HTTP.")
    code: str = Field(description="A word that programs can act on, such as too_many_bytes.")
    detail: str = Field(description="One line for people: what is wrong and how to put it right.")
    request: str = Field(description="By which the log knows this request.")


class RegionAnswer(BaseModel):
    """A connected part above the pixel threshold, in pixels of the upright image."""

    box: tuple[float, float, float, float] = Field(description="x, y, width, height.")
    area: float
    score: float = Field(description="Highest map value.")
    mean: float = Field(description="Mean map value.")
    peak: tuple[float, float] = Field(description="(x, y) where the map is highest.")
    polygon: list[tuple[float, float]] = Field(description="Outer outline, clockwise.")


class HeatMap(BaseModel):
    """A layer to stretch over the picture."""

    png: str = Field(description="Data URI of a PNG, transparent where the map is low.")
    scale: tuple[float, float] = Field(description="Map values of the coldest and the hottest colour.")
    peak: float = Field(description="Highest map value.")


class PredictionAnswer(BaseModel):
    """Prediction for one image."""

    name: str = Field(description="Of the file as it was sent.")
    sha256: str = Field(description="Of the bytes that were sent: which image this answer is about.")
    size: tuple[int, int] = Field(description="Height and width of the upright image.")
    score: float = Field(description="In [0, 1], higher is more anomalous.")
    verdict: Literal["normal", "anomalous"] | None = Field(description="None without a calibration.")
    p_value: float | None = Field(
        default=None, description="How often a normal image scores as high; with a calibration."
    )
    threshold: float | None = Field(default=None, description="Scores above it are anomalous.")
    pixel_threshold: float | None = Field(default=None, description="Map values above it make regions.")
    regions: list[RegionAnswer] | None = Field(default=None, description="The highest first.")
    routing: dict[str, list[list[float]]] | None = Field(
        default=None, description="For each pool of experts their weights, a row a layer."
    )
    terms: dict[str, float] | None = Field(default=None, description="Parts of the score by name.")
    ms: float = Field(description="Time of the model for this image, of a batch its share.")
    model: str = Field(description="Identity of the model: equal where scores are comparable.")
    calibration: str | None = Field(description="Digest of the calibration that judged; None without one.")
    heatmap: HeatMap | None = Field(default=None, description="With include=heatmap.")
    picture: str | None = Field(
        default=None, description="With include=picture: a JPEG of at most 1024 px, as a data URI."
    )
    grid: Any = Field(
        default=None,
        description="With include=grid: logits of the patches, layer by layer, in four decimals.",
    )
    map_spec: dict[str, Any] | None = Field(
        default=None, description="With include=grid: how grids become maps."
    )


class Failure(BaseModel):
    """Reason why an image was left out."""

    status: int
    code: str
    detail: str


class FailedImage(BaseModel):
    """An image of a batch that could not be used."""

    name: str
    error: Failure


class BatchAnswer(BaseModel):
    """A row for each image, in the order they were sent."""

    images: int
    failed: int
    results: list[PredictionAnswer | FailedImage]


class CalibrationAnswer(BaseModel):
    """The calibration in use, to be kept: it is gone when the service ends."""

    calibration: Calibration = Field(description="What zsad serve and zsad predict take with --calibration.")
    summary: list[str] = Field(description="What it promises.")
    warnings: list[str] = Field(description="What the images were too few for.")
    skipped: list[FailedImage] = Field(default=[], description="Images that could not be used.")


class ModelAnswer(BaseModel):
    """The model that is served."""

    name: str
    identity: str = Field(description="Hash of all that decides a score.")
    method: str
    backbone: str
    input: tuple[int, int] = Field(description="Height and width that images are resized to.")
    layers: list[int] = Field(description="Tapped layers of the backbone, the rows of routing.")
    shows: str | None = Field(description="What the images show, for methods whose prompts name it.")
    trained_on: list[str]
    note: str = Field(description="What is to be known before relying on it; may be empty.")
    runtime: dict[str, str] = Field(description="Backend, precision, versions, device.")
    calibrated: bool
    calibration: str | None = Field(description="Digest of the calibration in use.")
    limits: dict[str, float | int | None] = Field(description="On requests.")


class ModelsAnswer(BaseModel):
    """Models that are served: one."""

    models: list[ModelAnswer]


class Health(BaseModel):
    """State of the service."""

    status: Literal["ok", "starting", "stopping", "broken"]
