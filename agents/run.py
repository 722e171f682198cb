"""The training loop: act, step, store; and for every pending batch: update, advance the clock, intervene, log.

A run can be stopped anywhere and resumes to the last bit, because its whole state is the state of its parts: agent,
memory, environments, log, clock and the present observation. If a large number of updates is pending at once, the loop
makes at most 256 at a time. Between two such slices it can be stopped, and saves as often as if updates were steps.

A long measurement (an evaluation or a probe) is interrupted at once by a stop request. It is repeated from its
beginning when the run resumes (`Run.unfinished`); until then it has logged nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..common.spaces import LONGEST_EPISODE, ActionSpec, Diverged, Episode, NotFinite, ObservationSpec, Step
from .agent import Agent
from .checkpoint import Checkpoints, Chunked, Found, saved_steps
from .clock import Clock, Update, When
from .hooks import Intervention
from .log import Log
from .progress import Progress
from .replay import Batch
from .stopping import Asked, Interrupted, graceful_stop, heed, interruptible, never

__all__ = ["Environments", "Run", "Watch", "graceful_stop", "play", "run_files"]


class Environments(Protocol):
    """The interface of environments for the loop. `pliant.envs.make` returns one; any class may implement it."""

    num_envs: int
    observation: ObservationSpec
    action: ActionSpec
    frame_skip: int

    def reset(self) -> NDArray[Any]: ...
    def step(self, action: NDArray[Any]) -> Step: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Watch(Protocol):
    """The interface of monitors, which observe a run and do not change it; `pliant.monitors.registry` implements it."""

    def before_update(self, run: Any) -> None: ...
    def after_update(self, run: Any, update: Update) -> None: ...
    def firing(self, run: Any, part: Intervention) -> AbstractContextManager[None]: ...
    def between(self, run: Any, before: int) -> None: ...
    def publish(self, run: Any) -> None: ...
    def heavy(self, clock: Clock, updates: int) -> bool: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Rescue(NamedTuple):
    """The state of a run before the updates in progress."""

    steps: int
    parts: dict[str, Any]


class Run:
    """The training of an agent in environments.

    Args:
        agent: The agent.
        envs: The environments.
        log: Log of measurements; in memory only if None.
        checkpoints: Writer of checkpoints; the run is not saved if None.
        checkpoint_every: Environment steps between checkpoints, or gradient updates while no step is taken; 0 saves
            only at the end and at a signal.
        evaluate: Called every `evaluate_every` environment steps with the agent; its values are logged.
        evaluate_every: Environment steps between evaluations; 0 is never.
        progress: Progress display.
        monitors: Monitors, which observe the agent during training and never change it; none if None.
        fresh_envs: Makes environments like `envs` for monitors that play their own episodes.

    Raises:
        ValueError: An intervention needs a measurement, and there are no monitors.
    """

    def __init__(
        self,
        agent: Agent,
        envs: Environments,
        *,
        log: Log | None = None,
        checkpoints: Checkpoints | None = None,
        checkpoint_every: int = 0,
        evaluate: Callable[[Agent], dict[str, float]] | None = None,
        evaluate_every: int = 0,
        progress: Progress | None = None,
        monitors: Watch | None = None,
        fresh_envs: Callable[[], Environments] | None = None,
    ) -> None:
        waiting = [p for p in agent.interventions if isinstance(p.when, When) and p.when.readings is None]
        if waiting:
            raise ValueError(
                f"{waiting[0].name} waits for {waiting[0].when}, and nobody measures it: give the run "
                "monitors=watch(agent)"
            )
        self.agent = agent
        self.monitors = monitors
        self.fresh_envs = fresh_envs
        self.envs = envs
        self.memory = agent.memory(envs.num_envs)
        self.log = Log(None, envs.frame_skip) if log is None else log
        self.checkpoints = checkpoints
        self.checkpoint_every = checkpoint_every
        self.evaluate = evaluate
        self.evaluate_every = evaluate_every
        self.progress = progress
        self.clock = Clock()
        self.obs: NDArray[Any] | None = None
        self.action: NDArray[Any] | None = None  # an action that was chosen but not executed
        self.unfinished: dict[str, Any] | None = None  # the rest of an interrupted step, done before the next step
        self.rescue: Rescue | None = None
        self.spent = False  # True after a stop during updates: the saved state is valid, this object's state is not
        self.asked: Asked | None = None
        self.batch: Batch | None = None  # the batch of the latest update, for monitors that train on it
        self.seconds = {"act": 0.0, "env": 0.0, "update": 0.0}

    def train(self, steps: int, stop: Asked = never) -> bool:
        """Train until `steps` environment steps are done (returns True) or `stop` requests a stop (returns False).

        Saves at the end in both cases. `stop` is called between steps, and also during evaluations and deep monitors,
        which are then repeated when the run resumes.

        Raises:
            NotFinite: The environments returned a reward or an observation that is not a finite number. The run is
                saved in its state before that step, and takes the same action when it resumes.
            Diverged: The agent's weights, losses or actions are no longer finite numbers. Nothing is saved.
            RuntimeError: This run was stopped during updates before; it can only resume from its checkpoint.
        """
        if self.spent:
            raise RuntimeError(
                "this run was stopped in the midst of updates and saved as it was before them: build it anew and "
                "restore its checkpoint"
            )
        if self.obs is None:
            self.obs = self.envs.reset()
            self.memory.start(self.obs)
        self.asked = None if stop is never else stop
        self.rescue = None
        try:
            self.catch_up()
            while (self.clock.steps < steps or self.owing) and not stop():
                updates = self.clock.updates
                self.step()
                self.rest(updates)
        except Interrupted:
            if self.rescue is None:
                self.save()
            else:
                assert self.checkpoints is not None
                self.spent = True
                self.checkpoints.save(*self.rescue, self._chunks())
            return False
        finally:
            self.asked = None
        self.save()
        if self.monitors is not None:
            self.monitors.publish(self)
        return self.clock.steps >= steps and not self.owing

    @property
    def owing(self) -> bool:
        """True if updates are pending that must be made before the next step."""
        return self.memory.has_pending(self.agent.sampling(self.clock))

    def step(self) -> None:
        """Take one step in every environment and make the pending updates.

        Makes at most 256 pending updates; later calls make the rest, and take no step until all are made.
        """
        step = None if self.owing else self.interact()
        self.settle(step is not None, () if step is None else step.episodes)

    def settle(self, stepped: bool, episodes: Sequence[Episode]) -> None:
        """Make the pending updates after a step (if one was taken), and log the episodes that ended in it."""
        started = time.perf_counter()
        due = stepped and self._crossed(self.clock.steps - self.envs.num_envs, self.agent.config.update_every)
        if due or self.owing:
            with self._state_kept(stepped, episodes):
                for batch in self.memory.batches(self.agent.sampling(self.clock)):
                    self.learn(batch)
        for episode in episodes:
            self.log.episode(episode, self.clock)
        self.seconds["update"] += time.perf_counter() - started

    def rest(self, updates: int) -> None:
        """Do what is scheduled after `settle`: monitors, log, evaluation, checkpoint, progress.

        Args:
            updates: Number of gradient updates made before `settle`.
        """
        if self.owing:
            self.breathe(updates)
        else:
            self.beat(self.clock.steps - self.envs.num_envs)

    def catch_up(self) -> None:
        """Finish the latest step if a stop interrupted it."""
        if self.unfinished is None:
            return
        left, self.unfinished = self.unfinished, None
        if left["stage"] == "updates":
            updates = self.clock.updates
            self.settle(left["stepped"], [Episode(*episode) for episode in left["episodes"]])
            self.rest(updates)
        else:
            self.beat(left["before"], left["stage"])

    @contextmanager
    def _state_kept(self, stepped: bool, episodes: Sequence[Episode]) -> Iterator[None]:
        """Copy the run's state before updates with a long measurement, to be saved if a stop is requested meanwhile.

        Deep monitors measure rarely, and the copy takes less time than their measurement. Does nothing before other
        updates.
        """
        if self.asked is None or self.checkpoints is None or self.monitors is None:
            yield
            return
        if not self.monitors.heavy(self.clock, self.memory.pending(self.agent.sampling(self.clock))):
            yield
            return
        self.refuse_lost_weights()
        self.unfinished = {"stage": "updates", "stepped": stepped, "episodes": [list(each) for each in episodes]}
        self.rescue, self.unfinished = Rescue(self.clock.steps, copied(self._parts())), None
        with interruptible(self.asked):
            yield
        self.rescue = None

    @contextmanager
    def _repeatable(self, stage: str, before: int) -> Iterator[None]:
        """Let a stop request interrupt the block, a measurement after a step. A resumed run repeats it."""
        self.unfinished = {"stage": stage, "before": before}
        with interruptible(self.asked):
            yield
        self.unfinished = None

    def interact(self) -> Step:
        """Take one step in every environment and store it in memory."""
        started = time.perf_counter()
        assert self.obs is not None
        action = self.agent.act(self.obs, self.clock).cpu().numpy() if self.action is None else self.action
        acted = time.perf_counter()
        try:
            step = self.envs.step(action)
        except NotFinite as error:
            self.action = action  # the random draws for this action are made; the step is still to be taken
            self.save()
            raise NotFinite(f"{error}. {self._saved()}, before this step") from None
        self.action = None
        stepped = time.perf_counter()
        self.memory.add(action, step)
        self.obs = step.obs
        self.clock = self.clock.stepped(self.envs.num_envs, len(step.episodes))
        self.seconds["act"] += acted - started
        self.seconds["env"] += stepped - acted
        self.seconds["update"] += time.perf_counter() - stepped
        return step

    def learn(self, batch: Batch) -> None:
        """Make one gradient update; then update priorities, run monitors and interventions, and log."""
        self.clock = self.clock.updated()
        self.batch = batch
        if self.monitors is not None:
            self.monitors.before_update(self)
        update = self.agent.update(batch, self.clock)
        self.memory.update_priorities(batch.index, update.td_error)
        if self.monitors is not None:
            self.monitors.after_update(self, update)
        self.agent.interventions.after_update(self, update.activations)
        self.log.update(update.metrics | self.agent.interventions.measurements(), self.clock)

    def firing(self, part: Intervention) -> AbstractContextManager[None]:
        """Let the monitors record that an intervention fires within the block."""
        return nullcontext() if self.monitors is None else self.monitors.firing(self, part)

    def beat(self, before: int, stage: str = "monitors") -> None:
        """Do what is scheduled after the steps since `before`: monitors, log, evaluation, checkpoint, progress.

        Args:
            before: Environment steps at the previous call.
            stage: Where to start after an interruption: "monitors" or "evaluation".
        """
        if stage == "monitors":
            if self.monitors is not None:
                with self._repeatable("monitors", before):
                    self.monitors.between(self, before)
            if self.log.due(self.clock):
                self.flush()
        if self.evaluate is not None and self._crossed(before, self.evaluate_every):
            with self._repeatable("evaluation", before):
                values = self.evaluate(self.agent)
            self.log.scalars(values, self.clock)
        if self._crossed(before, self.checkpoint_every):
            self.save()
        if self.progress is not None:
            self.progress.update(self.clock, self.log.mean_return)

    def breathe(self, before: int) -> None:
        """Do what is scheduled between two slices of pending updates: log, checkpoint and progress.

        Their periods count updates here, not steps. Measurements after a finished step wait until all updates are made.

        Args:
            before: Gradient updates at the previous call.
        """
        updates = self.clock.updates
        if before // self.log.log_every < updates // self.log.log_every:
            self.flush()
        if self.checkpoint_every and before // self.checkpoint_every < updates // self.checkpoint_every:
            self.save()
        if self.progress is not None:
            self.progress.update(self.clock, self.log.mean_return)

    def flush(self) -> None:
        """Write the measurements since the last flush.

        Raises:
            Diverged: The mean of a loss is not a finite number, or another measurement is not and neither is a weight.
        """
        written = self.log.flush(self.clock, {"replay/size": len(self.memory)}, self.seconds)
        # Schedules are known in advance, so they are logged but not shown on the dashboard.
        self.log.scalars(self.agent.charts(self.clock), self.clock, shown={})
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        if strange := {tag: value for tag, value in written.items() if not math.isfinite(value)}:
            self.refuse_lost_weights()
            # Other measurements (a KL divergence of policies, for example) may overflow sometimes; that is harmless.
            for tag in strange:
                if tag.startswith("losses/") and tag.endswith("loss"):
                    raise Diverged(self._diverged(f"the mean of {tag} since the last log is {strange[tag]}"))

    @torch.no_grad()
    def refuse_lost_weights(self) -> None:
        """Check that all weights are finite numbers. The host waits for the device.

        Raises:
            Diverged: A weight is not a finite number.
        """
        for name, component in self.agent.components.items():
            for key, p in component.online.named_parameters():
                if not torch.isfinite(p).all():
                    raise Diverged(self._diverged(f"the weights {key} of the {name} are no longer finite numbers"))

    def _diverged(self, what: str) -> str:
        return (
            f"the agent has diverged: at environment step {self.clock.steps:,} and update {self.clock.updates:,} "
            f"{what}. {self._saved()}; what follows is lost, and would come again: another configuration is needed "
            "(a smaller learning rate, clipped gradients or rewards)"
        )

    def _saved(self) -> str:
        """A sentence, without its full stop, about the latest checkpoint."""
        if self.checkpoints is None:
            return "The run is not saved anywhere"
        saved = saved_steps(self.checkpoints.folder)
        return f"The run is saved as of environment step {saved[-1]:,}" if saved else "There is no checkpoint"

    def _crossed(self, before: int, period: int) -> bool:
        return period > 0 and before // period < self.clock.steps // period

    # ------------------------------------------------------------------------------------------------- state

    def save(self) -> None:
        """Write a checkpoint of the whole run.

        Raises:
            OSError: The checkpoint cannot be written (the disk is full, for example); the previous one is kept.
            Diverged: The agent's weights are no longer finite numbers; the previous checkpoint is kept.
        """
        self.refuse_lost_weights()
        if self.checkpoints is None or self.obs is None:
            return
        self.checkpoints.save(self.clock.steps, self._parts(), self._chunks())

    def _chunks(self) -> Chunked | None:
        """The memory, if it is saved in chunks."""
        return self.memory if isinstance(self.memory, Chunked) else None

    def _parts(self) -> dict[str, Any]:
        """Everything in a checkpoint except the replay's chunks."""
        assert self.obs is not None
        loop = {"clock": asdict(self.clock), "obs": torch.from_numpy(np.ascontiguousarray(self.obs))}
        if self.action is not None:
            loop["action"] = torch.from_numpy(np.ascontiguousarray(self.action))
        if self.unfinished is not None:
            loop["unfinished"] = self.unfinished
        parts = {
            "agent": self.agent.content(),
            "replay": self.memory.state_dict(),
            "envs": self.envs.state_dict(),
            "log": self.log.state_dict(),
            "loop": loop,
        }
        if self.monitors is not None:
            parts["monitors"] = self.monitors.state_dict()
        return parts

    def restore(self, found: Found, adopt: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Restore the state of a checkpoint. No file changes: the log truncates its files when the run resumes.

        Args:
            found: The checkpoint.
            adopt: Called with the agent's state instead of `Agent.load_state_dict`, for a state of an agent with
                another configuration or other interventions.
        """
        loop = found.load("loop")
        self.clock = Clock(**loop["clock"])
        self.obs = loop["obs"].numpy()
        self.action = loop["action"].numpy() if "action" in loop else None
        self.unfinished = loop.get("unfinished")
        (self.agent.load_state_dict if adopt is None else adopt)(found.load("agent")["state"])
        self.memory.load_state_dict(found.load("replay"))
        found.restore(self.memory)
        self.envs.load_state_dict(found.load("envs"))
        self.log.load_state_dict(found.load("log"))
        if self.monitors is not None and "monitors" in found.parts:
            self.monitors.load_state_dict(found.load("monitors"))


def copied(state: Any) -> Any:
    """A deep copy of a state of dicts, lists, tuples and tensors; the host does not wait for the device."""
    if isinstance(state, torch.Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(copied(value) for value in state)
    return state


def play(
    agent: Agent,
    envs: Environments,
    episodes: int,
    *,
    epsilon: float = 0.0,
    seed: int = 0,
    frame: Callable[[], None] | None = None,
) -> list[Episode]:
    """Play episodes with the greedy policy, without drawing from the agent's generator.

    Each environment plays its share of the episodes. The first episodes to finish would over-represent short ones.
    `epsilon` is the probability of a random action; `frame` is called after every step (for a video).

    An episode that does not end is cut after `envs.longest_episode` steps (27,000 if the environments have no such
    attribute), and counts with its return so far (`Episode.cut`). A stop request can interrupt the function at any step
    if the caller allows it (`heed`).
    """
    quota = [episodes // envs.num_envs + (i < episodes % envs.num_envs) for i in range(envs.num_envs)]
    rng = np.random.default_rng(seed)
    done: list[list[Episode]] = [[] for _ in quota]
    longest = getattr(envs, "longest_episode", LONGEST_EPISODE)
    begun, now = [0] * envs.num_envs, 0
    obs = envs.reset()
    while any(len(mine) < share for mine, share in zip(done, quota, strict=True)):
        heed()
        action = agent.act(obs).cpu().numpy()
        if epsilon > 0:
            random = rng.integers(agent.action.size, size=action.shape)
            action = np.where(rng.random(len(action)) < epsilon, random, action)
        step = envs.step(action)
        obs = step.obs
        now += 1
        for episode in step.episodes:
            done[episode.env].append(episode)
            begun[episode.env] = now
        if now - min(begun) >= longest:
            for episode in _cut(envs, [i for i, since in enumerate(begun) if now - since >= longest]):
                done[episode.env].append(episode)
                begun[episode.env] = now
            obs = envs.obs  # type: ignore[attr-defined]
        if frame is not None:
            frame()
    return [episode for mine, share in zip(done, quota, strict=True) for episode in mine[:share]]


def _cut(envs: Environments, which: list[int]) -> Sequence[Episode]:
    """End the present episodes of the environments `which`.

    Raises:
        RuntimeError: The environments have no `cut`.
    """
    cut = getattr(envs, "cut", None)
    if cut is None:
        raise RuntimeError(
            f"an episode of {type(envs).__name__} does not end, and these environments have no cut(): give them a "
            "time limit"
        )
    ended: Sequence[Episode] = cut(which)
    return ended


def run_files(folder: Path) -> list[str]:
    """Names of a run's files that exist in a folder; an empty list if there are none."""
    names = ("config.yaml", "checkpoints", "metrics.jsonl", "DONE")
    return [name for name in names if (folder / name).exists()]
