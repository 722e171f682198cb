"""Every link and every path that a document or a docstring names exists, and docs/ holds text and figures only."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = "agents|claims|common|docs|envs|interventions|lab|monitors|scripts|studies|tests"
PATH = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/[\w./-]*\w\.(?:py|md|yaml|json|toml|txt|png|svg|csv|html)\b")
FOLDER = re.compile(rf"(?<![\w/.-])(?:{FOLDERS})/(?:[\w-]+/)*(?![\w*.<-])")
LINK = re.compile(r"\]\(([^)\s]+)\)")
PLACEHOLDERS = {"scripts/NAME.py"}


def tracked(*patterns: str) -> list[str]:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", *patterns], capture_output=True, text=True, check=True)
    return [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]


def missing_links(text: str, folder: Path) -> list[str]:
    relative = [link.partition("#")[0] for link in LINK.findall(text) if not re.match(r"[a-z]+:", link)]
    return [link for link in relative if link and not (folder / link).exists()]


def missing_paths(text: str, folder: Path = ROOT) -> list[str]:
    named = {*PATH.findall(text), *FOLDER.findall(text)} - PLACEHOLDERS
    return sorted(path for path in named if not (ROOT / path).exists() and not (folder / path).exists())


DOCUMENTS = [name for name in tracked("*.md") if name != "CHANGELOG.md"]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_and_path_of_a_document_exists(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not missing_links(text, (ROOT / name).parent)
    assert not missing_paths(text, (ROOT / name).parent)


def test_every_file_that_code_and_studies_name_exists() -> None:
    sources = [
        name for name in tracked("*.py", "*.yaml", "*.toml", "Makefile", ".ci/*") if not name.startswith("tests/")
    ]
    missing = {}
    for name in sources:
        paths = set(PATH.findall((ROOT / name).read_text())) - PLACEHOLDERS
        if gone := sorted(path for path in paths if not (ROOT / path).exists()):
            missing[name] = gone
    assert not missing


def test_the_checks_notice_a_missing_file() -> None:
    assert missing_links("[a](docs/none.md) [b](README.md#start) [c](https://example.org)", ROOT) == ["docs/none.md"]
    assert missing_paths(
        "`scripts/claim_cards.py`, scripts/NAME.py, tests/laws/ and agents/dqn.py; old/agents/x.py"
    ) == ["scripts/claim_cards.py"]
    assert missing_paths("lab/nowhere/") == ["lab/nowhere/"]


def test_docs_hold_text_and_figures_of_three_megabytes_at_most() -> None:
    files = [ROOT / name for name in tracked("docs")]
    assert {file.suffix for file in files} <= {".md", ".png", ".svg"}
    assert sum(file.stat().st_size for file in files) < 3.2e6


def test_every_figure_in_docs_is_shown_in_a_document() -> None:
    shown = set()
    for name in tracked("docs/*.md", "README.md"):
        folder = (ROOT / name).parent
        shown |= {(folder / link.partition("#")[0]).resolve() for link in LINK.findall((ROOT / name).read_text())}
    assert [name for name in tracked("docs/*.png", "docs/*.svg") if (ROOT / name).resolve() not in shown] == []
