"""What a request may cost, and how a refusal is told: before anything costly has begun."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zsad.errors import ConfigError

MEGA = 1024 * 1024
_UPLOADS = 8  # bodies of the largest size that may lie in memory at once


class Limits(BaseModel):
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
    def of(cls, **fields: Any) -> Limits:
        """Limits of these fields.

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
    def held_bytes(self) -> int:
        """Of all images that are arriving one by one, together."""
        return _UPLOADS * self.max_bytes


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


class ClientGone(Exception):
    """The client has hung up, so nobody waits for an answer."""


class Places:
    """So many images may be inside at once. Used on the event loop alone."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def try_take(self) -> bool:
        """Takes a place if one is free and nobody was here before."""
        if self.taken >= self.count or self._waiting:
            return False
        self.taken += 1
        return True

    async def take(self) -> None:
        """Takes a place, waiting for it in turn. How many may wait is bounded by `Limits.streams`."""
        if self.try_take():
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the place came with the cancellation
                self.give()
            raise

    def give(self) -> None:
        """Gives a place back: to who waits longest, if anybody does."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # the place passes on, so as many are taken as before
                return
        self.taken -= 1


class Budget:
    """So many bytes may be held at once. Used on the event loop alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0

    def take(self, count: int) -> None:
        """Holds so many more.

        Raises:
            Refusal: 429, there is no room.
        """
        if self.held + count > self.size:
            raise Refusal(
                429, "busy", "too much is being uploaded at once; try again in a moment", retry_after=1
            )
        self.held += count

    def give(self, count: int) -> None:
        """Gives so many back."""
        self.held -= count
