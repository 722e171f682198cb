"""The loop: act, step, store; and for every batch owed: update, tick, intervene, log.

A run can be stopped anywhere and goes on to the same last bit, because all that it is stands in its parts' states:
agent, memory, environments, log, clock and the observation at hand. Where very many updates are owed at once, the loop
comes up for air between slices of them: it can be stopped there, and saves as often as if updates were steps.

What takes long and only looks, an evaluation or a probe, is left at once when a stop is asked for, and done again from
its beginning when the run goes on (`Run.unfinished`): nothing of it is in the record by then.
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
from .checkpoint import Checkpoints, Found, saved_steps
from .hooks import Clock, Intervention, Update, When
from .log import Log
from .progress import Progress
from .replay import AT_ONCE, Batch
from .stopping import Asked, Interrupted, graceful_stop, heed, interruptible, never

__all__ = ["Environments", "Run", "Watch", "graceful_stop", "play", "run_files"]


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
    """What looks at a run without touching it; `pliant.monitors.registry` gives it."""

    def before_update(self, run: Any) -> None: ...
    def after_update(self, run: Any, update: Update) -> None: ...
    def firing(self, run: Any, part: Intervention) -> AbstractContextManager[None]: ...
    def between(self, run: Any, before: int) -> None: ...
    def publish(self, run: Any) -> None: ...
    def heavy(self, clock: Clock, updates: int) -> bool: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Rescue(NamedTuple):
    """A run as it was before the updates that are being made."""

    steps: int
    parts: dict[str, Any]


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
        self.action: NDArray[Any] | None = None  # what was chosen, and could not be carried out
        self.unfinished: dict[str, Any] | None = None  # what of a step was left undone, and comes before the next
        self.rescue: Rescue | None = None
        self.spent = False  # stopped in the midst of updates: what is saved is right, and this object is not
        self.asked: Asked | None = None
        self.batch: Batch | None = None  # that of the latest update, for monitors that learn along
        self.seconds = {"act": 0.0, "env": 0.0, "update": 0.0}

    def train(self, steps: int, stop: Asked = never) -> bool:
        """Go on until `steps` environment steps are done, or `stop` says so; True in the first case.

        Saves at the end in both, so that nothing is lost. `stop` is asked between steps, and also in the midst of
        evaluations and deep monitors, which are then done again when the run goes on.

        Raises:
            NotFinite: The environments gave a reward or an observation that is not a finite number. The run is saved as
                it was before that step, and takes the same action when it goes on.
            Diverged: The agent's weights, losses or actions are no longer finite numbers. Nothing is saved.
            RuntimeError: The run was stopped in the midst of updates; it goes on from its checkpoint alone.
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
                self.checkpoints.save(*self.rescue, self.memory)
            return False
        finally:
            self.asked = None
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
        self.settle(step is not None, () if step is None else step.episodes)

    def settle(self, stepped: bool, episodes: Sequence[Episode]) -> None:
        """The updates owed after a step (if one was taken), and the record of the episodes that ended with it."""
        started = time.perf_counter()
        due = stepped and self._crossed(self.clock.steps - self.envs.num_envs, self.agent.config.update_every)
        if due or self.owing:
            with self._rescued(stepped, episodes):
                for batch in self.memory.batches(self.agent.sampling(self.clock)):
                    self.learn(batch)
        for episode in episodes:
            self.log.episode(episode, self.clock)
        self.seconds["update"] += time.perf_counter() - started

    def rest(self, updates: int) -> None:
        """What is due after `settle`, before which so many updates were made."""
        if self.owing:
            self.breathe(updates)
        else:
            self.beat(self.clock.steps - self.envs.num_envs)

    def catch_up(self) -> None:
        """Do what was left undone of the latest step when the run was stopped."""
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
    def _rescued(self, stepped: bool, episodes: Sequence[Episode]) -> Iterator[None]:
        """Updates at some of which a deep monitor looks, for long perhaps: keep the run as it is before them, to be
        saved if a stop is asked for meanwhile. Such a moment is rare, and the copy takes less than the look."""
        if self.asked is None or self.checkpoints is None or self.monitors is None:
            yield
            return
        coming = getattr(self.memory, "coming", None)  # not every memory says
        if not self.monitors.heavy(self.clock, AT_ONCE if coming is None else coming(self.agent.sampling(self.clock))):
            yield
            return
        self.refuse_lost_weights()
        self.unfinished = {"stage": "updates", "stepped": stepped, "episodes": [list(each) for each in episodes]}
        self.rescue, self.unfinished = Rescue(self.clock.steps, copied(self._parts())), None
        with interruptible(self.asked):
            yield
        self.rescue = None

    @contextmanager
    def _again(self, stage: str, before: int) -> Iterator[None]:
        """What looks at a finished step and can be left: if it is, it is done again from its beginning."""
        self.unfinished = {"stage": stage, "before": before}
        with interruptible(self.asked):
            yield
        self.unfinished = None

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

    def beat(self, before: int, stage: str = "monitors") -> None:
        """What is due after the steps since `before`: monitors that play, log, evaluation, checkpoint, progress.

        Args:
            stage: Where to begin, of a beat that was interrupted: at the monitors, or at the evaluation.
        """
        if stage == "monitors":
            if self.monitors is not None:
                with self._again("monitors", before):
                    self.monitors.between(self, before)
            if self.log.due(self.clock):
                self.flush()
        if self.evaluate is not None and self._crossed(before, self.evaluate_every):
            with self._again("evaluation", before):
                values = self.evaluate(self.agent)
            self.log.scalars(values, self.clock)
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
        self.checkpoints.save(self.clock.steps, self._parts(), self.memory)

    def _parts(self) -> dict[str, Any]:
        """All that is saved, but for the replay's chunks."""
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
        """Become the run that a checkpoint holds. No file is changed: the log cuts its files when the run goes on.

        Args:
            found: The checkpoint.
            adopt: Takes the agent's state instead of the agent itself, where the two are not of one build.
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
    """A state of dicts, lists, tuples and tensors that nothing writes to any more; the host waits for no device."""
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
    """Episodes of the greedy policy, without touching the agent's random stream.

    Each environment plays its share, so short episodes are not over-represented as they would be among the first to
    finish. `epsilon` is the probability of a random action, `frame` is called after every step (for a video).

    An episode that does not end is cut after `envs.longest_episode` steps (27,000 if they do not say), and counts with
    its return so far (`Episode.cut`). Can be left wherever it stands, if the caller allows it (`heed`).
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
    """End episodes that do not end by themselves (RuntimeError if the environments cannot)."""
    cut = getattr(envs, "cut", None)
    if cut is None:
        raise RuntimeError(
            f"an episode of {type(envs).__name__} does not end, and these environments have no cut(): give them a "
            "time limit"
        )
    ended: Sequence[Episode] = cut(which)
    return ended


def run_files(folder: Path) -> list[str]:
    """What of a run already stands in a folder (an empty list: nothing)."""
    names = ("config.yaml", "checkpoints", "metrics.jsonl", "DONE")
    return [name for name in names if (folder / name).exists()]
