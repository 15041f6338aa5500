"""What one ViT-L/14@336 image at 518 pixels costs in every method, as a multiple of the bare image tower.

Random weights, the methods' own defaults, processor seconds of one thread. Beside each method the bare tower is timed:
one plain pass, and, where a method reads the value-value branch, one with it, so that the method's own share shows
apart from the branch's. Text that no image changes is encoded beforehand, as in any run of more than one image.

On a busy machine two passes of the same tower differ by a tenth and more. What follows the tower is therefore timed
apart, too, and its floating-point operations are counted: "own work" is free of that noise. (MoECLIP and AdaCLIP go
through the tower, or a part of it, there.)

    python benchmarks/method_cost.py [--methods ...] [--rounds 1] [--json FILE]

WinCLIP's windows cost over ten towers an image: it is left out unless named.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from zsad.clip.weights import Backbone, load_backbone
from zsad.methods.base import ImageFeatures, Method
from zsad.methods.registry import METHODS, build
from zsad.nn.maps import render_map_numpy

SIZE = 518


def timed(call: Callable[[], Any]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.inference_mode()
def measure(method: Method, backbone: Backbone, *, rounds: int) -> dict[str, Any]:
    """Medians over rounds, the bare tower and the method in turn."""
    pixels = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    words = ("metal nut",)
    taps = method.config.layers

    def tower(start: int | None) -> Callable[[], Any]:
        return lambda: backbone.clip.visual(pixels, taps=taps, value_value_from=start)

    def own(features: ImageFeatures) -> None:
        output = method(replace(features, object_names=words))
        render_map_numpy(output.logits[0].numpy(), method.map_spec)

    def whole() -> None:
        own(method.features(pixels))

    branch = method.config.value_value_from if method.config.value_value else None
    small = method.features(pixels)  # warms up: position tables, map operators, fixed text
    own(small)
    rows = [
        {
            "tower": timed(tower(None)),
            "branch": timed(tower(branch)) if branch else None,
            "method": timed(whole),
            "own": statistics.median(timed(lambda: own(small)) for _ in range(3)),
        }
        for _ in range(rounds)
    ]
    plain = statistics.median(row["method"] / row["tower"] for row in rows)
    of_its = statistics.median(row["method"] / (row["branch"] or row["tower"]) for row in rows)
    share = statistics.median(row["own"] / (row["branch"] or row["tower"]) for row in rows)
    with FlopCounterMode(display=False) as counter:
        own(small)
    return {
        "value_value": branch is not None,
        "against_plain_tower": plain,
        "against_its_tower": of_its,
        "own_work": share,
        "own_gflop": counter.get_total_flops() / 1e9,
        "rounds": rows,
    }


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    chosen = [name for name in METHODS if name != "winclip"]
    parser.add_argument("--methods", nargs="+", default=chosen, choices=list(METHODS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_backbone("ViT-L/14@336", random_seed=0)
    found = {}
    print(f"{'method':12} {'tower with':11} {'of plain tower':>14} {'of its tower':>13} {'own work':>9}")
    for name in options.methods:
        method = build(name, None, backbone).eval()
        found[name] = row = measure(method, backbone, rounds=options.rounds)
        which = "V-V" if row["value_value"] else "-"
        ratios = (row["against_plain_tower"], row["against_its_tower"])
        print(
            f"{name:12} {which:11} {ratios[0]:13.2f}x {ratios[1]:12.2f}x {row['own_work']:9.1%}", flush=True
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
