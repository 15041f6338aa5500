"""The papers' ablation tables as data: which settings make a variant, and what the paper printed for it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import BaseModel, Field, model_validator

from zsad.errors import ConfigError
from zsad.files import parse_toml
from zsad.metrics.table import COLUMNS

_SUFFIX = ".toml"


class Row(BaseModel, frozen=True, extra="forbid"):
    """A variant of a method."""

    label: str = Field(description="As the paper names it.")
    method: str | None = Field(default=None, description="Another method, such as the bare backbone.")
    settings: dict[str, Any] = Field(default_factory=dict, description="What differs from the full method.")
    taps: tuple[int, ...] | None = Field(
        default=None, description="Which of the tapped layers it keeps, counted from the end: -1 is the last."
    )
    prompt_taps: tuple[int, ...] | None = Field(
        default=None, description="Which of them have prompts of their own."
    )
    printed: tuple[tuple[float, ...], ...] = Field(
        description="The paper's metrics in percent for each of its data sets; NaN where it prints none."
    )

    def resolve(self, shared: dict[str, Any], *, taps: tuple[int, ...]) -> dict[str, Any]:
        """Return the settings of the variant on a backbone.

        Args:
            shared: settings for all variants; those of the row go before.
            taps: the layers that the full method taps.

        Raises:
            ConfigError: the row wants more layers than are tapped.
        """
        settings = {**shared, **self.settings}
        for name, positions in (("layers", self.taps), ("prompt_layers", self.prompt_taps)):
            if positions is not None:
                if -min(positions) > len(taps):
                    raise ConfigError(
                        f"variant {self.label!r} chooses among {-min(positions)} tapped layers, the backbone taps "
                        f"{len(taps)}: {taps}; tap more with --set layers=[...]"
                    )
                settings[name] = tuple(taps[position] for position in positions)
        return settings


class Table(BaseModel, frozen=True, extra="forbid"):
    """An ablation of a paper."""

    title: str = Field(description="What is varied.")
    source: str = Field(description="Where the paper prints it.")
    data: tuple[str, ...] = Field(description="The paper's data sets.")
    metrics: tuple[str, ...] = Field(description="The paper's metrics, as columns of an evaluation.")
    rows: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _whole(self) -> Table:
        if unknown := set(self.metrics) - set(COLUMNS):
            raise ValueError(f"unknown metrics {unknown}")
        for row in self.rows:
            if len(row.printed) != len(self.data) or {len(cells) for cells in row.printed} != {
                len(self.metrics)
            }:
                raise ValueError(f"row {row.label!r} must print {self.metrics} for each of {self.data}")
        return self


def methods() -> tuple[str, ...]:
    """Return the names of the methods whose paper's ablations are known."""
    return tuple(
        sorted(
            entry.name[: -len(_SUFFIX)] for entry in files(__name__).iterdir() if entry.name.endswith(_SUFFIX)
        )
    )


@cache
def ablations(method: str) -> dict[str, Table]:
    """Return the ablation tables of a method's paper, which is in `zsad.studies.benchmark.papers`.

    Raises:
        ConfigError: none are known.
    """
    if method not in methods():
        raise ConfigError(f"no ablation tables of {method!r}; there are those of {', '.join(methods())}")
    text = files(__name__).joinpath(method + _SUFFIX).read_text(encoding="utf-8")
    return {name: Table.model_validate(table) for name, table in parse_toml(text)["tables"].items()}


def find_table(method: str, name: str) -> Table:
    """Return a table of a method's paper.

    Raises:
        ConfigError: no such method or table; the message lists those there are.
    """
    tables = ablations(method)
    if name not in tables:
        listed = ", ".join(f"{key} ({table.title})" for key, table in tables.items())
        raise ConfigError(f"{method} has no ablation table {name!r}; there is {listed}")
    return tables[name]
