"""Stage 1: everything about the corpus that training does not change, computed once and kept on disk.

For each item the joined maps of the teacher's early stages (what the stem puts out before training), the teacher's
logits and last map, and the share of defect in every patch. Resumable: a shard that is complete is not made again.

16 minutes for 5,500 items on two processor cores, of which drawing the corpus takes most; a GPU has not been measured.
Always in full precision: bf16 would change the maps by 7 %. Shards of 500 items may be made anywhere and put together
in one folder.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from corpus import Corpus, Item, token_shares
from teacher import MEAN, STD, STEM, TeacherTail, load_state, warm_start
from torch import Tensor

from zsad.clip.blocks import MobileStem

SHARD = 500
BATCH = 10


def normalise(images: list[np.ndarray]) -> Tensor:
    """uint8 images (H, W, 3) as a batch (B, 3, H, W) in the teacher's range."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def stage_maps(stem: MobileStem, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The joined maps (B, h, w, C) and the last stage's map (B, C', h, w)."""
    joined = stem.maps(pixels)
    last = stem.config.stages[stem.config.merge_stages[-1]].channels
    return joined, joined[..., -last:].permute(0, 3, 1, 2)


def _record(item: Item) -> dict[str, object]:
    fields = ("label", "kind", "name", "caption", "opposite", "dense")
    return {field: getattr(item, field) for field in fields}


@torch.inference_mode()
def make_shard(
    number: int,
    corpus: Corpus,
    stem: MobileStem,
    tail: TeacherTail,
    out: Path,
    pool: ThreadPoolExecutor,
    device: str,
) -> None:
    """Computes one shard and puts it in place whole."""
    columns: dict[str, list[np.ndarray]] = {"maps": [], "logits": [], "last": [], "shares": []}
    records = []
    indices = range(number * SHARD, (number + 1) * SHARD)
    pending = [pool.submit(corpus.item, index) for index in indices]
    for start in range(0, SHARD, BATCH):
        items = [future.result() for future in pending[start : start + BATCH]]
        pixels = normalise([item.image for item in items]).to(device, memory_format=torch.channels_last)
        maps, map16 = stage_maps(stem, pixels)
        last, logits = tail(map16)
        columns["maps"].append(maps.half().cpu().numpy())
        columns["logits"].append(logits.half().cpu().numpy())
        columns["last"].append(last.permute(0, 2, 3, 1).half().cpu().numpy())
        columns["shares"].append(np.stack([token_shares(item.mask, stem.stride) for item in items]))
        records += [_record(item) for item in items]
    folder = out / f"shard{number:04d}"
    scratch = folder.with_suffix(".part")
    scratch.mkdir(parents=True, exist_ok=True)
    for name, parts in columns.items():
        np.save(scratch / f"{name}.npy", np.concatenate(parts), allow_pickle=False)
    (scratch / "records.json").write_text(json.dumps(records))
    scratch.replace(folder)


def extract(corpus: Corpus, out: Path, *, count: int, device: str) -> None:
    """All shards of `count` items, each made once."""
    state, _ = load_state()
    stem = MobileStem(STEM, 64)
    warm_start(stem, state)
    stem = stem.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    tail = TeacherTail(state).eval().to(device)
    started = time.monotonic()
    with ThreadPoolExecutor(2) as pool:
        for number in range(-(-count // SHARD)):
            if (out / f"shard{number:04d}").exists():
                continue
            make_shard(number, corpus, stem, tail, out, pool, device)
            print(f"shard {number} at {time.monotonic() - started:.0f} s", flush=True)


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options that stages share."""
    parser.add_argument(
        "--natural", type=Path, required=True, help="folder with the unpacked everyday images"
    )
    parser.add_argument("--names", type=Path, required=True, help="JSON file, wnid to names")
    parser.add_argument("--work", type=Path, required=True, help="folder for caches, checkpoints and the log")
    parser.add_argument("--items", type=int, default=5500)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--device", default="cpu", help="such as cuda")


def corpus_of(options: argparse.Namespace) -> Corpus:
    """The corpus that the options describe."""
    from conformal_clip_data import textile_simulated_root

    return Corpus(options.natural, textile_simulated_root(), read(options.names), seed=options.seed)


def read(path: Path) -> dict[str, str]:
    """wnid to names."""
    from corpus import read_names

    return read_names(path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    arguments(parser)
    chosen = parser.parse_args()
    extract(corpus_of(chosen), chosen.work / "features", count=chosen.items, device=chosen.device)
