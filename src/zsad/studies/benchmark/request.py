"""The request of a benchmark; as JSON it goes to the workers, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from zsad.errors import ConfigError, DataError
from zsad.files import parse_toml
from zsad.methods.registry import find, names
from zsad.metrics.classes import Pro
from zsad.studies.benchmark.pairing import Pair
from zsad.studies.benchmark.papers import Recipe
from zsad.train.train_config import RUN_FIELDS, TrainConfig


class BenchmarkRequest(BaseModel, frozen=True, extra="forbid"):
    """The settings of a benchmark."""

    methods: tuple[str, ...] = Field(min_length=1, description="names, or LABEL=PATH of trained models")
    pairs: tuple[Pair, ...] = Field(min_length=1, description="of paths")
    protocol: str = Field(default="", description="name of the pairing; empty where given by hand")
    seeds: tuple[int, ...] = (111,)
    work: Path
    backbone: str = "zsad-tiny"
    weights: Path | None = None
    device: str = "auto"
    threads: int | None = None
    jobs: int = Field(default=1, ge=1, description="tasks at work at once")
    address: str | None = Field(default=None, description="of a Ray cluster")
    recipes: dict[str, Recipe] = Field(default_factory=dict, description="by method; 'common' is for all")
    training: dict[str, Any] = Field(
        default_factory=dict, description="fields of TrainConfig, for all methods"
    )
    pro: Pro | None = Field(default=None, description="of the PRO column; None: that of the methods' papers")
    allow_seen: bool = False
    cost: bool = Field(default=True, description="measure time and memory of each method")

    def recipe(self, method: str) -> tuple[dict[str, Any], TrainConfig]:
        """Return settings of a method and of its training: the paper's, the recipes' over them, then those for all.

        Raises:
            ConfigError: a training setting that is unknown or impossible.
        """
        common, specific = (self.recipes.get(name, Recipe()) for name in ("common", method))
        training = {
            **find(method).load().training_defaults,
            **common.training,
            **specific.training,
            **self.training,
        }
        try:
            settled = TrainConfig.model_validate(training)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(
                f"training setting {where} = {first['input']!r} of {method}: {first['msg'].lower()}"
            ) from error
        return {**common.settings, **specific.settings}, settled

    @property
    def execution(self) -> TrainConfig:
        """The cache, its limit, and the threads that read files."""
        return TrainConfig(**{name: value for name, value in self.training.items() if name in RUN_FIELDS})


def read_recipes(path: Path) -> dict[str, Recipe]:
    """Read recipes by method from a TOML file: tables METHOD.settings and METHOD.training, and those of "common".

    Raises:
        DataError: the file cannot be read, is no TOML, or holds something else.
        ConfigError: recipes of an unknown method.
    """
    try:
        content = parse_toml(path.expanduser().read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"recipes {path} cannot be read ({error}): check the path") from error
    except ValueError as error:
        raise DataError(f"recipes {path} are not valid TOML ({error}): correct it") from error
    recipes = {}
    for name, table in content.items():
        if name != "common" and name not in names():
            find(name)
        try:
            recipes[name] = Recipe.model_validate(table)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join([name, *map(str, first["loc"])])
            raise DataError(
                f"recipes {path}: {where}: {first['msg'].lower()}; expected tables {name}.settings and {name}.training"
            ) from error
    return recipes
