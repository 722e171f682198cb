"""What threads, spinning and neighbours do to speed: the table in docs/benchmarks.md, section Threads.

    python studies/threads.py            # three minutes on two idle cores; prints the tables, as Markdown

It uses two cores, whatever the machine has. Beside none, two and four processes that compute without end it measures

* the job of `make train` (DQN on Freeway, four environments) past its random steps, in environment steps a second;
* updates of its agent on noise (Nature CNN, batches of 32), in updates a second;

each in a process of its own: with two threads that spin while they wait (what torch does by itself), with two that
sleep, with one, and with the number that `pliant train` chooses under its own setting. Results stand in a file. What
stands there is not measured again: the same command goes on after an interruption, and `--out` names another file.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pliant.common.files import write_whole
from pliant.common.spinning import DECIDED, bounded

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "studies" / "results" / "threads.json"
NEIGHBOURS = (0, 2, 4)
# Title, what is set before torch is loaded, and the number of threads (0: chosen as in `pliant train`).
VARIANTS: dict[str, tuple[dict[str, str], int]] = {
    "2 threads that spin": ({}, 2),
    "2 threads that sleep": (bounded({}), 2),
    "1 thread": (bounded({}), 1),
    "`pliant train`": (bounded({}), 0),
}


def job() -> list[str]:
    """The command line of `make train`, without the random steps before learning."""
    line = re.search(r"^ARGS \?= (.*?)\n\n", (ROOT / "Makefile").read_text(), re.DOTALL | re.MULTILINE)
    assert line is not None
    arguments = shlex.split(line[1].replace("\\\n", " "))
    return [*arguments, "--agent.learning-starts", "200", "--agent.epsilon-steps", "1", "--device", "cpu"]


def measure(given: int, seconds: float) -> dict[str, Any]:
    """Rates in this process, and the number of threads with the reason for it."""
    import torch

    from pliant.agents.clock import Clock
    from pliant.agents.run import Run
    from pliant.lab.experiments import threads
    from pliant.lab.experiments.config import parse
    from pliant.lab.experiments.training import built, fresh_agent

    most = torch.get_num_threads()
    config = replace(parse(job(), prog="pliant train").config, threads=given or 1)
    envs, agent = built(config)
    choice = threads.Choice(given)
    if not given:
        choice = threads.choose(config, agent, most)
        agent = fresh_agent(replace(config, threads=choice.threads), envs)
    run = Run(agent, envs)
    run.train(240)  # what is made once is made here
    start, before = time.perf_counter(), run.clock.steps
    while (spent := time.perf_counter() - start) < seconds:
        run.train(run.clock.steps + config.num_envs)
    steps = (run.clock.steps - before) / spent
    envs.close()
    batch, clock, made = threads.noise(agent, threads.batch_size(config, agent)), Clock(), 0
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds / 2:
        clock = clock.updated()
        agent.update(batch, agent.plan(clock))
        made += 1
    return {
        "steps/s": steps,
        "updates/s": made / spent,
        "threads": choice.threads,
        "why": choice.why,
        "torch": torch.__version__,
    }


# Computes without end, but not longer than the study, however that ends.
LOOP = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that compute without end, for the length of the block."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure_missing(file: Path, seconds: float) -> dict[str, Any]:
    """Measure what has no result yet, one process after the other; all results."""
    results: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in (*DECIDED, "OMP_NUM_THREADS", "MKL_NUM_THREADS")
    }
    for count in NEIGHBOURS:
        for title, (settings, given) in VARIANTS.items():
            key = f"{title}, beside {count}"
            if key in results:
                continue
            command = [sys.executable, __file__, "--measure", str(given), "--seconds", str(seconds)]
            load = os.getloadavg()[0]
            with busy(count):
                done = subprocess.run(command, env=clean | settings, stdout=subprocess.PIPE, text=True, check=True)
            results[key] = json.loads(done.stdout.splitlines()[-1]) | {"load average before": load}
            print(f"{key}: {results[key]}", file=sys.stderr, flush=True)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(file, json.dumps(results, indent=1) + "\n")
    return results


def tables(results: dict[str, Any]) -> str:
    """Markdown."""
    lines: list[str] = []
    for unit, what in (("steps/s", "the job of `make train`, steps/s"), ("updates/s", "its updates alone, updates/s")):
        lines += [f"| {what} | " + " | ".join(VARIANTS) + " |", "|---|" + "---|" * len(VARIANTS)]
        for count in NEIGHBOURS:
            cells = []
            for title in VARIANTS:
                result = results[f"{title}, beside {count}"]
                chosen = f" ({result['threads']} thread{'s' * (result['threads'] > 1)})" if result["why"] else ""
                cells.append(f"{result[unit]:.3g}{chosen}")
            lines.append(f"| {f'with {count} busy processes' if count else 'idle'} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help="file of the results")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement of the job")
    parser.add_argument("--measure", type=int, metavar="THREADS", help="one measurement, in this process")
    arguments = parser.parse_args()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.seconds)))
        return 0
    if len(cores := sorted(os.sched_getaffinity(0))) < 2:
        print("error: there is one core alone, and this measures two", file=sys.stderr)
        return 2
    os.sched_setaffinity(0, cores[:2])  # and all processes that are started here
    print(tables(measure_missing(arguments.out, arguments.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
