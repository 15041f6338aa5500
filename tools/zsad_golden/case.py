"""A case: a name, what it runs, and where its result is kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from zsad_golden.compare import Tolerance
from zsad_golden.workspace import Workspace

DEFAULT = Tolerance()
Run = Callable[[Workspace], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that is run and recorded.

    Attributes:
        name: by which `--only` finds it.
        group: file below tests/golden in which its result lies.
        run: makes the result.
        needs: modules without which it is skipped.
        quick: it is part of the test suite.
        tolerance: for machines other than that on which the results were made.
        inexact: the tolerance holds on that machine, too.
    """

    name: str
    group: str
    run: Run
    needs: tuple[str, ...] = ()
    quick: bool = True
    tolerance: Tolerance = DEFAULT
    inexact: bool = False

    @property
    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.needs if find_spec(name) is None]


def commands(
    name: str,
    group: str,
    *texts: str,
    needs: tuple[str, ...] = (),
    quick: bool = True,
    tolerance: Tolerance = DEFAULT,
    inexact: bool = False,
    charts: bool = False,
    whole: bool = False,
) -> Case:
    """A case that runs commands one after the other and reads what they wrote into `{out}`.

    Args:
        name: of the case.
        group: of the case.
        texts: command lines without `zsad`; `{out}` and the products of the workspace are paths.
        needs: as `Case`.
        quick: as `Case`.
        tolerance: as `Case`.
        inexact: as `Case`.
        charts: keep the texts in the drawings of pages.
        whole: keep the cards of models.
    """

    def run(space: Workspace) -> dict[str, Any]:
        done = [space.command(text) for text in texts]
        return {"commands": done, "files": space.outputs(charts=charts, whole=whole)}

    return Case(name, group, run, needs, quick, tolerance, inexact)
