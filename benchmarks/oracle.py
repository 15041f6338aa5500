"""What limits the bundled model: linear probes on frozen features, with the target's own masks.

    PYTHONPATH=tools python benchmarks/oracle.py DATA [--sides 224 320 448] [--images 40]

An oracle: half of a class's images train a logistic regression on their patches, the other half are measured, and the
other way round. What such a probe reaches, text and training could reach at best with the same features. Features: the
texture out of the stem, the same at stride 8 (of the picture moved by half a patch, four times), each tapped block, all
of them joined, and the teacher's maps of stride 16; at every side: more resolution is also more tokens. The image score
is the mean of the highest 2.5 % of patches. Written to benchmarks/results/oracle.md. Minutes a side on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from systems import FOLDS
from zsad.clip.blocks import MobileStem
from zsad.clip.weights import load_backbone
from zsad.datasets.manifest import discover
from zsad.images.inputs import iter_batches
from zsad.images.masks import load_mask
from zsad.images.picture import Preprocess
from zsad.metrics.functional import auroc
from zsad.nn.oddness import oddness, top_mean
from zsad.types import Sample

BATCH = 8
MASK = 160
STEPS = 60
SHARE = 0.025
SEED = 0
Grid = Tensor
"""(B, h, w, C) features at the places of a grid."""


class Reader:
    """The frozen features of images at one size."""

    def __init__(self, side: int) -> None:
        from pretrain import teacher

        self.clip = load_backbone("zsad-tiny").clip.eval()
        preset = load_backbone("zsad-tiny").preset
        self.taps = preset.taps
        self.preprocess = Preprocess(image_size=(side, side), mean=preset.mean, std=preset.std)
        self.teacher = MobileStem(teacher.STEM, 8).eval()
        teacher.warm_start(self.teacher, teacher.load_state()[0])

    @torch.inference_mode()
    def read(self, samples: Sequence[Sample]) -> dict[str, Grid]:
        """Features by name."""
        found: dict[str, list[Grid]] = {}
        for batch in iter_batches(list(samples), self.preprocess, batch_size=BATCH):
            pixels = torch.from_numpy(batch.pixels)
            cut = self.clip.visual.patch_tokens(pixels)
            assert cut.texture is not None
            read = self.clip.visual(cut, taps=self.taps)
            layers = [self.clip.visual.project(tap[:, 1:]) for tap in read.taps]
            parts = {"stem's texture": cut.texture}
            parts |= {f"block {tap}": layer for tap, layer in zip(self.taps, layers, strict=True)}
            parts["all joined"] = torch.cat([cut.texture, *layers], dim=-1)
            parts["teacher, stride 16"] = self.teacher.texture(self.teacher.maps(pixels))
            parts["oddness, no probe"] = oddness(cut.texture, cut.grid)[:, :2].sum(dim=1).unsqueeze(-1)
            grids = {name: values.unflatten(1, cut.grid) for name, values in parts.items()}
            grids["stem's texture, stride 8"] = self.fine_texture(pixels)
            for name, values in grids.items():
                found.setdefault(name, []).append(values.half())
        return {name: torch.cat(values) for name, values in found.items()}

    def fine_texture(self, pixels: Tensor) -> Grid:
        """The texture at half the stride: of the picture, and of it moved by half a patch each way."""
        size, step = pixels.shape[-2:], self.clip.visual.config.patch_size // 2
        padded = F.pad(pixels, (0, step, 0, step), mode="replicate")
        fine = torch.empty(0)
        for down, right in itertools.product((0, 1), repeat=2):
            moved = padded[..., down * step :, right * step :][..., : size[0], : size[1]]
            cut = self.clip.visual.patch_tokens(moved)
            assert cut.texture is not None
            coarse = cut.texture.unflatten(1, cut.grid)
            if not len(fine):
                fine = coarse.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
            fine[:, down::2, right::2] = coarse
        return fine


def probe(features: Tensor, targets: Tensor) -> Tensor:
    """Weights (C + 1,) of a balanced logistic regression of targets (n,) on features (n, C) of unit deviation."""
    inputs = torch.cat([features, torch.ones(len(features), 1)], dim=1)
    weights = torch.zeros(inputs.shape[1], requires_grad=True)
    balance = torch.where(targets > 0, 0.5 / targets.sum().clamp_min(1), 0.5 / (1 - targets).sum())
    optimizer = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(inputs @ weights, targets, reduction="none")
        total = (balance * loss).sum() + 1e-3 * weights[:-1].square().sum()
        total.backward()
        return total

    optimizer.step(closure)
    return weights.detach()


def cross_fitted(features: Tensor, targets: Tensor, halves: Tensor) -> Tensor:
    """Patch scores (B, N), each image's by the probe that has not seen it."""
    scores = torch.zeros(features.shape[:2])
    for half in (0, 1):
        seen, rest = halves != half, halves == half
        flat = features[seen].float().flatten(0, 1)
        mean, deviation = flat.mean(0), flat.std(0).clamp_min(1e-4)
        weights = probe((flat - mean) / deviation, targets[seen].flatten())
        scores[rest] = ((features[rest].float() - mean) / deviation) @ weights[:-1] + weights[-1]
    return scores


def measure(samples: Sequence[Sample], reader: Reader) -> dict[str, tuple[float, float]]:
    """Pixel and image AUROC of every feature on the images of one class."""
    masks = torch.stack(
        [
            torch.from_numpy(np.asarray(load_mask(sample.mask, size=(MASK, MASK)), np.float32))
            if sample.label and sample.mask
            else torch.zeros(MASK, MASK)
            for sample in samples
        ]
    )
    labels = np.array([int(sample.label or 0) for sample in samples])
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(SEED))
    halves = (order % 2).long()
    found = {}
    for name, grids in reader.read(samples).items():
        grid, values = grids.shape[1:3], grids.flatten(1, 2)
        targets = (F.adaptive_avg_pool2d(masks.unsqueeze(1), grid).flatten(1) > 0.1).float()
        scores = values[..., 0].float() if values.shape[-1] == 1 else cross_fitted(values, targets, halves)
        maps = F.interpolate(scores.reshape(-1, 1, *grid), size=(MASK, MASK), mode="bilinear")
        pixel = auroc(maps[:, 0, ::2, ::2].numpy().ravel(), masks[:, ::2, ::2].numpy().ravel())
        image = auroc(top_mean(scores, SHARE).numpy(), labels)
        found[name] = (100 * pixel, 100 * image)
    return found


def main() -> None:
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--sides", type=int, nargs="+", default=[224, 320, 448])
    parser.add_argument("--images", type=int, default=40, help="most images of a class and label")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "oracle.md")
    options = parser.parse_args()
    chosen: dict[str, list[Sample]] = {}
    for dataset in (discover(options.data / name) for names in FOLDS.values() for name in names):
        counts: dict[tuple[str, int | None], int] = {}
        for sample in dataset.samples:
            key = (sample.class_name, sample.label)
            counts[key] = counts.get(key, 0) + 1
            if (sample.label == 0 or sample.mask is not None) and counts[key] <= options.images:
                chosen.setdefault(sample.class_name, []).append(sample)
    lines = [
        "| features | side | " + " | ".join(chosen) + " | mean |",
        "|---|---|" + "---|" * (len(chosen) + 1),
    ]
    for side in options.sides:
        reader = Reader(side)
        classes = [measure(samples, reader) for samples in chosen.values()]
        for name in classes[0]:
            rows = [found[name] for found in classes]
            means = [statistics.mean(v for v in column if v == v) for column in zip(*rows, strict=True)]
            cells = " | ".join(" / ".join(map(_cell, row)) for row in [*rows, means])
            lines.append(f"| {name} | {side} | {cells} |")
            print(lines[-1], flush=True)
    options.out.write_text(
        "Pixel / image AUROC of linear probes with the target's own masks (an oracle, not a zero-shot result):\n"
        f"`PYTHONPATH=tools python benchmarks/oracle.py DATA --sides {' '.join(map(str, options.sides))}`.\n\n"
        + "\n".join(lines)
        + "\n"
    )


def _cell(value: float) -> str:
    return f"{value:.1f}" if value == value else "-"


if __name__ == "__main__":
    main()
