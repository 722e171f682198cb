"""Environments behind one adapter: `make` creates one by name, `wrap` adapts your own.

Importing this module imports no simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..common.memory import refuse_too_large
from ..common.ranges import NumEnvs, Seed, check_value
from ..common.spaces import ObservationSpec
from .adapter import Envs, ListAdapter, NotReproduced, VectorAdapter, episode_seed
from .config import EnvConfig, Suite, longest_episode, options_of, refuse_other_suites_options, suite
from .errors import MissingPackage, NoSuchName, RenderingUnavailable, UnknownEnvironment

if TYPE_CHECKING:
    from gymnasium import Env
    from gymnasium.vector import VectorEnv

__all__ = [
    "EnvConfig",
    "Envs",
    "ListAdapter",
    "MissingPackage",
    "NotReproduced",
    "RenderingUnavailable",
    "UnknownEnvironment",
    "VectorAdapter",
    "episode_seed",
    "make",
    "names",
    "options_of",
    "suite",
    "wrap",
]


def names() -> list[str]:
    """Every environment that `make` can create here, sorted; imports gymnasium and ale_py."""
    from .known_names import names as every  # imports every simulator's library

    return every()


def make(
    name: str,
    num_envs: int = 1,
    seed: int = 0,
    config: EnvConfig | None = None,
    evaluation: bool = False,
    drawn: bool = False,
    at_steps: int | None = None,
    drift_seed: int | None = None,
) -> Envs:
    """Create `num_envs` environments of a name; each of their episodes has its own seed, derived from `seed`.

    Evaluation environments never share an episode's seed with training environments. `drawn` makes `Envs.picture` work
    for simulators that must be configured for rendering.

    A drifting problem (`EnvConfig.drift`) changes with the steps taken. With `at_steps`, and in evaluation (default 0),
    it is fixed at its state after this number of environment steps of the run. Its levels follow from `drift_seed`, the
    seed of that run (default: `seed`).

    Raises:
        ValueError: An option that the environment does not have, or a drift that does not fit it.
        UnknownEnvironment: No environment has this name.
        TooLarge: The environments do not fit into memory.
    """
    check_value(num_envs, NumEnvs, "num_envs")
    check_value(seed, Seed, "seed")
    config = config or EnvConfig()
    kind = suite(name)
    refuse_other_suites_options(name, kind, config)
    what = f"the memory of {num_envs:,} environments {name}"
    refuse_too_large(what, bytes_needed(kind, num_envs, config), "cpu", WAY_OUT[kind])
    try:
        envs = _made(name, kind, num_envs, seed, config, evaluation, drawn, at_steps, drift_seed)
    except NoSuchName:
        from .known_names import unknown  # imports every simulator's library

        raise unknown(name) from None
    envs.longest_episode = longest_episode(kind, config)
    return envs


def _made(
    name: str,
    kind: Suite,
    num_envs: int,
    seed: int,
    config: EnvConfig,
    evaluation: bool,
    drawn: bool,
    at_steps: int | None,
    drift_seed: int | None,
) -> Envs:
    if kind == "stream":
        from .streams import make_stream

        return make_stream(
            name,
            num_envs,
            seed,
            config,
            evaluation,
            level_seed=seed if drift_seed is None else drift_seed,
            fixed_at=0 if at_steps is None and evaluation else at_steps,
        )
    drift = None
    if config.drift:
        from .drift import Drifts

        fixed_at = 0 if at_steps is None and evaluation else at_steps
        drift = Drifts(config.drift, seed if drift_seed is None else drift_seed, num_envs, fixed_at)
    if kind == "atari":
        from .atari import make_atari as build
    elif kind == "minatar":
        from .minatar import make_minatar as build
    else:
        from .control import make_control

        return make_control(name, num_envs, seed, config, evaluation, drawn, drift)
    return build(name, num_envs, seed, config, evaluation, drift)


def bytes_needed(kind: Suite, num_envs: int, config: EnvConfig) -> int:
    """A lower bound on the bytes of a suite's environments: simulators as measured, and three copies of the frames
    (the simulator's, the stack, the observation)."""
    if kind == "stream":
        # The set of inputs, drawn in double precision, plus those of a minibatch.
        return 12 * (config.features or 64) * (config.samples + num_envs)
    if kind == "atari":
        return num_envs * (1_500_000 + 3 * 84 * 84 * (config.frame_stack or 4))
    stack = 3 if config.frame_stack is None else config.frame_stack
    return num_envs * (3_000 + 3 * 3 * config.pixels**2 * stack)


WAY_OUT = {
    "stream": "give fewer --num-envs, or smaller --env.samples or --env.features",
    "atari": "give fewer --num-envs or a smaller --env.frame-stack",
    "minatar": "give fewer --num-envs",
    "control": "give fewer --num-envs, or smaller --env.pixels or --env.frame-stack",
}


def wrap(
    envs: VectorEnv[Any, Any, Any] | Sequence[Env[Any, Any]],
    seed: int = 0,
    *,
    name: str = "",
    observation: ObservationSpec | None = None,
    frame_skip: int = 1,
    evaluation: bool = False,
) -> Envs:
    """Adapt your own environments: a gymnasium `VectorEnv` in any autoreset mode, or a list of single environments.

    `observation` adds information that a gymnasium space lacks, such as that pixels are a stack of frames. Exact
    resumption requires that an episode is a function of the seed given to `reset` and of the actions.
    """
    from gymnasium.vector import VectorEnv

    if not isinstance(envs, VectorEnv):
        return ListAdapter(
            envs, seed=seed, name=name, observation=observation, evaluation=evaluation, frame_skip=frame_skip
        )
    is_ale = type(envs.unwrapped).__module__.startswith("ale_py.")
    return VectorAdapter(
        envs,
        seed=seed,
        name=name,
        observation=observation,
        evaluation=evaluation,
        frame_skip=frame_skip,
        seeds_of_masked_only=is_ale,
    )
