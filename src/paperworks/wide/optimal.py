"""What an infinitely wide and deep network classifies like, and the activations that are optimal.

Radhakrishnan, Belkin and Uhler, "Wide and Deep Neural Networks Achieve Optimality for
Classification" (arXiv 2204.14126). On the unit sphere a deep kernel is a scalar map of ξ = x·x′,
iterated. Depending on three Gaussian averages of the activation, the classifier
sign(K_L(x, X) K_L(X, X)⁻¹ y) tends with depth L to the nearest neighbour, to the majority class, or
to a smoother with a singular kernel; which for the right activation is consistent.

Everything works in log-odds t = log((1 − ξ)/ξ): the first layers multiply 1 − ξ by B′ each, the
last ones multiply ξ by A′², and neither end is ever rounded away.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from paperworks.wide.kernels import (
    Activation,
    ErfDual,
    GaussianDual,
    HermiteDual,
    RectifierDual,
    SineDual,
    gaussian_dual,
    hermite_coefficients,
    psd_safe_cholesky,
)

Kernel = Literal["nngp", "ntk"]
Kind = Literal["1-nn", "majority", "singular", "degenerate"]

_FAR = 40.0
"""Log-odds beyond which φ̌ is its first term: ξ < 4e-18."""

_COINCIDENT = 4 * 2.0**-104
"""(1 − ξ) of two rows that differ by the rounding of their normalisation only."""

_GRID = torch.linspace(-71, 37, 32 * 108 + 1, dtype=torch.float64)
"""Log-odds at which deep kernels are tabulated: 1 − ξ from `_COINCIDENT` to the rounding of 1."""

_BATCH = 2**18
"""Pairs of rows that are worked on at once: a few temporaries of 2 MB."""


# ---------------------------------------------------------------------------------------------
# Activations
# ---------------------------------------------------------------------------------------------


class HermiteActivation(nn.Module):
    """φ(z) = Σ_k w_k h_k(z), h_k the normalised probabilists' Hermite polynomials.

    E[φ(z)²] = Σ w_k² for z ~ N(0, 1), and the dual activation is Σ w_k² ξ^k / Σ w_k².

    Args:
        weights: w_0, w_1, …

    Raises:
        ValueError: no weights, or weights that are not finite or all zero.

    >>> HermiteActivation([0, 0, 1])(torch.tensor([0.0, 1.0, 2.0]))  # (z² − 1)/√2
    tensor([-0.7071,  0.0000,  2.1213])
    """

    def __init__(self, weights: Sequence[float]) -> None:
        super().__init__()
        self.weights = tuple(float(w) for w in weights)
        if not any(self.weights) or not all(map(math.isfinite, self.weights)):
            raise ValueError(f"weights must be finite and not all zero, got {list(weights)}")
        scaled = [w / math.sqrt(math.factorial(k)) for k, w in enumerate(self.weights)]
        self._powers = tuple(np.polynomial.hermite_e.herme2poly(scaled).tolist())

    def forward(self, z: Tensor) -> Tensor:
        """φ(z), elementwise; any shape, floating dtype and device."""
        value = torch.full_like(z, self._powers[-1])
        for power in reversed(self._powers[:-1]):
            value = value * z + power
        return value

    def extra_repr(self) -> str:
        return ", ".join(f"{w:.4g}" for w in self.weights)


class SineActivation(nn.Module):
    """φ(z) = sin(√a z) / √E[sin²(√a z)], with dual activation sinh(aξ)/sinh(a).

    Args:
        a: squared frequency, positive.

    Raises:
        ValueError: `a` is not positive.

    >>> round(taxonomy(SineActivation(1.0))[1], 5)
    1.18557
    """

    def __init__(self, a: float) -> None:
        super().__init__()
        if not a > 0:
            raise ValueError(f"a must be positive, got {a}")
        self.a = float(a)

    def forward(self, z: Tensor) -> Tensor:
        """φ(z), elementwise; any shape, floating dtype and device."""
        return torch.sin(math.sqrt(self.a) * z) / math.sqrt(-math.expm1(-2 * self.a) / 2)

    def gaussian_dual(self) -> GaussianDual:
        """The closed form that `paperworks.wide.gaussian_dual` asks for."""
        dual = SineDual(self, frequency=math.sqrt(self.a))
        dual.gain = 2 / -math.expm1(-2 * self.a)
        return dual

    def extra_repr(self) -> str:
        return f"a={self.a:.6g}"


def optimal_activation(d: float, kind: Literal["hermite", "sine"] = "hermite") -> nn.Module:
    """An activation whose infinitely deep classifier is Bayes-consistent on the d-sphere.

    Its limit is a smoother with a kernel like ‖x − x′‖^{−d}, the Hilbert kernel estimate, which is
    consistent for every distribution when the singularity α equals the dimension d of the data.
    The module is elementwise with E[φ(z)²] = 1, and can be used in a network that one trains.

    hermite, d = 1: (h₁ + h₇)/√2;  d ≥ 2: 2^{−d/4} h₃ + √(1 − 2^{1−d/2}) h₂ + 2^{−d/4} h₁.
    sine, d > 1: sin(√a z), with a from α(a) = 2 log(sinh a/a)/log(a coth a) = d.

    Args:
        d: intrinsic dimension: rows with n features lie on a sphere of dimension n − 1.
        kind: the family.

    Raises:
        ValueError: no activation of the family has α = d, or the family is unknown.

    Source: arXiv 2204.14126, the activations after its Theorem 1 (numbering from memory).

    >>> optimal_activation(2)
    HermiteActivation(0, 0.7071, 0, 0.7071)
    >>> optimal_activation(4, kind="sine")
    SineActivation(a=6.13539)
    """
    if kind == "hermite":
        if d == 1:
            return HermiteActivation([0, 0.5**0.5, 0, 0, 0, 0, 0, 0.5**0.5])
        if not 2 <= d < math.inf:
            raise ValueError(f"d: kind='hermite' needs d = 1 or d >= 2, got {d}")
        outer = 2 ** (-d / 4)
        return HermiteActivation([0, outer, math.sqrt(1 - 2 ** (1 - d / 2)), outer])
    if kind == "sine":
        if not 1 < d < math.inf:
            raise ValueError(f"d: kind='sine' needs d > 1 (α falls to 1 as a to 0), got {d}")
        largest = 10 * d * (1 + math.log(d))
        return SineActivation(brentq(lambda a: _sine_alpha(a) - d, 1e-3, largest, xtol=1e-14))
    raise ValueError(f"kind must be 'hermite' or 'sine', got {kind!r}")


# ---------------------------------------------------------------------------------------------
# Dual activations and what they say
# ---------------------------------------------------------------------------------------------


class Dual:
    """Dual activation φ̌(ξ) = E[φ(u)φ(v)] = Σ_k c_k ξ^k on the unit sphere, φ̌(1) = 1.

    Made by `dual_activation`; u, v are standard normal with correlation ξ, and φ is normalised to
    E[φ(z)²] = 1. Iterated, it is the kernel of an infinitely wide network (`deep_kernel`); its
    fixed points decide what depth makes of it (`kind`).

    Attributes:
        coef: c_0 … c_degree, float64; what is missing to 1 lies beyond the degree.
        A: E[φ]; A² = c_0.
        A_prime: E[φ′]; A′² = c_1 = φ̌′(0).
        B_prime: E[φ′²] = φ̌′(1) = Σ k c_k; infinite for an activation that jumps.
        kind: "1-nn", "majority", "singular" or "degenerate"; see `taxonomy`.
        alpha: exponent of the singularity, −4 log|A′|/log B′; None for the other kinds.
    """

    def __init__(self, gaussian: GaussianDual, coef: Tensor, A: float, A_prime: float) -> None:
        self.coef, self.A, self.A_prime = coef, A, A_prime
        slope = gaussian.moments(torch.ones((), dtype=torch.float64))[1].item()
        known = (torch.arange(len(coef)) * coef).sum().item()
        # Quadrature cannot see the derivative of a jump; the series can.
        self.B_prime = slope if known <= slope * (1 + 1e-6) else math.inf
        self.kind, self.alpha = _classify(A, A_prime, self.B_prime)
        self._gaussian = gaussian
        self._is_series = isinstance(gaussian, HermiteDual)
        self._series = _Series(coef, self.B_prime)
        self._first = int(coef.nonzero()[0])
        self._parity = 1 if not coef[1::2].any() else -1 if not coef[0::2].any() else 0

    def __call__(self, xi: Tensor | float) -> Tensor:
        """φ̌(ξ) for ξ in [−1, 1], elementwise, float64."""
        return self._value(_checked("xi", xi, -1, 1))

    def derivative(self, xi: Tensor | float) -> Tensor:
        """φ̌′(ξ) = E[φ′(u)φ′(v)] for ξ in [−1, 1], elementwise, float64."""
        return self._slope(_checked("xi", xi, -1, 1))

    def complement(self, delta: Tensor | float) -> Tensor:
        """1 − φ̌(1 − δ) for δ in [0, 1], float64, with all its digits however small δ is."""
        return self._gap(_checked("delta", delta, 0, 1))

    def log_deep_kernel(
        self,
        delta: Tensor | float,
        depth: float,
        kernel: Kernel = "nngp",
        *,
        tabulate: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Sign and logarithm of |K_L|, the kernel of L = `depth` layers at ξ = 1 − δ.

        NNGP: ξ_{l+1} = φ̌(ξ_l), K_L = ξ_L. NTK: T_{l+1} = φ̌(ξ_l) + T_l φ̌′(ξ_l), T_0 = ξ_0,
        K_L = T_L.

        Args:
            delta: δ = ‖x − x′‖²/2 = 1 − x·x′ in [0, 2], computed from differences; any shape.
            depth: number of layers, at least 0; `math.inf` gives the Koenigs function instead.
            kernel: "nngp" or "ntk".
            tabulate: interpolate in a table: for many values, since the cost of each no longer
                grows with depth; the error of log|K_L| is about 1e-7.

        Returns:
            Sign and log|K_L| (−∞ where K_L = 0), float64, of the shape of `delta`.

        Raises:
            ValueError: delta outside [0, 2], a wrong depth or kernel, the NTK of an activation
                with infinite B′, or infinite depth of a kind that is not singular.
        """
        if depth == math.inf:
            self._require_singular()
        return _LogMap(self, depth, kernel, tabulate)(_checked("delta", delta, 0, 2))

    def deep_kernel(
        self,
        delta: Tensor | float,
        depth: int,
        kernel: Kernel = "nngp",
        *,
        tabulate: bool = False,
    ) -> Tensor:
        """The kernel K_L of `depth` layers at 1 − ξ = delta; see `log_deep_kernel`.

        >>> relu = dual_activation("relu")
        >>> [round(relu.deep_kernel(0.7, L, "ntk").item() / (L + 1), 5) for L in (10, 100, 1000)]
        [0.34298, 0.27482, 0.25352]
        """
        sign, log = self.log_deep_kernel(delta, depth, kernel, tabulate=tabulate)
        return sign * log.exp()

    def koenigs(self, xi: Tensor | float) -> Tensor:
        """Koenigs function ψ(ξ) = lim_L K_L(ξ)/A′^{2L}: the singular kernel in the limit of depth.

        It solves ψ(φ̌(ξ)) = A′² ψ(ξ) with ψ′(0) = 1, and grows like ‖x − x′‖^{−α} as ξ → 1.
        The NTK, divided by A′^{2L}(L + 1), has the same limit.

        Args:
            xi: ξ in [−1, 1], any shape; ψ(1) is infinite.

        Raises:
            ValueError: the activation is not of the singular kind.

        >>> psi = optimal_dual(2).koenigs(torch.tensor([0.5, 0.9, 0.99], dtype=torch.float64))
        >>> [round(value, 6) for value in psi.tolist()]
        [0.713599, 5.591164, 60.062228]
        """
        sign, log = self.log_deep_kernel(1 - _checked("xi", xi, -1, 1), math.inf)
        return sign * log.exp()

    def _require_singular(self) -> None:
        if self.kind != "singular":
            raise ValueError(f"the Koenigs function is of the singular kind, this is {self.kind!r}")

    def _value(self, xi: Tensor) -> Tensor:
        return self._series(xi) if self._is_series else self._gaussian(xi)

    def _slope(self, xi: Tensor) -> Tensor:
        return self._series.derivative(xi) if self._is_series else self._gaussian.derivative(xi)

    def _gap(self, delta: Tensor) -> Tensor:
        closed = _closed_complement(self._gaussian, delta)
        return self._series.complement(delta) if closed is None else closed

    def _deepen(self, t: Tensor) -> Tensor:
        """One layer on log-odds t = log((1 − ξ)/ξ), for ξ in [0, 1]."""
        gap = self._gap(torch.sigmoid(t))
        after = gap.log() - (-gap).log1p()
        if self._first == 0:
            return after  # ξ never comes near 0
        xi = self._value(torch.sigmoid(-t))
        after = torch.where(gap < 0.5, after, (-xi).log1p() - xi.log())
        return torch.where(t < _FAR, after, self._first * t - self.coef[self._first].log())

    def _log_slope(self, t: Tensor) -> Tensor:
        """log φ̌′(ξ) from log-odds, for ξ in [0, 1]."""
        k = self._first
        slope = self._slope(torch.sigmoid(-t)).log()
        if k == 0:
            return slope
        return torch.where(t < _FAR, slope, (k * self.coef[k]).log() - (k - 1) * t)


def dual_activation(activation: Activation, degree: int = 60) -> Dual:
    """The dual activation of any elementwise activation, normalised to E[φ(z)²] = 1.

    Evaluated in closed form where there is one (ReLU, leaky ReLU, erf, sin, cos, GELU …), by its
    Hermite series otherwise. A series that does not end at `degree` (kinks) is closed by one term
    r ξ^m with the r and m that make φ̌(1) = 1 and φ̌′(1) = B′ exact (our device).

    Args:
        activation: a module, a function, or a name such as "relu".
        degree: the last coefficient c_k that is computed, at least 1.

    Raises:
        ValueError: activation has zero second moment, is not elementwise or unknown; degree < 1.
        TypeError: the activation is not callable.

    >>> erf = dual_activation("erf")
    >>> round(erf.A_prime**2, 6), round(erf.B_prime, 6), round(erf.alpha, 5)
    (0.913583, 1.2257, 0.88821)
    """
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}")
    gaussian = gaussian_dual(activation, normalized=True, degree=degree)
    norm = math.sqrt(gaussian.gain / gaussian_dual(activation, degree=degree).gain)
    amplitude = norm * hermite_coefficients(activation, degree=degree)
    coef = amplitude.square()
    if not isinstance(gaussian, HermiteDual):  # to all digits, however small
        zero = torch.zeros((), dtype=torch.float64)
        coef[0], coef[1] = gaussian(zero), gaussian.derivative(zero)
    A, A_prime = coef[:2].sqrt().copysign(amplitude[:2]).tolist()
    return Dual(gaussian, coef, A, A_prime)


def optimal_dual(d: float) -> Dual:
    """The dual of `optimal_activation(d)`.

    d = 1: (ξ + ξ⁷)/2;  d ≥ 2: 2^{−d/2} ξ³ + (1 − 2^{1−d/2}) ξ² + 2^{−d/2} ξ.

    >>> optimal_dual(4)(torch.tensor(0.5))
    tensor(0.2812, dtype=torch.float64)
    """
    return dual_activation(optimal_activation(d), degree=7)


def taxonomy(activation: Activation) -> tuple[Kind, float | None]:
    """What the classifier of an infinitely wide and deep network becomes, and its exponent.

    With A = E[φ], A′ = E[φ′], B′ = E[φ′²] for φ normalised to E[φ²] = 1:

    - "1-nn": A = A′ = 0; the nearest neighbour.
    - "singular": A = 0, A′ ≠ 0, φ not linear; a smoother with kernel ~ ‖x − x′‖^{−α},
      α = −4 log|A′|/log B′.
    - "majority": A ≠ 0 and B′ ≥ 1; the majority class of the training set.
    - "degenerate": φ linear, or A ≠ 0 and B′ < 1: all entries of the kernel become equal.
      With a ridge this is the majority class (from memory), without it is undefined.

    Holds for data whose pairs have x·x′ > 0, such as rows with no negative entries.

    Returns:
        The kind, and α for the singular one, else None.

    Source: arXiv 2204.14126, its main theorem.

    >>> taxonomy("relu"), taxonomy(HermiteActivation([0, 0, 1]))
    (('majority', None), ('1-nn', None))
    """
    dual = dual_activation(activation)
    return dual.kind, dual.alpha


def intrinsic_dimension(X: ArrayLike) -> float:
    """Intrinsic dimension of a point cloud from two nearest neighbours each (TwoNN).

    d̂ = (n − 1)/Σ_i log(r_i2/r_i1), the unbiased form of the maximum-likelihood estimate, where
    r_i1 < r_i2 are the distances to the two nearest distinct neighbours; copies count once.

    Args:
        X: rows, shape (n, features), at least three of them distinct.

    Raises:
        ValueError: fewer than three distinct rows, or all neighbours at one distance.

    Source: Facco et al. 2017 (arXiv 1803.06992).

    >>> angle = np.random.default_rng(0).uniform(0, 6, 2000)
    >>> round(intrinsic_dimension(np.c_[np.cos(angle), np.sin(angle)]), 1)
    1.0
    """
    X = np.unique(np.asarray(X, dtype=np.float64), axis=0)
    if len(X) < 3:
        raise ValueError(f"X: needs three distinct rows, got {len(X)}")
    distances = NearestNeighbors(n_neighbors=3).fit(X).kneighbors(X)[0]
    spread = np.log(distances[:, 2] / distances[:, 1]).sum()
    if not spread > 0:
        raise ValueError("X: all rows have their two nearest neighbours at one distance")
    return float((len(X) - 1) / spread)


# ---------------------------------------------------------------------------------------------
# Estimators
# ---------------------------------------------------------------------------------------------


class _VotingClassifier(ClassifierMixin, BaseEstimator):
    """What the two classifiers share: rows of training data vote, in batches of test rows."""

    normalize: bool

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Votes for each class; for two classes the second's minus the first's.

        Votes of a row are scaled by a positive number of the row's own, since deep kernels leave
        the range of floating point; within a row they compare, between rows they do not.

        Args:
            X: rows, shape (n, features).

        Returns:
            Shape (n,) for two classes, (n, classes) otherwise.
        """
        votes = self._votes(X)
        return votes[:, -1] - votes[:, 0] if len(self.classes_) <= 2 else votes

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The class with most votes, for rows of shape (n, features)."""
        votes = self._votes(X)
        return self.classes_[votes.argmax(1)]

    def _start(self, X: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Checked rows (on the sphere if so asked) and one-hot labels."""
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, index = np.unique(y, return_inverse=True)
        return self._rows(X), np.eye(len(self.classes_))[index]

    def _rows(self, X: Any) -> NDArray[np.float64]:
        norms = np.linalg.norm(X, axis=1, keepdims=True)
        if not self.normalize:
            return X
        if not norms.all():
            raise ValueError(f"rows must be nonzero, row {int(norms.argmin())} of X is not")
        return X / norms

    def _votes(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows = self._rows(validate_data(self, X, dtype=np.float64, reset=False))
        batch = max(1, _BATCH // len(self.X_fit_))
        parts = [self._vote(rows[part]) for part in gen_batches(len(rows), batch)]
        return np.concatenate(parts)

    def _vote(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        raise NotImplementedError


class DeepKernelClassifier(_VotingClassifier):
    """The classifier of an infinitely wide network of any depth, infinite depth included.

    f(x) = K_L(x, X) (K_L(X, X) + ridge·I)⁻¹ Y with one column of Y a class, on rows of unit norm;
    predicted is the largest. Without arguments it is free of hyperparameters, interpolates, and
    is Bayes-consistent: infinite depth, and the optimal activation for the dimension of the data.

    At `depth=np.inf` there is nothing to solve: the nearest neighbour, the majority class, or
    Σ_i ψ(x·x_i) y_i with the Koenigs function ψ, as `taxonomy` says; a training row keeps its
    label, and rows that come several times have their labels summed. At finite depth such rows
    count as one with their mean label, which is what a vanishing ridge gives.

    The theory is for x·x′ > 0, as between rows with no negative entries; other pairs warn, and
    take the value that the kernel has there.

    Args:
        activation: a module, function or name; by default `optimal_activation(n_features − 1)`.
        depth: number of layers L; `np.inf` for the limit.
        kernel: "nngp" or "ntk" (see `Dual.log_deep_kernel`).
        ridge: added to the diagonal of the kernel; 0 interpolates.
        normalize: divide rows by their Euclidean norm; if not, they must have norm 1 already.

    Attributes:
        classes_: the labels.
        dual_: the `Dual` of the activation.
        X_fit_: training rows on the sphere; at finite depth without copies.
        dual_coef_: (K_L + ridge·I)⁻¹ Y up to a factor, or Y in the limit.
        n_features_in_: number of features.

    Cost: the map ξ → K_L is tabulated once, so that depth costs nothing a pair; n³/3 for the solve
    at finite depth, O(n · n_test · features) for predictions.

    Raises:
        ValueError: in `fit`: rows that are zero or not of norm 1, a wrong `depth`, `kernel` or
            `ridge`, or the limit of a degenerate activation without ridge.

    Source: arXiv 2204.14126.

    >>> X, y = [[1, 0], [1, 0.1], [0.1, 1], [0, 1]], ["a", "a", "b", "b"]
    >>> DeepKernelClassifier().fit(X, y).predict([[3, 1], [1, 2]])
    array(['a', 'b'], dtype='<U1')
    >>> DeepKernelClassifier("relu", depth=100, kernel="ntk").fit(X, y).predict([[3, 1], [1, 2]])
    array(['a', 'b'], dtype='<U1')
    """

    def __init__(
        self,
        activation: Activation | None = None,
        depth: float = np.inf,
        kernel: Kernel = "nngp",
        ridge: float = 0.0,
        normalize: bool = True,
    ) -> None:
        self.activation = activation
        self.depth = depth
        self.kernel = kernel
        self.ridge = ridge
        self.normalize = normalize

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X of shape (n, features) and labels y of shape (n,)."""
        if not self.ridge >= 0:
            raise ValueError(f"ridge must not be negative, got {self.ridge}")
        rows, Y = self._start(X, y)
        activation = self.activation
        if activation is None:
            activation = optimal_activation(max(1, self.n_features_in_ - 1))
        self.dual_ = dual_activation(activation)
        _check_depth_kernel(self.dual_, self.depth, self.kernel)
        if self.depth != np.inf:
            return self._fit_finite(rows, Y)
        if self.dual_.kind == "degenerate" and not self.ridge:
            raise ValueError(
                "depth: this activation is degenerate, at depth=np.inf all entries of its kernel "
                "are equal; give a ridge or a finite depth"
            )
        self.X_fit_, self.dual_coef_ = rows, Y
        if self.dual_.kind == "singular":
            self._map = _LogMap(self.dual_, math.inf, self.kernel, tabulate=True)
        elif self.dual_.kind == "1-nn":  # eight layers order neighbours as all of them do
            self._map = _LogMap(self.dual_, 8, "nngp", tabulate=True)
        return self

    def _fit_finite(self, rows: NDArray[np.float64], Y: NDArray[np.float64]) -> Self:
        self.X_fit_, Y = _merge_copies(rows, Y)
        self._map = _LogMap(self.dual_, self.depth, self.kernel, tabulate=True)
        K = torch.zeros(2 * (len(self.X_fit_),), dtype=torch.float64)
        for part in gen_batches(len(K), max(1, _BATCH // len(K))):  # the lower triangle
            sign, log = self._map(
                _half_squared_distances(self.X_fit_[part], self.X_fit_[: part.stop])
            )
            K[part, : part.stop] = log.sub_(self._map.diagonal).exp_().mul_(sign)
        K.diagonal().fill_(1 + self.ridge * math.exp(-self._map.diagonal))
        factor = psd_safe_cholesky(K)
        self.dual_coef_ = torch.cholesky_solve(torch.from_numpy(Y), factor).numpy()
        return self

    def _rows(self, X: Any) -> NDArray[np.float64]:
        if not self.normalize and not np.allclose(np.linalg.norm(X, axis=1), 1):
            raise ValueError("rows must have norm 1 when normalize=False")
        return super()._rows(X)

    def _vote(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        delta = _half_squared_distances(rows, self.X_fit_)
        if self.depth == np.inf and self.dual_.kind in ("majority", "degenerate"):
            same = (
                (delta < _COINCIDENT) if self.dual_.kind == "majority" else torch.zeros_like(delta)
            )
            weights = torch.where(same.any(1, keepdim=True), same, 1).double()
        else:
            if (delta > 1).any():
                warnings.warn(
                    "some pairs of rows have a negative inner product, for which the theory of "
                    "deep classifiers does not hold: shift the data to the positive orthant",
                    UserWarning,
                    stacklevel=4,
                )
            sign, log = self._map(delta)
            weights = _relative(sign, log)
            if self.depth == np.inf and self.dual_.kind == "1-nn":
                weights.trunc_()
        return (weights @ torch.from_numpy(self.dual_coef_)).numpy()


class SingularKernelClassifier(_VotingClassifier):
    """The Hilbert kernel estimate: a smoother that interpolates, is consistent, and has no knob.

    η̂_c(x) = Σ_i 1[y_i = c] ‖x − x_i‖^{−α} / Σ_i ‖x − x_i‖^{−α}. With α = d, the dimension of the
    data, it is Bayes-consistent for every distribution (Devroye et al. 1998); it is what the
    optimal deep network of that dimension tends to, but for a bounded factor in its kernel. At a
    training row it returns the labels found there. Reach for it as that limit without its network.

    Args:
        alpha: the exponent; None for α = `dim`, "intrinsic" for α = `intrinsic_dimension` of the
            training rows (our reading), or a positive number.
        dim: the dimension d; by default n_features − 1 on the sphere, n_features off it.
        normalize: divide rows by their Euclidean norm, as deep kernels do.

    Attributes:
        classes_: the labels.
        alpha_: the exponent that is used.
        X_fit_, Y_: training rows (on the sphere) and their one-hot labels.
        n_features_in_: number of features.

    Cost: nothing to fit, O(n · n_test · features) for predictions in bounded memory.

    Raises:
        ValueError: in `fit`: zero rows, an `alpha` or `dim` that is not positive.

    Source: arXiv 2204.14126, its singular kernels.

    >>> X, y = [[1, 0], [1, 0.1], [0.1, 1], [0, 1]], [0, 0, 1, 1]
    >>> SingularKernelClassifier().fit(X, y).predict_proba([[1, 1], [0, 3]])
    array([[0.5, 0.5],
           [0. , 1. ]])
    """

    def __init__(
        self,
        alpha: float | Literal["intrinsic"] | None = None,
        dim: float | None = None,
        normalize: bool = True,
    ) -> None:
        self.alpha = alpha
        self.dim = dim
        self.normalize = normalize

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit to rows X of shape (n, features) and labels y of shape (n,)."""
        for name in ("alpha", "dim"):
            value = getattr(self, name)
            known = value is None or (name == "alpha" and value == "intrinsic")
            if not known and (isinstance(value, str) or not 0 < value < math.inf):
                raise ValueError(f"{name} must be positive and finite, got {value!r}")
        self.X_fit_, self.Y_ = self._start(X, y)
        dim = self.dim or max(1, self.n_features_in_ - self.normalize)
        if self.alpha == "intrinsic":
            self.alpha_ = intrinsic_dimension(self.X_fit_)
        else:
            self.alpha_ = float(self.alpha or dim)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """The estimate η̂ of the class probabilities, shape (n, classes)."""
        return self._votes(X)

    def _vote(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        log = _half_squared_distances(rows, self.X_fit_).log_().mul_(-self.alpha_ / 2)
        weights = _relative(torch.ones_like(log), log)
        weights /= weights.sum(1, keepdim=True)
        return (weights @ torch.from_numpy(self.Y_)).numpy()


# ---------------------------------------------------------------------------------------------
# Private: the scalar map of a deep kernel
# ---------------------------------------------------------------------------------------------


class _LogMap:
    """δ = 1 − ξ ↦ sign and log|K_L|; at infinite depth log ψ instead.

    `tabulate` puts the map on a grid, once, and interpolates: the cost of a pair no longer depends
    on depth, and the grid is computed by doubling layers. In log-odds the map is equally smooth
    everywhere, and the error of log K about 1e-7.
    """

    def __init__(self, dual: Dual, depth: float, kernel: Kernel, tabulate: bool = False) -> None:
        _check_depth_kernel(dual, depth, kernel)
        self.dual, self.depth, self.kernel, self.tabulate = dual, depth, kernel, tabulate
        self.diagonal = _log_diagonal(dual, depth, kernel)
        self.parity = dual._parity if depth else -1
        self.curve = _Spline(_GRID, self._curve_on_grid()) if tabulate else self._curve

    def __call__(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        opposite = delta > 1
        if not opposite.any():
            log = self.curve(torch.logit(delta).clamp_(max=_GRID[-1].item()))
            return torch.ones_like(log), log.masked_fill_(delta < _COINCIDENT, self.diagonal)
        mirrored = torch.where(opposite, 2 - delta if self.parity else 1.0, delta)
        sign, log = self(mirrored)
        if self.parity:
            return torch.where(opposite, self.parity, sign), log
        value = self.negative((1 - delta).clamp(-1, 0).acos())
        sign = torch.where(opposite, value.sign(), sign)
        return sign, torch.where(opposite, value.abs().log(), log)

    @cached_property
    def negative(self) -> Callable[[Tensor], Tensor]:
        if not self.tabulate:
            return self._negative
        angles = torch.linspace(math.pi / 2, math.pi, 801, dtype=torch.float64)
        return _Spline(angles, self._negative(angles))

    def _curve(self, t: Tensor) -> Tensor:
        """log K_L, or log ψ, from log-odds t = log((1 − ξ)/ξ), for ξ in [0, 1)."""
        if self.depth == math.inf:
            return self._log_koenigs(t)
        log_K = log_T = F.logsigmoid(-t)
        for _ in range(int(self.depth)):
            deeper = self.dual._deepen(t)
            log_K = F.logsigmoid(-deeper)
            if self.kernel == "ntk":
                log_T = torch.logaddexp(log_K, log_T + self.dual._log_slope(t))
            t = deeper
        return log_K if self.kernel == "nngp" else log_T

    def _curve_on_grid(self) -> Tensor:
        if self.depth == math.inf:
            return self._log_koenigs(_GRID)
        log_xi = F.logsigmoid(-_GRID)
        if not self.depth:
            return log_xi
        layers = _Layers.one(self.dual) ** int(self.depth)
        if self.kernel == "nngp":
            return F.logsigmoid(-layers.t)
        return torch.logaddexp(layers.log_a, layers.log_b + log_xi)

    def _log_koenigs(self, t: Tensor) -> Tensor:
        t = t.masked_fill(t == -math.inf, math.inf)  # ξ = 1 never moves; it has `diagonal`
        layers = torch.zeros_like(t)
        while (moving := t < _FAR).any():
            t, layers = torch.where(moving, self.dual._deepen(t), t), layers + moving
        return -t - layers * self.dual.coef[1].log()

    def _negative(self, angle: Tensor) -> Tensor:
        """K_L, or ψ, at ξ = cos(angle) ≤ 0 of a φ̌ without parity: there nothing comes near ±1."""
        xi = T = angle.cos()
        if self.depth == math.inf:
            layers = 0
            while (xi.abs() > math.exp(-_FAR)).any():
                xi, layers = self.dual._value(xi), layers + 1
            return xi * (-layers * self.dual.coef[1].log()).exp()
        for _ in range(int(self.depth)):
            slope = self.dual._slope(xi)
            xi = self.dual._value(xi)
            T = xi + T * slope
        return xi if self.kernel == "nngp" else T


class _Layers(NamedTuple):
    """Several layers as functions on the grid: log-odds t ↦ t′, and T ↦ a + bT for the NTK."""

    t: Tensor
    log_a: Tensor
    log_b: Tensor

    @classmethod
    def one(cls, dual: Dual) -> Self:
        t = dual._deepen(_GRID)
        return cls(t, F.logsigmoid(-t), dual._log_slope(_GRID))

    def __matmul__(self, before: _Layers) -> _Layers:
        """`before`, then these."""
        t, log_a, log_b = (_Spline(_GRID, values)(before.t) for values in self)
        return _Layers(t, torch.logaddexp(log_a, log_b + before.log_a), log_b + before.log_b)

    def __pow__(self, depth: int) -> _Layers:
        if depth == 1:
            return self
        half = self ** (depth // 2)
        return half @ half @ self if depth % 2 else half @ half


class _Spline:
    """Cubic spline on a uniform grid, continued linearly beyond its ends."""

    def __init__(self, grid: Tensor, values: Tensor) -> None:
        if not values.isfinite().all():
            raise ValueError("depth: the kernel overflows even as a logarithm; use depth=np.inf")
        self.start, self.step = (2 * grid[0] - grid[1]).item(), (grid[1] - grid[0]).item()
        spline = CubicSpline(np.arange(len(grid)), values.numpy())
        left, right = spline([0, len(grid) - 1], 1)
        before = [[0], [0], [left], [values[0] - left]]  # a cell more at either end
        after = [[0], [0], [right], [values[-1]]]
        self.coef = torch.from_numpy(np.concatenate([before, spline.c, after], 1))

    def __call__(self, x: Tensor) -> Tensor:
        position = (x - self.start) / self.step
        index = position.clamp(0, self.coef.shape[1] - 1).long()
        fraction = position.sub_(index)
        value = self.coef[0][index]
        for coef in self.coef[1:]:
            value.mul_(fraction).add_(coef[index])
        return value


class _Series:
    """Σ_k c_k ξ^k + r ξ^m: a dual activation from its Hermite coefficients.

    r = 1 − Σ c_k is what the degree leaves out, and m makes the slope at 1 equal to B′. For ξ < 0,
    where it is below r·|ξ|^m and of unknown sign, the last term is left out.
    """

    def __init__(self, coef: Tensor, B_prime: float) -> None:
        self.coef: list[float] = coef[: int(coef.nonzero()[-1]) + 1].tolist()
        left = 1 - math.fsum(self.coef)
        self.r = left if left > 1e-12 else 0.0
        slope = B_prime - math.fsum(k * c for k, c in enumerate(self.coef))
        least = float(len(coef))
        self.m = max(slope / self.r, least) if self.r and slope < math.inf else least

    def __call__(self, xi: Tensor) -> Tensor:
        return _horner(self.coef, xi) + self.r * xi.clamp(min=0) ** self.m

    def derivative(self, xi: Tensor) -> Tensor:
        slopes = [k * c for k, c in enumerate(self.coef)][1:]
        return _horner(slopes, xi) + self.r * self.m * xi.clamp(min=0) ** (self.m - 1)

    def complement(self, delta: Tensor) -> Tensor:
        log_xi = (-delta).log1p()
        terms = [*enumerate(self.coef), (self.m, self.r)]
        total = torch.zeros_like(delta)
        for exponent, weight in terms:
            if exponent and weight:
                total -= weight * torch.expm1(exponent * log_xi)
        return total


def _horner(coef: Sequence[float], xi: Tensor) -> Tensor:
    value = torch.zeros_like(xi)
    for c in reversed(coef):
        value = (value * xi).add_(c)
    return value


def _closed_complement(gaussian: GaussianDual, delta: Tensor) -> Tensor | None:
    """1 − φ̌(1 − δ) without cancellation, where a closed form is known."""
    if isinstance(gaussian, RectifierDual):
        slope = gaussian.negative_slope
        angle = 2 * (delta / 2).sqrt().asin()  # δ = 1 − cos(angle)
        square = angle * angle
        series = angle * square * (1 / 3 - square / 30 + square * square / 840)
        direct = angle.sin() - angle * angle.cos()
        bent = math.pi * delta - torch.where(angle < 0.1, series, direct)  # 2π(½ − κ₁(1 − δ))
        return ((1 - slope) ** 2 / (2 * math.pi) * bent + slope * delta) * gaussian.gain
    if isinstance(gaussian, ErfDual):  # arcsin x − arcsin y = arcsin(x√(1−y²) − y√(1−x²))
        x, y = 2 / 3, 2 / 3 * (1 - delta)
        gap = x * x * delta * (2 - delta) / (x * (1 - y * y).sqrt() + y * math.sqrt(1 - x * x))
        return gap.asin() / math.asin(x)
    if isinstance(gaussian, SineDual):  # sinh a − sinh a(1 − δ) over sinh a, or cosh for sinh
        a, sign = gaussian.squared_frequency, -1 if gaussian.cosine else 1
        falling = 1 + sign * (a * (delta - 2)).exp()
        return falling * -(-a * delta).expm1() / (1 - sign * math.exp(-2 * a))
    return None


def _classify(A: float, A_prime: float, B_prime: float) -> tuple[Kind, float | None]:
    if A != 0:
        return ("majority" if B_prime > 1 - 1e-9 else "degenerate"), None
    if A_prime == 0:
        return "1-nn", None
    if B_prime < 1 + 1e-9:  # only a linear φ has A = 0 and B′ = 1
        return "degenerate", None
    return "singular", -4 * math.log(abs(A_prime)) / math.log(B_prime)


def _log_diagonal(dual: Dual, depth: float, kernel: Kernel) -> float:
    """log K_L(x, x): 1 for the NNGP, Σ_{l≤L} B′^l for the NTK, infinite for ψ."""
    if depth == math.inf:
        return math.inf
    if kernel == "nngp":
        return 0.0
    return float(np.logaddexp.reduce(np.arange(depth + 1) * math.log(dual.B_prime)))


def _sine_alpha(a: float) -> float:
    log_sinh = a + math.log(-math.expm1(-2 * a) / 2)
    return 2 * (log_sinh - math.log(a)) / math.log(a / math.tanh(a))


# ---------------------------------------------------------------------------------------------
# Private: rows, weights, checks
# ---------------------------------------------------------------------------------------------


def _half_squared_distances(X: NDArray[np.float64], Z: NDArray[np.float64]) -> Tensor:
    """‖x − z‖²/2 from differences: norms and products would leave no digits to near pairs."""
    mode = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(torch.from_numpy(X), torch.from_numpy(Z), compute_mode=mode)
    return distances.square_().mul_(0.5)


def _relative(sign: Tensor, log: Tensor) -> Tensor:
    """Weights sign·e^log, rows divided by their largest; an infinite one leaves no other."""
    largest = log.amax(1, keepdim=True)
    infinite = largest == math.inf
    if infinite.any():
        log = torch.where(infinite, torch.where(log == math.inf, 0.0, -math.inf), log)
        largest = torch.where(infinite, 0.0, largest)
    return log.sub_(largest.clamp_(min=-1e300)).exp_().mul_(sign)


def _merge_copies(
    rows: NDArray[np.float64], Y: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows that are equal to 14 digits, once each, with the mean of their labels."""
    _, first, group, count = np.unique(
        rows.round(14), axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    total = np.zeros((len(first), Y.shape[1]))
    np.add.at(total, group.ravel(), Y)
    return rows[first], total / count[:, None]


def _checked(name: str, value: Tensor | float, low: float, high: float) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float64)
    if value.numel() and not (value.min() >= low - 1e-9 and value.max() <= high + 1e-9):
        raise ValueError(
            f"{name} must lie in [{low}, {high}], got values in "
            f"[{value.min().item():.4g}, {value.max().item():.4g}]"
        )
    return value.clamp(low, high)


def _check_depth_kernel(dual: Dual, depth: float, kernel: Kernel) -> None:
    if depth != math.inf and (depth != int(depth) or depth < 0):
        raise ValueError(f"depth must be an integer of at least 0, or infinite, got {depth!r}")
    if kernel not in ("nngp", "ntk"):
        raise ValueError(f"kernel must be 'nngp' or 'ntk', got {kernel!r}")
    if kernel == "ntk" and dual.B_prime == math.inf:
        raise ValueError("kernel: an activation that jumps (infinite B′) has no NTK")


__all__ = [
    "DeepKernelClassifier", "Dual", "HermiteActivation", "SineActivation",
    "SingularKernelClassifier", "dual_activation", "intrinsic_dimension", "optimal_activation",
    "optimal_dual", "taxonomy",
]  # fmt: skip
