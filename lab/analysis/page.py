"""A page of headings, text, tables and figures, rendered as self-contained HTML and as Markdown.

Text is plain: it contains no markup, and everything is escaped, except `code` in backticks.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; a note is an explanation in smaller type."""

    text: str
    kind: Literal["text", "note", "lead"] = "text"


@dataclass(frozen=True)
class Bullets:
    items: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Formatted cells. The first `texts` columns are text; the others are numbers, aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    caption: str = ""


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Figure:
    """A drawing with its caption; `file` is its PNG relative to the page."""

    name: str
    svg: str
    caption: str
    file: str


@dataclass(frozen=True)
class Figures:
    """Figures side by side if there is room."""

    figures: Sequence[Figure]


@dataclass(frozen=True)
class Folded:
    """Details that are folded by default."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Box:
    """Pairs of label and value, in a frame."""

    rows: Sequence[tuple[str, str]]


Block: TypeAlias = Heading | Text | Bullets | Table | Code | Figure | Figures | Folded | Box


@dataclass
class Page:
    title: str
    blocks: list[Block] = field(default_factory=list)

    def add(self, *blocks: Block) -> None:
        self.blocks += blocks


# ------------------------------------------------------------------------------------------------ HTML

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1c1c1c; line-height: 1.5; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 24px 20px 64px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0.4em 0 0.5em; }
h2 { font-size: 1.3rem; margin: 2.2em 0 0.5em; padding-top: 0.5em; border-top: 1px solid #e2e2e2; }
h3 { font-size: 1.05rem; margin: 1.8em 0 0.4em; }
p { margin: 0.6em 0; max-width: 76ch; }
p.lead { font-size: 1.05rem; color: #333; }
p.note { color: #555; font-size: 0.9rem; }
ul { padding-left: 1.2em; max-width: 84ch; }
li { margin: 0.3em 0; }
code { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 0.88em; background: #f3f3f3;
  padding: 0.05em 0.3em; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: #f6f6f6; border: 1px solid #e6e6e6; border-radius: 6px; padding: 10px 12px; overflow-x: auto;
  font-size: 0.8rem; line-height: 1.45; }
pre code { background: none; padding: 0; overflow-wrap: normal; }
.scroll { overflow-x: auto; margin: 0.8em 0; border: 1px solid #e6e6e6; border-radius: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 8px 10px; color: #444; caption-side: top; }
th, td { padding: 6px 10px; text-align: right; white-space: nowrap; border-bottom: 1px solid #eee; }
th { background: #f7f7f7; font-weight: 600; vertical-align: bottom; white-space: normal; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 9em; max-width: 30em; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
dl.box { display: grid; grid-template-columns: minmax(9em, 15em) 1fr; gap: 0; margin: 0.8em 0;
  border: 1px solid #d9d9d9; border-radius: 6px; overflow: hidden; font-size: 0.92rem; }
dl.box dt, dl.box dd { margin: 0; padding: 7px 12px; border-bottom: 1px solid #eee; min-width: 0; }
dl.box dt { background: #f7f7f7; font-weight: 600; }
dl.box dd { overflow-wrap: anywhere; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 18px 28px;
  margin: 1em 0; align-items: start; }
figure { margin: 0; min-width: 0; max-width: 560px; }
figure svg { width: 100%; height: auto; display: block; }
figcaption { color: #555; font-size: 0.86rem; line-height: 1.4; margin-top: 4px; }
details { margin: 0.8em 0; }
summary { cursor: pointer; color: #222; font-weight: 600; }
@media (max-width: 600px) {
  main { padding: 14px 14px 48px; }
  h1 { font-size: 1.4rem; }
  dl.box { grid-template-columns: 1fr; }
  dl.box dt { border-bottom: 0; padding-bottom: 2px; background: none; }
  dl.box dd { padding-top: 0; }
  td.text { min-width: 7.5em; max-width: 13em; }
}
@media print { h2 { break-after: avoid; } figure, .scroll { break-inside: avoid; } }
"""


def as_html(page: Page) -> str:
    """The whole page; it loads no other file."""
    body = "\n".join(line for block in page.blocks for line in _html(block))
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(page.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{_inline(page.title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


CODE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
"""Code between two single backticks; any other backtick is text."""


def _inline(text: str) -> str:
    return CODE.sub(r"<code>\1</code>", html.escape(text, quote=False))


def _html(block: Block) -> Iterator[str]:
    match block:
        case Heading(text, level):
            yield f'<h{level} id="{_anchor(text)}">{_inline(text)}</h{level}>'
        case Text(text, kind):
            yield f"<p>{_inline(text)}</p>" if kind == "text" else f'<p class="{kind}">{_inline(text)}</p>'
        case Bullets(items):
            yield "<ul>"
            yield from (f"<li>{_inline(item)}</li>" for item in items)
            yield "</ul>"
        case Table(header, rows, texts, caption):
            yield '<div class="scroll" tabindex="0"><table>'
            if caption:
                yield f"<caption>{_inline(caption)}</caption>"
            yield f"<thead><tr>{''.join(_cell('th', c, i < texts) for i, c in enumerate(header))}</tr></thead><tbody>"
            for row in rows:
                yield f"<tr>{''.join(_cell('td', c, i < texts) for i, c in enumerate(row))}</tr>"
            yield "</tbody></table></div>"
        case Code(text):
            yield f"<pre><code>{html.escape(text)}</code></pre>"
        case Figures(figures):
            yield '<div class="figures">'
            for figure in figures:
                yield from _html(figure)
            yield "</div>"
        case Figure(name, svg, caption, _):
            label = html.escape(caption)
            yield f'<figure id="{html.escape(name)}">'
            yield svg.replace('role="img"', f'role="img" aria-label="{label}"', 1)
            yield f"<figcaption>{_inline(caption)}</figcaption></figure>"
        case Folded(title, blocks):
            yield f"<details><summary>{_inline(title)}</summary>"
            for inner in blocks:
                yield from _html(inner)
            yield "</details>"
        case Box(rows):
            yield '<dl class="box">'
            yield from (f"<dt>{_inline(what)}</dt><dd>{_inline(how)}</dd>" for what, how in rows)
            yield "</dl>"


def _cell(tag: str, text: str, is_text: bool) -> str:
    return f'<{tag} class="text">{_inline(text)}</{tag}>' if is_text else f"<{tag}>{_inline(text)}</{tag}>"


def _anchor(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


# ------------------------------------------------------------------------------------------------ Markdown


def as_markdown(page: Page) -> str:
    """The same page for a repository; figures are the PNGs beside it."""
    lines = [f"# {_marked(page.title)}", ""]
    for block in page.blocks:
        lines += [*_markdown(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def _marked(text: str, cell: bool = False) -> str:
    """Text with Markdown's markup escaped, except for code; line breaks become spaces."""
    text = " ".join(text.splitlines())
    # Every second part is the inside of a code span, in which nothing is markup.
    parts = [f"`{part}`" if i % 2 else _escaped(part) for i, part in enumerate(CODE.split(text))]
    marked = "".join(parts)
    return marked.replace("|", r"\|") if cell else BLOCK.sub(r"\1\\\2", marked)


def _escaped(text: str) -> str:
    return re.sub(r"([\\`*_<>\[\]]|&(?=#?\w+;))", r"\\\1", text)


BLOCK = re.compile(r"^(\s*|\s*\d+)(#|[-+](?=\s)|[-=~]{3}|(?<=\d)[.)](?=\s))")
"""The start of a heading, a list item, a rule or a fence."""


def fenced(text: str) -> str:
    """The fence of a code block: longer than any fence within it."""
    return "`" * (1 + max(2, *(len(run) for run in re.findall("`+", text)), 0))


def _markdown(block: Block) -> Iterator[str]:
    match block:
        case Heading(text, level):
            yield f"{'#' * level} {_marked(text)}"
        case Text(text, kind):
            yield f"*{_marked(text)}*" if kind == "note" else _marked(text)
        case Bullets(items):
            yield from (f"- {_marked(item)}" for item in items)
        case Table(header, rows, texts, caption):
            if caption:
                yield _marked(caption)
                yield ""
            yield f"| {' | '.join(_marked(c, True) for c in header)} |"
            yield f"|{'|'.join('---' if i < texts else '---:' for i in range(len(header)))}|"
            for row in rows:
                yield f"| {' | '.join(_marked(c, True) for c in row)} |"
        case Code(text):
            yield from (fenced(text), text, fenced(text))
        case Figures(figures):
            for i, figure in enumerate(figures):
                if i:
                    yield ""
                yield from _markdown(figure)
        case Figure(_, _, caption, file):
            yield f"![{_marked(caption)}]({file})"
            yield ""
            yield f"*{_marked(caption)}*"
        case Folded(title, blocks):
            yield f"<details><summary>{html.escape(' '.join(title.splitlines()), quote=False)}</summary>"
            for inner in blocks:
                yield ""
                yield from _markdown(inner)
            yield ""
            yield "</details>"
        case Box(rows):
            yield "| | |"
            yield "|---|---|"
            yield from (f"| {_marked(what, True)} | {_marked(how, True)} |" for what, how in rows)
