"""Caches beside a run's grids, with which measuring again takes less: masks at the size of maps, and counted pixels.

Neither is needed: what is missing, broken or about other files is made again.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zsad.errors import MetricError
from zsad.files import atomic_write, read_arrays
from zsad.images.masks import load_mask
from zsad.metrics.classes import ClassScores
from zsad.metrics.streaming import PixelMetrics
from zsad.runs.folder import file_state

MASKS_FILE = "masks.npz"
STATES_FILE = "states.npz"
_MOST_STATES = 200  # some hundred kilobytes each; the oldest are given up


def read_packed(path: Path) -> dict[str, bytes]:
    """The parts of a file that `write_packed` wrote; none where it is missing or broken."""
    arrays = read_arrays(path) or {}
    if {"keys", "stops", "packed"} - arrays.keys():
        return {}
    data, stops = arrays["packed"].tobytes(), arrays["stops"].tolist()
    try:
        parts = zip(arrays["keys"].tolist(), [0, *stops[:-1]], stops, strict=True)
        return {key: data[start:stop] for key, start, stop in parts}
    except (TypeError, ValueError):  # not as many, or no numbers
        return {}


def write_packed(path: Path, parts: dict[str, bytes]) -> None:
    """Writes parts by their keys, whole or not at all.

    Raises:
        StorageError: the disk is full, or the folder cannot be written.
    """
    arrays: dict[str, Any] = {
        "keys": np.array(list(parts)),
        "stops": np.cumsum([len(part) for part in parts.values()], dtype=np.int64),
        "packed": np.frombuffer(b"".join(parts.values()), np.uint8),
    }
    atomic_write(path, lambda stream: np.savez(stream, **arrays))


@dataclass(slots=True)
class MaskCache:
    """Masks (H, W) as maps are measured with, one bit a pixel and packed, by what `mask_key` says of them."""

    packed: dict[str, bytes] = field(default_factory=dict)
    new: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, path: Path) -> MaskCache:
        """Return the masks of a file; none where it is missing or broken, as they can be made again."""
        return cls(read_packed(path))

    def read(
        self, path: Path, size: tuple[int, int], *, image: Path, full: tuple[int, int]
    ) -> NDArray[np.bool_]:
        """The mask of `image`, which is `full` (H, W) pixels large, at `size` (H, W).

        Raises:
            ImageError: the file cannot be read.
            DataError: the mask has another size than its image.
        """
        key = mask_key(path, size, full)
        if content := self.packed.get(key):
            with suppress(zlib.error, ValueError):  # damaged: read the file again
                bits = np.frombuffer(zlib.decompress(content), np.uint8)
                return np.unpackbits(bits, count=size[0] * size[1]).view(np.bool_).reshape(size)
        mask = load_mask(path, size=size, image=image, image_size=full)
        self.put(mask, path, full=full)
        return mask

    def put(self, mask: NDArray[np.bool_], path: Path, *, full: tuple[int, int]) -> None:
        """Keeps a mask (H, W) of the file `path`, made for an image of `full` (H, W) pixels."""
        key, packed = mask_key(path, (mask.shape[0], mask.shape[1]), full), np.packbits(mask).tobytes()
        with self._lock:
            self.packed[key], self.new = zlib.compress(packed, 1), True

    def write(self, path: Path) -> None:
        """Writes them, whole or not at all; nothing where nothing is new.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        if self.new:
            write_packed(path, self.packed)


class StateCache:
    """Counts that streaming metrics made of the pixels of each class, by a key of all that decides it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found = read_packed(path)
        self._new = False

    def fill(self, scores: ClassScores, key: str, *, limit: float) -> bool:
        """Gives the scores of a class their pixels; whether they are known."""
        packed = self._found.get(key)
        if packed is None:
            return False
        try:
            state = read_arrays(io.BytesIO(zlib.decompress(packed))) or {}
            maskless, emptied = (int(count) for count in state.pop("left_out"))
            pixels = PixelMetrics.from_state(state)
        except (KeyError, TypeError, ValueError, MetricError, zlib.error):
            return False
        pixels.limit = limit  # decides nothing until the end
        scores.pixels, scores.maskless, scores.emptied = pixels, maskless, emptied
        return True

    def put(self, scores: ClassScores, key: str) -> None:
        """Keeps the pixels of a class, unless some of its masks could not be read."""
        if not isinstance(scores.pixels, PixelMetrics) or scores.unread_masks:
            return
        stream = io.BytesIO()
        left_out = np.array([scores.maskless, scores.emptied])
        np.savez(stream, **scores.pixels.state_dict(), left_out=left_out)  # type: ignore[arg-type]
        self._found[key], self._new = zlib.compress(stream.getvalue(), 1), True

    def write(self) -> None:
        """Writes them; nothing where nothing is new.

        Raises:
            StorageError: the disk is full, or the folder cannot be written.
        """
        if self._new:
            kept = list(self._found.items())[-_MOST_STATES:]
            write_packed(self._path, dict(kept))


def digest(lines: Iterable[object]) -> str:
    """A key of all that the lines say."""
    hashed = hashlib.blake2b(digest_size=16)
    for line in lines:
        hashed.update(os.fsencode(f"{line}\n"))
    return hashed.hexdigest()


def mask_key(path: Path, size: tuple[int, int], full: tuple[int, int]) -> str:
    """A name for all that decides a mask: its file and the state of that, H and W it is taken at and made for."""
    place = _resolved(path.parent.absolute()) / path.name
    text = f"{place}|{file_state(path)}|{size}|{full}"
    return digest([text])


@lru_cache(maxsize=256)
def _resolved(folder: Path) -> Path:
    """A folder without links on its way: a data set has few, and thousands of masks in them."""
    return folder.resolve()
