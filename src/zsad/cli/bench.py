"""`zsad bench`: what an image costs, what this machine could do at best, and how near each backend comes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zsad.infer.models import Loaded


def bench_command(
    model: str = "promptmoe-tiny",
    *,
    backbone: str | None = None,
    weights: Path | None = None,
    repeats: int = 3,
    threads: int | None = None,
) -> int:
    """Measure this machine's matrix products, and what share of them each backend reaches with a model.

    The floor is the time that the model's products and convolutions would take at the best rate that a single large
    product reaches here. With --backbone alone the method is plain CLIP on that tower; without its weights numbers
    are drawn in their place, which changes no time.

    Args:
        model: Bundled model, run folder, checkpoint, or a method without training (clip, clip-tiny).
        backbone: Measure plain CLIP on this tower instead, by name or path.
        weights: File or folder of the backbone's weights; without, a known backbone gets drawn ones.
        repeats: Passes of which the best counts.
        threads: Processor threads; by default all cores.
    """
    import tempfile

    from zsad.cli.console import say
    from zsad.device import use_threads
    from zsad.errors import ConfigError
    from zsad.infer.backends.torch import TorchBackend
    from zsad.infer.models import Request, load_checkpoint_or_method

    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}, expected 1 or more")
    used = use_threads(threads)
    if backbone is not None and weights is None:
        loaded = _drawn(backbone)
    else:
        request = Request(model if backbone is None else "clip", backbone, weights, "cpu")
        loaded = load_checkpoint_or_method(request)
    from zsad.export.speed import Speed, flops_of, peaks, speeds

    runner = loaded.backend
    assert isinstance(runner, TorchBackend)
    flops, best, side = flops_of(runner), peaks(), runner.method.config.image_size
    say(
        f"{loaded.card.method} on {loaded.card.backbone.name}, {side} x {side} pixels: {flops / 1e9:.2f} GFLOP an image"
    )
    for peak in best.values():
        say(
            f"best product in {peak.precision}, {used} threads: {peak.rate / 1e9:.0f} GFLOP/s ({peak.library}), "
            f"floor {1000 * flops / peak.rate:.0f} ms an image"
        )
    say(f"{'backend':<10} {'precision':<10} {'ms':>8} {'GFLOP/s':>8}  share of the best product")
    with tempfile.TemporaryDirectory(prefix="zsad-bench-") as scratch:
        for row in speeds(loaded, Path(scratch), repeats=repeats, threads=used):
            if not isinstance(row, Speed):
                say(row)
                continue
            rate = flops / row.seconds
            say(
                f"{row.backend:<10} {row.precision:<10} {1000 * row.seconds:8.1f} {rate / 1e9:8.0f}  "
                f"{100 * rate / best[row.precision].rate:.0f} %"
            )
    return 0


def _drawn(backbone: str) -> Loaded:
    """Plain CLIP on a tower of a known shape; its own weights where they are bundled, else drawn ones."""
    import torch

    from zsad.clip.model import CLIP
    from zsad.clip.presets import PRESETS
    from zsad.clip.tokenizer import Tokenizer
    from zsad.clip.weights import Backbone
    from zsad.infer.backends.torch import TorchBackend
    from zsad.infer.models import Loaded, Request, load_checkpoint_or_method
    from zsad.methods.registry import build
    from zsad.train.card import CardParts, card_of

    if backbone not in PRESETS:
        return load_checkpoint_or_method(Request("clip", backbone, None, "cpu"))
    preset = PRESETS[backbone]
    with torch.random.fork_rng():
        clip = CLIP(preset.config).freeze()
    tower = Backbone(clip=clip, tokenizer=Tokenizer(), preset=preset, sha256="drawn", name=backbone)
    # One sentence a state: text is no part of what is measured.
    method = build("clip", {"layers": preset.taps, "templates": "single"}, tower)
    return Loaded(TorchBackend(method), card_of(method, CardParts.of(method, tower), created=""))
