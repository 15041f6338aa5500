"""The image tower with its value-value branch against explicit attention, interleaved in one process.

Both compute the same function on the same random weights: ViT-L/14@336 at 518 x 518 pixels. The explicit form
keeps two score matrices a block in memory, softmax(Q K^T) and softmax(V V^T), as published codes do. CPU seconds of
the process are compared, so that a busy machine disturbs the ratio little.

With the floor: operations of the function itself (linear layers, two attentions a block, no more than asked for) at
the rate of single matrix products that run between the towers of the same round: at their median rate, which is what
the machine gave meanwhile, and at their best, which a busy machine gives for moments only. `--openvino` adds the
graph that `zsad export` makes of plain CLIP on this tower.

    python benchmarks/tower.py --layers 6 --rounds 3 --threads 1 --openvino
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from zsad.clip.blocks import Block
from zsad.clip.config import VisionConfig, preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.vision import VisionTower
from zsad.clip.weights import Backbone


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


def floor_gflop(config: VisionConfig, *, size: int, start: int) -> float:
    """Operations of one image in 10^9, a multiply-add counted as two, by hand.

    Behind the last block nobody asks for the patches of the ordinary path: there only its class token is counted.
    """
    width, tokens = config.width, (size // config.patch_size) ** 2 + 1
    linear = 2 * tokens * (4 * width * width + 2 * width * config.mlp_width)
    attention = 4 * tokens * tokens * width
    both = attention + 2 * tokens * width * width  # the branch's attention and output projection
    last = (
        2
        * tokens
        * 3
        * width
        * width  # queries, keys and values: the branch reads the values, the token the others
        + 4 * tokens * width
        + 2 * (width * width + 2 * width * config.mlp_width)
    )
    patches = 2 * (tokens - 1) * 3 * config.patch_size**2 * width
    whole = patches + (config.layers - 1) * (linear + attention) + last + (config.layers - start + 1) * both
    return whole / 1e9


def in_openvino(backbone: Backbone, pixels: Tensor, *, start: int, threads: int) -> Callable[[], object]:
    """Plain CLIP on the tower, with its branch, as `zsad export` writes it and OpenVINO runs it."""
    from zsad.backends.openvino import OpenVINOBackend
    from zsad.backends.torch import TorchBackend
    from zsad.export.onnx_graph import write_onnx
    from zsad.export.writer import unproven_card
    from zsad.methods.registry import build
    from zsad.train.training_card import CardParts, card_of

    settings = {"image_size": pixels.shape[-1], "templates": "single", "value_value_from": start}
    method = build("clip", {"value_value": True, **settings}, backbone)
    backend = TorchBackend(method)
    model_card = card_of(method, CardParts.of(method, backbone), created="")
    with tempfile.TemporaryDirectory(prefix="zsad-tower-") as scratch:
        graph = Path(scratch) / "model.onnx"
        traced = write_onnx(method, graph)
        card = unproven_card(backend, model_card, graph, traced, name="tower")
        runner = OpenVINOBackend(graph, card, precision="auto", threads=threads)
    array = pixels.numpy()
    right, found = backend.run(array), runner.run(array)
    error = float(abs(right.logits - found.logits).max())
    print(f"OpenVINO in {runner.precision}: logits differ by up to {error:.1e}", flush=True)
    return lambda: runner.run(array)


class Products:
    """The widest product of the tower, ViT-L's first of the feed-forward half, in its best way."""

    def __init__(self, config: VisionConfig, *, size: int) -> None:
        tokens = (size // config.patch_size) ** 2 + 1
        self.left, self.right = torch.randn(tokens, config.width), torch.randn(config.mlp_width, config.width)
        self.gflop = 2 * tokens * config.width * config.mlp_width / 1e9

    def rates(self, *, seconds: float = 1.0) -> list[float]:
        """Rates of single products, in 10^9 operations a CPU second, for about so many seconds."""
        found, spent = list[float](), 0.0
        while spent < seconds:
            span = timed(lambda: torch.nn.functional.linear(self.left, self.right))
            spent += span
            found.append(self.gflop / max(span, 1e-9))
        return found


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
    parser.add_argument("--openvino", action="store_true", help="time OpenVINO, too")
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = preset("ViT-L/14@336")
    config = known.config.vision.model_copy(update={"layers": options.layers})
    clip = CLIP(known.config.model_copy(update={"vision": config})).freeze()
    tower = clip.visual
    # Block 6 of 24; a shortened tower keeps the share of blocks without the branch.
    start = options.layers * 5 // 24 + 1
    taps = (options.layers,)
    pixels = torch.randn(1, 3, options.size, options.size)

    def ours() -> list[Tensor]:
        output = tower(pixels, taps=taps, value_value_from=start)
        return [*output.taps, output.cls]

    def explicit() -> list[Tensor]:
        return explicit_tower(tower, pixels, taps=taps, start=start)

    products = Products(config, size=options.size)
    ways: dict[str, Callable[[], object]] = {"explicit": explicit, "zsad": ours}
    with torch.inference_mode():
        error = max(float((a - b).abs().max()) for a, b in zip(ours(), explicit(), strict=True))
        print(f"largest difference {error:.1e}; {options.layers} blocks, branch from {start}", flush=True)
        if options.openvino:
            own = known.model_copy(update={"config": clip.config, "taps": taps})
            backbone = Backbone(clip=clip, tokenizer=Tokenizer(), preset=own, sha256="drawn", name="drawn")
            ways["openvino"] = in_openvino(backbone, pixels, start=start, threads=options.threads)
        rows = list[dict[str, float]]()
        for number in range(1, options.rounds + 1):
            rates = products.rates()
            row = dict[str, float]()
            for name, way in ways.items():
                row[name] = timed(way)
                rates += products.rates()
            rows.append({**row, "rate": statistics.median(rates), "best_rate": max(rates)})
            shown = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in row.items())
            print(
                f"round {number}: {shown}; products {statistics.median(rates):.0f} GFLOP/s, at best {max(rates):.0f}",
                flush=True,
            )
    gflop = floor_gflop(config, size=options.size, start=start)
    result = summary(rows, gflop) | {"layers": options.layers, "threads": options.threads, "error": error}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def summary(rows: list[dict[str, float]], gflop: float) -> dict[str, object]:
    """Prints and returns how many times faster than explicit attention each way is, and its share of the floor."""
    print(f"{gflop:.0f} GFLOP an image")
    found: dict[str, object] = {"gflop": gflop, "rounds": rows}
    for name in (name for name in rows[0] if name not in ("explicit", "rate", "best_rate")):
        times = statistics.median(row["explicit"] / row[name] for row in rows)
        share, of_best = (
            statistics.median(gflop / row[name] / row[rate] for row in rows) for rate in ("rate", "best_rate")
        )
        print(
            f"{name}: {times:.2f} times faster than explicit attention, at {share:.0%} of the floor "
            f"({of_best:.0%} at the best rate of a single product)"
        )
        found[name] = {"times": times, "share": share, "share_at_best_rate": of_best}
    return found


if __name__ == "__main__":
    main()
