"""Presets with known results: agent → suite of environments → settings that differ from the agent's defaults.

The defaults are the presets for `control`: for DQN those of RL Zoo for CartPole, for SAC those of Haarnoja et al., for
PPO those of Schulman et al. 2017, table 3. `minatar` is Young & Tian 2019 (1903.03176).
"""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "dqn": {
        "minatar": {
            "network.hidden": (128,),
            "optimizer.lr": 2.5e-4,
            "optimizer.max_grad_norm": 0.0,
            "batch_size": 32,
            "buffer_size": 100_000,
            "learning_starts": 5_000,
            "replay_ratio": 1.0,
            "update_every": 1,
            "target_period": 1_000,
            "epsilon_steps": 100_000,
            "epsilon_end": 0.1,
        },
        # Dopamine's DQN with Adam.
        "atari": {
            "network.hidden": (512,),
            "optimizer.lr": 6.25e-5,
            "optimizer.eps": 1.5e-4,
            "optimizer.max_grad_norm": 0.0,
            "batch_size": 32,
            "buffer_size": 1_000_000,
            "learning_starts": 20_000,
            "replay_ratio": 0.25,
            "update_every": 4,
            "reward_clip": 1.0,
            "target_period": 2_000,
            "epsilon_steps": 250_000,
            "epsilon_end": 0.01,
        },
    },
    # A smaller replay and a lower replay ratio than for control.
    "sac": {"atari": {"buffer_size": 100_000, "replay_ratio": 0.25, "reward_clip": 1.0}},
    # PPO's papers use 8 environments. The paper's value weight of 1 applies to the full squared error, so it is 2 here.
    # In the paper, learning rate and clip range fall to zero over the run. Here both are constant, because a preset
    # does not know the length of a run, and an agent with learning rate zero cannot continue; set `anneal_steps` to
    # anneal the learning rate. Later code (OpenAI's PPO2, CleanRL) uses 4 epochs and a weight of 0.5 on half the
    # squared error; `minatar` uses these, and a smaller network. MuJoCo also needs `normalise_observations` and
    # `scale_rewards` (Andrychowicz et al. 2021, 2006.05990). They are off by default because running statistics also
    # hide a drift of the observations.
    "ppo": {
        "minatar": {
            "network.hidden": (128,),
            "network.activation": "relu",
            "actor_network.hidden": (),
            "actor_network.activation": "relu",
            "rollout": 128,
            "epochs": 4,
            "batch_size": 256,
            "entropy": 0.01,
            "clip": 0.1,
            "optimizer.lr": 2.5e-4,
        },
        # Table 5.
        "atari": {
            "network.hidden": (512,),
            "network.activation": "relu",
            "actor_network.hidden": (),
            "actor_network.activation": "relu",
            "rollout": 128,
            "epochs": 3,
            "batch_size": 256,
            "entropy": 0.01,
            "clip": 0.1,
            "reward_clip": 1.0,
            "value_weight": 2.0,
            "optimizer.lr": 2.5e-4,
        },
    },
}
