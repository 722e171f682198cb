"""Bad command lines of every command: one line that names the mistake, exit code 2, and no change on the disk.

A row of a table is a command line and, after ` | `, texts that its message must contain (more of them after `&`).
Paths lie in a folder with a small finished run and with files that users may confuse with one.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import Command

from pliant.agents import DQN
from pliant.agents.checkpoint import Checkpoints
from pliant.agents.saved import BadFile
from pliant.lab.benchmarks import speed as bench
from pliant.lab.claims.cards import load_claim
from pliant.lab.claims.results import result_file
from pliant.lab.commands import outputs
from pliant.lab.errors import BadInput
from pliant.lab.experiments.config import AGENTS, RunConfig, defaults, flat_fields
from pliant.lab.experiments.synonyms import SYNONYMS
from pliant.scripts.main import COMMANDS, exit_code, main

SECONDS = 20  # for one line; a command that takes longer has begun to work

TRAIN = r"""
--steps 0 | --steps must be at least 1
--steps -1 | --steps must be at least 1
--steps abc | --steps & 'abc' is not a whole number
--steps 1.5 | --steps & '1.5' is not a whole number
--steps nan | --steps & not a whole number
--steps inf | --steps & not a whole number
--steps 1e999 | --steps & not a whole number
--steps 1e30 | --steps must be at most
--steps | --steps needs a value
--steps '' | --steps is empty
--steps= | --steps is empty
--steps 1 2 | a value without an option: '2'
--seed -1 | --seed must be at least 0
--seed 9223372036854775808 | --seed must be
--seed one | --seed & 'one' is not a whole number
--seed '' | --seed is empty
--seeds 0 | --seeds must be at least 1
--seeds -2 | --seeds must be at least 1
--seeds nan | --seeds & not a whole number
--seeds two | --seeds & 'two' is not a whole number
--seeds 1e9 | --seeds must be at most
--seeds | --seeds needs a value
--seeds '' | --seeds is empty
--seeds 2 --seed 9223372036854775807 | --seed must be
--num-envs 0 | --num-envs must be at least 1
--num-envs -3 | --num-envs must be at least 1
--num-envs 1000000000 | --num-envs must be at most
--num-envs two | --num-envs & 'two' is not a whole number
--threads -1 | --threads must be at least 0
--threads 100000 | --threads must be at most
--threads all | --threads
--log-every 0 | --log-every must be at least 1
--log-every nan | --log-every
--checkpoint-every -1 | --checkpoint-every must be at least 0
--keep-checkpoints 0 | --keep-checkpoints must be at least 1
--evaluate-every -5 | --evaluate-every must be at least 0
--evaluate-episodes -1 | --evaluate-episodes must be at least 0
--evaluate-episodes 1e12 | --evaluate-episodes must be at most
--device gpu | --device must be auto, cpu
--device meta | --device must be auto, cpu
--device cuda:99 --env CartPole-v1 | --device cuda:99: not available on this machine
--device cuda:1234567890123 | --device must be auto, cpu
--device '' | --device is empty
--resume maybe | --resume 'maybe' is not one of auto, never
--resume '' | --resume is empty
--run '' | --run is empty
--run ' ' | --run is empty
--run <long> | --run holds a name of 300 bytes
--run a/<long>/b | --run holds a name of 300 bytes
--run <null> | --run contains the control character U+0000
--run <surrogate> | --run contains the control character U+DCFF
--run <newline> | --run contains a line break
--run '~no user here/x' | --run begins with the name of an unknown user
--env CartPole-v1 --run FILE | FILE
--env CartPole-v1 --run FILE/x | FILE
--run | --run needs a value
--config '' | --config is empty
--config= | --config is empty
--config | --config needs a value
--config gone.yaml | there is no file gone.yaml
--config folder | there is no file folder/config.yaml
--config text.txt | text.txt
--config agent.pt | agent.pt
--config <long> | --config holds a name of 300 bytes
--config <null> | --config contains the control character U+0000
--config a.yaml --config b.yaml | --config is given twice
--config list.yaml | list.yaml must hold keys and values
--config twice.yaml | twice.yaml & appears twice
--config unknown_key.yaml | unknown_key.yaml: unknown key 'agent.learning_rate'. Did you mean 'agent.optimizer.lr'?
--config unknown_top.yaml | unknown_top.yaml: unknown key 'total_timesteps'. Did you mean 'steps'?
--config bad_value.yaml | bad_value.yaml: 'steps'
--config bad_gamma.yaml | bad_gamma.yaml & gamma
--config deep.yaml | deep.yaml
--config bomb.yaml | bomb.yaml
--agent dqm | unknown agent 'dqm'. Did you mean 'dqn'?
--agent rainbow | unknown agent 'rainbow'
--agent '' | --agent is empty
--agent | --agent needs a value
--env '' | --env is empty
--env | --env needs a value
--env CartPol-v1 | CartPol-v1
--env CartPole-v99 | CartPole-v99
--env Nowhere-v0 | Nowhere-v0
--env ALE/NoGame-v5 | NoGame
--env MinAtar/NoGame-v1 | NoGame
--env no_such_module_at_all:Thing-v0 | no_such_module_at_all
--env <surrogate> | --env
--agent sac --env CartPole-v1 | sac
--agent dqn --env Pendulum-v1 | dqn
--agent supervised --env CartPole-v1 | supervised
--interventions rdo | unknown intervention 'rdo'. Did you mean 'redo'?
--interventions '' | an empty spec
--interventions redo( | redo(
--interventions 'redo(tua=1)' | redo has no parameter 'tua'. Did you mean 'tau'?
--env CartPole-v1 --interventions 'redo(tau=nan)' | redo & tau
--env CartPole-v1 --interventions 'redo(tau=inf)' | redo & tau
--env CartPole-v1 --interventions 'redo(every=0)' | redo & every
--env CartPole-v1 --interventions 'redo(every=soon)' | redo(every=...) expects
--env CartPole-v1 --interventions hl_gauss c51 | c51 and hl_gauss exclude each other
--env CartPole-v1 --interventions 'reset(layers=haed)' | Did you mean 'head'?
--env CartPole-v1 --interventions 'redo(when="nonsense")' | redo & when
--interventions redo --interventions layer_norm | --interventions is given twice
--interventions __import__('os').system('touch x') | __import__
--monitors unit | Did you mean 'units'?
--monitors '' | an empty spec
--monitors 'units(evry=3)' | units has no parameter 'evry'
--monitors units --monitors ranks | --monitors is given twice
--env CartPole-v1 --monitors 'units(every=0)' | units
--env CartPole-v1 --monitors 'probe(steps=-1)' | probe
--env CartPole-v1 --monitors 'probe(modules=actor)' | probe
--env CartPole-v1 --agent.gamma nan | --agent.gamma must be between 0 and 1
--env CartPole-v1 --agent.gamma 2 | --agent.gamma must be between 0 and 1
--env CartPole-v1 --agent.gamma -0.1 | --agent.gamma must be between 0 and 1
--env CartPole-v1 --agent.gamma high | --agent.gamma: 'high' is not a number
--env CartPole-v1 --agent.gamma '' | --agent.gamma is empty
--env CartPole-v1 --agent.optimizer.lr inf | --agent.optimizer.lr must be a finite number
--env CartPole-v1 --agent.optimizer.lr nan | --agent.optimizer.lr must be a finite number
--env CartPole-v1 --agent.optimizer.lr 0 | --agent.optimizer.lr must be above 0
--env CartPole-v1 --agent.optimizer.lr -1 | --agent.optimizer.lr must be above 0
--env CartPole-v1 --agent.optimizer.beta1 1.5 | --agent.optimizer.beta1 must be at least 0 and below 1
--env CartPole-v1 --agent.optimizer.max-grad-norm nan | --agent.optimizer.max-grad-norm must be a finite number
--env CartPole-v1 --agent.batch-size 0 | --agent.batch-size must be at least 1
--env CartPole-v1 --agent.batch-size 1e12 | --agent.batch-size must be at most 1,000,000
--env CartPole-v1 --agent.buffer-size 0 | --agent.buffer-size must be at least 1
--env CartPole-v1 --agent.buffer-size 1e15 | buffer
--env CartPole-v1 --agent.learning-starts -1 | --agent.learning-starts must be at least 0
--env CartPole-v1 --agent.n-step 0 | --agent.n-step must be at least 1
--env CartPole-v1 --agent.n-step 1000000 | --agent.n-step must be at most 10,000
--env CartPole-v1 --agent.replay-ratio nan | --agent.replay-ratio must be a finite number
--env CartPole-v1 --agent.replay-ratio -1 | --agent.replay-ratio must be at least 0
--env CartPole-v1 --agent.replay-ratio 1e9 | --agent.replay-ratio must be at most 10,000
--env CartPole-v1 --agent.target-tau 2 | --agent.target-tau must be between 0 and 1
--env CartPole-v1 --agent.target-period 0 | --agent.target-period must be at least 1
--env CartPole-v1 --agent.reward-clip nan | --agent.reward-clip must be a finite number
--env CartPole-v1 --agent.priorities.alpha nan | --agent.priorities.alpha must be between 0 and 10
--env CartPole-v1 --agent.epsilon-end 2 | --agent.epsilon-end must be between 0 and 1
--env CartPole-v1 --agent.network.hidden 0 | --agent.network.hidden must be at least 1
--env CartPole-v1 --agent.network.hidden 64 -1 | --agent.network.hidden must be at least 1
--env CartPole-v1 --agent.network.hidden wide | --agent.network.hidden: 'wide'
--env CartPole-v1 --agent.network.injections 1000000 | --agent.network.injections must be at most 100
--env CartPole-v1 --agent.network.activation sigmoid | --agent.network.activation 'sigmoid' is not one of relu
--env CartPole-v1 --agent.network.body cnn | --agent.network.body 'cnn' is not one of
--env CartPole-v1 --agent.value-loss mae | --agent.value-loss 'mae' is not one of
--env CartPole-v1 --agent.head.bins 0 | --agent.head.bins must be at least 2
--env CartPole-v1 --agent.double yes | yes
--env CartPole-v1 --agent.double true | --agent.double takes no value
--env CartPole-v1 --agent.double=0 | --agent.double takes no value
--env CartPole-v1 --agent ppo --agent.entropy nan | --agent.entropy must be a finite number
--env CartPole-v1 --agent ppo --agent.clip -1 | --agent.clip must be above 0
--env CartPole-v1 --agent ppo --agent.epochs 0 | --agent.epochs must be at least 1
--env CartPole-v1 --agent ppo --agent.gae-lambda 2 | --agent.gae-lambda must be between 0 and 1
--env CartPole-v1 --agent ppo --agent.rollout 0 | --agent.rollout must be at least 1
--env CartPole-v1 --agent ppo --agent.double | --agent.double is an option of dqn, not of ppo
--env Pendulum-v1 --agent sac --agent.temperature nan | --agent.temperature must be a finite number
--env Pendulum-v1 --agent sac --agent.target-entropy nan | --agent.target-entropy must be a finite number
--env Pendulum-v1 --agent sac --agent.critics 0 | --agent.critics must be at least 1
--env Pendulum-v1 --agent sac --agent.critics 1000000 | --agent.critics must be at most 100,
--env Pendulum-v1 --agent sac --agent.dropout 2 | --agent.dropout must be at least 0 and below 1
--env CartPole-v1 --env.max-episode-steps -1 | --env.max-episode-steps must be at least 1
--env CartPole-v1 --env.drift rust | rust
--env CartPole-v1 --env.drift '' | --env.drift is empty
--env CartPole-v1 --env.drift 'observation_offset(scale=nan, every=100)' | observation_offset & scale
--env CartPole-v1 --env.drift 'observation_offset(every=0)' | observation_offset & every
--env MinAtar/Breakout-v1 --env.pixels 84 | no option --env.pixels
--env ALE/Pong-v5 --env.frame-skip 0 | --env.frame-skip must be at least 1
--env ALE/Pong-v5 --env.noop-max 1000000000 | --env.noop-max must be at most 10,000
--env ALE/Pong-v5 --env.sticky-actions 2 | --env.sticky-actions must be at least 0 and below 1
--env ALE/Pong-v5 --env.sticky-actions nan | --env.sticky-actions must be at least 0 and below 1
--learning-rate 1 | unknown option '--learning-rate'. Did you mean --agent.optimizer.lr?
--lr 1 | unknown option '--lr'. Did you mean --agent.optimizer.lr?
--total-timesteps 100 | Did you mean --steps?
--n-envs 4 | Did you mean --num-envs?
--batch-size 32 | Did you mean --agent.batch-size?
--gamma 0.9 | Did you mean --agent.gamma?
--algo dqn | Did you mean --agent?
--env-id CartPole-v1 | Did you mean --env?
--eval-freq 10 | Did you mean --evaluate-every?
--stpes 3 | Did you mean --steps?
--qqqqqqqq 3 | unknown option '--qqqqqqqq'
--agent.learning-rate 1 | dqn has no option --agent.learning-rate. Did you mean --agent.optimizer.lr?
--agent.optimizer.learning-rate 1 | Did you mean --agent.optimizer.lr?
--agent.discount 1 | Did you mean --agent.gamma?
--agent.tau 1 | Did you mean --agent.target-tau?
--agent.buffer 1 | Did you mean --agent.buffer-size?
--agent.hidden-sizes 64 | Did you mean --agent.network.hidden?
--agent ppo --agent.ent-coef 0 | Did you mean --agent.entropy?
--agent ppo --agent.n-steps 5 | Did you mean --agent.rollout?
--agent sac --env Pendulum-v1 --agent.ent-coef 0 | Did you mean --agent.temperature?
--agent.seed 3 | Did you mean --seed?
--agent.n-envs 3 | Did you mean --num-envs?
--env CartPole-v1 --env.time-limit 3 | Did you mean --env.max-episode-steps?
--env.repeat-action-probability 3 | Did you mean --env.sticky-actions?
--agent.qqqqqqqq 3 | dqn has no option --agent.qqqqqqqq
--env CartPole-v1 --agent.network.hidden 1000000000 1000000000 | to spare
--env CartPole-v1 --agent.network.hidden 300000 300000 | to spare
--env CartPole-v1 --agent ppo --agent.rollout 1000000000000 | rollout
--env CartPole-v1 --agent.network.hidden 1e15 | --agent.network.hidden must be at most
--env CartPole-v1 --agent.value-loss c51 --agent.head.bins 1e12 | --agent.head.bins
--env CartPole-v1 --agent.value-loss quantile --agent.head.quantiles 1e12 | --agent.head.quantiles
--env CartPole-v1 --agent.buffer-size 1e11 | replay
--env Pendulum-v1 --agent sac --env.pixels 1000000 | --env.pixels
--env Pendulum-v1 --agent sac --env.action-repeat 1e15 | --env.action-repeat
--env CartPole-v1 --num-envs 300 --agent.buffer-size 100 | a larger --agent.buffer-size, or fewer --num-envs
--env stream/RandomLabels --agent supervised --env.samples 1e15 | --env.samples
--env stream/RandomLabels --agent supervised --env.features 1e15 | --env.features
--env stream/RandomLabels --agent supervised --env.classes -1 | --env.classes
--env stream/NoSuchProblem --agent supervised | NoSuchProblem
--env nets_that_fail:Thing-v0 | nets_that_fail & ZeroDivisionError
--env nets_that_exit:Thing-v0 | nets_that_exit
--env nets_of_no_python:Thing-v0 | nets_of_no_python
--env nets_of_a_user:Thing-v0 | Thing-v0
--env nets_of_a_user: | nets_of_a_user
--env :Thing-v0 | Thing-v0
--env CartPole-v1 --interventions 'redo(layers=1)' | redo has no parameter 'layers'
--env CartPole-v1 --interventions 'plasticity_injection(at=nan)' | plasticity_injection & at
--env CartPole-v1 --interventions 'replay_ratio(0)' | ratio
--env CartPole-v1 --interventions 'shrink_perturb(shrink=2)' | shrink_perturb
--run broken/config_torn --env CartPole-v1 | broken/config_torn/config.yaml
--run broken/config_empty --config run | broken/config_empty
-x | unknown option '-x'
-- | unknown option '--'
dqn | a value without an option: 'dqn'
'' | is empty
CartPole-v1 --seed 1 | a value without an option: 'CartPole-v1'
--run run --config run --agent.gamma 0.5 | run holds another run & --agent.gamma
--run run --config run --resume never | run already holds a run
--run run --config run --steps 200 --monitors 'probe(modules=actor)' | probe
"""

EVALUATE = r"""
 | PATH is missing
'' | PATH is empty
gone | gone does not exist
<long> | PATH holds a name of 300 bytes
<null> | PATH contains the control character U+0000
text.txt | text.txt cannot be read as a file of torch & torch did not write it
empty | empty cannot be read as a file of torch: it is empty
truncated.pt | truncated.pt cannot be read as a file of torch: it is damaged or incomplete
code.pt | code.pt cannot be read as a file of torch: it holds Python objects & could run code
tensors.pt | tensors.pt holds no agent
rainbow.pt | rainbow.pt: unknown agent 'rainbow'
half.pt | half.pt holds no complete agent: its part 'state'
shapes.pt --env CartPole-v1 | shapes.pt
script.pt | script.pt cannot be read as a file of torch
states.npy | states.npy cannot be read as a file of torch
zip.pt | zip.pt cannot be read as a file of torch
folder | folder holds no checkpoints
run/checkpoints | checkpoints
agent.pt | give --env
agent.pt --env '' | --env is empty
agent.pt --env CartPol-v1 | CartPol-v1
agent.pt --env Pendulum-v1 | Pendulum-v1
agent.pt --env MountainCar-v0 | MountainCar-v0
run --env Acrobot-v1 | Acrobot-v1
broken/config_torn | config
agent.pt --env nets_that_fail:Thing-v0 | nets_that_fail & ZeroDivisionError
agent.pt --env nets_that_exit:Thing-v0 | nets_that_exit
run --episodes 0 | --episodes must be at least 1
run --episodes -1 | --episodes must be at least 1
run --episodes 1e12 | --episodes must be at most
run --episodes many | --episodes must be a whole number
run --episodes nan | --episodes must be a whole number
run --episodes '' | --episodes
run --num-envs 0 | --num-envs must be at least 1
run --num-envs 1000000000 | --num-envs must be at most
run --max-episode-steps 0 | --max-episode-steps must be at least 1
run --max-episode-steps nan | --max-episode-steps must be a whole number
run --epsilon 2 | --epsilon must be between 0 and 1
run --epsilon nan | --epsilon must be between 0 and 1
run --epsilon -1 | --epsilon must be between 0 and 1
run --seed -1 | --seed must be at least 0
run --at-steps -1 | --at-steps must be at least 0
run --at-steps nan | --at-steps must be a whole number
run --device banana | --device must be auto, cpu, cuda
run --device cuda:7 | --device cuda:7: not available on this machine
run --device '' | --device is empty
run --out '' | --out is empty
run --out gone/result.json | --out gone/result.json: there is no folder gone
run --out folder | --out folder is a folder
run --episodes 1000000 --out folder | --out folder is a folder
run --episodes 1000000 --video folder | --video folder
run --out FILE/result.json | --out FILE/result.json: FILE is a file
run --out <long> | --out holds a name of 300 bytes
run --video '' | --video is empty
run --video gone/film.gif | --video gone/film.gif: there is no folder gone
run --video film.xyz | --video film.xyz: a video is a GIF
run --video folder | --video folder
run --video | --video needs a value
run --vidio film.gif | unknown option '--vidio'. Did you mean '--video'?
run run | 'run' does not belong to any option
run --e 3 | --e could match
"""

INSPECT = r"""
 | PATH is missing
'' | PATH is empty
gone | gone does not exist
<long> | PATH holds a name of 300 bytes
text.txt | text.txt cannot be read as a file of torch
empty | empty cannot be read as a file of torch: it is empty
truncated.pt | truncated.pt cannot be read as a file of torch: it is damaged
code.pt | code.pt cannot be read as a file of torch: it holds Python objects
tensors.pt | tensors.pt holds no agent & give --module
folder | folder holds no checkpoints
agent.pt | give --env NAME & --observations
agent.pt --env CartPol-v1 | CartPol-v1
agent.pt --env Pendulum-v1 | Pendulum-v1
agent.pt --env CartPole-v1 --interventions redo | interventions
agent.pt --env CartPole-v1 --interventions rdo | Did you mean 'redo'?
run --interventions redo | belongs to a run
agent.pt --env nets_that_exit:Thing-v0 | nets_that_exit
broken/config_torn | config
run --monitors tandem | tandem
run --monitors unit | Did you mean 'units'?
run --monitors '' | --monitors is empty
run --monitors 'units(' | units(
run --monitors 'units(evry=1)' | units has no parameter 'evry'
run --monitors 'probe(modules=actor)' | probe
run --monitors | --monitors needs at least one value
agent.pt --observations gone.npy | --observations gone.npy: no such file
agent.pt --observations '' | --observations is empty
agent.pt --observations text.txt | --observations text.txt is not an array
agent.pt --observations empty | --observations empty is not an array
agent.pt --observations objects.npy | --observations objects.npy & Python objects
agent.pt --observations wide.npy | --observations wide.npy: the shape is (3, 7)
agent.pt --observations folder | --observations folder is a folder
agent.pt --observations strings.npy | --observations strings.npy is not an array
agent.pt --observations states.npy --monitors overestimation | give --env
run --samples 1 | --samples must be at least 2
run --samples 1000000000000 | --samples must be at most
run --samples nan | --samples must be a whole number
run --seed -1 | --seed must be at least 0
run --device banana | --device must be auto, cpu, cuda
run --device cuda:7 | --device cuda:7: not available on this machine
run --json '' | --json is empty
run --json gone/x.json | --json gone/x.json: there is no folder gone
run --json folder | --json folder is a folder
run --json <long> | --json
run --input 4 | belong to --module
run --module-args '{}' | belong to --module
weights.pt --module nets_of_a_user:Net | needs --input
weights.pt --module '' --input 4 | --module is empty
weights.pt --module nets_of_a_user --input 4 | --module nets_of_a_user: write package.module:Class
weights.pt --module missing_module:Net --input 4 | --module missing_module:Net & No module named
weights.pt --module nets_that_fail:Net --input 4 | importing nets_that_fail fails: ZeroDivisionError
weights.pt --module nets_that_exit:Net --input 4 | importing nets_that_exit fails: it calls sys.exit
weights.pt --module nets_of_no_python:Net --input 4 | --module nets_of_no_python:Net: importing & SyntaxError
weights.pt --module nets_of_a_user:Nett --input 4 | Did you mean 'Net'?
weights.pt --module nets_of_a_user:Raises --input 4 | cannot be built with no arguments: ValueError: no such size
weights.pt --module nets_of_a_user:Exits --input 4 | cannot be built with no arguments: it calls sys.exit
weights.pt --module nets_of_a_user:NUMBER --input 4 | no 'NUMBER' that can be called
weights.pt --module nets_of_a_user:nothing --input 4 | not a torch module
weights.pt --module nets_of_a_user:LeavesInForward --input 4 | cannot read --input: it calls sys.exit
weights.pt --module nets_of_a_user:Net --module-args '{' --input 4 | --module-args is not valid JSON
weights.pt --module nets_of_a_user:Net --module-args 7 --input 4 | --module-args must be a JSON object
weights.pt --module nets_of_a_user:Net --module-args '' --input 4 | --module-args is empty
weights.pt --module nets_of_a_user:Net --module-args '{"width": "x"}' --input 4 | cannot be built with
weights.pt --module nets_of_a_user:Net --input '' | --input is empty
weights.pt --module nets_of_a_user:Net --input gone.npy | --input gone.npy: no such file
weights.pt --module nets_of_a_user:Net --input text.txt | --input text.txt is not an array
weights.pt --module nets_of_a_user:Net --input empty | --input empty is not an array
weights.pt --module nets_of_a_user:Net --input objects.npy | --input objects.npy & Python objects
weights.pt --module nets_of_a_user:Net --input zip.pt | --input zip.pt
weights.pt --module nets_of_a_user:Net --input several.npz | --input several.npz holds several arrays
weights.pt --module nets_of_a_user:Net --input 5 | cannot read --input
weights.pt --module nets_of_a_user:Net --input 99999999999 | --input 99999999999
weights.pt --module nets_of_a_user:Net --input states.npy --monitors churn | churn needs an agent
weights.pt --module nets_of_a_user:Net --input states.npy --env CartPole-v1 | are for agents
text.txt --module nets_of_a_user:Net --input 4 | text.txt cannot be read as a file of torch
code.pt --module nets_of_a_user:Net --input 4 | code.pt & it holds Python objects & state dict
agent.pt --module nets_of_a_user:Net --input 4 | agent.pt
gone.pt --module nets_of_a_user:Net --input 4 | there is no file gone.pt
run --no-prob x | does not belong to any option
run --colour | unknown option '--colour'
"""

FORK = r"""
 | RUN, --at are missing
run | --at is missing
--at 100 | RUN is missing
'' --at 100 --why | RUN is empty
gone --at 100 --with redo | gone
folder --at 100 --with redo | folder: not a run folder (no config.yaml)
FILE --at 100 --with redo | FILE
<long> --at 100 --with redo | RUN holds a name of 300 bytes
<null> --at 100 --with redo | RUN contains
run --at '' --with redo | --at is empty
run --at soon --with redo | --at & 'soon'
run --at 0 --with redo | --at must be at least 1
run --at -1 --with redo | --at
run --at nan --with redo | --at
run --at inf --with redo | --at
run --at 1.5 --with redo | --at
run --at 1e300 --with redo | --at
run --at 1000000 --with redo | ends at step 60, before 1,000,000
run --at latest | nothing to compare
run --at latest --with rdo | Did you mean 'redo'?
run --at latest --with 'redo(' | redo(
run --at latest --with 'redo(tau=nan)' | tau
run --at latest --with layer_norm --for 10 | layer_norm
run --at latest --with redo --reseed 0 | --reseed must be at least 1
run --at latest --with redo --reseed 1000000000 | --reseed must be at most
run --at latest --with redo --reseed x | --reseed must be a whole number
run --at latest --with redo --jobs -1 | --jobs must be at least 0
run --at latest --with redo --jobs 1000000 | --jobs must be at most
run --at latest --with redo --steps 5 --for 5 | give --steps or --for, not both
run --at latest --with redo --steps -5 | --steps must be at least
run --at latest --with redo --for -5 | --for must be at least
run --at latest --with redo --for 0 | --for must be at least
run --at latest --with redo --for '' | --for
run --at latest --with redo --for nan | --for must be a whole number
run --at latest --tandem 0 | --tandem must be at least 1
run --at latest --tandem soon | --tandem must be a whole number
run --at latest --with | --with needs a value
run --at latest --wiht redo | unknown option '--wiht'. Did you mean '--with'?
"""

BENCH = r"""
--rounds -1 | --rounds must be at least 1
--rounds 0 | --rounds must be at least 1
--rounds nan | --rounds must be a whole number
--rounds 1.5 | --rounds must be a whole number
--rounds three | --rounds must be a whole number, not 'three'
--rounds 1000000000 | --rounds must be at most
--rounds '' | --rounds
--rounds | --rounds needs a value
--minutes 0 | --minutes must be above 0
--device tpu | --device 'tpu' is not one of cpu, cuda
--cleanrl nowhere | --cleanrl nowhere is not a folder
--write nowhere.md | --write nowhere.md does not contain the lines
--threads 0 | --threads must be at least 1
--threads -1 | --threads must be at least 1
--threads 100000 | --threads must be at most
--threads inf | --threads must be a whole number
--only pon | --only 'pon' is not one of & Did you mean 'pong'?
--only everything | --only 'everything' is not one of
--only '' | --only is empty
--only | --only needs at least one value
--only pong memori | Did you mean 'memory'?
--transitions 0 | --transitions must be at least 1
--transitions -5 | --transitions must be at least 1
--transitions nan | --transitions must be a whole number
--transitions 1e18 | --transitions must be at most
--transitions | --transitions needs at least one value
--save yes | 'yes' is not one of measure
--round 3 --only zz | --only 'zz'
--what | unknown option '--what'
pong | 'pong' is not one of measure
measure | are missing
measure pliant | task is missing
measure unknown pong | library 'unknown' is not one of pliant, sb3
measure pliant pongg | task 'pongg' is not one of & Did you mean 'pong'?
measure pliant pong --threads 0 | --threads must be at least 1
measure pliant '' | task is empty
"""

SWEEP = r"""
 | STUDY is missing
'' | STUDY is empty
gone.yaml | there is no study gone.yaml
folder | folder/study.yaml
text.txt | text.txt
agent.pt | agent.pt
list.yaml | list.yaml must hold keys and values
twice.yaml | twice.yaml & appears twice
card.yaml --only plian | card.yaml & Did you mean 'plain'?
card_margin.yaml | card_margin.yaml & margin
bomb.yaml | bomb.yaml
deep.yaml | deep.yaml
<long> | STUDY holds a name of 300 bytes
<null> | STUDY contains
study_unhashable.yaml | study_unhashable.yaml & baseline
study_seeds.yaml | study_seeds.yaml & seeds
study_newline.yaml | study_newline.yaml
study_unknown_flag.yaml | study_unknown_flag.yaml & stpes
study_synonym.yaml | study_synonym.yaml & Did you mean --agent.optimizer.lr?
study_spec.yaml | study_spec.yaml & Did you mean 'redo'?
study_agent.yaml | study_agent.yaml & rainbow
study_steps.yaml | study_steps.yaml & steps
study_empty_arms.yaml | study_empty_arms.yaml & arms
small.yaml --only pln | Did you mean 'plain'?
small.yaml --only '' | --only is empty
small.yaml --seeds -1 | --seeds must be at least 0
small.yaml --seeds 50 | has 1 seeds, not 50
small.yaml --seeds nan | --seeds must be a whole number
small.yaml --seeds 1000000000 | --seeds must be at most
small.yaml --steps -1 | --steps must be at least 0
small.yaml --steps many | --steps must be a whole number
small.yaml --out '' | --out is empty
small.yaml --out FILE | --out FILE is a file
small.yaml --out FILE/x | --out FILE/x cannot be written: FILE is a file
small.yaml --out <long> | --out
small.yaml --out <newline> | --out
small.yaml --executor kubernetes | --executor 'kubernetes' is not one of local, ray, slurm
small.yaml --executor '' | --executor is empty
small.yaml --budget soon | --budget is a time like 30m
small.yaml --budget '' | --budget is empty
small.yaml --budget 0s | --budget is a time like 30m
small.yaml --budget -5m | --budget
small.yaml --budget 99999999999999999999h | --budget must be at most 8,784h
small.yaml --jobs -1 | --jobs must be at least 0
small.yaml --jobs 1000000 | --jobs must be at most
small.yaml --gpus-per-run 0 | --gpus-per-run must be above 0
small.yaml --gpus-per-run nan | --gpus-per-run must be
small.yaml --gpus-per-run -1 | --gpus-per-run must be
small.yaml --executor slurm --cpus 0 | --cpus must be at least 1
small.yaml --executor slurm --gpus -1 | --gpus must be at least 0
small.yaml --executor slurm --runs-per-job 0 | --runs-per-job must be at least 1
small.yaml --executor slurm --time <newline> | --time
small.yaml --executor slurm --time '' | --time is empty
small.yaml --executor slurm --time 'soon; rm -rf x' | --time
small.yaml --executor slurm --partition <newline> | --partition
small.yaml --executor slurm --partition '' | --partition is empty
small.yaml --executor slurm --emit folder | --emit folder is a folder
small.yaml --executor slurm --emit FILE/x | --emit
small.yaml --executor slurm --emit '' | --emit is empty
small.yaml --dryrun | unknown option '--dryrun'. Did you mean '--dry-run'?
small.yaml other.yaml | 'other.yaml' does not belong to any option
"""

REPORT = r"""
 | RUNS, --out are missing
run | --out is missing
--out report | RUNS is missing
'' --out report | RUNS is empty
run --out '' | --out is empty
gone --out report | gone does not exist
folder --out report | folder contains no runs
FILE --out report | FILE is neither a folder with runs nor a study file
agent.pt --out report | agent.pt is neither
text.txt --out report | text.txt is neither
list.yaml --out report | list.yaml must hold keys and values
bomb.yaml --out report | bomb.yaml
<long> --out report | RUNS holds a name of 300 bytes
<null> --out report | RUNS contains
run --out FILE | --out FILE is a file
run --out FILE/x | --out FILE/x: FILE is a file, not a folder
run --out <long> | --out holds a name of 300 bytes
run --out <null> | --out contains
run --out book | --out book holds figures that do not belong to a report
run --out report --segment 0 | --segment must be at least 1
run --out report --segment nan | --segment must be a whole number
run --out report --margin 0 | --margin must be above 0
run --out report --margin nan | --margin must be
run --out report --margin inf | --margin must be
run --out report --margin much | --margin must be a number
run --out report --baseline layer_norm | --baseline 'layer_norm' is not one of the arms
run --out report --baseline '' | --baseline is empty
run --out report --oracle unknown | --oracle 'unknown' is not one of the arms
run --out report --measure best | --measure 'best'
run --out report --measure '' | --measure is empty
run --out report --measure tasks | --measure tasks needs the length of a task
run --out report --flops yes | 'yes' does not belong to any option
run --out report --flops=yes | --flops/--no-flops takes no value
run --out report --mesure last | unknown option '--mesure'. Did you mean '--measure'?
run small.yaml card.yaml --out report | studies/card & studies/small
broken/done_text --out report | broken/done_text/DONE
broken/done_list --out report | broken/done_list/DONE
broken/done_steps --out report | broken/done_steps/DONE
broken/done_empty --out report | broken/done_empty/DONE
broken/done_evaluation --out report | broken/done_evaluation/DONE
broken/versions_torn --out report | broken/versions_torn/versions.json
broken/versions_number --out report | broken/versions_number/versions.json
broken/versions_packages --out report | broken/versions_packages/versions.json
broken/metrics_torn --out report | broken/metrics_torn/metrics.jsonl
broken/metrics_list --out report | broken/metrics_list/metrics.jsonl
broken/metrics_keys --out report | broken/metrics_keys/metrics.jsonl
broken/metrics_text --out report | broken/metrics_text/metrics.jsonl
broken/metrics_bytes --out report | broken/metrics_bytes/metrics.jsonl
broken/fork_list --out report | broken/fork_list/fork.json
broken/fork_types --out report | broken/fork_types/fork.json
broken/config_torn --out report | broken/config_torn/config.yaml
broken/config_empty --out report | broken/config_empty/config.yaml
"""

CLAIMS = r"""
injektion | COMMAND 'injektion' is not one of list, run, render
'' | COMMAND '' is not one of list, run, render
list injektion | unknown claim 'injektion'. Did you mean 'injection'?
list '' | NAME is empty
list gone.yaml | there is no claim file gone.yaml
list text.txt | unknown claim 'text.txt'
list ./text.txt | text.txt
list folder/ | folder
list list.yaml | list.yaml must hold keys and values
list twice.yaml | twice.yaml & appears twice
list bomb.yaml | bomb.yaml
list deep.yaml | deep.yaml
list small.yaml | small.yaml
list card_margin.yaml | card_margin.yaml & margin
list card_arm.yaml | card_arm.yaml & Did you mean 'plain'?
list card_flag.yaml | card_flag.yaml & stpes
list card_measure.yaml | card_measure.yaml
list card_seeds.yaml | card_seeds.yaml & seeds
list card_minutes.yaml | card_minutes.yaml & minutes
list card_results/card.yaml | card_results/results
list <null> | NAME contains
list ./<long>.yaml | File name too long
list --runs '' | --runs is empty
list --budget 3m | --budget is an option of another command
run | name claims
run zzz | unknown claim 'zzz'
run card.yaml --budget soon | --budget is a time like 30m, 90s or 1h30m, not 'soon'
run card.yaml --budget '' | --budget is empty
run card.yaml --budget 0s | --budget is a time like
run card.yaml --budget nan | --budget is a time like
run card.yaml --budget=-30m | --budget is a time like
run card.yaml --budget 99999999999999999999h | --budget must be at most 8,784h
run card.yaml --jobs -1 | --jobs must be at least 0
run card.yaml --jobs 1000000 | --jobs must be at most
run card.yaml --jobs x | --jobs must be a whole number
run card.yaml --seeds -1 | --seeds must be at least 0
run card.yaml --seeds nan | --seeds must be a whole number
run card.yaml --seeds 1000000000 | --seeds must be at most
run card.yaml --runs FILE | --runs FILE is a file
run card.yaml --runs FILE/x | --runs FILE/x: FILE is a file, not a folder
run card.yaml --runs <long> | --runs holds a name
run card.yaml --out FILE | --out FILE is a file
run card.yaml --out '' | --out is empty
render card.yaml --out FILE | --out FILE is a file
render card.yaml --out FILE/x | --out FILE/x: FILE is a file, not a folder
render card.yaml --out <long> | --out holds a name
render zzz | unknown claim 'zzz'
render --seeds 3 | --seeds is an option of another command
"""

INTERVENTIONS = r"""
rdo | unknown intervention 'rdo'. Did you mean 'redo'? `pliant interventions` lists them all
redo unknown | unknown intervention 'unknown'
'' | unknown intervention ''
--all | unknown intervention '--all'
'redo(tau=0.1)' | redo(tau=0.1)
<surrogate> | unknown intervention
<newline> | unknown intervention
<long> | unknown intervention
"""

DRIFTS = r"""
observation_ofset | unknown drift 'observation_ofset'. Did you mean 'observation_offset'?
redo | unknown drift 'redo'
'' | unknown drift ''
--list | unknown drift '--list'
<null> | unknown drift
"""

MONITORS = r"""
unit | unknown monitor 'unit'. Did you mean 'units'?
redo | unknown monitor 'redo'
'' | unknown monitor ''
--list | unknown monitor '--list'
units norm | Did you mean 'norms'?
<surrogate> | unknown monitor
"""

TABLE = {
    "train": TRAIN,
    "evaluate": EVALUATE,
    "inspect": INSPECT,
    "fork": FORK,
    "bench": BENCH,
    "sweep": SWEEP,
    "report": REPORT,
    "claims": CLAIMS,
    "interventions": INTERVENTIONS,
    "drifts": DRIFTS,
    "monitors": MONITORS,
}
SPECIAL = {"<long>": "n" * 300, "<null>": "a\0b", "<surrogate>": "a\udcffb", "<newline>": "a\ntouch b"}


def rows(command: str) -> list[tuple[list[str], list[str]]]:
    """The arguments of every line of a command, and the texts that its message must contain."""
    table = []
    for row in TABLE[command].strip("\n").split("\n"):
        line, _, expected = row.partition(" | ")
        table.append(([command, *arguments_of(line)], expected.split(" & ")))
    return table


def arguments_of(line: str) -> list[str]:
    arguments = shlex.split(line)
    for name, text in SPECIAL.items():
        arguments = [argument.replace(name, text) for argument in arguments]
    return arguments


# ------------------------------------------------------------------------------------------------ the folder


SMALL = [
    "--agent",
    "dqn",
    "--env",
    "CartPole-v1",
    "--steps",
    "60",
    "--checkpoint-every",
    "0",
    "--evaluate-episodes",
    "3",
    "--agent.learning-starts",
    "20",
    "--agent.buffer-size",
    "60",
    "--agent.network.hidden",
    "4",
    "--threads",
    "1",
    "--agent.batch-size",
    "8",
    "--agent.update-every",
    "4",
    "--monitors",
    "none",
]

STUDY: dict[str, Any] = {
    "name": "small",
    "title": "Small",
    "agents": ["dqn"],
    "environments": ["CartPole-v1"],
    "arms": {"plain": {"kind": "control"}, "norm": ["layer_norm"]},
    "seeds": 1,
    "flags": {"steps": 100},
}
CARD: dict[str, Any] = {
    "title": "Small",
    "paper": {"title": "Small"},
    "claim": "Less is less.",
    "testbed": {"about": "Small", "flags": {"agent": "dqn", "env": "CartPole-v1", "steps": 100}},
    "arms": {"plain": {"kind": "control"}, "norm": {"words": ["layer_norm"]}},
    "measures": {"return": {"read": "return"}},
    "comparisons": [{"a": "norm", "b": "plain", "expect": "higher", "margin": 1.0}],
}
MODULES = {
    "nets_of_a_user": """
import sys
from torch import nn
NUMBER = 3
class Net(nn.Sequential):
    def __init__(self, width=4):
        super().__init__(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
class Raises(nn.Module):
    def __init__(self):
        raise ValueError("no such size")
class Exits(nn.Module):
    def __init__(self):
        sys.exit(3)
class LeavesInForward(Net):
    def forward(self, x):
        sys.exit("bye")
def nothing():
    return None
""",
    "nets_that_fail": "1 / 0\n",
    "nets_that_exit": "import sys\nsys.exit('goodbye')\n",
    "nets_of_no_python": "def (:\n",
}
BROKEN = {
    "done_text": ("DONE", "no JSON"),
    "done_list": ("DONE", "[1]"),
    "done_steps": ("DONE", '{"steps": "many"}'),
    "done_empty": ("DONE", ""),
    "done_evaluation": ("DONE", '{"steps": 60, "updates": 1, "evaluation": [3]}'),
    "versions_torn": ("versions.json", '[{"command": "pli'),
    "versions_number": ("versions.json", "7"),
    "versions_packages": ("versions.json", '[{"packages": "all"}]'),
    "metrics_torn": ("metrics.jsonl", '{"steps": 1, "upda\n{"steps": 2}\n'),
    "metrics_list": ("metrics.jsonl", "[1, 2]\n"),
    "metrics_keys": ("metrics.jsonl", '{"loss": 3}\n'),
    "metrics_text": ("metrics.jsonl", '{"frames": 1, "steps": 1, "updates": 1, "losses/td": "low"}\n'),
    "metrics_bytes": ("metrics.jsonl", "\udcff\udcfe\n"),
    "fork_list": ("fork.json", "[]"),
    "fork_types": ("fork.json", '{"parent": 3, "step": "x"}'),
    "config_torn": ("config.yaml", "agent: {name: dqn"),
    "config_empty": ("config.yaml", ""),
}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, a study, a card, a saved agent, and many files that are none of these."""
    root = tmp_path_factory.mktemp("bad")
    assert main(["train", "--run", str(root / "run"), *SMALL]) == 0
    _saved_things(root)
    for name, content in {"small.yaml": STUDY, "card.yaml": CARD, **_wrong_studies(), **_wrong_cards()}.items():
        (root / name).write_text(json.dumps(content))  # JSON is YAML too
    texts = {
        "FILE": "a file\n",
        "text.txt": "This is a text: and [no YAML.\n",
        "empty": "",
        "list.yaml": "[1, 2]\n",
        "twice.yaml": "steps: 1\nsteps: 2\n",
        "unknown_key.yaml": "agent: {name: dqn, learning_rate: 1}\n",
        "unknown_top.yaml": "total_timesteps: 5\n",
        "bad_value.yaml": "steps: many\n",
        "bad_gamma.yaml": "agent: {name: dqn, gamma: .nan}\nenv: CartPole-v1\n",
        "deep.yaml": "[" * 5000 + "]" * 5000,
        "bomb.yaml": "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in pairwise("abcdefghi")),
    }
    for name, text in texts.items():
        (root / name).write_text(text)
    for name, text in MODULES.items():
        (root / f"{name}.py").write_text(text)
    (root / "folder").mkdir()
    (root / "book" / "figures").mkdir(parents=True)
    (root / "book" / "figures" / "mine.png").write_bytes(b"mine")
    _torn_result(root / "card_results")
    for name, (file, text) in BROKEN.items():
        shutil.copytree(root / "run", root / "broken" / name, ignore=shutil.ignore_patterns("checkpoints", "replay"))
        (root / "broken" / name / file).write_bytes(text.encode(errors="surrogateescape"))
    return root


def _saved_things(root: Path) -> None:
    """An agent's file, other files of torch, and arrays."""
    content = Checkpoints.open(root / "run").load("agent")
    torch.save(content, root / "agent.pt")
    torch.save(content | {"agent": "rainbow"}, root / "rainbow.pt")
    torch.save({key: value for key, value in content.items() if key != "state"}, root / "half.pt")
    torch.save(content | {"observation": {"dtype": 3}}, root / "shapes.pt")
    whole = (root / "agent.pt").read_bytes()
    (root / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (root / "zip.pt").write_bytes(b"PK\x03\x04 and no more")
    torch.save({"w": torch.zeros(2)}, root / "tensors.pt")
    (root / "code.pt").write_bytes(pickle.dumps(Path("x")))
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), str(root / "script.pt"))
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    torch.save(net.state_dict(), root / "weights.pt")
    np.save(root / "states.npy", np.zeros((3, 4), np.float32))
    np.save(root / "wide.npy", np.zeros((3, 7), np.float32))
    np.save(root / "strings.npy", np.array(["a", "b"]))
    np.save(root / "objects.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    np.savez(root / "several.npz", a=np.zeros(2), b=np.zeros(2))


def _torn_result(folder: Path) -> None:
    """A card, and next to it a result that was not completely written."""
    folder.mkdir()
    (folder / "card.yaml").write_text(json.dumps(CARD))
    card = load_claim(folder / "card.yaml")
    file = result_file(card, card.arms["plain"], 0)
    file.parent.mkdir(parents=True)
    file.write_text('{"schema": 1, "segme')


def _wrong_studies() -> dict[str, Any]:
    changes: dict[str, dict[str, Any]] = {
        "unhashable": {"baseline": ["plain"]},
        "seeds": {"seeds": 1_000_000_000},
        "empty_arms": {"arms": {}},
        "newline": {"arms": {"plain": ["redo(tau=0.1,\nevery=1000)\n#;touch PWNED"]}},
        "unknown_flag": {"flags": {"stpes": 3}},
        "synonym": {"flags": {"agent.learning_rate": 1.0}},
        "spec": {"arms": {"plain": ["rdo"]}},
        "agent": {"agents": ["rainbow"]},
        "steps": {"flags": {"steps": "nan"}},
    }
    return {f"study_{name}.yaml": STUDY | change for name, change in changes.items()}


def _wrong_cards() -> dict[str, Any]:
    comparison, bed = CARD["comparisons"][0], CARD["testbed"]
    changes: dict[str, dict[str, Any]] = {
        "margin": {"comparisons": [comparison | {"margin": float("nan")}]},
        "arm": {"comparisons": [comparison | {"b": "plian"}]},
        "flag": {"testbed": bed | {"flags": bed["flags"] | {"stpes": 3}}},
        "measure": {"measures": {"x": {"read": "z"}}},
        "seeds": {"seeds": 0},
        "minutes": {"minutes": "long"},
    }
    return {f"card_{name}.yaml": CARD | change for name, change in changes.items()}


def snapshot(root: Path) -> dict[str, tuple[int, str]]:
    """Size and hash of every file below a folder, by name; folders have neither."""
    files = {str(p.relative_to(root)): p.read_bytes() if p.is_file() else b"" for p in sorted(root.rglob("*"))}
    return {name: (len(content), hashlib.sha256(content).hexdigest()) for name, content in files.items()}


@pytest.fixture
def sandbox(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(prepared)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # for the modules that are imported from this folder
    return prepared


# ------------------------------------------------------------------------------------------------ the tests


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Interrupt a block that hangs or has begun to work."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not refused within {seconds} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def wrong_with(code: Any, out: str, err: str, expected: list[str]) -> list[str]:
    """The differences between the output of a command and the expected error."""
    wrong = [] if code == 2 else [f"exit code {code}"]
    wrong += [f"printed {out!r}"] if out else []
    if not re.fullmatch(r"error: [^\n]+\n", err):
        wrong.append("not one line: " + repr(err if len(err) < 1500 else f"{err[:700]} ... {err[-700:]}"))
    return wrong + [f"{text!r} is not in {err!r}" for text in expected if text not in err]


# The table of `train` is longer than all others together.
@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=pytest.mark.full if name == "train" else ()) for name in TABLE]
)
def test_a_bad_line_gives_one_line_of_error_and_changes_no_file(
    command: str, sandbox: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before, complaints = snapshot(sandbox), []
    for line, expected in rows(command):
        capfd.readouterr()
        code: Any
        try:
            with at_most(SECONDS):
                code = main(line)
        except (Exception, SystemExit) as error:
            code = f"of {error!r}"
        wrong = wrong_with(code, *capfd.readouterr(), expected)
        after = snapshot(sandbox)
        if changed := sorted({name for name, _ in before.items() ^ after.items()}):
            wrong.append(f"changed {', '.join(changed)}")
            before = after
        complaints += [f"{shlex.join(line)[:120]}: {complaint}" for complaint in wrong]
    assert not complaints, f"{len(complaints)} complaints\n" + "\n".join(complaints)


def test_the_table_has_every_command_and_at_least_300_different_lines() -> None:
    lines = [tuple(line) for command in TABLE for line, _ in rows(command)]
    assert set(TABLE) == set(COMMANDS)
    assert len(lines) == len(set(lines)) >= 300
    assert all(text.strip() for command in TABLE for _, expected in rows(command) for text in expected)


PROCESSES = """
train --config ''
train --steps 0
train --run <surrogate>
train --learning-rate 1
train --env ALE/NoGame-v5
train --env ALE/Pong-v5 --env.sticky-actions 2
train --env Pendulum-v1 --agent sac --agent.dropout 2
train --agent sac --env CartPole-v1
train --run run --config run --agent.gamma 0.5
evaluate code.pt
evaluate script.pt
evaluate run --out folder
inspect run --monitors tandem
inspect weights.pt --module nets_that_exit:Net --input 4
fork run --at latest --with rdo
bench --rounds -1
sweep bomb.yaml
report broken/versions_packages --out report
claims list card_results/card.yaml
monitors unit
"""


@pytest.mark.full
def test_bad_lines_as_processes_print_only_the_error(sandbox: Path) -> None:
    """Twenty of the lines, as processes of their own that run at the same time."""
    before = snapshot(sandbox)
    table = {tuple(line): expected for command in TABLE for line, expected in rows(command)}
    lines = [arguments_of(line) for line in PROCESSES.strip().split("\n")]
    assert len(lines) == 20 and not [line for line in lines if tuple(line) not in table]
    commands = [Command(*line) for line in lines]
    complaints = []
    for line, command in zip(lines, commands, strict=True):
        code = command.wait(120)
        complaints += [f"{shlex.join(line)}: {c}" for c in wrong_with(code, "", command.printed(), table[tuple(line)])]
    assert not complaints, "\n".join(complaints)
    assert snapshot(sandbox) == before


# ------------------------------------------------------------------------------------------------ other errors


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("text.txt", "torch did not write it"),
        ("empty", "it is empty"),
        ("truncated.pt", "damaged or incomplete"),
        ("code.pt", "could run code"),
        ("script.pt", "TorchScript"),
        ("tensors.pt", "holds no agent"),
        ("half.pt", "its part 'state' is missing"),
        ("folder", "it is a folder"),
        ("shapes.pt", "does not describe a dqn"),
    ],
)
def test_a_file_without_an_agent_is_refused_with_a_message_of_pliant(file: str, message: str, sandbox: Path) -> None:
    with pytest.raises(BadFile, match=message) as caught:
        DQN.load(file)
    assert str(caught.value).startswith(file) and "weights_only" not in str(caught.value)


def test_an_agent_whose_state_lacks_a_part_is_refused(sandbox: Path, tmp_path: Path) -> None:
    content = torch.load("agent.pt", weights_only=True)
    del content["state"]["generator"]
    torch.save(content, tmp_path / "agent.pt")
    with pytest.raises(BadFile, match="no whole state of a dqn"):
        DQN.load(tmp_path / "agent.pt")
    with pytest.raises(FileNotFoundError):
        DQN.load(tmp_path / "gone.pt")


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    sandbox: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The answer of the system is replaced, since root can write to every folder."""
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)
    for line, flag in (
        (["evaluate", "run", "--episodes", "1000000"], "--out"),
        (["inspect", "run", "--json", "x.json"], "--json"),
        (["report", "run", "--out", "report"], "--out"),
        (["claims", "render", "card.yaml", "--out", "page"], "--out"),
        (["bench", "--only", "interventions", "--save"], "--save"),
    ):
        with at_most(SECONDS):
            assert main(line) == 2
        assert wrong_with(2, *capfd.readouterr(), [f"error: {flag} ", "no permission"]) == []


def test_an_error_of_the_system_during_writing_names_the_flag(tmp_path: Path) -> None:
    with (
        pytest.raises(BadInput, match=r"--out .*x\.json cannot be written: No space left"),
        outputs.written(tmp_path / "x.json", "--out"),
    ):
        raise OSError(28, "No space left on device")


def test_the_speed_tables_are_refused_at_once_without_stable_baselines3(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = ["--only pong needs Stable-Baselines3, and OpenCV", "pliant[peers]", "--only memory checkpoint"]
    for missing in ("stable_baselines3", "cv2"):
        monkeypatch.setattr("pliant.scripts.bench.find_spec", lambda name, absent=missing: name != absent or None)
        assert main(["bench", "--only", "pong"]) == 2
        assert wrong_with(2, *capfd.readouterr(), expected) == []


def test_a_failed_measurement_gives_one_line_of_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)  # the record of what was measured is in the present folder
    failed = subprocess.CompletedProcess([], 3, "", "Traceback\n  somewhere\nMemoryError: too much\n")
    monkeypatch.setattr(bench.subprocess, "run", lambda *_, **__: failed)
    monkeypatch.setattr("pliant.scripts.bench.find_spec", lambda name: True)
    assert main(["bench", "--only", "pong"]) == 1
    line = r"error: .*measure pliant pong.* ended with exit code 3: MemoryError: too much\n"
    assert re.fullmatch(line, capfd.readouterr().err)


def test_an_error_with_any_text_is_one_printable_line(capfd: pytest.CaptureFixture[str]) -> None:
    def fails() -> int:
        raise BadInput("a\nb\x1b[31m \udcff " + "long " * 10_000)

    assert exit_code(fails) == 2
    error = capfd.readouterr().err
    assert error.startswith(r"error: a b\x1b[31m \udcff long") and error.count("\n") == 1 and len(error) < 2_100


def test_a_report_is_overwritten_and_other_files_are_kept(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["report", str(prepared / "run"), "--out", "report", "--no-flops"]) == 0
    (tmp_path / "report" / "report.html").unlink()
    before = snapshot(tmp_path)
    assert main(["report", str(prepared / "run"), "--out", "report", "--no-flops"]) == 2
    assert snapshot(tmp_path) == before


def test_every_suggested_setting_is_a_setting_of_an_agent_or_environment() -> None:
    known = {field.name for field in fields(RunConfig)}
    for agent in AGENTS:
        known |= {f"agent.{name}" for name, _ in flat_fields(defaults(agent, "CartPole-v1").agent_config)}
    known |= {f"env.{name}" for name, _ in flat_fields(defaults("dqn", "CartPole-v1").env_config)}
    assert set(SYNONYMS) <= known
    assert not [name for names in SYNONYMS.values() for name in names.split() if name in known]
