"""What stands in files beside the code agrees with the code: versions, targets of make, paths, links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import speechtrain

REPOSITORY = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CITATION = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
RELEASE = re.compile(r"^## \[(\d+\.\d+\.\d+)\] - (\d{4}-\d{2}-\d{2})$", re.MULTILINE)
COMMUNITY = ["CODE_OF_CONDUCT.md", "SECURITY.md", "CONTRIBUTING.md", ".github/pull_request_template.md", ".github/ISSUE_TEMPLATE"]
README_LINES, README_WIDTH = 150, 110
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def text_of(name: str) -> str:
    """The text of a file, or of all files of a folder."""
    path = REPOSITORY / name
    return "\n".join(file.read_text(encoding="utf-8") for file in (sorted(path.iterdir()) if path.is_dir() else [path]))


def test_one_version_everywhere() -> None:
    version = speechtrain.__version__

    assert "version" in PROJECT["dynamic"], "the wheel takes the version of speechtrain/__init__.py"
    assert CITATION["version"] == version
    assert RELEASE.search(CHANGELOG).groups() == (version, str(CITATION["date-released"])), "the newest release of CHANGELOG.md is another"
    assert f"{version.rpartition('.')[0]}.x" in text_of("SECURITY.md")


def test_releases_of_the_changelog_stand_newest_first_with_the_headings_of_keep_a_changelog() -> None:
    headings = re.findall(r"^## .*$", CHANGELOG, re.MULTILINE)
    releases = [match[1] for match in RELEASE.finditer(CHANGELOG)]

    assert headings[0] == "## [Unreleased]"
    assert len(headings) == len(releases) + 1, "a heading is no release"
    assert releases == sorted(releases, key=lambda name: tuple(map(int, name.split("."))), reverse=True)
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    links = dict(re.findall(r"^\[(.+)\]: (\S+)$", CHANGELOG, re.MULTILINE))
    assert list(links) == ["Unreleased", *releases]
    assert all(link.startswith("../../") for link in links.values()), "a link names a host"


def test_the_workflow_runs_what_any_machine_runs() -> None:
    workflow = yaml.safe_load(text_of(".github/workflows/ci.yml"))
    steps = workflow["jobs"]["run"]["steps"]

    assert [step["run"] for step in steps if "run" in step][-1] == ".ci/run"
    assert (REPOSITORY / ".ci" / "run").stat().st_mode & 0o100, ".ci/run cannot be run"
    python = next(step["with"]["python-version"] for step in steps if "setup-python" in step.get("uses", ""))
    assert PROJECT["requires-python"] == f">={python}", "CI runs the oldest Python that is supported"


def test_the_licence_and_the_title_are_those_of_the_package() -> None:
    assert CITATION["license"] == PROJECT["license"]
    assert CITATION["title"].startswith(PROJECT["name"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_each_target_of_make_that_a_page_names_exists(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    text = page.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"^```.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL))

    named = re.findall(r"(?:^|`|&& |\$ )make ([a-z-]+)", code, re.MULTILINE)
    assert set(named) <= targets


def test_the_readme_is_short_and_narrow() -> None:
    lines = text_of("README.md").splitlines()

    assert len(lines) <= README_LINES
    assert [line for line in lines if len(line) > README_WIDTH] == []


@pytest.mark.parametrize("name", COMMUNITY)
def test_each_page_that_is_named_for_people_exists(name: str) -> None:
    named = set(re.findall(r"\b[A-Z_]+\.md\b|\bdocs/[\w/-]+\.md\b|(?<=`)\.ci/run\b", text_of(name)))

    assert {word for word in named if not (REPOSITORY / word).is_file()} == set()
