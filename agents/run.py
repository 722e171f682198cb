"""The training loop: act, step, store; and for every pending update: advance the clock, update, intervene, log.

A run can be stopped anywhere and resumes bit for bit, because its whole state is the state of its parts: agent, memory,
environments, log, clock and the present observation. If a large number of updates is pending at once, the loop makes at
most 256 at a time. Between two such portions it can be stopped, and the period of checkpoints counts updates instead of
steps.

A long measurement (an evaluation or a probe) is interrupted at once by a stop request. It is repeated from its
beginning when the run resumes (`Run.unfinished`). An interrupted measurement logs nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from numpy.typing import NDArray

from ..common.moved import moved, renamed
from ..common.spaces import Episode, NotFinite
from .agent import Agent
from .captured import learner_of
from .checkpoint import Checkpoint, Checkpoints
from .clock import Clock, Update, When
from .hooks import Intervention
from .log import Log
from .memory import Batch
from .playing import Environments
from .progress import Progress
from .saving import check_weights, chunks, copied, diverged, latest_save, restore_run, run_state
from .stopping import Asked, Interrupted, interruptible, never

__all__ = ["Run", "Watch"]

__getattr__ = moved(
    __name__, {"graceful_stop": "pliant.agents.stopping.graceful_stop", "play": "pliant.agents.playing.play"}
)


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


class BeforeUpdates(NamedTuple):
    """The state of a run before the updates in progress."""

    steps: int
    parts: dict[str, Any]


class Seconds:
    """Measures the wall-clock time of blocks: `with seconds.of("act"): …` adds to `seconds.spent["act"]`."""

    def __init__(self, *names: str) -> None:
        self.spent = dict.fromkeys(names, 0.0)

    def of(self, name: str) -> Seconds:
        self.name = name
        return self

    def reset(self) -> None:
        self.spent = dict.fromkeys(self.spent, 0.0)

    def __enter__(self) -> None:
        self.started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.spent[self.name] += time.perf_counter() - self.started


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
                f"{waiting[0].name} waits for {waiting[0].when}, and no monitor measures it: give the run "
                "monitors=watch(agent)"
            )
        self.agent = agent
        self.monitors = monitors
        self.fresh_envs = fresh_envs
        self.envs = envs
        self.memory = agent.memory(envs.num_envs)
        self.learner = learner_of(agent, self.memory, self._notify)
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
        self.rescue: BeforeUpdates | None = None  # saved if a stop request interrupts the updates
        self.spent = False  # True after a stop during updates: the saved state is valid, this object's state is not
        self.asked: Asked | None = None
        self.batch: Batch | None = None  # the batch of the latest update, for monitors that train on it
        self.seconds = Seconds("act", "env", "update")

    if not TYPE_CHECKING:  # so that a type checker still reports an unknown attribute
        __getattr__ = renamed(
            "Run",
            {
                "beat": "after_step",  # former name
                "breathe": "between_updates",  # former name
                "owing": "has_pending",  # former name
                "settle": "make_updates",
            },
        )

    # ------------------------------------------------------------------------------------------------- the loop

    def train(self, steps: int, stop: Asked = never) -> bool:
        """Train until `steps` environment steps are done (returns True) or `stop` requests a stop (returns False).

        Saves at the end in both cases. `stop` is called between steps, and also during evaluations and deep
        monitors, which are then repeated when the run resumes.

        Raises:
            NotFinite: The environments returned a reward or an observation that is not a finite number. The run is
                saved in its state before that step, and takes the same action when it resumes.
            Diverged: The agent's weights, losses or actions are no longer finite numbers. Nothing is saved.
            RuntimeError: An earlier call was stopped during updates; the run can only resume from its checkpoint.
        """
        turns = self.turns(steps, stop)
        while True:
            try:
                next(turns)
            except StopIteration as end:
                return bool(end.value)

    def turns(self, steps: int, stop: Asked = never) -> Generator[None, None, bool]:
        """Train as `train` does, and yield after every step, so that several runs can take turns in one process.

        The generator's return value is that of `train`, and it raises what `train` raises. Nothing is saved if it is
        closed before its end.
        """
        self._start(stop)
        try:
            self._finish_step()
            while (self.clock.steps < steps or self.has_pending) and not stop():
                self.catch_up(None if self.has_pending else self.interact())
                yield
        except Interrupted:
            self._save_interrupted()
            return False
        finally:
            self.asked = None
        self.save()
        if self.monitors is not None:
            self.monitors.publish(self)
        return self.clock.steps >= steps and not self.has_pending

    def step(self) -> None:
        """Take one step in every environment and make the pending updates.

        Makes at most 256 pending updates; later calls make the rest, and take no step until all are made. Does nothing
        else that is scheduled (`after_step`).
        """
        self.make_updates(None if self.has_pending else self.interact())

    def interact(self) -> Sequence[Episode]:
        """Act, take one step in every environment and store it in memory. Returns the episodes that ended."""
        assert self.obs is not None
        with self.seconds.of("act"):
            action = self.agent.act(self.obs, self.clock).cpu().numpy() if self.action is None else self.action
        with self.seconds.of("env"):
            try:
                step = self.envs.step(action)
            except NotFinite as error:
                self.action = action  # the random draws for this action are made; the step is still to be taken
                self.save()
                raise NotFinite(f"{error}. {latest_save(self)}, before this step") from None
        self.action = None
        with self.seconds.of("update"):
            self.memory.add(action, step)
            self.obs = step.obs
            self.clock = self.clock.stepped(self.envs.num_envs, len(step.episodes))
        return step.episodes

    def catch_up(self, ended: Sequence[Episode] | None) -> None:
        """Make pending updates, at most 256 in one call; then do what is scheduled.

        Args:
            ended: The episodes that ended in the step just taken; None if no step was taken since the last call.
        """
        before = self.clock.updates
        self.make_updates(ended)
        if self.has_pending:
            self.between_updates(before)
        else:
            self.after_step(self.clock.steps - self.envs.num_envs)

    @property
    def has_pending(self) -> bool:
        """True if updates are pending that must be made before the next step."""
        return self.memory.has_pending(self.agent.sampling(self.clock))

    def make_updates(self, ended: Sequence[Episode] | None) -> None:
        """Make pending updates, at most 256 in one call, and log the episodes that ended; arguments as `catch_up`."""
        with self.seconds.of("update"):
            before = self.clock.steps - self.envs.num_envs
            due = ended is not None and passed(before, self.clock.steps, self.agent.config.update_every)
            if due or self.has_pending:
                with self._state_kept(ended):
                    for draw in self.memory.draws(self.agent.sampling(self.clock)):
                        self.learn(draw)
            for episode in ended or ():
                self.log.episode(episode, self.clock)

    def learn(self, draw: Hashable) -> None:
        """Make one gradient update, with the draw that the memory prepared; run monitors and interventions; log."""
        self.clock = self.clock.updated()
        if self.monitors is not None:
            self.monitors.before_update(self)
        self.batch, update = self.learner.learn(self.agent.plan(self.clock), draw)
        if self.monitors is not None:
            self.monitors.after_update(self, update)
        self.agent.interventions.after_update(self, update.activations)
        self.log.update(update.metrics | self.agent.interventions.measurements(), self.clock)

    # ------------------------------------------------------------------------------------------------- scheduled work

    def after_step(self, before: int, stage: str = "monitors") -> None:
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
        if self.evaluate is not None and passed(before, self.clock.steps, self.evaluate_every):
            with self._repeatable("evaluation", before):
                values = self.evaluate(self.agent)
            self.log.scalars(values, self.clock)
        if passed(before, self.clock.steps, self.checkpoint_every):
            self.save()
        self._show_progress()

    def between_updates(self, before: int) -> None:
        """Do what is scheduled while updates are pending: log, checkpoint, progress.

        Here, periods count updates instead of steps. Monitors and evaluation wait until all updates are made.

        Args:
            before: Gradient updates at the previous call.
        """
        if passed(before, self.clock.updates, self.log.log_every):
            self.flush()
        if passed(before, self.clock.updates, self.checkpoint_every):
            self.save()
        self._show_progress()

    def _notify(self, line: str) -> None:
        """Show a line above the progress, if the run shows any."""
        if self.progress is not None:
            self.progress.note(line)

    def firing(self, part: Intervention) -> AbstractContextManager[None]:
        """Let the monitors record that an intervention fires within the block."""
        return nullcontext() if self.monitors is None else self.monitors.firing(self, part)

    def flush(self) -> None:
        """Write the measurements since the last flush.

        Raises:
            Diverged: The mean of a loss is not finite; or another measurement is not finite, and some weight is not
                finite either.
        """
        written = self.log.flush(self.clock, {"replay/size": len(self.memory)}, self.seconds.spent)
        # Schedules are known in advance, so they are logged but not shown on the dashboard.
        self.log.scalars(self.agent.charts(self.clock), self.clock, shown={})
        self.seconds.reset()
        if strange := {tag: value for tag, value in written.items() if not math.isfinite(value)}:
            check_weights(self)
            # Other measurements (a KL divergence of policies, for example) may overflow sometimes; that is harmless.
            for tag in strange:
                if tag.startswith("losses/") and tag.endswith("loss"):
                    raise diverged(self, f"the mean of {tag} since the last log is {strange[tag]}")

    def _show_progress(self) -> None:
        if self.progress is not None:
            self.progress.update(self.clock, self.log.mean_return)

    # ------------------------------------------------------------------------------------------------- saving

    def save(self) -> None:
        """Write a checkpoint of the whole run.

        Raises:
            OSError: The checkpoint cannot be written (the disk is full, for example); the previous one is kept.
            Diverged: The agent's weights are no longer finite numbers; the previous checkpoint is kept.
        """
        check_weights(self)
        if self.checkpoints is None or self.obs is None:
            return
        self.checkpoints.save(self.clock.steps, run_state(self), chunks(self.memory))

    def restore(self, checkpoint: Checkpoint, adopt: Callable[[dict[str, Any]], None] | None = None) -> None:
        """Restore the state of a checkpoint. It changes no file yet: the log truncates its files when the run resumes.

        Args:
            checkpoint: The checkpoint.
            adopt: Called with the agent's state instead of `Agent.load_state_dict`, for a state of an agent with
                another configuration or other interventions.
        """
        restore_run(self, checkpoint, adopt)

    # ------------------------------------------------------------------------------------------------- interruptions

    def _start(self, stop: Asked) -> None:
        """Reset the environments of a new run, and let `stop` interrupt long measurements."""
        if self.spent:
            raise RuntimeError(
                "this run was stopped during updates and saved in its state before them: build a new run and restore "
                "its checkpoint"
            )
        if self.obs is None:
            self.obs = self.envs.reset()
            self.memory.start(self.obs)
        self.asked = None if stop is never else stop
        self.rescue = None

    def _finish_step(self) -> None:
        """Finish the latest step if a stop interrupted it."""
        if self.unfinished is None:
            return
        left, self.unfinished = self.unfinished, None
        if left["stage"] == "updates":
            self.catch_up([Episode(*episode) for episode in left["episodes"]] if left["stepped"] else None)
        else:
            self.after_step(left["before"], left["stage"])

    def _save_interrupted(self) -> None:
        """Save a run that a stop interrupted; during updates, in its state before them."""
        if self.rescue is None:
            self.save()
        else:
            assert self.checkpoints is not None
            self.spent = True
            self.checkpoints.save(*self.rescue, chunks(self.memory))

    @contextmanager
    def _state_kept(self, ended: Sequence[Episode] | None) -> Iterator[None]:
        """If a long measurement comes during the next updates, copy the run's state before them; the copy is saved if a
        stop is requested during the updates. The copy takes less time than the measurement.
        """
        if self.asked is None or self.checkpoints is None or self.monitors is None:
            yield
            return
        if not self.monitors.heavy(self.clock, self.memory.pending(self.agent.sampling(self.clock))):
            yield
            return
        check_weights(self)
        episodes = [list(each) for each in ended or ()]
        # Set only while the state is copied: the saved run has these updates still to make.
        self.unfinished = {"stage": "updates", "stepped": ended is not None, "episodes": episodes}
        self.rescue, self.unfinished = BeforeUpdates(self.clock.steps, copied(run_state(self))), None
        with interruptible(self.asked):
            yield
        self.rescue = None

    @contextmanager
    def _repeatable(self, stage: str, before: int) -> Iterator[None]:
        """Let a stop request interrupt the block (a measurement made after a step). A resumed run repeats it."""
        self.unfinished = {"stage": stage, "before": before}
        with interruptible(self.asked):
            yield
        self.unfinished = None


def passed(before: int, now: int, period: int) -> bool:
    """True if a clock has passed a multiple of `period`; never if the period is 0."""
    return period > 0 and before // period < now // period
