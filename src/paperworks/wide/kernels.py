"""The kernel algebra of infinitely wide networks: Gaussian duals, NNGP, NTK, posteriors.

A layer of an infinitely wide network sees its inputs only through Gaussian averages
E[φ(u)φ(v)] and E[φ′(u)φ′(v)], (u, v) ~ N(0, [[var_u, cov], [cov, var_v]]): the *duals* of its
activation. `gaussian_dual` gives them for any elementwise activation, `nngp_kernel` and
`ntk_kernel` iterate them over layers, `cnn_nngp_kernel` and `cnn_ntk_kernel` over the layers of a
convolutional network, `gp_posterior` conditions on data, `ntk_posterior` says what training by
gradient descent makes of it, and `empirical_ntk` is the tangent kernel of a network that exists.

Everything is computed in float64 and handed back in the dtype of the input, on its device.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial, reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pool = Callable[[Tensor], Tensor]
"""What a layer does to the kernels of its positions; nothing in a fully connected network."""

Activation = str | nn.Module | Callable[[Tensor], Tensor]
"""An elementwise activation: a module, a function of a tensor, or a name such as "relu"."""

_NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": nn.Identity(),
    "relu": torch.relu,
    "abs": torch.abs,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "silu": F.silu,
    "mish": F.mish,
    "elu": F.elu,
    "selu": F.selu,
}

_TILE = 180
"""Side of the square in which kernels are computed: its few temporaries stay in the L2 cache."""


# ---------------------------------------------------------------------------------------------
# Duals
# ---------------------------------------------------------------------------------------------


class GaussianDual:
    """Gaussian averages of an activation, for any variances; made by `gaussian_dual`.

    With (u, v) ~ N(0, [[var_u, cov], [cov, var_v]]), calling it gives E[φ(u)φ(v)] and
    `derivative` gives E[φ′(u)φ′(v)], which is the derivative of the first in `cov` (Price).

    Attributes:
        activation: φ as a function of a float64 tensor.
        gain: a factor on both averages; makes E[φ(z)²] = 1, z ~ N(0, 1), when normalized.

    >>> relu = gaussian_dual("relu")
    >>> round(relu(0.0).item(), 6), round(relu(1.0).item(), 6), relu.derivative(0.0).item()
    (0.159155, 0.5, 0.25)
    >>> relu(torch.tensor([[1.0, 2.0]]), var_u=1.0, var_v=4.0)  # homogeneous of degree 1
    tensor([[0.6090, 1.0000]])
    """

    gain: float = 1.0

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        self.activation = activation

    def __call__(
        self, cov: Tensor | float, var_u: Tensor | float = 1.0, var_v: Tensor | float = 1.0
    ) -> Tensor:
        """E[φ(u)φ(v)]; the three arguments broadcast, the result has the dtype of `cov`."""
        return self._evaluate(cov, var_u, var_v, with_slope=False)[0]

    def derivative(
        self, cov: Tensor | float, var_u: Tensor | float = 1.0, var_v: Tensor | float = 1.0
    ) -> Tensor:
        """E[φ′(u)φ′(v)]; the three arguments broadcast, the result has the dtype of `cov`."""
        return self._evaluate(cov, var_u, var_v, with_slope=True)[1]

    def moments(self, var: Tensor | float) -> tuple[Tensor, Tensor]:
        """E[φ(u)²] and E[φ′(u)²] for u ~ N(0, var), exact where a pair formula loses digits."""
        var = _as_tensor(var)
        value, slope = self._point(var.double())
        return (self.gain * value).to(var.dtype), (self.gain * slope).to(var.dtype)

    def _evaluate(
        self, cov: Tensor | float, var_u: Tensor | float, var_v: Tensor | float, with_slope: bool
    ) -> tuple[Tensor, ...]:
        cov = _as_tensor(cov)
        u, v = (self._row(_as_tensor(var).to(cov.device, torch.float64)) for var in (var_u, var_v))
        moments = self._pair(cov.double(), u, v, with_slope)
        return tuple((self.gain * moment).to(cov.dtype) for moment in moments)

    # What a subclass says. `_row` is what a pair needs to know of each of its two inputs, stacked
    # along a new first dimension, so that it is computed once a row and not once a pair.

    def _row(self, var: Tensor) -> Tensor:
        raise NotImplementedError

    def _pair(self, cov: Tensor, u: Tensor, v: Tensor, with_slope: bool) -> tuple[Tensor, ...]:
        """E[φφ], and E[φ′φ′] if `with_slope`, from the covariance and two `_row`s."""
        raise NotImplementedError

    def _point(self, var: Tensor) -> tuple[Tensor, Tensor]:
        row = self._row(var)
        value, slope = self._pair(var, row, row, True)
        return value, slope


class RectifierDual(GaussianDual):
    """φ(u) = max(u, 0) + a·min(u, 0): ReLU (a=0), leaky ReLU, identity (a=1), |u| (a=-1).

    E[φφ] = √(var_u var_v) [(1−a)² κ₁(ρ) + aρ], κ₁(ρ) = (√(1−ρ²) + ρ(π − arccos ρ))/2π.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor], negative_slope: float) -> None:
        super().__init__(activation)
        self.negative_slope = negative_slope

    def _row(self, var: Tensor) -> Tensor:
        return var.clamp(min=1e-300).sqrt()[None]

    def _pair(self, cov: Tensor, u: Tensor, v: Tensor, with_slope: bool) -> tuple[Tensor, ...]:
        bend, linear = (1 - self.negative_slope) ** 2 / (2 * math.pi), self.negative_slope
        scale = u[0] * v[0]
        k1, k0 = _ArcCosine.apply(cov / scale)
        value = (scale * k1).mul_(bend)
        if linear:
            value.add_(cov, alpha=linear)
        return (value, (k0 * bend).add_(linear)) if with_slope else (value,)

    def _point(self, var: Tensor) -> tuple[Tensor, Tensor]:
        half = (1 + self.negative_slope**2) / 2
        return half * var, torch.full_like(var, half)


class ErfDual(GaussianDual):
    """φ = erf: E[φφ] = (2/π) arcsin(2cov/√((1+2var_u)(1+2var_v))) (Williams 1997)."""

    def _row(self, var: Tensor) -> Tensor:
        return (var + 0.5).sqrt()[None]

    def _pair(self, cov: Tensor, u: Tensor, v: Tensor, with_slope: bool) -> tuple[Tensor, ...]:
        scale = u[0] * v[0]
        sine = cov / scale
        value = sine.asin() * (2 / math.pi)
        if not with_slope:
            return (value,)
        return value, (2 / math.pi) / ((1 - sine * sine).sqrt() * scale)


class SineDual(GaussianDual):
    """φ(u) = sin(ωu), or cos(ωu): E[φφ] = e^{−ω²(var_u+var_v)/2} sinh(ω²cov), or cosh."""

    def __init__(
        self, activation: Callable[[Tensor], Tensor], frequency: float = 1.0, cosine: bool = False
    ) -> None:
        super().__init__(activation)
        self.squared_frequency = frequency**2
        self.cosine = cosine

    def _row(self, var: Tensor) -> Tensor:
        return (var * (self.squared_frequency / 2))[None]

    def _pair(self, cov: Tensor, u: Tensor, v: Tensor, with_slope: bool) -> tuple[Tensor, ...]:
        x, decay = cov * self.squared_frequency, u[0] + v[0]
        rising, falling = (x - decay).exp(), (-x - decay).exp()
        # The difference of exponentials never overflows; sinh keeps the digits of small x.
        small = x.clamp(-1, 1).sinh() * (-decay).exp()
        odd = torch.where(x.abs() < 1, small, (rising - falling) / 2)
        even = (rising + falling) / 2
        value, slope = (even, odd) if self.cosine else (odd, even)
        return (value, slope * self.squared_frequency) if with_slope else (value,)


class GELUDual(GaussianDual):
    """φ(u) = uΦ(u). With p = 1+var_u, q = 1+var_v, D = pq − cov², P = 1/(2π√D):

    E[φφ] = cov(¼ + arcsin(cov/√pq)/2π) + P(var_u var_v + cov²(1/p + 1/q − 1)) (by Stein's lemma).
    """

    def _row(self, var: Tensor) -> Tensor:
        return torch.stack([var, 1 / (1 + var)])

    def _pair(self, cov: Tensor, u: Tensor, v: Tensor, with_slope: bool) -> tuple[Tensor, ...]:
        inverse = u[1] * v[1]
        determinant = 1 / inverse - cov * cov
        density = determinant.rsqrt() * (0.5 / math.pi)
        both_positive = 0.25 + (cov * inverse.sqrt()).asin() * (0.5 / math.pi)
        curvature = u[1] + v[1] - 1
        bracket = u[0] * v[0] + cov * cov * curvature
        value = cov * both_positive + density * bracket
        if not with_slope:
            return (value,)
        return value, both_positive + cov * density * (1 + 2 * curvature + bracket / determinant)


class HermiteDual(GaussianDual):
    """Any elementwise φ, by Mehler's formula and quadrature.

    E[φφ] = Σ_k c_k(√var_u) c_k(√var_v) ρ^k, c_k(s) = E[φ(sz)h_k(z)]. Exact for polynomials up to
    the degree; for smooth φ the error falls exponentially in √(degree/variance) (tanh of variance
    3 at ρ = 1: 4e-7); for φ with kinks it is of order degree^{−3/2} at |ρ| = 1, and below
    1e-9 for |ρ| ≤ 0.8 at degree 100.
    """

    def __init__(self, activation: Callable[[Tensor], Tensor], degree: int = 100) -> None:
        super().__init__(activation)
        self.degree = degree

    def _row(self, var: Tensor) -> Tensor:
        std = var.clamp(min=1e-300).sqrt()
        coef = hermite_coefficients(self.activation, std, degree=self.degree).movedim(-1, 0)
        size = coef.detach().abs().reshape(len(coef), -1).amax(1)
        last = int((size >= 1e-9 * size.max()).nonzero()[-1])  # coefficients meet squared
        return torch.cat([std[None], coef[: last + 1]])

    def _pair(self, cov: Tensor, u: Tensor, v: Tensor, with_slope: bool) -> tuple[Tensor, ...]:
        scale = u[0] * v[0]
        rho = (cov / scale).clamp(-1, 1)
        value, slope = torch.zeros_like(rho), torch.zeros_like(rho)
        for c_u, c_v in zip(reversed(u[1 : len(v)]), reversed(v[1 : len(u)])):  # Horner
            if with_slope:
                slope = torch.addcmul(value, slope, rho)
            value = torch.addcmul(c_u * c_v, value, rho)
        return (value, slope / scale) if with_slope else (value,)

    def _point(self, var: Tensor) -> tuple[Tensor, Tensor]:
        z, weight = gaussian_quadrature()
        z, weight = z.to(var.device), weight.to(var.device)
        value, slope = [], []
        for std in var.clamp(min=0).sqrt().flatten().split(_rows_per_chunk(len(z))):
            u = std[:, None] * z
            value.append(self.activation(u).square() @ weight)
            slope.append(_derivative(self.activation, u).square() @ weight)
        return torch.cat(value).view_as(var), torch.cat(slope).view_as(var)


def gaussian_dual(
    activation: Activation, *, normalized: bool = False, degree: int = 100
) -> GaussianDual:
    """E[φ(u)φ(v)] and E[φ′(u)φ′(v)] of an activation under Gaussians of any covariance.

    Closed forms for ReLU, leaky ReLU, |u|, identity, erf, sin, cos and GELU; Mehler's formula with
    coefficients by quadrature for every other elementwise module or function (polynomials up to
    `degree` exactly). An activation that knows its own closed form offers it as a method
    `gaussian_dual()`.

    Args:
        activation: a module, a function, or one of the names in the error message of a wrong one.
            A module is copied, never changed; one that has several modes is taken in `eval`.
        normalized: divide by E[φ(z)²], z ~ N(0, 1), so that the dual of unit variances is 1 at
            ρ = 1 (ReLU: ½ otherwise).
        degree: highest Hermite degree where there is no closed form.

    Raises:
        ValueError: an unknown name, an activation that is not elementwise, a function that
            overwrites its input (a module set to do so is taken as if it were not), or, if
            normalized, one that is zero.
        TypeError: the activation is not callable.

    Sources: arc-cosine kernels (Cho and Saul 2009), erf (Williams 1997); GELU and the leaky forms
    are our derivation.

    >>> dual = gaussian_dual(torch.nn.Tanh(), normalized=True)
    >>> dual(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    tensor([0.0000, 0.4726, 1.0000], dtype=torch.float64)
    """
    if isinstance(activation, GaussianDual):
        raise TypeError("activation: got a GaussianDual, expected the activation it is made from")
    dual = _closed_form(activation, degree)
    if normalized:
        second_moment = dual.moments(torch.ones((), dtype=torch.float64))[0].item()
        if not 0 < second_moment < math.inf:
            problem = "zero" if second_moment == 0 else "no finite"
            raise ValueError(f"activation has {problem} second moment: {activation!r}")
        dual.gain /= second_moment
    return dual


def gaussian_quadrature() -> tuple[Tensor, Tensor]:
    """Nodes z and weights w, Σ w f(z) ≈ E[f(z)] for z ~ N(0, 1); float64, shape (3200,).

    Gauss–Legendre panels on |z| ≤ 16, split at 0: machine precision for f that is smooth but for
    a kink at 0; about 1e-6 for kinks elsewhere, where Gauss–Hermite rules converge slowly.

    >>> z, w = gaussian_quadrature()
    >>> round((w @ z.relu()).item(), 12), round((w @ z**4).item(), 12)
    (0.398942280401, 3.0)
    """
    return _quadrature()


def hermite_coefficients(
    activation: Activation, std: Tensor | float = 1.0, *, degree: int = 100
) -> Tensor:
    """c_k = E[φ(std·z) h_k(z)], z ~ N(0, 1), for k = 0 … degree, by quadrature.

    h_k are the normalised probabilists' Hermite polynomials, E[h_j h_k] = δ_jk, so that
    E[φ²] = Σ c_k². Coefficients below 1e-13 E|φ h_k| are rounding and set to 0.

    Args:
        activation: the elementwise φ.
        std: standard deviation of the Gaussian, any shape (...); gradients flow through it.
        degree: the highest k.

    Returns:
        Coefficients of shape (..., degree + 1), float64.

    Raises:
        ValueError: `degree` is negative, or the activation is not elementwise.

    >>> hermite_coefficients(lambda u: u**2, degree=3)  # u² = √2 h₂ + 1
    tensor([1.0000, 0.0000, 1.4142, 0.0000], dtype=torch.float64)
    """
    if degree < 0:
        raise ValueError(f"degree must be at least 0, got {degree}")
    phi = _as_function(activation)
    std = _as_tensor(std).double()
    z, _ = _quadrature()
    z, basis = z.to(std.device), _hermite_basis(degree).to(std.device)
    coef = []
    for s in std.reshape(-1).split(_rows_per_chunk(len(z))):
        value = phi(s[:, None] * z)
        exact = value @ basis
        rounding = 1e-13 * (value.detach().abs() @ basis.abs())
        coef.append(torch.where(exact.abs() > rounding, exact, torch.zeros_like(exact)))
    return torch.cat(coef).view(*std.shape, degree + 1)


# ---------------------------------------------------------------------------------------------
# Kernels of deep networks
# ---------------------------------------------------------------------------------------------


def nngp_kernel(
    X: Tensor,
    Z: Tensor | None = None,
    *,
    activation: Activation,
    depth: int,
    C_W: float | Tensor = 1.0,
    C_b: float | Tensor = 0.0,
) -> Tensor:
    """Covariance of the outputs of an infinitely wide MLP at initialisation (NNGP kernel).

    K⁰ = C_b + C_W x·z/d;  K^{l+1} = C_b + C_W E[φ(u)φ(v)], (u, v) ~ N(0, K^l restricted to x, z);
    the result is K^depth: `depth` hidden layers and a linear readout with the same variances.
    Weights have variance C_W/fan_in, biases C_b. Reach for it as the prior of a Gaussian process,
    or to see what depth does to similarities. Differentiable in X, Z, C_W and C_b.

    Args:
        X: inputs, shape (..., n, d).
        Z: other inputs, shape (..., m, d); X itself when left out, at half the cost.
        activation: elementwise φ; see `gaussian_dual`.
        depth: number of hidden layers; 0 is the linear model.
        C_W: weight variance times fan-in, positive (He initialisation of ReLU: 2).
        C_b: bias variance, not negative.

    Returns:
        Kernel of shape (..., n, m), dtype and device of X, computed in float64.

    Raises:
        ValueError: shapes that do not fit, a negative depth or variance.
        TypeError: X or Z is no floating-point tensor.

    Source: Lee et al. 2018 (arXiv 1711.00165).

    >>> X = torch.eye(2) * 2**0.5  # orthogonal rows with |x|²/d = 1
    >>> nngp_kernel(X, activation="relu", depth=1, C_W=2.0) / 2  # the angle map: 1/π
    tensor([[1.0000, 0.3183],
            [0.3183, 1.0000]])
    """
    return _mlp_kernels(X, Z, activation, depth, C_W, C_b, ntk=False)[0]


def ntk_kernel(
    X: Tensor,
    Z: Tensor | None = None,
    *,
    activation: Activation,
    depth: int,
    C_W: float | Tensor = 1.0,
    C_b: float | Tensor = 0.0,
) -> Tensor:
    """Neural tangent kernel of an infinitely wide MLP in the NTK parametrisation.

    Θ⁰ = K⁰;  Θ^{l+1} = K^{l+1} + C_W E[φ′(u)φ′(v)] Θ^l, with K of `nngp_kernel`. Every layer is
    trained, weights √(C_W/fan_in)·w and biases √C_b·b with w, b ~ N(0, 1) at one learning rate
    (learning rates λ_W = C_W and λ_b = C_b in terms of the weights themselves).

    Arguments, result and errors are those of `nngp_kernel`; `deep_kernels` gives both kernels at
    the price of this one.

    Source: Jacot et al. 2018 (arXiv 1806.07572).

    >>> X = torch.eye(3)
    >>> 3 * ntk_kernel(X, activation="relu", depth=1)  # 1 − 1/2π + 1/2π, 1/2π
    tensor([[1.0000, 0.1592, 0.1592],
            [0.1592, 1.0000, 0.1592],
            [0.1592, 0.1592, 1.0000]])
    """
    return _mlp_kernels(X, Z, activation, depth, C_W, C_b, ntk=True)[1]


def deep_kernels(
    X: Tensor,
    Z: Tensor | None = None,
    *,
    activation: Activation,
    depth: int,
    C_W: float | Tensor = 1.0,
    C_b: float | Tensor = 0.0,
) -> tuple[Tensor, Tensor]:
    """NNGP kernel and NTK together, `(nngp_kernel(...), ntk_kernel(...))`, in one pass.

    What the mean and covariance of an ensemble of trained wide networks ask for.

    >>> K, Theta = deep_kernels(torch.eye(2), activation="erf", depth=2, C_W=1.5, C_b=0.1)
    >>> bool((Theta > K).all())
    True
    """
    K, Theta = _mlp_kernels(X, Z, activation, depth, C_W, C_b, ntk=True)
    return K, Theta


def cnn_nngp_kernel(
    X: Tensor,
    Z: Tensor | None = None,
    *,
    activation: Activation,
    filter_sizes: Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: str = "same",
    C_W: float | Tensor = 1.0,
    C_b: float | Tensor = 0.0,
) -> Tensor:
    """Covariance of the outputs of an infinitely wide convolutional network at initialisation.

    K⁰_p = C_b + C_W ⟨x_q·z_q⟩/channels;  K^{l+1}_p = C_b + C_W ⟨E[φ(u_q)φ(v_q)]⟩, with the mean ⟨·⟩
    over the positions q of the window around p; the last mean is over all positions, a linear
    readout of the flattened last layer. Such a readout sees each position with itself alone, so
    that a pair of inputs takes as many numbers as there are positions. Weights have variance
    C_W/fan_in, biases C_b; what padding adds is zero. Differentiable in X, Z, C_W and C_b.

    Args:
        X: inputs, shape (n, channels, length) or (n, channels, height, width), and so on.
        Z: other inputs, shape (m, ...); X itself when left out, at half the cost.
        activation: elementwise φ; see `gaussian_dual`.
        filter_sizes: side of the window of each convolution, from the input; at least one.
        strides: of each convolution, or one for all. With strides equal to filter sizes and
            padding "valid" windows do not overlap.
        padding: "same" (zeros around) or "valid".
        C_W: weight variance times fan-in, positive (He initialisation of ReLU: 2).
        C_b: bias variance, not negative.

    Returns:
        Kernel of shape (n, m), dtype and device of X, computed in float64.

    Raises:
        ValueError: shapes that do not fit, a window larger than what it slides over, variances.
        TypeError: X or Z is no floating-point tensor.

    Source: Novak et al. 2019 (arXiv 1810.05148), the vectorised readout.

    >>> X = torch.eye(4)[:, None]  # four signals of length 4 with one channel
    >>> cnn_nngp_kernel(X, activation="relu", filter_sizes=[3], C_W=2.0)[0]
    tensor([0.3333, 0.1061, 0.0531, 0.0000])
    """
    layers = _Convolutions(X, Z, filter_sizes, strides, padding)
    return _cnn_kernels(X, Z, activation, layers, C_W, C_b, ntk=False)[0]


def cnn_ntk_kernel(
    X: Tensor,
    Z: Tensor | None = None,
    *,
    activation: Activation,
    filter_sizes: Sequence[int],
    strides: int | Sequence[int] = 1,
    padding: str = "same",
    C_W: float | Tensor = 1.0,
    C_b: float | Tensor = 0.0,
) -> Tensor:
    """Neural tangent kernel of an infinitely wide convolutional network.

    Θ⁰ = K⁰;  Θ^{l+1}_p = K^{l+1}_p + C_W ⟨E[φ′(u_q)φ′(v_q)] Θ^l_q⟩, with K and means of
    `cnn_nngp_kernel`, whose arguments, result and errors these are; parametrisation and learning
    rates are those of `ntk_kernel`.

    Source: Arora et al. 2019 (arXiv 1904.11955), without pooling.

    >>> X = torch.rand(3, 1, 8, 8)
    >>> cnn_ntk_kernel(X, activation="relu", filter_sizes=[3, 3], C_W=2.0).shape
    torch.Size([3, 3])
    """
    layers = _Convolutions(X, Z, filter_sizes, strides, padding)
    return _cnn_kernels(X, Z, activation, layers, C_W, C_b, ntk=True)[1]


# ---------------------------------------------------------------------------------------------
# Posteriors
# ---------------------------------------------------------------------------------------------


def psd_safe_cholesky(K: Tensor) -> Tensor:
    """Cholesky factor of a kernel matrix that rounding may have made slightly indefinite.

    Tries K as it is; where that fails, adds jitter to the diagonal: 1e-10 of its mean, then ten
    times as much up to 1e-6 (float32: 1e-6 up to 1e-3), and says so in a `RuntimeWarning`.

    Args:
        K: symmetric matrices, shape (..., n, n), float32 or float64. Differentiable.

    Raises:
        ValueError: K is not square, not finite, or not positive definite even so.

    >>> psd_safe_cholesky(torch.tensor([[4.0, 2.0], [2.0, 2.0]]))
    tensor([[2., 0.],
            [1., 1.]])
    """
    if K.ndim < 2 or K.shape[-1] != K.shape[-2]:
        raise ValueError(f"K must have shape (..., n, n), got {tuple(K.shape)}")
    L, info = torch.linalg.cholesky_ex(K)
    if not info.any():
        return L
    if not torch.isfinite(K).all():
        raise ValueError("K has entries that are not finite")
    scale = K.diagonal(dim1=-2, dim2=-1).mean(-1)
    for jitter in (
        10.0 ** torch.arange(-10, -5) if K.dtype == torch.float64 else (1e-6, 1e-5, 1e-4, 1e-3)
    ):
        amount = torch.where(info > 0, scale * float(jitter), 0.0)
        L, failed = torch.linalg.cholesky_ex(
            K + torch.diag_embed(amount[..., None].expand(K.shape[:-1]))
        )
        if not failed.any():
            warnings.warn(
                f"the kernel matrix is singular to rounding: added {float(jitter):.0e} of its mean "
                "diagonal",
                RuntimeWarning,
                stacklevel=2,
            )
            return L
    raise ValueError("kernel matrix is not positive definite; increase noise (or ridge)")


def gp_posterior(
    K_xx: Tensor, K_tx: Tensor, K_tt: Tensor, y: Tensor, *, noise: float | Tensor = 0.0
) -> tuple[Tensor, Tensor]:
    """Posterior of a Gaussian process at test points t, given y at training points x.

    mean = K_tx (K_xx + noise·I)⁻¹ y,  covariance = K_tt − K_tx (K_xx + noise·I)⁻¹ K_xt,
    by one Cholesky factorisation (`psd_safe_cholesky`). The covariance is that of the function;
    add `noise` for observations.

    Args:
        K_xx: prior covariance of the training points, shape (..., n, n).
        K_tx: test by training, shape (..., t, n).
        K_tt: test by test, shape (..., t, t), or only its diagonal, shape (..., t).
        y: targets, shape (..., n) or (..., n, q) for q outputs with one covariance.
        noise: variance of the observation noise, a number or one per training point, shape (n,).

    Returns:
        Mean of shape (..., t) or (..., t, q), and covariance in the shape of K_tt.

    Raises:
        ValueError: shapes that do not fit, negative noise, or a K_xx that is not positive definite.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> mean, variance = gp_posterior(one, one / 2, one[0], 2 * one[0], noise=0.0)
    >>> mean.item(), variance.item()
    (1.0, 0.75)
    """
    n, t = K_xx.shape[-1], K_tx.shape[-2]
    vector = y.ndim == K_xx.ndim - 1
    if K_tx.shape[-1] != n or y.shape[-1 if vector else -2] != n:
        raise ValueError(
            f"K_xx {tuple(K_xx.shape)}, K_tx {tuple(K_tx.shape)} and y {tuple(y.shape)} disagree "
            "on the number of training points"
        )
    diagonal = K_tt.ndim == K_xx.ndim - 1
    if K_tt.shape[-1] != t or not (diagonal or K_tt.shape[-2] == t):
        raise ValueError(
            f"K_tt must have shape (..., {t}, {t}) or (..., {t}), got {tuple(K_tt.shape)}"
        )
    noise = torch.as_tensor(noise, dtype=K_xx.dtype, device=K_xx.device)
    if (noise < 0).any():
        raise ValueError("noise must not be negative")
    L = psd_safe_cholesky(K_xx + torch.diag_embed(noise.expand(K_xx.shape[:-1])))
    half = torch.linalg.solve_triangular(L, K_tx.mT, upper=False)  # L⁻¹ K_xt
    white = torch.linalg.solve_triangular(L, y[..., None] if vector else y, upper=False)
    mean = half.mT @ white
    covariance = K_tt - (half.square().sum(-2) if diagonal else half.mT @ half)
    return mean[..., 0] if vector else mean, covariance


def ntk_posterior(
    K_xx: Tensor,
    K_tx: Tensor,
    K_tt: Tensor,
    Theta_xx: Tensor,
    Theta_tx: Tensor,
    y: Tensor,
    *,
    time: float = math.inf,
) -> tuple[Tensor, Tensor]:
    """Outputs of wide networks after gradient descent on ½‖f − y‖²: mean and covariance.

    With A = Θ_tx Θ_xx⁻¹ (I − e^{−time·Θ_xx}), over independent initialisations and in the limit
    of width the output at test points t is Gaussian with
    mean = A y,  covariance = K_tt + A K_xx Aᵀ − A K_xt − (A K_xt)ᵀ.
    Where only the last layer is trained, Θ is K: pass it twice; at infinite time the result is
    then `gp_posterior` without noise.

    Args:
        K_xx: covariance of the outputs at the start, training points, shape (n, n).
        K_tx: test by training, shape (t, n).
        K_tt: test by test, shape (t, t), or only its diagonal, shape (t,).
        Theta_xx: tangent kernel of the training points, shape (n, n).
        Theta_tx: test by training, shape (t, n).
        y: targets, shape (n,) or (n, q) for q outputs with the same kernels.
        time: learning rate times steps; infinite for training to the end.

    Returns:
        Mean of shape (t,) or (t, q), and covariance in the shape of K_tt.

    Raises:
        ValueError: shapes that do not fit, a negative time, or, at infinite time, a Theta_xx that
            is not positive definite.

    Source: Lee et al. 2019 (arXiv 1902.06720), equations 14 to 16.

    >>> one = torch.ones(1, 1, dtype=torch.float64)
    >>> mean, variance = ntk_posterior(one, one, one[0], 2 * one, one, one[0])
    >>> mean, variance  # the test point moves half as far
    (tensor([0.5000], dtype=torch.float64), tensor([0.2500], dtype=torch.float64))
    """
    n, t = K_xx.shape[-1], K_tx.shape[-2]
    shapes = {"K_xx": (n, n), "Theta_xx": (n, n), "K_tx": (t, n), "Theta_tx": (t, n)}
    for name, kernel in zip(shapes, (K_xx, Theta_xx, K_tx, Theta_tx)):
        if kernel.shape != shapes[name]:
            raise ValueError(f"{name} must have shape {shapes[name]}, got {tuple(kernel.shape)}")
    if K_tt.shape not in ((t,), (t, t)):
        raise ValueError(f"K_tt must have shape ({t}, {t}) or ({t},), got {tuple(K_tt.shape)}")
    if len(y) != n or y.ndim > 2:
        raise ValueError(f"y must have shape ({n},) or ({n}, q), got {tuple(y.shape)}")
    if not time >= 0:
        raise ValueError(f"time must not be negative, got {time}")
    if math.isinf(time):
        A = torch.cholesky_solve(Theta_tx.mT, psd_safe_cholesky(Theta_xx)).mT
    else:
        rate, mode = torch.linalg.eigh(Theta_xx)
        progress = -torch.expm1(-time * rate) / rate
        A = (Theta_tx @ mode) * torch.where(rate == 0, time, progress) @ mode.mT
    moved = A @ K_xx - 2 * K_tx  # A K Aᵀ − A K_xt − (A K_xt)ᵀ, but for symmetry
    if K_tt.ndim == 1:
        return A @ y, K_tt + (moved * A).sum(-1)
    change = moved @ A.mT
    return A @ y, K_tt + (change + change.mT) / 2


def empirical_ntk(
    model: nn.Module, X: Tensor, Z: Tensor | None = None, *, chunk_size: int | None = None
) -> Tensor:
    """Neural tangent kernel of a network as it is: inner products of parameter gradients.

    Θ(x, z) = (1/q) Σ_c ⟨∂f_c(x)/∂θ, ∂f_c(z)/∂θ⟩ over the q outputs and all parameters that
    require gradients. In the NTK parametrisation it tends to `ntk_kernel` with width.

    Args:
        model: any module that maps a batch (n, ...) to outputs (n, q) or (n,), example by
            example (batch norm and dropout in `eval` mode). Not changed.
        X: inputs, shape (n, ...).
        Z: other inputs, shape (m, ...); X itself when left out.
        chunk_size: rows whose Jacobians are held at once (all by default); memory is
            2 · chunk_size · q · (number of parameters).

    Returns:
        Kernel of shape (n, m).

    Raises:
        ValueError: no parameter requires gradients, or `chunk_size` is not positive.

    >>> linear = torch.nn.Linear(2, 3)
    >>> X = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
    >>> empirical_ntk(linear, X)  # x·z + 1
    tensor([[2., 2.],
            [2., 6.]])
    """
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, got {chunk_size}")
    parameters = {k: p.detach() for k, p in model.named_parameters() if p.requires_grad}
    if not parameters:
        raise ValueError("model: no parameter requires gradients")
    held = {k: p.detach() for k, p in model.named_parameters() if not p.requires_grad}
    held |= dict(model.named_buffers())

    def outputs(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(model, (parameters, held), (x[None],)).flatten()

    jacobian = torch.func.vmap(torch.func.jacrev(outputs), in_dims=(None, 0))

    def gram(rows: Tensor, columns: Tensor | None) -> Tensor:
        left = jacobian(parameters, rows)
        right = left if columns is None else jacobian(parameters, columns)
        return sum(
            left[k].flatten(1) @ right[k].flatten(1).mT / left[k].shape[1] for k in parameters
        )

    size = chunk_size or max(len(X), 1 if Z is None else len(Z))
    rows = X.split(size)
    if Z is not None:
        return torch.cat([torch.cat([gram(x, z) for z in Z.split(size)], 1) for x in rows])
    kernel = X.new_empty(len(X), len(X), dtype=next(iter(parameters.values())).dtype)
    for i, x in enumerate(rows):
        for j, z in enumerate(rows[: i + 1]):
            block = gram(x, None if i == j else z)
            here, there = slice(i * size, i * size + len(x)), slice(j * size, j * size + len(z))
            kernel[here, there], kernel[there, here] = block, block.mT
    return kernel


# ---------------------------------------------------------------------------------------------
# Private: duals
# ---------------------------------------------------------------------------------------------


class _ArcCosine(torch.autograd.Function):
    """2πκ₁ = √(1−ρ²) + ρ(π − arccos ρ) and 2πκ₀ = π − arccos ρ, with the gradient κ₁′ = κ₀.

    Autograd's own gradient of κ₁ is ∞ − ∞ at |ρ| = 1, where every kernel has its diagonal.
    """

    @staticmethod
    def forward(ctx: Any, rho: Tensor) -> tuple[Tensor, Tensor]:
        rho = rho.clamp(-1, 1)
        k0 = rho.acos().neg_().add_(math.pi)
        k1 = (rho * rho).neg_().add_(1).sqrt_().addcmul_(rho, k0)
        ctx.save_for_backward(k0, rho)
        return k1, k0

    @staticmethod
    def backward(ctx: Any, grad_k1: Tensor, grad_k0: Tensor) -> Tensor:
        k0, rho = ctx.saved_tensors
        sine2 = 1 - rho * rho
        # On the diagonal ρ does not move, so that the pole of κ₀′ there meets a zero: call it 0.
        inside = sine2 > 1e-15
        return grad_k1 * k0 + grad_k0 * torch.where(inside, sine2.clamp(min=1e-15).rsqrt(), 0.0)


def _closed_form(activation: Activation, degree: int) -> GaussianDual:
    phi = _as_function(activation)
    source: Any = _NAMED[activation] if isinstance(activation, str) else activation
    if hasattr(source, "gaussian_dual"):
        return source.gaussian_dual()
    kind: Any = type(source) if isinstance(source, nn.Module) else source
    if kind in (nn.ReLU, torch.relu, F.relu):
        return RectifierDual(phi, 0.0)
    if kind is nn.LeakyReLU:
        return RectifierDual(phi, source.negative_slope)
    if kind is nn.PReLU and source.num_parameters == 1:
        return RectifierDual(phi, source.weight.item())
    if kind is nn.Identity:
        return RectifierDual(phi, 1.0)
    if kind in (torch.abs, torch.Tensor.abs):
        return RectifierDual(phi, -1.0)
    if kind in (torch.erf, torch.special.erf):
        return ErfDual(phi)
    if kind in (torch.sin, torch.cos):
        return SineDual(phi, cosine=kind is torch.cos)
    if kind is F.gelu or (kind is nn.GELU and source.approximate == "none"):
        return GELUDual(phi)
    return HermiteDual(phi, degree)


def _as_function(activation: Activation) -> Callable[[Tensor], Tensor]:
    """φ on float64 tensors of any shape; a user's module is copied, so that it stays as it is."""
    if isinstance(activation, str):
        if activation not in _NAMED:
            raise ValueError(
                f"activation {activation!r} is unknown: choose from {', '.join(_NAMED)}"
            )
        return _NAMED[activation]
    if isinstance(activation, _Checked):
        return activation
    if not callable(activation):
        raise TypeError(f"activation must be callable or a name, got {type(activation).__name__}")
    return _Checked(activation)


class _Checked:
    """An activation that was seen to be elementwise, evaluated in float64 where the input is."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        if isinstance(activation, nn.Module):
            activation = copy.deepcopy(activation).double().eval().requires_grad_(False)
            out_of_place_(activation)
        self.function = activation
        probe = torch.linspace(-2, 2, 7, dtype=torch.float64)
        try:
            whole, part = self(probe), self(probe[2:5])
            elementwise = whole.shape == probe.shape and torch.allclose(whole[2:5], part)
        except (RuntimeError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"activation must be elementwise: shape (N,) -> (N,); {error}"
            ) from error
        if not torch.equal(probe, torch.linspace(-2, 2, 7, dtype=torch.float64)):
            raise ValueError("activation must return new values, and it overwrites its input")
        if not elementwise:
            raise ValueError("activation must be elementwise: shape (N,) -> (N,)")

    def __call__(self, u: Tensor) -> Tensor:
        if isinstance(self.function, nn.Module):
            self.function.to(u.device)
        return self.function(u)


def out_of_place_(module: nn.Module) -> None:
    """Have no activation in it overwrite its input, as `nn.ReLU(inplace=True)` does."""
    for part in module.modules():
        if getattr(part, "inplace", False):
            part.inplace = False  # type: ignore[assignment]


def _derivative(phi: Callable[[Tensor], Tensor], u: Tensor) -> Tensor:
    differentiable = u.requires_grad and torch.is_grad_enabled()
    with torch.enable_grad():
        u = u if differentiable else u.detach().requires_grad_()
        value = phi(u)
        if not value.requires_grad:
            return torch.zeros_like(u)  # a piecewise constant φ, such as sign
        return torch.autograd.grad(value.sum(), u, create_graph=differentiable)[0]


@lru_cache(maxsize=1)
def _quadrature(panels: int = 200, order: int = 16, reach: float = 16.0) -> tuple[Tensor, Tensor]:
    node, weight = np.polynomial.legendre.leggauss(order)
    half = reach / panels
    z = (np.linspace(-reach, reach, panels, endpoint=False)[:, None] + half * (node + 1)).ravel()
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    return torch.from_numpy(z), torch.from_numpy(np.tile(half * weight, panels) * density)


@lru_cache(maxsize=8)
def _hermite_basis(degree: int) -> Tensor:
    """w h_k(z) at the quadrature nodes, shape (nodes, degree + 1)."""
    z, w = _quadrature()
    columns = [torch.ones_like(z), z]
    for k in range(1, degree):
        columns.append((z * columns[k] - math.sqrt(k) * columns[k - 1]) / math.sqrt(k + 1))
    return w[:, None] * torch.stack(columns[: degree + 1], 1)


def _rows_per_chunk(nodes: int) -> int:
    return max(1, 2**20 // nodes)


def _as_tensor(value: Tensor | float) -> Tensor:
    if not isinstance(value, Tensor):
        return torch.as_tensor(value, dtype=torch.float64)
    return value if value.is_floating_point() else value.double()


# ---------------------------------------------------------------------------------------------
# Private: kernels
# ---------------------------------------------------------------------------------------------


def _mlp_kernels(
    X: Tensor,
    Z: Tensor | None,
    activation: Activation,
    depth: int,
    C_W: float | Tensor,
    C_b: float | Tensor,
    ntk: bool,
) -> tuple[Tensor, ...]:
    _check(X, Z, depth, C_W, C_b)
    x = X.reshape(-1, *X.shape[-2:])
    z = None if Z is None else Z.reshape(-1, *Z.shape[-2:])
    pools: list[Pool] = [_each] * depth
    kernels = _kernels(x, z, gaussian_dual(activation), pools, C_W, C_b, ntk)
    return tuple(kernel.reshape(*X.shape[:-1], kernel.shape[-1]) for kernel in kernels)


def _cnn_kernels(
    X: Tensor,
    Z: Tensor | None,
    activation: Activation,
    layers: _Convolutions,
    C_W: float | Tensor,
    C_b: float | Tensor,
    ntk: bool,
) -> tuple[Tensor, ...]:
    _check_variances(C_W, C_b)
    x = layers.patches(X)
    z = None if Z is None else layers.patches(Z)
    kernels = _kernels(x, z, gaussian_dual(activation), layers.pools, C_W, C_b, ntk)
    return tuple(kernel[0] for kernel in kernels)


def _kernels(
    X: Tensor,
    Z: Tensor | None,
    dual: GaussianDual,
    pools: list[Pool],
    C_W: float | Tensor,
    C_b: float | Tensor,
    ntk: bool,
) -> tuple[Tensor, ...]:
    """NNGP kernel, and NTK, (batch, n, m) of inputs (batch, *positions, n or m, d)."""
    x = X.double()
    z = x if Z is None else Z.double()
    n, m = x.shape[-2], z.shape[-2]

    def first_layer(products: Tensor) -> Tensor:
        return products.mul_(C_W / x.shape[-1]).add_(C_b)

    layers = (pools, dual, C_W * dual.gain, C_b)
    rows_x, diagonals = _rows_by_layer(first_layer(x.square().sum(-1, keepdim=True)), *layers)
    rows_z = rows_x
    if Z is not None:
        rows_z, _ = _rows_by_layer(first_layer(z.square().sum(-1, keepdim=True)), *layers)

    def tile(batch: slice, rows: slice, columns: slice) -> tuple[Tensor, ...]:
        K = first_layer(x[batch, ..., rows, :] @ z[batch, ..., columns, :].mT)
        u = [row[:, batch, ..., rows, :] for row in rows_x]
        v = [row[:, batch, ..., columns, :].mT for row in rows_z]
        return _propagate(K, u, v, *layers, ntk)

    if torch.is_grad_enabled() and any(
        isinstance(t, Tensor) and t.requires_grad for t in (X, Z, C_W, C_b)
    ):
        kernels = tile(slice(None), slice(None), slice(None))
        if Z is None:
            kernels = tuple(map(_with_diagonal, kernels, diagonals))
        return tuple(kernel.to(X.dtype) for kernel in kernels)

    kernels = tuple(X.new_empty(len(x), n, m) for _ in range(1 + ntk))

    @torch.no_grad()
    def fill(place: tuple[slice, slice, slice]) -> None:
        batch, rows, columns = place
        for kernel, block in zip(kernels, tile(*place)):
            if Z is None and rows != columns:
                kernel[batch, columns, rows] = block.mT
            elif Z is None:
                block = block.tril() + block.tril(-1).mT
            kernel[batch, rows, columns] = block

    side = max(8, round(_TILE / math.prod(x.shape[1:-2]) ** 0.5))
    _for_each(fill, list(_tiles(len(x), n, m, side, lower=Z is None)))
    if Z is None:
        for kernel, diagonal in zip(kernels, diagonals):
            kernel.diagonal(dim1=-2, dim2=-1).copy_(diagonal[..., 0])
    return kernels


class _Convolutions:
    """The windows of a chain of convolutions and of the readout, on positions that lead."""

    def __init__(
        self,
        X: Tensor,
        Z: Tensor | None,
        filter_sizes: Sequence[int],
        strides: int | Sequence[int],
        padding: str,
    ) -> None:
        _check_inputs(X, Z, "(n, channels, length, ...)", least=3)
        if Z is not None and Z.shape[1:] != X.shape[1:]:
            raise ValueError(
                f"X {tuple(X.shape)} and Z {tuple(Z.shape)} must agree in all but the number of "
                "rows"
            )
        sizes = list(filter_sizes)
        steps = [strides] * len(sizes) if isinstance(strides, int) else list(strides)
        if not sizes or min(sizes) < 1:
            raise ValueError(f"filter_sizes must be one or more positive sides, got {sizes}")
        if len(steps) != len(sizes) or min(steps) < 1:
            raise ValueError(f"strides must be positive, one for each filter, got {steps}")
        if padding not in ("same", "valid"):
            raise ValueError(f'padding must be "same" or "valid", got {padding!r}')
        self.axes = range(1, X.ndim - 1)  # behind the batch
        self.padding = padding
        self.first, *others = zip(sizes, steps)
        self.pools: list[Pool] = [partial(self._mean, size=f, stride=t) for f, t in others]
        self.pools.append(lambda K: K.mean(tuple(self.axes)))

    def patches(self, X: Tensor) -> Tensor:
        """(n, channels, *space) to (1, *positions of the first layer, n, channels · window)."""
        x = X.movedim((0, 1), (-2, -1))[None]
        size, stride = self.first
        for axis in self.axes:
            x = self._padded(x, axis, size, stride).unfold(axis, size, stride)
        return x.flatten(-1 - len(self.axes)).contiguous()

    def _mean(self, K: Tensor, size: int, stride: int) -> Tensor:
        """Means over windows: axis by axis, as sums of slices, whose pairs lie side by side."""
        for axis in self.axes:
            K = self._padded(K, axis, size, stride).movedim(axis, 0)
            end = len(K) - size + 1
            slices = (K[i : i + end : stride] for i in range(size))
            K = reduce(torch.add, slices).movedim(0, axis)
        return K / size ** len(self.axes)

    def _padded(self, K: Tensor, axis: int, size: int, stride: int) -> Tensor:
        length = K.shape[axis]
        if self.padding == "same":
            missing = max((-(-length // stride) - 1) * stride + size - length, 0)
            pad = (missing // 2, missing - missing // 2)
            return F.pad(K, (0, 0) * (K.ndim - 1 - axis) + pad) if missing else K
        if size > length:
            raise ValueError(
                f"filter_sizes: a window of {size} does not fit the {length} positions that are "
                'left; use padding="same" or fewer layers'
            )
        return K


def _each(K: Tensor) -> Tensor:
    return K


def _rows_by_layer(
    K: Tensor, pools: list[Pool], dual: GaussianDual, C_W: float | Tensor, C_b: float | Tensor
) -> tuple[list[Tensor], tuple[Tensor, Tensor]]:
    """What pairs need to know of each row, layer by layer, and the diagonals K(x,x), Θ(x,x)."""
    Theta, rows = K, []
    for pool in pools:
        rows.append(dual._row(K))
        value, slope = dual._point(K)
        K = C_W * pool(value) + C_b
        Theta = K + C_W * pool(slope * Theta)
    return rows, (K, Theta)


def _propagate(
    K: Tensor,
    u: list[Tensor],
    v: list[Tensor],
    pools: list[Pool],
    dual: GaussianDual,
    C_W: float | Tensor,
    C_b: float | Tensor,
    ntk: bool,
) -> tuple[Tensor, ...]:
    """The recursion over layers for one block of pairs, from the first layer's kernel."""
    Theta = K
    for row_u, row_v, pool in zip(u, v, pools):
        value, *slope = dual._pair(K, row_u, row_v, ntk)
        K = pool(value).mul_(C_W).add_(C_b)  # in place: fresh memory that is still in the cache
        if ntk:
            Theta = pool(slope[0].mul_(C_W) * Theta).add_(K)
    return (K, Theta) if ntk else (K,)


def _for_each(work: Callable[[Any], None], items: list[Any]) -> None:
    """`work` on every item, on as many threads as torch has.

    Operations on one tile are below the size at which torch splits them, so that each thread
    keeps its own tile in its own cache, and none waits for another.
    """
    threads = min(torch.get_num_threads(), len(items))
    if threads < 2:
        for item in items:
            work(item)
    else:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, items))


def _with_diagonal(kernel: Tensor, diagonal: Tensor) -> Tensor:
    return torch.diagonal_scatter(kernel, diagonal[..., 0], dim1=-2, dim2=-1)


def _tiles(
    batch: int, n: int, m: int, side: int, lower: bool
) -> Iterator[tuple[slice, slice, slice]]:
    """Blocks of at most side² pairs: whole small matrices together, large ones in squares."""
    together = max(1, side**2 // max(1, min(n, side) * min(m, side)))
    for b in range(0, batch, together):
        for i in range(0, n, side):
            for j in range(0, i + 1 if lower else m, side):
                yield slice(b, b + together), slice(i, i + side), slice(j, j + side)


def _check(
    X: Tensor, Z: Tensor | None, depth: int, C_W: float | Tensor, C_b: float | Tensor
) -> None:
    _check_inputs(X, Z, "(..., n, d)", least=2)
    if Z is not None and (Z.shape[-1] != X.shape[-1] or Z.shape[:-2] != X.shape[:-2]):
        raise ValueError(
            f"X {tuple(X.shape)} and Z {tuple(Z.shape)} must agree in all but the number of rows"
        )
    if not isinstance(depth, int) or depth < 0:
        raise ValueError(f"depth must be an integer of at least 0, got {depth!r}")
    _check_variances(C_W, C_b)


def _check_inputs(X: Tensor, Z: Tensor | None, shape: str, least: int) -> None:
    for name, inputs in (("X", X), ("Z", Z)):
        if inputs is None:
            continue
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
            raise TypeError(f"{name} must be a floating-point tensor, got {_describe(inputs)}")
        if inputs.ndim < least or 0 in inputs.shape[1 - least :]:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(inputs.shape)}")


def _check_variances(C_W: float | Tensor, C_b: float | Tensor) -> None:
    if not 0 < C_W < math.inf:
        raise ValueError(f"C_W must be positive and finite, got {C_W}")
    if not 0 <= C_b < math.inf:
        raise ValueError(f"C_b must not be negative and must be finite, got {C_b}")


def _describe(value: object) -> str:
    return f"dtype {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


__all__ = [
    "Activation", "GaussianDual", "cnn_nngp_kernel", "cnn_ntk_kernel", "deep_kernels",
    "empirical_ntk", "gaussian_dual", "gaussian_quadrature", "gp_posterior",
    "hermite_coefficients", "nngp_kernel", "ntk_kernel", "ntk_posterior", "psd_safe_cholesky",
]  # fmt: skip
