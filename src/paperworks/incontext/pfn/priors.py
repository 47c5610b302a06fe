"""Priors over supervised tasks: what a PFN is trained on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.distributions import Distribution, ExpTransform, TransformedDistribution, Uniform

from paperworks.common.generators import following
from paperworks.data import gaussian_process
from paperworks.incontext.iclinear.tasks import check_counts

Value = float | Distribution
"""A number, or what it is drawn from anew for each task."""

KernelName = Literal["rbf", "matern12", "matern32", "matern52"]
Kernel = KernelName | Callable[[Tensor], Tensor]
"""A name, or a function of Euclidean distances in units of the lengthscale."""


class Prior(Protocol):
    """A sampler of supervised tasks; `LinearTasks` is one, and your own class may be."""

    def sample(self, batch: int, n_points: int, generator: torch.Generator) -> Any:
        """x (batch, n_points, F) and y (batch, n_points); what comes after them is ignored."""


class GPPrior:
    """Functions of a Gaussian process, observed with noise.

    y ~ N(0, o k(‖x − x′‖/ℓ) + σ² I). Each of ℓ, σ² and o may be a number, or a
    `torch.distributions` distribution from which every task draws its own.

    Args:
        kernel: "rbf", "matern12", "matern32", "matern52", or a function of distances in units of ℓ.
        lengthscale: ℓ.
        noise: σ², a variance.
        outputscale: o, the variance of the function.
        num_features: F.
        ard: a lengthscale of its own for each feature.
        inputs: x ~ U[0, 1] ("uniform") or N(0, 1) ("normal").

    Raises:
        ValueError: a number out of its range, or another kernel or inputs.

    Source: arXiv 2112.10510, section 5.1; its GP has lengthscale 0.6, noise 1e-4, and with
    hyperprior Γ(3, 6), Γ(0.5, 0.15) and Γ(1.1, 0.05) for ℓ, o and σ², Matérn-5/2 with `ard`.

    >>> prior = GPPrior("rbf", lengthscale=log_uniform(0.1, 1.0), noise=0.01)
    >>> x, y = prior.sample(4, 20, torch.Generator().manual_seed(0))
    >>> x.shape, y.shape
    (torch.Size([4, 20, 1]), torch.Size([4, 20]))
    """

    def __init__(
        self,
        kernel: Kernel = "rbf",
        lengthscale: Value = 0.6,
        noise: Value = 1e-4,
        outputscale: Value = 1.0,
        *,
        num_features: int = 1,
        ard: bool = False,
        inputs: Literal["uniform", "normal"] = "uniform",
    ) -> None:
        check_counts(num_features=num_features)
        correlation(kernel)
        check_value("lengthscale", lengthscale)
        check_value("noise", noise, positive=False)
        check_value("outputscale", outputscale)
        if inputs not in ("uniform", "normal"):
            raise ValueError(f"inputs must be 'uniform' or 'normal', got {inputs!r}")
        self.kernel, self.lengthscale, self.noise = kernel, lengthscale, noise
        self.outputscale, self.num_features = outputscale, num_features
        self.ard, self.inputs = ard, inputs

    def sample(
        self, batch: int, n_points: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """x (batch, n_points, F) and y (batch, n_points), in torch's default dtype."""
        check_counts(batch=batch, n_points=n_points)
        shape = (batch, n_points, self.num_features)
        x = _draw_inputs(self.inputs, shape, generator)
        widths = (batch, 1, self.num_features if self.ard else 1)
        lengthscale = draw_value(self.lengthscale, widths, generator)
        noise = draw_value(self.noise, (batch, 1, 1), generator)
        outputscale = draw_value(self.outputscale, (batch, 1, 1), generator)
        eye = torch.eye(n_points, dtype=torch.float64, device=x.device)

        def covariance(x: Tensor) -> Tensor:
            r = distances(x, x)
            return outputscale * correlation(self.kernel)(r) + noise * eye

        y = gaussian_process(covariance, x.double() / lengthscale, generator=generator, jitter=1e-9)
        return x, y.to(x)


class BNNPrior:
    """Bayesian neural networks with random weights on random inputs.

    f(x) = W_L φ(… φ(W_1 x + b_1) …) + b_L, W, b ~ N(0, s²), x ~ N(0, I); a label is drawn with
    P(y = 1) = σ(f(x)) for `task="binary"`, and y = f(x) + N(0, noise²) for "regression". Every task
    draws its own network.

    Args:
        widths: F, then the hidden layers.
        activation: "tanh", "relu", "gelu", "sin", any function, or None: the official code of the
            study has no activation between its two layers.
        task: "binary" or "regression".
        weight_std: s, a number or a distribution from which each task draws.
        noise: of a regression, its standard deviation, likewise.
        min_features: tasks have between so many and F features, drawn uniformly, and columns of
            zeros in place of the others; F by default. `fit_pfn(standardize=True)` rescales them.
        inputs: "normal", or "correlated": x = Az with z ~ N(0, I) and A_ij ~ N(0, 1/F), a matrix a
            task (ours: columns of tables are not independent).

    Raises:
        ValueError: widths that are not positive integers, another task, activation or number.

    Source: arXiv 2112.10510, sections 5.2 and 6; that labels are drawn from the logistic function
    is our reading.

    >>> x, y = BNNPrior([5, 16]).sample(4, 30, torch.Generator().manual_seed(0))
    >>> x.shape, y.unique()
    (torch.Size([4, 30, 5]), tensor([0., 1.]))
    """

    def __init__(
        self,
        widths: Sequence[int],
        activation: str | Callable[[Tensor], Tensor] | None = "tanh",
        task: Literal["binary", "regression"] = "binary",
        *,
        weight_std: Value = 1.0,
        noise: Value = 0.0,
        min_features: int | None = None,
        inputs: Literal["normal", "correlated"] = "normal",
    ) -> None:
        widths = list(widths)
        if not widths:
            raise ValueError("widths must begin with the number of features, got none")
        for i, width in enumerate(widths):
            check_counts(**{f"widths[{i}]": width})
        if task not in ("binary", "regression"):
            raise ValueError(f"task must be 'binary' or 'regression', got {task!r}")
        check_value("weight_std", weight_std)
        check_value("noise", noise, positive=False)
        least = widths[0] if min_features is None else min_features
        check_counts(min_features=least)
        if inputs not in ("normal", "correlated"):
            raise ValueError(f"inputs must be 'normal' or 'correlated', got {inputs!r}")
        self.inputs = inputs
        if least > widths[0]:
            raise ValueError(f"min_features must be at most {widths[0]} as widths say, got {least}")
        self.widths, self.task, self.min_features = widths, task, least
        self.activation = _activation(activation)
        self.weight_std, self.noise = weight_std, noise

    def sample(
        self, batch: int, n_points: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """x (batch, n_points, F) and y (batch, n_points), labels 0.0 and 1.0."""
        check_counts(batch=batch, n_points=n_points)
        device = generator.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device)

        F = self.widths[0]
        x = normal(batch, n_points, F)
        if self.inputs == "correlated":
            x = x @ normal(batch, F, F) / F**0.5
        if self.min_features < F:
            drawn = (batch, 1, 1)
            kept = torch.randint(
                self.min_features, F + 1, drawn, generator=generator, device=device
            )
            x = x * (torch.arange(F, device=device) < kept)
        weight_std = draw_value(self.weight_std, (batch, 1, 1), generator).to(x)
        f = x
        sizes = [*self.widths, 1]
        for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
            f = self.activation(f) if i else f
            f = weight_std * (f @ normal(batch, n_in, n_out) + normal(batch, 1, n_out))
        f = f[..., 0]
        if self.task == "binary":
            return x, torch.bernoulli(f.sigmoid(), generator=generator)
        noise = draw_value(self.noise, (batch, 1), generator).to(x)
        return x, f + noise * normal(batch, n_points)


class MixturePrior:
    """A prior over priors: every task comes from one of several.

    Args:
        priors: priors with equally many features.
        weights: how probable each is; equally by default.

    Raises:
        ValueError: no priors, or weights that do not fit, are negative or sum to zero.

    >>> smooth, rough = GPPrior(lengthscale=1.0), GPPrior("matern12", lengthscale=0.2)
    >>> x, y = MixturePrior([smooth, rough]).sample(6, 9, torch.Generator().manual_seed(0))
    >>> y.shape
    torch.Size([6, 9])
    """

    def __init__(self, priors: Sequence[Prior], weights: Sequence[float] | None = None) -> None:
        self.priors = list(priors)
        self.weights = [1.0 for _ in self.priors] if weights is None else list(weights)
        if not self.priors:
            raise ValueError("priors must not be empty")
        fits = len(self.weights) == len(self.priors) and min(self.weights) >= 0
        if not fits or not sum(self.weights) > 0:
            raise ValueError(
                f"weights must be {len(self.priors)} numbers, not negative and not all zero, got "
                f"{self.weights}"
            )

    def sample(
        self, batch: int, n_points: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """x (batch, n_points, F) and y (batch, n_points), tasks in random order."""
        check_counts(batch=batch, n_points=n_points)
        weights = torch.tensor(self.weights, dtype=torch.float64, device=generator.device)
        which = torch.multinomial(weights, batch, replacement=True, generator=generator)
        counts = which.bincount(minlength=len(self.priors)).tolist()
        parts = [
            sample_prior(prior, count, n_points, generator)
            for prior, count in zip(self.priors, counts)
            if count
        ]
        order = torch.argsort(torch.argsort(which, stable=True))
        x, y = (torch.cat(part)[order] for part in zip(*parts))
        return x, y


class FunctionPrior:
    """Your own function as a prior.

    Args:
        function: `function(batch, n_points, generator)` returns x (batch, n_points, F) and y
            (batch, n_points), tensors or arrays. Draw from the generator and tasks can be repeated.
        name: what errors call it; the function's name by default.

    Raises:
        TypeError: it cannot be called.

    >>> def steps(batch, n_points, generator):
    ...     x = torch.rand(batch, n_points, 1, generator=generator)
    ...     edge = torch.rand(batch, 1, generator=generator)
    ...     return x, (x[..., 0] > edge).float()
    >>> x, y = FunctionPrior(steps).sample(2, 5, torch.Generator().manual_seed(0))
    >>> y.shape
    torch.Size([2, 5])
    """

    def __init__(
        self, function: Callable[[int, int, torch.Generator], Any], name: str | None = None
    ) -> None:
        if not callable(function):
            raise TypeError(f"function must be callable, got {type(function).__name__}")
        self.function = function
        self.name = name or getattr(function, "__name__", type(function).__name__)

    def sample(self, batch: int, n_points: int, generator: torch.Generator) -> Any:
        """What the function returns."""
        return self.function(batch, n_points, generator)


def log_uniform(low: float, high: float) -> Distribution:
    """log v ~ U(log low, log high): for scales of which only the range is known.

    Raises:
        ValueError: not 0 < low < high.

    >>> bool(log_uniform(0.1, 1.0).cdf(torch.tensor(10**-0.5)).isclose(torch.tensor(0.5)))
    True
    """
    if not 0 < low < high < math.inf:
        raise ValueError(f"must be 0 < low < high, got {low} and {high}")
    return TransformedDistribution(Uniform(math.log(low), math.log(high)), [ExpTransform()])


def sample_prior(
    prior: Prior,
    batch: int,
    n_points: int,
    generator: torch.Generator,
    *,
    num_features: int | None = None,
    num_classes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """x and y of a prior, or an error that names it where they are not what they must be."""
    name = f"prior {getattr(prior, 'name', None) or type(prior).__name__!r}"
    drawn = prior.sample(batch, n_points, generator)
    if not isinstance(drawn, tuple | list) or len(drawn) < 2:
        raise ValueError(f"{name}: sample must return x and y, got {type(drawn).__name__}")
    try:
        x, y = (torch.as_tensor(part) for part in drawn[:2])
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: x and y must be tensors or arrays: {error}") from error
    fits = x.ndim == 3 and x.shape[:2] == (batch, n_points) and y.shape == (batch, n_points)
    if not fits or x.shape[2] != (num_features or x.shape[2]) or not x.shape[2]:
        wanted = f"({batch}, {n_points}, {num_features or 'F'}) and ({batch}, {n_points})"
        raise ValueError(
            f"{name}: x and y must be {wanted}, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    dtype = torch.get_default_dtype()
    x, y = (part if part.is_floating_point() else part.to(dtype) for part in (x, y))
    for letter, part in (("x", x), ("y", y)):
        if not part.isfinite().all():
            bad = int((~part.isfinite()).sum())
            raise ValueError(f"{name}: {letter} has {bad} values that are NaN or infinite")
    if num_classes and not ((y == y.round()) & (y >= 0) & (y < num_classes)).all():
        raise ValueError(
            f"{name}: y must be labels 0 to {num_classes - 1} for this head, got values from "
            f"{y.min():g} to {y.max():g}"
        )
    return x, y


def distances(x: Tensor, z: Tensor) -> Tensor:
    """Euclidean distances of rows, (..., n, m), exactly 0 on equal rows."""
    return torch.cdist(x, z, compute_mode="donot_use_mm_for_euclid_dist")


def correlation(kernel: Kernel) -> Callable[[Tensor], Tensor]:
    """k(r) with k(0) = 1, of a name or as it is."""
    if callable(kernel):
        return kernel
    if kernel not in _CORRELATIONS:
        raise ValueError(f"kernel must be a function or one of {[*_CORRELATIONS]}, got {kernel!r}")
    return _CORRELATIONS[kernel]


def _matern32(r: Tensor) -> Tensor:
    s = math.sqrt(3) * r
    return (1 + s) * torch.exp(-s)


def _matern52(r: Tensor) -> Tensor:
    s = math.sqrt(5) * r
    return (1 + s + s.square() / 3) * torch.exp(-s)


_CORRELATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "rbf": lambda r: torch.exp(-r.square() / 2),
    "matern12": lambda r: torch.exp(-r),
    "matern32": _matern32,
    "matern52": _matern52,
}

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh, "relu": torch.relu, "gelu": torch.nn.functional.gelu, "sin": torch.sin,
}  # fmt: skip


def _activation(
    activation: str | Callable[[Tensor], Tensor] | None,
) -> Callable[[Tensor], Tensor]:
    if activation is None:
        return torch.nn.Identity()
    if callable(activation):
        return activation
    if activation not in _ACTIVATIONS:
        names = [*_ACTIVATIONS]
        raise ValueError(f"activation must be a function, None or one of {names}: {activation!r}")
    return _ACTIVATIONS[activation]


def check_value(name: str, value: Value, positive: bool = True) -> None:
    """Raise unless this is a distribution, or a number in range."""
    if isinstance(value, Distribution):
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number or a distribution, got {value!r}")
    if not isfinite(value) or value < 0 or (positive and value == 0):
        wanted = "positive" if positive else "not negative"
        raise ValueError(f"{name} must be {wanted} and finite, got {value}")


def draw_value(value: Value, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """The number everywhere, or draws of the distribution, float64 on the generator's device.

    `torch.distributions` know the global generator only.
    """
    if not isinstance(value, Distribution):
        return torch.full(shape, float(value), dtype=torch.float64, device=generator.device)
    with following(generator):
        return value.sample(shape).to(generator.device, torch.float64)


def _draw_inputs(inputs: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    draw = torch.rand if inputs == "uniform" else torch.randn
    return draw(shape, generator=generator, device=generator.device)
