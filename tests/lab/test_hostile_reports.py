"""Hostile names and texts on pages, in figures and in tables: they are shown, and are neither markup nor formulas."""

from __future__ import annotations

import csv
import importlib.util
import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import run

from pliant.lab.analysis.page import Box, Bullets, Code, Folded, Heading, Page, Table, Text, as_html, as_markdown
from pliant.lab.analysis.sections import csv_cell, csv_text
from pliant.lab.claims import page as claim_page
from pliant.lab.claims.cards import load_claim
from pliant.lab.claims.results import evaluate
from pliant.lab.experiments.config import dump
from pliant.lab.experiments.study import load_study
from pliant.scripts.main import main

needs_figures = pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "`a```<img src=x onerror=alert(2)>```",
    "a|b||",
    "$\\frac{x$ $",
    "_hidden",
    "=cmd|' /C calc'!A0",
    "--><svg onload=alert(3)>",
    "# head",
    "[x](javascript:alert(4))",
    "&lt;b&gt;",
    "\u6f22\u5b57",
    "]]></style><script>",
    "@SUM(1)",
    "+1+1",
    "-x",
    "'quoted",
    "1. one",
    "``",
    "`",
]


class Tags(HTMLParser):
    """The tags of a page, outside of drawings and within them, and all attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.data = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_data(self, data: str) -> None:
        self.data += data


def outside_of_code(markdown: str) -> Iterator[str]:
    """The text of Markdown outside of fenced blocks and code spans, line by line, by the rules of CommonMark."""
    fence = ""
    for line in markdown.splitlines():
        if match := re.fullmatch(r"(`{3,})", line):
            fence = "" if line == fence else fence or match[1]
            continue
        if fence:
            continue
        text, i = "", 0
        while i < len(line):
            if line[i] == "\\" and i + 1 < len(line):
                text += line[i : i + 2]
                i += 2
            elif line[i] == "`":
                ticks = re.match("`+", line[i:])
                assert ticks is not None
                n = ticks.end()
                close = re.search(rf"(?<!`)`{{{n}}}(?!`)", line[i + n :])
                i += n if close is None else n + close.end()
                text += "C"
            else:
                text += line[i]
                i += 1
        yield text


def check_markdown(text: str) -> None:
    columns = 0
    for line in outside_of_code(text):
        bare = re.sub(r"</?(details|summary)>", "", line)
        assert not re.search(r"(?<!\\)<[A-Za-z/!?]", bare), line
        if bare == line:  # a line of HTML contains no Markdown
            assert not re.search(r"(?<!\\)\]\(\s*javascript", line), line
        if line.startswith("| "):
            count = len(re.findall(r"(?<!\\)\|", line))
            columns = columns or count
            assert count == columns, line
        elif not line.startswith("|"):
            columns = 0


def sheet(text: str) -> list[list[str]]:
    rows = list(csv.reader(text.splitlines()))
    for row in rows:
        for cell in row:
            if not re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", cell):
                assert not re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]", cell), cell
    return rows


def of_study(folder: Path, arms: list[str], label: str, title: str) -> Path:
    """A study with finished runs, two seeds of every arm, and one run that failed with a hostile last line."""
    folder.mkdir()
    flags = {"steps": 1000, "evaluate_episodes": 0, "monitors": ["none"]}
    kinds: list[dict[str, Any]] = [{"flags": {"agent.batch_size": 8 + i}} for i in range(len(arms))]
    data = {
        "name": "s",
        "title": title,
        "about": title,
        "agents": {f"a{label}": {"agent": "dqn"}},
        "environments": {f"e{label}": {"env": "CartPole-v1"}},
        "arms": dict(zip(arms, kinds, strict=True)),
        "baseline": arms[0],
        "seeds": 3,
        "flags": flags,
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for i, cell in enumerate(load_study(folder).cells()):
        run(cell.folder, (), cell.seed, 40.0 - i % len(arms), done=i > 0)
        (cell.folder / "config.yaml").write_text(dump(replace(cell.config, run=None)))
        if i == 0:
            (cell.folder / "output.log").write_text(f"RuntimeError: {title} | `x`\n")
    return folder


@needs_figures
@pytest.mark.full
def test_names_are_shown_and_not_interpreted_as_markup(tmp_path: Path) -> None:
    hostile = [*HOSTILE[:8], HOSTILE[9], HOSTILE[16]]
    for name, arms, label, title in (
        ("tame", [f"arm {i}" for i in range(len(hostile))], "", "tame"),
        ("wild", hostile, HOSTILE[1], " ".join(hostile[:6])),
    ):
        folder = of_study(tmp_path / name, arms, label, title)
        assert main(["report", str(folder), "--out", str(tmp_path / f"{name}.out"), "--no-flops"]) == 0
    tame, wild = (Tags((tmp_path / f"{name}.out" / "report.html").read_text()) for name in ("tame", "wild"))
    drawn = {"path", "use", "g", "defs", "clippath", "rect", "style", "code"}  # glyphs, and code within names
    assert {t: n for t, n in wild.tags.items() if t not in drawn} == {
        t: n for t, n in tame.tags.items() if t not in drawn
    }
    assert wild.attributes == tame.attributes and not [a for a in wild.attributes if a.startswith("on")]
    assert all(link.startswith("#") for link in wild.links)
    page = re.sub(r"\s+", " ", wild.data)
    for name in hostile:
        shown = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"\1", name)
        assert shown in page, name
    check_markdown((tmp_path / "wild.out" / "report.md").read_text())
    names: set[str] = set()
    for file in sorted((tmp_path / "wild.out").glob("*.csv")):
        rows = sheet(file.read_text())
        if "arm" in rows[0]:
            names |= {csv_cell(row[rows[0].index("arm")]) for row in rows[1:]}
    assert names >= set(hostile)
    differences = list(csv.DictReader((tmp_path / "wild.out" / "comparisons.csv").read_text().splitlines()))
    assert any(float(value) < 0 for row in differences for value in row.values() if re.match("-[0-9]", value))


def test_every_block_of_a_page_escapes_what_it_shows() -> None:
    for name in [*HOSTILE, "two\nlines", "```\n<script>\n```", "a\n# b", "- x", "====", "a\r\n\r\n<script>"]:
        tame, wild = (
            Page(
                text,
                [
                    Heading(text),
                    Text(text),
                    Text(text, "note"),
                    Bullets([text]),
                    Code(text),
                    Table([text, "x"], [[text, "-1"]], caption=text),
                    Folded(text, [Text(text)]),
                    Box([(text, text)]),
                ],
            )
            for text in ("tame", name)
        )
        html = [Tags(as_html(page)) for page in (tame, wild)]
        tags = [{t: n for t, n in page.tags.items() if t != "code"} for page in html]
        assert tags[0] == tags[1] and html[0].attributes == html[1].attributes
        text = as_markdown(wild)
        check_markdown(text)
        assert "| -1 |" in text
        fences = [line for line in text.splitlines() if re.fullmatch("`{3,}", line)]
        assert max(fences, key=len) not in name.splitlines() and len(fences) >= 2
        for line in outside_of_code(text):
            if line.startswith("#"):
                assert re.match("##? ", line) and (name.startswith("# ") is False or "\\#" in line or "# head" in line)


def test_cells_are_not_formulas_and_are_read_back() -> None:
    signs = ["=1", "+1", "-1", "@a", "\tx", "\rx", "\nx", " =1", "\uff1d1", "-1e-3", "-"]
    texts = [*HOSTILE, *signs, "''", "'=1", "a=1", "a\rb", ""]
    numbers = [-1, -0.5, 3, 1e-12, float("nan"), float("inf"), True]
    text = csv_text(["=head", "n"], [[t, n] for t in texts for n in numbers])
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert rows[0] == ["'=head", "n"] and csv_cell(rows[0][0]) == "=head"
    read = rows[1:]
    assert [csv_cell(row[0]) for row in read] == [t for t in texts for _ in numbers]
    assert [row[1] for row in read[: len(numbers)]] == ["-1", "-0.5", "3", "1e-12", "", "inf", "True"]
    for row in read:
        if not re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", row[0]):
            assert not re.match(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]", row[0]), row
    assert {row[0] for row in read} >= {"-1", "-1e-3", "'=1", "''=1", "a=1", "'-"}  # numbers stay numbers


def test_the_page_of_claims_escapes_markup_in_the_texts_of_a_claim(tmp_path: Path) -> None:
    wild = "<img src=x onerror=alert(1)> | `x` [y](z) </details>"
    card = {
        "title": wild,
        "paper": {"title": wild, "where": wild},
        "claim": wild,
        "tried": wild,
        "seeds": 1,
        "testbed": {
            "about": wild,
            "flags": {"agent": "supervised", "env": "stream/RandomLabels", "steps": 640},
            "record": ["losses/accuracy"],
        },
        "arms": {wild: {"kind": "control"}, "b": {"words": ["layer_norm", "reset(layers='a`|<b>', every=9)"]}},
        "measures": {wild: {"read": "losses/accuracy", "unit": wild}},
        "comparisons": [{"a": "b", "b": wild, "expect": "higher", "margin": 0.1}],
    }
    file = tmp_path / "a `b` <i>.yaml"
    file.write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    text = "\n".join(claim_page._page([evaluate(load_claim(file))]))
    check_markdown(text)
    assert text.count("&lt;img") >= 8


@needs_figures
def test_figures_show_dollars_and_underscores_as_text(tmp_path: Path) -> None:
    import numpy as np

    from pliant.lab.analysis.figures import BLACK, ArmStyle, Line, lines, points

    x = np.arange(3.0)
    for name in (HOSTILE[i] for i in (0, 4, 5, 7, 11)):
        curve = Line(name, ArmStyle(BLACK, "-"), x, x, x, x)
        svg = lines("f", [curve, replace(curve, label="other")], name, name).svg
        assert Tags(svg).tags.keys() <= {"svg", "defs", "style", "g", "path", "use", "clippath", "rect", "metadata"}
        points("f", [(name, ArmStyle(BLACK, "-"), x, x)], name, name)
    # A label is drawn letter by letter, so a longer label has more glyphs.
    both = [
        lines(
            "f", [Line(label, ArmStyle(BLACK, "-"), x, x, x, x), Line("b", ArmStyle(BLACK, "-"), x, x, x, x)], "x", "y"
        )
        for label in ("_", "_nineteen_letters__")
    ]
    assert both[1].svg.count("<use") - both[0].svg.count("<use") >= 18
