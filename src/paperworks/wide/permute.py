"""Permutations of bits learned exactly by averaging wide networks: theory, nets and trainer.

Giapitzakis, Back de Luca and Fountoulakis, "Exact Learning of Permutations for Nonzero Binary
Inputs with Logarithmic Training Size and Quadratic Ensemble Complexity" (arXiv 2502.16763). A
two-layer ReLU network sees the k unit vectors with their images, and is asked for the image of any
other nonzero binary vector. Trained networks are, in the limit of width, independent draws of a
Gaussian process; its mean has the right sign at every bit, so that the average of enough of them,
rounded, is exact.

Two trainings fit the theory. In the NTK parametrisation both layers move (`kernel="ntk"`). With
the width in the initial variance of ordinary layers, as in the official code, the last layer's
tangent kernel is as much larger as the network is wide, and the limit is that of training it alone
(`kernel="last_layer"`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr
from sklearn.base import BaseEstimator
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from paperworks.wide.kernels import deep_kernels, ntk_posterior

Kernel = Literal["ntk", "last_layer"]
Parametrization = Literal["ntk", "standard"]
Array = NDArray[np.float64]

_CHUNK = 2**24
"""Activations of hidden units that are held at once."""


# ---------------------------------------------------------------------------------------------
# Theory
# ---------------------------------------------------------------------------------------------


class PermutationTheory:
    """What a wide two-layer ReLU network says of a bit, trained on the k unit vectors.

    Trained to the end, F(x) = W₁ ReLU(W₀x/√k)/√n with n → ∞ is Gaussian at x̂ = x/√m, with x a
    binary vector of m ones. With kΘ(X, X) = aI + b11ᵀ and kΘ(x̂, e_i) = f where x_i = 1, else b,

        μ₀ = (b/a)(a − (f − b)m)/(a + kb),  μ₁ = μ₀ + (f − b)/a

    are its means at bits that are to be 0 and 1 (μ₀ < 0 < μ₁ for 2 ≤ m < k), and all bits have one
    variance σ² = K(x̂, x̂) + cᵀK(X, X)c − 2cᵀK(X, x̂), c = Θ(X, X)⁻¹Θ(X, x̂). Every formula costs
    O(1): the inverse is of rank one more than diagonal.

    Args:
        k: number of bits, at least 2.
        kernel: "ntk" where both layers are trained in the NTK parametrisation, "last_layer" where
            the last one decides, as in networks of standard parametrisation.

    Raises:
        ValueError: k below 2, or another kernel.

    Source: arXiv 2502.16763, theorem 1 and its corollaries; that the official code is in the
    "last_layer" regime is our observation.

    >>> theory = PermutationTheory(10)
    >>> one, zero = theory.mean(2)
    >>> round(float(one), 6), round(float(zero), 6), round(float(theory.variance(2)), 7)
    (0.565422, -0.00985, 0.0065187)
    >>> theory.ensemble_size(0.1), theory.ensemble_size(0.1, simultaneous=True)
    (619, 1551)
    """

    def __init__(self, k: int, kernel: Kernel = "ntk") -> None:
        if not isinstance(k, int | np.integer) or k < 2:
            raise ValueError(f"k must be >= 2, got {k!r}")
        if kernel not in ("ntk", "last_layer"):
            raise ValueError(f'kernel must be "ntk" or "last_layer", got {kernel!r}')
        self.k = int(k)
        self.kernel = kernel

    def __repr__(self) -> str:
        return f"PermutationTheory({self.k}, kernel={self.kernel!r})"

    def mean(self, m: ArrayLike) -> tuple[Array, Array]:
        """(μ₁, μ₀): means at bits to be 1 and to be 0, for inputs of m ones, any shape.

        For m = k there is no bit to be 0; its formula is given all the same.
        """
        c0, step = self._weights(self._ones(m))
        return c0 + step, c0

    def variance(self, m: ArrayLike) -> Array:
        """σ² of one network's output, the same at every bit, for inputs of m ones."""
        m = self._ones(m)
        b, K_diagonal = _ORTHOGONAL, 0.5 - _ORTHOGONAL
        c0, step = self._weights(m)
        c1, zeros = c0 + step, self.k - m
        total = m * c1 + zeros * c0
        prior = K_diagonal * (m * c1**2 + zeros * c0**2) + b * total**2
        cross = m * c1 * _arc_cosine(m)[1] + zeros * c0 * b
        return np.maximum(0.5 + prior - 2 * cross, 0) / self.k

    def ensemble_size(
        self, delta: float, m: int | None = None, *, simultaneous: bool = False
    ) -> int:
        """Networks to average for a rounded mean that is right with probability 1 − delta.

        N ≥ max_m (2σ²/μ²) ln(k/delta), μ the smaller of |μ₀| and μ₁, by Chernoff's bound on each
        bit and the union over k bits; `simultaneous` is for all 2^k − 1 inputs at once, with
        ln(k 2^k/delta). Grows as k log k, and as k².

        Args:
            delta: failure probability, in (0, 1).
            m: ones of the input; by default the worst, 2 ≤ m ≤ k. Inputs with a single one are
                training points, whose zeros are zero and no more.
            simultaneous: right on all inputs at once; then m must be left out.

        Raises:
            ValueError: delta outside (0, 1), m outside 2 … k, or both m and `simultaneous`.
        """
        if not 0 < delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {delta}")
        if simultaneous and m is not None:
            raise ValueError(f"m must be left out when simultaneous=True, got {m}")
        union = math.log(self.k / delta) + (self.k * math.log(2) if simultaneous else 0)
        ones = np.arange(2.0, self.k + 1) if m is None else np.array([m], dtype=np.float64)
        return math.ceil(self._hardness(ones).max() * union)

    def smallest_ensemble(self, probability: float, m: int = 2) -> int:
        """The fewest networks whose rounded mean is exact with that probability, on one input.

        The exact law of the limit, where `ensemble_size` bounds it.

        Raises:
            ValueError: probability outside (0, 1), or m outside 2 … k.
        """
        if not 0 < probability < 1:
            raise ValueError(f"probability must be in (0, 1), got {probability}")
        high = 1
        while self.exact_match_probability(high, m) < probability:
            high *= 2
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            enough = self.exact_match_probability(middle, m) >= probability
            low, high = (low, middle) if enough else (middle, high)
        return high

    def exact_match_probability(self, N: ArrayLike, m: int) -> Array:
        """Φ(√N μ₁/σ)^m Φ(−√N μ₀/σ)^(k−m): all k bits right in the rounded mean of N networks.

        Raises:
            ValueError: N below 1, or m outside 2 … k.
        """
        N = np.asarray(N, dtype=np.float64)
        if (N < 1).any():
            raise ValueError(f"N must be at least 1, got {N.min()}")
        ones = self._rounded(np.asarray(m))
        one, zero = self.mean(ones)
        scale = np.sqrt(N / self.variance(ones))
        return np.exp(m * log_ndtr(scale * one) + (self.k - m) * log_ndtr(-scale * zero))

    def posterior(self, X: Tensor, permutation: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Joint law of one network's outputs at several inputs.

        Args:
            X: nonzero binary vectors, shape (T, k); rows are divided by their norm.
            permutation: where each bit goes, (k,); left alone by default.

        Returns:
            Mean of shape (T, k), and the covariance (T, T) between inputs, which every bit has
            and no two bits share; float64.

        Raises:
            ValueError: X is not binary, or has a zero row or another length.
        """
        if X.ndim != 2 or X.shape[1] != self.k or not ((X == 0) | (X == 1)).all():
            raise ValueError(f"inputs must be nonzero binary of length {self.k}, got {_told(X)}")
        if (X == 0).all(1).any():
            raise ValueError(f"inputs must be nonzero binary of length {self.k}, got a zero row")
        x = nn.functional.normalize(X.double(), dim=1)
        eye = torch.eye(self.k, dtype=torch.float64, device=X.device)
        (K_xx, Theta_xx), (K_tx, Theta_tx), (K_tt, _) = (
            deep_kernels(*pair, activation="relu", depth=1) for pair in ((eye,), (x, eye), (x,))
        )
        if self.kernel == "last_layer":
            Theta_xx, Theta_tx = K_xx, K_tx
        labels = eye if permutation is None else eye[torch.as_tensor(permutation).argsort()].mT
        return ntk_posterior(K_xx, K_tx, K_tt, Theta_xx, Theta_tx, labels)

    def _weights(self, m: Array) -> tuple[Array, Array]:
        """c₀, and c₁ − c₀ = (f − b)/a."""
        k0, k1 = _arc_cosine(m)
        b = _ORTHOGONAL
        if self.kernel == "ntk":
            a, f = 1 - b, k1 + k0 / np.sqrt(m)
        else:
            a, f = 0.5 - b, k1
        return (b / a) * (a - (f - b) * m) / (a + self.k * b), (f - b) / a

    def _hardness(self, m: Array) -> Array:
        """2σ²/μ², with μ the mean that is nearest to zero."""
        m = self._rounded(m)
        one, zero = self.mean(m)
        nearest = np.where(m < self.k, np.minimum(one, -zero), one)
        return 2 * self.variance(m) / nearest**2

    def _ones(self, m: ArrayLike) -> Array:
        m = np.asarray(m, dtype=np.float64)
        if ((m < 1) | (m > self.k) | (m % 1 != 0)).any():
            raise ValueError(f"m must be integers in 1..{self.k}, got {m}")
        return m

    def _rounded(self, m: Array) -> Array:
        if (self._ones(m) < 2).any():
            raise ValueError(
                f"m must be in 2..{self.k}: inputs with a single one are training points, whose "
                "zeros are exactly zero"
            )
        return m


_ORTHOGONAL = 1 / (2 * math.pi)
"""b: κ₁ of orthogonal inputs."""


def _arc_cosine(m: Array) -> tuple[Array, Array]:
    """κ₀ and κ₁ between x̂ and a unit vector that it contains, ρ = 1/√m."""
    rho = 1 / np.sqrt(m)
    k0 = (math.pi - np.arccos(rho)) / (2 * math.pi)
    return k0, np.sqrt(1 - rho**2) / (2 * math.pi) + rho * k0


# ---------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------


class NTKMLP(nn.Module):
    """Two-layer ReLU networks, one or many at once.

    "ntk": F(x) = W₁ ReLU(W₀x/√d + b₀)/√n + b₁ with weights N(0, 1) and width n; "standard":
    F(x) = W₁ ReLU(W₀x + b₀) + b₁ with weights N(0, 1/d) and N(0, 1/n). Both are the same functions
    at the start, and move differently. Biases, if any, start at 0.

    Args:
        in_features: d.
        width: hidden units n of one network.
        out_features: q.
        parametrization: where the width goes, see above.
        bias: with biases; without, F is homogeneous: F(cx) = cF(x) for c > 0.
        stacked: number of independent networks N; one without that dimension when left out.
        generator: draws the weights; torch's global one when left out.

    Shapes: input (B, d); output (N, B, q), or (B, q) when not stacked. A module like any other: it
    trains with every optimiser, and `train_ensemble` is the quick way.

    Raises:
        ValueError: a size that is not positive, or another parametrization.

    Source: arXiv 2502.16763, section 3 ("ntk"); the official code ("standard", with biases).

    >>> nets = NTKMLP(3, 100, 2, stacked=5, generator=torch.Generator().manual_seed(0))
    >>> nets(torch.eye(3)).shape, sum(p.numel() for p in nets.parameters())
    (torch.Size([5, 3, 2]), 2500)
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int,
        parametrization: Parametrization = "ntk",
        *,
        bias: bool = False,
        stacked: int | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"in_features": in_features, "width": width, "out_features": out_features}
        for name, size in (sizes | {"stacked": 1 if stacked is None else stacked}).items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if parametrization not in ("ntk", "standard"):
            raise ValueError(
                f'parametrization must be "ntk" or "standard", got {parametrization!r}'
            )
        self.in_features, self.width, self.out_features = in_features, width, out_features
        self.parametrization = parametrization
        self.stacked = stacked
        lead = () if stacked is None else (stacked,)

        def normal(rows: int, columns: int) -> nn.Parameter:
            std = 1.0 if parametrization == "ntk" else columns**-0.5
            place = device if generator is None else generator.device
            drawn = torch.randn(
                *lead, rows, columns, generator=generator, device=place, dtype=dtype
            )
            return nn.Parameter((std * drawn).to(device))

        self.W0, self.W1 = normal(width, in_features), normal(out_features, width)
        zeros = partial(torch.zeros, device=device, dtype=dtype)
        self.b0 = nn.Parameter(zeros((*lead, width))) if bias else None
        self.b1 = nn.Parameter(zeros((*lead, out_features))) if bias else None

    @property
    def scales(self) -> tuple[float, float]:
        """Factors of both layers: (1/√d, 1/√n), or 1 in the standard parametrisation."""
        if self.parametrization == "standard":
            return 1.0, 1.0
        return self.in_features**-0.5, self.width**-0.5

    def hidden(self, x: Tensor) -> Tensor:
        """Hidden units after the ReLU, (…, B, n)."""
        pre = (self.scales[0] * x) @ self.W0.mT
        return (pre if self.b0 is None else pre + self.b0[..., None, :]).relu()

    def readout(self, hidden: Tensor) -> Tensor:
        """Outputs (…, B, q) from hidden units."""
        out = (self.scales[1] * hidden) @ self.W1.mT
        return out if self.b1 is None else out + self.b1[..., None, :]

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x must have shape (B, {self.in_features}), got {tuple(x.shape)}")
        return self.readout(self.hidden(x))

    def extra_repr(self) -> str:
        many = "" if self.stacked is None else f", stacked={self.stacked}"
        sizes = f"{self.in_features}, {self.width}, {self.out_features}"
        return f"{sizes}, {self.parametrization!r}, bias={self.b0 is not None}{many}"


@torch.no_grad()
def train_ensemble(
    X: Tensor,
    Y: Tensor,
    n_models: int,
    width: int,
    steps: int = 60,
    lr: float | Literal["auto"] = "auto",
    *,
    parametrization: Parametrization = "ntk",
    bias: bool = False,
    chunk: int | None = None,
    generator: torch.Generator | None = None,
) -> NTKMLP:
    """Thousands of small two-layer networks trained at once, each from weights of its own.

    Full-batch gradient descent on ½‖F(X) − Y‖², gradients in closed form and batched over
    networks: about 6·B·n·(d + q) multiply-adds a network and step.

    Args:
        X: inputs, shape (B, d), of a floating dtype.
        Y: targets, shape (B, q).
        n_models: number of networks N.
        width: hidden units n of each.
        steps: of gradient descent. The slowest direction shrinks by 1 − λ_min/λ_max a step: 60
            reach 1e-6 on the unit vectors for k ≤ 12.
        lr: learning rate; "auto" is 1/λ_max of the limit's tangent kernel, or less.
        parametrization, bias: see `NTKMLP`.
        chunk: networks trained at once; by default as many as have 2²⁴ hidden activations.
        generator: draws the weights.

    Returns:
        `NTKMLP` with `stacked=n_models`, on the device and in the dtype of X.

    Raises:
        ValueError: shapes that do not fit, X or Y not finite, n_models, width, steps, lr or chunk
            not positive, or training diverged.
        TypeError: X is of no floating dtype.

    Source: arXiv 2502.16763, section 3. The official code's rate of 1e-3 on the error averaged over
    its k² entries is lr = 2e-3/k² here.

    >>> eye = torch.eye(4)
    >>> nets = train_ensemble(eye, eye.flip(1), 600, 99, generator=torch.Generator().manual_seed(0))
    >>> bool((nets(eye) - eye.flip(1)).abs().max() < 1e-3)
    True
    >>> (nets(torch.tensor([[1.0, 1.0, 0.0, 0.0]])).mean(0) > 0).int()
    tensor([[0, 0, 1, 1]], dtype=torch.int32)
    """
    _check_examples(X, Y)
    for name, number in {"n_models": n_models, "steps": steps}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if lr != "auto" and not lr > 0:
        raise ValueError(f'lr must be positive or "auto", got {lr}')
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    nets = NTKMLP(
        X.shape[1], width, Y.shape[1], parametrization, bias=bias, stacked=n_models,
        generator=generator, device=X.device, dtype=X.dtype,
    )  # fmt: skip
    rate = _largest_rate(X, nets) if lr == "auto" else float(lr)
    size = chunk or max(1, _CHUNK // (len(X) * width))
    for part in torch.arange(n_models).split(size):
        _descend(nets, slice(int(part[0]), int(part[-1]) + 1), X, Y.to(X), rate, steps)
    if not all(parameter.isfinite().all() for parameter in nets.parameters()):
        raise ValueError(f"lr: training diverged with a rate of {rate:.3g}, give a smaller one")
    return nets


def _descend(nets: NTKMLP, which: slice, X: Tensor, Y: Tensor, lr: float, steps: int) -> None:
    """Gradient descent of some of the networks, in place."""
    W0, W1 = nets.W0[which], nets.W1[which]
    b0, b1 = (None if b is None else b[which] for b in (nets.b0, nets.b1))
    inner, outer = nets.scales
    x = inner * X
    for _ in range(steps):
        hidden = x @ W0.mT
        if b0 is not None:
            hidden += b0[:, None]
        hidden.relu_()
        error = torch.baddbmm(-Y.expand(len(W0), -1, -1), hidden, W1.mT, alpha=outer)
        if b1 is not None:
            error += b1[:, None]
        back = (error @ W1).mul_(hidden > 0)  # before W1 moves
        W1.baddbmm_(error.mT, hidden, alpha=-lr * outer)
        W0.baddbmm_(back.mT, x.expand(len(W0), -1, -1), alpha=-lr * outer)
        if b0 is not None and b1 is not None:
            b0.sub_(back.sum(1), alpha=lr * outer)
            b1.sub_(error.sum(1), alpha=lr)


def _largest_rate(X: Tensor, nets: NTKMLP) -> float:
    """1 over the largest row sum of the limit's tangent kernel, which is no less than λ_max."""
    K, Theta = deep_kernels(X.double(), activation="relu", depth=1)
    if nets.parametrization == "standard":
        Theta = nets.width * K + nets.in_features * (Theta - K)
    if nets.b0 is not None:  # they add 1 + κ₀
        Theta = Theta + 1.5
    return 1 / Theta.abs().sum(1).max().item()


def _check_examples(X: Tensor, Y: Tensor) -> None:
    if not X.is_floating_point():
        raise TypeError(f"X must be a floating-point tensor, got {X.dtype}")
    if X.ndim != 2 or 0 in X.shape:
        raise ValueError(f"X must have shape (B, d), got {tuple(X.shape)}")
    if Y.ndim != 2 or len(Y) != len(X) or not Y.shape[1]:
        raise ValueError(f"Y must have shape ({len(X)}, q), got {tuple(Y.shape)}")
    for name, values in (("X", X), ("Y", Y)):
        if not values.isfinite().all():
            raise ValueError(f"{name} has entries that are not finite")


def _told(X: Tensor) -> str:
    return f"shape {tuple(X.shape)} with entries from {X.min().item():g} to {X.max().item():g}"


class EnsembleBinaryRegressor(BaseEstimator):
    """The rounded mean of many small wide networks, for tasks from bits to bits.

    F̄(x) = (1/N) Σ_j F_j(x/‖x‖), predicted is 1 where F̄ > threshold. Reach for it to see what
    gradient descent makes of a binary task of yours, from as many examples as you have; for a
    permutation the k unit vectors are enough, and `PermutationTheory(k).ensemble_size(delta)` says
    how many networks.

    Args:
        n_models: networks N in the mean.
        width: hidden units of each.
        threshold: above it a bit is 1.
        steps: of gradient descent; see `training_error_` for whether they were enough.
        parametrization: "ntk" or "standard", see `NTKMLP`.
        random_state: draws the weights.

    Attributes:
        networks_: the trained `NTKMLP`, stacked.
        training_error_: largest |F_j(x) − y| over networks and examples.
        n_features_in_: number of features.

    Rows are divided by their norm, which changes no sign. Targets may be any numbers, of shape (n,)
    or (n, q), and are fitted as they are. Without biases a network answers 0 at x = 0, whatever it
    has learned: no row may be zero. `score` is the share of rows with every bit right. It follows
    scikit-learn, but is no `RegressorMixin`: predictions are bits.

    Raises:
        ValueError: in `fit` and `predict`: a zero row, or what scikit-learn refuses.

    Source: arXiv 2502.16763, section 4.

    >>> X = np.eye(5)
    >>> model = EnsembleBinaryRegressor(200, 300, random_state=0).fit(X, X[:, ::-1])
    >>> model.predict([[1, 1, 0, 0, 0], [1, 0, 1, 1, 0]])
    array([[0, 0, 0, 1, 1],
           [0, 1, 1, 0, 1]])
    """

    def __init__(
        self,
        n_models: int = 100,
        width: int = 1000,
        threshold: float = 0.0,
        steps: int = 60,
        parametrization: Parametrization = "ntk",
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_models = n_models
        self.width = width
        self.threshold = threshold
        self.steps = steps
        self.parametrization = parametrization
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Train on rows X (n, features) and targets y, (n,) or (n, q)."""
        rows, targets = validate_data(
            self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True
        )
        x = self._unit(rows)
        self._single = targets.ndim == 1
        labels = torch.from_numpy(targets.reshape(len(rows), -1).astype(rows.dtype))
        seed = check_random_state(self.random_state).randint(2**31)
        self.networks_ = train_ensemble(
            x, labels, self.n_models, self.width, self.steps,
            parametrization=self.parametrization, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        self.training_error_ = max(float((out - labels).abs().max()) for out in self._outputs(x))
        return self

    def decision_function(self, X: ArrayLike) -> Array:
        """Mean output of the networks, (n,) or (n, q)."""
        outputs = self._outputs(self._checked(X))
        return self._shaped(torch.stack([out.sum(0) for out in outputs]).sum(0) / self.n_models)

    def predict(self, X: ArrayLike) -> NDArray[np.int64]:
        """Bits, (n,) or (n, q)."""
        return (self.decision_function(X) > self.threshold).astype(np.int64)

    def predict_std(self, X: ArrayLike) -> Array:
        """Standard deviation of one network's output; that of the mean is 1/√n_models of it."""
        outputs = torch.cat(list(self._outputs(self._checked(X))))
        return self._shaped(outputs.std(0, correction=min(1, self.n_models - 1)))

    def score(self, X: ArrayLike, y: ArrayLike, sample_weight: Array | None = None) -> float:
        """Share of rows with every bit right."""
        predicted, targets = self.predict(X), np.asarray(y)
        right = (predicted.reshape(len(targets), -1) == targets.reshape(len(targets), -1)).all(1)
        return float(np.average(right, weights=sample_weight))

    def _outputs(self, x: Tensor) -> Iterator[Tensor]:
        """Outputs (networks, n, q), some networks after others."""
        nets = self.networks_
        inner, outer = nets.scales
        size = max(1, _CHUNK // (len(x) * nets.width))
        for W0, W1 in zip(nets.W0.detach().split(size), nets.W1.detach().split(size)):
            yield ((inner * x) @ W0.mT).relu_() @ (outer * W1).mT

    def _checked(self, X: ArrayLike) -> Tensor:
        check_is_fitted(self)
        return self._unit(validate_data(self, X, reset=False, dtype=[np.float64, np.float32]))

    def _unit(self, X: NDArray[np.floating]) -> Tensor:
        norm = np.linalg.norm(X, axis=1, keepdims=True)
        if not norm.all():
            raise ValueError(
                f"X: row {int(np.argmin(norm))} is zero, where a network without biases is 0"
            )
        return torch.from_numpy(X / norm)

    def _shaped(self, values: Tensor) -> Array:
        return values.numpy()[:, 0] if self._single else values.numpy()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags
