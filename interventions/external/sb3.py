"""Interventions in Stable-Baselines3 (Raffin et al. 2021, JMLR 22): its own DQN and SAC, unchanged.

    model = DQN("MlpPolicy", "CartPole-v1")
    model.learn(50_000, callback=PlasticityCallback("redo(tau=0.1, every=1000)"))

In specs DQN's network is called `critic`. SAC has a `critic` and an `actor`, and the critics are observed in the
critic's step. The features extractor is the `encoder`. Clocks: updates are gradient steps, steps are environment steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...agents.hooks import Intervention
from ...agents.networks import InitName
from .attach import Learner, Plasticity

try:
    from stable_baselines3 import DQN, SAC
    from stable_baselines3.common.callbacks import BaseCallback
except ImportError as error:
    raise ImportError(
        "pliant.interventions.external.sb3 needs Stable-Baselines3, which is not installed: pip install 'pliant[peers]'"
    ) from error

ENCODER = "features_extractor"


class PlasticityCallback(BaseCallback):
    """Applies interventions after every gradient step of an SB3 model.

    It hooks the optimizer's steps while `learn` runs, and removes its hooks afterwards. Its state is not part of
    `model.save`: save `state_dict()` too to resume exactly.

    Args:
        interventions: Specs or interventions.
        seed: Seed of all random draws of the interventions.
        init: The initialiser of the network; see `attach`.

    Raises:
        ValueError: When learning starts, if the algorithm or the network is not supported.
    """

    def __init__(
        self, *interventions: str | Intervention, seed: int = 0, init: InitName | None = None, verbose: int = 0
    ) -> None:
        super().__init__(verbose)
        self.interventions, self.seed, self.init = interventions, seed, init
        self.plasticity: Plasticity | None = None
        self.pending = {"steps": 0, "episodes": 0}  # since the previous update
        self.saved: Mapping[str, Any] | None = None
        self.handle: Any = None

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`; available after learning has begun."""
        if self.plasticity is None:
            raise RuntimeError("nothing to save before learning has begun")
        return {"plasticity": self.plasticity.state_dict(), "pending": dict(self.pending)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state when learning starts."""
        self.saved = state["plasticity"]
        self.pending = dict(state["pending"])

    def measurements(self) -> dict[str, Tensor]:
        """The interventions' latest measurements, as 0-d tensors on the device."""
        return {} if self.plasticity is None else self.plasticity.measurements()

    def _on_training_start(self) -> None:
        self._release()
        learners, last = learners_of(self.model)
        plasticity = Plasticity(learners, self.interventions, seed=self.seed, init=self.init)
        if plasticity.with_penalty:
            plasticity.detach()
            raise ValueError(
                f"{plasticity.with_penalty[0].name} is a penalty, and nothing can be added to the losses "
                "of Stable-Baselines3; use a loop of your own and pliant.interventions.attach"
            )
        if self.saved is not None:
            plasticity.load_state_dict(self.saved)
        self.plasticity = plasticity
        plasticity.before_update()
        self.handle = last.register_step_post_hook(self._updated)

    def _on_step(self) -> bool:
        self.pending["steps"] += self.training_env.num_envs
        self.pending["episodes"] += int(sum(self.locals["dones"]))
        return True

    def _updated(self, *_: Any) -> None:
        """Runs after the gradient step of the last-updated optimizer."""
        assert self.plasticity is not None
        self.plasticity.after_update(**self.pending)
        self.pending = {"steps": 0, "episodes": 0}
        self.plasticity.before_update()

    def _on_training_end(self) -> None:
        self._release()

    def _release(self) -> None:
        if self.handle is not None:
            assert self.plasticity is not None
            self.handle.remove()
            self.handle = None
            self.saved = self.plasticity.state_dict()
            self.plasticity.detach()


def learners_of(model: Any) -> tuple[dict[str, Learner], torch.optim.Optimizer]:
    """The networks of a model, and the optimizer whose step ends an update (ValueError for other algorithms)."""
    obs = _example(model.observation_space, model.device)
    if isinstance(model, DQN):
        policy: Any = model.policy
        learner = Learner(policy.q_net, policy.optimizer, obs, policy.q_net_target, encoder=ENCODER)
        return {"critic": learner}, policy.optimizer
    if isinstance(model, SAC):
        action = torch.zeros(1, *model.action_space.shape, device=model.device)  # type: ignore[misc]
        critic, actor = model.critic, model.actor
        learners = {
            "critic": Learner(critic, critic.optimizer, (obs, action), model.critic_target, encoder=ENCODER),
            # The actor's forward pass draws an action; only the parameters of the distribution are needed.
            "actor": Learner(actor, actor.optimizer, obs, forward=actor.get_action_dist_params, encoder=ENCODER),
        }
        return learners, actor.optimizer
    raise ValueError(
        f"PlasticityCallback supports the DQN and SAC of Stable-Baselines3, not {type(model).__name__}; in a "
        "loop of your own use pliant.interventions.attach"
    )


def _example(space: Any, device: torch.device) -> Any:
    """One blank observation, in the form in which SB3 passes it to a network."""
    if hasattr(space, "spaces"):
        return {key: _example(inner, device) for key, inner in space.spaces.items()}
    return torch.from_numpy(np.zeros((1, *space.shape), space.dtype)).to(device)
