"""What PromptMoE costs per image behind the image tower, at ViT-L/14 sizes with random weights.

The eight prompts of an image (four layers, two states) go through the text tower as one batch of token trees. In the
same rounds: eight passes padded to 77 tokens, as published codes run them. Times are CPU seconds of one thread.

    python benchmarks/promptmoe_text.py --rounds 5 --tower-seconds 15.8 --out text.json
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
from torch.nn import functional as F

from zsad.clip.config import VisionConfig, preset
from zsad.clip.model import CLIP
from zsad.clip.tokenizer import Tokenizer
from zsad.clip.weights import Backbone
from zsad.methods.base import ImageFeatures
from zsad.methods.promptmoe import PromptMoE
from zsad.methods.registry import build


def large_text_method() -> PromptMoE:
    """PromptMoE with ViT-L's text tower; the image tower is a dummy of 24 blocks, as its output is random here."""
    known = preset("ViT-L/14@336")
    vision = VisionConfig(image_size=28, patch_size=14, width=8, layers=24, heads=1, mlp_width=8)
    shape = known.config.model_copy(update={"vision": vision})
    backbone = Backbone(CLIP(shape).freeze(), Tokenizer(), known, "random", known.name)
    method = build("promptmoe", None, backbone)
    assert isinstance(method, PromptMoE)
    return method.eval()


def eight_passes(method: PromptMoE, normal: Tensor, abnormal: Tensor) -> Tensor:
    """The same text embeddings (1, 4, 2, 768), prompt by prompt, padded to the full context."""
    tower = method.clip.text
    sos, word, end = torch.split(tower.embed(method._ids), method._lengths)
    rows = []
    for layer in range(normal.shape[1]):
        for state in ([normal[0, layer]], [normal[0, layer], abnormal[0, layer]]):
            prompt = torch.cat([sos, *state, word, method.context[0], end])
            x = torch.zeros(1, tower.config.context_length, prompt.shape[-1])
            x[0, : len(prompt)] = prompt
            x = x + tower.position_embedding
            for block in tower.blocks:
                x = block(x, causal=True)
            rows.append(tower.ln_final(x)[0, len(prompt) - 1] @ tower.proj)
    return F.normalize(torch.stack(rows), dim=-1).view(1, normal.shape[1], 2, -1)


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.inference_mode()
def measure(*, rounds: int, tower_seconds: float) -> dict[str, float]:
    """Medians over interleaved rounds, in milliseconds, and the ratios that matter."""
    method = large_text_method()
    generator = torch.Generator().manual_seed(0)
    features = ImageFeatures(
        torch.randn(1, 4, 37 * 37, 768, generator=generator),
        torch.randn(1, 768, generator=generator),
        (37, 37),
    )
    (normal, abnormal), _ = method._mix(features.patches, features.cls)
    parts: dict[str, Callable[[], object]] = {
        "passes_of_77_ms": lambda: eight_passes(method, normal, abnormal),
        "tree_ms": lambda: method.encode(normal, abnormal),
        "routing_ms": lambda: method._mix(features.patches, features.cls),
        "whole_head_ms": lambda: method(features),
    }
    error = (eight_passes(method, normal, abnormal) - method.encode(normal, abnormal)).abs().max()
    times: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(rounds):
        for name, call in parts.items():
            times[name].append(cpu_seconds(call))
    result = {name: 1000 * statistics.median(values) for name, values in times.items()}
    pairs = zip(times["passes_of_77_ms"], times["tree_ms"], strict=True)
    result["ratio"] = statistics.median(slow / fast for slow, fast in pairs)
    result["tower_seconds_stated"] = tower_seconds
    result["text_share_of_tower"] = result["tree_ms"] / 1000 / tower_seconds
    result["head_share_of_tower"] = result["whole_head_ms"] / 1000 / tower_seconds
    result["largest_difference"] = float(error)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--tower-seconds", type=float, default=15.8, help="CPU seconds of the image tower an image"
    )
    parser.add_argument("--out", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(rounds=arguments.rounds, tower_seconds=arguments.tower_seconds)
    text = json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}, indent=2)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
