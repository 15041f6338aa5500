"""Limits on what a request may cost, and the refusal of a request that exceeds them."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zsad.errors import ConfigError

MEGA = 1024 * 1024
_BODIES = 8  # bodies of the largest size that may be in memory at once
_AROUND = MEGA // 4  # bytes of a form besides its images, and of pieces that have not been looked at


class RequestLimits(BaseModel):
    """Limits of the service."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_bytes: int = Field(default=32 * MEGA, ge=1024, description="Of one image, as it is sent.")
    max_pixels: int = Field(
        default=64_000_000, ge=64, description="Of one image, read from its header before it is decoded."
    )
    max_queue: int = Field(
        default=32, ge=1, description="Images inside at once; more are refused with 429 until there is room."
    )
    batch: int | None = Field(
        default=None, ge=1, description="Images a pass of the model at most; None: what suits the device."
    )
    timeout: float = Field(
        default=30.0, gt=0, description="Seconds an image may take to arrive, and then to be answered."
    )
    max_images: int = Field(default=1000, ge=1, description="Of one batch or calibration.")
    streams: int = Field(default=2, ge=1, description="Batches and calibrations that are read at once.")
    head_timeout: float = Field(
        default=10.0, gt=0, description="Seconds the head of a request may take to arrive."
    )
    connections: int = Field(default=512, ge=1, description="Open connections; more are refused with 503.")

    @classmethod
    def of(cls, **fields: Any) -> RequestLimits:
        """Return limits with these fields.

        Raises:
            ConfigError: a number that makes no sense.
        """
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            name = "--" + "-".join(str(part) for part in first["loc"]).replace("_", "-")
            raise ConfigError(f"{name} is {first['input']}: {first['msg'].lower()}") from None

    @property
    def upload_bytes(self) -> int:
        """Bytes of all bodies that are in memory at once."""
        return _BODIES * (self.max_bytes + _AROUND)


class Refusal(Exception):
    """A request that is not served, as the client is told.

    Attributes:
        status: of HTTP.
        code: a word that programs can act on; never changes.
        reason: one line for people.
        retry_after: seconds after which it is worth trying again.
    """

    def __init__(self, status: int, code: str, reason: str, *, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.retry_after = None if retry_after is None else max(1, math.ceil(retry_after))


class ByteBudget:
    """The bytes of bodies that may be in memory at once. Used on the event loop alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.reserved = 0

    def reserve(self, count: int) -> None:
        """Count more bytes.

        Raises:
            Refusal: 429, there is no room.
        """
        if self.reserved + count > self.size:
            raise Refusal(
                429, "busy", "too much is being uploaded at once; try again in a moment", retry_after=1
            )
        self.reserved += count

    def release(self, count: int) -> None:
        """Count bytes no longer."""
        self.reserved -= count
