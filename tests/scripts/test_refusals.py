"""Common mistakes in specs of interventions: one line of error, exit code 2, and no new folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from pliant.scripts import main, train

CARTPOLE = ("--agent", "dqn", "--env", "CartPole-v1")
PENDULUM = ("--agent", "sac", "--env", "Pendulum-v1")


@pytest.mark.parametrize(
    ("line", "specs", "message"),
    [
        (CARTPOLE, ["hl_gauss", "c51"], "c51 and hl_gauss exclude each other"),
        (
            CARTPOLE,
            ["plasticity_injection(at=1000)", "reset(layers=head)"],
            "reset and plasticity_injection exclude each other: plasticity_injection reserves, and reset edits, "
            "the heads of the critic",
        ),
        (CARTPOLE, ["redo", "plasticity_injection(at=1000)"], "plasticity_injection and redo exclude each other"),
        (
            PENDULUM,
            ["replay_ratio(2)", "adaptive_replay_ratio"],
            "adaptive_replay_ratio and replay_ratio exclude each other: both reserve the replay ratio",
        ),
        (CARTPOLE, ["redo(on=actor)"], "redo: this dqn has no 'actor'."),
        (CARTPOLE, ["redo(on=encoder)"], "redo: this dqn has no 'encoder'."),
        (CARTPOLE, ["layer_norm(on=actor)"], "layer_norm: dqn has no actor; it has critic"),
        (CARTPOLE, ["reset(layers=haed)"], "reset: this dqn has no 'haed'. Did you mean 'head'?"),
        (CARTPOLE, ["random_shift"], "random_shift needs images"),
        (CARTPOLE, ["rdo"], "unknown intervention 'rdo'. Did you mean 'redo'?"),
        (CARTPOLE, ["redo(tua=0.1)"], "redo has no parameter 'tua'. Did you mean 'tau'?"),
        (CARTPOLE, ["redo(every=soon)"], "redo(every=...) expects int, not 'soon'"),
        (CARTPOLE, ["redo(tau=-1)"], "redo: tau must be at least 0, not -1"),
        (CARTPOLE, ["replay_ratio(0)"], "replay_ratio: ratio must be above 0 gradient updates per environment step"),
        (CARTPOLE, ["replay_ratio"], "replay_ratio needs a value for 'ratio'"),
        (CARTPOLE, ["layer_norm(placement=encoder)"], "layer_norm"),
        ((*CARTPOLE, "--agent.n-step", "3"), ["value_mapping"], "value_mapping"),
        ((*CARTPOLE, "--agent.network.hidden"), ["redo"], "redo: critic of this dqn has no unit that can be reset"),
    ],
)
def test_a_wrong_spec_gives_one_line_of_error_and_makes_no_folder(
    line: tuple[str, ...], specs: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    given = [*line, "--steps", "100", "--run", str(folder), "--interventions", *specs]
    assert main.exit_code(lambda: train.main(given)) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not folder.exists()
