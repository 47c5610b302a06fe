"""Activations as Fourier integrals, from which frequencies are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


class FourierMeasure:
    """A function as a Fourier integral, `f(z) = ∫ F(ξ) e^{2πiξz} dξ`, that ξ can be drawn from.

    `UniversalRandomFeatures` takes any: `FourierSeries` and `fit_fourier` make them of sums. For a
    density of your own write `sample`; `__call__` is there to look at.
    """

    def sample(self, m: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """m frequencies ξ_j ~ p in float64, and the ratios F(ξ_j) / p(ξ_j) in complex128."""
        raise NotImplementedError

    def __call__(self, z: Tensor) -> Tensor:
        """f(z), elementwise."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class FourierSeries(FourierMeasure):
    """A sum of waves, `f(z) = Re Σ_k c_k e^{2πi ξ_k z}`.

    Frequencies are drawn with probability `p_k = |c_k| / Σ|c|`, so that all ratios `c_k / p_k` have
    one modulus, Σ|c|.

    Args:
        frequencies: ξ, shape (K,), in waves a unit.
        coefficients: c, shape (K,), complex or real.

    Raises:
        ValueError: another shape, a value that is not finite, or all coefficients 0.

    >>> cosine = FourierSeries(torch.tensor([0.5]), torch.tensor([2.0]))  # 2 cos(πz)
    >>> cosine(torch.tensor([0.0, 1.0]))
    tensor([ 2., -2.])
    """

    frequencies: Tensor
    coefficients: Tensor

    def __post_init__(self) -> None:
        xi, c = self.frequencies, self.coefficients
        if xi.dim() != 1 or xi.shape != c.shape or not len(xi):
            raise ValueError(
                "frequencies and coefficients must have one shape (K,), got "
                f"{tuple(xi.shape)} and {tuple(c.shape)}"
            )
        if not (xi.isfinite().all() and c.isfinite().all() and c.abs().sum() > 0):
            raise ValueError("frequencies and coefficients must be finite, and one of these not 0")

    def sample(self, m: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        c = self.coefficients.to("cpu", torch.complex128)
        drawn = torch.multinomial(c.abs(), m, replacement=True, generator=generator)
        return self.frequencies.to("cpu", torch.float64)[drawn], c[drawn].sgn() * c.abs().sum()

    def __call__(self, z: Tensor) -> Tensor:
        c = self.coefficients.to(z.device, torch.complex128)
        angle = 2 * math.pi * self.frequencies.to(z) * z.unsqueeze(-1)
        return (c.real.to(z) * angle.cos()).sum(-1) - (c.imag.to(z) * angle.sin()).sum(-1)


class GaussianMeasure(FourierMeasure):
    """exp(-z²/2), whose frequencies 2πξ are standard normal themselves."""

    def sample(self, m: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        xi = torch.randn(m, generator=generator, dtype=torch.float64) / (2 * math.pi)
        return xi, torch.ones(m, dtype=torch.complex128)

    def __call__(self, z: Tensor) -> Tensor:
        return torch.exp(-z.square() / 2)


def fit_fourier(f: Callable[[Tensor], Tensor], radius: float, terms: int) -> FourierSeries:
    """A Fourier series of a function on an interval, for activations without a Fourier transform.

        `f(z) ≈ a_0 + Σ_{k=1}^{terms} a_k cos(πkz/2R) + b_k sin(πkz/2R)`,  |z| <= R

    For tanh, GELU and their like in `UniversalRandomFeatures`. The series has period 4R, so that a
    function with f(-R) ≠ f(R) meets no jump, and is fitted on [-R, R] by least squares with a
    penalty of 1e-6 on the coefficients, which would grow huge without one (both ours). Few terms
    are best: features of high frequencies have a variance exponential in them. Outside of the
    interval nothing is promised; look at the fit with `measure(z)`.

    Args:
        f: the function, elementwise on tensors.
        radius: R, how large |w·x + b| gets.
        terms: number of frequencies besides 0.

    Raises:
        ValueError: radius or terms is not positive, or f is not finite on the interval.

    Source: arXiv 2310.13225 asks for a Fourier transform; that other functions can be fitted on an
    interval is its remark, how is ours.

    >>> measure = fit_fourier(torch.tanh, radius=3.0, terms=6)
    >>> z = torch.linspace(-3, 3, 7)
    >>> (measure(z) - z.tanh()).abs().max() < 0.01
    tensor(True)
    """
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be positive, got {radius!r}")
    if isinstance(terms, bool) or not isinstance(terms, int) or terms < 1:
        raise ValueError(f"terms must be a positive integer, got {terms!r}")
    z = torch.linspace(-radius, radius, 50 * (terms + 1), dtype=torch.float64)
    values = f(z)
    if values.shape != z.shape or not values.isfinite().all():
        raise ValueError(f"f must be elementwise and finite on [-{radius:g}, {radius:g}]")
    xi = torch.arange(terms + 1, dtype=torch.float64) / (4 * radius)
    angle = 2 * math.pi * xi * z.unsqueeze(-1)
    waves = torch.cat([angle.cos(), angle.sin()[:, 1:]], 1)
    gram = waves.T @ waves / len(z)
    penalty = 1e-6 * torch.eye(len(gram), dtype=torch.float64)
    a, b = torch.linalg.solve(gram + penalty, waves.T @ values / len(z)).split([terms + 1, terms])
    # a cos + b sin = Re (a - ib) e^{i...}, half of it at ξ and half at -ξ
    c = torch.complex(a[1:], -b) / 2
    return FourierSeries(
        torch.cat([xi, -xi[1:]]), torch.cat([a[:1].to(torch.complex128), c, c.conj()])
    )


def fourier_measure(activation: str | FourierMeasure) -> FourierMeasure:
    """The measure of an activation's name, or what is one already.

    Raises:
        ValueError: no such activation.
    """
    if isinstance(activation, FourierMeasure):
        return activation
    if activation == "gaussian":
        return GaussianMeasure()
    waves = {"cos": [0.5, 0.5], "sin": [-0.5j, 0.5j]}
    if activation not in waves:
        raise ValueError(f"activation {activation!r} has no Fourier measure; use fit_fourier")
    xi = torch.tensor([1.0, -1.0], dtype=torch.float64) / (2 * math.pi)
    return FourierSeries(xi, torch.tensor(waves[activation], dtype=torch.complex128))
