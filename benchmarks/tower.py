"""The image tower with its value-value branch against explicit attention, interleaved in one process.

Both compute the same function on the same random weights: ViT-L/14@336 at 518 x 518 pixels. The explicit form
keeps two score matrices a block in memory, softmax(Q K^T) and softmax(V V^T), as published codes do. CPU seconds of
the process are compared, so that a busy machine disturbs the ratio little.

    python benchmarks/tower.py --layers 6 --rounds 3 --threads 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from zsad.clip.blocks import Block
from zsad.clip.presets import preset
from zsad.clip.vision import VisionTower


def explicit_tower(tower: VisionTower, pixels: Tensor, *, taps: tuple[int, ...], start: int) -> list[Tensor]:
    """The dual path with explicit score matrices, in the order of operations of the published code."""
    x, _ = tower.embed(pixels)
    branch, found = None, []
    for number, block in enumerate(tower.blocks, start=1):
        assert isinstance(block, Block)
        if number == start:
            branch = x
        x, branch = explicit_block(block, x, branch)
        if number in taps and branch is not None:
            found.append(branch.clone())
    return [*found, x[:, 0]]


def explicit_block(block: Block, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """One block on both paths."""
    batch, length, width = x.shape
    heads = block.attn.heads
    scale = (width // heads) ** -0.5
    joined = block.attn.in_proj(block.ln_1(x)).reshape(batch, length, 3, heads, width // heads)
    query, key, value = joined.permute(2, 0, 3, 1, 4)

    def mix(left: Tensor, right: Tensor) -> Tensor:
        weights = ((left @ right.transpose(-2, -1)) * scale).softmax(dim=-1)
        return block.attn.out_proj((weights @ value).transpose(1, 2).reshape(batch, length, width))

    if branch is not None:
        branch = branch + mix(value, value)
    x = x + mix(query, key)
    hidden = block.fc(block.ln_2(x))
    return x + block.proj(hidden * torch.sigmoid(1.702 * hidden)), branch


def timed(function: Callable[[], object]) -> float:
    """CPU seconds of this process in one call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def main() -> None:
    """Prints a line a round, then the median ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--layers", type=int, default=24, help="blocks of the tower (24 is the whole)")
    parser.add_argument("--size", type=int, default=518, help="side of the image in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = preset("ViT-L/14@336")
    config = known.config.vision.model_copy(update={"layers": options.layers})
    tower = VisionTower(config, known.config.embed_dim).eval().requires_grad_(False)
    # Block 6 of 24; a shortened tower keeps the share of blocks without the branch.
    start = options.layers * 5 // 24 + 1
    taps = (options.layers,)
    pixels = torch.randn(1, 3, options.size, options.size)

    def ours() -> list[Tensor]:
        output = tower(pixels, taps=taps, value_value_from=start)
        return [*output.taps, output.cls]

    def explicit() -> list[Tensor]:
        return explicit_tower(tower, pixels, taps=taps, start=start)

    with torch.inference_mode():
        error = max(float((a - b).abs().max()) for a, b in zip(ours(), explicit(), strict=True))
        print(f"largest difference {error:.1e}; {options.layers} blocks, branch from {start}")
        rows = []
        for number in range(1, options.rounds + 1):
            slow, fast = timed(explicit), timed(ours)
            rows.append((slow, fast))
            print(f"round {number}: explicit {slow:.2f} s, zsad {fast:.2f} s, {slow / fast:.2f}x")
    ratio = statistics.median(a / b for a, b in rows)
    print(f"median {ratio:.2f}x (CPU seconds, {options.threads} thread(s))")
    if options.json:
        result = {
            "layers": options.layers,
            "threads": options.threads,
            "error": error,
            "rounds": rows,
            "ratio": ratio,
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
