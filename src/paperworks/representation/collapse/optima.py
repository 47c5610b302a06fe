"""Closed-form optima of regularised linear heads over free features.

Notation of Dang et al. 2023, arXiv 2301.00437: K classes of n_k samples, N = Σ n_k; M linear layers
W_1, ..., W_M on features H, W_1 next to them, W = W_M ... W_1; P = Π λ_m. The objective is

    f = loss + Σ_m (λ_m/2) ‖W_m‖² + (λ_H/2) ‖H‖²

with loss = (1/2N) ‖W H - Y‖² (one-hot Y; not `nn.MSELoss`, which divides by K too), or the mean
cross entropy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq, elementwise
from torch import Tensor


@dataclass(frozen=True, eq=False)
class GOF:
    """A general orthogonal frame: orthogonal class means and classifier rows of unequal lengths.

    The global optimum of bias-free mean squared error; all tensors are float64 of shape (K,), in
    the order of the classes.

    Args:
        counts: samples of each class.
        weight_decays: λ_1, ..., λ_M, that of the layer next to the features first.
        feature_decay: λ_H.
        b: what the regularisation costs each class; a class is erased when it is too large.
        x: the minimiser of φ_k.
        sigma2: σ_k², the squared lengths of the rows of W; WWᵀ = diag(σ_k²).
        objective: f*, the lowest value of f.
    """

    counts: tuple[int, ...]
    weight_decays: tuple[float, ...]
    feature_decay: float
    b: Tensor
    x: Tensor
    sigma2: Tensor
    objective: float

    @property
    def collapsed(self) -> Tensor:
        """Which classes the regularisation erases: their rows and features are zero."""
        return self.sigma2 == 0

    @property
    def feature_norms(self) -> Tensor:
        """‖h_k‖ = σ_k / (σ_k² + N λ_H), the length of every feature of class k."""
        return self.sigma2.sqrt() / (self.sigma2 + self._floor)

    def singular_values(self, layer: int) -> Tensor:
        """σ_{m,k} = P^{1/(2M)} λ_m^{-1/2} σ_k^{1/M}: those of W_m that belong to each class.

        Raises:
            ValueError: layer is not in 1..M.
        """
        m = len(self.weight_decays)
        if not 1 <= layer <= m:
            raise ValueError(f"layer must be in 1..{m}, got {layer!r}")
        scale = (
            math.prod(self.weight_decays) ** (1 / (2 * m)) / self.weight_decays[layer - 1] ** 0.5
        )
        return scale * self.sigma2 ** (1 / (2 * m))

    def lengths(self, layer: int = 1) -> tuple[Tensor, Tensor]:
        """Lengths of the rows of W_M ... W_m, and of class means where they enter layer m."""
        rows, means = self.sigma2.sqrt(), self.feature_norms
        for m in range(1, layer):
            s = self.singular_values(m)
            rows, means = torch.where(s > 0, rows / s, 0), means * s
        return rows, means

    @property
    def _floor(self) -> float:
        return sum(self.counts) * self.feature_decay


@dataclass(frozen=True)
class ETF:
    """A simplex equiangular tight frame: logits α (I - 11ᵀ/K), of balanced classes with a bias.

    Args:
        n: samples of each class.
        num_classes: K.
        weight_decays: λ_1, ..., λ_M.
        feature_decay: λ_H.
        logit_scale: α; 0 when the regularisation erases everything.
        bias: the last layer's bias, equal for all classes.
        objective: f at this point.
    """

    n: int
    num_classes: int
    weight_decays: tuple[float, ...]
    feature_decay: float
    logit_scale: float
    bias: float
    objective: float

    @property
    def sigma2(self) -> float:
        """The K - 1 equal eigenvalues of WWᵀ: Π_m τ/λ_m, where λ_m σ_m² = τ in every layer."""
        m = len(self.weight_decays)
        p = math.prod(self.weight_decays)
        tau = (self.logit_scale**2 * self.n * p * self.feature_decay) ** (1 / (m + 1))
        return tau**m / p


def gof_optimum(
    counts: Sequence[int],
    weight_decays: float | Sequence[float],
    feature_decay: float,
    width: int | None = None,
) -> GOF:
    """The geometry that mean squared error without bias tends to, for any class counts.

        x_k = argmin_{x >= 0} φ_k(x) = 1/(x^M + 1) + b_k x,    b_k = M N (N λ_H P)^{1/M} / n_k
        σ_k² = N λ_H x_k^M,    f* = (1/2N) Σ n_k φ_k(x_k)

    x_k is the largest root of b_k = M x^{M-1}/(x^M + 1)² if b_k < (M-1)^{(M-1)/M}/M, else 0: small
    classes are erased. Dang et al. 2023, arXiv 2301.00437, the theorems on M linear layers, for
    decays that may differ from layer to layer. For M >= 2, x = 0 is a local minimum too, which
    training from small weights may end in.

    Args:
        counts: n_k, samples of each class.
        weight_decays: λ_1, ..., λ_M, that of the layer next to the features first; a number is M=1.
        feature_decay: λ_H, of the sum over all samples of squared features.
        width: the narrowest layer, the features' included; below K only so many classes survive,
            those of most use to f. Where that cuts through classes of equal counts, the first stand
            for a subspace that may be rotated among them.

    Raises:
        ValueError: counts, decays or width that are not positive.

    >>> gof_optimum([9, 1], 0.01, 0.01).sigma2
    tensor([2.9000, 0.9000], dtype=torch.float64)
    >>> gof_optimum([9, 1], 0.11, 0.11).collapsed
    tensor([False,  True])
    """
    decays = check_decays(weight_decays, feature_decay)
    n = _check_counts(counts)
    if width is not None and width < 1:
        raise ValueError(f"width must be a positive integer, got {width!r}")
    m, total = len(decays), int(n.sum())
    b = m * total * (total * feature_decay * math.prod(decays)) ** (1 / m) / n
    x = _minimisers(b, m)
    phi = 1 / (x**m + 1) + b * x
    if width is not None:
        lost = np.argsort(-n * (1 - phi), kind="stable")[width:]
        x[lost], phi[lost] = 0, 1
    return GOF(
        tuple(n.tolist()),
        decays,
        feature_decay,
        torch.from_numpy(b),
        torch.from_numpy(x),
        torch.from_numpy(total * feature_decay * x**m),
        float((n * phi).sum() / (2 * total)),
    )


def mse_bias_optimum(
    n: int, num_classes: int, weight_decays: float | Sequence[float], feature_decay: float
) -> ETF:
    """The optimum of mean squared error with an unregularised last bias, for balanced classes.

    The σ of `gof_optimum` on the K - 1 directions of a simplex: W and the class means are
    proportional to I - 11ᵀ/K, the bias is 1/K. Dang et al. 2023, arXiv 2301.00437.

    Args:
        n: samples of each class.
        num_classes: K.
        weight_decays: λ_1, ..., λ_M; a number is M=1.
        feature_decay: λ_H.

    Raises:
        ValueError: something is not positive, or K < 2.

    >>> round(mse_bias_optimum(20, 4, 5e-4, 5e-4).logit_scale, 4)
    0.9911
    """
    _check_balanced(n, num_classes)
    gof = gof_optimum([n] * num_classes, weight_decays, feature_decay)
    x, m = gof.x[0].item(), len(gof.weight_decays)
    return ETF(
        n,
        num_classes,
        gof.weight_decays,
        feature_decay,
        logit_scale=x**m / (x**m + 1),
        bias=1 / num_classes,
        objective=(num_classes - 1) / num_classes * gof.objective,
    )


def ce_etf_point(
    n: int, num_classes: int, weight_decays: float | Sequence[float], feature_decay: float
) -> ETF:
    """The best simplex for cross entropy and balanced classes: a stationary point.

        min_α log(1 + (K-1) e^{-α}) + (K-1)(M+1)/2 · (n P λ_H)^{1/(M+1)} α^{2/(M+1)}

    For M=1, α = ln(1/t - K + 1) with t = √(n λ_W λ_H) < 1/K, and this is the global optimum. The
    paper (Dang et al. 2023, arXiv 2301.00437) states it for deeper heads too, which is false:
    solutions of lower rank have a lower f (arXiv 2410.23169; study `collapse` shows it).

    Args:
        n: samples of each class.
        num_classes: K.
        weight_decays: λ_1, ..., λ_M; a number is M=1.
        feature_decay: λ_H.

    Raises:
        ValueError: something is not positive, or K < 2.

    >>> point = ce_etf_point(20, 4, 1e-3, 1e-3)
    >>> round(point.logit_scale, 5), round(point.objective, 7)
    (5.39638, 0.0859073)
    """
    decays = check_decays(weight_decays, feature_decay)
    _check_balanced(n, num_classes)
    k, m = num_classes, len(decays)
    power = 2 / (m + 1)
    cost = (k - 1) / power * (n * math.prod(decays) * feature_decay) ** (1 / (m + 1))

    def objective(alpha: float) -> float:
        return math.log1p((k - 1) * math.exp(-alpha)) + cost * alpha**power

    def gain(alpha: float) -> float:
        """Minus the derivative, times something positive."""
        return alpha ** (1 - power) * (k - 1) - cost * power * (math.exp(alpha) + k - 1)

    # gain rises up to the peak, then falls; at `high` it is below 0, for 1 + a < 1.3 e^(a/2)
    peak = brentq(lambda a: (1 - power) * (1 + (k - 1) * math.exp(-a)) - a, 0, k) if m > 1 else 0.0
    high = peak + 2 * math.log1p(1.3 * (k - 1) / (cost * power))
    alpha = brentq(gain, peak, high, xtol=1e-14) if gain(peak) > 0 else 0.0
    alpha = min((0.0, alpha), key=objective)
    return ETF(n, k, decays, feature_decay, alpha, 0.0, objective(alpha))


def minority_threshold(
    total: int, weight_decays: float | Sequence[float], feature_decay: float
) -> int:
    """The smallest class, among `total` samples, that the regularisation does not erase.

    The smallest integer n_k with b_k < (M-1)^{(M-1)/M}/M, see `gof_optimum`; for M=1 that is
    n_k > N² λ_W λ_H. Dang et al. 2023, arXiv 2301.00437 ("minority collapse").

    Args:
        total: N, samples of all classes.
        weight_decays: λ_1, ..., λ_M; a number is M=1.
        feature_decay: λ_H.

    Raises:
        ValueError: something is not positive.

    >>> minority_threshold(10, 0.11, 0.11)
    2
    """
    decays = check_decays(weight_decays, feature_decay)
    if total < 1:
        raise ValueError(f"total must be a positive integer, got {total!r}")
    m = len(decays)
    cost = m * total * (total * feature_decay * math.prod(decays)) ** (1 / m)
    return math.floor(cost / _largest_b(m)) + 1


def gof_matrices(gof: GOF, d: int, generator: torch.Generator) -> tuple[list[Tensor], Tensor]:
    """Weights and features at the optimum, in a random orientation.

    Args:
        gof: the optimum.
        d: dimensions of the features and of every hidden layer, at least K.
        generator: draws the orientations.

    Returns:
        W_1, ..., W_M, each (d, d) but the last, (K, d); and the features (N, d), class by class.
        All float64.

    Raises:
        ValueError: d < K.

    >>> gof = gof_optimum([9, 1], 0.01, 0.01)
    >>> (w,), features = gof_matrices(gof, 4, torch.Generator().manual_seed(0))
    >>> print(f"{(w @ features.T)[1, -1]:.2f}")  # the small class: shrunk by 0.1/(0.9 + 0.1)
    0.90
    """
    k = len(gof.counts)
    if d < k:
        raise ValueError(f"d must be at least the number of classes {k}, got {d!r}")
    frames = [_orthonormal(d, k, generator) for _ in gof.weight_decays]
    features = (frames[0] * gof.feature_norms).mT.repeat_interleave(torch.tensor(gof.counts), dim=0)
    targets = [*frames[1:], torch.eye(k, dtype=torch.float64)]
    weights = [
        (target * gof.singular_values(m)) @ frame.mT
        for m, (frame, target) in enumerate(zip(frames, targets, strict=True), start=1)
    ]
    return weights, features


def check_decays(weight_decays: float | Sequence[float], feature_decay: float) -> tuple[float, ...]:
    """The decays of the layers as a tuple.

    Raises:
        ValueError: one is not positive and finite, or there is none.
    """
    given = (weight_decays,) if isinstance(weight_decays, int | float) else tuple(weight_decays)
    if not given or any(not 0 < decay < math.inf for decay in given):
        raise ValueError(f"weight_decays must be positive numbers, got {weight_decays!r}")
    if not 0 < feature_decay < math.inf:
        raise ValueError(f"feature_decay must be a positive number, got {feature_decay!r}")
    return given


def _check_counts(counts: Sequence[int]) -> np.ndarray:
    n = np.asarray(counts)
    if n.ndim != 1 or not n.size or n.dtype.kind not in "iu" or (n < 1).any():
        raise ValueError(f"counts must be positive integers, one a class, got {counts!r}")
    return n


def _check_balanced(n: int, num_classes: int) -> None:
    if n < 1:
        raise ValueError(f"n must be a positive integer, got {n!r}")
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2, got {num_classes!r}")


def _largest_b(m: int) -> float:
    """At this b and above φ is lowest at 0."""
    return (m - 1) ** ((m - 1) / m) / m


def _minimisers(b: np.ndarray, m: int) -> np.ndarray:
    """For each b the x >= 0 at which 1/(x^m + 1) + b x is lowest."""

    def slope(x: np.ndarray, b: np.ndarray) -> np.ndarray:
        return m * x ** (m - 1) / (x**m + 1) ** 2 - b

    x = np.zeros_like(b)
    alive = b < _largest_b(m)
    if alive.any():
        b = b[alive]
        peak = np.full_like(b, ((m - 1) / (m + 1)) ** (1 / m))  # of slope, which falls behind it
        high = np.maximum(1, (m / b) ** (1 / (m + 1)))  # there m x^-(m+1), which is more, equals b
        tight = {"xrtol": 1e-15, "xatol": 0, "frtol": 0, "fatol": 0}
        x[alive] = elementwise.find_root(slope, (peak, high), args=(b,), tolerances=tight).x
    return x


def _orthonormal(d: int, k: int, generator: torch.Generator) -> Tensor:
    normal = torch.randn(d, k, generator=generator, device=generator.device, dtype=torch.float64)
    return torch.linalg.qr(normal.cpu()).Q
