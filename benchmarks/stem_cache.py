"""What all methods on one backbone share of an image: its patches out of the stem and its cues of oddness, kept.

Three quarters of an image's cost on the bundled backbone are its convolutional stem. Comparing ten methods whose
features differ in what happens behind it, the stem need not run ten times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zsad.clip.vision import PatchTokens, VisionTower
from zsad.files import content_hash
from zsad.images.inputs import iter_batches
from zsad.images.picture import Preprocess
from zsad.nn.oddness import oddness
from zsad.types import Sample

BATCH = 16
PARTS = ("stem", "cues")


class StemCache:
    """Patches and cues of images, by the images' content.

    Args:
        tower: with a convolutional stem.
        folder: files of one writer each; several processes may share it.
        preprocess: of the images.
        key: of backbone and preprocessing.
    """

    def __init__(self, tower: VisionTower, folder: Path, preprocess: Preprocess, *, key: str) -> None:
        self.tower, self.preprocess = tower, preprocess
        self.folder = folder / hashlib.sha256(key.encode()).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.where: dict[str, dict[str, tuple[np.memmap[Any, Any], int]]] = {part: {} for part in PARTS}
        self.digests: dict[Path, str] = {}
        self.grid = (0, 0)
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
                self.where[content.get("part", "stem")].setdefault(digest, (rows, row))

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
        """Computes what is missing and writes it as files called `name`; the number of images added."""
        lacking = {
            part: {self.digest(sample) for sample in samples} - self.where[part].keys() for part in PARTS
        }
        missing = {self.digest(sample): sample for sample in samples}
        missing = {
            digest: sample for digest, sample in missing.items() if digest in set().union(*lacking.values())
        }
        rows: dict[str, list[tuple[str, Tensor]]] = {part: [] for part in PARTS}
        grid = self.grid
        for batch in iter_batches(list(missing.values()), self.preprocess, batch_size=BATCH):
            cut = self.tower.patch_tokens(torch.from_numpy(batch.pixels))
            assert cut.texture is not None and cut.context is not None  # a backbone with a stem
            grid = cut.grid
            values = {
                "stem": torch.cat([cut.context.unsqueeze(1), cut.tokens], dim=1),
                "cues": oddness(cut.texture, cut.grid),
            }
            for part, tensor in values.items():
                pairs = zip(map(self.digest, batch.samples), tensor, strict=True)
                rows[part] += [(digest, row.clone()) for digest, row in pairs if digest in lacking[part]]
        for part, pairs in rows.items():
            if pairs:
                self._write(part, pairs, f"{name}-{part}", grid)
        self.refresh()
        return len(missing)

    def _write(
        self, part: str, pairs: Sequence[tuple[str, Tensor]], name: str, grid: tuple[int, int]
    ) -> None:
        target = self.folder / f"{name}.bin"
        target.write_bytes(torch.stack([row for _, row in pairs]).numpy().tobytes())
        content = {
            "part": part,
            "digests": [digest for digest, _ in pairs],
            "shape": tuple(pairs[0][1].shape),
            "grid": grid,
        }
        target.with_suffix(".json").write_text(json.dumps(content))

    def _rows(self, part: str, digests: Sequence[str]) -> Tensor:
        found = [self.where[part][digest] for digest in digests]
        return torch.from_numpy(np.stack([values[row] for values, row in found]))

    def patches(self, digests: Sequence[str]) -> PatchTokens:
        """What the stem gives of images."""
        kept = self._rows("stem", digests)
        return PatchTokens(kept[:, 1:], self.grid, context=kept[:, 0])

    def cues(self, digests: Sequence[str]) -> Tensor:
        """Cues (B, J, N) of images."""
        return self._rows("cues", digests)
