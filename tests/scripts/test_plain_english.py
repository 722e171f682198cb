"""The check of the glossary notices its terms, allows the exceptions, and lets the numbers fall only."""

from __future__ import annotations

import importlib.util
import subprocess
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


# One term of each row of the glossary; the bar keeps this file free of them.
TERMS = [
    term.replace("|", "")
    for term in (
        "wo|rd",
        "reb|orn",
        "be|at",
        "ow|es",
        "li|ved",
        "tw|in",
        "rea|der",
        "sa|id",
        "jud|ged",
        "fore|ign",
        "loo|ks at",
        "who|ever",
        "not to be| had",
        "stran|ger",
    )
]
IDENTIFIERS = {
    "variable": "{} = 1",
    "argument": "def f({}): pass",
    "keyword": "f({}=1)",
    "attribute": "a.{} = 1",
    "part of a name": "the_{}_of = 1",
    "function": "def {}(): pass",
}
PLACES = [("a.py", "# {}"), ("a.md", "a {} here"), ("a.md", "`the_{}`"), ("a.yaml", "{}: 1"), ("a.yml", "- run: {}")]


def test_every_row_of_the_glossary_has_a_planted_term(check: ModuleType) -> None:
    planted = {plain for term in TERMS for _, _, plain in check.occurrences("a.md", term)}
    assert planted == {plain for _, plain in check.GLOSSARY}


@pytest.mark.parametrize(("name", "line"), [*PLACES, *(("a.py", line) for line in IDENTIFIERS.values())])
def test_a_planted_term_is_counted(check: ModuleType, name: str, line: str) -> None:
    for term in TERMS:
        term = term.replace(" ", "_") if name == "a.py" else term
        assert terms(check, line.format(term), name) == [term]


def test_a_former_name_and_a_key_of_checkpoints_are_allowed(check: ModuleType) -> None:
    line = "reb" + "orn"
    assert terms(check, f"{line}  # a former name\n{line}  # a key of checkpoints", "a.py") == []
    assert terms(check, f"{line}  # formerly", "a.py") == ["reb" + "orn"]


def test_a_term_inside_a_name_in_camel_case_is_counted(check: ModuleType) -> None:
    assert terms(check, "class Reb" + "orn: pass\nnewTw" + "inNetwork = 1", "a.py") == ["Reb" + "orn", "Tw" + "in"]


def test_every_kind_of_text_file_is_read(check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(check, "ROOT", tmp_path)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    names = ["a.py", "docs/a.md", "a.yaml", ".github/workflows/a.yml", "a.toml", "a.cff", "Makefile", ".ci/run"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# " + TERMS[0] + "\n")
    assert {name: len(hits) for name, hits in check.count().items()} == dict.fromkeys(names, 1)


@pytest.mark.parametrize("line", [*IDENTIFIERS.values(), "f'{{{}}}'", "import a as {}", "def f():\n    global {}"])
def test_a_name_without_content_is_counted_in_every_identifier(check: ModuleType, line: str) -> None:
    expected = 0 if "the_" in line else 1  # with another part, the name has content
    assert terms(check, line.format("found"), "a.py").count("found") == expected


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "found: 1"),
        ("a.yml", "  - found: 1"),
        ("a.yaml", "name: found"),
        ("a.toml", "found = 1"),
        ("a.yaml", "names: [a, found]"),
        ("a.md", "The variable `found` holds it."),
        ("a.md", "Use `run.found`."),
        ("a.md", "```python\nfound = 1\n```"),
        ("a.md", "Like this:\n\n    print(found)"),
    ],
)
def test_a_name_without_content_is_counted_in_other_files(check: ModuleType, name: str, text: str) -> None:
    assert terms(check, text, name) == ["found"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.md", "No file was found: give another."),
        ("a.md", "`error: no file found here`"),
        ("a.yaml", "# nothing was found here\ntitle: a file that is found late"),
        ("a.md", "It is found, and read."),
    ],
)
def test_the_verb_is_allowed_in_prose(check: ModuleType, name: str, text: str) -> None:
    assert terms(check, text, name) == []


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
