"""The objective that collapse is proved for: with free features, and with a network's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.representation.collapse.optima import check_decays

LOSSES = ("mse", "ce")


class UnconstrainedFeatures(nn.Module):
    """A linear head of M layers whose input features are free variables, as the theory has it.

        f = loss + Σ_m (λ_m/2) ‖W_m‖² + (λ_H/2) ‖H‖²,   loss = (1/2N) ‖W_M ... W_1 H (+ b 1ᵀ) - Y‖²

    or the mean cross entropy. What `gof_optimum`, `mse_bias_optimum` and `ce_etf_point` predict.
    Dang et al. 2023, arXiv 2301.00437; their direct experiments start from N(0, 0.1²).

    Args:
        counts: samples of each class.
        d: dimensions of features and hidden layers.
        depth: M.
        loss: "mse" or "ce".
        bias: whether the last layer has one; it is not regularised.
        weight_decays: λ_1, ..., λ_M, or one number for all.
        feature_decay: λ_H.
        std: of the normal initial weights and features.
        generator: draws them.
        dtype: of parameters.

    Attributes:
        weights: W_1, ..., W_M.
        features: (N, d), class by class.
        labels: (N,).

    Raises:
        ValueError: an unknown loss, counts, d or depth that are not positive, decays as in
            `gof_optimum` or of another number than depth.

    >>> from paperworks.representation import gof_optimum
    >>> model = UnconstrainedFeatures([4, 2], 3, generator=torch.Generator().manual_seed(0))
    >>> model.fit()
    >>> abs(model.objective().item() / gof_optimum([4, 2], 5e-4, 5e-4).objective - 1) < 1e-9
    True
    """

    labels: Tensor

    def __init__(
        self,
        counts: Sequence[int],
        d: int,
        depth: int = 1,
        loss: str = "mse",
        bias: bool = False,
        *,
        weight_decays: float | Sequence[float] = 5e-4,
        feature_decay: float = 5e-4,
        std: float = 0.1,
        generator: torch.Generator,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        _check_loss(loss)
        if not counts or min(counts) < 1 or d < 1 or depth < 1:
            raise ValueError(
                f"counts, d and depth must be positive integers, got {list(counts)}, {d!r}, "
                f"{depth!r}"
            )
        self.weight_decays = _decays(weight_decays, feature_decay, depth)
        self.feature_decay, self.loss = feature_decay, loss
        n, k = sum(counts), len(counts)

        def normal(*shape: int) -> nn.Parameter:
            drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
            return nn.Parameter(std * drawn)

        heights = [d] * (depth - 1) + [k]
        self.weights = nn.ParameterList([normal(height, d) for height in heights])
        self.features = normal(n, d)
        self.bias = nn.Parameter(torch.zeros_like(self.weights[-1][:, 0])) if bias else None
        labels = torch.arange(k).repeat_interleave(torch.tensor(counts))
        self.register_buffer("labels", labels.to(self.features.device))

    def forward(self) -> Tensor:
        """Logits (N, K)."""
        x: Tensor = self.features
        for weight in self.weights.parameters():
            x = F.linear(x, weight)
        return x if self.bias is None else x + self.bias

    def objective(self) -> Tensor:
        """f, a scalar."""
        return peeled_decay_loss(
            self(),
            self.labels,
            self.features,
            [*self.weights.parameters()],
            self.weight_decays,
            self.feature_decay,
            loss=self.loss,
        )

    def fit(self, method: str = "lbfgs", steps: int = 20_000, lr: float | None = None) -> None:
        """Minimise the objective, in place.

        Args:
            method: "lbfgs", to the precision of the dtype, or "sgd": the paper's gradient descent
                with momentum 0.9.
            steps: most steps; "lbfgs" stops when it is there.
            lr: 1 for "lbfgs", 0.1 for "sgd".

        Raises:
            ValueError: an unknown method.
        """
        if method not in ("lbfgs", "sgd"):
            raise ValueError(f"method must be 'lbfgs' or 'sgd', got {method!r}")

        def closure() -> Any:
            self.zero_grad()
            f = self.objective()
            f.backward()
            return f

        if method == "lbfgs":
            optimizer: torch.optim.Optimizer = torch.optim.LBFGS(
                self.parameters(),
                lr=lr or 1.0,
                max_iter=steps,
                tolerance_grad=1e-12,
                tolerance_change=1e-15,
                history_size=50,
                line_search_fn="strong_wolfe",
            )
            steps = 1
        else:
            optimizer = torch.optim.SGD(self.parameters(), lr=lr or 0.1, momentum=0.9)
        for _ in range(steps):
            optimizer.step(closure)


def peeled_decay_loss(
    logits: Tensor,
    y: Tensor,
    features: Tensor,
    head: Sequence[Tensor],
    weight_decays: float | Sequence[float],
    feature_decay: float,
    loss: str = "mse",
    num_samples: int | None = None,
) -> Tensor:
    """The loss of the theory for a network: only features and the linear head are regularised.

        f = (1/2B) ‖logits - Y‖² + Σ_m (λ_m/2) ‖W_m‖² + (N/B) (λ_H/2) ‖H‖²

    or the mean cross entropy. λ_H multiplies a sum over all N samples, so a batch of B stands for
    N/B of its size. Train with the optimiser's own weight decay off. Dang et al. 2023, arXiv
    2301.00437.

    Args:
        logits: (B, K).
        y: (B,), classes.
        features: (B, d), what enters the head.
        head: weights W_1, ..., W_M of the linear layers.
        weight_decays: λ_1, ..., λ_M, or one number for all.
        feature_decay: λ_H.
        loss: "mse" or "ce".
        num_samples: N of the whole training set; B by default, for full batches.

    Returns:
        A scalar.

    Raises:
        ValueError: an unknown loss, no head, as many decays as layers missing.

    >>> features = torch.ones(2, 1)
    >>> head = [torch.tensor([[1.0], [0.0]])]
    >>> y = torch.tensor([0, 0])
    >>> peeled_decay_loss(features @ head[0].T, y, features, head, 0.1, 0.2)  # 0 + 0.05 + 0.2
    tensor(0.2500)
    """
    _check_loss(loss)
    decays = _decays(weight_decays, feature_decay, len(head))
    if loss == "mse":
        fit = (logits - F.one_hot(y, logits.shape[1])).square().sum() / (2 * len(y))
    else:
        fit = F.cross_entropy(logits, y)
    layers = sum(decay / 2 * w.square().sum() for decay, w in zip(decays, head, strict=True))
    share = (num_samples or len(y)) / len(y)
    return fit + layers + share * feature_decay / 2 * features.square().sum()


def _decays(
    weight_decays: float | Sequence[float], feature_decay: float, depth: int
) -> tuple[float, ...]:
    decays = check_decays(weight_decays, feature_decay)
    if isinstance(weight_decays, int | float):
        return decays * depth
    if len(decays) != depth:
        raise ValueError(f"weight_decays must be {depth}, one a layer, got {len(decays)}")
    return decays


def _check_loss(loss: str) -> None:
    if loss not in LOSSES:
        raise ValueError(f"loss must be one of {LOSSES}, got {loss!r}")
