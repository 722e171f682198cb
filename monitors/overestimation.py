"""Overestimation: the difference between the agent's values and the returns that follow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from torch import Generator

from ..agents.agent import Agent
from ..agents.playing import Environments
from ..agents.replay import Batch
from ..agents.stopping import heed
from ..agents.views import view
from ..common.ranges import Episodes, SomeEnvSteps, SomeShare
from ..common.seeds import derive_seed
from .base import SAMPLES, Finding, Monitor, trigger


class Overestimation(Monitor):
    """By how much values exceed the returns that follow, in separate episodes of the present policy.

    The present policy plays (DQN without exploration, SAC with sampled actions), and the mean value of the critics is
    compared with the discounted sum of the following rewards, clipped as in training. SAC's values contain an entropy
    bonus for later actions, so its returns contain one, too: -alpha log pi at every state from which its targets
    bootstrap; with n-step returns, this is every n-th state.

    A truncated episode is completed by the agent's own value, which understates the error of its last states. Therefore
    a return counts only if at most `tail` of it (the discount up to the truncation) rests on that value.

    Healthy: Near zero. For plain DQN slightly above, for clipped double Q-learning slightly below.
    When: It grows while returns do not: targets diverge (remedies: double Q-learning, more critics, resets,
        normalisation). A low rank correlation means that values order states wrongly, whatever their scale.
    Paper: van Hasselt, Guez & Silver 2016, "Deep Reinforcement Learning with Double Q-learning", 1509.06461, figure 3;
        Chen et al. 2021, "Randomized Ensembled Double Q-Learning", 2101.05982, section 3 (normalised bias).
    Differs: Returns are those of the states of the same episodes, also for SAC; Chen et al. restart from states of the
        replay. Normalised by the mean of absolute returns, not by the absolute value of their mean, which may be zero.
        Episodes have the same seeds at every measurement, so that they differ only through the agent. Their steps count
        in no other statistic. The values of a supervised learner predict no returns and are not compared. Under
        value_mapping the entropy bonus is not clipped, although SAC's targets then clip it.

    Args:
        every: Period, in environment steps.
        episodes: Episodes played; a segment of `max_steps` counts as one.
        max_steps: Steps after which an episode is truncated.
        tail: Largest share of a return that may rest on the agent's own value.
    """

    name = "overestimation"
    group = "deep"
    example: ClassVar[str] = "overestimation(every=8, episodes=2, max_steps=6, tail=1.0)"
    every: ClassVar[int] = 100_000
    metrics: ClassVar[Mapping[str, str]] = {
        "overestimation": "mean of value minus discounted return that followed, over states of separate episodes",
        "overestimation_normalised": "the same over the mean absolute return",
        "mc_return": "mean discounted return that followed, over the same states; with SAC's entropy bonus",
        "mc_states": "number of states that counted",
        "value_rank_correlation": "Spearman's rank correlation of values and returns over these states",
    }

    def __init__(
        self,
        every: SomeEnvSteps = 100_000,
        episodes: Episodes = 2,
        max_steps: SomeEnvSteps = 1000,
        tail: SomeShare = 0.5,
    ) -> None:
        super().__init__(trigger(every, "steps"))
        self.episodes, self.max_steps, self.tail = episodes, max_steps, tail

    def between(self, run: Any) -> Iterator[Finding]:
        if run.fresh_envs is None:
            raise ValueError(
                "overestimation plays separate episodes: give the run fresh_envs=lambda: make(...), or remove the "
                "monitor"
            )
        agent: Agent = run.agent
        if not view(agent).values_are_returns:
            return
        generator = Generator(agent.device).manual_seed(
            derive_seed(agent.seed, f"overestimation at {run.clock.steps} steps")
        )
        sampling, clip = agent.sampling(run.clock), reward_clip(agent)
        values, returns = [np.zeros(0)], [np.zeros(0)]
        envs: Environments = run.fresh_envs()
        try:
            for piece in played(agent, envs, self.episodes, self.max_steps, generator):
                reward = view(agent).scaled_rewards(np.asarray(piece.reward, np.float64))
                reward = np.clip(reward, -clip, clip) if clip else reward
                beyond = 0.0 if piece.terminated else state_value(agent, piece.last, generator)
                followed = discounted(reward, piece.bonus, beyond, sampling.gamma, sampling.n_step)
                left = np.arange(len(reward), 0, -1)
                counts = np.ones(len(reward), bool) if piece.terminated else sampling.gamma**left <= self.tail
                values.append(action_values(agent, piece.obs, piece.action)[counts])
                returns.append(followed[counts])
        finally:
            envs.close()
        yield from ((f"critic/{name}", value) for name, value in compared(*map(np.concatenate, (values, returns))))


@dataclass
class Piece:
    """A contiguous segment of an episode, on the host."""

    obs: list[NDArray[Any]] = field(default_factory=list)  # each [*obs]
    action: list[NDArray[Any]] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)  # raw
    bonus: list[float] = field(default_factory=list)  # the agent's bonus for the action
    terminated: bool = False
    last: NDArray[Any] = field(default_factory=lambda: np.zeros(0))  # [*obs] after the last action


def played(agent: Agent, envs: Environments, episodes: int, max_steps: int, generator: Generator) -> Iterator[Piece]:
    """Episodes of the policy whose values the agent learns. Each environment plays its share; episodes longer than
    `max_steps` are split into segments, which count as episodes. The agent's random stream does not advance."""
    shares = [episodes // envs.num_envs + (i < episodes % envs.num_envs) for i in range(envs.num_envs)]
    pieces = [Piece() for _ in shares]
    obs = envs.reset()
    while any(shares):
        heed()
        action, bonus = (x.cpu().numpy() for x in view(agent).policy(obs, generator))
        step = envs.step(action)
        ends = step.terminated | step.truncated | step.reset
        for i, piece in enumerate(pieces):
            if not shares[i]:
                continue
            piece.obs.append(obs[i])
            piece.action.append(action[i])
            piece.reward.append(float(step.reward[i]))
            piece.bonus.append(float(bonus[i]))
            if ends[i] or len(piece.obs) == max_steps:
                piece.terminated, piece.last = bool(step.terminated[i]), step.final_obs[i]
                yield piece
                shares[i] -= 1
                pieces[i] = Piece()
        obs = step.obs


@torch.no_grad()
def action_values(agent: Agent, obs: Sequence[NDArray[Any]], action: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Mean value of the critics for actions at observations, float64 [T]."""
    means = []
    for i in range(0, len(obs), SAMPLES):
        seen, done = np.stack(obs[i : i + SAMPLES]), np.stack(action[i : i + SAMPLES])
        nothing = np.zeros(len(seen))
        batch = Batch.of(agent.tensor(seen), done, nothing, agent.tensor(seen), nothing, device=agent.device)
        means.append(view(agent).values(batch).mean(dim=0).cpu().numpy().astype(np.float64))
    return np.concatenate(means)


def state_value(agent: Agent, obs: NDArray[Any], generator: Generator) -> float:
    """The agent's value of an observation [*obs]: the value of an action of its policy, plus the bonus."""
    action, bonus = (x.cpu().numpy() for x in view(agent).policy(obs[None], generator))
    return float(action_values(agent, [obs], [action[0]])[0] + bonus[0])


def reward_clip(agent: Agent) -> float:
    """The largest reward that the agent learns from; 0 if rewards are not clipped."""
    c = agent.config
    if getattr(c, "value_loss", "") == "value_mapping" and c.head.channels == "polar":
        return min((clip for clip in (c.reward_clip, c.head.clip) if clip), default=0.0)
    return float(c.reward_clip)


def discounted(
    reward: Sequence[float] | NDArray[Any],
    bonus: Sequence[float] | NDArray[Any],
    beyond: float,
    gamma: float,
    n_step: int = 1,
) -> NDArray[Any]:
    """The return from each of T steps on, float64 [T], as targets of n steps define it: G_t = sum of gamma^j r over
    the next m = min(n, T - t) steps, plus gamma^m times the rest: G_{t+m} and its bonus, or `beyond` at the end.

    Args:
        beyond: Value of the state after the last step, its bonus included; 0 after termination.
    """
    steps = len(reward)
    returns = np.zeros(steps)
    for t in reversed(range(steps)):
        m = min(n_step, steps - t)
        rest = beyond if t + m == steps else returns[t + m] + bonus[t + m]
        returns[t] = sum(gamma**j * reward[t + j] for j in range(m)) + gamma**m * rest
    return returns


def compared(values: NDArray[Any], returns: NDArray[Any]) -> Iterator[tuple[str, float]]:
    """Metrics of values and the returns that followed."""
    yield "mc_states", float(len(values))
    if not len(values):
        return
    bias, size = float((values - returns).mean()), float(np.abs(returns).mean())
    yield "overestimation", bias
    yield "mc_return", float(returns.mean())
    if size > 0:
        yield "overestimation_normalised", bias / size
    if (correlation := rank_correlation(values, returns)) is not None:
        yield "value_rank_correlation", correlation


def rank_correlation(x: NDArray[Any], y: NDArray[Any]) -> float | None:
    """Spearman's rank correlation, with mean ranks for ties; None if either array is constant or holds a NaN."""
    varied = x.min() < x.max() and y.min() < y.max()
    return float(scipy.stats.spearmanr(x, y).statistic) if varied else None
