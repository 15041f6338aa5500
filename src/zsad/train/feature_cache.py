"""Frozen image features on disk: computed once, read back as memory maps, safe to kill at any moment.

A cache folder holds one folder for every way of making features (backbone, method settings, preprocessing).
Therein each writer appends fixed-size fp16 records to shards of its own, `<shard>.bin`, and after they are
flushed replaces `<shard>.json`, the list of the images' content hashes. What no list names was never written:
a process killed half-way leaves at most some ignored bytes behind. Several processes may read and write one
folder.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from zsad.errors import DataError, StorageError
from zsad.files import bytes_below, make_folder, parse_json, storage_errors, write_json
from zsad.methods.base import ImageFeatures

FORMAT = 1
_RECORDS_PER_SHARD = 2048  # bounds the list that every commit rewrites
_ORPHAN_SECONDS = 86_400.0
_RESERVE_BYTES = 200_000_000  # left free on the disk for checkpoints and logs
_LAYOUT_FILE = "layout.json"


class RecordLayout(NamedTuple):
    """Layout of a record: patches (layers, tokens, width), the class token, cues over the grid."""

    layers: int
    tokens: int
    width: int
    rows: int
    columns: int
    cues: int = 0

    @classmethod
    def of(cls, features: ImageFeatures) -> RecordLayout:
        """Return the layout of a batch's records."""
        layers, tokens, width = features.patches.shape[1:]
        cues = 0 if features.cues is None else features.cues.shape[1]
        return cls(layers, tokens, width, *features.grid, cues)

    @classmethod
    def read(cls, content: object) -> RecordLayout | None:
        """Return the layout that a file describes; None where it describes none."""
        if not isinstance(content, list) or len(content) not in (5, 6):
            return None
        return cls(*content) if all(isinstance(side, int) for side in content) else None

    @property
    def parts(self) -> tuple[int, int, int]:
        """Number of values of the patches, the class token and the cues."""
        return self.layers * self.tokens * self.width, self.width, self.cues * self.rows * self.columns

    @property
    def record_bytes(self) -> int:
        """Bytes of one image's record, in fp16."""
        return 2 * sum(self.parts)


class FeatureCache:
    """Features of images, addressed by the hash of the image file's content.

    Args:
        folder: may be shared by any number of settings and processes.
        key_parts: all that the features depend on besides the image: hash of the backbone, settings of the
            method's frozen side, fingerprint of the preprocessing.
        max_bytes: most bytes that `folder` may hold over all settings; None for no bound but the disk.
    """

    def __init__(self, folder: Path, *, key_parts: Mapping[str, Any], max_bytes: int | None = None) -> None:
        key = json.dumps({"format": FORMAT, **key_parts}, sort_keys=True, default=str)
        self.root = folder
        subfolder = folder / hashlib.sha256(key.encode()).hexdigest()[:24]
        self._created = [path for path in (subfolder, *subfolder.parents) if not path.exists()]
        self.folder = make_folder(subfolder)
        self.max_bytes = max_bytes
        self._layout: RecordLayout | None = None
        self._where: dict[str, tuple[str, int]] = {}
        self._maps: dict[str, npt.NDArray[np.float16]] = {}
        self._writer: _ShardWriter | None = None
        self._remove_orphans()
        self.refresh()

    def refresh(self) -> None:
        """Read again what all writers have committed."""
        self._maps.clear()
        self._where.clear()
        self._layout = RecordLayout.read(_read_json(self.folder / _LAYOUT_FILE))
        if self._layout is None:
            return
        for index in sorted(self.folder.glob("*.json")):
            hashes = _read_json(index)
            data = index.with_suffix(".bin")
            if index.name == _LAYOUT_FILE or not isinstance(hashes, list) or not data.is_file():
                continue
            records = data.stat().st_size // self.record_bytes
            for position, digest in enumerate(hashes[:records]):
                self._where.setdefault(digest, (data.name, position))

    def __contains__(self, digest: object) -> bool:
        return digest in self._where

    def __len__(self) -> int:
        return len(self._where)

    @property
    def record_bytes(self) -> int:
        """Bytes of one image's record; 0 as long as nothing was ever added."""
        return 0 if self._layout is None else self._layout.record_bytes

    def check_space(self, records: int, *, record_bytes: int | None = None) -> None:
        """Refuse up front what would not fit.

        Args:
            records: images to be added.
            record_bytes: bytes of one of them; default: as those already there.

        Raises:
            StorageError: with the bytes needed, used and free, and what to do.
        """
        needed = records * (self.record_bytes if record_bytes is None else record_bytes)
        if not needed:
            return
        with storage_errors(self.root):
            free = shutil.disk_usage(self.root).free
            used = bytes_below(self.root, suffix=".bin")
        advice = "train on fewer images (limit_per_class), set another cache_folder, or turn the cache off"
        problem = ""
        if self.max_bytes is not None and used + needed > self.max_bytes:
            problem = (
                f" and holds {_gb(used)}, its limit is {_gb(self.max_bytes)}: raise cache_limit_gb to "
                f"{math.ceil((used + needed) / 1e8) / 10}, or {advice}"
            )
        elif needed + _RESERVE_BYTES > free:
            problem = f", the disk has {_gb(free)} free: free some space, {advice}"
        if problem:
            for folder in self._created:
                with suppress(OSError):  # not empty: another run's
                    folder.rmdir()
            raise StorageError(f"feature cache {self.root} needs {_gb(needed)} more{problem}")

    def add(self, hashes: Sequence[str], features: ImageFeatures) -> None:
        """Append the features of a batch and commit them; images already there are left out.

        Args:
            hashes: B content hashes.
            features: of the batch.

        Raises:
            DataError: features that are not finite in fp16, or of another shape than those already there.
            StorageError: the disk is full.
        """
        self._fix_layout(RecordLayout.of(features))
        parts = [features.patches, features.cls, *([] if features.cues is None else [features.cues])]
        records = torch.cat([part.detach().flatten(1).to("cpu", torch.float16) for part in parts], dim=1)
        finite = records.isfinite().all(dim=1)
        if not bool(finite.all()):
            raise DataError(
                f"features of {int((~finite).sum())} images exceed what fp16 holds or are NaN; "
                f"turn the cache off, or check the backbone"
            )
        new: dict[str, int] = {}
        for row, digest in enumerate(hashes):
            if digest not in self._where:
                new.setdefault(digest, row)
        if not new:
            return
        if self._writer is None or self._writer.full:
            self.close()
            self._writer = _ShardWriter(self.folder)
        try:
            self._writer.append(list(new), records[list(new.values())].numpy())
        except BaseException:
            self.close()  # half a record may lie at the shard's end: never append behind it
            raise
        self._where.update(self._writer.positions(len(new)))

    def read(self, hashes: Sequence[str], *, device: torch.device | str = "cpu") -> ImageFeatures:
        """Read features of images as float32 tensors on `device`.

        Raises:
            KeyError: an image that is not in the cache.
        """
        if self._layout is None:
            raise KeyError(hashes[0] if hashes else "empty cache")
        layout = self._layout
        records = np.stack([self._record(digest) for digest in hashes])
        tensor: Tensor = torch.from_numpy(records).to(device).float()
        patches, cls, cues = torch.split(tensor, list(layout.parts), dim=1)
        return ImageFeatures(
            patches=patches.reshape(-1, layout.layers, layout.tokens, layout.width),
            cls=cls,
            grid=(layout.rows, layout.columns),
            cues=cues.reshape(len(cues), layout.cues, -1) if layout.cues else None,
        )

    def close(self) -> None:
        """Close the shard being written, if any; it is not continued."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _record(self, digest: str) -> npt.NDArray[np.float16]:
        name, position = self._where[digest]
        values = self.record_bytes // 2
        mapped = self._maps.get(name)
        if mapped is None or len(mapped) <= position:
            path = self.folder / name
            records = path.stat().st_size // self.record_bytes
            mapped = np.memmap(path, dtype=np.float16, mode="r", shape=(records, values))
            self._maps[name] = mapped
        record: npt.NDArray[np.float16] = mapped[position]
        return record

    def _fix_layout(self, layout: RecordLayout) -> None:
        if self._layout is None:
            write_json(self.folder / _LAYOUT_FILE, list(layout))
            self._layout = layout
        if self._layout != layout:
            raise DataError(
                f"features of shape {tuple(layout)} do not fit the cache {self.folder}, which holds "
                f"{tuple(self._layout)}; delete that folder or use another one"
            )

    def _remove_orphans(self) -> None:
        """Remove shards without a list, long dead: their writer was killed before its first commit."""
        for data in self.folder.glob("*.bin"):
            with suppress(OSError):
                old = time.time() - data.stat().st_mtime > _ORPHAN_SECONDS
                if old and not data.with_suffix(".json").exists():
                    data.unlink()


class _ShardWriter:
    """Shard that one process appends to."""

    def __init__(self, folder: Path) -> None:
        self.data = folder / f"{os.getpid()}-{secrets.token_hex(6)}.bin"
        self.hashes: list[str] = []
        with storage_errors(self.data):
            self.stream: BinaryIO = self.data.open("xb")

    @property
    def full(self) -> bool:
        return len(self.hashes) >= _RECORDS_PER_SHARD

    def append(self, hashes: Sequence[str], records: npt.NDArray[np.float16]) -> None:
        """Append the data, flushed to the disk; then the list that makes it valid."""
        with storage_errors(self.data):
            self.stream.write(np.ascontiguousarray(records).tobytes())
            self.stream.flush()
            os.fsync(self.stream.fileno())
        self.hashes.extend(hashes)
        write_json(self.data.with_suffix(".json"), self.hashes)

    def positions(self, last: int) -> dict[str, tuple[str, int]]:
        """Return where the last records lie."""
        first = len(self.hashes) - last
        return {digest: (self.data.name, first + row) for row, digest in enumerate(self.hashes[first:])}

    def close(self) -> None:
        self.stream.close()


def _read_json(path: Path) -> Any:
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
