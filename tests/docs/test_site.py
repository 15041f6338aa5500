"""The pages that are made from the package, and what the pages written by hand say of it."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

from zsad.cli.main import VERBS, build_app, main
from zsad.methods.registry import METHODS
from zsad.studies.benchmark.papers import papers
from zsad.train.checkpoint import bundled_models

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
# Words of other programs.
FOREIGN = {
    "--dist",
    "--data-binary",
    "--help",
    "--nnodes",
    "--nproc-per-node",
    "--pictures",
    "--rdzv-backend",
    "--rdzv-endpoint",
}


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("zsad_site_pages", ROOT / "tools" / "site_pages.py")
    sys.modules["zsad_site_pages"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def commands(site: ModuleType) -> str:
    return site.commands_page()


def test_every_verb_has_its_help_and_every_option_on_a_page_exists(commands: str) -> None:
    for verb in VERBS:
        assert f"\n## zsad {verb}\n" in commands
    known = set(re.findall(r"--[a-z][a-z0-9-]*", commands)) | FOREIGN
    for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        text = re.sub(r"<!--.*?-->", "", page.read_text(encoding="utf-8"))
        used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", text))
        assert used <= known, f"{page.name} speaks of {sorted(used - known)}"


def verbs_named(text: str) -> set[str]:
    """The words behind `zsad` in the shell blocks and in the inline code of a page."""
    blocks = "\n".join(re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    in_blocks = re.findall(r"(?:^|&& |-m )zsad ([a-z]+)", blocks, re.MULTILINE)
    return {*in_blocks, *re.findall(r"`zsad ([a-z]+)", text)}


def test_help_readme_and_pages_have_the_same_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert sorted(re.findall(r"^│ ([a-z]+) ", capsys.readouterr().out, re.MULTILINE)) == sorted(VERBS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("\n## Commands\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `zsad ([a-z]+)", table, re.MULTILINE)) == sorted(VERBS)
    assert verbs_named(readme) == set(VERBS)
    on_pages = set().union(*(verbs_named(page.read_text(encoding="utf-8")) for page in DOCS.rglob("*.md")))
    assert on_pages <= set(VERBS)
    assert set(VERBS) - on_pages <= {"version"}, "a verb without a place on a page"


def test_every_shipped_adapter_s_modules_are_on_the_page_and_on_its_system_s(site: ModuleType) -> None:
    tables = site.modules_tables()
    assert re.findall(r"^### (\S+)$", tables, re.MULTILINE) == bundled_models()
    on_pages = [f"{name}-tiny" for names in site.SYSTEMS.values() for name in names]
    assert sorted(on_pages) == bundled_models()
    for system in site.SYSTEMS:
        page = (DOCS / "methods" / f"{system}.md").read_text(encoding="utf-8")
        assert f"<!-- table: modules-{system} -->" in page
        assert site.on_page_markdown(page).count("\n### ") == len(site.SYSTEMS[system])


def test_every_inferred_choice_is_on_one_page(site: ModuleType) -> None:
    page = site.inferred_page()
    for name, entry in METHODS.items():
        fields = entry.load().config_class.model_fields
        inferred = {key for key, field in fields.items() if "inferred" in field.description}
        own = page.split(f"\n## {name}\n")[1].split("\n## ")[0] if f"\n## {name}\n" in page else ""
        assert set(re.findall(r"^\| `(\w+)` \|", own, re.MULTILINE)) == inferred
    own = page.split("\n## promptmoe\n")[1].split("\n## ")[0]
    assert (
        "prompts end with a full stop" in own and "| `value_value` | `True` |" in own and "`tau` |" not in own
    )


def test_every_method_and_setting_is_listed(site: ModuleType) -> None:
    page = site.methods_page()
    for name, entry in METHODS.items():
        own = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert entry.title in own and ("Re-designed" in own) == bool(entry.provenance)
    settings = page.split("## Settings of all methods")[1].split("\n## ")[0]
    assert "| `oddness` | `'off'` |" in settings
    assert "| `local_weight` | `4.0` |" in page.split("\n## anomalyclip\n")[1].split("\n## ")[0]


def test_every_table_that_is_asked_for_can_be_made(site: ModuleType) -> None:
    asked = set()
    for page in DOCS.rglob("*.md"):
        text = page.read_text(encoding="utf-8")
        asked |= set(re.findall(r"<!-- table: ([a-z-]+) -->", text))
        filled = site.on_page_markdown(text)
        assert "<!-- table:" not in filled
    assert asked == set(site.TABLES)
    assert "| `VisA` | industrial | 12 | 962 | 1,200 | image + pixel | CC BY 4.0 |" in site.catalogue_table()
    assert "| `epochs` | `15` |" in site.training_table()


def test_result_pages_link_only_to_what_the_site_holds(site: ModuleType, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "README.md").write_text(
        "[`s`](s.md), [r](../../tools/recipes.toml), [x](http://x), [j](s.json), [g](g.md)"
    )
    (tmp_path / "s.md").write_text("<details><summary>All</summary>\n")
    (tmp_path / "s.json").write_text("{}")
    monkeypatch.setattr(site, "RESULTS", tmp_path)
    pages = site.result_pages()
    assert list(pages) == ["index.md", "s.md"]
    assert pages["index.md"].endswith("[`s`](s.md), r, [x](http://x), [j](s.json), g")
    assert pages["s.md"] == '# S\n\n<details markdown="1"><summary>All</summary>\n'


def test_every_page_is_in_the_navigation() -> None:
    told = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        own = page.relative_to(DOCS)
        assert f"- {own.as_posix()}\n" in told or f"{own.parent.as_posix()}/*.md" in told


def test_the_commands_for_tables_and_figures_can_be_typed_and_name_every_table() -> None:
    text = (DOCS / "papers.md").read_text(encoding="utf-8")
    commands = [shlex.split(command)[1:] for command in re.findall(r"`(zsad [^`]+)`", text)]
    for words in commands:
        if len(words) > 1 and words[1] != "list" and words != ["evaluate", "--transductive"]:
            build_app().parse_args(words, exit_on_error=False, print_error=False)
    named = {(words[1], words[words.index("--table") + 1]) for words in commands if "--table" in words}
    for method, paper in papers().items():
        numbers = {table.number for table in paper.tables} | set(paper.ablations)
        missing = {number for number in numbers if (method, number) not in named}
        # "Tables 2 to 6" and "8 to 12" have one command each.
        assert method == "anomalyclip" or missing <= ({"3", "4", "5", "6", "9", "10", "11", "12"})
