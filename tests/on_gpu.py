"""Everything that needs a GPU, in one command without a network: `make gpu`.

    python tests/on_gpu.py                # within eight minutes
    python tests/on_gpu.py --seconds 120 --only captured updates

1. laws: the laws with agents on the GPU; the outcome of each test is written as it comes.
2. captured: one update of a captured graph beside an eager update from a copied state; draws to the bit.
3. runs: runs that are killed and resumed beside runs that are not, to the bit.
4. updates: updates per second, eager and captured, and kernels per update.
5. training: environment steps per second.

Each section has its own process and its own limit of time; time that a section does not use goes to the later ones.
After every result, `gpu.json` and `gpu.md` are written to the folder that OUT names (by default runs/gpu), and the page
to docs/gpu.md, so that a command that is cut short leaves what it has measured. What needs a package that is not
installed is left out, with one line.

On a machine without a GPU, the same script runs as far as it goes: a few laws, recorded operators in the place of
graphs, and figures of a few seconds, which go to gpu.json only. The rows of the page then are 'not measured', and a
page with measurements of a GPU is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
NO_GPU = "No GPU was available: its rows are 'not measured'."
NOT_MEASURED = "not measured"

SHARES = {"laws": 0.38, "captured": 0.15, "runs": 0.17, "updates": 0.18, "training": 0.12}  # of the time
LAWS = (
    "laws/test_laws.py",
    "monitors/test_monitors.py",
    "agents/test_replay.py",
    "laws/test_effects.py",
    "laws/test_graph.py",
    "agents/test_agents.py",
)
CAPTURED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("dqn", ()),
    ("sac", ()),
    ("dqn, nature", ()),
    ("ppo", ()),
    ("dqn, double dueling prioritised 3-step", ("redo",)),
    ("dqn, minatar, dueling", ("continual_backprop",)),
    ("redq", ()),
    ("droq", ()),
    ("dqn, minatar, dueling", ("bbf",)),
    ("supervised", ()),
)
# Run → package that it needs, and its command line; three checkpoints in each.
RUNS: dict[str, tuple[str, str]] = {
    "DQN, CartPole, ReDo": (
        "",
        "--agent dqn --env CartPole-v1 --steps 1000 --checkpoint-every 250 --agent.learning-starts 100 "
        "--interventions redo(tau=0.1,every=20)",
    ),
    "SAC, HalfCheetah": (
        "mujoco",
        "--agent sac --env HalfCheetah-v5 --steps 500 --checkpoint-every 150 --agent.learning-starts 100 "
        "--agent.buffer-size 1000",
    ),
    "DQN, Pong": (
        "ale_py",
        "--agent dqn --env ALE/Pong-v5 --steps 800 --checkpoint-every 250 --agent.learning-starts 200 "
        "--agent.buffer-size 600",
    ),
    "PPO, CartPole": ("", "--agent ppo --env CartPole-v1 --steps 1536 --checkpoint-every 400 --agent.rollout 128"),
}
SMALL = " --threads 1 --evaluate-episodes 0 --log-every 100 --monitors cheap"
WORKLOADS = {
    "dqn": "DQN, Nature CNN, batch 32",
    "mlp": "DQN, MLP 120-84, batch 128",
    "sac": "SAC, two critics of 256x256, batch 256",
}
PRECISIONS = ("float32", "tf32", "bf16")
GOALS = {("dqn", "float32"): "2,000", ("dqn", "tf32"): "4,000", ("dqn", "bf16"): "4,000", ("mlp", "float32"): "6,000"}
# Task of the benchmarks → title, environments, package, goal.
TRAINING = {
    "cartpole": ("DQN, CartPole: batch 128, update every 10 steps", 1, "gymnasium", ""),
    "pong": ("DQN, Pong: batch 32, update every 4 steps, 8 environments", 8, "ale_py", "4,000"),
    "halfcheetah": ("SAC, HalfCheetah: batch 256, update every step", 1, "mujoco", "1,500"),
}
SEEDS = 8
SEEDS_TITLE = f"{SEEDS} seeds of SAC, HalfCheetah, in one process: time relative to one seed"
NEEDED = {
    "gymnasium": "no environments: sections runs and training",
    "tyro": "no command line of `pliant train`: section runs",
    "ale_py": "no Atari",
    "mujoco": "no HalfCheetah",
    "hypothesis": "no tests: section laws",
    "xdist": "the laws run in one process",
}


def missing() -> dict[str, str]:
    """The packages that are not installed, and what is left out for that."""
    return {name: lost for name, lost in NEEDED.items() if find_spec(name) is None}


@dataclass
class Results:
    """What has been measured so far; written to the files after every change.

    Attributes:
        page: The page of the documentation; None writes none.
    """

    out: Path
    page: Path | None
    device: str
    machine: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)  # section → how it ended, if not by itself
    finished: bool = False

    def add(self, section: str, row: dict[str, Any]) -> None:
        """Add a row, or complete the one with the same key."""
        rows = self.rows.setdefault(section, [])
        known = next((each for each in rows if each["key"] == row["key"]), None)
        if known is None:
            rows.append(row)
        else:
            known.update(row)
        self.write()

    def of(self, section: str, key: str) -> dict[str, Any]:
        return next((row for row in self.rows.get(section, []) if row["key"] == key), {})

    def write(self) -> None:
        content = {name: value for name, value in vars(self).items() if name not in ("out", "page")}
        self.out.mkdir(parents=True, exist_ok=True)
        text = render(self)
        _replace(self.out / "gpu.json", json.dumps(content, indent=1) + "\n")
        _replace(self.out / "gpu.md", text)
        if self.page is not None and (self.device != "cpu" or not has_measurements(self.page)):
            _replace(self.page, text)


def has_measurements(page: Path) -> bool:
    """Whether a page holds measurements of a GPU."""
    return page.exists() and "- GPU: " in page.read_text()


def _replace(file: Path, text: str) -> None:
    scratch = file.with_name(file.name + ".tmp")
    scratch.write_text(text)
    os.replace(scratch, file)


# ------------------------------------------------------------------------------------------------- the page


def render(results: Results) -> str:
    """The page, as Markdown; rows without a measurement of a GPU are 'not measured'."""
    gpu = results.device != "cpu"
    lines = ["# On a GPU", "", "    make gpu     # the laws, captured updates and figures; within eight minutes", ""]
    if gpu:
        lines += [f"- {title}: {text}" for title, text in results.machine.items()]
        if not results.finished:
            lines.append("- the command did not finish: rows that are missing are 'not measured'")
    else:
        lines.append(NO_GPU)
    lines += ["", "## Laws", "", *_laws(results, gpu)]
    lines += ["", "## Captured updates", ""]
    lines.append(
        "One update from one state, captured and eager: random draws must be equal to the bit, and all else up to "
        "rounding (a relative error of 1e-3, or an absolute one of 1e-5). No update may make the host wait."
    )
    header = ("agent", "methods", "graphs", "draws", "rest", "largest difference", "host waits")
    cells = []
    for agent, methods in CAPTURED:
        row = results.of("captured", capture_key(agent, methods)) if gpu else {}
        cells.append([agent, " ".join(methods), *_cells(row, header[2:])])
    lines += ["", *_table(header, cells)]
    lines += ["", "## Killed and resumed runs", ""]
    lines.append("A run that is killed after a checkpoint and resumed equals a run that is not, to the bit.")
    cells = [[title, *_cells(results.of("runs", title) if gpu else {}, ("outcome",))] for title in RUNS]
    lines += ["", *_table(("run", "outcome"), cells)]
    lines += ["", "## Updates per second", ""]
    header = ("eager", "captured", "kernels an update", "GPU time, µs")
    cells = [
        [title, precision, *_cells(results.of("updates", f"{name} {precision}") if gpu else {}, header), goal]
        for name, title in WORKLOADS.items()
        for precision in PRECISIONS
        for goal in [GOALS.get((name, precision), "")]
    ]
    lines += _table(("update, sampling included", "precision", *header, "goal"), cells)
    lines += ["", "## Training", ""]
    cells = [
        [title, *_cells(results.of("training", name) if gpu else {}, ("steps/s",)), goal]
        for name, (title, _, _, goal) in TRAINING.items()
    ]
    lines += _table(("environment steps per second", "measured", "goal"), cells)
    cells = [[SEEDS_TITLE, *_cells(results.of("training", "seeds") if gpu else {}, ("ratio",)), "at most 1.5"]]
    lines += ["", *_table(("several seeds", "measured", "goal"), cells)]
    if notes := [f"- {section}: {note}" for section, note in results.notes.items()]:
        lines += ["", "## Notes", "", *(notes if gpu else [f"{note} (on the CPU)" for note in notes])]
    if not gpu:
        lines += ["", "## The same command on a CPU", "", *_on_cpu(results)]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, Any], names: Sequence[str]) -> list[str]:
    if reason := row.get("error"):
        return [f"failed: {reason}", *[""] * (len(names) - 1)]
    return [_shown(row[name]) if name in row else NOT_MEASURED for name in names]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.2g}"
    return str(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [list(header), ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines]


def _laws(results: Results, gpu: bool) -> list[str]:
    outcomes = results.rows.get("laws", []) if gpu else []
    if not outcomes:
        return [f"Laws with agents on the GPU: {NOT_MEASURED}."]
    counts = Counter(row["outcome"] for row in outcomes)
    lines = [", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items())) + "."]
    failed = [row for row in outcomes if row["outcome"] == "failed"]
    if failed:
        reasons = Counter((row.get("place", ""), row.get("reason", "")[:160]) for row in failed)
        first = {(row.get("place", ""), row.get("reason", "")[:160]): row["key"] for row in reversed(failed)}
        cells = [[str(number), *key, first[key]] for key, number in reasons.most_common(60)]
        lines += ["", *_table(("failures", "place", "reason", "first of them"), cells)]
    return lines


def _on_cpu(results: Results) -> list[str]:
    """What a machine without a GPU could check: outcomes without times."""
    counts = Counter(row["outcome"] for row in results.rows.get("laws", []))
    rows = results.rows.get("captured", [])
    good = [row for row in rows if row.get("draws") == row.get("rest") == "equal"]
    runs = results.rows.get("runs", [])
    return [
        f"- laws: {counts['passed']} passed, {counts['failed']} failed (a small selection)",
        f"- captured updates, by recorded operators: {len(good)} of {len(rows)} equal an eager update",
        f"- killed and resumed runs: {sum(row['outcome'] == 'equal' for row in runs)} of {len(runs)} equal",
        f"- figures: {len(results.rows.get('updates', []))} of updates and {len(results.rows.get('training', []))} of "
        "training were made, and are in gpu.json only",
    ]


# ------------------------------------------------------------------------------------------------- the sections

Emit = Callable[[dict[str, Any]], None]


def capture_key(agent: str, methods: Sequence[str]) -> str:
    return " + ".join((agent, *methods))


def captured_section(device: str, seconds: float, emit: Emit) -> None:
    from on_device import put_agents_on
    from recorder import RecordedGraph

    from pliant.agents.captured import CudaGraph

    put_agents_on(device)
    graph: Any = CudaGraph if device != "cpu" else RecordedGraph
    for agent, methods in CAPTURED if device != "cpu" else CAPTURED[:2]:
        key = capture_key(agent, methods)
        try:
            emit({"key": key} | beside_eager(agent, methods, graph))
        except Exception as error:
            emit({"key": key, "error": _one_line(error)})


def beside_eager(agent: str, methods: Sequence[str], graph: Any) -> dict[str, Any]:
    """Updates of graphs beside eager updates, each from a copied state."""
    import torch
    from law_agents import build_run, current_state, flat, refuse_waiting, resume, saved, take_steps
    from test_laws import examples

    from pliant.agents.captured import CapturedLearner, Learner

    recorded, eager = (build_run(agent, examples(*methods), seed=seed) for seed in (0, 99))
    recorded.learner = learner = CapturedLearner(recorded.agent, recorded.memory, graph, warm_up=2, check=False)
    eager.learner = Learner(eager.agent, eager.memory)
    take_steps(recorded, 16)
    if not learner.captured:
        raise AssertionError("no update was captured")
    draws: set[str] = set()
    rest: set[str] = set()
    largest = 0.0
    for _ in range(8):
        resume(eager, saved(recorded))
        for run in (recorded, eager):
            take_steps(run, 1)
        mine, theirs = flat(current_state(recorded)), flat(current_state(eager))
        for name, value in theirs.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                own = mine[name].to(value)
                largest = max(largest, float((own - value).abs().nan_to_num().max()) if value.numel() else 0.0)
                if not torch.allclose(own, value, rtol=1e-3, atol=1e-5, equal_nan=True):
                    rest.add(name)
            elif isinstance(value, torch.Tensor) and not torch.equal(mine[name].to(value), value):
                draws.add(name)
    row = {"graphs": len(learner.captured), "draws": _differences(draws), "rest": _differences(rest)}
    row["largest difference"] = largest
    try:
        refuse_waiting(eager, updates=2)()
        row["host waits"] = "none"
    except Exception as error:
        row["host waits"] = _one_line(error)
    return row


def _differences(names: set[str]) -> str:
    return f"differs: {min(names)} and {len(names) - 1} others" if names else "equal"


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def runs_section(device: str, seconds: float, emit: Emit) -> None:
    lost = missing()
    for name in ("tyro", "gymnasium"):
        if name in lost:
            return emit({"key": next(iter(RUNS)), "outcome": f"not run: {name} is missing"})
    chosen = RUNS if device != "cpu" else dict(list(RUNS.items())[:1])
    threads = []
    with tempfile.TemporaryDirectory() as folder:
        for title, (package, line) in chosen.items():
            if package in lost:
                emit({"key": title, "outcome": f"not run: {package} is missing"})
                continue
            place = Path(folder) / str(len(threads))
            threads.append(threading.Thread(target=_killed_and_resumed, args=(title, line, place, device, emit)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return None


def _killed_and_resumed(title: str, line: str, folder: Path, device: str, emit: Emit) -> None:
    def begin(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pliant.scripts", "train", "--run", str(folder / name), "--device", device]
        return subprocess.Popen([*command, *(line + SMALL).split()], stdout=subprocess.DEVNULL, stderr=sys.stderr)

    try:
        straight, killed = begin("straight"), begin("killed")
        checkpoints = folder / "killed" / "checkpoints"
        while not any(path.suffix == "" for path in checkpoints.glob("step_*")) and killed.poll() is None:
            time.sleep(0.01)
        killed.kill()
        if killed.wait() != -signal.SIGKILL:
            raise AssertionError("the run ended before it was killed")
        codes = begin("killed").wait(), straight.wait()
        if codes != (0, 0):
            raise AssertionError(f"the exit codes are {codes}")
        from test_runs import content, same

        mine, theirs = content(folder / "killed"), content(folder / "straight")
        parts = [part for part in theirs if not same(mine[part], theirs[part])]
        emit({"key": title, "outcome": f"differs: {', '.join(parts)}" if parts else "equal"})
    except Exception as error:
        emit({"key": title, "outcome": f"failed: {_one_line(error)}"})


def updates_section(device: str, seconds: float, emit: Emit) -> None:
    import torch

    from pliant.lab.benchmarks import updates

    gpu = device != "cpu"
    each = min(2.0, seconds / 40) if gpu else 0.1
    for precision in PRECISIONS if gpu else PRECISIONS[:1]:
        settings: dict[str, Any] = {}
        if updates.has_precision():
            settings = {"precision": precision}
        elif precision == "bf16":
            return
        elif gpu:
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        for workload in WORKLOADS if gpu else ["mlp"]:
            key = f"{workload} {precision}"
            try:
                run = updates.eager(workload, device, **settings)
                emit({"key": key, "eager": updates.updates_per_second(run, each, device)})
                if gpu:
                    number, spent = updates.kernels(run, device)
                    emit({"key": key, "kernels an update": number, "GPU time, µs": spent})
                    run = updates.captured(workload, device, **settings)
                    emit({"key": key, "captured": updates.updates_per_second(run, each, device)})
                else:
                    emit({"key": key, "operators an update": updates.operators(run)})
            except Exception as error:
                emit({"key": key, "captured": f"failed: {_one_line(error)}"})


def training_section(device: str, seconds: float, emit: Emit) -> None:
    from pliant.lab.benchmarks.machine import synchronise
    from pliant.lab.benchmarks.speed import TASKS, training

    lost = missing()
    gpu = device != "cpu"
    for name, (_, num_envs, package, _) in TRAINING.items() if gpu else [("cartpole", TRAINING["cartpole"])]:
        if absent := [each for each in ("gymnasium", package) if each in lost]:
            emit({"key": name, "steps/s": f"not run: {absent[0]} is missing"})
            continue
        try:
            task = TASKS[name] if gpu else replace(TASKS[name], warmup=200)
            run = training(task, device, num_envs)
            run.train(2 * task.warmup)  # graphs are captured in it
            limit, chunk = (seconds / 5, 400) if gpu else (0.5, 100)
            steps = run.clock.steps
            synchronise(device)
            start = time.perf_counter()
            while time.perf_counter() - start < limit:
                run.train(run.clock.steps + chunk)
            synchronise(device)
            emit({"key": name, "steps/s": (run.clock.steps - steps) / (time.perf_counter() - start)})
        except Exception as error:
            emit({"key": name, "steps/s": f"failed: {_one_line(error)}"})
    if gpu:
        try:
            absent = [each for each in ("gymnasium", "mujoco") if each in lost]
            ratio: Any = f"not run: {absent[0]} is missing" if absent else seeds_beside_one("halfcheetah", device, 150)
        except Exception as error:
            ratio = f"failed: {_one_line(error)}"
        emit({"key": "seeds", "ratio": ratio})


def seeds_beside_one(name: str, device: str, steps: int) -> float:
    """The time of several seeds that take turns in one process, relative to that of one of them."""
    from pliant.lab.benchmarks.machine import synchronise
    from pliant.lab.benchmarks.speed import TASKS, training

    task = TASKS[name]
    runs = [training(task, device) for _ in range(SEEDS)]
    turns = [run.turns(10**9) for run in runs]

    def timed(chosen: list[Any], steps: int) -> float:
        synchronise(device)
        start = time.perf_counter()
        for _ in range(steps):
            for turn in chosen:
                next(turn)
        synchronise(device)
        return time.perf_counter() - start

    # Graphs are captured after the first updates.
    timed(turns, task.warmup // 2 + 20 * task.steps_per_update)
    return timed(turns, steps) / timed(turns[:1], steps)


SECTIONS = {
    "captured": captured_section,
    "runs": runs_section,
    "updates": updates_section,
    "training": training_section,
}


# ------------------------------------------------------------------------------------------------- the command


def make_importable() -> None:
    """Let this process and the sections import the packages of this checkout, installed or not."""
    link = ROOT / ".typecheck" / "pliant"
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to("..")
    if "pliant" not in sys.modules:
        sys.path.insert(0, str(link.parent))


def environment() -> dict[str, str]:
    """The environment of a section: one thread, and pliant and its tests can be imported."""
    places = [str(ROOT / ".typecheck"), str(TESTS), *(str(path) for path in sorted(TESTS.iterdir()) if path.is_dir())]
    given = os.environ.get("PYTHONPATH", "")
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([*places, *([given] if given else [])]),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    }


def lines_of(command: list[str], log: Path, seconds: float) -> Iterator[str | int]:
    """The lines that a process prints, then its exit code. It is killed with its children after the time."""
    with log.open("a") as errors, tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment() | {"TMPDIR": scratch},
            start_new_session=True,
        )

        def kill() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

        timer = threading.Timer(max(1.0, seconds), kill)
        timer.start()
        try:
            assert process.stdout is not None
            yield from process.stdout
            yield process.wait()
        finally:
            timer.cancel()
            kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


def run_section(name: str, results: Results, seconds: float) -> None:
    command = [sys.executable, str(Path(__file__)), "section", name, results.device, str(seconds)]
    _collect(name, command, results, seconds)


def run_laws(results: Results, seconds: float, cases: int | None) -> None:
    if "hypothesis" in missing():
        results.notes["laws"] = "not run: hypothesis is missing"
        return
    outcomes = results.out / "laws.jsonl"
    outcomes.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "on_device", "-p", "no:cacheprovider", "-q", "--tb=line"]
    command += ["-p", "no:benchmark", "-W", "default", "--continue-on-collection-errors"]
    command += ["--agents-on", results.device, "--outcomes", str(outcomes), "-m", "not slow and not square"]
    command += ["--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml")]
    if cases is not None:
        command += ["--cases", str(cases), "-p", "no:xdist", str(TESTS / LAWS[0])]
    else:
        if "xdist" not in missing():
            workers = max(1, min(6, (os.cpu_count() or 1) // 2))
            command += ["-n", str(workers), "--dist", "load", "--maxschedchunk", "1"]
        command += [str(TESTS / file) for file in LAWS]
    _collect("laws", command, results, seconds, outcomes)


def _collect(name: str, command: list[str], results: Results, seconds: float, outcomes: Path | None = None) -> None:
    """Add the rows that a process prints, or appends to a file of outcomes, as they come."""
    code: int | None = None
    read = 0

    def read_outcomes() -> None:
        nonlocal read
        if outcomes is None or not outcomes.exists():
            return
        lines = outcomes.read_text().split("\n")[:-1]  # a line without its end is still being written
        new = [json.loads(line) for line in lines[read:]]
        read = len(lines)
        rows = results.rows.setdefault(name, [])
        rows += [{"key": row.pop("test")} | row for row in new]
        if new:
            results.write()

    for line in lines_of(command, results.out / "log.txt", seconds):
        if isinstance(line, int):
            code = line
        elif outcomes is not None:
            read_outcomes()
        elif line.startswith("{"):
            row = json.loads(line)
            results.add(name, row)
            print(f"{name}: {line.strip()}", flush=True)
    read_outcomes()
    if code == -signal.SIGKILL:
        results.notes[name] = f"cut after its {seconds:.0f} seconds"
    elif code and (outcomes is None or code != 1):  # 1: some tests failed
        results.notes[name] = f"ended with exit code {code}; see log.txt"
    results.write()


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, help="time for all sections (default: 450; without a GPU 240)")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT") or "runs/gpu"), help="folder of results")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "gpu.md", help="the page of the documentation")
    parser.add_argument("--only", nargs="+", choices=SHARES, default=list(SHARES), help="only these sections")
    arguments = parser.parse_args(argv)
    make_importable()
    from pliant.lab.benchmarks.machine import describe

    results = Results(arguments.out, arguments.page, device())
    gpu = results.device != "cpu"
    results.machine = describe(results.device)
    end = time.monotonic() + (arguments.seconds or (450.0 if gpu else 240.0))
    print(NO_GPU if not gpu else results.machine["GPU"], flush=True)
    for name, lost in missing().items():
        print(f"{name} is missing: {lost}", flush=True)
    results.write()
    (results.out / "log.txt").write_text("")
    for name in (sections := [name for name in SHARES if name in arguments.only]):
        left = sum(SHARES[each] for each in sections[sections.index(name) :])
        seconds = (end - time.monotonic()) * SHARES[name] / left
        if seconds < 1:
            results.notes[name] = "not begun: the time was over"
            continue
        if name == "laws":
            run_laws(results, seconds, None if gpu else 6)
            print(f"laws: {Counter(row['outcome'] for row in results.rows.get('laws', []))}", flush=True)
        else:
            run_section(name, results, seconds)
    results.finished = True
    results.write()
    if not gpu and has_measurements(arguments.page):
        print(f"{arguments.page} holds measurements of a GPU, and is kept", flush=True)
    print(f"results: {results.out}/gpu.md, gpu.json", flush=True)
    return 0


def section(name: str, on: str, seconds: float) -> int:
    """One section, in a process of its own: results are lines of JSON."""
    lock = threading.Lock()

    def emit(row: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(row), flush=True)

    SECTIONS[name](on, seconds, emit)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a section is killed with the command
    if sys.argv[1:2] == ["section"]:
        sys.exit(section(sys.argv[2], sys.argv[3], float(sys.argv[4])))
    sys.exit(main())
