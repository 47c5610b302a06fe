"""Random features whose dot product is a feed-forward layer: f(w·x + b) = E Φ(x)·Ψ(w, b)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.compress.snnk.fourier import FourierMeasure, fourier_measure


class RandomFeatures(nn.Module):
    """Maps x and (w, b) apart from each other into vectors whose dot product is a kernel of both.

    `phi(x)` reads inputs, `psi(w, b)` the parameters of a layer; calling the module is `phi`.
    The projections `G` are a buffer: saved, moved and shared by both sides. Everything is real.

    Attributes:
        in_features: d, the entries of x and w.
        num_features: the entries of `phi(x)`.
        bias: whether `psi` has a place for b.
    """

    G: Tensor
    bias: bool
    in_features: int
    num_features: int
    normalize: float | None

    def phi(self, x: Tensor) -> Tensor:
        """Features (..., num_features) of inputs (..., in_features), in their dtype."""
        raise NotImplementedError

    def psi(self, w: Tensor, b: Tensor | None = None) -> Tensor:
        """Features (..., num_features) of weights (..., in_features) and biases (...)."""
        raise NotImplementedError

    def kernel(self, x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        """The estimate Φ(x)·Ψ(w, b): shape (..., k) for x (..., d), w (k, d) and b (k,)."""
        return torch.inner(self.phi(x), self.psi(w, b))

    def forward(self, x: Tensor) -> Tensor:
        return self.phi(x)

    def _inputs(self, x: Tensor) -> Tensor:
        _check_last(self, "x", x)
        return x if self.normalize is None else self.normalize * F.normalize(x, dim=-1)


class ArcCosineFeatures(RandomFeatures):
    """Rectified random projections: the features of ReLU-SNNK.

        `φ(x) = m^{-1/2} max(G x, c)`, elementwise, `ψ(w) = φ(w)`

    With floor `c = 0` the dot product tends to the arc-cosine kernel of order 1,
    `|x||w| (sin t + (π - t) cos t) / (2π)` with `t` the angle between x and w. This is not
    `ReLU(w·x)`, but depends on the length of w as well; trained weights make of it what they need.

    Args:
        in_features: d.
        m: number of features.
        floor: c; the official code has 0, and -5 in one script.
        bias: append 1 to x and b to w, so that biases count (ours). Without it a bias is refused.
        normalize: scale each input to this length first, such as d^(1/4).
        orthogonal: rows of G in orthogonal blocks, with the lengths of Gaussian rows.
        generator: draws G; torch's default generator, as for `torch.nn.Linear`, if None.

    Raises:
        ValueError: in_features or m is not positive, floor is not finite, normalize is not
            positive; on use, an input of another width, or a bias where there is none.

    Source: arXiv 2310.13225, section on ReLU-SNNK; the kernel: Cho and Saul 2009.

    >>> features = ArcCosineFeatures(4, 100_000, generator=torch.Generator().manual_seed(0))
    >>> x = torch.tensor([0.6, 0.0, 0.8, 0.0])
    >>> print(f"{features.kernel(x, x):.2f}")  # |x|²/2
    0.50
    """

    def __init__(
        self,
        in_features: int,
        m: int,
        *,
        floor: float = 0.0,
        bias: bool = False,
        normalize: float | None = None,
        orthogonal: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(in_features, m, normalize)
        if not math.isfinite(floor):
            raise ValueError(f"floor must be finite, got {floor!r}")
        self.in_features, self.m, self.num_features = in_features, m, m
        self.floor, self.bias, self.normalize = floor, bias, normalize
        rows = gaussian_rows(m, in_features + bias, orthogonal, generator)
        self.register_buffer("G", rows.to(torch.get_default_dtype()))

    def phi(self, x: Tensor) -> Tensor:
        x = self._inputs(x)
        return self._rectified(F.pad(x, (0, 1), value=1.0) if self.bias else x)

    def psi(self, w: Tensor, b: Tensor | None = None) -> Tensor:
        _check_last(self, "w", w)
        if b is not None and not self.bias:
            raise ValueError("b has no place in these features: make them with bias=True")
        if self.bias:
            b = w.new_zeros(w.shape[:-1]) if b is None else b
            w = torch.cat([w, b.unsqueeze(-1)], -1)
        return self._rectified(w)

    def _rectified(self, x: Tensor) -> Tensor:
        projected = F.linear(x, self.G.to(x.dtype))
        return projected.clamp(min=self.floor) / math.sqrt(self.m)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, m={self.m}, floor={self.floor}, bias={self.bias}"


class UniversalRandomFeatures(RandomFeatures):
    """Random features of any activation with a Fourier transform: f(w·x + b) without bias or limit.

    With `f(z) = ∫ F(ξ) e^{2πiξz} dξ`, frequencies `ξ_j` drawn from p, `g_j ~ N(0, I)`, and
    `2πiξ = ρ(ξ) η(ξ)`:

        `L_g(z) = (1-4A)^{d/4} exp(A|g|² + (1-4A)^{1/2} g·z - z·z/2)`  (no conjugates)
        `Φ_j(x) = m^{-1/2} L_{g_j}(ρ_j x)`
        `Ψ_j(w, b) = m^{-1/2} F(ξ_j)/p(ξ_j) e^{2πiξ_j b} L_{g_j}(η_j w)`

    and `E Re Φ(x)·Ψ(w, b) = f(w·x + b)`. `phi` and `psi` give two reals for each complex feature,
    `(Re Φ, -Im Φ)` and `(Re Ψ, Im Ψ)`, whose dot product is that real part.

    The error falls as m^{-1/2}, with a factor exponential in the lengths of x and w: keep both near
    1. `scale` moves length from one to the other, `normalize` fixes that of x.

    Args:
        in_features: d.
        m: number of complex features.
        activation: f: "sin", "cos", "gaussian" (`exp(-z²/2)`), or a measure from `fit_fourier`.
        A: below 1/4. 0 is the basic choice, a mildly negative one lowers the variance.
        split: "i" for `ρ = i sgn(ξ) |2πξ|^{1/2}`, `η = |2πξ|^{1/2}`; "symmetric" for `ρ = η`,
            better where x and w point away from each other. The paper's examples have |2πξ| = 1;
            beyond it the roots, which balance both sides, are our choice.
        scale: s: features of `x / s` and `s w`, which leaves w·x as it is.
        normalize: scale each input to this length first, such as d^(1/4).
        orthogonal: rows g in orthogonal blocks, with the lengths of Gaussian rows.
        generator: draws g and ξ; torch's default generator if None.

    Raises:
        ValueError: in_features, m, scale or normalize is not positive, A is 0.25 or more, an
            activation without a Fourier measure, another split; on use, an input of another width.

    Source: arXiv 2310.13225, section on universal random features.

    >>> features = UniversalRandomFeatures(2, 50_000, generator=torch.Generator().manual_seed(0))
    >>> x, w, b = torch.tensor([0.6, 0.2]), torch.tensor([[0.5, -0.3]]), torch.tensor([0.4])
    >>> abs(features.kernel(x, w, b).item() - math.sin(0.24 + 0.4)) < 0.02
    True
    """

    bias = True
    xi: Tensor
    log_modulus: Tensor
    phase: Tensor

    def __init__(
        self,
        in_features: int,
        m: int,
        activation: str | FourierMeasure = "sin",
        *,
        A: float = 0.0,
        split: Literal["i", "symmetric"] = "i",
        scale: float = 1.0,
        normalize: float | None = None,
        orthogonal: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(in_features, m, normalize)
        measure = fourier_measure(activation)
        if not (math.isfinite(A) and A < 0.25):
            raise ValueError(f"A must be below 0.25, got {A!r}")
        if split not in ("i", "symmetric"):
            raise ValueError(f"split must be 'i' or 'symmetric', got {split!r}")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive, got {scale!r}")
        self.in_features, self.m, self.num_features = in_features, m, 2 * m
        self.A, self.split, self.scale, self.normalize = A, split, scale, normalize
        xi, ratio = measure.sample(m, generator)
        rows = gaussian_rows(m, in_features, orthogonal, generator)
        buffers = {"G": rows, "xi": xi, "log_modulus": ratio.abs().log(), "phase": ratio.angle()}
        for name, buffer in buffers.items():  # reals: complex buffers do not survive .to(bfloat16)
            self.register_buffer(name, buffer.to(torch.get_default_dtype()))

    def phi(self, x: Tensor) -> Tensor:
        quarter = math.pi / 2 if self.split == "i" else math.pi / 4
        log_modulus, angle = self._log_L(self._inputs(x) / self.scale, quarter)
        real, imaginary = self._features(x.dtype, log_modulus, angle)
        return torch.cat([real, -imaginary], -1)

    def psi(self, w: Tensor, b: Tensor | None = None) -> Tensor:
        _check_last(self, "w", w)
        quarter = 0.0 if self.split == "i" else math.pi / 4
        log_modulus, angle = self._log_L(w * self.scale, quarter)
        angle = angle + self.phase.to(angle)
        if b is not None:
            angle = angle + 2 * math.pi * self.xi.to(angle) * b.to(angle).unsqueeze(-1)
        parts = self._features(w.dtype, log_modulus + self.log_modulus.to(angle), angle)
        return torch.cat(parts, -1)

    def _log_L(self, x: Tensor, angle: float) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of log L_{g_j}(r_j e^{±i angle} x), r_j = |2πξ_j|^{1/2}.

        The complex number multiplies all of x, so that one real projection serves every ξ.
        """
        x = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        G, xi = self.G.to(x.dtype), 2 * math.pi * self.xi.to(x.dtype)
        r2, angle_of = xi.abs(), angle * xi.sign()
        projected = math.sqrt(1 - 4 * self.A) * r2.sqrt() * F.linear(x, G)
        square = r2 * x.square().sum(-1, keepdim=True) / 2
        constant = self.in_features / 4 * math.log(1 - 4 * self.A) + self.A * G.square().sum(-1)
        real = constant + projected * angle_of.cos() - square * (2 * angle_of).cos()
        return real, projected * angle_of.sin() - square * (2 * angle_of).sin()

    def _features(self, dtype: torch.dtype, log: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        modulus = torch.exp(log - math.log(self.m) / 2)
        return (modulus * angle.cos()).to(dtype), (modulus * angle.sin()).to(dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, m={self.m}, A={self.A}, split={self.split!r}"


KINDS: dict[str, type[Any]] = {"relu": ArcCosineFeatures, "urf": UniversalRandomFeatures}


def make_features(kind: str, in_features: int, m: int, **options: Any) -> RandomFeatures:
    """The features of a kind: "relu" for `ArcCosineFeatures`, "urf" for the universal ones."""
    if kind not in KINDS:
        raise ValueError(f"kind must be 'relu' or 'urf', got {kind!r}")
    return KINDS[kind](in_features, m, **options)


def gaussian_rows(m: int, d: int, orthogonal: bool, generator: torch.Generator | None) -> Tensor:
    """m standard normal rows of d entries; if orthogonal, such rows turned to be so in blocks of d.

    Each row alone is N(0, I) in both cases: a direction uniform on the sphere, a length drawn from
    the chi distribution.
    """
    rows = torch.randn(m, d, generator=generator, dtype=torch.float64)
    if not orthogonal:
        return rows
    size = min(m, d)
    blocks = torch.randn(-(-m // d), d, size, generator=generator, dtype=torch.float64)
    Q, R = torch.linalg.qr(blocks)
    Q = Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # QR's signs are not uniform
    return Q.mT.flatten(0, 1)[:m] * rows.norm(dim=1, keepdim=True)


def _check_sizes(in_features: int, m: int, normalize: float | None) -> None:
    for name, size in (("in_features", in_features), ("m", m)):
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be positive, an integer, got {size!r}")
    if normalize is not None and not (math.isfinite(normalize) and normalize > 0):
        raise ValueError(f"normalize must be positive or None, got {normalize!r}")


def _check_last(features: RandomFeatures, name: str, x: Tensor) -> None:
    if x.shape[-1:] != (features.in_features,):
        raise ValueError(
            f"{name} must have shape (..., {features.in_features}), got {tuple(x.shape)}"
        )
