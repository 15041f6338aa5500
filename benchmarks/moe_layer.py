"""MoECLIP's layer in rank space, and its neighbourhood means, against the forms of the published code.

The dense form evaluates every expert in full width: dropout, two linear maps and a scale each, their outputs stacked
(T, E, D), the chosen ones gathered and weighed, norms taken of full vectors, and the auxiliary loss from `Z Z^T` of the
normalised stack. Both forms are given the same weights and do one forward and backward pass with all losses, tokens
requiring gradients; their values and gradients are compared without dropout, whose draws differ. The neighbourhood
means are compared with `unfold` and a mean, forward alone. CPU seconds of the process are compared, in turn.

    python benchmarks/moe_layer.py --tokens 2740 --rounds 7 --threads 1
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zsad.nn.lora import LoRAMixture, etf_loss, imbalance_loss
from zsad.nn.pooling import average_pool

AUXILIARY = 0.01
GRID = (37, 37)


class DenseMixture(nn.Module):
    """The layer as published, on the weights of ours."""

    def __init__(self, layer: LoRAMixture, *, dropout: float) -> None:
        super().__init__()
        self.gate = nn.Parameter(layer.router.detach().clone())
        self.down = [matrix.clone() for matrix in layer.down]
        self.up = nn.ParameterList(matrix.detach().T.clone() for matrix in layer.up)
        self.layer, self.dropout = [layer], dropout

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, ETF loss and balance loss of x (T, D)."""
        [layer], experts = self.layer, len(self.up)
        probabilities = F.linear(x, self.gate).softmax(dim=-1)
        top, chosen = probabilities.topk(layer.top_k, dim=-1)
        top = top / top.sum(dim=-1, keepdim=True)
        outputs = torch.stack(
            [
                F.linear(F.linear(F.dropout(x, self.dropout), down), up) * layer.scale
                for down, up in zip(self.down, self.up, strict=True)
            ],
            dim=1,
        )
        picked = outputs.gather(1, chosen.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        y = (picked * top.unsqueeze(-1)).sum(dim=1)
        y = y * (x.norm(dim=-1, keepdim=True) / (y.norm(dim=-1, keepdim=True) + layer.norm_floor))
        unit = F.normalize(outputs, dim=-1, eps=1e-6)
        target = torch.full((experts, experts), -1 / (experts - 1)).fill_diagonal_(1)
        gram = torch.bmm(unit, unit.transpose(1, 2))
        mass = probabilities.sum(dim=0)
        balance = (mass.std() / mass.mean()) ** 2
        return (
            layer.blend * y + (1 - layer.blend) * x,
            F.mse_loss(gram, target.expand_as(gram)),
            balance,
        )


def ranked(layer: LoRAMixture, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same three of ours."""
    routed = layer(x)
    return routed.tokens, etf_loss(routed.gram), imbalance_loss(routed.logits)


def step(form: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]], x: Tensor, gradient: Tensor) -> Tensor:
    """One forward and backward pass; the tokens it gave."""
    x.grad = None
    tokens, etf, balance = form(x)
    weight = torch.tensor(AUXILIARY)
    torch.autograd.backward([tokens, etf, balance], [gradient, weight, weight])
    return tokens.detach()


def seconds(function: Callable[[], object]) -> float:
    """CPU seconds of this process in one call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def compare(slow: Callable[[], object], fast: Callable[[], object], *, rounds: int) -> dict[str, float]:
    """Median milliseconds of both, in turn after one call each to warm up, and their ratio."""
    slow(), fast()
    rows = [(seconds(slow), seconds(fast)) for _ in range(rounds)]
    before, after = (1000 * statistics.median(column) for column in zip(*rows, strict=True))
    ratio = statistics.median(a / b for a, b in rows)
    return {"published_ms": round(before, 1), "zsad_ms": round(after, 2), "ratio": round(ratio, 1)}


def measure_layer(*, tokens: int, width: int, rounds: int, dropout: float) -> dict[str, float]:
    """The layer with dropout (or without, then with the largest differences between both forms)."""
    torch.manual_seed(0)
    layer = LoRAMixture(width, experts=4, top_k=2, rank=8, dropout=dropout).train()
    with torch.no_grad():
        layer.up.normal_(std=0.02)
        layer.router.normal_(std=0.02)
    dense = DenseMixture(layer, dropout=dropout)
    x, gradient = torch.randn(tokens, width, requires_grad=True), torch.randn(tokens, width)
    result = compare(
        lambda: step(dense, x, gradient),
        lambda: step(lambda tokens: ranked(layer, tokens), x, gradient),
        rounds=rounds,
    )
    if not dropout:
        theirs, their_grad = step(dense, x, gradient), x.grad
        ours = step(lambda tokens: ranked(layer, tokens), x, gradient)
        assert their_grad is not None and x.grad is not None
        result["value_error"] = float((ours - theirs).abs().max())
        result["gradient_error"] = float((x.grad - their_grad).abs().max())
    return result


def unfolded(tokens: Tensor, size: int) -> Tensor:
    """The published form of the zero-padded mean."""
    batch, count, width = tokens.shape
    image = tokens.transpose(1, 2).reshape(batch, width, *GRID)
    windows = F.unfold(image, size, padding=size // 2).view(batch, width, size * size, count)
    return windows.mean(dim=2).transpose(1, 2)


@torch.inference_mode()
def measure_pooling(*, size: int, width: int, rounds: int) -> dict[str, float]:
    """The mean over one window on the grid of a ViT-L at 518 pixels."""
    tokens = torch.randn(1, GRID[0] * GRID[1], width)

    def ours() -> Tensor:
        return average_pool(tokens, GRID, size=size, zero_padded=True)

    result = compare(lambda: unfolded(tokens, size), ours, rounds=rounds)
    return {**result, "value_error": float((ours() - unfolded(tokens, size)).abs().max())}


def main() -> None:
    """Prints a line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--tokens", type=int, default=2740, help="two images of 1370 tokens")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="file to write the numbers to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, object] = {"tokens": options.tokens, "width": options.width, "threads": options.threads}
    for name, dropout in (("layer, dropout 0.05", 0.05), ("layer, no dropout", 0.0)):
        result[name] = measure_layer(
            tokens=options.tokens, width=options.width, rounds=options.rounds, dropout=dropout
        )
        print(name, result[name], flush=True)
    for size in (3, 5):
        name = f"mean over {size} x {size}"
        result[name] = measure_pooling(size=size, width=options.width, rounds=options.rounds)
        print(name, result[name], flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
