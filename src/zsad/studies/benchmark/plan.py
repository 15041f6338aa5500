"""The plan of a benchmark: candidates and cells of a request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from zsad.clip.weights import load_backbone
from zsad.datasets.overlap import names_of, overlap_by_name
from zsad.device import select_device
from zsad.errors import CheckpointError, ConfigError
from zsad.files import content_hash
from zsad.methods.registry import find, names
from zsad.metrics.classes import Pro
from zsad.studies.benchmark.cells import Candidate, Cell, CellPlan, Target, TrainingRun, cell_key
from zsad.studies.benchmark.context import BackboneContext
from zsad.studies.benchmark.papers import papers_pro
from zsad.studies.benchmark.request import BenchmarkRequest
from zsad.train.checkpoint import read_card, resolve_model


def plan_benchmark(request: BenchmarkRequest) -> CellPlan:
    """Return all cells of a request, in the order of working.

    Raises:
        ConfigError: an unknown method, an impossible setting, a target that is trained on.
        CheckpointError: a trained model that cannot be read.
        BackboneError: a backbone that cannot be loaded.
    """
    candidates = _Candidates(request).read()
    targets = _read_targets(request)
    pro = request.pro or papers_pro(candidate.method for candidate in candidates)
    return CellPlan(
        request.work,
        list(_cells(request, candidates, targets, pro=pro)),
        list(targets.values()),
        pro=pro,
        allow_seen=request.allow_seen,
        cost=request.cost,
        threads=request.threads,
        jobs=request.jobs,
    )


def _read_targets(request: BenchmarkRequest) -> dict[str, Target]:
    """Return the sets of a request by path, with distinct names."""
    paths = dict.fromkeys(path for pair in request.pairs for path in (*pair.train, *pair.test))
    targets = {path: Target.discover(path) for path in paths}
    names = [target.name for target in targets.values()]
    return {
        path: replace(target, name=path) if names.count(target.name) > 1 else target
        for path, target in targets.items()
    }


class _Candidates:
    """The candidates of a request, on backbones that are loaded once."""

    def __init__(self, request: BenchmarkRequest) -> None:
        self.request = request
        self.device = select_device(request.device)
        self._contexts: dict[str, BackboneContext] = {}

    def read(self) -> list[Candidate]:
        candidates = [self._candidate(spec) for spec in dict.fromkeys(self.request.methods)]
        labels = [candidate.label for candidate in candidates]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ConfigError(f"--methods has {', '.join(twice)} twice; name them apart as LABEL=PATH")
        return candidates

    def _context(self, source: str) -> BackboneContext:
        if source not in self._contexts:
            weights = self.request.weights if source == self.request.backbone else None
            backbone = load_backbone(source, weights=weights, device=self.device)
            self._contexts[source] = BackboneContext(
                backbone, self.request.work / "features", self.request.execution, source, weights
            )
        return self._contexts[source]

    def _candidate(self, spec: str) -> Candidate:
        label, sign, path = spec.partition("=")
        if not sign and spec in names():
            settings, training = self.request.recipe(spec)
            context = self._context(self.request.backbone)
            config = context.build(spec, settings).config
            return Candidate(spec, spec, config, context, training if find(spec).needs_training else None)
        try:
            model = resolve_model(path if sign else spec)
        except CheckpointError as error:
            if not sign:
                find(spec)  # a method misspelt is the likelier slip
            raise CheckpointError(f"--methods {spec}: {error}") from error
        card = read_card(model)
        context = self._context(card.backbone.name)
        if card.backbone.sha256 != context.backbone.sha256:
            raise CheckpointError(
                f"{model} was trained on a backbone {card.backbone.name} with other weights "
                f"(sha256 {card.backbone.sha256[:12]}) than the one here ({context.backbone.sha256[:12]})"
            )
        config = context.build(card.method, card.config).config
        weights = content_hash(model)
        return Candidate(label, card.method, config, context, checkpoint=model, card=card, weights=weights)


def _cells(
    request: BenchmarkRequest, candidates: Iterable[Candidate], targets: dict[str, Target], *, pro: Pro
) -> Iterator[Cell]:
    """Yield the cells: those without training first, then seed by seed."""
    overlaps: dict[tuple[str, ...], str] = {}

    def cell(candidate: Candidate, target: Target, run: TrainingRun | None) -> Cell:
        overlap = ""
        if run is not None:
            sets = (target.path, *(part.path for part in run.auxiliary))
            if sets not in overlaps:
                overlaps[sets] = _overlap(run.auxiliary, target)
            overlap = overlaps[sets]
        if overlap and not request.allow_seen:
            raise ConfigError(
                f"{overlap}, so it is not unseen: leave it out of the sets to train on or to measure on, or mark "
                "the results with --allow-seen"
            )
        key = cell_key(candidate, run, target, label=candidate.label, name=target.name, pro=pro)
        return Cell(candidate, target, run, key, request.protocol, overlap)

    trained = [candidate for candidate in candidates if candidate.training is not None]
    for candidate in candidates:
        if candidate.training is None:
            for path in dict.fromkeys(path for pair in request.pairs for path in pair.test):
                yield cell(candidate, targets[path], None)
    for seed in request.seeds:
        for candidate in trained:
            for pair in request.pairs:
                if not pair.train:
                    raise ConfigError(
                        f"{candidate.label} is to be trained, and no set to train on is given: add --train-on, or "
                        "name a trained model as LABEL=PATH"
                    )
                run = TrainingRun(candidate, tuple(targets[path] for path in pair.train), seed)
                for path in pair.test:
                    yield cell(candidate, targets[path], run)


def _overlap(auxiliary: Iterable[Target], target: Target) -> str:
    """Say what names, catalogue and paths tell of images that are trained on and measured on; "" where nothing."""
    if target.data is None:
        return ""
    images = {sample.image.resolve() for sample in target.data.samples}
    for part in auxiliary:
        if part.data is None:
            continue
        shared = sum(sample.image.resolve() in images for sample in part.data.samples)
        if shared:
            return f"{shared} of {len(images)} images of {target.name} are trained on with {part.name}"
        if overlap_by_name(names_of(part.data), part.data.classes, target.data):
            return f"{target.name} shares images or classes with {part.name}, which is trained on"
    return ""
