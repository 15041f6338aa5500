"""Pairs of sets to train and to measure on: the papers' pairings as data, pairs of one's own, and their folders."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import BaseModel, Field

from zsad.datasets.catalog import bundled
from zsad.datasets.words import letters
from zsad.errors import ConfigError
from zsad.files import parse_toml

_DEPTH = 2  # folders below a root in which a set is looked for; the root itself may be one


class Pair(BaseModel, frozen=True, extra="forbid"):
    """Sets to train on, and sets to measure on what was trained."""

    train: tuple[str, ...] = Field(default=(), description="Empty: only what needs no training is measured.")
    test: tuple[str, ...] = Field(min_length=1)


class Protocol(BaseModel, frozen=True, extra="forbid"):
    """A pairing that papers share."""

    title: str
    source: str = Field(description="Papers that pair so.")
    used_by: tuple[str, ...] = Field(description="Methods whose papers pair so.")
    pairs: tuple[Pair, ...]


@cache
def protocols() -> dict[str, Protocol]:
    """Return all named protocols."""
    text = files(__package__).joinpath("protocols.toml").read_text(encoding="utf-8")
    return {name: Protocol.model_validate(table) for name, table in parse_toml(text).items()}


def find_protocol(name: str) -> Protocol:
    """Return a protocol by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    known = protocols()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
        raise ConfigError(f"no protocol is called {name!r}; {hint}")
    return known[name]


def parse_pair(text: str) -> Pair:
    """Parse "A,B>C,D": trained on A and B, measured on C and D.

    Raises:
        ConfigError: another form.
    """
    train, sign, test = text.partition(">")
    sides = [tuple(name.strip() for name in side.split(",") if name.strip()) for side in (train, test)]
    if not sign or ">" in test or not all(sides):
        raise ConfigError(
            f"--pair {text!r} is no pair, expected 'A,B>C,D': sets to train on, '>', sets to measure on (in quotes)"
        )
    return Pair(train=sides[0], test=sides[1])


def find_set(name: str, root: Path | None) -> Path:
    """The folder or manifest that a name means.

    Args:
        name: a path, or below `root` a folder's name, or a set's name or alias in the catalogue.
        root: folder of data sets.

    Raises:
        ConfigError: there is none.
    """
    if root is not None and (folder := _below(name, root.expanduser())) is not None:
        return folder
    path = Path(name).expanduser()
    if path.exists():
        return path
    where = "there is no such path, and no --data ROOT to look for it" if root is None else f"not in {root}"
    raise ConfigError(f"no data set {name!r}: {where}; name a folder, a manifest, or a set of zsad data list")


def _below(name: str, root: Path) -> Path | None:
    if "/" not in name and (root / name).exists():
        return root / name
    entry = bundled().get(name)
    spellings = {name} if entry is None else {name, entry.name, entry.title, *entry.aliases}
    spelt = {letters(spelling) for spelling in spellings}
    folders = [root.resolve()]
    for _ in range(_DEPTH + 1):
        if match := next((folder for folder in folders if letters(folder.name) in spelt), None):
            return match
        folders = [
            child
            for folder in folders
            if folder.is_dir()
            for child in sorted(folder.iterdir())
            if child.is_dir()
        ]
    return None


def resolve(pairs: Iterable[Pair], root: Path | None, *, partial: bool) -> tuple[list[Pair], list[str]]:
    """Return pairs of paths for pairs of names, and the names of the sets that are missing.

    Args:
        pairs: of names or paths.
        root: folder of data sets; None takes names as paths.
        partial: leave out what is not there, as the sets of a protocol that nobody has all of.

    Raises:
        ConfigError: a set is not there (unless `partial`), or nothing is left.
    """
    resolved: list[Pair] = []
    missing: list[str] = []

    def paths(names: Iterable[str]) -> list[str]:
        located = []
        for name in names:
            try:
                located.append(str(find_set(name, root)))
            except ConfigError:
                if not partial:
                    raise
                missing.append(name)
        return located

    for pair in pairs:
        train, test = paths(pair.train), paths(pair.test)
        if len(train) == len(pair.train) and test:
            resolved.append(Pair(train=tuple(train), test=tuple(test)))
    if not resolved:
        raise ConfigError(f"no pair is left to run: not in {root}: {', '.join(dict.fromkeys(missing))}")
    return resolved, list(dict.fromkeys(missing))
