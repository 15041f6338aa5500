"""Card of a model: the data that lies in every checkpoint and beside every exported graph.

Needs neither PyTorch nor the methods: exported models are read without them.
"""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

import zsad
from zsad.nn.maps import MapSpec

FORMAT = 1
"""Version of the layout of card and tensors; a reader refuses newer ones."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BackboneReference(_Frozen):
    """The frozen backbone that an adapter was trained on."""

    name: str = Field(max_length=1024, description="Preset or path by which the backbone is loaded.")
    sha256: str = Field(
        max_length=128, description="Hash of its weights; another backbone of that name is refused."
    )


class Training(_Frozen):
    """Training of a model: on what, and how."""

    datasets: tuple[str, ...] = Field(default=(), description="Names of the data sets.")
    classes: tuple[str, ...] = Field(default=(), description="Object classes among the samples.")
    samples: int = Field(default=0, description="Images trained on.")
    normal: int = Field(default=0, description="Images without defect among them.")
    anomalous: int = Field(default=0, description="Images with a defect among them.")
    epochs: int = Field(default=0, description="Passes over the data.")
    steps: int = Field(default=0, description="Steps of the optimiser.")
    seed: int = Field(default=0, description="Seed of the adapter's start and of the order of the data.")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="All fields of the training configuration."
    )
    data_fingerprint: str = Field(default="", description="Hash of the list of samples.")
    images: str = Field(
        default="", description="Tags of the images' content, see `zsad.datasets.overlap`; empty: not kept."
    )


class Card(_Frozen):
    """All that must be known to use an adapter's tensors again."""

    format: int = Field(default=FORMAT, description="Version of the layout of card and tensors.")
    zsad: str = Field(default=zsad.__version__, description="Version of zsad that wrote the checkpoint.")
    method: str = Field(description="Name of the method in the registry.")
    provenance: str = Field(default="", description="What is to be known of the method's sources.")
    config: dict[str, Any] = Field(description="The method's configuration.")
    backbone: BackboneReference
    preprocess: dict[str, Any] = Field(description="Fields of `zsad.images.picture.Preprocess`.")
    map_spec: MapSpec = Field(description="How grids become maps, with the colour scale.")
    training: Training | None = Field(default=None, description="None for a method without training.")
    metrics: dict[str, Any] | None = Field(default=None, description="Results measured with this model.")
    created: str = Field(
        default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"),
        description="Date and time of writing, UTC.",
    )
