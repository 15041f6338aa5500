"""Whether the modules of a model live: what changes when each is switched off or follows another image.

Maps, text and scores are the method's own, before cues of oddness are fused in; what becomes of a change in the fused
score is said beside it. All are of the same images, in one pass over them, and the tower runs once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from zsad.datasets.manifest import DataSet, discover
from zsad.detector import Detector
from zsad.errors import ConfigError, DataError, ZsadError
from zsad.methods.base import ImageFeatures, Internals, Method, Output, PaperModule
from zsad.methods.modules import other_image, switched
from zsad.predict.pipeline import OnError, Ready, read
from zsad.predict.view import View
from zsad.studies.explain.collect import choose_pictures, expert_names, layer_names
from zsad.train.samples import start_generator

ALONE = 0.9
"""Share of a case's weight from which on an expert counts as alone; zero experts, which add nothing, do not share."""
FUSION = "oddness"
Floats = npt.NDArray[np.float64]


@dataclass(slots=True)
class Change:
    """Change of what a model puts out, over all images.

    Attributes:
        maps: norm of the change of the logits over their norm.
        text: mean of 1 - cosine between texts; None where the method shows none.
        ranks: Spearman correlation of the image scores before and after.
        score: largest change of an image score.
        fused_ranks: Spearman correlation of the scores with cues fused in; None without them.
    """

    maps: float
    text: float | None
    ranks: float
    score: float
    fused_ranks: float | None = None


@dataclass(slots=True)
class ModuleResult:
    """Result of one module.

    Attributes:
        name: of the module.
        module: its declaration.
        off: change when it is switched off.
        other: change when images follow each other's input; None where it does not follow images.
        moved: norm of its parameters' change since the start over the larger norm of both; None where not known.
    """

    name: str
    module: PaperModule
    off: Change
    other: Change | None = None
    moved: float | None = None


@dataclass(slots=True)
class PoolLayer:
    """Use of the experts of a pool in one layer.

    Attributes:
        pool: its name.
        layer: name of the layer.
        unit: what is routed.
        experts: names.
        chosen: (E,) share of the cases in which an expert is among the chosen.
        alone: (E,) share of the cases in which it has nearly all the weight (`ALONE`).
        alike: mean cosine between two experts' outputs; None where not known.
    """

    pool: str
    layer: str
    unit: str
    experts: tuple[str, ...]
    chosen: Floats
    alone: Floats
    alike: float | None = None


@dataclass(slots=True)
class Liveness:
    """What `measure_liveness` found.

    Attributes:
        model: name, method and backbone.
        datasets: number of images of each data set.
        modules: by name, in the method's order.
        pools: layer by layer.
        kl: divergence of the posterior from its prior, in nats; None without one.
        skipped: files that could not be used, with reasons.
    """

    model: dict[str, Any]
    datasets: dict[str, int]
    modules: list[ModuleResult] = field(default_factory=list)
    pools: list[PoolLayer] = field(default_factory=list)
    kl: float | None = None
    skipped: list[tuple[str, str]] = field(default_factory=list)


def measure_liveness(
    detector: Detector,
    datasets: Sequence[DataSet | str | Path],
    *,
    images: int = 64,
    batch_size: int = 8,
    on_error: OnError | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Liveness:
    """Switch off every module of a model in turn, and compare what it puts out.

    Args:
        detector: of a method that names its modules (`Method.paper_modules`).
        datasets: folders, manifests, or data sets of `discover`.
        images: at most this many, spread over the data sets.
        batch_size: images a pass, at least 2: "another image" is the one before it in the batch.
        on_error: called with each sample that cannot be used.
        progress: called with the number of images of each batch that is done.

    Raises:
        ConfigError: a graph, a method without named modules, or an impossible argument.
        DataError: fewer than two images could be used.
    """
    if images < 2 or batch_size < 2:
        raise ConfigError(f"images is {images} and batch_size {batch_size}, expected 2 or more of both")
    method = detector.method
    sets = [discover(data) if isinstance(data, str | Path) else data for data in datasets]
    chosen = choose_pictures([sample for data in sets for sample in data.samples], images)
    order = np.random.default_rng(0).permutation(len(chosen))  # neighbours are not of one kind
    counted = _Measurement(method)
    skipped = []
    names: dict[str, int] = {}
    for start in range(0, len(chosen), batch_size):
        ready = []
        for sample in (chosen[index] for index in order[start : start + batch_size]):
            try:
                ready.append(read(sample, detector.model, View()))
                names[sample.dataset] = names.get(sample.dataset, 0) + 1
            except ZsadError as error:
                skipped.append((str(sample.image), str(error)))
                if on_error is not None:
                    on_error(sample, error)
        if ready:
            counted.add(ready)
        progress(len(order[start : start + batch_size]))
    if sum(names.values()) < 2:
        raise DataError(f"{sum(names.values())} of {len(chosen)} images could be used, needed are 2 or more")
    card = detector.card
    model = {"name": detector.name, "method": card.method, "backbone": card.backbone.name}
    result = Liveness(model, dict(sorted(names.items())), skipped=skipped)
    counted.write(result)
    if card.training is not None:
        _measure_moves(method, result, seed=card.training.seed)
    return result


class _Tally:
    """Sums of one comparison, batch by batch."""

    def __init__(self) -> None:
        self.change = self.norm = self.text = 0.0
        self.texts = 0
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []

    def add(self, before: _Pass, after: _Pass) -> None:
        self.change += float((after.own.logits - before.own.logits).double().square().sum())
        self.norm += float(before.own.logits.double().square().sum())
        if before.text is not None and after.text is not None:
            batch = len(before.own.score)
            cosine = F.cosine_similarity(before.text.double(), after.text.double(), dim=-1)
            cosine = cosine.expand(batch, *cosine.shape[1:])
            self.text += float((1 - cosine).flatten(1).mean(dim=1).sum())
            self.texts += batch
        self.before.append(torch.stack([before.own.score, before.fused.score]))
        self.after.append(torch.stack([after.own.score, after.fused.score]))

    def result(self, *, fused: bool) -> Change:
        before, after = (torch.cat(rows, dim=1).double().cpu().numpy() for rows in (self.before, self.after))
        return Change(
            (self.change / max(self.norm, 1e-30)) ** 0.5,
            self.text / self.texts if self.texts else None,
            spearman(before[0], after[0]),
            float(np.abs(after[0] - before[0]).max()),
            spearman(before[1], after[1]) if fused else None,
        )


@dataclass(slots=True)
class _Pass:
    """Output of the method itself and with cues fused in, and the text (B or 1, ..., D)."""

    own: Output
    fused: Output
    text: Tensor | None


class _Measurement:
    """Sums over the batches of images."""

    def __init__(self, method: Method) -> None:
        self.method = method
        self.modules = method.paper_modules()
        if not self.modules and method.fusion is None:
            raise ConfigError(
                f"method {method.name!r} names no modules that could be switched off; see paper_modules in "
                "docs/new-method.md"
            )
        if method.fusion is not None:
            self.modules[FUSION] = PaperModule("the method's own map and score", {})
        self.off = {name: _Tally() for name in self.modules}
        self.other = {
            name: _Tally() for name, module in self.modules.items() if module.by_image or name == FUSION
        }
        self.weights: dict[str, list[Tensor]] = {}
        self.units: dict[str, str] = {}
        self.alike: dict[str, list[Tensor]] = {}
        self.kl: list[Tensor] = []

    @torch.no_grad()
    def add(self, ready: Sequence[Ready]) -> None:
        """Add a batch."""
        method = self.method
        weight = next(method.parameters())
        pixels = torch.from_numpy(np.stack([one.pixels for one in ready])).to(weight.device, weight.dtype)
        names = tuple(one.object_name or "object" for one in ready)
        features = replace(method.encode_image(pixels), object_names=names)
        internals = method.internals(features)
        before = self._run(features, internals)
        self._add_experts(features, before.own, internals)
        for name, module in self.modules.items():
            if name == FUSION:
                self.off[name].add(_fused_alone(before), _Pass(before.own, before.own, None))
            else:
                with switched(method, module.off):
                    self.off[name].add(before, self._run(features, text=module.text))
            if name in self.other and len(ready) > 1:
                self._add_other(name, module, features, before)

    def _add_other(self, name: str, module: PaperModule, features: ImageFeatures, before: _Pass) -> None:
        if name == FUSION and features.cues is not None:
            fused = self.method.fuse(before.own, replace(features, cues=features.cues.roll(1, dims=0)))
            self.other[name].add(_fused_alone(before), _Pass(fused, fused, None))
        else:
            with other_image(self.method, module.by_image):
                self.other[name].add(before, self._run(features, text=module.text))

    def _run(
        self, features: ImageFeatures, internals: Internals | None = None, *, text: bool = False
    ) -> _Pass:
        own = self.method(features)
        internals = self.method.internals(features) if text else internals
        return _Pass(own, self.method.fuse(own, features), None if internals is None else internals.text)

    def _add_experts(self, features: ImageFeatures, output: Output, internals: Internals) -> None:
        patches = {pool: w.transpose(1, 2) for pool, w in self.method.token_routing(features).items()}
        for pool, weights in {**(output.routing or {}), **patches}.items():
            self.units[pool] = "patches" if pool in patches else "images"
            rows = weights.flatten(0, 1) if pool in patches else weights
            self.weights.setdefault(pool, []).append(rows.float().cpu())
        for pool, gram in internals.outputs.items():
            self.alike.setdefault(pool, []).append(mean_cosine(gram))
        if internals.kl is not None:
            self.kl.append(internals.kl.double().cpu())

    def write(self, result: Liveness) -> None:
        """Put the results of all batches into `result`."""
        fused = self.method.fusion is not None
        for name, module in self.modules.items():
            with_cues = fused and name != FUSION
            other = self.other.get(name)
            result.modules.append(
                ModuleResult(
                    name,
                    module,
                    self.off[name].result(fused=with_cues),
                    other.result(fused=with_cues) if other is not None and other.before else None,
                )
            )
        for pool, rows in self.weights.items():
            result.pools += self._pool_layers(pool, torch.cat(rows).double().numpy())
        result.kl = float(torch.stack(self.kl).mean()) if self.kl else None

    def _pool_layers(self, pool: str, weights: Floats) -> list[PoolLayer]:
        """Use of a pool by its weights (n, L, E)."""
        names = expert_names(self.method, pool, weights.shape[-1])
        active = np.array([not name.startswith("zero") for name in names])
        total = (weights * active).sum(axis=-1, keepdims=True)
        alone = ((weights * active >= ALONE * total) & (total > 0)).mean(axis=0)
        chosen = (weights > 0).mean(axis=0)
        alike: Sequence[float | None] = [None] * weights.shape[1]
        if pool in self.alike:
            alike = [float(x) for x in torch.stack(self.alike[pool]).nanmean(dim=0).expand(weights.shape[1])]
        return [
            PoolLayer(pool, layer, self.units[pool], names, chosen[index], alone[index], alike[index])
            for index, layer in enumerate(layer_names(self.method, weights.shape[1]))
        ]


def _fused_alone(before: _Pass) -> _Pass:
    return _Pass(before.fused, before.fused, None)


def mean_cosine(gram: Tensor) -> Tensor:
    """Mean cosine (L,) of two different experts by inner products (L, ..., E, E); outputs of nothing are left out.

    Example:
        >>> outputs = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> mean_cosine((outputs @ outputs.T)[None]).tolist()
        [0.0]
    """
    flat = gram.double().reshape(gram.shape[0], -1, *gram.shape[-2:])
    lengths = flat.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    both = lengths.unsqueeze(-1) * lengths.unsqueeze(-2)
    different = ~torch.eye(flat.shape[-1], dtype=torch.bool, device=flat.device)
    counts = different & (both > 1e-12)
    cosine = torch.where(counts, flat / both.clamp_min(1e-12), torch.nan)
    return cosine.flatten(1).nanmean(dim=1).cpu()


def spearman(first: Floats, second: Floats) -> float:
    """Correlation of the ranks of two series, equal values sharing the mean of their ranks.

    A series without differences has no order that could be lost or kept: 1 beside one that has none either, else 0.

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 9.0]))
        1.0
    """
    ranks = []
    for values in (first, second):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        rank = (np.cumsum(counts) - (counts - 1) / 2)[place]
        ranks.append(rank - rank.mean())
    norms = [float(np.sqrt((rank**2).sum())) for rank in ranks]
    if not all(norms):
        return float(norms[0] == norms[1])
    return round(float((ranks[0] * ranks[1]).sum()) / (norms[0] * norms[1]), 12)


@torch.no_grad()
def _measure_moves(method: Method, result: Liveness, *, seed: int) -> None:
    """How far parameters are from the start that training drew with `seed`."""
    trained = {name: tensor.clone() for name, tensor in method.adapter_state().items()}
    try:
        method.reset_parameters(start_generator(seed, next(method.parameters()).device))
        start = {name: tensor.clone() for name, tensor in method.adapter_state().items()}
    finally:
        method.load_adapter(trained)
    for line in result.modules:
        names = [name for name in trained if any(fnmatch(name, own) for own in line.module.parameters)]
        if names:
            now, then = (
                torch.cat([own[name].flatten().double() for name in names]) for own in (trained, start)
            )
            size = torch.maximum(now.norm(), then.norm()).clamp_min(1e-30)
            line.moved = float((now - then).norm() / size)
