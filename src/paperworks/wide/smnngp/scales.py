"""What is known of the scale s of y | s ~ N(0, s·K): a law, its evidence and its posterior.

With q = yᵀK⁻¹y of n targets everything there is to know of y is (q, n) and |K|. A law offers
`log_marginal(q, n)`, log ∫ N(y; 0, s·K) H(ds) but for −½ log|K|, and `posterior(q, n)`, the law
of s given y. That one also has `mean`, E[s], `quantile(p)`, of √s·z with z ~ N(0, 1), and `sample`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from scipy import optimize, special, stats
from torch import Tensor
from torch.distributions import Distribution, InverseGamma

from paperworks.wide.smnngp.distributions import Delta, check_prior, draw

Prior = Distribution | tuple[float, float] | str
"""A distribution of s, the pair (α, β) of an inverse gamma, or "ml" for its best value."""


class ScalePrior(Protocol):
    """What is known of s before data."""

    def log_marginal(self, q: Tensor, n: int) -> Tensor: ...

    def posterior(self, q: Tensor, n: int) -> ScaleLaw: ...


class ScaleLaw(ScalePrior, Protocol):
    """What is known of s, in a form to compute with."""

    @property
    def mean(self) -> float: ...

    def quantile(self, p: float) -> float: ...

    def sample(self, number: int, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class InverseGammaLaw:
    """s ~ InverseGamma(α, β): everything in closed form, t with 2α degrees of freedom."""

    alpha: float
    beta: float

    @property
    def mean(self) -> float:
        return self.beta / (self.alpha - 1) if self.alpha > 1 else math.inf

    def log_marginal(self, q: Tensor, n: int) -> Tensor:
        a, b = self.alpha, self.beta
        constant = math.lgamma(a + n / 2) - math.lgamma(a) - n / 2 * math.log(2 * math.pi * b)
        return constant - (a + n / 2) * torch.log1p(q / (2 * b))

    def posterior(self, q: Tensor, n: int) -> InverseGammaLaw:
        return InverseGammaLaw(self.alpha + n / 2, self.beta + q.item() / 2)

    def quantile(self, p: float) -> float:
        return float(stats.t.ppf(p, 2 * self.alpha)) * math.sqrt(self.beta / self.alpha)

    def sample(self, number: int, generator: torch.Generator) -> Tensor:
        alpha, beta = torch.tensor([self.alpha, self.beta], dtype=torch.float64)
        return draw(InverseGamma(alpha, beta), number, generator)


@dataclass(frozen=True)
class WeightedLaw:
    """Values s_j with weights w_j."""

    s: Tensor
    log_weight: Tensor

    @property
    def mean(self) -> float:
        return (self.log_weight.exp() @ self.s).item()

    def log_marginal(self, q: Tensor, n: int) -> Tensor:
        return (self.log_weight + log_normal(q[..., None], self.s, n)).logsumexp(-1)

    def posterior(self, q: Tensor, n: int) -> WeightedLaw:
        log_weight = self.log_weight + log_normal(q, self.s, n)
        return WeightedLaw(self.s, log_weight.log_softmax(-1))

    def quantile(self, p: float) -> float:
        weight, deviation = self.log_weight.exp().numpy(), self.s.sqrt().numpy()
        reach = float(stats.norm.ppf(p)) * deviation
        low, high = float(reach.min()), float(reach.max())
        if low == high:
            return low
        return optimize.brentq(
            lambda x: weight @ stats.norm.cdf(x / deviation) - p,
            low,
            high,
            xtol=1e-12 * (high - low),
        )

    def sample(self, number: int, generator: torch.Generator) -> Tensor:
        weight = self.log_weight.exp()
        return self.s[torch.multinomial(weight, number, replacement=True, generator=generator)]


@dataclass(frozen=True)
class ImportancePosterior(WeightedLaw):
    """Weighted draws, that are drawn anew for a density.

    Far from its mean a prediction is decided by scales that few draws of the posterior have. With
    q′ of k more targets its density is the ratio of two evidences, each with draws of its own:
    p(q′ | q) = p(q + q′, n + k)/p(q, n).
    """

    prior: ImportanceLaw
    q: Tensor
    n: int

    def log_marginal(self, q: Tensor, n: int) -> Tensor:
        both = self.prior.log_marginal(self.q + q, self.n + n)
        return both - self.prior.log_marginal(self.q, self.n)


class BestScale:
    """No prior: s is q/n, where the likelihood is largest (and the law of y no density)."""

    def log_marginal(self, q: Tensor, n: int) -> Tensor:
        s = _positive(q) / n
        return -n / 2 * (1 + (2 * math.pi * s).log())

    def posterior(self, q: Tensor, n: int) -> WeightedLaw:
        return WeightedLaw(_positive(q).reshape(1) / n, torch.zeros(1, dtype=torch.float64))


class ImportanceLaw:
    """Any prior H, by importance sampling: w_j ∝ N(y; 0, s_j K) H(s_j)/p(s_j), s_j ~ p.

    The official code draws from p = H, of which few draws are left when n is large. Here half of
    them come from H and half from the inverse gamma (n/2, q/2), to which the likelihood is
    proportional but for a factor of s; p is that mixture. The latter half lie at its quantiles, so
    that the evidence is smooth in q.
    """

    def __init__(self, prior: Distribution, num_draws: int, seed: int) -> None:
        self.prior = prior
        self.half = -(-num_draws // 2)
        self.from_prior = draw(prior, self.half, torch.Generator().manual_seed(seed))
        if self._log_density(self.from_prior).isnan().any():
            raise ValueError("prior gives a density of NaN at its own draws")

    def log_marginal(self, q: Tensor, n: int) -> Tensor:
        return self.weighted(q, n)[1].logsumexp(-1)

    def posterior(self, q: Tensor, n: int) -> ImportancePosterior:
        s, log_weight = self.weighted(q, n)
        return ImportancePosterior(s, log_weight.log_softmax(-1), self, q, n)

    def weighted(self, q: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """s_j, and log N(y; 0, s_j K) H(s_j)/(J p(s_j)), both (..., J) for q (...)."""
        half_q = _positive(q)[..., None] / 2
        level = (np.arange(self.half) + 0.5) / self.half
        gamma = torch.from_numpy(special.gammaincinv(n / 2, level).clip(1e-300))
        s = torch.cat([self.from_prior.expand(*half_q.shape[:-1], -1), half_q / gamma], -1)
        log_h = self._log_density(s)
        log_inverse_gamma = (
            n / 2 * half_q.log() - math.lgamma(n / 2) - (n / 2 + 1) * s.log() - half_q / s
        )
        log_p = torch.logaddexp(log_h, log_inverse_gamma) - math.log(2)
        log_weight = log_normal(2 * half_q, s, n) + log_h - log_p
        return s, log_weight - math.log(s.shape[-1])

    def _log_density(self, s: Tensor) -> Tensor:
        """log H, −∞ outside of the support of the prior."""
        inside = self.prior.support.check(s)  # type: ignore[union-attr]
        value = self.prior.log_prob(torch.where(inside, s, self.from_prior[0]))
        return torch.where(inside, value.double(), -math.inf)


def log_normal(q: Tensor, s: Tensor, n: int) -> Tensor:
    """log N(y; 0, s·K) but for −½ log|K|, with q = yᵀK⁻¹y."""
    return -q / (2 * s) - n / 2 * (2 * math.pi * s).log()


def inverse_gamma(pair: tuple[float, float]) -> InverseGamma:
    """InverseGamma(α, β), in float64.

    Raises:
        ValueError: not two positive numbers.
    """
    values = np.asarray(pair, dtype=np.float64)
    if values.shape != (2,) or not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"prior: alpha and beta must be positive, got {pair}")
    alpha, beta = torch.from_numpy(values)
    return InverseGamma(alpha, beta)


def as_distribution(prior: Prior) -> Distribution:
    """A prior as a distribution of one number; a pair is the inverse gamma with these α, β."""
    if isinstance(prior, tuple | list):
        return inverse_gamma(prior)
    check_prior(prior)  # type: ignore[arg-type]
    return prior  # type: ignore[return-value]


def law_of(prior: Prior, num_draws: int, seed: int) -> ScalePrior:
    """What a prior says about s."""
    if isinstance(prior, str):
        if prior != "ml":
            raise ValueError(f'prior must be a distribution, a pair or "ml", got {prior!r}')
        return BestScale()
    distribution = as_distribution(prior)
    if isinstance(distribution, InverseGamma):
        return InverseGammaLaw(distribution.concentration.item(), distribution.rate.item())
    if isinstance(distribution, Delta):
        s = distribution.value.double().reshape(1)
        return WeightedLaw(s, torch.zeros(1, dtype=torch.float64))
    return ImportanceLaw(distribution, num_draws, seed)


def _positive(q: Tensor) -> Tensor:
    """Targets that are all zero leave q = 0, where a scale has no best value."""
    return q.clamp(min=1e-12)
