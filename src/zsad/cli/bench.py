"""`zsad bench`: what an image costs, what this machine could do at best, and how near each backend comes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zsad.cli.options import TowerOptions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zsad.predict.view import Model
    from zsad.studies.speed import Peak, Speed


def bench_command(
    model: str = "promptmoe-tiny",
    *,
    tower: TowerOptions | None = None,
    repeats: int = 3,
) -> int:
    """Measure this machine's matrix products, and what share of them each backend reaches with a model.

    The floor is the time that the model's products and convolutions would take at the best rate that a single large
    product reaches here; products are run between the passes, too, as a machine's speed comes and goes. With
    --backbone alone the method is plain CLIP on that tower; without its weights numbers are drawn in their place,
    which changes no time.

    Args:
        model: Bundled model, run folder, checkpoint, or a method without training (clip, clip-tiny).
        repeats: Passes of each backend.
    """
    from zsad.device import use_threads
    from zsad.errors import ConfigError
    from zsad.loading import LoadRequest, load_checkpoint_or_method

    if repeats < 1:
        raise ConfigError(f"--repeats is {repeats}, expected 1 or more")
    tower = tower or TowerOptions()
    used = use_threads(tower.threads)
    if tower.backbone is not None and tower.weights is None:
        loaded = _drawn(tower.backbone)
    else:
        name = model if tower.backbone is None else "clip"
        request = LoadRequest(name, tower.backbone, tower.weights, "cpu")
        loaded = load_checkpoint_or_method(request)
    _measure(loaded, repeats=repeats, threads=used)
    return 0


def _measure(loaded: Model, *, repeats: int, threads: int) -> None:
    """Measure products beside each backend, and print the rates."""
    import tempfile

    from zsad.backends.torch import TorchBackend
    from zsad.cli.console import note
    from zsad.errors import ConfigError
    from zsad.studies.speed import Products, Speed, flops_of, speeds

    runner = loaded.backend
    if not isinstance(runner, TorchBackend):
        raise ConfigError(f"{loaded.file} is an exported graph; give the model it was made from")
    flops, rows = flops_of(runner), list[Speed | str]()
    note("zsad: measuring matrix products")
    products = Products()
    helps = products.best["bf16"].rate > products.best["fp32"].rate
    if not helps:
        rows.append("torch bf16: not measured, products in bf16 are slower than in fp32 on this processor")
    with tempfile.TemporaryDirectory(prefix="zsad-bench-") as scratch:
        for row in speeds(
            loaded,
            Path(scratch),
            products=products,
            flops=flops,
            repeats=repeats,
            threads=threads,
            precisions=("fp32", "bf16") if helps else ("fp32",),
        ):
            rows.append(row)
            if isinstance(row, Speed):
                note(f"zsad: measured {row.backend} {row.precision}")
    _print(loaded, rows, products.best, flops=flops, threads=threads)


def _print(
    loaded: Model, rows: list[Speed | str], best: Mapping[str, Peak], *, flops: float, threads: int
) -> None:
    from zsad.cli.console import say

    card = loaded.card
    height, width = card.preprocess["image_size"]
    say(f"{card.method} on {card.backbone.name}, {width} x {height} pixels: {flops / 1e9:.2f} GFLOP an image")
    for peak in best.values():
        say(
            f"best product in {peak.precision}, {threads} threads: {peak.rate / 1e9:.0f} GFLOP/s ({peak.library}), "
            f"floor {1000 * flops / peak.rate:.0f} ms an image"
        )
    say(f"{'backend':<10} {'precision':<9} {'ms':>8} {'GFLOP/s':>8} {'of best':>8} {'beside':>7}")
    for row in rows:
        if isinstance(row, str):
            say(row)
            continue
        rate = flops / row.seconds
        say(
            f"{row.backend:<10} {row.precision:<9} {1000 * row.seconds:8.1f} {rate / 1e9:8.0f} "
            f"{100 * rate / best[row.precision].rate:6.0f} % {100 * row.beside:5.0f} %"
        )
    say("of best: the best pass against the best product, a moment's rate on a machine with other work")
    say("beside: a pass against the products run just before and behind it, the median of the passes")


def _drawn(backbone: str) -> Model:
    """Return plain CLIP on a tower of a known shape, with bundled weights where there are any, else with drawn ones."""
    import torch

    from zsad.backends.torch import TorchBackend
    from zsad.clip.config import PRESETS
    from zsad.clip.model import CLIP
    from zsad.clip.tokenizer import Tokenizer
    from zsad.clip.weights import Backbone
    from zsad.loading import LoadRequest, load_checkpoint_or_method
    from zsad.methods.registry import build
    from zsad.train.training_card import CardParts, card_of

    if backbone not in PRESETS:
        return load_checkpoint_or_method(LoadRequest("clip", backbone, None, "cpu"))
    preset = PRESETS[backbone]
    with torch.random.fork_rng():
        clip = CLIP(preset.config).freeze()
    tower = Backbone(clip=clip, tokenizer=Tokenizer(), preset=preset, sha256="drawn", name=backbone)
    # One sentence a state: text is no part of what is measured.
    settings = {"layers": preset.taps, "value_value": preset.value_value, "templates": "single"}
    method = build("clip", settings, tower)
    from zsad.predict.view import Model

    return Model(TorchBackend(method), card_of(method, CardParts.of(method, tower), created=""))
