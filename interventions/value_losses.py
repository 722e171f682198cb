"""Value losses. Each intervention selects one of the heads in `pliant.agents.heads`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from ..agents.heads import Bins, HeadConfig, Quantiles
from ..agents.hooks import Intervention
from ..common.ranges import Number, Positive


class ValueLoss(Intervention):
    """Base of all value losses: sets the agent's value loss to the one of this name, with these parameters."""

    effect = "configuration"
    reserves: tuple[str, ...] = ("value_loss",)

    def __init__(self, **parameters: Any) -> None:
        super().__init__()
        HeadConfig(**parameters)  # checks the parameters now, so that the error names this spec
        self.parameters_of_head = parameters

    def configure(self, config: Any) -> Any:
        if not hasattr(config, "value_loss"):
            raise ValueError(f"{self.name}: this agent has no value loss")
        return replace(config, value_loss=self.name, head=replace(config.head, **self.parameters_of_head))


class MSE(ValueLoss):
    """Regress values on their targets with half the squared error.

    When: The default of SAC; in other agents a baseline whose gradients grow with the error without bound.
    Paper: Haarnoja et al. 2018, "Soft Actor-Critic Algorithms and Applications", 1812.05905, eq. 5.
    Differs: Many implementations omit the factor 1/2, so their gradients are twice as large.
    Excludes: every other value loss.
    """

    name = "mse"
    example: ClassVar[str] = "mse"

    def __init__(self) -> None:
        super().__init__()


class Huber(ValueLoss):
    """Regress values on their targets with an error that is squared near zero and linear beyond.

    When: The default of DQN; gradients are bounded, whatever the rewards.
    Paper: Mnih et al. 2015, "Human-level control through deep reinforcement learning", Nature 518, methods: the error
        is clipped to [-1, 1], which is delta = 1.
    Differs: No known difference.
    Excludes: every other value loss.

    Args:
        delta: Error at which the loss changes from quadratic to linear.
    """

    name = "huber"
    example: ClassVar[str] = "huber"

    def __init__(self, delta: Positive = 1.0) -> None:
        super().__init__(delta=delta)


class C51(ValueLoss):
    """Learn the distribution of returns on fixed atoms, by cross-entropy with its projected Bellman backup.

    When: Discrete actions and clipped rewards; part of Rainbow and of BBF.
    Paper: Bellemare, Dabney & Munos 2017, "A Distributional Perspective on Reinforcement Learning", 1707.06887,
        algorithm 1.
    Differs: Probabilities are never clamped before the logarithm. Public code clamps them, which removes the gradient
        of probabilities near zero. Priorities are errors of the mean, while Rainbow uses the KL divergence. In SAC the
        critic with the smallest mean provides the whole distribution.
    Excludes: every other value loss.

    Args:
        bins: Number of atoms.
        low: Lowest atom, in units of (discounted, clipped) return.
        high: Highest atom.
    """

    name = "c51"
    example: ClassVar[str] = "c51(bins=11)"

    def __init__(self, bins: Bins = 51, low: Number = -10.0, high: Number = 10.0) -> None:
        super().__init__(bins=bins, low=low, high=high)


class TwoHot(ValueLoss):
    """Learn values by classification, with a target that is split between its two nearest bins.

    When: As the control of hl_gauss without smoothing; with symlog, for returns of unknown or varying size.
    Paper: Hafner et al. 2023, "Mastering Diverse Domains through World Models", 2301.04104, "Robust predictions".
        Farebrother et al. 2024, "Stop Regressing", 2403.03950, section 3.1. DreamerV3's is `two_hot(bins=255, low=-20,
        high=20, symlog=True)`.
    Differs: DreamerV3 initialises the output layer with zeros. This is not done here, so the size of initial values is
        the spread of the outputs times the largest centre: with symlog keep the support as small as the returns allow.
    Excludes: every other value loss.

    Args:
        bins: Number of bins; with symlog an odd number has a bin at zero.
        low: Centre of the lowest bin, in units of (discounted, clipped) return; with symlog in units of its symlog.
        high: Centre of the highest bin, in the same units.
        symlog: Space the centres evenly in symlog.
    """

    name = "two_hot"
    example: ClassVar[str] = "two_hot(bins=11)"

    def __init__(self, bins: Bins = 51, low: Number = -10.0, high: Number = 10.0, symlog: bool = False) -> None:
        super().__init__(bins=bins, low=low, high=high, symlog=symlog)


class HLGauss(ValueLoss):
    """Learn values by classification, with a target that is a Gaussian integrated over histogram bins.

    When: Large networks, noisy or changing targets; the best of the losses that Farebrother et al. compare.
    Paper: Imani & White 2018, "Improving Regression Performance with Distributional Losses", 1806.04613. Farebrother et
        al. 2024, "Stop Regressing: Training Value Functions via Classification for Scalable Deep RL", 2403.03950,
        section 3.1.
    Differs: This intervention changes only the loss, so that losses can be compared at equal settings. The paper's
        Atari runs have a learning rate of 2.5e-4 and an eps of 3.125e-4 (tables B.2 and B.3), while DQN's preset has
        6.25e-5 and 1.5e-4: add `--agent.optimizer.lr 2.5e-4 --agent.optimizer.eps 3.125e-4` to use theirs. Near the
        ends of the support the Gaussian is cut off and values are biased inwards, as in the paper: a support of at
        least 1.1 times the range of returns avoids it.
    Excludes: every other value loss.

    Args:
        bins: Number of bins.
        low: Lower end of the support, in units of (discounted, clipped) return.
        high: Upper end of the support.
        sigma: Standard deviation of the Gaussian, in bin widths.
    """

    name = "hl_gauss"
    example: ClassVar[str] = "hl_gauss(bins=11)"

    def __init__(self, bins: Bins = 51, low: Number = -10.0, high: Number = 10.0, sigma: Positive = 0.75) -> None:
        super().__init__(bins=bins, low=low, high=high, sigma=sigma)


class Quantile(ValueLoss):
    """Learn quantiles of the distribution of returns by quantile regression.

    When: A distribution of returns is needed and its range is not known.
    Paper: Dabney et al. 2018, "Distributional Reinforcement Learning with Quantile Regression", 1710.10044, eq. 10 and
        algorithm 1.
    Differs: No known difference. The loss is summed over predicted and averaged over target quantiles, so more
        quantiles mean larger gradients. In SAC the critic with the smallest mean provides all quantiles.
    Excludes: every other value loss.

    Args:
        quantiles: Number of quantiles; cost and memory of the loss grow with its square.
        delta: Error at which the loss changes from quadratic to linear (kappa).
    """

    name = "quantile"
    example: ClassVar[str] = "quantile(quantiles=8)"

    def __init__(self, quantiles: Quantiles = 200, delta: Positive = 1.0) -> None:
        super().__init__(quantiles=quantiles, delta=delta)


class Symlog(ValueLoss):
    """Regress the symmetric logarithm of values with half the squared error.

    When: Rewards of very different size and little noise. With noise the mean of logarithms is below the logarithm of
        the mean; `two_hot(symlog=True)` does not have that bias.
    Paper: Hafner et al. 2023, "Mastering Diverse Domains through World Models", 2301.04104, "Robust predictions".
    Differs: In the paper it reconstructs observations, and values are learnt by two-hot.
    Excludes: every other value loss.
    """

    name = "symlog"
    example: ClassVar[str] = "symlog"

    def __init__(self) -> None:
        super().__init__()
