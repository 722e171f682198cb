"""Count the words that the glossary in CONTRIBUTING.md replaces. The number of a package may only fall.

    python .ci/plain_english.py               # check every package and print its number; exit code 1 if one has risen
    python .ci/plain_english.py FILE ...      # show each word in these files, with its replacement
    python .ci/plain_english.py --record      # write today's numbers, if none has risen

Lines with a comment that contains "a former name" or "a key of checkpoints" are not counted: these names must stay.

`.ci/plain_english.txt` holds the recorded number of each package, and the files that must stay free of these words.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".txt")
KINDS = ("*.py", "*.md", "*.yaml", "*.yml", "*.toml", "*.cff", "*.txt", "Makefile", ".ci/run", ".gitignore")
SKIPPED = {".ci/plain_english.py", ".ci/plain_english.txt", "CHANGELOG.md"}  # the list itself, and the names of before

# (what to find, what to write instead); a replacement helps the reader and is not applied.
GLOSSARY: list[tuple[str, str]] = [
    (r"words?|sentences?", "spec, specs"),
    (r"new-?born|re-?born|born|births?", "initial, freshly initialised, reinitialised"),
    (r"beats?", "schedule, trigger"),
    (r"owed|owes|owing", "pending"),
    (r"living|lived|lives (?:in|on|at|with|beside|here|there)|dies", "trained, running; or a technical verb"),
    (r"twins?", "copy"),
    (r"readers?", "consumer"),
    (r"said|told|says|tells", "outputs, reports, predicts; target, label"),
    (r"judged?|judges|judging", "evaluate; verdict of a claim"),
    (r"elsewhere|foreign", "external"),
    (r"looks? at|looked at|looking at|looks? on", "measure, observe, monitor"),
    (r"whoever|nobody|somebody|anybody|who (?:looks|has|is|waits|says|learns)", "a noun as the subject"),
    (r"not to be had|is no [a-z]+'s|is as born", "not available; not a ..."),
    (r"strangers?|welcomed?|breathes?|up for air", "a plain technical verb or noun"),
]
EXCEPTIONS = (
    r"in other words|key ?words?|in words|break-word"
    r"|twin critics?|twin q"
    r"|csv\.(?:dict)?reader"
    r"|sentence:|card\.sentence|\"sentence\""  # a key of claim files
    r"|words:|'words'|\"words\"|`words`"  # a key of claim and study files
    r"|beats?[ -](?:the|a|an|it|its|every|plain|random|regression)\b"
    r"|docs/elsewhere\.md|elsewhere\.md"
    r"|tests?_elsewhere"
)
SPLIT = r"(?<![A-Za-z])(?:{})(?![A-Za-z])"
FORBIDDEN = [
    (re.compile(SPLIT.format(pattern.replace(" ", "[ _]")), re.IGNORECASE), plain) for pattern, plain in GLOSSARY
]
ALLOWED = re.compile(EXCEPTIONS, re.IGNORECASE)
GLOSSARY_ROW = re.compile(r"^\|.*$", re.MULTILINE)
CAMEL_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# How the identifier `found` appears in a file that is not Python: in code, in a code span, as a key or a value.
NAME = re.compile(r"(?<![\w-])found(?=\s*[=.:,)\]\[(])")
CODE = re.compile(r"`(?:[\w.]+[.=(])?found\b[^`]*`")
KEY = re.compile(r"^\s*(?:- +)?[\"']?found[\"']?\s*[:=]|[:=,\[{]\s*[\"']?found[\"']?\s*(?:[,:\]}]|$)")
KEPT = re.compile(r"# .*\b(?:former names?|keys? of checkpoints)\b")


def occurrences(name: str, text: str) -> Iterator[tuple[int, str, str]]:
    """(line, word, replacement) of every forbidden word in a file, in prose and in the parts of identifiers."""
    if name == "CONTRIBUTING.md":
        text = GLOSSARY_ROW.sub("", text)
    for number, line in enumerate(text.splitlines(), 1):
        if KEPT.search(line):
            continue
        line = ALLOWED.sub(" ", CAMEL_CASE.sub(" ", ALLOWED.sub(" ", line)))
        for pattern, plain in FORBIDDEN:
            for match in pattern.finditer(line):
                yield number, match[0], plain
    lines = names_in_python(text) if name.endswith(".py") else names_in_other_files(name, text)
    yield from ((number, "found", "a name for its content") for number in lines)


def names_in_python(text: str) -> Iterator[int]:
    """The line of every identifier `found`: of a variable, an argument, an attribute, a function or an import.

    `found` is a common verb in prose, so it counts only as an identifier.
    """
    for node in ast.walk(ast.parse(text)):
        names = [getattr(node, field, None) for field in ("id", "arg", "attr", "name", "asname")]
        names += getattr(node, "names", []) if isinstance(node, ast.Global | ast.Nonlocal) else []
        yield from (getattr(node, "lineno", 0) for name in names if name == "found")


def names_in_other_files(name: str, text: str) -> Iterator[int]:
    """The line of every `found` that is code in a Markdown file, or a key or a whole value in other files."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if not name.endswith(".md"):
            pattern = KEY
        elif line.lstrip().startswith("```"):
            fenced = not fenced
            continue
        else:
            pattern = NAME if fenced or line.startswith("    ") else CODE
        yield from (number for _ in pattern.finditer(line))


def package(name: str) -> str:
    return name.split("/")[0] if "/" in name else "."


def count() -> dict[str, list[tuple[int, str, str]]]:
    """The occurrences in every file of the repository."""
    listing = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", *KINDS]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.splitlines()
    files = [name for name in sorted(set(names)) if name not in SKIPPED and (ROOT / name).is_file()]
    return {name: list(occurrences(name, (ROOT / name).read_text())) for name in files}


def recorded() -> tuple[dict[str, int], list[str]]:
    """The number of each package, and the clean files."""
    numbers, clean = {}, []
    for line in RECORD.read_text().splitlines() if RECORD.exists() else ():
        key, _, value = line.strip().partition(" ")
        if key == "clean":
            clean.append(value)
        elif key and key != "#":
            numbers[key] = int(value)
    return numbers, clean


def write(numbers: dict[str, int], clean: list[str]) -> None:
    lines = ["# Words that the glossary replaces, by package (numbers only fall); then the files that hold none."]
    lines += [f"{name} {number}" for name, number in sorted(numbers.items())]
    lines += [f"clean {name}" for name in sorted(clean)]
    RECORD.write_text("\n".join(lines) + "\n")


def problems(now: dict[str, int], dirty: dict[str, list[tuple[int, str, str]]]) -> list[str]:
    """A line for every number that has risen and every word in a file that must be clean."""
    numbers, clean = recorded()
    rows = [
        f"{name}: {number} words that the glossary replaces, {numbers.get(name, 0)} are recorded; "
        f"`python .ci/plain_english.py {name if name != '.' else 'README.md'}` shows them"
        for name, number in now.items()
        if number > numbers.get(name, 0)
    ]
    for name in clean:
        rows += [f"{name}:{line}: {word!r}: write {plain}" for line, word, plain in dirty.get(name, [])]
    return rows


def main(arguments: list[str]) -> int:
    by_file = count()
    wanted = [argument.rstrip("/") for argument in arguments if not argument.startswith("-")]
    if wanted:
        for name, hits in by_file.items():
            if any(name == each or name.startswith(f"{each}/") for each in wanted):
                for line, word, plain in hits:
                    print(f"{name}:{line}: {word!r}: write {plain}")
        return 0
    now = Counter({package(name): 0 for name in by_file})
    for name, hits in by_file.items():
        now[package(name)] += len(hits)
    numbers, clean = recorded()
    if "--record" in arguments and not RECORD.exists():
        numbers = dict(now)
        write(numbers, clean)
    for name in sorted(now):
        print(f"plain English: {name:15} {now[name]:5} (recorded {numbers.get(name, 0)})")
    print(f"plain English: {'total':15} {now.total():5} (recorded {sum(numbers.values())})")
    if rows := problems(dict(now), by_file):
        print("\n".join(rows), file=sys.stderr)
        return 1
    if "--record" in arguments:
        write(dict(now), clean)
    elif now.total() < sum(numbers.values()):
        print("plain English: fewer than recorded; `python .ci/plain_english.py --record` writes the new numbers")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
