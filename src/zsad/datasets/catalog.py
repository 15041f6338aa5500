"""The catalogue of the field's public data sets: their contents and sources.

Facts live in `catalog.toml`, not in code. A user's own file of the same form adds entries or replaces them.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from zsad.datasets.words import letters
from zsad.errors import DataError
from zsad.types import Domain

_toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

Layout = Literal["mvtec", "visa", "folders", "dagm", "headct", "twins", "bmad", "elpv"]
Metric = Literal["image", "pixel"]


class FrozenModel(BaseModel):
    """Base of models that cannot be changed and take no unknown field."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ClassEntry(FrozenModel):
    """A class of a data set and how many test images it should hold."""

    name: str = Field(description="Folder name of the class, as published.")
    normal: int | None = Field(default=None, ge=0, description="Normal test images; None: not known.")
    anomalous: int | None = Field(default=None, ge=0, description="Anomalous test images; None: not known.")


class CatalogEntry(FrozenModel):
    """A data set: layout, expected counts of its test part, defined metrics, licence, source."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*$", description="What zsad calls the set.")
    title: str = Field(description="Full name.")
    group: Domain
    aliases: tuple[str, ...] = Field(
        default=(), description="Other names and folder names; case and punctuation are ignored."
    )
    layout: Layout = Field(description="Kind of folder layout, see `zsad.datasets.layouts`.")
    folders: str = Field(description="The layout in words: where images and masks lie.")
    split: str = Field(default="test", description="The part that is measured on.")
    metrics: tuple[Metric, ...] = Field(min_length=1, description="Which metrics are defined.")
    normal: int | None = Field(default=None, ge=0, description="Normal test images in all; None: not known.")
    anomalous: int | None = Field(default=None, ge=0, description="Anomalous test images in all.")
    counts: str = Field(default="", description="What is to be known of the counts.")
    classes: tuple[ClassEntry, ...] = Field(default=(), description="Empty where the names are not known.")
    any_class_names: bool = Field(
        default=False, description="The class is called as its folder happens to be."
    )
    shares_images_with: tuple[str, ...] = Field(
        default=(), description="Sets that hold some of the same images; goes for both directions."
    )
    not_to_be_confused_with: tuple[str, ...] = Field(default=(), description="Other sets of that name.")
    pretrained: tuple[str, ...] = Field(
        default=(), description="Backbones that were trained on these images."
    )
    traps: tuple[str, ...] = Field(default=(), description="What goes wrong with the published files.")
    licence: str
    home: str = Field(description="Home page, empty where none is known.")
    citation: str
    get: str = Field(description="How a human gets the files.")
    package: str | None = Field(default=None, description="PyPI package with the images, if there is one.")
    package_folder: str = Field(default="", description="Folder of the images in the package, MODULE/PATH.")

    @model_validator(mode="after")
    def _sums(self) -> CatalogEntry:
        for label in ("normal", "anomalous"):
            parts = [getattr(entry, label) for entry in self.classes]
            total = getattr(self, label)
            if parts and None not in parts and total is not None and sum(parts) != total:
                raise ValueError(
                    f"{self.name}: its classes have {sum(parts)} {label} images, it says {total}"
                )
        if bool(self.package) is not bool(self.package_folder):
            raise ValueError(f"{self.name}: package and package_folder go together")
        names = [entry.name for entry in self.classes]
        if len(set(names)) < len(names):
            raise ValueError(f"{self.name}: a class is listed twice")
        return self

    def expected(self, name: str) -> ClassEntry | None:
        """Return the entry of a class; its name's case and punctuation are ignored."""
        return next((entry for entry in self.classes if letters(entry.name) == letters(name)), None)

    def restricted(self, names: Sequence[str]) -> CatalogEntry:
        """Return the entry of some of the classes alone.

        Raises:
            DataError: a class that the set does not have.
        """
        if self.any_class_names:
            return self
        chosen = []
        for name in names:
            entry = self.expected(name)
            if entry is None:
                listed = ", ".join(entry.name for entry in self.classes)
                raise DataError(f"{self.name} has no class {name!r}: choose some of {listed}")
            chosen.append(entry)
        totals: dict[str, int | None] = {}
        for label in ("normal", "anomalous"):
            counts = [getattr(entry, label) for entry in chosen]
            totals[label] = None if None in counts else sum(counts)
        return self.model_copy(update={"classes": tuple(chosen), **totals})

    def prompt_name(self, name: str) -> str:
        """Return the name of a class of this set in prompts."""
        from zsad.prompts import class_name

        return class_name(self.name, name)


class Catalogue:
    """Entries by name and by every alias.

    Raises:
        DataError: two sets share a name or an alias, or one speaks of a set that is not there.
    """

    def __init__(self, entries: list[CatalogEntry]) -> None:
        self._entries = {entry.name: entry for entry in entries}
        self._by_letters: dict[str, CatalogEntry] = {}
        for entry in entries:
            for spelling in (entry.name, entry.title, *entry.aliases):
                known = self._by_letters.setdefault(letters(spelling), entry)
                if known is not entry:
                    raise DataError(
                        f"the catalogue calls {known.name} and {entry.name} both {spelling!r}: rename one of them"
                    )
        for entry in entries:
            for name in (*entry.shares_images_with, *entry.not_to_be_confused_with):
                if name not in self._entries:
                    raise DataError(
                        f"the catalogue's {entry.name} speaks of {name!r}, which it does not hold"
                    )

    def __iter__(self) -> Iterator[CatalogEntry]:
        return iter(self._entries.values())

    def get(self, name: str) -> CatalogEntry | None:
        """Return the entry of that name or alias, or None."""
        return self._by_letters.get(letters(name))

    def find(self, name: str) -> CatalogEntry:
        """Return the entry of that name or alias.

        Raises:
            DataError: there is none; the nearest names are suggested.
        """
        if entry := self.get(name):
            return entry
        spellings = {
            letters(spelling): entry.name for entry in self for spelling in (entry.name, *entry.aliases)
        }
        near = difflib.get_close_matches(letters(name), list(spellings), n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(dict.fromkeys(spellings[key] for key in near))}? " if near else ""
        raise DataError(
            f"no data set {name!r} in the catalogue: {hint}see zsad data list, or describe it with --catalog FILE"
        )

    def sharing(self, entry: CatalogEntry) -> tuple[str, ...]:
        """Names of the other sets that hold some of an entry's images."""
        mentioned = [other.name for other in self if entry.name in other.shares_images_with]
        return tuple(dict.fromkeys([*entry.shares_images_with, *mentioned]))


@lru_cache(maxsize=1)
def bundled() -> Catalogue:
    """The catalogue that ships with the package."""
    return Catalogue(_entries((files("zsad.datasets") / "catalog.toml").read_text("utf-8"), "catalog.toml"))


def catalogue(path: Path | None = None) -> Catalogue:
    """The bundled catalogue, with the entries of a user's own file added to it or in place of its own.

    Raises:
        DataError: the file cannot be read, is no TOML, or an entry in it is not valid.
    """
    if path is None:
        return bundled()
    try:
        text = path.expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"catalogue {path} cannot be read ({reason}): check the path") from error
    added = _entries(text, str(path))
    replaced = {entry.name for entry in added}
    return Catalogue([entry for entry in bundled() if entry.name not in replaced] + added)


def domain_of(name: str) -> Domain | None:
    """Return what the images of a data set are of; None for one that the bundled catalogue does not list."""
    entry = bundled().get(name)
    return None if entry is None else entry.group


def _entries(text: str, where: str) -> list[CatalogEntry]:
    try:
        content: dict[str, Any] = _toml.loads(text)
    except _toml.TOMLDecodeError as error:
        raise DataError(f"catalogue {where} is not valid TOML ({error}): correct it") from error
    tables = content.get("sets")
    if not isinstance(tables, list) or set(content) != {"sets"}:
        raise DataError(
            f"catalogue {where} holds {sorted(content)}, expected tables [[sets]] and nothing else"
        )
    entries = []
    for number, table in enumerate(tables, start=1):
        name = table.get("name", f"entry {number}") if isinstance(table, dict) else f"entry {number}"
        try:
            entries.append(CatalogEntry.model_validate(table))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise DataError(
                f"catalogue {where}, {name}: {field}: {first['msg']}; see zsad data show"
            ) from error
    return entries
