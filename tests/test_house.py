"""The rules of the house as tests: order of rooms, no circles, sizes of files and functions, settings, names.

`BREACHES` names what does not hold yet. The list may only shrink: an entry that is cured must be removed.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "zsad"

# From the bottom to the top: a room imports only from rooms that stand before it, and from itself.
ROOMS = (
    "errors",
    "files",
    "device",
    "prompts",
    "types",
    "nn",
    "card",
    "clip",
    "images",
    "synth",
    "datasets",
    "metrics",
    "methods",
    "train",
    "backends",
    "predict",
    "calibration",
    "comparison",
    "export",
    "detector",
    "loading",
    "runs",
    "scale",
    "serve",
    "studies",
    "integrations",
    "cli",
)

MAX_FILE_LINES = 400
MAX_BODY_LINES = 50
MAX_OWN_SETTINGS = 20

# Pairs of files or public classes that share a name for a reason.
SHARED_FILE_NAMES: dict[str, str] = {
    "__init__.py": "Python's own name for a package",
}
SHARED_CLASS_NAMES: dict[str, str] = {}

BREACHES: dict[str, set[str]] = {}


def module_name(path: Path) -> str:
    """Return the dotted name of a source file, without the leading `zsad.`."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(SOURCE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def _module_of(dotted: str) -> str | None:
    """Return the longest module that a dotted name begins with; None for names of other packages."""
    if dotted != "zsad" and not dotted.startswith("zsad."):
        return None
    name = dotted.removeprefix("zsad").removeprefix(".")
    while name and name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def _imports() -> dict[str, set[str]]:
    """Return what each module imports of the package: at the top, inside functions, and for types alone."""
    edges: dict[str, set[str]] = defaultdict(set)
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                dotted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                assert node.level == 0, f"{name} has a relative import"
                dotted = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            edges[name] |= {target for item in dotted if (target := _module_of(item))} - {name}
    return edges


IMPORTS = _imports()


def room(module: str) -> str:
    """Return the room of a module: its folder, or its own name where it lies in none."""
    return module.split(".")[0]


def test_every_room_stands_in_the_order():
    """A new folder needs a place; the package itself and `python -m zsad` stand outside."""
    assert {room(name) for name in MODULES} - {"", "__main__"} == set(ROOMS)


def upward_imports() -> set[str]:
    """Return each import that points from a room to one above it."""
    rank = {name: number for number, name in enumerate(ROOMS)}
    return {
        f"{name} -> {target}"
        for name, targets in IMPORTS.items()
        for target in targets
        if name not in ("", "__main__") and target and rank[room(target)] > rank[room(name)]
    }


def circles() -> set[str]:
    """Return the groups of modules that import each other, as sorted names (Tarjan's components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: set[str] = set()

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(IMPORTS.get(node, ())):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                groups.add(" ".join(sorted(group)))

    for node in sorted(MODULES):
        if node not in index:
            visit(node)
    return groups


def long_files() -> set[str]:
    """Return files above the limit."""
    return {
        str(path.relative_to(SOURCE))
        for path in MODULES.values()
        if len(path.read_text(encoding="utf-8").splitlines()) > MAX_FILE_LINES
    }


def _body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function behind its signature and docstring."""
    statements = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return 0 if not statements else 1 + (function.end_lineno or 0) - statements[0].lineno


def long_functions() -> set[str]:
    """Return functions above the limit."""
    return {
        f"{name}:{node.name}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _body_lines(node) > MAX_BODY_LINES
    }


def many_settings() -> set[str]:
    """Return methods with more settings of their own than the limit."""
    from zsad.methods.registry import METHODS
    from zsad.methods.settings import MethodConfig

    shared = set(MethodConfig.model_fields)
    own = {name: set(entry.load().config_class.model_fields) - shared for name, entry in METHODS.items()}
    return {name for name, settings in own.items() if len(settings) > MAX_OWN_SETTINGS}


def shared_names() -> set[str]:
    """Return names of files and public classes that stand for two things without a stated reason."""
    files: dict[str, list[str]] = defaultdict(list)
    classes: dict[str, list[str]] = defaultdict(list)
    for name, path in MODULES.items():
        if room(name) != "cli":  # a verb's file is named by the verb, like the file that does its work
            files[path.name].append(name)
        for node in TREES[name].body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes[node.name].append(name)
    return {name for name, places in files.items() if len(places) > 1 and name not in SHARED_FILE_NAMES} | {
        name for name, places in classes.items() if len(places) > 1 and name not in SHARED_CLASS_NAMES
    }


RULES = {
    "upward imports": upward_imports,
    "circles": circles,
    "long files": long_files,
    "long functions": long_functions,
    "settings": many_settings,
    "shared names": shared_names,
}


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_its_rules(rule: str):
    breaches, known = RULES[rule](), BREACHES.get(rule, set())
    assert not breaches - known, f"new breaches of the rule on {rule}: {sorted(breaches - known)}"
    assert not known - breaches, f"cured, remove from the list of {rule}: {sorted(known - breaches)}"
