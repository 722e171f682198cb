"""`pliant inspect` as a user calls it: on a real run, on an agent's file, and on a module of another project."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import outcome_of
from refusals import contents
from torch import nn

from pliant.agents import DQN, PPO, Agent, Clock, Supervised
from pliant.agents.checkpoint import Checkpoints
from pliant.agents.views import view
from pliant.common.seeds import derive_seed
from pliant.common.spaces import ObservationSpec
from pliant.envs import make
from pliant.interventions import INTERVENTIONS
from pliant.interventions.core.spec import build
from pliant.lab.analysis import inspection
from pliant.monitors import MONITORS
from pliant.monitors.base import Known, MonitorContext
from pliant.monitors.probing import probe
from pliant.scripts import main
from pliant.scripts.main import COMMANDS
from pliant.scripts.main import main as pliant

SPEC = "redo(every=5)"
QUICK = "probe(steps=4, draws=3, samples=64, batch_size=16)"
TRAIN = [
    "--agent",
    "dqn",
    "--env",
    "CartPole-v1",
    "--steps",
    "1500",
    "--checkpoint-every",
    "700",
    "--interventions",
    SPEC,
    "--agent.learning-starts",
    "100",
    "--agent.buffer-size",
    "900",
    "--agent.network.hidden",
    "16",
    "16",
    "--agent.update-every",
    "8",
    "--agent.replay-ratio",
    "0.25",
    "--evaluate-episodes",
    "0",
    "--threads",
    "1",
    "--monitors",
    "none",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained by the command."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert outcome_of("train", "--run", str(folder), *TRAIN)[0] == 0
    return folder


@pytest.fixture(scope="module")
def agent_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent alone, without interventions."""
    content = Checkpoints.open(run).load("agent")
    agent = DQN.from_content(content, run, interventions=tuple(build([SPEC], INTERVENTIONS)))
    plain = DQN(agent.observation, agent.action, agent.config, seed=agent.seed)
    plain.critic.online.load_state_dict(agent.critic.online.state_dict())
    path = tmp_path_factory.mktemp("agents") / "agent.pt"
    plain.save(path)
    return path


def report_of(path: Path, *arguments: str, folder: Path) -> dict[str, Any]:
    """The report that the command writes as JSON."""
    out = folder / "report.json"
    assert pliant(["inspect", str(path), *arguments, "--json", str(out)]) == 0
    content: dict[str, Any] = json.loads(out.read_text())
    return content


def saved(run: Path) -> tuple[DQN, Any, Clock]:
    """The run's agent, replay and clock, read directly from the checkpoint."""
    checkpoint = Checkpoints.open(run, verify=None)
    agent = DQN.from_content(checkpoint.load("agent"), run, interventions=tuple(build([SPEC], INTERVENTIONS)))
    memory = agent.memory(1)
    memory.load_state_dict(checkpoint.load("replay"))
    checkpoint.restore(memory)
    return agent, memory, Clock(**checkpoint.load("loop")["clock"])


# --------------------------------------------------------------------------------------------------- runs


def test_the_report_on_a_run_agrees_with_direct_computation(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    report = report_of(run, "--monitors", "norms", "units(samples=200)", QUICK, "--seed", "5", folder=tmp_path)
    assert contents(run) == before
    agent, memory, clock = saved(run)
    assert (report["agent"], report["steps"], report["updates"]) == ("dqn", 1500, clock.updates)
    assert report["source"].endswith("step_000000001500") and "the replay's" in report["states"]
    # The next update, on the batch that the command draws.
    clock = Clock(clock.steps, clock.updates + 1, clock.steps, clock.updates)
    c, old = agent.config, [p.detach().double().clone() for p in agent.critic.online.parameters()]
    known = Known.of(agent)
    generator = torch.Generator().manual_seed(derive_seed(5, "inspect"))
    update = agent.update(memory.sample(c.batch_size, c.n_step, c.gamma, generator=generator), agent.plan(clock))
    new = [p.detach().double() for p in agent.critic.online.parameters()]
    untrained = DQN(agent.observation, agent.action, c, seed=agent.seed).critic.online
    initial = [p.detach().double() for p in untrained.parameters()]

    def less(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[torch.Tensor]:
        return [x - y for x, y in zip(a, b, strict=True)]

    def norm(parts: list[torch.Tensor]) -> float:
        return sum(float(p.square().sum()) for p in parts) ** 0.5

    metrics = report["metrics"]
    assert metrics["critic/weight_norm"] == pytest.approx(norm(new), rel=1e-5)
    assert metrics["critic/distance_from_init"] == pytest.approx(norm(less(new, initial)), rel=1e-5)
    changed = norm(less(new, old))
    assert metrics["critic/update_to_weight"] == pytest.approx(changed / norm(old), rel=1e-3)
    context = MonitorContext(agent, clock, memory, known, update)
    h = view(agent).activations(context.batch(200))["critic"]
    dead = [float((x.abs().amax(0) == 0).float().mean()) for x in h]
    assert [metrics[f"critic.head.layers.{i}/dead_fraction"] for i in range(2)] == pytest.approx(dead)
    probed = probe(agent, context.batch(64, "probe"), steps=4, draws=3, batch_size=16, seed=context.seed("probe"))[
        "critic", "random"
    ]
    assert metrics["critic/plasticity_ratio_random"] == pytest.approx(probed.ratio, nan_ok=True)
    assert metrics["critic/probe_loss_ratio_random"] == pytest.approx(probed.loss_ratio)


def test_an_older_checkpoint_can_be_inspected(run: Path, tmp_path: Path) -> None:
    first, last = sorted(run.glob("checkpoints/step_*"))
    report = report_of(first, "--monitors", "norms", folder=tmp_path)
    assert report["steps"] < 1500 and report["source"] == str(first)
    newest = report_of(last, "--monitors", "norms", folder=tmp_path)
    assert report["metrics"]["critic/weight_norm"] != newest["metrics"]["critic/weight_norm"]
    assert newest == report_of(run, "--monitors", "norms", folder=tmp_path)


def test_every_applicable_monitor_measures_and_the_others_are_listed(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = report_of(run, "--no-probe", folder=tmp_path)
    table = capsys.readouterr().out
    measured = {key.rpartition("/")[2] for key in report["metrics"]}
    for name, kind in MONITORS.items():
        if not kind.metrics:  # it only draws pictures
            continue
        if name in report["skipped"] or name == "probe":
            assert not measured & set(kind.metrics), name
        else:
            assert measured & set(kind.metrics), name
            assert f"\n{name}\n" in table
    assert set(report["skipped"]) == {"overestimation", "tandem"} and "--env" in report["skipped"]["overestimation"]
    assert "not measured: overestimation" in table and "\nprobe\n" not in table
    assert all(len(line) <= 120 for line in table.splitlines()[3:] if not line.startswith("written"))
    assert all(np.isfinite(value) for value in report["metrics"].values())


def test_with_an_environment_overestimation_is_measured(run: Path, tmp_path: Path) -> None:
    arguments = ["--monitors", "overestimation(episodes=1, max_steps=50)"]
    report = report_of(run, "--env", "CartPole-v1", *arguments, folder=tmp_path)
    assert {key.rpartition("/")[2] for key in report["metrics"]} & set(MONITORS["overestimation"].metrics)
    assert report_of(run, *arguments, folder=tmp_path) == report, "the environment is read from the run"


def test_the_same_seed_gives_the_same_report_and_json_can_be_piped(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports = []
    for seed in ("1", "1", "2"):
        assert pliant(["inspect", str(run), "--monitors", "norms", "--seed", seed, "--json", "-"]) == 0
        reports.append(json.loads(capsys.readouterr().out)["metrics"])
    assert reports[0] == reports[1] != reports[2]


def test_a_run_with_generators_of_another_kind_of_device_is_read(run: Path) -> None:
    content = Checkpoints.open(run, verify=None).load("agent")
    other_state = torch.zeros(16, dtype=torch.uint8)
    content["state"]["generator"] = other_state
    extra = content["state"]["modules"]["interventions"]
    keys = [key for key, value in extra.items() if isinstance(value, dict) and value.get("generator") is not None]
    assert keys
    for key in keys:
        extra[key]["generator"] = other_state
    agent: Agent = DQN.from_content(content, run, interventions=tuple(build([SPEC], INTERVENTIONS)))
    assert torch.equal(agent.critic.online.advantage.linear.weight, saved(run)[0].critic.online.advantage.linear.weight)  # type: ignore[attr-defined]


def test_a_table_is_at_most_120_characters_wide_and_holds_every_metric() -> None:
    report = inspection.Inspection("here", {"agent": "dqn"})
    places = [f"critic.encoder.blocks.{i}" for i in range(9)]
    for i, place in enumerate(places):
        report.add(f"{place}/dead_fraction", i / 8)
        report.add(f"{place}/weight_norm", 100.0 + i)
    report.add("critic/dead_fraction", float("nan"))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 120
    for i, place in enumerate(places):
        header = next(k for k, line in enumerate(lines) if place in line)
        column = lines[header].index(place) + len(place)
        assert lines[header + 1][:column].split()[-1] == f"{i / 8:.4g}"
    assert "critic/dead_fraction" not in report.json()["metrics"] and "\nnorms\n" in str(report)


# -------------------------------------------------------------------------------------------- an agent's file


def test_an_agent_from_a_file_plays_to_get_its_states(agent_file: Path, tmp_path: Path) -> None:
    arguments = ["--env", "CartPole-v1", "--samples", "300", "--monitors", "units", "values", QUICK]
    report = report_of(agent_file, *arguments, folder=tmp_path)
    assert report["states"] == "300 steps in CartPole-v1" and "steps" not in report
    assert {"critic/dead_fraction", "critic/td_error", "critic/plasticity_ratio_replay"} <= set(report["metrics"])
    assert report == report_of(agent_file, *arguments, folder=tmp_path)


def test_an_agent_from_a_file_is_measured_on_given_states(agent_file: Path, tmp_path: Path) -> None:
    states = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    np.save(tmp_path / "states.npy", states)
    arguments = ["--observations", str(tmp_path / "states.npy"), "--monitors", "units(samples=400)", QUICK]
    report = report_of(agent_file, *arguments, folder=tmp_path)
    assert "no rewards" in report["notes"][0]
    assert "critic/plasticity_ratio_replay" not in report["metrics"]
    agent = DQN.load(agent_file)
    with torch.no_grad():
        trace: list[torch.Tensor] = []
        agent.critic.online(torch.from_numpy(states), trace)
    active = sum(float((h > 0).float().mean()) for h in trace) / 2
    assert report["metrics"]["critic/active_fraction"] == pytest.approx(active, abs=0.08)  # of a draw of the states


def test_an_agent_from_a_file_can_have_interventions(tmp_path: Path) -> None:
    DQN((4,), 2, interventions=tuple(build(["redo"], INTERVENTIONS))).save(tmp_path / "treated.pt")
    np.save(tmp_path / "states.npy", np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32))
    arguments = ["--observations", str(tmp_path / "states.npy"), "--monitors", "units"]
    report = report_of(tmp_path / "treated.pt", *arguments, "--interventions", "redo", folder=tmp_path)
    assert "critic/dead_fraction" in report["metrics"]


@pytest.mark.parametrize("kind", [PPO, Supervised])
def test_agents_without_a_replay_play_to_get_their_states(kind: type[Agent], tmp_path: Path) -> None:
    env = "CartPole-v1" if kind is PPO else "stream/RandomLabels"
    envs = make(env, num_envs=1, seed=0)
    config = replace(kind.config_class(), **({"rollout": 64} if kind is PPO else {}))
    kind(envs.observation, envs.action, config).save(tmp_path / "agent.pt")
    envs.close()
    arguments = ["--env", env, "--samples", "20", "--monitors", "values"]
    report = report_of(tmp_path / "agent.pt", *arguments, folder=tmp_path)
    assert report["states"] == ("64" if kind is PPO else "20") + f" steps in {env}"
    assert report["metrics"]["critic/td_error"] > 0


def test_an_agent_whose_n_step_is_annealed_plays_until_windows_are_complete(tmp_path: Path) -> None:
    """BBF begins with ten steps, whatever the agent's configuration sets."""
    parts = tuple(build(["bbf"], INTERVENTIONS))
    DQN(ObservationSpec((4, 10, 10), torch.uint8, 1.0), 3, interventions=parts).save(tmp_path / "agent.pt")
    play = ["--env", "MinAtar/Breakout-v1", "--samples", "5", "--monitors", "values", "--interventions", "bbf"]
    assert report_of(tmp_path / "agent.pt", *play, folder=tmp_path)["metrics"]["critic/td_error"] > 0


# ---------------------------------------------------------------------------------------------- plain modules


SOURCE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, hidden=24):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(5, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 3)

    def forward(self, x):
        return self.out(torch.tanh(self.second(torch.relu(self.first(x)))))

class Two(Net):
    def forward(self, x, y):
        return super().forward(torch.cat([x, y], 1))

def nothing():
    return 3

class Gated(Net):
    def forward(self, x):
        return self.out(torch.softmax(self.second(torch.relu(self.first(x))), 1))
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of another project, with a module, weights and inputs."""
    (tmp_path / "other_project.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "other_project", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    torch.manual_seed(0)
    net = nn.ModuleDict({"first": nn.Linear(5, 24), "second": nn.Linear(24, 24), "out": nn.Linear(24, 3)})
    with torch.no_grad():
        net["first"].bias[:6] = -100.0  # a quarter of the first layer is dead
    torch.save(net.state_dict(), "weights.pt")
    np.save("x.npy", np.random.default_rng(0).normal(size=(300, 5)))
    return tmp_path


MODULE = ["weights.pt", "--module", "other_project:Net"]


def test_metrics_of_a_module_of_another_project_agree_with_direct_computation(project: Path) -> None:
    path = list(sys.path)
    report = report_of(
        Path("weights.pt"),
        *MODULE[1:],
        "--input",
        "x.npy",
        "--monitors",
        "units",
        "norms",
        "ranks",
        QUICK,
        folder=project,
    )
    assert sys.path == path
    metrics = report["metrics"]
    weights = torch.load("weights.pt")
    x = torch.from_numpy(np.load("x.npy")).double()

    def linear(name: str, h: torch.Tensor) -> torch.Tensor:
        return h @ weights[f"{name}.weight"].double().T + weights[f"{name}.bias"].double()

    first = linear("first", x).relu()
    second = linear("second", first).tanh()
    assert metrics["network.first/dead_fraction"] == 0.25 == float((first.amax(0) == 0).double().mean())
    assert metrics["network.first/active_fraction"] == pytest.approx(float((first > 0).double().mean()), abs=1e-6)
    assert metrics["network.second/dead_fraction"] == 0
    norm = sum(float(w.double().square().sum()) for w in weights.values()) ** 0.5
    assert metrics["network/weight_norm"] == pytest.approx(norm, rel=1e-5)
    sigma = torch.linalg.svdvals(second)
    p = sigma / sigma.sum()
    assert metrics["network.second/effective_rank"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-3)
    assert np.isfinite(metrics["network/probe_loss_ratio_random"]) and "network/plasticity_ratio_random" in metrics
    # Its initial weights and its updates are unknown.
    assert not any("distance_from_init" in key or "gradient" in key or "present" in key for key in metrics)
    assert report["inputs"] == "300 from x.npy" and report["skipped"] == {}


def test_a_module_with_a_dead_layer_has_no_plasticity(project: Path) -> None:
    weights = torch.load("weights.pt")
    weights["first.bias"].fill_(-1e6)
    torch.save({"state_dict": weights}, "dead.pt")
    arguments = ["--module", "other_project:Net", "--input", "x.npy"]
    spec = "probe(steps=60, draws=3, targets=(random, noise))"
    dead = report_of(Path("dead.pt"), *arguments, "--monitors", "units", spec, folder=project)["metrics"]
    alive = report_of(Path("weights.pt"), *arguments, "--monitors", spec, folder=project)["metrics"]
    assert dead["network.first/dead_fraction"] == 1
    # Only the layers behind the dead one can change their outputs, and only to a constant.
    assert dead["network/plasticity_ratio_random"] < 0.01 < 0.8 < alive["network/plasticity_ratio_random"]
    assert alive["network/plasticity_ratio_noise_low"] <= alive["network/plasticity_ratio_noise"]


def test_inputs_given_by_shape_are_drawn_and_the_report_states_it(project: Path) -> None:
    report = report_of(
        Path("weights.pt"),
        "--module",
        "other_project:Two",
        "--input",
        "2",
        "3",
        "--samples",
        "50",
        "--no-probe",
        "--module-args",
        "[24]",
        folder=project,
    )
    assert report["inputs"] == ("50 standard normal draws of shape (2); 50 standard normal draws of shape (3)")
    assert "network.first/dead_fraction" in report["metrics"]
    assert not any("plasticity" in key for key in report["metrics"])


# ------------------------------------------------------------------------------------------------------ errors


def refused(*line: str) -> str:
    code, text = code_and_error(*line)
    assert code == 2, text
    return text


def code_and_error(*line: str) -> tuple[int, str]:
    import contextlib
    import io

    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        code = pliant(["inspect", *line])
    lines = [text for text in err.getvalue().splitlines() if text.startswith("error: ")]
    assert len(lines) == 1 and err.getvalue().splitlines()[-1] == lines[0], err.getvalue()
    return code, lines[0]


def test_wrong_arguments_for_an_agent_are_refused_in_one_line(run: Path, agent_file: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused(str(tmp_path / "nowhere"))
    assert "holds no checkpoints" in refused(str(tmp_path))
    assert "give --env NAME" in refused(str(agent_file)) and "--observations" in refused(str(agent_file))
    (tmp_path / "bad.pt").write_bytes(b"no torch file at all")
    assert "cannot be read as a file of torch" in refused(str(tmp_path / "bad.pt"))
    torch.save({"w": torch.zeros(2)}, tmp_path / "weights.pt")
    assert "give --module" in refused(str(tmp_path / "weights.pt"))
    np.save(tmp_path / "wide.npy", np.zeros((3, 5), np.float32))
    np.save(states := tmp_path / "states.npy", np.zeros((3, 4), np.float32))
    assert "reads (N, 4)" in refused(str(agent_file), "--observations", str(tmp_path / "wide.npy"))
    assert "no such file" in refused(str(agent_file), "--observations", str(tmp_path / "none.npy"))
    assert "--observations" in refused(str(agent_file), "--observations", str(tmp_path / "bad.pt"))
    assert "Did you mean 'units'" in refused(str(run), "--monitors", "unit")
    assert "give --env" in refused(str(agent_file), "--observations", str(states), "--monitors", "overestimation")
    assert "no module 'actor'" in refused(str(run), "--monitors", "probe(modules=actor)")
    assert "CartPole" in refused(str(agent_file), "--env", "CartPol-v1")
    assert "belong to --module" in refused(str(run), "--input", "4")
    assert "--samples" in refused(str(run), "--samples", "1")
    assert "--seed" in refused(str(run), "--seed", "-1")
    assert "--device must be auto, cpu, cuda, cuda:N, mps or xpu, not 'banana'" in refused(
        str(run), "--device", "banana"
    )
    assert "belongs to a run" in refused(str(run), "--interventions", "redo")
    assert "there is no folder" in refused(str(run), "--monitors", "none", "--json", str(tmp_path / "no" / "x.json"))


def test_a_damaged_checkpoint_is_named(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    newest = max(copied.glob("checkpoints/step_*"))
    (newest / "agent.pt").write_bytes((newest / "agent.pt").read_bytes()[:-7])
    code, line = code_and_error(str(newest))
    assert code == 1 and "agent.pt has " in line
    # The run's folder has an older checkpoint that is complete.
    older = report_of(copied, "--monitors", "norms", folder=tmp_path)
    assert older["steps"] < 1500
    shutil.rmtree(newest)
    shutil.copytree(run / "checkpoints" / newest.name, newest)
    assert report_of(copied, "--monitors", "norms", folder=tmp_path)["steps"] == 1500
    (newest / "replay.pt").write_bytes(b"")
    assert report_of(copied, "--monitors", "norms", folder=tmp_path)["steps"] == older["steps"]
    for chunk in (copied / "replay").glob("*.pt"):
        chunk.unlink()
    code, line = code_and_error(str(copied))
    assert code == 1 and "is missing" in line


def test_wrong_arguments_for_a_module_are_refused_in_one_line(project: Path) -> None:
    given = ["--input", "x.npy"]
    assert "needs --input" in refused(*MODULE)
    assert "package.module:Class" in refused("weights.pt", "--module", "other_project", *given)
    assert "No module named 'missing_project'" in refused("weights.pt", "--module", "missing_project:Net", *given)
    assert "Did you mean 'Net'" in refused("weights.pt", "--module", "other_project:Nett", *given)
    assert "not a torch module" in refused("weights.pt", "--module", "other_project:nothing", *given)
    assert "cannot be built" in refused(*MODULE, "--module-args", '{"width": 3}', *given)
    assert "not valid JSON" in refused(*MODULE, "--module-args", "{width", *given)
    assert "JSON object" in refused(*MODULE, "--module-args", "7", *given)
    assert "does not fit Net" in refused(*MODULE, "--module-args", '{"hidden": 7}', *given)
    assert "cannot read --input" in refused(*MODULE, "--input", "4")
    assert "as many samples" in refused("weights.pt", "--module", "other_project:Two", "--input", "x.npy", "5")
    assert "there is no file" in refused("gone.pt", *MODULE[1:], *given)
    torch.save([1, 2], "list.pt")
    assert "not a state dict" in refused("list.pt", *MODULE[1:], *given)
    assert "softmax" in refused("weights.pt", "--module", "other_project:Gated", *given)
    assert "churn needs an agent" in refused(*MODULE, *given, "--monitors", "churn")
    assert "are for agents" in refused(*MODULE, *given, "--env", "CartPole-v1")


def test_inspect_is_a_command_and_no_script_is_named_as_a_standard_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert pliant(["--help"]) == 0 and "inspect" in capsys.readouterr().out
    with pytest.raises(SystemExit) as done:
        pliant(["inspect", "--help"])
    assert done.value.code == 0 and "--observations" in capsys.readouterr().out
    # `python scripts/train.py` imports files of scripts/ first, so none may have the name of a standard module.
    scripts = {path.stem for path in Path(main.__file__).parent.glob("*.py")}
    assert not scripts & sys.stdlib_module_names and "inspect" in COMMANDS
