"""Settings of a measured model that are not those of the paper whose numbers it is compared with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zsad.clip.config import preset
from zsad.datasets.catalog import bundled, domain_of
from zsad.datasets.words import letters
from zsad.methods.registry import find
from zsad.studies.benchmark.cell_results import CellResult
from zsad.studies.benchmark.papers import Paper, Recipe
from zsad.train.train_config import RUN_FIELDS, TrainConfig

_NO_CHOICE = frozenset({*RUN_FIELDS, "seed"})  # of a training; several seeds are the rule

PRO_NOTES = {  # which PRO stands in a table
    "aupro": "PRO is the area under the whole curve up to a false positive rate of 0.3 (MVTec AD's AU-PRO).",
    "anomalyclip": "PRO is AnomalyCLIP's, as most papers print it: 200 equal steps of the score, rates below 0.3.",
    "mvtec3d": "PRO is MVTec 3D-AD's: 100 thresholds up to a false positive rate of 0.3.",
}


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting of a method, its training, its backbone or its auxiliary data, where ours is not the paper's."""

    setting: str
    ours: Any
    paper: Any

    def __str__(self) -> str:
        return f"{self.setting} = {_text(self.ours)} (paper: {_text(self.paper)})"


def setting_differences(
    result: CellResult, paper: Paper, *, settings: Mapping[str, Any] | None = None
) -> Iterator[SettingDifference]:
    """Yield every setting of a result that differs from the paper's preset.

    The preset is the method's defaults on the paper's backbone with the recipe that the paper's tables have for it.

    Args:
        result: ours.
        paper: whose numbers stand beside it.
        settings: of the method in the paper; None: those of the paper's recipe.
    """
    method, recipe = find(result.method).load(), paper.recipes.get(result.method, Recipe())
    if letters(result.backbone) != letters(paper.backbone):
        yield SettingDifference("backbone", result.backbone, paper.backbone)
    published = preset(paper.backbone)
    chosen = recipe.settings if settings is None else settings
    if "domain" in method.config_class.model_fields and (domain := domain_of(result.target)):
        chosen = {"domain": domain, **chosen}
    config = method.config_class.for_backbone(published, **{"image_size": paper.image_size, **chosen})
    yield from _differing(result.settings, config.model_dump(mode="json"))
    if find(result.method).needs_training:
        theirs = TrainConfig(**{**method.training_defaults, **recipe.training})
        known = {name: value for name, value in (result.training or {}).items() if name in _TRAINING}
        ours = TrainConfig(**known) if result.training else theirs  # an old card may not know its training
        yield from _differing(dict(ours), dict(theirs))
    if result.trained_on:
        entry = bundled().get(result.target)
        auxiliary = paper.trained_on("" if entry is None else entry.name)
        if _catalogued(result.trained_on) != set(auxiliary):
            yield SettingDifference("trained_on", list(result.trained_on), list(auxiliary))


_TRAINING = TrainConfig.model_fields.keys() - _NO_CHOICE


def _differing(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Iterator[SettingDifference]:
    for name in dict.fromkeys([*theirs, *ours]):
        if name not in _NO_CHOICE and name in ours and ours[name] != theirs.get(name):
            yield SettingDifference(name, ours[name], theirs.get(name))


def _catalogued(names: Iterable[str]) -> set[str]:
    book = bundled()
    return {entry.name if (entry := book.get(name)) else name for name in names}


def describe(name: str, paper: str, differences: Iterable[SettingDifference]) -> str:
    """Return the sentence that stands with every table: what of `name` is not as in the paper."""
    listed = ", ".join(dict.fromkeys(map(str, differences)))
    if not listed:
        return f"{name} has the settings of {paper}."
    return f"{name} does not have the settings of {paper}: {listed}."


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value)
