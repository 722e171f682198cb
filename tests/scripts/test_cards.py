"""Every intervention is in the catalogue and has a complete card."""

from __future__ import annotations

import inspect
import re

import pytest

from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.scripts import main

SECTIONS = ("When:", "Paper:", "Differs:", "Excludes:")


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_a_card_is_complete(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Its effect in one line; when, paper, differences, exclusions in this order; an explanation of every parameter."""
    assert main.main(["interventions", name]) == 0
    card = capsys.readouterr().out
    body = inspect.getdoc(INTERVENTIONS[name]) or ""
    assert body in card and len(body.splitlines()[0]) <= 110 and body.splitlines()[0].endswith(".")
    places = [body.index(f"\n{section}") for section in SECTIONS]
    assert places == sorted(places)
    assert re.search(r"\b(19|20)\d\d\b", body[places[1] : places[2]]), "a paper has a year"
    explained = re.findall(r"^ {4}(\w+): ", body.partition("Args:")[2], re.MULTILINE)
    assert explained == list(inspect.signature(INTERVENTIONS[name]).parameters)


def test_the_catalogue_lists_every_intervention(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["interventions"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(INTERVENTIONS)


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_the_example_of_an_intervention_is_a_valid_spec(name: str) -> None:
    (part,) = build([INTERVENTIONS[name].example], INTERVENTIONS)
    assert part.name == name
