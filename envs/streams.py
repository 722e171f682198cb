"""Streams of non-stationary supervised problems: inexpensive standard tests of plasticity.

An observation is an input, an action is a prediction, and every step returns the label or target (`Step.target`). Each
environment shows one sample at a time, so the environments together form a minibatch. In classification, the reward is
1 for a correct prediction and 0 for a wrong one, so that any agent with discrete actions can be trained. In regression,
it is minus the squared error, and the bounds of the action space are a scale, not a limit. Samples have no successors,
so every step terminates. An *episode* is a stretch of steps within one task; its return divided by its length is the
accuracy (or minus the squared error) in that stretch. In training, one episode covers the stretch of all environments
together, with their mean return; in evaluation, each environment has its own episode.

    stream/RandomLabels       memorise random labels of Gaussian inputs; every task has new labels
    stream/RandomTargets      the same with one number to predict for each input
    stream/SlowRegression     the bit-flipping problem of Dohare et al. 2024 (Nature 632)
    stream/ShiftingPairs      the mean of two of sixteen inputs, a different pair in every task (Elsayed & Mahmood 2024)
    stream/PermutedDigits     images whose pixels have a new permutation in every task
    stream/ShuffledDigits     images whose labels have a new permutation in every task
    stream/WarmStart          half of the images first, then all of them; evaluation on test images
    …MNIST, …FashionMNIST, …CIFAR10, …CIFAR100, …Images instead of Digits (and RandomLabels…, WarmStart…): your own
    files in the folder --env.data

The current task depends on the environment steps of all environments together (`Schedule`). The samples of a stream are
a pure function of the problem's seed, the task's level, the number of the task and the position in it. Two learners
therefore see the same samples, a stopped run continues exactly, and a level that recurs is unchanged. The levels follow
from one seed (`make`'s `drift_seed`), the order of the samples from another.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..common.seeds import derive_seed
from ..common.spaces import ActionSpec, Episode, ObservationSpec, Step
from . import datasets
from .adapter import Array, Envs, refuse_lost_actions
from .errors import NoSuchName
from .schedule import Moment, Schedule

if TYPE_CHECKING:
    from .config import EnvConfig

BLOCK = 4096  # samples per block in streams where every sample is new
GONE = 2**62  # the end of a task without an end


class Draw(NamedTuple):
    """A request to a stream: some consecutive samples of a task."""

    task: int
    level: int
    next_level: int
    blend: float  # progress of the task towards the next level, 0 … 1
    first: int  # position of the first sample in the task
    number: int  # number of samples


class Stream(Envs):
    """E environments, each of which shows one sample of the same stream at a time.

    The state consists of the number of steps and the returns of the current stretch; all samples follow from it.

    Args:
        seed: Seed of the order of the samples.
        level_seed: Seed of the levels: of labels, permutations and bits.
        fixed_at: Environment steps at which the schedule is fixed, so that one task is shown throughout; None lets it
            advance.
        evaluation: Use test samples if there are any, or different samples if each one is new; every environment has
            its own episodes.
    """

    period: int  # default length of a task in environment steps

    def __init__(
        self,
        name: str,
        num_envs: int,
        observation: ObservationSpec,
        action: ActionSpec,
        config: EnvConfig,
        *,
        seed: int,
        level_seed: int,
        evaluation: bool,
        fixed_at: int | None,
    ) -> None:
        super().__init__(name, num_envs, observation, action, seed=seed, evaluation=evaluation)
        self.provides_targets = True
        self.level_seed, self.fixed_at = level_seed, fixed_at
        self.schedule = self._schedule(config)
        if self.schedule.every and self.schedule.every < num_envs:
            raise ValueError(
                f"{name}: a task of {self.schedule.every} steps is shorter than a minibatch of {num_envs}; give a "
                "longer period, or fewer --num-envs"
            )
        self.stretch = config.stretch
        self.taken = 0  # steps of every environment
        self._sums = np.zeros(num_envs)  # returns of the current stretch
        self._length = 0  # its steps
        self._task, self._begin_at, self._end_at = (
            -1,
            0,
            0,
        )  # the present task and its limits, in steps of each environment
        self._target: Array | None = None
        self._drawn: dict[tuple[str, int, int], Array] = {}
        self._kept: dict[str, dict[int, Array]] = {}
        if action.discrete:
            self._reward: Callable[[Array, Array], Array] = _right
        else:
            self._reward = _minus_squared_error

    def _schedule(self, config: EnvConfig) -> Schedule:
        if not config.period and not config.at:
            return Schedule(every=self.period, order=config.order, abruptness=config.abruptness)
        return Schedule(every=config.period, at=config.at, order=config.order, abruptness=config.abruptness)

    @abstractmethod
    def draw(self, wanted: Draw) -> tuple[Array, Array]:
        """Inputs [count, *obs] and targets ([count] int64, or [count, K] float32) of some samples of a task."""

    # ---------------------------------------------------------------------------------------------------- acting

    def reset(self) -> Array:
        """Start a stretch; return the present sample of every environment [E, *obs]."""
        self._sums = np.zeros(self.num_envs)
        self._length = 0
        return self._show()

    def step(self, action: Array) -> Step:
        """Submit predictions [E] or [E, K] for the present samples; return the next samples (Diverged if a prediction
        is not finite)."""
        if self._target is None:
            raise RuntimeError(f"{self.name}: reset() must come before the first step()")
        action = np.asarray(action)
        if action.shape != self._action_shape or (self.action.discrete and action.dtype.kind not in "iu"):
            kind = "integer actions" if self.action.discrete else "actions"
            raise ValueError(
                f"{self.name} takes {kind} of shape {self._action_shape}, not {action.dtype} of shape {action.shape}"
            )
        if not self.action.discrete:
            refuse_lost_actions(action, self.name)
        target, task = self._target, self._task
        reward = self._reward(action, target)
        self._sums += reward
        self._length += 1
        self.taken += 1
        # A stretch never extends beyond its task.
        ended = (self.taken - self._begin_at) % self.stretch == 0 or self.taken == self._end_at
        episodes: tuple[Episode, ...] = ()
        if ended:
            episodes = self._finish(task)
        obs = self._show()
        return Step(
            obs,
            reward.astype(np.float32),
            np.ones(self.num_envs, np.bool_),
            np.zeros(self.num_envs, np.bool_),
            np.full(self.num_envs, ended),
            obs,
            episodes,
            target=target,
        )

    def _finish(self, task: int) -> tuple[Episode, ...]:
        returns = self._sums.tolist() if self._evaluation else [float(self._sums.mean())]
        episodes = tuple(Episode(i, ret, self._length, self._run_seed, task) for i, ret in enumerate(returns))
        self._sums = np.zeros(self.num_envs)
        self._length = 0
        return episodes

    def moment(self) -> Moment:
        """The state of the schedule for the present samples."""
        return self.schedule.moment(self.taken * self.num_envs if self.fixed_at is None else self.fixed_at)

    def _show(self) -> Array:
        """Draw the present samples; they depend only on the position in the stream."""
        task, level, next_level, blend = self.moment()
        if task != self._task:
            self._task = task
            if self.fixed_at is None:
                # In steps of each environment; a task that would begin within a minibatch begins with the next one.
                self._begin_at = -(-self.schedule.begin(task) // self.num_envs)
                last = self.schedule.at and task == len(self.schedule.at)
                self._end_at = GONE if last else -(-self.schedule.begin(task + 1) // self.num_envs)
            else:
                self._begin_at, self._end_at = 0, GONE
        first = (self.taken - self._begin_at) * self.num_envs
        obs, self._target = self.draw(Draw(task, level, next_level, blend, first, self.num_envs))
        self._obs = obs
        return obs

    # ---------------------------------------------------------------------------------------------------- randomness

    def of_level(self, purpose: str, number: int = 0) -> np.random.Generator:
        """The random stream of a property of one level, or of all levels."""
        return np.random.default_rng(derive_seed(self.level_seed, f"{purpose} {number}"))

    def of_order(self, purpose: str, *numbers: int) -> np.random.Generator:
        """The random stream of the samples' order; evaluation has a separate stream."""
        key = " ".join([purpose, *map(str, numbers), *(["evaluation"] if self._evaluation else [])])
        return np.random.default_rng(derive_seed(self._run_seed, key))

    def walk(self, wanted: Draw, size: int) -> Array:
        """Indices [count] int64 into a set of `size` samples that is traversed in one random order after another."""
        return self._in_parts("order", wanted, size, lambda rng: rng.permutation(size))

    def fresh(self, wanted: Draw, make: Callable[[np.random.Generator], Array]) -> Array:
        """Samples [count, …], every one of which is new; `make` draws a block of them from a random stream."""
        return self._in_parts("samples", wanted, BLOCK, make)

    def _in_parts(self, purpose: str, wanted: Draw, size: int, make: Callable[[np.random.Generator], Array]) -> Array:
        """Rows of the parts of a task, which have `size` rows each; each part has a separate random stream."""
        parts = []
        first, left = wanted.first, wanted.number
        while left:
            number, at = divmod(first, size)
            key = (purpose, wanted.task, number)
            if key not in self._drawn:
                if len(self._drawn) > 1:
                    self._drawn.clear()
                self._drawn[key] = make(self.of_order(*key))
            part = self._drawn[key][at : at + left]
            parts.append(part)
            first, left = first + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def thresholds(self, task: int, size: int) -> Array:
        """The progress of a task at which each of its samples changes to the next level [size]."""
        return self.kept("thresholds", task, lambda: self.of_level("thresholds", task).random(size))

    def kept(self, what: str, number: int, make: Callable[[], Array]) -> Array:
        """Data of a level or a task, cached for the present and the neighbouring one."""
        store = self._kept.setdefault(what, {})
        if number not in store:
            while len(store) > 1:
                store.pop(next(iter(store)))
            store[number] = make()
        return store[number]

    def reseed(self, seed: int) -> None:
        """Show the samples in another order from now on; the tasks stay the same."""
        super().reseed(seed)
        self._drawn.clear()

    # ---------------------------------------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The position in the stream, and the returns of the current stretch."""
        return {
            "name": self.name,
            "seed": self._run_seed,
            "level_seed": self.level_seed,
            "evaluation": self._evaluation,
            "num_envs": self.num_envs,
            "taken": self.taken,
            "sums": self._sums.tolist(),
            "length": self._length,
            "started": self._target is not None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue exactly from `state` (ValueError if it is the state of another stream)."""
        mine = self.state_dict()
        for key in ("name", "num_envs", "level_seed", "evaluation"):
            if state[key] != mine[key]:
                raise ValueError(f"the saved state belongs to a stream with {key} {state[key]}, not {mine[key]}")
        self._run_seed = state["seed"]
        self.taken, self._length = state["taken"], state["length"]
        self._drawn.clear()
        self._sums = np.asarray(state["sums"], np.float64)
        self._task, self._obs, self._target = -1, None, None
        if state["started"]:
            self._show()

    # A stream has no simulator to replay: it overrides `reset`, `step` and the state.

    def _begin(self, envs: list[int], seeds: list[int], obs: Array) -> None:
        raise NotImplementedError

    def _advance(self, action: Array) -> tuple[Array, Array, Array, Array, list[int]]:
        raise NotImplementedError

    def _simulate_again(self, actions: list[Array]) -> tuple[Array, Array]:
        raise NotImplementedError


def _right(action: Array, target: Array) -> Array:
    """1 for a correct prediction, else 0 [E]."""
    return (action == target).astype(np.float64)


def _minus_squared_error(action: Array, target: Array) -> Array:
    """The negative squared error, averaged over the numbers of a target [E]."""
    return -np.square(action.astype(np.float64) - target).mean(axis=1)


def _numbers(bound: float, size: int = 1) -> ActionSpec:
    """An action space of numbers to predict; its bounds are a scale for agents that need one."""
    return ActionSpec(size, discrete=False, low=(-bound,) * size, high=(bound,) * size)


def _mixed(old: Callable[[], Array], new: Callable[[], Array], blend: float, thresholds: Callable[[], Array]) -> Array:
    """The data of the old level, or of the new level for samples whose threshold [count] has been passed."""
    shown = old()
    if blend == 0:
        return shown
    moved = thresholds() < blend
    return np.where(moved.reshape(-1, *[1] * (shown.ndim - 1)), new(), shown)


# ---------------------------------------------------------------------------------------------------- random targets


class RandomLabels(Stream):
    """A set of standard Gaussian inputs with random labels, uniform over the classes; every task has new labels.

    The inputs stay the same. Minibatches traverse the set in random orders. All tasks are equally hard on average, so a
    plain network that learns late tasks less well than the first has lost plasticity. If the change is gradual, a
    growing share of the inputs has its new label. Evaluation uses the same set and measures memorisation.

    Paper: Zhang et al. 2017, 1611.03530 (random labels); Lyle et al. 2023, 2303.01486, section 4 (redrawn). The size is
    this project's choice: 512 inputs of 64 numbers, 10 classes, 19,200 samples (300 minibatches of 64) per task.
    """

    period = 19_200

    def __init__(self, name: str, num_envs: int, config: EnvConfig, **options: Any) -> None:
        self.size, self.classes = config.samples or 512, config.classes or 10
        features = config.features or 64
        super().__init__(
            name, num_envs, ObservationSpec((features,)), ActionSpec(self.classes, discrete=True), config, **options
        )
        self.inputs = self.of_level("inputs").normal(size=(self.size, features)).astype(np.float32)

    def labels(self, level: int) -> Array:
        """The labels of a level [samples] int64."""
        return self.kept("labels", level, lambda: self.of_level("labels", level).integers(self.classes, size=self.size))

    def draw(self, wanted: Draw) -> tuple[Array, Array]:
        places = self.walk(wanted, self.size)
        target = _mixed(
            lambda: self.labels(wanted.level)[places],
            lambda: self.labels(wanted.next_level)[places],
            wanted.blend,
            lambda: self.thresholds(wanted.task, self.size)[places],
        )
        return self.inputs[places], target


class RandomTargets(Stream):
    """A set of standard Gaussian inputs with one standard Gaussian number to predict for each; every task has new
    targets.

    The regression version of random labels. With `target_drift`, the targets of each level are higher than those of
    the previous level by this number: the problem stays equally hard in its inputs, and the targets grow. If the
    change is gradual, targets move steadily from the old values to the new ones. Evaluation uses the same set.
    """

    period = 19_200

    def __init__(self, name: str, num_envs: int, config: EnvConfig, **options: Any) -> None:
        self.size, self.target_drift = config.samples or 512, config.target_drift
        super().__init__(name, num_envs, ObservationSpec((config.features or 64,)), _numbers(3.0), config, **options)
        self.inputs = self.of_level("inputs").normal(size=(self.size, *self.observation.shape)).astype(np.float32)

    def targets(self, level: int) -> Array:
        """The targets of a level [samples, 1] float32."""
        return self.kept(
            "targets",
            level,
            lambda: (self.of_level("targets", level).normal(size=(self.size, 1)) + self.target_drift * level).astype(
                np.float32
            ),
        )

    def draw(self, wanted: Draw) -> tuple[Array, Array]:
        places = self.walk(wanted, self.size)
        return self.inputs[places], _moved(self.targets, wanted, places)


def _moved(of_level: Callable[[int], Array], wanted: Draw, places: Array) -> Array:
    """Numbers interpolated from one level to the next."""
    target = of_level(wanted.level)[places]
    if wanted.blend:
        blend = np.float32(wanted.blend)
        target = (1 - blend) * target + blend * of_level(wanted.next_level)[places]
    return target


# ---------------------------------------------------------------------------------------------------- new samples


class SlowRegression(Stream):
    """The slowly-changing regression problem: 20 bits, of which the first 15 are the level and change slowly.

    At the start of every task one of the slow bits, chosen uniformly, flips; the other five bits are new in every
    sample. The target is the output of a fixed network with 100 linear threshold units for the bits. Its weights and
    biases are all -1 or 1, and unit i is 1 if its sum, bias b_i included, is at least tau_i = 0.7 * 21 - S_i, where
    S_i = (20 - sum of its weights + b_i) / 2. If the change is gradual, a growing share of the samples has the flipped
    bit. The paper learns from one sample at a time (--num-envs 1) with five hidden units, and compares with a linear
    network.

    Paper: Dohare et al. 2024, "Loss of plasticity in deep continual learning", Nature 632, methods; 10,000 samples a
    task. Differs: S_i is as in the authors' code; in the paper it is the number of negative input weights, which
    differs by half a bias. The code can also redraw all slow bits.
    """

    period = 10_000
    bits, slow, units, beta = 20, 15, 100, 0.7

    def __init__(self, name: str, num_envs: int, config: EnvConfig, **options: Any) -> None:
        super().__init__(name, num_envs, ObservationSpec((self.bits,)), _numbers(10.0), config, **options)
        rng = self.of_level("target network")
        signs = rng.integers(2, size=self.units * (self.bits + 2) + 1).astype(np.float32) * 2 - 1
        weights, self.bias, self.out, self.out_bias = np.split(
            signs, np.cumsum([self.units * self.bits, self.units, self.units])
        )
        self.weights = weights.reshape(self.units, self.bits)
        self.threshold = self.beta * (self.bits + 1) - (self.bits - self.weights.sum(1) + self.bias) / 2

    def slow_bits(self, level: int) -> Array:
        """The slow bits of a level [15] float32: those of level 0, flipped one by one."""

        def flipped() -> Array:
            bits = self.of_level("slow bits").integers(2, size=self.slow)
            for block in range(-(-level // 256)):
                flips = self.of_level("flips", block).integers(self.slow, size=256)
                bits = bits + np.bincount(flips[: level - 256 * block], minlength=self.slow)
            return (bits % 2).astype(np.float32)

        return self.kept("slow", level, flipped)

    def target_output(self, bits: Array) -> Array:
        """The output of the target network [N, 1] float32 for bits [N, 20]."""
        active = (bits @ self.weights.T + self.bias >= self.threshold).astype(np.float32)
        return (active @ self.out + self.out_bias)[:, None]

    def draw(self, wanted: Draw) -> tuple[Array, Array]:
        fast = self.bits - self.slow
        drawn = self.fresh(
            wanted,
            lambda rng: np.concatenate(
                [rng.integers(2, size=(BLOCK, fast)).astype(np.float32), rng.random((BLOCK, 1), np.float32)], axis=1
            ),
        )
        slow = np.broadcast_to(self.slow_bits(wanted.level), (wanted.number, self.slow))
        if wanted.blend:
            slow = np.where(drawn[:, fast:] < wanted.blend, self.slow_bits(wanted.next_level), slow)
        bits = np.concatenate([slow, drawn[:, :fast]], axis=1)
        return bits, self.target_output(bits)


class ShiftingPairs(Stream):
    """Sixteen standard Gaussian inputs; the target is the mean of two of them: (0, 1), then (2, 3), … (14, 15), then
    (0, 1) again, so that from the ninth task on every target has occurred before. If the change is gradual, the target
    moves steadily from one mean to the next.

    Paper: Elsayed & Mahmood 2024, "Addressing Loss of Plasticity and Catastrophic Forgetting in Continual Learning",
    2404.00781, the toy problem with changing inputs; 200 steps per task, here minibatches of 32. Differs: no known
    difference.
    """

    period = 6_400
    features = 16

    def __init__(self, name: str, num_envs: int, config: EnvConfig, **options: Any) -> None:
        super().__init__(name, num_envs, ObservationSpec((self.features,)), _numbers(2.0), config, **options)

    def pair(self, level: int) -> slice:
        """The inputs whose mean is the target."""
        first = 2 * level % self.features
        return slice(first, first + 2)

    def draw(self, wanted: Draw) -> tuple[Array, Array]:
        inputs = self.fresh(wanted, lambda rng: rng.normal(size=(BLOCK, self.features)).astype(np.float32))

        def mean(level: int) -> Array:
            return inputs[:, self.pair(level)].mean(axis=1, keepdims=True)

        return inputs.copy(), _moved(mean, wanted, np.arange(wanted.number))


# ------------------------------------------------------------------------------------------------ images


class ImageStream(Stream):
    """A set of images. Evaluation traverses its test images, which are never shown in training.

    Images from files are uint8 [C, H, W]; the digits, and images with `flat`, are vectors of numbers in [0, 1].
    """

    flat: ClassVar[bool] = False  # images lose their spatial structure
    tests: ClassVar[bool] = True  # evaluation uses images that were never shown
    fewer: ClassVar[int] = 0  # default number of images; 0 is all

    def __init__(self, name: str, num_envs: int, config: EnvConfig, *, source: str, **options: Any) -> None:
        dataset = datasets.load(source, config.data)
        self.high, self.classes = dataset.high, dataset.classes
        tested = options["evaluation"] and self.tests
        self.images, self.true_labels = (
            (dataset.test, dataset.test_labels) if tested else (dataset.train, dataset.train_labels)
        )
        wanted = config.samples or min(self.fewer or len(dataset.train), len(dataset.train))
        if wanted > len(dataset.train):
            raise ValueError(f"{name} has {len(dataset.train):,} images for training, and samples is {wanted:,}")
        if self.flat or config.flat or source == "Digits":
            observation = ObservationSpec((math.prod(self.images.shape[1:]),))
        else:
            observation = ObservationSpec(self.images.shape[1:], torch.uint8, self.high)
        self.period = self.passes(wanted)
        super().__init__(
            name, num_envs, observation, ActionSpec(self.outputs(config), discrete=True), config, **options
        )
        if wanted < len(dataset.train) and not tested:
            some = self.of_level("subset").permutation(len(dataset.train))[:wanted]
            self.images, self.true_labels = self.images[some], self.true_labels[some]
        self.size = len(self.images)

    def passes(self, size: int) -> int:
        """Default number of samples per task."""
        return max(19_200, size)

    def outputs(self, config: EnvConfig) -> int:
        """The number of classes to predict."""
        return self.classes

    def seen(self, images: Array) -> Array:
        """The agent's input for images [N, C, H, W] uint8."""
        if self.observation.pixels:
            return images
        return images.reshape(len(images), -1).astype(np.float32) / np.float32(self.high)

    def draw(self, wanted: Draw) -> tuple[Array, Array]:
        places = self.walk(wanted, self.size)
        shown, named = (
            _mixed(
                partial(of_level, wanted.level, places),
                partial(of_level, wanted.next_level, places),
                wanted.blend,
                lambda: self.thresholds(wanted.task, self.size)[places],
            )
            for of_level in (self.shown, self.named)
        )
        return self.seen(shown), named

    def shown(self, level: int, places: Array) -> Array:
        """Images [N, C, H, W] of a level."""
        return self.images[places]

    def named(self, level: int, places: Array) -> Array:
        """Labels [N] of a level."""
        return self.true_labels[places]


class Permuted(ImageStream):
    """Images whose pixels are permuted, differently in every task; the channels of a pixel stay together.

    Every level has its own permutation, the first one included. The sources permute images that are already permuted,
    which is equivalent: a permutation after a uniform one is uniform, and independent of it. If the change is gradual,
    a growing share of the images has the new permutation. Evaluation: test images with the task's permutation.

    Paper: Goodfellow et al. 2014, 1312.6211; online: Dohare et al. 2024, Nature 632. Differs: by default a task is one
    pass through the images, but at least 19,200 samples, so 13 passes through the digits.
    """

    flat = True

    def shown(self, level: int, places: Array) -> Array:
        images = self.images[places]
        pixels = math.prod(images.shape[2:])
        order = self.kept("pixels", level, lambda: self.of_level("permutation", level).permutation(pixels))
        return images.reshape(*images.shape[:2], pixels)[:, :, order].reshape(images.shape)


class Shuffled(ImageStream):
    """Images whose labels are permuted, differently in every task; the images stay the same.

    Every level has its own permutation, the first one included; Permuted explains why the sources do the same. If the
    change is gradual, a growing share of the images has its new label. Evaluation: test images with the task's labels.

    Paper: Elsayed & Mahmood 2024, 2404.00781 (label-permuted EMNIST, CIFAR-10 and mini-ImageNet).
    """

    def named(self, level: int, places: Array) -> Array:
        names = self.kept("names", level, lambda: self.of_level("names", level).permutation(self.classes))
        return names[self.true_labels[places]]


class RandomImageLabels(ImageStream):
    """Images from files with random labels, new in every task: memorisation, as in RandomLabels.

    Paper: Kumar et al. 2023, 2308.11958: 1,200 images of MNIST or CIFAR-10, 400 passes per task. These are the
        defaults.
    """

    tests = False  # random labels of unseen images cannot be predicted
    fewer = 1200

    def passes(self, size: int) -> int:
        return 400 * size

    def outputs(self, config: EnvConfig) -> int:
        return config.classes or self.classes

    def named(self, level: int, places: Array) -> Array:
        drawn = self.kept(
            "labels", level, lambda: self.of_level("labels", level).integers(self.action.size, size=self.size)
        )
        return drawn[places]


class WarmStart(ImageStream):
    """Level 0 is half of the training images, level 1 is all of them: does a warm start generalise worse?

    The second task, with all images, has no end. The network is measured by evaluation on test images
    (`evaluate_every`, `pliant evaluate`), as the number of correct predictions per stretch. The fresh start to compare
    with is the same stream with `--env.order 1`: all images from the first step on. If the change is gradual, a growing
    share of the other half is included.

    Paper: Ash & Adams 2020, "On Warm-Starting Neural Network Training", 1910.08475. Differs: the first half is trained
    for a number of samples, not to convergence.
    """

    def _schedule(self, config: EnvConfig) -> Schedule:
        if len(config.at) > 1:
            raise ValueError(f"{self.name} has only two tasks, but at={config.at} begins more")
        if any(level > 1 for level in config.order):
            raise ValueError(f"{self.name} has the levels 0 (half of the images) and 1 (all), not {config.order}")
        order = config.order or (0, 1)
        if config.at:
            return Schedule(every=config.period, at=config.at, order=order, abruptness=config.abruptness)
        return Schedule(at=(config.period or self.period,), order=order, abruptness=config.abruptness)

    def draw(self, wanted: Draw) -> tuple[Array, Array]:
        if self._evaluation:
            places = self.walk(wanted, self.size)
        else:
            # The choice of the first half belongs to the problem, not to the order of samples.
            everyone = self.kept("halves", 0, lambda: self.of_level("halves").permutation(self.size))
            sizes = [self.size if level else self.size // 2 for level in (wanted.level, wanted.next_level)]
            size = round((1 - wanted.blend) * sizes[0] + wanted.blend * sizes[1])
            if size == sizes[0]:
                places = everyone[self.walk(wanted, size)]
            else:
                # The set grows all the time, so samples are drawn with replacement instead of in passes.
                drawn = self.fresh(wanted, lambda rng: rng.random(BLOCK))
                places = everyone[(drawn * size).astype(np.int64)]
        return self.seen(self.images[places]), self.true_labels[places]


# ------------------------------------------------------------------------------------------------ by name

SYNTHETIC: dict[str, Callable[..., Stream]] = {
    "RandomLabels": RandomLabels,
    "RandomTargets": RandomTargets,
    "SlowRegression": SlowRegression,
    "ShiftingPairs": ShiftingPairs,
}
OF_IMAGES: dict[str, Callable[..., Stream]] = {
    "Permuted": Permuted,
    "Shuffled": Shuffled,
    "WarmStart": WarmStart,
    "RandomLabels": RandomImageLabels,
}
# The options that a kind of stream reads, besides those of the schedule; others must keep their defaults.
OPTIONS = {
    "RandomLabels": "samples classes features",
    "RandomTargets": "samples features target_drift",
    "SlowRegression": "",
    "ShiftingPairs": "",
}
IMAGE_OPTIONS = {
    "Permuted": "samples data",
    "Shuffled": "samples data flat",
    "WarmStart": "samples data flat",
    "RandomLabels": "samples classes data flat",
}
DETAILS = ("samples", "classes", "features", "target_drift", "data", "flat")


def _known() -> dict[str, tuple[Callable[..., Stream], str]]:
    """Every stream: its constructor, and the options that it reads."""
    streams: dict[str, tuple[Callable[..., Stream], str]] = {
        name: (kind, OPTIONS[name]) for name, kind in SYNTHETIC.items()
    }
    for title, kind in OF_IMAGES.items():
        for source in datasets.NAMES:
            options = IMAGE_OPTIONS[title]
            if source == "Digits":
                options = " ".join(o for o in options.split() if o not in ("data", "flat"))
            name = "WarmStart" if (title, source) == ("WarmStart", "Digits") else f"{title}{source}"
            streams[name] = (partial(kind, source=source), options)
    return streams


def names() -> list[str]:
    """The names of all streams, including those whose files are missing."""
    return [f"stream/{name}" for name in _known()]


def make_stream(
    name: str, num_envs: int, seed: int, config: EnvConfig, evaluation: bool, *, level_seed: int, fixed_at: int | None
) -> Stream:
    """Create a stream by name; see `pliant.envs.make`.

    Raises:
        UnknownEnvironment: There is no stream of this name.
        ValueError: An option that this stream does not have, a schedule whose tasks overlap, or files that are missing.
    """
    known = _known()
    short = name.removeprefix("stream/")
    if short not in known:
        raise NoSuchName(name)
    build, options = known[short]
    blank = type(config)()
    for option in DETAILS:
        if getattr(config, option) != getattr(blank, option) and option not in options.split():
            having = [f"stream/{n}" for n, (_, has) in known.items() if option in has.split()]
            others = " and others" if len(having) > 4 else ""
            given = getattr(config, option)
            raise ValueError(
                f"{name} has no option {option} (given: {given}); it belongs to {', '.join(having[:4])}{others}"
            )
    return build(name, num_envs, config, seed=seed, level_seed=level_seed, evaluation=evaluation, fixed_at=fixed_at)
