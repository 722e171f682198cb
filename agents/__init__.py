"""Agents, their networks, optimizers and memories, and the training loop."""

from ..common.spaces import ActionSpec, Episode, ObservationSpec, Step
from .agent import Agent, Component
from .clock import At, Clock, Every, Sampling, Update
from .dqn import DQN, DQNConfig
from .hooks import Compose, Intervention
from .ppo import PPO, PPOConfig
from .replay import Batch, PrioritisedConfig, Replay
from .sac import SAC, SACConfig
from .supervised import Supervised, SupervisedConfig

__all__ = [
    "DQN",
    "PPO",
    "SAC",
    "ActionSpec",
    "Agent",
    "At",
    "Batch",
    "Clock",
    "Component",
    "Compose",
    "DQNConfig",
    "Episode",
    "Every",
    "Intervention",
    "ObservationSpec",
    "PPOConfig",
    "PrioritisedConfig",
    "Replay",
    "SACConfig",
    "Sampling",
    "Step",
    "Supervised",
    "SupervisedConfig",
    "Update",
]
