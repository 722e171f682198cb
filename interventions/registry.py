"""Every intervention by name. All laws (`tests/laws`) run on every method in this list."""

from __future__ import annotations

from ..agents.hooks import Intervention
from .activation import Activation
from .adaptive_replay_ratio import AdaptiveReplayRatio
from .bbf import BBF
from .chain import Chain
from .continual_backprop import ContinualBackprop
from .crelu import CReLU
from .fourier import Fourier
from .fresh_agent import FreshAgent
from .hare_tortoise import HareTortoise
from .heavy_priming import HeavyPriming
from .l2 import L2
from .l2_init import L2Init
from .layer_norm import LayerNorm
from .linear import Linear
from .matched_random import MatchedRandom
from .parseval import Parseval
from .plasticity_injection import PlasticityInjection
from .random_shift import RandomShift
from .redo import ReDo
from .regrama import ReGraMa
from .replay_ratio import ReplayRatio
from .reset import Reset
from .reset_optimizer import ResetOptimizer
from .reset_target import ResetTarget
from .self_normalized_reset import SelfNormalizedReset
from .shrink_perturb import ShrinkPerturb
from .spectral import Spectral
from .value_losses import C51, MSE, HLGauss, Huber, Quantile, Symlog, TwoHot
from .value_mapping import ValueMapping
from .wasserstein import Wasserstein

INTERVENTIONS: dict[str, type[Intervention]] = {
    kind.name: kind
    for kind in (
        C51, L2, MSE, Activation, AdaptiveReplayRatio, BBF, Chain, ContinualBackprop, CReLU, Fourier, FreshAgent,
        HareTortoise, HeavyPriming, HLGauss, Huber, L2Init, LayerNorm, Linear, MatchedRandom, Parseval,
        PlasticityInjection, Quantile, RandomShift, ReDo, ReGraMa, ReplayRatio, Reset, ResetOptimizer, ResetTarget,
        SelfNormalizedReset, ShrinkPerturb, Spectral, Symlog, TwoHot, ValueMapping, Wasserstein,
    )
}  # fmt: skip
"""Every intervention by its name in an intervention spec."""

MatchedRandom.registry = INTERVENTIONS
