"""The settings of a training run; a field's description is its help text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

RUN_FIELDS = frozenset({"cache", "cache_folder", "cache_limit_gb", "workers", "checkpoint_every"})
"""Fields that say how a run is carried out: a run may be resumed with other values of these."""

_Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainConfig(BaseModel):
    """Settings of the training of an adapter. The defaults are PromptMoE's (section "Implementation details")."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=15, ge=1, description="Passes over the training images.")
    batch_size: int = Field(default=16, ge=1, description="Images a step, over all processes together.")
    learning_rate: float = Field(
        default=1e-3,
        gt=0,
        description="Adam's learning rate after the warm-up. Methods take a part of it where they say so: WMoE-CLIP "
        "for its linear layers, MPAMA for its experts, MoECLIP with recipe=released a tenth throughout.",
    )
    betas: tuple[_Decay, _Decay] = Field(
        default=(0.6, 0.999), description="Adam's decay of both moments, in [0, 1)."
    )
    warmup_epochs: float = Field(
        default=3.0,
        ge=0,
        description="Epochs over which the learning rate rises linearly, step by step; then constant.",
    )
    milestones: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="Steps of a stage at which the learning rate is multiplied by `decay`."
    )
    decay: float = Field(default=0.5, gt=0, le=1, description="Factor on the rate at each milestone.")
    weight_decay: float = Field(default=0.0, ge=0, description="L2 penalty added to the gradients.")
    seed: int = Field(
        default=111,
        ge=0,
        lt=2**31,
        description="Seed of the adapter's start, of the order of images, of any noise.",
    )
    amp: Literal["auto", "off", "bf16", "fp16"] = Field(
        default="auto", description="Mixed precision; auto takes bf16, else fp16, on CUDA and none elsewhere."
    )
    balance: Literal["none", "class"] = Field(
        default="none",
        description="Sampling: none shows every image once an epoch (as published); class draws, with replacement, "
        "every pair of object class and label equally often.",
    )
    limit_per_class: int | None = Field(
        default=None,
        ge=1,
        description="At most this many images of each object class and label, chosen by the seed.",
    )
    augment: Literal["none", "moeclip", "mosaic"] = Field(
        default="none",
        description="Change training images, with their masks, at every step. moeclip: turned by up to 30 degrees, "
        "shifted by up to 0.15 of a side, mirrored and put upside down, each with probability 1/2, as MoECLIP's "
        "released code does; mosaic: a fifth are made of four of their class, as APRIL-GAN's does on MVTec AD. Needs "
        "cache off.",
    )
    cache: bool = Field(
        default=True,
        description="Compute the image features once and keep them on disk (fp16); else every epoch.",
    )
    cache_folder: Path | None = Field(
        default=None,
        description="Folder of the feature cache, may be shared by runs; default: `features` in the run.",
    )
    cache_limit_gb: float = Field(
        default=50.0, gt=0, description="Most gigabytes (1e9 bytes) the cache folder may hold."
    )
    workers: int = Field(default=2, ge=1, le=64, description="Threads that read images.")
    checkpoint_every: int = Field(
        default=200, ge=1, description="Steps between saved states; one is also saved after every epoch."
    )

    @model_serializer(mode="wrap")
    def _without_what_is_off(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A setting that came later is left out where it is off: earlier runs are then known as the same."""
        values: dict[str, Any] = handler(self)
        if values.get("augment") == "none":
            del values["augment"]
        return values
