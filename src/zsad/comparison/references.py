"""A few normal images as a memory of patches: what has no counterpart in them is odd.

The memory is bounded: of each kind of features at most `limit` patches are kept. Which, is decided by random numbers
that follow from each image's own content, so neither the order of the images nor the number of passes matters.
Distances between normal images, by which new ones are judged, come from the references themselves: patches of one image
against the memory without that image, or of the only one against what is not near them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from zsad.comparison.compare import Comparison, Scale, Statistics, look_closely, picture_key
from zsad.errors import CheckpointError, ConfigError, DataError
from zsad.files import atomic_write
from zsad.nn.memory import coreset, nearest_distance

if TYPE_CHECKING:
    import numpy.typing as npt

    from zsad.methods.base import Method

LIMIT = 10_000
_FORMAT = 1
_POOL = 4  # times the limit: what a coreset is chosen from
_ASKED = 2_000  # patches whose distances tell what is normal
_NEAR = 3  # patches around one that are no witness for it, where there is one image only
_TOLERANCE = 1e-6

Pick = Literal["random", "coreset"]


class ReferenceCard(BaseModel):
    """Header of a references file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = _FORMAT
    identity: str = Field(
        description="Of the model, and how it looks at pictures, that the memory was made with."
    )
    model: str = Field(description="By which that model was asked for.")
    images: int = Field(ge=1)
    scale: Scale
    statistics: tuple[tuple[float, float], ...]


class References(Comparison):
    """A memory of normal patches.

    Args:
        banks: for each kind of features the remembered ones (M, C), of length one.
        statistics: mean and deviation of normal distances for each kind.
        images: how many they come from.
        scale: what becomes of a distance.
    """

    def __init__(self, banks: Sequence[Tensor], statistics: Statistics, *, images: int, scale: Scale) -> None:
        self.banks = [bank.half() for bank in banks]
        self.statistics, self.images, self.scale = statistics, images, scale

    def distances(self, kinds: Sequence[Tensor], key: bytes) -> list[Tensor]:
        """Return distances to the nearest remembered patch; a reference meets itself here, and so is never odd."""
        if [kind.shape[-1] for kind in kinds] != [bank.shape[-1] for bank in self.banks]:
            raise ConfigError("the references were made with another model; make them again")
        return [
            nearest_distance(kind, bank.to(kind.device)) for kind, bank in zip(kinds, self.banks, strict=True)
        ]

    def digest(self) -> str:
        """Return a hash of the remembered patches and the rule."""
        hashed = hashlib.sha256(json.dumps([self.scale, self.statistics]).encode())
        for bank in self.banks:
            hashed.update(bank.cpu().numpy().tobytes())
        return hashed.hexdigest()[:16]

    def save(self, path: str | Path, *, identity: str, model: str) -> Path:
        """Writes a .safetensors file with a card in its header.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        from safetensors.torch import save

        card = ReferenceCard(
            identity=identity, model=model, images=self.images, scale=self.scale, statistics=self.statistics
        )
        tensors = {f"bank.{index}": bank.cpu().contiguous() for index, bank in enumerate(self.banks)}
        content = save(tensors, metadata={"zsad.references": card.model_dump_json()})
        atomic_write(Path(path), lambda stream: stream.write(content))
        return Path(path)

    @classmethod
    def read(cls, path: str | Path, *, identity: str) -> References:
        """Reads what `save` wrote.

        Raises:
            CheckpointError: broken, or made with another model or other tiles.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                card = ReferenceCard.model_validate_json((file.metadata() or {}).get("zsad.references", ""))
                banks = [file.get_tensor(f"bank.{index}") for index in range(len(card.statistics))]
        except (OSError, SafetensorError, ValidationError) as error:
            reason = "it cannot be opened" if isinstance(error, OSError) else "it is no such file, or damaged"
            raise CheckpointError(
                f"references {path} cannot be read ({reason}); make them again from the images"
            ) from error
        if card.identity != identity:
            raise CheckpointError(
                f"references {path} were made with another model ({card.model}), or with other tiles or proportions; "
                "make them again from the images"
            )
        if any(bank.ndim != 2 or not len(bank) for bank in banks):
            raise CheckpointError(f"references {path} hold no patches; make them again from the images")
        return cls(banks, card.statistics, images=card.images, scale=card.scale)


class Collector:
    """Patches of images, as they come, of which a bounded number is kept.

    Args:
        method: whose features are remembered.
        limit: patches kept of each kind.
        pick: "random", or "coreset": those that cover the others best, of four times as many random ones.

    Raises:
        ConfigError: a limit below 1.
    """

    def __init__(self, method: Method, *, limit: int = LIMIT, pick: Pick = "random") -> None:
        if limit < 1:
            raise ConfigError(f"limit is {limit}, expected 1 patch or more")
        self._method, self._limit, self._pick = method, limit, pick
        self._pool = limit * (_POOL if pick == "coreset" else 1)
        self._kinds: list[Tensor] = []
        self._order = torch.empty(0, dtype=torch.float64)
        self._place = torch.empty(0, 3, dtype=torch.int64)  # image, row, column
        self._images: set[int] = set()

    @torch.inference_mode()
    def add(self, pixels: npt.NDArray[np.float32], *, image: bytes | None = None) -> None:
        """Remembers a picture, or a part of one, (3, H, W); `image` is the key of the picture that it is part of."""
        weight = next(self._method.parameters())
        key = picture_key(pixels)
        batch = torch.from_numpy(pixels[None]).to(device=weight.device, dtype=weight.dtype)
        features, kinds = look_closely(self._method, batch)
        number = int.from_bytes((image or key)[:7], "big")
        self._images.add(number)
        rows, columns = features.grid
        place = torch.tensor([[number, row, column] for row in range(rows) for column in range(columns)])
        seed = int.from_bytes(key[:8], "big")
        drawn = torch.from_numpy(np.random.default_rng(seed).random(rows * columns))
        order = torch.cat([self._order, drawn])
        kept = order.argsort(stable=True)[: self._pool]
        self._order, self._place = order[kept], torch.cat([self._place, place])[kept]
        halves = [kind[0].half().cpu() for kind in kinds]
        held = self._kinds or [kind[:0] for kind in halves]
        self._kinds = [torch.cat([old, new])[kept] for old, new in zip(held, halves, strict=True)]

    def finish(self, *, scale: Scale = "standard") -> References:
        """Return the memory.

        Raises:
            DataError: no picture was added.
        """
        if not self._kinds:
            raise DataError("no reference image could be used; name a folder of normal images")
        banks, statistics = [], []
        for kind in self._kinds:
            rows = torch.arange(len(kind))[: self._limit]
            if self._pick == "coreset":
                rows = coreset(kind.float(), self._limit)
            banks.append(kind[rows])
            statistics.append(self._normal(kind[:_ASKED].float(), kind[rows].float(), rows))
        return References(banks, tuple(statistics), images=len(self._images), scale=scale)

    def _normal(self, asked: Tensor, bank: Tensor, rows: Tensor) -> tuple[float, float]:
        """Mean and deviation of the distances of patches to the memory without their own image."""
        theirs, places = self._place[: len(asked)], self._place[rows]
        cosines = asked @ bank.T
        same = theirs[:, None, 0] == places[None, :, 0]
        if len(self._images) == 1:
            apart = (theirs[:, None, 1:] - places[None, :, 1:]).abs().amax(dim=-1)
            same &= apart <= _NEAR
        best = cosines.masked_fill(same, -2.0).amax(dim=1)
        distances = (1 - best[best > -1.5]).double()
        if len(distances) < 2:
            return 0.0, 1.0
        return float(distances.mean()), max(float(distances.std()), _TOLERANCE)


def collect_references(
    method: Method,
    pictures: Iterable[Sequence[npt.NDArray[np.float32]]],
    *,
    limit: int = LIMIT,
    pick: Pick = "random",
    scale: Scale = "standard",
) -> References:
    """The memory of pictures, each given as its parts (3, H, W), ready for the model; raises as `Collector`."""
    collector = Collector(method, limit=limit, pick=pick)
    for parts in pictures:
        image = picture_key(parts[0])
        for part in parts:
            collector.add(part, image=image)
    return collector.finish(scale=scale)
