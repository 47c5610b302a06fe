"""A stack of layers collapsed into one linear map on fixed features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import solve
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from paperworks.compress.snnk.features import RandomFeatures, make_features
from paperworks.compress.snnk.layers import start


class BundledRegressor(RegressorMixin, BaseEstimator):
    """A deep network's regression in closed form: ridge on stacked random features.

        `z = Φ_L(... Φ_1(x))`,  `y = Ω z`,  `Ω = Yᵀ Z (ZᵀZ + λI)^{-1}`

    A stack of feed-forward layers `Ψ_l Φ_l` bundles into one: each Ψ joins the next layer's matrix,
    which is itself replaced by features, until one Ω is left. For squared loss nothing has to be
    trained by steps. Reach for it where a small network would be trained on a table. Standardise
    columns and target first: there is no intercept besides the features' own.

    Fitting n rows takes O(n M min(n, M)) for M features in the last layer.

    Args:
        features: number of random features in each layer, from the input on.
        ridge: λ.
        kind: "relu" for `ArcCosineFeatures`, here with `bias=True`, or "urf" for
            `UniversalRandomFeatures`.
        options: other arguments of the features, such as `{"normalize": 1.0}`.
        random_state: draws the features.

    Attributes:
        features_: the modules Φ_1, ..., Φ_L as one, in float64.
        coef_: Ω, shape (M,) or (targets, M).
        n_features_in_: columns of X.

    Raises:
        ValueError: no layer, a size or the ridge is not positive, another kind.

    Source: arXiv 2310.13225, section on bundling; biases in the ReLU features are ours.

    >>> X = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    >>> y = np.sin(3 * X[:, 0]) * X[:, 1]
    >>> BundledRegressor(features=[200, 200], random_state=0).fit(X, y).score(X, y) > 0.99
    True
    """

    def __init__(
        self,
        features: Sequence[int] = (512,),
        ridge: float = 1e-3,
        *,
        kind: str = "relu",
        options: dict[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.features = features
        self.ridge = ridge
        self.kind = kind
        self.options = options
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Draw the features and solve for Ω.

        Args:
            X: rows, shape (n, d).
            y: targets, shape (n,) or (n, targets).
        """
        if not (math.isfinite(self.ridge) and self.ridge > 0):
            raise ValueError(f"ridge must be positive, got {self.ridge!r}")
        if not len(self.features):
            raise ValueError("features must name the size of at least one layer, got none")
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
        seed = check_random_state(self.random_state).randint(2**31)
        generator = torch.Generator().manual_seed(int(seed))
        options = {"bias": True} if self.kind == "relu" else {}
        options |= {"orthogonal": True} | (self.options or {})
        sizes, layers = X.shape[1], []
        for m in self.features:
            layers.append(make_features(self.kind, sizes, m, generator=generator, **options))
            sizes = layers[-1].num_features
        self.features_ = nn.Sequential(*layers).double()
        self.coef_ = _ridge(self.feature_matrix(X), y, self.ridge)
        return self

    def predict(self, X: Any) -> NDArray[np.float64]:
        """Targets of rows, shape (n,) or (n, targets)."""
        return self.feature_matrix(X) @ self.coef_.T

    def feature_matrix(self, X: Any) -> NDArray[np.float64]:
        """The features Z of rows, shape (n, M)."""
        check_is_fitted(self, "features_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        with torch.no_grad():
            return self.features_(torch.tensor(X)).numpy()

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def bundle(
    network: nn.Sequential,
    m: int,
    kind: str = "relu",
    *,
    orthogonal: bool = True,
    generator: torch.Generator | None = None,
    **options: Any,
) -> nn.Sequential:
    """A copy of a multilayer perceptron as fixed features and one linear layer that starts from it.

        `Ω = W_L Ψ_{L-1}`,  `Ψ_l = ψ_l(W_l Ψ_{l-1}, b_l)`,  `y = Ω Φ_{L-1}(... Φ_1(x)) + b_L`

    Each hidden layer and its activation become features; the matrix that this leaves, `W_l Ψ_{l-1}`
    , is what the next ones read. The last linear layer is all there is to train. With kind "urf"
    and much m the copy starts as the network, with "relu" as a network of arc-cosine kernels.

    Args:
        network: linear layers with one activation behind each but the last. It is not changed.
        m: number of random features in each hidden layer.
        kind, orthogonal, generator, **options: as for `SNNKLinear`; with "urf" the activation must
            be said, the network's own is not looked at.

    Returns:
        L - 1 feature modules and a `nn.Linear`, in the network's dtype and on its device.

    Raises:
        ValueError: the network is another chain, or as `SNNKLinear`.

    Source: arXiv 2310.13225, section on bundling.

    >>> network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    >>> bundled = bundle(network, m=32)
    >>> sum(p.numel() for p in network.parameters()), sum(p.numel() for p in bundled.parameters())
    (19210, 330)
    """
    hidden, head = _layers(network)
    features: list[RandomFeatures] = []
    Psi: torch.Tensor | None = None
    for linear in hidden:
        W = linear.weight if Psi is None else linear.weight @ Psi
        extra = {"bias": linear.bias is not None} if kind == "relu" else {}
        made = make_features(
            kind, W.shape[1], m, orthogonal=orthogonal, generator=generator, **(extra | options)
        )
        features.append(made.to(W))
        Psi = start(made, W, linear.bias)
    assert Psi is not None
    last = nn.Linear(Psi.shape[1], head.out_features, bias=head.bias is not None).to(Psi)
    with torch.no_grad():
        last.weight.copy_(head.weight @ Psi)
        if head.bias is not None:
            last.bias.copy_(head.bias)
    return nn.Sequential(*features, last).train(network.training)


def _layers(network: nn.Sequential) -> tuple[list[nn.Linear], nn.Linear]:
    modules: list[Any] = list(network) if isinstance(network, nn.Sequential) else []
    linear, others = modules[::2], modules[1::2]
    plain = all(isinstance(layer, nn.Linear) for layer in linear)
    if len(modules) < 3 or len(modules) % 2 == 0 or not plain:
        raise ValueError(
            "network must be a nn.Sequential of Linear, activation, ..., Linear, got "
            f"{[type(module).__name__ for module in modules] or type(network).__name__}"
        )
    if any(isinstance(other, nn.Linear) for other in others):
        raise ValueError("network must have an activation between its linear layers")
    return linear[:-1], linear[-1]


def _ridge(Z: NDArray[np.float64], y: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """Yᵀ Z (ZᵀZ + λI)^{-1}, or the same as Yᵀ (ZZᵀ + λI)^{-1} Z where rows are fewer."""
    n, M = Z.shape
    if n < M:
        return solve(Z @ Z.T + ridge * np.eye(n), y, assume_a="pos").T @ Z
    return solve(Z.T @ Z + ridge * np.eye(M), Z.T @ y, assume_a="pos").T
