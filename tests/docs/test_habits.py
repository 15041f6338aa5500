"""The project's own documents agree with the package: version, extras, decisions, templates, hooks."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

import zsad

ROOT = Path(__file__).resolve().parents[2]
DECISIONS = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return toml.loads(read("pyproject.toml"))["project"]


def command(page: str, marker: str) -> str:
    """The only line of the shell block behind a comment."""
    found = re.search(rf"^<!-- {marker} -->\n```bash\n(.+)\n```$", read(page), re.MULTILINE)
    assert found is not None, f"{page} has no block of one line behind <!-- {marker} -->"
    return found[1]


def test_the_citation_names_this_version_and_its_papers() -> None:
    citation = yaml.safe_load(read("CITATION.cff"))
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == zsad.__version__ and citation["license"] == "Apache-2.0"
    for work in (citation, *citation["references"]):
        assert work["title"] and work["authors"], work
    urls = " ".join(work["url"] for work in citation["references"])
    papers = ("2511.18116", "2603.06313", "2603.03101", "JwSFgHCXeg")
    assert all(paper in urls for paper in papers)


def test_the_changelog_has_a_section_for_this_version() -> None:
    sections = re.split(r"^## ", read("CHANGELOG.md"), flags=re.MULTILINE)[1:]
    titles = [section.splitlines()[0] for section in sections]
    assert titles[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", title) for title in titles[1:])
    released, _, development = zsad.__version__.partition(".dev")
    if development:
        assert f"`{zsad.__version__}`" in sections[0] or f" {zsad.__version__}." in sections[0]
        assert f"[{released}]" not in " ".join(titles)
    else:
        assert any(title.startswith(f"[{released}] - ") for title in titles)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for section in sections:
        named = re.findall(r"^### (.+)$", section, re.MULTILINE)
        assert named and set(named) <= kinds


def test_the_set_up_command_is_valid_and_names_extras_that_exist(project: dict[str, Any]) -> None:
    line = command("CONTRIBUTING.md", "set up")
    steps = [shlex.split(step) for step in line.split("&&")]
    assert [step[0] for step in steps] == ["python3", ".", "pip", "pre-commit"]
    requirement = steps[2][-1]
    extras = re.fullmatch(r"\.\[([\w,]+)\]", requirement)
    assert extras is not None and set(extras[1].split(",")) <= project["optional-dependencies"].keys()
    assert (ROOT / steps[2][steps[2].index("-c") + 1]).is_file()
    installed = " ".join(project["optional-dependencies"]["dev"])
    assert all(tool in installed for tool in ("pre-commit", "ruff", "mypy"))
    bash = shutil.which("bash")
    if bash is not None:
        checked = subprocess.run([bash, "-n", "-c", line], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stderr


def test_the_check_command_is_that_of_continuous_integration() -> None:
    assert command("CONTRIBUTING.md", "check") == "bash .ci/run"
    assert (ROOT / ".ci" / "run").is_file()


@pytest.mark.parametrize("path", DECISIONS, ids=lambda path: path.stem)
def test_a_decision_has_its_number_headings_and_place_in_the_navigation(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    number = DECISIONS.index(path) + 1
    assert path.name.startswith(f"{number:04}-") and text.startswith(f"# {number}. ")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    title = text.splitlines()[0].split(". ", 1)[1]
    assert f"| {number} | [{title}]({path.name}) |" in read("docs/decisions/index.md")
    assert f"          - decisions/{path.name}\n" in read("mkdocs.yml")


def test_the_forms_of_issues_have_what_github_asks_for() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    assert [form.stem for form in forms] == ["bug", "config", "feature", "picture"]
    for path in forms:
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.stem == "config":
            continue
        assert form["name"] and form["description"]
        names = [field["id"] for field in form["body"]]
        assert len(set(names)) == len(names)
        for field in form["body"]:
            assert field["type"] in ("textarea", "dropdown") and field["attributes"]["label"]
        assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_hooks_need_no_network_and_run_what_exists() -> None:
    hooks = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repository["repo"] for repository in hooks] == ["local"]
    for hook in hooks[0]["hooks"]:
        assert hook["language"] == "system"
        assert all((ROOT / word).exists() for word in hook["entry"].split() if word.startswith("tests/"))


def test_the_source_distribution_contains_every_document(project: dict[str, Any]) -> None:
    build = toml.loads(read("pyproject.toml"))["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert all((ROOT / name).exists() for name in build["include"])
    documents = {path.name for path in ROOT.glob("*.md")} | {
        "CITATION.cff",
        "LICENSE",
        "NOTICE",
        "mkdocs.yml",
    }
    assert documents <= set(build["include"])
    assert {"Homepage", "Documentation", "Source", "Issues", "Changelog"} == project["urls"].keys()


def test_links_between_the_documents_lead_somewhere() -> None:
    for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", ".github/pull_request_template.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", read(name)):
            assert target.startswith("https://") or (ROOT / name).parent.joinpath(target).exists(), target
