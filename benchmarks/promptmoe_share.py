"""Where one image's time goes in PromptMoE with ViT-L/14@336 at 518 pixels: towers, text side, everything behind them.

Random weights; processor seconds of this process, one thread by default; the parts are timed in every round.

    python benchmarks/promptmoe_share.py [--rounds 3] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from zsad.clip.weights import load_backbone
from zsad.methods.promptmoe import PromptMoE
from zsad.methods.registry import build
from zsad.methods.similarity import image_probability, layer_maps, patch_logits
from zsad.nn.maps import render_map_numpy


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result and the processor seconds it took."""
    start = time.process_time()
    result = call()
    return result, time.process_time() - start


@torch.inference_mode()
def one_round(method: PromptMoE, pixels: torch.Tensor) -> dict[str, float]:
    """Seconds of each part of one image."""
    config, spec = method.config, method.map_spec
    features, tower = timed(lambda: method.features(pixels))

    def text_side() -> torch.Tensor:
        segments, _ = method._mix(features.patches, features.cls)
        return method.encode(*segments)

    text, words = timed(text_side)

    def behind() -> object:
        logits = patch_logits(features.patches, text, temperature=config.tau)
        logits = logits.view(*logits.shape[:2], *features.grid)
        probability = image_probability(features.cls, text[:, -1], temperature=config.tau_prime)
        maps = layer_maps(logits, spec, size=spec.size)
        score = (maps.mean(dim=1).amax(dim=(-2, -1)) + probability) / 2
        return score, render_map_numpy(logits[0].numpy(), spec)

    _, rest = timed(behind)
    return {"image tower": tower, "routing and text": words, "similarity, score and map": rest}


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    method = build("promptmoe", None, load_backbone("ViT-L/14@336", random_seed=0)).eval()
    assert isinstance(method, PromptMoE)
    pixels = torch.randn(1, 3, 518, 518, generator=torch.Generator().manual_seed(0))
    rounds = [one_round(method, pixels) for _ in range(options.rounds + 1)][1:]
    total = statistics.median(sum(parts.values()) for parts in rounds)
    for part in rounds[0]:
        seconds = statistics.median(parts[part] for parts in rounds)
        print(f"{part:28} {seconds:8.3f} s  {100 * seconds / total:6.2f} %")
    if options.json:
        options.json.write_text(json.dumps(rounds, indent=1) + "\n")


if __name__ == "__main__":
    main()
