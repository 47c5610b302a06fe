"""Susceptibilities of an activation, and the variances at which both of them are one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy.optimize import brentq
from torch import Tensor, nn

from paperworks.wide.kernels import Activation, gaussian_dual, gaussian_quadrature

Kind = Literal["scale-invariant", "K*=0", "half-stable", "none"]
Function = Callable[[Tensor], Tensor]

_REACH = 12.0
"""Standard deviations beyond which a Gaussian is nothing."""

_CHUNK = 2**20
"""Values of σ that are held at once."""

_SCAN = torch.logspace(-4, 3, 71, dtype=torch.float64)
"""Kernels among which a half-stable K* is looked for."""


class Criticality(NamedTuple):
    """The variances at which signals and gradients survive depth; made by `criticality`.

    Attributes:
        C_W: variance of a weight times fan-in.
        C_b: variance of a bias.
        K_star: the fixed point of the kernel; nan where every K is one ("scale-invariant"), or
            there is none.
        kind: "scale-invariant", "K*=0", "half-stable" or "none" (then all numbers are nan).
        p_par, p_perp: χ_∥ ≈ 1 − p_∥/ℓ and χ_⊥ ≈ 1 − p_⊥/ℓ in layer ℓ; at K = K* they are 0.
        nu: ν, by which V/K² grows from layer to layer: networks of width n and depth L differ
            among each other by a variance of about νL/n of the squared signal.
    """

    C_W: float
    C_b: float
    K_star: float
    kind: Kind
    p_par: float
    p_perp: float
    nu: float

    @property
    def p_0(self) -> float:
        """K ~ ℓ^{−p_0}: 1 for tanh and sin, 0 where K stays; p_∥ − 1 for all of kind "K*=0"."""
        return self.p_par - 1 if self.kind == "K*=0" else 0.0


# ---------------------------------------------------------------------------------------------
# Gaussian averages
# ---------------------------------------------------------------------------------------------


def gaussian_mean(f: Function, K: Tensor | float, breakpoints: Sequence[float] = (0.0,)) -> Tensor:
    """⟨f⟩_K = E[f(z)], z ~ N(0, K), to machine precision also for f with kinks or jumps.

    The integral is split where f is not smooth, and each piece is done by Gauss–Legendre panels
    (`gaussian_quadrature` where that is at 0 only). Gauss–Hermite rules converge slowly there.

    Args:
        f: elementwise function of float64 tensors; it is called with a further last dimension of
            nodes, shape (..., nodes).
        K: variances, at least 0, shape (...).
        breakpoints: where, on the axis of z, f has kinks or jumps.

    Returns:
        Averages in the shape and dtype of K, float64 for a number.

    Raises:
        ValueError: K is negative or not finite, or f is not elementwise.

    Source: arXiv 2106.10165, the brackets of its chapter 4; the panels are ours.

    >>> round(gaussian_mean(torch.relu, 4.0).item() * math.sqrt(2 * math.pi), 12)  # √K
    2.0
    >>> round(gaussian_mean(lambda z: (z > 1).double(), 1.0, breakpoints=[1.0]).item(), 10)
    0.1586552539
    """
    K = as_variances("K", K)
    variance = K.double()
    z, weight = _one_point(variance.sqrt(), breakpoints)
    value = f(z)
    if value.shape != z.shape:
        raise ValueError(
            f"f must be elementwise: gave shape {tuple(value.shape)} for {tuple(z.shape)}"
        )
    return (value * weight).sum(-1).to(K.dtype)


def gaussian_mean2(
    f: Function,
    g: Function,
    K: Tensor,
    breakpoints: Sequence[float] = (0.0,),
) -> Tensor:
    """⟨f(z₁)g(z₂)⟩_K, (z₁, z₂) ~ N(0, K), for two functions; kinks are integrated exactly.

    By two nested one-point rules, the inner one split where g has its kinks given z₁. For f = g
    `gaussian_dual` is faster, and in closed form where there is one.

    Args:
        f, g: elementwise functions of float64 tensors.
        K: covariances, shape (..., 2, 2), positive semi-definite.
        breakpoints: where f or g have kinks or jumps.

    Returns:
        Averages of shape (...), dtype of K.

    Raises:
        ValueError: K has another shape, or is no covariance.

    >>> K = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    >>> round(gaussian_mean2(torch.relu, torch.relu, K).item() * 2 * math.pi, 9)
    1.0
    """
    if not isinstance(K, Tensor) or K.ndim < 2 or K.shape[-2:] != (2, 2):
        shape = tuple(K.shape) if isinstance(K, Tensor) else type(K).__name__
        raise ValueError(f"K must have shape (..., 2, 2), got {shape}")
    check_covariance("K", K)
    # one matrix at a time: each takes half a million evaluations of g
    means = [_pair_mean(f, g, pair, breakpoints) for pair in K.double().reshape(-1, 2, 2)]
    return torch.stack(means).to(K.dtype).reshape(K.shape[:-2])


# ---------------------------------------------------------------------------------------------
# Criticality
# ---------------------------------------------------------------------------------------------


def susceptibilities(
    activation: Activation, K: Tensor | float, C_W: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """By how much a layer magnifies small changes, in length and in direction.

    χ_∥ = C_W g′(K) = C_W⟨σ²(z² − K)⟩_K/(2K²), g = ⟨σ²⟩: perturbations of the length |z|².
    χ_⊥ = C_W⟨σ′²⟩_K: perturbations of the angle between inputs, and squared gradients.
    Above one they explode with depth, below they vanish. χ_∥ needs no derivative of σ, and so
    loses no kink.

    Args:
        activation: elementwise σ: a module, a function, or a name such as "relu".
        K: mean square of a preactivation, at least 0, shape (...).
        C_W: variance of a weight times fan-in.

    Returns:
        χ_∥ and χ_⊥ in the shape and dtype of K, float64 for a number.

    Raises:
        ValueError: K is negative or not finite, or the activation is not elementwise.

    Source: arXiv 2106.10165, section 5.1.

    >>> susceptibilities("relu", torch.tensor([0.1, 10.0]), C_W=2.0)
    (tensor([1., 1.]), tensor([1., 1.]))
    """
    K = as_variances("K", K)
    moments = moments_of(activation)(K)
    return (C_W * moments.g_prime).to(K.dtype), (C_W * moments.h).to(K.dtype)


def criticality(activation: Activation, *, residual: float = 0.0) -> Criticality:
    """The variances of weights and biases that let a deep network with this activation work.

    Criticality is χ_∥ = χ_⊥ = 1 at a fixed point K* = C_b + C_W⟨σ²⟩_{K*}: signals and gradients
    then change by a power of depth at most. Elsewhere they vanish or explode exponentially. With
    slopes a_± at 0, A_2 = (a_+² + a_−²)/2 and A_4 = (a_+⁴ + a_−⁴)/2:

    - "scale-invariant", σ(tz) = tσ(z) (ReLU, leaky ReLU, linear): C_W = 1/A_2, C_b = 0, every K is
      fixed, ν = 3A_4/A_2² − 1.
    - "K*=0", σ(0) = 0 and ⟨σ²⟩/A_2 below K (tanh, sin, erf): C_W = 1/A_2, C_b = 0. K falls like
      ℓ^{−p_0}, which is not vanishing; p_∥ = 2, p_⊥ = b_1/a_1 with a_1 = σ_3/σ_1 + ¾(σ_2/σ_1)² < 0
      and b_1 = σ_3/σ_1 + (σ_2/σ_1)², ν = 2/3. Where σ is bent at 0 (ELU, SELU, softsign), the
      correction to K is of order K^{3/2}: p_0 = 2, p_∥ = 3, p_⊥ = 2, ν = (3A_4/A_2² − 1)/3; where
      it is straight on both sides (hardtanh, ReLU6), K falls more slowly than any power and
      p_∥ = 1, p_⊥ = 0. (Both are our derivation.)
    - "half-stable" (GELU, SiLU, Mish): K* > 0 is a root of ⟨σ²(z² − K)⟩/(2K²) = ⟨σ′²⟩,
      C_W = 1/⟨σ′²⟩, C_b = K* − C_W⟨σ²⟩, not negative. p_∥, p_⊥ and ν are those at K* itself; a
      kernel that starts elsewhere moves towards it (or, on one side, away) like 1/ℓ.
    - "none" (sigmoid, softplus).

    Args:
        activation: elementwise σ: a module, a function, or a name such as "relu".
        residual: γ of a layer z′ = b + Wσ(z) + γz, for scale-invariant activations:
            C_W = (1 − γ²)/A_2 and ν(γ) = (1 − γ²)[(1 − γ²)(3A_4/A_2² − 1) + 4γ²] +
            (4/π)(1 − γ²)² γ/(1 − γ) ((a_+² − a_−²)/A_2)² (our derivation; the last term, absent for
            odd and even σ, is from E[z_i² z_j], which skips hand on).

    Raises:
        ValueError: activation is not elementwise, residual is outside [0, 1), or not 0 for an
            activation that is not scale-invariant.

    Source: arXiv 2106.10165, sections 5.2 to 5.4 (numbering from memory).

    >>> criticality("relu")
    Criticality(C_W=2.0, C_b=0.0, K_star=nan, kind='scale-invariant', p_par=0.0, p_perp=0.0, nu=5.0)
    >>> gelu = criticality(torch.nn.GELU())
    >>> gelu.kind, round(gelu.C_W, 6), round(gelu.C_b, 6), round(gelu.K_star, 6)
    ('half-stable', 1.983058, 0.172922, 3.561553)
    """
    if not 0 <= residual < 1:
        raise ValueError(f"residual must lie in [0, 1), got {residual}")
    sigma = gaussian_dual(activation).activation
    slopes = _homogeneous_slopes(sigma)
    if slopes is not None:
        return _scale_invariant(*slopes, residual)
    if residual:
        raise ValueError("residual must be 0 for an activation that is not scale-invariant")
    return _at_zero(activation, sigma) or _half_stable(activation) or _NONE


def optimal_aspect_ratio(activation: Activation, n_out: int, *, residual: float = 0.0) -> float:
    """r* = 4/((20 + 3n_out) ν): the ratio depth/width of a critical network that learns best.

    From the information that the first n_out outputs share; the book's estimate to leading order,
    with its constants from memory. At L/n ≈ 1/ν the 1/n expansion itself fails: deeper networks
    differ from draw to draw by more than their signal.

    Args:
        activation: elementwise σ.
        n_out: number of outputs, at least 1.
        residual: γ of identity skips, see `criticality`.

    Raises:
        ValueError: n_out is not positive, or the activation has no criticality.

    Source: arXiv 2106.10165, appendix A.

    >>> round(1000 * optimal_aspect_ratio("relu", n_out=10), 6)  # 16 layers at width 1000
    16.0
    """
    if not isinstance(n_out, int) or n_out < 1:
        raise ValueError(f"n_out must be a positive integer, got {n_out!r}")
    critical = criticality(activation, residual=residual)
    if critical.kind == "none":
        raise no_criticality(activation)
    return 4 / ((20 + 3 * n_out) * critical.nu)


# ---------------------------------------------------------------------------------------------
# For the other modules of this paper
# ---------------------------------------------------------------------------------------------


class Moments(NamedTuple):
    """Averages of an activation under N(0, K), each of the shape of K, float64.

    g = ⟨σ²⟩, g_prime = dg/dK, h = ⟨σ′²⟩, spread = ⟨σ⁴⟩ − ⟨σ²⟩².
    """

    g: Tensor
    g_prime: Tensor
    h: Tensor
    spread: Tensor


def moments_of(activation: Activation) -> Callable[[Tensor], Moments]:
    """The moments of an activation as a function of K, for many K in turn."""
    sigma, breakpoints = gaussian_dual(activation).activation, _breakpoints(activation)

    def moments(K: Tensor) -> Moments:
        origin = sigma(torch.zeros(1, dtype=torch.float64, device=K.device)).square()
        # K → 0 is a limit: below the floor rounding would be magnified, where σ(0) is not 0
        variances = K.detach().double().flatten().clamp(min=1e-8 if origin.any() else 1e-200)
        chunks = []
        for variance in variances.split(max(1, _CHUNK // len(gaussian_quadrature()[0]))):
            z, weight = _one_point(variance.sqrt(), breakpoints)
            value, slope = derivatives(sigma, z, 1)
            square = value.square()
            g = (square * weight).sum(-1)
            # ⟨z² − K⟩ = 0, so that σ(0)² can be taken off, which saves digits at small K
            growth = ((square - origin) * (z.square() / variance[:, None] - 1) * weight).sum(-1)
            spread = ((square - g[:, None]).square() * weight).sum(-1)
            h = (slope.square() * weight).sum(-1)
            chunks.append(torch.stack([g, growth / (2 * variance), h, spread]))
        return Moments(*torch.cat(chunks, 1).reshape(4, *K.shape))

    return moments


def derivatives(f: Function, z: Tensor, order: int) -> list[Tensor]:
    """f, f′, … up to an order, at every entry of z, by nested autograd."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        values = [f(z)]
        for _ in range(order):
            last, slope = values[-1].sum(), torch.zeros_like(z)
            if last.requires_grad:  # else f is piecewise a polynomial, and nothing is left
                (gradient,) = torch.autograd.grad(
                    last, z, create_graph=len(values) < order, allow_unused=True
                )
                slope = slope if gradient is None else slope + gradient
            values.append(slope)
    return [value.detach() for value in values]


def edge_of_chaos(activation: Activation) -> tuple[float, float]:
    """C_W and C_b = 0 with χ_⊥ = 1 at the fixed point of K, for activations without criticality.

    Root of ⟨σ²⟩ = K⟨σ′²⟩; where there is none (softplus), χ_⊥ = 1 at the largest K looked at.
    """

    def excess(moments: Moments, K: Tensor) -> Tensor:
        return moments.g / (K * moments.h) - 1

    K = next(iter(_roots(activation, excess)), _SCAN[-1])
    return 1 / moments_of(activation)(K).h.item(), 0.0


def no_criticality(activation: object) -> ValueError:
    return ValueError(f"no criticality for {activation}: its susceptibilities are never both 1")


def as_variances(name: str, K: Tensor | float) -> Tensor:
    """K as a floating-point tensor; raises `ValueError` unless it is finite and not negative."""
    if not isinstance(K, Tensor) or not K.is_floating_point():
        K = torch.as_tensor(K, dtype=torch.float64)
    if not (torch.isfinite(K) & (K >= 0)).all():
        raise ValueError(f"{name} must be finite and not negative, got {K.min().item()}")
    return K


def check_covariance(name: str, K: Tensor) -> None:
    """Raises `ValueError` unless K is symmetric, finite, and no correlation is beyond ±1."""
    if not K.is_floating_point() or not torch.isfinite(K).all():
        raise ValueError(f"{name} must be floating-point and finite")
    diagonal = K.diagonal(dim1=-2, dim2=-1)
    if (diagonal < 0).any():
        raise ValueError(f"{name} must not have negative entries on its diagonal")
    slack = max(1e-9, 100 * torch.finfo(K.dtype).eps)
    largest = (diagonal[..., :, None] * diagonal[..., None, :]).sqrt()
    if not torch.allclose(K, K.mT, rtol=slack) or (K.abs() > largest * (1 + slack)).any():
        raise ValueError(f"{name} is no covariance: expected K = Kᵀ and |K_ij| ≤ √(K_ii K_jj)")


def check_variances(C_W: float, C_b: float) -> None:
    if not 0 < C_W < math.inf:
        raise ValueError(f"C_W must be positive and finite, got {C_W}")
    if not 0 <= C_b < math.inf:
        raise ValueError(f"C_b must not be negative and must be finite, got {C_b}")


# ---------------------------------------------------------------------------------------------
# Private: the kinds of criticality
# ---------------------------------------------------------------------------------------------

_NONE = Criticality(
    math.nan, math.nan, math.nan, kind="none", p_par=math.nan, p_perp=math.nan, nu=math.nan
)


def _homogeneous_slopes(sigma: Function) -> tuple[float, float] | None:
    """a_+ and a_− if σ(z) = a_± z for z of either sign."""
    z = torch.logspace(-8, 8, 17, dtype=torch.float64)
    slopes = torch.stack([sigma(z) / z, sigma(-z) / -z]).detach()
    middle = slopes[:, 8:9]
    if middle.any() and ((slopes - middle).abs() <= 1e-6 * middle.abs().max()).all():
        return middle[0].item(), middle[1].item()
    return None


def _scale_invariant(a_plus: float, a_minus: float, residual: float) -> Criticality:
    A_2, A_4 = (a_plus**2 + a_minus**2) / 2, (a_plus**4 + a_minus**4) / 2
    gamma2 = residual**2
    nu = (1 - gamma2) * ((1 - gamma2) * (3 * A_4 / A_2**2 - 1) + 4 * gamma2)
    skew = (1 - gamma2) * (a_plus**2 - a_minus**2) / A_2
    nu += 4 / math.pi * skew**2 * residual / (1 - residual)
    return Criticality((1 - gamma2) / A_2, 0.0, math.nan, "scale-invariant", 0.0, 0.0, nu)


def _at_zero(activation: Activation, sigma: Function) -> Criticality | None:
    """The kind K* = 0, where small signals shrink more slowly than exponentially.

    With one-sided derivatives σ_p of right and left: ⟨σ²⟩ = A_2 K + √(2/π)[σ_1σ_2] K^{3/2} +
    (3/2) Σ_±(σ_2²/4 + σ_1σ_3/3) K² + …, [·] the jump from left to right.
    """
    if sigma(torch.zeros(1, dtype=torch.float64)).abs() > 1e-12:
        return None
    sides = torch.tensor([1e-30, -1e-30], dtype=torch.float64)
    try:
        _, s1, s2, s3 = derivatives(sigma, sides, 3)
    except RuntimeError as error:
        raise ValueError(
            f"activation {activation} must have three derivatives on both sides of 0: {error}"
        ) from error
    A_2, A_4 = s1.square().mean().item(), s1.pow(4).mean().item()
    if not 0 < A_2 < math.inf:
        return None
    jump = (s1[0] * s2[0] - s1[1] * s2[1]).item() / A_2
    a_1 = 3 * (s2.square() / 4 + s1 * s3 / 3).mean().item() / A_2
    b_1 = (s2.square() + s1 * s3).mean().item() / A_2
    if abs(jump) > 1e-9:
        stable, p_par, p_perp = jump < 0, 3.0, 2.0
    elif abs(a_1) > 1e-9:
        stable, p_par, p_perp = a_1 < 0, 2.0, b_1 / a_1
    else:
        excess = moments_of(activation)(_SCAN).g / (A_2 * _SCAN) - 1
        seen = excess[excess.abs() > 1e-9]
        stable, p_par, p_perp = bool(len(seen)) and seen[0].item() < 0, 1.0, 0.0
    nu = (3 * A_4 / A_2**2 - 1) / 3
    return Criticality(1 / A_2, 0.0, 0.0, "K*=0", p_par, p_perp, nu) if stable else None


def _half_stable(activation: Activation) -> Criticality | None:
    for K in _roots(activation, lambda moments, _: moments.g_prime / moments.h - 1):
        moments = moments_of(activation)(K)
        C_W = 1 / moments.h.item()
        C_b = K.item() - C_W * moments.g.item()
        if C_b >= 0:
            nu = C_W**2 * (moments.spread / K**2).item()
            return Criticality(C_W, C_b, K.item(), "half-stable", 0.0, 0.0, nu)
    return None


def _roots(activation: Activation, function: Callable[[Moments, Tensor], Tensor]) -> list[Tensor]:
    """Kernels K of `_SCAN`'s range at which a function of the moments changes its sign."""

    moments = moments_of(activation)

    def at(log_K: float) -> float:
        K = torch.tensor(math.exp(log_K), dtype=torch.float64)
        return function(moments(K), K).item()

    values = function(moments(_SCAN), _SCAN)
    values = torch.where(values.abs() > 1e-9, values, torch.nan)  # rounding has no sign
    logs = _SCAN.log().tolist()
    changes = (values[:-1] * values[1:] < 0).nonzero().flatten().tolist()
    roots = [brentq(at, logs[i], logs[i + 1], xtol=1e-13) for i in changes]
    return [torch.tensor(math.exp(root), dtype=torch.float64) for root in roots]


# ---------------------------------------------------------------------------------------------
# Private: quadrature
# ---------------------------------------------------------------------------------------------


def _breakpoints(activation: Activation) -> tuple[float, ...]:
    """Where activations of torch have their kinks; a user's are thought to have theirs at 0."""
    if isinstance(activation, nn.Hardtanh):  # and ReLU6
        return activation.min_val, 0.0, activation.max_val
    if isinstance(activation, nn.Hardswish | nn.Hardsigmoid):
        return -3.0, 0.0, 3.0
    if isinstance(activation, nn.Hardshrink | nn.Softshrink):
        return -activation.lambd, 0.0, activation.lambd
    if isinstance(activation, nn.Threshold):
        return 0.0, activation.threshold
    return (0.0,)


def _one_point(std: Tensor, breakpoints: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Nodes and weights for z ~ N(0, std²), in a new last dimension."""
    if any(breakpoints):
        return _rule(torch.zeros_like(std), std, breakpoints, panels=150)
    u, weight = (part.to(std.device) for part in gaussian_quadrature())
    return std[..., None] * u, weight


def _rule(
    mean: Tensor, std: Tensor, breakpoints: Sequence[float], panels: int
) -> tuple[Tensor, Tensor]:
    """Nodes and weights for z ~ N(mean, std²), a rule with its own cuts for each entry."""
    node, weight = (part.to(mean.device) for part in _legendre())
    cuts = torch.as_tensor(tuple(breakpoints), dtype=torch.float64, device=mean.device)
    inside = (cuts - mean[..., None]) / std[..., None].clamp(min=1e-300)
    even = torch.linspace(-_REACH, _REACH, panels + 1, dtype=torch.float64, device=mean.device)
    even = even.expand(*mean.shape, -1)
    edges = torch.cat([even, inside.clamp(-_REACH, _REACH)], -1).sort(-1).values
    half = edges.diff(dim=-1)[..., None] / 2
    u = (edges[..., :-1, None] + half * (node + 1)).flatten(-2)
    density = (-u.square() / 2).exp() / math.sqrt(2 * math.pi)
    return mean[..., None] + std[..., None] * u, (half * weight).flatten(-2) * density


@lru_cache(maxsize=1)
def _legendre(order: int = 16) -> tuple[Tensor, Tensor]:
    node, weight = np.polynomial.legendre.leggauss(order)
    return torch.from_numpy(node), torch.from_numpy(weight)


def _pair_mean(f: Function, g: Function, K: Tensor, breakpoints: Sequence[float]) -> Tensor:
    (a, c), (_, b) = K
    outer, weight = _rule(a.new_zeros(()), a.sqrt(), breakpoints, panels=48)
    slope = torch.where(a > 0, c / a.clamp(min=1e-300), 0.0)
    rest = (b - slope * c).clamp(min=0).sqrt()
    inner, inner_weight = _rule(slope * outer, rest.expand_as(outer), breakpoints, panels=48)
    given = (g(inner) * inner_weight).sum(-1)  # E[g(z₂) | z₁]
    return (f(outer) * given * weight).sum()
