"""What a posterior predictive distribution should be: exact, or by long sampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import (
    Categorical,
    Distribution,
    MixtureSameFamily,
    MultivariateNormal,
    Normal,
)

from paperworks.incontext.pfn.priors import Kernel, correlation, distances
from paperworks.wide.hmc import LogProb, hamiltonian_monte_carlo
from paperworks.wide.kernels import gp_posterior, psd_safe_cholesky

Scale = float | Tensor
"""A number, or one value for each point of a grid of hyperparameters, (G,); ℓ also (G, F)."""


def exact_gp_ppd(
    x_ctx: Tensor,
    y_ctx: Tensor,
    x_query: Tensor,
    *,
    kernel: Kernel = "rbf",
    lengthscale: Scale = 0.6,
    noise: Scale = 1e-4,
    outputscale: Scale = 1.0,
    weights: Tensor | None = None,
) -> Distribution:
    """The posterior predictive that a PFN trained on `GPPrior` with these arguments approaches.

    With numbers it is normal, N(m(x), v(x) + σ²). With tensors the hyperparameters are unknown: a
    grid of G points with prior `weights` π, and the answer the mixture of the G normals with
    weights ∝ π_g p(y | x, g), exact for that grid.

    Args:
        x_ctx: (B, n, F); n may be 0.
        y_ctx: (B, n).
        x_query: (B, Q, F).
        kernel, lengthscale, noise, outputscale: as in `GPPrior`; numbers, or (G,) each, and
            lengthscales a feature (G, F).
        weights: (G,), equal by default.

    Returns:
        A distribution of shape (B, Q), float64: `mean`, `variance`, `log_prob`, `cdf`.

    Raises:
        ValueError: shapes that do not fit, a noise that is negative, or a lengthscale that is not
            positive.

    Source: arXiv 2112.10510, section 5.1.

    >>> x, y = torch.zeros(1, 1, 1), torch.tensor([[2.0]])
    >>> exact = exact_gp_ppd(x, y, x, noise=1.0)
    >>> round(exact.mean.item(), 6), round(exact.variance.item(), 6)
    (1.0, 1.5)
    """
    if x_ctx.ndim != 3 or x_query.ndim != 3 or y_ctx.shape != x_ctx.shape[:2]:
        shapes = ", ".join(str(tuple(part.shape)) for part in (x_ctx, y_ctx, x_query))
        raise ValueError(f"must be (B, n, F), (B, n) and (B, Q, F), got {shapes}")
    if x_query.shape[::2] != x_ctx.shape[::2]:
        wanted = f"({len(x_ctx)}, Q, {x_ctx.shape[2]})"
        raise ValueError(f"x_query must be {wanted} as x_ctx is, got {tuple(x_query.shape)}")
    points, (ell, sigma2, scale) = _grid(x_ctx, lengthscale, noise, outputscale)
    X, y, Z = x_ctx.double()[:, None], y_ctx.double()[:, None], x_query.double()[:, None]
    k = correlation(kernel)
    K_xx = scale[..., None] * k(distances(X / ell, X / ell))
    K_tx = scale[..., None] * k(distances(Z / ell, X / ell))
    K_tt = scale.expand(len(X), points, Z.shape[2])
    y = y.expand(len(X), points, -1)
    mean, variance = gp_posterior(K_xx, K_tx, K_tt, y, noise=sigma2)
    normal = Normal(mean, (variance.clamp(min=0) + sigma2).sqrt())
    if points == 1:
        return Normal(normal.loc[:, 0], normal.scale[:, 0])
    evidence = _log_marginal(K_xx, sigma2, y)
    if weights is not None:
        if weights.shape != (points,) or not (weights >= 0).all():
            wrong = tuple(weights.shape)
            raise ValueError(f"weights must be ({points},) and not negative, got {wrong}")
        evidence = evidence + weights.to(evidence).log()
    logits = evidence[:, None].expand(-1, Z.shape[2], -1)
    components = Normal(normal.loc.mT, normal.scale.mT)
    return MixtureSameFamily(Categorical(logits=logits), components)


def hmc_ppd(
    log_joint: LogProb,
    log_predictive: Callable[[Tensor], Tensor],
    initial: Tensor,
    *,
    num_samples: int = 200,
    warmup: int = 200,
    num_steps: int = 10,
    step_size: float = 0.1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Log posterior predictive densities by Hamiltonian Monte Carlo, one chain a data set.

    log p(y | x, D) ≈ log (1/S) Σ_s p(y | x, D, θ_s) with θ_s ~ p(θ | D). Reach for it where no
    closed form exists: it is what a PFN replaces. Whiten θ's prior first.

    Args:
        log_joint: log p(θ, D) up to a constant, of each chain with its own data: (chains, d) to
            (chains,).
        log_predictive: log p(y | x, D, θ) at the queries of each chain, (chains, d) to
            (chains, …).
        initial: θ to start from, (chains, d).
        num_samples, warmup, num_steps, step_size, generator: see
            `paperworks.wide.hamiltonian_monte_carlo`.

    Returns:
        (chains, …).

    Raises:
        ValueError: as that does, or a log_predictive that has not one row a chain.

    >>> y = torch.tensor([[1.0], [3.0]])  # θ ~ N(0, 1), y ~ N(θ, 1): new ones are N(y/2, 3/2)
    >>> joint = lambda t: -(t[:, 0].square() + (y - t)[:, 0].square()) / 2
    >>> new = lambda t: torch.distributions.Normal(t[:, 0], 1.0).log_prob(y[:, 0] / 2)
    >>> g = torch.Generator().manual_seed(0)
    >>> p = hmc_ppd(joint, new, y, num_samples=500, generator=g).exp()
    >>> (p - (3 * torch.pi) ** -0.5).abs() < 0.02
    tensor([True, True])
    """

    def keep(theta: Tensor) -> Tensor:
        with torch.no_grad():
            value = log_predictive(theta)
        if value.shape[:1] != theta.shape[:1]:
            wanted = f"({len(theta)}, ...)"
            raise ValueError(f"log_predictive must return {wanted}, got {tuple(value.shape)}")
        return value

    draws = hamiltonian_monte_carlo(
        log_joint, initial, num_samples=num_samples, warmup=warmup, num_steps=num_steps,
        step_size=step_size, shared=False, keep=keep, generator=generator,
    ).samples  # fmt: skip
    return draws.logsumexp(0) - math.log(num_samples)


def _grid(
    x: Tensor, lengthscale: Scale, noise: Scale, outputscale: Scale
) -> tuple[int, list[Tensor]]:
    """Number of grid points, and ℓ (G, 1, F or 1), σ² (G, 1), o (G, 1)."""
    named = {"lengthscale": lengthscale, "noise": noise, "outputscale": outputscale}
    values = [
        torch.as_tensor(value, dtype=torch.float64, device=x.device) for value in named.values()
    ]
    counts = {len(value) for value in values if value.ndim}
    fits = values[0].ndim <= 2 and all(value.ndim <= 1 for value in values[1:])
    if len(counts) > 1 or not fits or 0 in counts:
        shapes = {name: tuple(value.shape) for name, value in zip(named, values)}
        raise ValueError(f"hyperparameters must be numbers or of one length (G,), got {shapes}")
    for name, value in zip(named, values):
        if not value.isfinite().all() or (value < 0).any() or (name != "noise" and not value.all()):
            wanted = "not negative" if name == "noise" else "positive"
            raise ValueError(f"{name} must be {wanted} and finite, got {value.min().item():g}")
    ell = values[0] if values[0].ndim == 2 else values[0].reshape(-1, 1)
    if ell.shape[1] not in (1, x.shape[2]):
        raise ValueError(f"lengthscale must have {x.shape[2]} columns, got {ell.shape[1]}")
    points = max(counts, default=1)
    columns = [ell[:, None], *(value.reshape(-1, 1) for value in values[1:])]
    return points, [column.expand(points, *column.shape[1:]) for column in columns]


def _log_marginal(K: Tensor, noise: Tensor, y: Tensor) -> Tensor:
    """log N(y; 0, K + σ² I), (B, G)."""
    n = y.shape[-1]
    if not n:
        return y.new_zeros(y.shape[:-1])
    eye = torch.eye(n, dtype=K.dtype, device=K.device)
    L = psd_safe_cholesky(K + noise[..., None] * eye)
    return MultivariateNormal(torch.zeros_like(y), scale_tril=L).log_prob(y)
