"""The loop: act, step, store; and for every batch owed: update, tick, intervene, log.

A run can be stopped anywhere and goes on to the same last bit, because all that it is stands in its parts' states:
agent, memory, environments, log, clock and the observation at hand. Where very many updates are owed at once, the loop
comes up for air between slices of them: it can be stopped there, and saves as often as if updates were steps.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from .agent import Agent
from .checkpoint import Checkpoints, Found, saved_steps
from .hooks import Clock, Intervention, Update, When
from .log import Log
from .progress import Progress
from .replay import Batch
from .spaces import ActionSpec, Diverged, Episode, NotFinite, ObservationSpec, Step


class Environments(Protocol):
    """What the loop asks of environments; `pliant.envs.make` gives it, anybody's class may."""

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
    """What looks at a run without touching it; `pliant.interventions.watch` gives it."""

    def before_update(self, run: Any) -> None: ...
    def after_update(self, run: Any, update: Update) -> None: ...
    def firing(self, run: Any, part: Intervention) -> AbstractContextManager[None]: ...
    def between(self, run: Any, before: int) -> None: ...
    def publish(self, run: Any) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Run:
    """An agent at work in its environments.

    Args:
        agent: Who acts and learns.
        envs: Where.
        log: Where measurements go; in memory only if None.
        checkpoints: Where the run is saved; nowhere if None.
        checkpoint_every: Environment steps between checkpoints, or gradient updates while no step is taken; 0 saves at
            the end and at a signal only.
        evaluate: Called every `evaluate_every` environment steps with the agent; its values are logged.
        evaluate_every: Environment steps between evaluations; 0 is never.
        progress: Shows how far the run is.
        monitors: Look at the agent while it learns, and never touch it; nobody if None.
        fresh_envs: Makes environments like `envs` for monitors that play episodes of their own.

    Raises:
        ValueError: An intervention waits for a measurement, and there are no monitors.
    """

    def __init__(
        self, agent: Agent, envs: Environments, *, log: Log | None = None, checkpoints: Checkpoints | None = None,
        checkpoint_every: int = 0, evaluate: Callable[[Agent], dict[str, float]] | None = None,
        evaluate_every: int = 0, progress: Progress | None = None, monitors: Watch | None = None,
        fresh_envs: Callable[[], Environments] | None = None,
    ) -> None:  # fmt: skip
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
        self.action: NDArray[Any] | None = None  # what was chosen, and could not be carried out
        self.batch: Batch | None = None  # that of the latest update, for monitors that learn along
        self.seconds = {"act": 0.0, "env": 0.0, "update": 0.0}

    def train(self, steps: int, stop: Callable[[], bool] = lambda: False) -> bool:
        """Go on until `steps` environment steps are done, or `stop` says so; True in the first case.

        Saves at the end in both, so that nothing is lost.

        Raises:
            NotFinite: The environments gave a reward or an observation that is not a finite number. The run is saved as
                it was before that step, and takes the same action when it goes on.
            Diverged: The agent's weights, losses or actions are no longer finite numbers. Nothing is saved.
        """
        if self.obs is None:
            self.obs = self.envs.reset()
            self.memory.start(self.obs)
        while (self.clock.steps < steps or self.owing) and not stop():
            updates = self.clock.updates
            self.step()
            if self.owing:
                self.breathe(updates)
            else:
                self.beat(self.clock.steps - self.envs.num_envs)
        self.save()
        if self.monitors is not None:
            self.monitors.publish(self)
        return self.clock.steps >= steps and not self.owing

    @property
    def owing(self) -> bool:
        """Are updates left over that come before the next step?"""
        return self.memory.owes(self.agent.sampling(self.clock))

    def step(self) -> None:
        """One step in every environment, and the updates owed for it; of very many a slice, and each call that follows
        makes another, and takes no step until all are made."""
        step = None if self.owing else self.interact()
        started = time.perf_counter()
        due = step is not None and self._crossed(self.clock.steps - self.envs.num_envs, self.agent.config.update_every)
        if due or self.owing:
            for batch in self.memory.batches(self.agent.sampling(self.clock)):
                self.learn(batch)
        for episode in step.episodes if step is not None else ():
            self.log.episode(episode, self.clock)
        self.seconds["update"] += time.perf_counter() - started

    def interact(self) -> Step:
        """One step in every environment, and into memory."""
        started = time.perf_counter()
        assert self.obs is not None
        action = self.agent.act(self.obs, self.clock).cpu().numpy() if self.action is None else self.action
        acted = time.perf_counter()
        try:
            step = self.envs.step(action)
        except NotFinite as error:
            self.action = action  # what it drew for this step is drawn: the step itself is still to come
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
        """One gradient update, and what follows from it."""
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
        """Let the monitors take note that an intervention fires within the block."""
        return nullcontext() if self.monitors is None else self.monitors.firing(self, part)

    def beat(self, before: int) -> None:
        """What is due after the steps since `before`: log, evaluation, checkpoint, progress."""
        if self.monitors is not None:
            self.monitors.between(self, before)
        if self.log.due(self.clock):
            self.flush()
        if self.evaluate is not None and self._crossed(before, self.evaluate_every):
            self.log.scalars(self.evaluate(self.agent), self.clock)
        if self._crossed(before, self.checkpoint_every):
            self.save()
        if self.progress is not None:
            self.progress.update(self.clock, self.log.mean_return)

    def breathe(self, before: int) -> None:
        """What is due between two slices of updates that are owed at once, of which `before` were made at the last
        call: log, checkpoint and progress, by updates as otherwise by steps. What looks at a finished step waits."""
        updates = self.clock.updates
        if before // self.log.log_every < updates // self.log.log_every:
            self.flush()
        if self.checkpoint_every and before // self.checkpoint_every < updates // self.checkpoint_every:
            self.save()
        if self.progress is not None:
            self.progress.update(self.clock, self.log.mean_return)

    def flush(self) -> None:
        """Write what was measured since the last flush (Diverged if a loss is not a finite number)."""
        written = self.log.flush(self.clock, {"replay/size": len(self.memory)}, self.seconds)
        # Known beforehand, and so for the record alone: a dashboard has curves enough.
        self.log.scalars(self.agent.charts(self.clock), self.clock, shown={})
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        if strange := {tag: value for tag, value in written.items() if not math.isfinite(value)}:
            self.refuse_lost_weights()
            # Other measurements may overflow now and then (a divergence of policies, say) and do no harm.
            for tag in strange:
                if tag.startswith("losses/") and tag.endswith("loss"):
                    raise Diverged(self._diverged(f"the mean of {tag} since the last log is {strange[tag]}"))

    @torch.no_grad()
    def refuse_lost_weights(self) -> None:
        """Refuse to go on with weights that are not finite numbers (Diverged). The host waits for the device."""
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
        """Where the run stands on the disk, as a sentence without its end."""
        if self.checkpoints is None:
            return "The run is not saved anywhere"
        saved = saved_steps(self.checkpoints.folder)
        return f"The run is saved as of environment step {saved[-1]:,}" if saved else "There is no checkpoint"

    def _crossed(self, before: int, period: int) -> bool:
        return period > 0 and before // period < self.clock.steps // period

    # ------------------------------------------------------------------------------------------------- state

    def save(self) -> None:
        """Write a checkpoint of everything.

        Raises:
            OSError: The disk is full, say; the last good checkpoint survives.
            Diverged: The agent's weights are no longer finite numbers; the last good checkpoint survives.
        """
        self.refuse_lost_weights()
        if self.checkpoints is None or self.obs is None:
            return
        clock = self.clock
        pending = {} if self.action is None else {"action": torch.from_numpy(np.ascontiguousarray(self.action))}
        parts = {
            "agent": self.agent.content(),
            "replay": self.memory.state_dict(),
            "envs": self.envs.state_dict(),
            "log": self.log.state_dict(),
            "loop": {
                "clock": asdict(clock),
                "obs": torch.from_numpy(np.ascontiguousarray(self.obs)),
            } | pending,
        }
        if self.monitors is not None:
            parts["monitors"] = self.monitors.state_dict()
        self.checkpoints.save(clock.steps, parts, self.memory)

    def restore(self, found: Found, adopt: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Become the run that a checkpoint holds. No file is changed: the log cuts its files when the run goes on.

        Args:
            found: The checkpoint.
            adopt: Takes the agent's state instead of the agent itself, where the two are not of one build.
        """
        loop = found.load("loop")
        self.clock = Clock(**loop["clock"])
        self.obs = loop["obs"].numpy()
        self.action = loop["action"].numpy() if "action" in loop else None
        (self.agent.load_state_dict if adopt is None else adopt)(found.load("agent")["state"])
        self.memory.load_state_dict(found.load("replay"))
        found.restore(self.memory)
        self.envs.load_state_dict(found.load("envs"))
        self.log.load_state_dict(found.load("log"))
        if self.monitors is not None and "monitors" in found.parts:
            self.monitors.load_state_dict(found.load("monitors"))


def play(
    agent: Agent, envs: Environments, episodes: int, *, epsilon: float = 0.0, seed: int = 0,
    frame: Callable[[], None] | None = None,
) -> list[Episode]:  # fmt: skip
    """Episodes of the greedy policy, without touching the agent's random stream.

    Each environment plays its share, so short episodes are not over-represented as they would be among the first to
    finish. `epsilon` is the probability of a random action, `frame` is called after every step (for a video).
    """
    quota = [episodes // envs.num_envs + (i < episodes % envs.num_envs) for i in range(envs.num_envs)]
    rng = np.random.default_rng(seed)
    done: list[list[Episode]] = [[] for _ in quota]
    obs = envs.reset()
    while any(len(mine) < share for mine, share in zip(done, quota, strict=True)):
        action = agent.act(obs).cpu().numpy()
        if epsilon > 0:
            random = rng.integers(agent.action.size, size=action.shape)
            action = np.where(rng.random(len(action)) < epsilon, random, action)
        step = envs.step(action)
        obs = step.obs
        for episode in step.episodes:
            done[episode.env].append(episode)
        if frame is not None:
            frame()
    return [episode for mine, share in zip(done, quota, strict=True) for episode in mine[:share]]


@contextmanager
def graceful_stop() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT ask for a stop, which the loop obeys once it stands at a step's end; a second one insists."""
    received: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def run_files(folder: Path) -> list[str]:
    """What of a run already stands in a folder (an empty list: nothing)."""
    names = ("config.yaml", "checkpoints", "metrics.jsonl", "DONE")
    return [name for name in names if (folder / name).exists()]
