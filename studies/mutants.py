"""Does every line of surgery matter to a law? Remove each in turn, and see whether the laws notice.

    python studies/mutants.py            # all statements of interventions/core/surgery.py; writes docs/mutations.md
    python studies/mutants.py --only 3   # the third statement alone, with the tests' output

Each mutant is a copy of the checkout in which one statement is replaced by `pass`; the checkout itself is not touched.
"""

from __future__ import annotations

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path("interventions/core/surgery.py")
SOME = (
    "((fresh_start or dead or preserves or no_wait) and (minatar or pixels or crelu or droq))"
    " or silences or keeps_its or no_bias"
)
LAWS = ["tests/laws/test_laws.py", "-k", SOME]
# Asked where no law of an agent reaches: single options of methods.
NEXT = [
    "tests/interventions/test_units.py",
    "tests/interventions/test_recycling.py",
    "tests/interventions/test_resets.py",
]


def statements() -> list[tuple[str, int, int, int]]:
    """(function, first line, last line, column) of every statement within a function, docstrings apart."""
    rows = []

    def visit(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = f"{where}.{child.name}".lstrip(".") if isinstance(child, ast.FunctionDef | ast.ClassDef) else where
            if isinstance(node, ast.FunctionDef | ast.For | ast.If) and isinstance(child, ast.stmt):
                docstring = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
                if not docstring and child in [*node.body, *getattr(node, "orelse", [])]:
                    rows.append((where, child.lineno, child.end_lineno or child.lineno, child.col_offset))
            visit(child, name)

    visit(ast.parse((ROOT / TARGET).read_text()), "")
    return rows


def mutate(text: str, first: int, last: int, column: int) -> str:
    lines = text.splitlines()
    return "\n".join([*lines[: first - 1], " " * column + "pass", *lines[last:]]) + "\n"


def run(folder: Path, tests: list[str]) -> tuple[bool, str]:
    environment = os.environ | {"PYTHONPATH": str(folder / ".typecheck"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode == 0, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, help="number of one statement")
    parser.add_argument("--start", type=int, default=1, help="number of the first statement")
    arguments = parser.parse_args()
    original = (ROOT / TARGET).read_text()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        ignored = shutil.ignore_patterns(".venv", ".git", "runs", "results", "__pycache__", ".typecheck", ".*_cache")
        shutil.copytree(ROOT, copy, ignore=ignored)
        (copy / ".typecheck").mkdir()
        (copy / ".typecheck" / "pliant").symlink_to("..")
        passes, output = run(copy, LAWS)
        if not passes:
            print(output[-3000:], "\nthe laws fail before anything is removed", file=sys.stderr)
            return 1
        for number, (where, first, last, column) in enumerate(statements(), 1):
            if number < arguments.start or arguments.only not in (None, number):
                continue
            (copy / TARGET).write_text(mutate(original, first, last, column))
            started = time.monotonic()
            passes, output = run(copy, LAWS)
            by = "a law"
            if passes:
                passes, output = run(copy, NEXT)
                by = "a method's own test"
            verdict = "**no test**" if passes else by
            line = " ".join(original.splitlines()[first - 1].split())
            rows.append(f"| {where} | `{line.replace('|', chr(92) + '|')[:80]}` | {verdict} |")
            print(f"{number}: {where}: {line[:70]} -> {verdict} ({time.monotonic() - started:.0f} s)", flush=True)
            if arguments.only:
                print(output[-4000:])
    if arguments.only is None:
        table = "\n".join(["| verb | removed statement | noticed by |", "|---|---|---|", *rows])
        head = (
            "# Does every statement of the surgery code matter?\n\n    python studies/mutants.py\n\nEach row is "
            "a removed statement of `interventions/core/surgery.py`, and the kind of test that failed without it.\n\n"
        )
        (ROOT / "docs" / "mutations.md").write_text(head + table + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
