"""What is done to agents so that they keep learning. The protocol is that of `pliant.agents.hooks`."""

from ..agents.hooks import At, Clock, Compose, Every, Intervention, Sampling, Update, When
from .adaptive_replay_ratio import AdaptiveReplayRatio
from .bbf import BBF
from .continual_backprop import ContinualBackprop
from .hare_tortoise import HareTortoise
from .layer_norm import LayerNorm
from .plasticity_injection import PlasticityInjection
from .random_shift import RandomShift
from .redo import ReDo
from .regrama import ReGraMa
from .replay_ratio import ReplayRatio
from .reset import Reset
from .self_normalized_reset import SelfNormalizedReset
from .shrink_perturb import ShrinkPerturb
from .value_losses import C51, MSE, HLGauss, Huber, Quantile, Symlog, TwoHot
from .value_mapping import ValueMapping

INTERVENTIONS: dict[str, type[Intervention]] = {
    kind.name: kind
    for kind in (
        C51, MSE, AdaptiveReplayRatio, BBF, ContinualBackprop, HareTortoise, HLGauss, Huber, LayerNorm,
        PlasticityInjection, Quantile, RandomShift, ReDo, ReGraMa, ReplayRatio, Reset, SelfNormalizedReset,
        ShrinkPerturb, Symlog, TwoHot, ValueMapping,
    )
}  # fmt: skip
"""Every intervention by the word that names it in a sentence."""

from .elsewhere import Learner, Plasticity, attach, attachable  # noqa: E402  (reads the list above)
from .watch import MONITORS, watch  # noqa: E402

__all__ = [
    "INTERVENTIONS", "MONITORS", "At", "Clock", "Compose", "Every", "Intervention", "Learner", "Plasticity", "Sampling",
    "Update", "When", "attach", "attachable", "watch",
]  # fmt: skip
