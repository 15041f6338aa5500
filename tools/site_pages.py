"""Pages of the documentation that are made from the package when the site is built, so that they cannot grow old.

A hook of MkDocs (`mkdocs.yml`). It adds `reference/commands.md` (the help of every verb), `reference/methods.md` (every
method and every setting), `reference/inferred.md` (what no publication states) and `results/` (what lies in
`benchmarks/results`), and fills in comments such as
`<!-- table: catalogue -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
SYSTEMS = {
    "promptmoe": ("promptmoe",),
    "mpama": ("mpa", "mpama"),
    "wmoeclip": ("wmoeclip",),
    "moeclip": ("moeclip",),
    "baselines": ("adaclip", "anomalyclip", "aprilgan", "faprompt"),
}
"""Pages in docs/methods, and the methods with modules that each is about."""
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
_INFERRED = re.compile(r"\binferred\b", re.IGNORECASE)
_TABLE = re.compile(r"<!-- table: (?P<name>[a-z-]+) -->")


def commands_page() -> str:
    """The help of every verb, as Markdown."""
    from zsad.cli.main import EPILOGUE, build_app

    text = build_app().generate_docs(output_format="markdown")
    verbs = text[text.index("\n## ") :]
    # The page has a table of contents of its own.
    verbs = re.sub(r"\*\*Table of Contents\*\*:?\n+(?:\s*[-*] .*\n)+", "", verbs)
    return f"# Commands\n\n{EPILOGUE}\n{verbs}"


def methods_page() -> str:
    """Every method with its settings; those that all have come first, once."""
    from zsad.methods.registry import METHODS
    from zsad.methods.settings import MethodConfig

    parts = [
        "# Methods and their settings\n",
        "A setting is given as `--set KEY=VALUE` in training, or to `zsad.methods.registry.build`. Where a paper "
        "leaves a choice open, or its code does something else than its text, that is a setting if a table or "
        "recipe uses it; the head of the method's file names what is fixed.\n",
        methods_table(),
        "\n## Settings of all methods\n",
        settings_table(MethodConfig),
    ]
    for name, entry in METHODS.items():
        config = entry.load().config_class
        own = [key for key in config.model_fields if _differs(config, key, MethodConfig)]
        arxiv = f", [arXiv {entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})" if entry.arxiv else ""
        note = (
            " **Re-designed from the abstract: the paper could not be read where zsad was built.**"
            if entry.provenance
            else ""
        )
        parts.append(f"\n## {name}\n\n{entry.title}. *{entry.paper}*, {entry.venue}{arxiv}.{note}\n")
        parts.append(settings_table(config, only=own) if own else "No settings of its own.\n")
    return "\n".join(parts)


def inferred_page() -> str:
    """What no publication states, method by method, by the heads of their files and the settings' descriptions."""
    from zsad.methods.registry import METHODS

    parts = [
        "# Inferred choices\n",
        "Papers leave choices open. What stands here was chosen for zsad, and no publication states it: first what is "
        "fixed, in the words of the method's file, then settings at their defaults. A method that is not named here "
        "follows a published code throughout.\n",
    ]
    for name, entry in METHODS.items():
        method = entry.load()
        head = import_module(method.__module__).__doc__ or ""
        fixed = [" ".join(text.split()) for text in head.split("\n\n") if _INFERRED.search(text)]
        fields = method.config_class.model_fields.items()
        chosen = [key for key, field in fields if _INFERRED.search(field.description or "")]
        if entry.provenance:
            fixed.insert(
                0,
                "The method is re-designed from the public description: all that this does not say is inferred.",
            )
        if fixed or chosen:
            parts += [f"\n## {name}\n", *(f"{text}\n" for text in fixed)]
        if chosen:
            parts.append(settings_table(method.config_class, only=chosen))
    return "\n".join(parts)


def methods_table() -> str:
    """The methods: what each is, what routes, what training changes."""
    from zsad.methods.registry import METHODS

    rows = [
        (
            f"[`{name}`](#{name})",
            entry.title,
            entry.routes or "-",
            f"{entry.parameters:,}" if entry.parameters else "-",
        )
        for name, entry in METHODS.items()
    ]
    return table(("name", "what it does", "what routes", "trained parameters on ViT-L/14@336"), rows)


def settings_table(config: type[BaseModel], *, only: Iterable[str] | None = None) -> str:
    """The fields of a configuration: name, default, description."""
    fields = config.model_fields
    chosen = fields if only is None else list(only)
    rows = [
        (
            f"`{key}`",
            f"`{fields[key].get_default(call_default_factory=True)!r}`",
            fields[key].description or "",
        )
        for key in chosen
    ]
    return table(("setting", "default", "meaning"), rows)


def training_table() -> str:
    """The settings of a training."""
    from zsad.train.train_config import TrainConfig

    return settings_table(TrainConfig)


def catalogue_table() -> str:
    """The data sets of the catalogue."""
    from zsad.datasets.catalog import bundled

    rows = [
        (
            f"`{entry.name}`",
            entry.group,
            str(len(entry.classes) or "?"),
            "?" if entry.normal is None else f"{entry.normal:,}",
            "?" if entry.anomalous is None else f"{entry.anomalous:,}",
            " + ".join(entry.metrics),
            entry.licence,
        )
        for entry in bundled()
    ]
    return table(("name", "group", "classes", "normal", "anomalous", "metrics", "licence"), rows)


def protocols_table() -> str:
    """The pairings of training and target sets that the papers use."""
    from zsad.studies.benchmark.pairing import protocols

    rows = [
        (f"`{name}`", found.title, ", ".join(f"`{own}`" for own in found.used_by))
        for name, found in protocols().items()
    ]
    return table(("protocol", "trains on", "used by"), rows)


def backbones_table() -> str:
    """The backbones that are known by name."""
    from zsad.clip.config import preset, preset_names

    rows = []
    for name in preset_names():
        found = preset(name)
        taps = ", ".join(map(str, found.taps))
        rows.append((f"`{name}`", f"{found.detection_size} px", taps, found.description))
    return table(("name", "images", "tapped blocks", "what it is"), rows)


def modules_tables(*methods: str) -> str:
    """What the modules of shipped adapters do, as `benchmarks/modules.py` measured it; without names of all."""
    from zsad.files import file_sha256
    from zsad.train.checkpoint import resolve_model

    results = json.loads((RESULTS / "modules.json").read_text(encoding="utf-8"))
    lines = []
    for name in [f"{method}-tiny" for method in methods] or sorted(results):
        lines += [f"### {name}", "", *results[name]["page"], ""]
        if results[name]["sha256"] != file_sha256(resolve_model(name)):
            lines += ["Measured before this adapter was made anew.", ""]
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "backbones": backbones_table,
    "catalogue": catalogue_table,
    "modules": modules_tables,
    **{f"modules-{name}": partial(modules_tables, *names) for name, names in SYSTEMS.items()},
    "protocols": protocols_table,
    "training": training_table,
}


def table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def results_page(path: Path) -> str:
    """A page of measured results as it lies in the repository; what the site does not hold is named, not linked."""
    text = path.read_text(encoding="utf-8")

    def link(found: re.Match[str]) -> str:
        target = found["target"]
        if target.startswith(("http", "#")):
            return found[0]
        there = (path.parent / target).resolve()
        if there.parent == RESULTS and there.is_file():
            return f"[{found['text']}]({'index.md' if there.name == 'README.md' else there.name})"
        return found["text"]

    text = _LINK.sub(link, text).replace("<details>", '<details markdown="1">')
    if not text.lstrip().startswith("# "):
        text = f"# {path.stem.replace('_', ' ').capitalize()}\n\n{text}"
    return text


def result_pages() -> dict[str, str]:
    """Name in the site -> text, the overview first."""
    found = sorted(RESULTS.glob("*.md"), key=lambda path: (path.name != "README.md", path.name))
    return {"index.md" if path.name == "README.md" else path.name: results_page(path) for path in found}


def _differs(config: type[BaseModel], key: str, base: type[BaseModel]) -> bool:
    """Whether a setting is not one of all methods, or has another default here."""
    if key not in base.model_fields:
        return True
    return bool(config.model_fields[key].default != base.model_fields[key].default)


def on_config(config: Any) -> Any:
    """Puts all result pages into the navigation, behind those that are written."""
    for section in config["nav"]:
        for part in section.values() if isinstance(section, dict) else ():
            for entry in part:
                if isinstance(entry, dict) and "Results" in entry:
                    written = [page for page in entry["Results"] if not page.startswith("results/")]
                    entry["Results"] = [*written, *(f"results/{name}" for name in result_pages())]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made, and the raw results beside theirs."""
    from mkdocs.structure.files import File

    made = {
        "reference/commands.md": commands_page(),
        "reference/methods.md": methods_page(),
        "reference/inferred.md": inferred_page(),
    }
    made |= {f"results/{name}": text for name, text in result_pages().items()}
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    for path in sorted(RESULTS.glob("*.json")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fills in the tables."""
    return _TABLE.sub(lambda found: TABLES[found["name"]](), markdown)
