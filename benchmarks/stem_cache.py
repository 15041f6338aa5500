"""The convolutional stem's tokens of any image, computed once and kept: what all methods on one backbone share.

Three quarters of an image's cost on the bundled backbone are its stem. Comparing ten methods whose features differ in
what happens behind it, the stem need not run ten times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zsad.data.image import Preprocess
from zsad.data.loader import iter_batches
from zsad.train.cache import content_hash
from zsad.types import Sample

BATCH = 16


class StemCache:
    """Makes an image tower's stem give what was kept of the images named in `now`.

    Args:
        stem: whose `forward` is replaced on this one object.
        folder: files of one writer each; several processes may share it.
        preprocess: of the images.
        key: of backbone and preprocessing.
    """

    def __init__(self, stem: nn.Module, folder: Path, preprocess: Preprocess, *, key: str) -> None:
        self.compute, self.preprocess = stem.forward, preprocess
        stem.forward = self._tokens  # type: ignore[method-assign]
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.where: dict[str, tuple[np.memmap[Any, Any], int]] = {}
        self.digests: dict[Path, str] = {}
        self.grid = (0, 0)
        self.now: list[str] = []
        self.refresh()

    def refresh(self) -> None:
        """Takes notice of what all writers have finished."""
        for index in sorted(self.folder.glob("*.json")):
            content = json.loads(index.read_text())
            self.grid = tuple(content["grid"])
            rows = np.memmap(
                index.with_suffix(".bin"), np.float32, "r", shape=(len(content["digests"]), *content["shape"])
            )
            for row, digest in enumerate(content["digests"]):
                self.where.setdefault(digest, (rows, row))

    def digest(self, sample: Sample) -> str:
        """Hash of an image's content."""
        if sample.image not in self.digests:
            found = content_hash(sample.image)
            if found is None:
                raise SystemExit(f"cannot read {sample.image}")
            self.digests[sample.image] = found
        return self.digests[sample.image]

    @torch.no_grad()
    def fill(self, samples: Sequence[Sample], name: str) -> int:
        """Computes what is missing and writes it as the file `name`; the number of images added."""
        missing = {self.digest(sample): sample for sample in samples if self.digest(sample) not in self.where}
        if not missing:
            return 0
        target = self.folder / f"{name}.bin"
        shape, grid = (0, 0), (0, 0)
        with target.open("wb") as stream:
            for batch in iter_batches(list(missing.values()), self.preprocess, batch_size=BATCH):
                tokens, context, grid = self.compute(torch.from_numpy(batch.pixels))
                joined = torch.cat([context.unsqueeze(1), tokens], dim=1)
                shape = tuple(joined.shape[1:])
                stream.write(joined.numpy().tobytes())
        content = {"digests": list(missing), "shape": shape, "grid": grid}
        target.with_suffix(".json").write_text(json.dumps(content))
        self.refresh()
        return len(missing)

    def _tokens(self, pixels: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """What the stem gives: tokens (B, N, D), context (B, D), grid."""
        if not self.now:
            result: tuple[Tensor, Tensor, tuple[int, int]] = self.compute(pixels)
            return result
        rows = [self.where[digest] for digest in self.now]
        kept = torch.from_numpy(np.stack([values[row] for values, row in rows]))
        return kept[:, 1:], kept[:, 0], self.grid
