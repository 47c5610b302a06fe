"""Hamiltonian Monte Carlo with many chains in one tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

LogProb = Callable[[Tensor], Tensor]
"""Unnormalised log density of each row: (chains, d) to (chains,)."""

_JITTER = 0.2
"""Relative range of random step sizes: no trajectory closes into the period of a mode."""


class HMCResult(NamedTuple):
    """What `hamiltonian_monte_carlo` returns.

    Attributes:
        samples: states after the warm-up, or what `keep` made of them, (num_samples, chains, ...).
        acceptance: mean acceptance probability of each chain after the warm-up, (chains,).
        step_size: step size of each chain that the warm-up ended with, (chains,).
    """

    samples: Tensor
    acceptance: Tensor
    step_size: Tensor


def hamiltonian_monte_carlo(
    log_prob: LogProb,
    initial: Tensor,
    *,
    num_samples: int,
    warmup: int,
    step_size: float = 0.1,
    num_steps: int = 10,
    target_acceptance: float = 0.8,
    shared: bool = True,
    keep: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> HMCResult:
    """Samples of a differentiable density by Hamiltonian Monte Carlo, many chains at once.

    Each chain follows H(q, p) = −log_prob(q) + ‖p‖²/2, p ~ N(0, I), for `num_steps` leapfrog steps
    and accepts the end with probability min(1, e^{−ΔH}). The warm-up adapts the step size by dual
    averaging; after it, step sizes are drawn within ±20 % anew for each trajectory. Reach for it
    when one evaluation serves a whole batch of chains, and in coordinates in which the target has
    about one scale: whiten a Gaussian prior first.

    Args:
        log_prob: unnormalised log density, (chains, d) to (chains,); row by row, differentiable.
            −∞ is outside the support; there, and where it is NaN, a trajectory is rejected.
        initial: starting points, (chains, d), of a finite log density; dtype and device are used.
        num_samples: states kept of each chain.
        warmup: trajectories before that, which adapt the step size.
        step_size: what the adaptation starts from; used as it is with `warmup=0`.
        num_steps: leapfrog steps of a trajectory.
        target_acceptance: mean acceptance probability that the adaptation aims at.
        shared: one step size for all chains, adapted to their mean acceptance, which is much less
            noisy. False gives each chain its own: for chains with different targets (one posterior
            a row), and with a longer warm-up.
        keep: a function of the states (chains, d) to store instead of them, (chains, ...).
        generator: source of momenta, step sizes and decisions, on the device of `initial`.

    Raises:
        TypeError: `initial` is not a floating-point tensor.
        ValueError: a wrong shape or number, or a log density that does not have one value a
            chain, is not finite at `initial`, or has no gradient.

    Sources: Neal 2011 (arXiv 1206.1901); dual averaging of Hoffman and Gelman 2014
    (arXiv 1111.4246, Algorithm 5, with its constants).

    >>> generator = torch.Generator().manual_seed(0)
    >>> samples, acceptance, _ = hamiltonian_monte_carlo(
    ...     lambda q: -((q - 3) ** 2).sum(1) / 2,
    ...     torch.zeros(64, 2),
    ...     num_samples=200,
    ...     warmup=100,
    ...     generator=generator,
    ... )
    >>> samples.shape, round(samples.mean().item(), 1), round(samples.std().item(), 1)
    (torch.Size([200, 64, 2]), 3.0, 1.0)
    """
    _check(initial, num_samples, warmup, step_size, num_steps, target_acceptance)
    chains = len(initial)
    q = initial.detach().clone()
    value, slope = _start(log_prob, q)
    adaptation = _DualAveraging(q.new_full((chains,), step_size), target_acceptance)
    acceptance = q.new_zeros(chains)
    samples = []
    for iteration in range(warmup + num_samples):
        warm = iteration >= warmup
        step = adaptation.average if warm and warmup else adaptation.step_size
        p = torch.empty_like(q).normal_(generator=generator)
        wobble = torch.empty_like(value).uniform_(generator=generator)
        uniform = torch.empty_like(value).uniform_(generator=generator)
        epsilon = step * (1 + _JITTER * (2 * wobble - 1))
        new_q, new_p, new_value, new_slope = _leapfrog(log_prob, q, p, slope, epsilon, num_steps)
        change = new_value - value - (new_p.square() - p.square()).sum(1) / 2
        probability = change.nan_to_num(nan=-math.inf).exp().clamp(max=1)
        accepted = uniform < probability
        q = torch.where(accepted[:, None], new_q, q)
        slope = torch.where(accepted[:, None], new_slope, slope)
        value = torch.where(accepted, new_value, value)
        if warm:
            acceptance += probability / num_samples
            samples.append(q if keep is None else keep(q))
        else:
            adaptation.update(probability.mean().expand(chains) if shared else probability)
    return HMCResult(
        torch.stack(samples), acceptance, adaptation.average if warmup else adaptation.step_size
    )


class _DualAveraging:
    """Step sizes at which the acceptance probability is on average the one wanted."""

    def __init__(self, step_size: Tensor, target: float) -> None:
        self.step_size = step_size
        self.average = torch.ones_like(step_size)
        self.centre = (10 * step_size).log()
        self.target = target
        self.excess = torch.zeros_like(step_size)
        self.count = 0

    def update(self, probability: Tensor) -> None:
        self.count += 1
        t = self.count
        self.excess += (self.target - probability - self.excess) / (t + 10)
        log_step = self.centre - math.sqrt(t) / 0.05 * self.excess
        weight = t**-0.75
        self.average = (weight * log_step + (1 - weight) * self.average.log()).exp()
        self.step_size = log_step.exp()


def _leapfrog(
    log_prob: LogProb, q: Tensor, p: Tensor, slope: Tensor, step: Tensor, num_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The end of each trajectory: position, momentum, log density and its gradient."""
    epsilon = step[:, None]
    p = p + epsilon / 2 * slope
    for i in range(num_steps):
        q = q + epsilon * p
        value, slope = _value_and_slope(log_prob, q)
        p = p + (epsilon if i < num_steps - 1 else epsilon / 2) * slope
    return q, p, value, slope


def _value_and_slope(log_prob: LogProb, q: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        q = q.detach().requires_grad_()
        value = log_prob(q)
        (slope,) = torch.autograd.grad(value.sum(), q)
    return value.detach(), slope


def _start(log_prob: LogProb, q: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        value = log_prob(q.clone().requires_grad_())
    if not isinstance(value, Tensor) or value.shape != q.shape[:1]:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"log_prob must return one value a chain, shape ({len(q)},), got {got}")
    wrong = (~value.isfinite()).nonzero().flatten()
    if len(wrong):
        at = int(wrong[0])
        raise ValueError(
            f"log_prob must be finite at the initial states, got {value[at].item()} in chain {at}"
        )
    if not value.requires_grad:
        raise ValueError("log_prob must be differentiable in the states: it has no gradient")
    return _value_and_slope(log_prob, q)


def _check(
    initial: Tensor,
    num_samples: int,
    warmup: int,
    step_size: float,
    num_steps: int,
    target_acceptance: float,
) -> None:
    if not isinstance(initial, Tensor) or not initial.is_floating_point():
        got = initial.dtype if isinstance(initial, Tensor) else type(initial).__name__
        raise TypeError(f"initial must be a floating-point tensor, got {got}")
    if initial.ndim != 2 or 0 in initial.shape:
        raise ValueError(f"initial must have shape (chains, d), got {tuple(initial.shape)}")
    for name, number, least in (
        ("num_samples", num_samples, 1), ("warmup", warmup, 0), ("num_steps", num_steps, 1),
    ):  # fmt: skip
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{name} must be an integer of at least {least}, got {number!r}")
    if not 0 < step_size < math.inf:
        raise ValueError(f"step_size must be positive and finite, got {step_size}")
    if not 0 < target_acceptance < 1:
        raise ValueError(f"target_acceptance must lie between 0 and 1, got {target_acceptance}")


__all__ = ["HMCResult", "hamiltonian_monte_carlo"]
