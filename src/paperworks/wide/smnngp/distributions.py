"""Heavy tails as torch distributions: priors of a scale, and what it makes of a Gaussian vector."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, InverseGamma, MultivariateNormal, constraints
from torch.distributions.utils import broadcast_all

from paperworks.common.generators import following
from paperworks.wide.kernels import psd_safe_cholesky


class BurrXII(Distribution):
    """Positive numbers with a power tail: p(x) = c d x^{c−1} (1 + x^c)^{−d−1}.

    As a prior of the scale s = σ_v² its tail x^{−cd−1} makes outputs heavy-tailed, like the inverse
    gamma's does, but the mixture has no closed form.

    Args:
        c, d: positive shapes. The median is (2^{1/d} − 1)^{1/c}; the mean is finite for cd > 1.

    Source: a prior of arXiv 2107.01408.

    >>> burr = BurrXII(2.0, 1.0)
    >>> burr.cdf(torch.tensor(1.0)).item(), round(burr.mean.item(), 4)
    (0.5, 1.5708)
    """

    arg_constraints = {"c": constraints.positive, "d": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(
        self, c: Tensor | float, d: Tensor | float, validate_args: bool | None = None
    ) -> None:
        self.c, self.d = broadcast_all(c, d)
        super().__init__(self.c.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> BurrXII:
        return BurrXII(self.c.expand(batch_shape), self.d.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        """d·B(d − 1/c, 1 + 1/c), infinite where cd ≤ 1."""
        first, second = self.d - 1 / self.c, 1 + 1 / self.c
        log_beta = first.lgamma() + second.lgamma() - (first + second).lgamma()
        return torch.where(first > 0, self.d * log_beta.exp(), math.inf)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return self.icdf(torch.rand(shape, dtype=self.c.dtype, device=self.c.device))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_power = self.c * value.log()  # softplus: log(1 + x^c) that never overflows
        tail = (self.d + 1) * torch.nn.functional.softplus(log_power)
        return self.c.log() + self.d.log() + log_power - value.log() - tail

    def cdf(self, value: Tensor) -> Tensor:
        """1 − (1 + x^c)^{−d}."""
        return -torch.expm1(-self.d * torch.nn.functional.softplus(self.c * value.log()))

    def icdf(self, value: Tensor) -> Tensor:
        """((1 − u)^{−1/d} − 1)^{1/c}."""
        return torch.expm1(-torch.log1p(-value) / self.d) ** (1 / self.c)


class Delta(Distribution):
    """All mass at one positive number: the scale of an ordinary Gaussian process.

    Args:
        value: where it is.

    >>> Delta(2.0).sample((2,))
    tensor([2., 2.])
    """

    arg_constraints = {"value": constraints.positive}
    support = constraints.positive
    has_rsample = True

    def __init__(self, value: Tensor | float, validate_args: bool | None = None) -> None:
        (self.value,) = broadcast_all(value)
        super().__init__(self.value.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Delta:
        return Delta(self.value.expand(batch_shape), validate_args=False)

    @property
    def mean(self) -> Tensor:
        return self.value

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        return self.value.expand(self._extended_shape(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """0 at the value, −∞ elsewhere: with respect to the point mass itself."""
        return torch.where(value == self.value, 0.0, -math.inf)


class GaussianScaleMixture(Distribution):
    """A Gaussian vector with one random scale for all its entries: Σ_j w_j N(loc, s_j Σ).

    Entries that are uncorrelated are still dependent: where one is far out, so are the others.

    Args:
        loc: shape (k,).
        scale_tril: Cholesky factor of Σ, shape (k, k).
        scales: s_j, positive, shape (J,).
        log_weights: logarithms of w_j up to a constant, shape (J,); equal ones when left out.

    >>> eye = torch.eye(2)
    >>> mixture = GaussianScaleMixture(torch.zeros(2), eye, torch.tensor([1.0, 4.0]))
    >>> mixture.variance, round(mixture.log_prob(torch.zeros(2)).item(), 4)
    (tensor([2.5000, 2.5000]), -2.3079)
    """

    arg_constraints = {
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
        "scales": constraints.independent(constraints.positive, 1),
        "log_weights": constraints.real_vector,
    }
    support = constraints.real_vector

    def __init__(
        self,
        loc: Tensor,
        scale_tril: Tensor,
        scales: Tensor,
        log_weights: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _check_factor(loc, scale_tril)
        self.loc, self.scale_tril, self.scales = loc, scale_tril, scales
        logits = torch.zeros_like(scales) if log_weights is None else log_weights
        self.log_weights = logits.log_softmax(-1)
        super().__init__(event_shape=loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        return self.loc

    @property
    def variance(self) -> Tensor:
        return (self.log_weights.exp() @ self.scales) * self.scale_tril.square().sum(-1)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Draws of shape sample_shape + (k,), one scale each, from a generator if one is given."""
        number = math.prod(sample_shape)
        chosen = torch.multinomial(
            self.log_weights.exp(), max(number, 1), replacement=True, generator=generator
        )[:number]
        draws = _scaled_normals(self.loc, self.scale_tril, self.scales[chosen], generator)
        return draws.reshape(*sample_shape, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k, q = len(self.loc), _mahalanobis(value - self.loc, self.scale_tril)[..., None]
        log_normal = -q / (2 * self.scales) - (k / 2) * (2 * math.pi * self.scales).log()
        mixed = (self.log_weights + log_normal).logsumexp(-1)
        return mixed - self.scale_tril.diagonal().log().sum()


class MultivariateStudentT(Distribution):
    """Multivariate t: a Gaussian vector with one inverse gamma scale for all its entries.

    x = loc + √s L z with s ~ InverseGamma(ν/2, ν/2) drawn once a vector and z ~ N(0, I);
    p(x) = Γ((ν+k)/2)/(Γ(ν/2)(νπ)^{k/2}|L|) (1 + δ/ν)^{−(ν+k)/2}, δ = ‖L⁻¹(x − loc)‖².
    Independent univariate t's mixed by L are another law: their tails are not joint.

    Args:
        df: degrees of freedom ν, a positive number.
        loc: shape (k,).
        scale_tril: Cholesky factor L of the scale matrix, shape (k, k). The covariance is
            ν/(ν−2)·LLᵀ.

    Raises:
        ValueError: shapes that do not fit, or a df that is not positive.

    >>> t = MultivariateStudentT(4.0, torch.zeros(2), torch.eye(2))
    >>> t.variance, round(t.log_prob(torch.zeros(2)).exp().item(), 5)  # 1/2π
    (tensor([2., 2.]), 0.15915)
    """

    arg_constraints = {
        "df": constraints.positive,
        "loc": constraints.real_vector,
        "scale_tril": constraints.lower_cholesky,
    }
    support = constraints.real_vector

    def __init__(
        self,
        df: Tensor | float,
        loc: Tensor,
        scale_tril: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        _check_factor(loc, scale_tril)
        self.df = torch.as_tensor(df, dtype=loc.dtype, device=loc.device)
        self.loc, self.scale_tril = loc, scale_tril
        super().__init__(event_shape=loc.shape, validate_args=validate_args)

    @property
    def mean(self) -> Tensor:
        """loc; undefined (NaN) for ν ≤ 1."""
        return torch.where(self.df > 1, self.loc, math.nan)

    @property
    def variance(self) -> Tensor:
        """Of each entry; infinite for ν ≤ 2."""
        ratio = torch.where(self.df > 2, self.df / (self.df - 2), math.inf)
        return ratio * self.scale_tril.square().sum(-1)

    def sample(self, sample_shape: Any = (), generator: torch.Generator | None = None) -> Tensor:
        """Draws of shape sample_shape + (k,), one scale each, from a generator if one is given."""
        half = self.df / 2
        with following(generator), torch.no_grad():
            scales = InverseGamma(half, half).sample((math.prod(sample_shape),))
        draws = _scaled_normals(self.loc, self.scale_tril, scales, generator)
        return draws.reshape(*sample_shape, -1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        k, half = len(self.loc), self.df / 2
        q = _mahalanobis(value - self.loc, self.scale_tril)
        constant = (half + k / 2).lgamma() - half.lgamma() - k / 2 * (self.df * math.pi).log()
        volume = self.scale_tril.diagonal().log().sum()
        return constant - volume - (half + k / 2) * torch.log1p(q / self.df)


def scale_mixture(
    mean: Tensor,
    covariance: Tensor,
    prior: Distribution,
    *,
    num_draws: int = 1000,
    generator: torch.Generator | None = None,
) -> Distribution:
    """The law of N(mean, s·covariance) with s drawn from a prior, once for all entries.

    What becomes of wide networks whose last layer has weights of variance s: at the start with
    mean 0 and covariance `nngp_kernel`, and after training by gradient flow with `ntk_posterior`,
    which s follows unchanged: degrees of freedom stay 2α. (The Bayesian posterior learns s, see
    `ScaleMixtureRegressor`.)

    - InverseGamma(α, β): `MultivariateStudentT` with 2α degrees of freedom and scale matrix
      (β/α)·covariance.
    - `Delta`: the Gaussian.
    - any other distribution of a positive number: a `GaussianScaleMixture` of draws from it.

    Args:
        mean: shape (k,).
        covariance: for s = 1, shape (k, k), positive definite.
        prior: of s = σ_v², the variance of the weights of the last layer in units of 1/width.
        num_draws: draws of s where there is no closed form.
        generator: draws them.

    Returns:
        A torch distribution of vectors (k,).

    Raises:
        ValueError: shapes that do not fit, a covariance that is not positive definite, or draws
            of s that are not positive.
        TypeError: the prior is no torch distribution.

    Source: arXiv 2107.01408, sections 3.1 and 3.2.

    >>> from paperworks.wide import nngp_kernel
    >>> K = nngp_kernel(torch.tensor([[1.0, 0.0], [0.6, 0.8]]), activation="relu", depth=1)
    >>> outputs = scale_mixture(torch.zeros(2), K, InverseGamma(2.0, 2.0))
    >>> outputs.df.item(), outputs.variance / K.diag()
    (4.0, tensor([2.0000, 2.0000]))
    """
    check_prior(prior)
    factor = psd_safe_cholesky(covariance)
    if isinstance(prior, InverseGamma):
        alpha, beta = prior.concentration.to(mean), prior.rate.to(mean)
        return MultivariateStudentT(2 * alpha, mean, (beta / alpha).sqrt() * factor)
    if isinstance(prior, Delta):
        return MultivariateNormal(mean, scale_tril=prior.value.to(mean).sqrt() * factor)
    return GaussianScaleMixture(mean, factor, draw(prior, num_draws, generator).to(mean))


# ---- shared by the modules of this folder


def check_prior(prior: Distribution) -> None:
    if not isinstance(prior, Distribution):
        raise TypeError(
            f"prior must be a torch distribution of positive numbers, got {type(prior).__name__}"
        )
    if prior.batch_shape or prior.event_shape:
        shape = tuple(prior.batch_shape + prior.event_shape)
        raise ValueError(f"prior must be of one number, got one of shape {shape}")


def draw(prior: Distribution, number: int, generator: torch.Generator | None) -> Tensor:
    """Positive draws of a prior, float64, shape (number,).

    Raises:
        ValueError: a draw is not positive and finite.
    """
    with following(generator), torch.no_grad():
        s = prior.sample(torch.Size([number])).double()
    if not ((s > 0) & s.isfinite()).all():
        bad = s[~((s > 0) & s.isfinite())][0].item()
        raise ValueError(f"prior must give positive finite numbers, got a draw of {bad}")
    return s


def _scaled_normals(
    loc: Tensor, factor: Tensor, scales: Tensor, generator: torch.Generator | None
) -> Tensor:
    place = loc.device if generator is None else generator.device
    z = torch.randn(len(scales), len(loc), generator=generator, device=place, dtype=loc.dtype)
    return loc + scales.to(loc).sqrt()[:, None] * (z.to(loc.device) @ factor.mT)


def _mahalanobis(difference: Tensor, factor: Tensor) -> Tensor:
    """‖L⁻¹r‖² of vectors (..., k)."""
    rows = difference.reshape(-1, difference.shape[-1])
    white = torch.linalg.solve_triangular(factor, rows.mT, upper=False)
    return white.square().sum(0).reshape(difference.shape[:-1])


def _check_factor(loc: Tensor, scale_tril: Tensor) -> None:
    if loc.ndim != 1 or scale_tril.shape != (len(loc), len(loc)):
        raise ValueError(
            "loc and scale_tril must have shapes (k,) and (k, k), got "
            f"{tuple(loc.shape)} and {tuple(scale_tril.shape)}"
        )


__all__ = ["BurrXII", "Delta", "GaussianScaleMixture", "MultivariateStudentT", "scale_mixture"]
