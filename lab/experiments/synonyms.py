"""Names that other libraries use for the settings of a run, so that error messages can suggest pliant's name."""

from __future__ import annotations

from collections.abc import Collection
from itertools import chain

SYNONYMS = {
    "agent": "algo algorithm alg",
    "env": "env_id env_name environment environment_name task game",
    "steps": "total_timesteps timesteps num_timesteps total_steps max_steps num_env_steps train_steps num_train_steps",
    "seed": "random_seed rng_seed seeds",
    "num_envs": "n_envs nb_envs num_environments n_environments num_workers num_actors",
    "run": "out out_dir output output_dir logdir log_dir run_dir save_dir exp_dir folder experiment_name exp_name name",
    "device": "cuda gpu gpu_id use_cuda",
    "threads": "num_threads n_threads torch_threads num_cpus",
    "interventions": "intervention method methods treatment",
    "monitors": "monitor metrics",
    "log_every": "log_interval log_freq logging_freq",
    "checkpoint_every": "save_freq save_every save_interval checkpoint_freq checkpoint_interval",
    "evaluate_every": "eval_freq eval_every eval_interval evaluation_interval",
    "evaluate_episodes": "eval_episodes n_eval_episodes num_eval_episodes",
    "agent.optimizer.lr": "learning_rate lr step_size critic_lr q_lr qf_lr q_learning_rate critic_learning_rate",
    "agent.actor_optimizer.lr": "actor_lr policy_lr pi_lr actor_learning_rate policy_learning_rate",
    "agent.temperature_lr": "alpha_lr ent_coef_lr temperature_learning_rate",
    "agent.optimizer.eps": "adam_eps adam_epsilon opt_eps optimizer_eps",
    "agent.optimizer.max_grad_norm": "grad_clip gradient_clip clip_grad max_gradient_norm grad_clip_norm",
    "agent.optimizer.weight_decay": "l2 l2_weight wd",
    "agent.batch_size": "batch minibatch_size mini_batch_size train_batch_size num_minibatches",
    "agent.buffer_size": "buffer memory_size replay_size replay_buffer_size replay_capacity buffer_capacity capacity",
    "agent.learning_starts": "start_steps warmup warmup_steps min_replay_history learning_start start_training",
    "agent.replay_ratio": "utd utd_ratio gradient_steps updates_per_step update_to_data",
    "agent.update_every": "train_freq train_frequency update_period update_freq",
    "agent.gamma": "discount discount_factor",
    "agent.target_tau": "tau polyak soft_update target_update_rate soft_target_tau",
    "agent.target_period": "target_update_interval target_network_frequency target_update_period target_update_freq "
    "target_network_update_freq",
    "agent.n_step": "multi_step n_steps nstep update_horizon",
    "agent.rollout": "n_steps num_steps rollout_length rollout_steps horizon unroll_length",
    "agent.epochs": "n_epochs num_epochs update_epochs ppo_epochs",
    "agent.clip": "clip_range clip_coef clip_ratio clip_epsilon epsilon_clip",
    "agent.gae_lambda": "lam lambda gae_lam gae",
    "agent.entropy": "ent_coef entropy_coef entropy_coefficient entropy_weight entropy_cost",
    "agent.temperature": "ent_coef alpha entropy_coef entropy_coefficient",
    "agent.initial_temperature": "init_temperature init_alpha initial_alpha",
    "agent.value_weight": "vf_coef value_coef value_loss_coef critic_coef baseline_cost",
    "agent.network.hidden": "hidden_sizes hidden_size hidden_dims hidden_dim hidden_layers net_arch layers hiddens "
    "units hidden_units features",
    "agent.network.activation": "activation_fn act_fn nonlinearity",
    "agent.network.norm": "layer_norm use_layer_norm normalization",
    "agent.epsilon_start": "start_e exploration_initial_eps eps_start initial_epsilon",
    "agent.epsilon_end": "end_e exploration_final_eps eps_end final_epsilon min_epsilon epsilon",
    "agent.epsilon_steps": "exploration_fraction exploration_steps epsilon_decay epsilon_decay_period eps_decay",
    "agent.double": "double_q double_dqn use_double",
    "agent.prioritised": "per prioritized prioritized_replay prioritised_replay use_per",
    "agent.value_loss": "loss loss_fn critic_loss",
    "agent.head.bins": "atoms n_atoms num_atoms num_bins n_bins",
    "agent.head.low": "v_min vmin min_value",
    "agent.head.high": "v_max vmax max_value",
    "agent.head.quantiles": "n_quantiles num_quantiles",
    "agent.critics": "n_critics num_critics num_qs n_qs ensemble_size",
    "agent.actor_period": "policy_frequency policy_delay actor_update_freq policy_freq",
    "agent.normalise_advantage": "normalize_advantage norm_adv",
    "agent.normalise_observations": "normalize_observations norm_obs",
    "env.frame_skip": "frameskip skip",
    "env.action_repeat": "action_repetition repeat",
    "env.frame_stack": "stack n_stack num_stack",
    "env.sticky_actions": "repeat_action_probability sticky sticky_action_probability",
    "env.max_episode_steps": "time_limit max_episode_length episode_length max_ep_len horizon",
    "env.terminal_on_life_loss": "episodic_life life_loss",
    "env.noop_max": "noops max_noops",
}
"""Setting by its dotted name, with the names used by other libraries."""

_NAMES: dict[str, list[str]] = {}
for _setting, _others in SYNONYMS.items():
    for _other in _others.split():
        _NAMES.setdefault(_other, []).append(_setting)


def synonyms(name: str, among: Collection[str]) -> list[str]:
    """The existing settings that another library's name may mean.

    Args:
        name: The given name, perhaps with a section in front (`agent.learning_rate`), with underscores.
        among: The dotted names that exist.
    """
    last = name.rpartition(".")[2].lower()
    if last in among:  # a setting of the run, given with a section
        return [last]
    spellings = dict.fromkeys((last, last.replace("normalize", "normalise"), last.removeprefix("use_")))
    meant = chain.from_iterable(_NAMES.get(spelling, ()) for spelling in spellings)
    return [there for setting in dict.fromkeys(meant) for there in _there(setting, among)]


def _there(setting: str, among: Collection[str]) -> list[str]:
    """The setting, or those of its section with the same last name."""
    if setting in among:
        return [setting]
    section, last = setting.partition(".")[0], setting.rpartition(".")[2]
    return [name for name in among if name.startswith(f"{section}.") and name.rpartition(".")[2] == last]
