"""The check of the glossary notices its terms, allows the exceptions, and lets the numbers fall only."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("plain_english", ROOT / ".ci" / "plain_english.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RECORD", tmp_path / "numbers.txt")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "count", lambda: module.hits)
    return module


def terms(check: ModuleType, text: str, name: str = "a.md") -> list[str]:
    return [term for _, term, _ in check.occurrences(name, text)]


def test_terms_of_the_glossary_are_counted_in_text_and_identifiers(check: ModuleType) -> None:
    text = "A new" + "bo" + "rn network, and one_w" + "ord that is ow" + "ed"
    assert sorted(terms(check, text)) == ["new" + "bo" + "rn", "ow" + "ed", "w" + "ord"]


@pytest.mark.parametrize(
    "text", ["twin critics", "in other words", "it beats the baseline", "csv.reader(file)", "swordfish"]
)
def test_terms_of_the_field_and_common_phrases_are_allowed(check: ModuleType, text: str) -> None:
    assert terms(check, text) == []


def test_the_glossary_itself_is_not_counted(check: ModuleType) -> None:
    row = "| w" + "ord | spec |"
    assert terms(check, row, "CONTRIBUTING.md") == []
    assert terms(check, row, "README.md") == ["w" + "ord"]


def test_a_name_without_content_is_counted_as_a_variable_and_not_as_a_verb(check: ModuleType) -> None:
    source = "# no file was found\nfound = 1\nprint(f'{found}')\n"
    assert [(line, term) for line, term, _ in check.occurrences("a.py", source)] == [(2, "found"), (3, "found")]


def test_a_number_may_fall_and_never_rise(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    hit = (1, "a term", "spec")
    check.write({"agents": 2, "docs": 0}, ["docs/guide.md"])
    check.hits = {"agents/a.py": [hit]}
    assert check.main([]) == 0 and "--record" in capsys.readouterr().out
    assert check.main(["--record"]) == 0 and check.recorded() == ({"agents": 1}, ["docs/guide.md"])
    check.hits = {"agents/a.py": [hit], "agents/b.py": [hit]}
    assert check.main([]) == 1
    assert capsys.readouterr().err.startswith("agents: 2 wor" + "ds")
    assert check.main(["--record"]) == 1 and check.recorded()[0] == {"agents": 1}


def test_a_clean_file_stays_clean(check: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    check.write({"docs": 5}, ["docs/guide.md"])
    check.hits = {"docs/guide.md": [(3, "a term", "spec")]}
    assert check.main([]) == 1
    assert capsys.readouterr().err == "docs/guide.md:3: 'a term': write spec\n"
