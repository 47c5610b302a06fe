"""Textbook estimators in context: each y predicted from the examples before it, many tasks at once.

All compute in float64 and return the dtype of y. Nothing has been seen at position 0, where every
one of them predicts 0.
"""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from paperworks.incontext.iclinear.tasks import check_counts, check_examples


def online_ridge(x: Tensor, y: Tensor, alpha: float = 0.0) -> Tensor:
    """Ridge regression on the examples before each: w = (XᵀX + λI)⁻¹ Xᵀy; OLS with λ = 0.

    What a Bayesian predicts who knows that w ~ N(0, τ²I) and noise is N(0, σ²), with λ = σ²/τ².
    With λ = 0 and fewer examples than dimensions, the w of least norm.

    Args:
        x: (B, n, d).
        y: (B, n).
        alpha: λ, at least 0.

    Returns:
        (B, n), entry i from the i examples before it.

    Raises:
        ValueError: x or y of other shapes or not finite, or an alpha that is negative.
        TypeError: x or y is not floating point.

    Source: arXiv 2211.15661, section 2.

    >>> x, y = torch.tensor([[[1.0, 2.0], [1.0, 0.0]]]), torch.tensor([[3.0, 0.0]])
    >>> online_ridge(x, y, alpha=0.5)  # w = (0.5455, 1.0909) after one example
    tensor([[0.0000, 0.5455]])
    """
    _check_rate("alpha", alpha, positive=False)
    check_examples(x, y)
    X, Y = x.double(), y.double()
    A = alpha * torch.eye(x.shape[2], dtype=X.dtype, device=x.device)
    b = X.new_zeros(x.shape[0], x.shape[2])

    def weights(i: int) -> Tensor:
        nonlocal A, b
        if alpha == 0:
            return (torch.linalg.pinv(X[:, :i]) @ Y[:, :i, None])[..., 0]
        u = X[:, i - 1]
        A, b = A + u[:, :, None] * u[:, None, :], b + Y[:, i - 1, None] * u
        return torch.cholesky_solve(b[..., None], torch.linalg.cholesky(A))[..., 0]

    return _predict_with(weights, X, y)


def online_sgd(
    x: Tensor, y: Tensor, lr: float, weight_decay: float = 0.0, clip: float | None = None
) -> Tensor:
    """One pass of stochastic gradient descent, one example a step, from w = 0.

    w ← w − 2α (x (wᵀx − y) + λ w).

    Args:
        x: (B, n, d).
        y: (B, n).
        lr: α.
        weight_decay: λ.
        clip: bound on each entry of the gradient; the official code has 20, the equation none.

    Returns:
        (B, n), entry i from the i examples before it.

    Raises:
        ValueError: x or y of other shapes or not finite, lr or clip is not positive, weight_decay
            is negative.
        TypeError: x or y is not floating point.

    Source: arXiv 2211.15661, section 2. The code's window, of which an argument gives a negative
    start, is left out: a step sees one example.

    >>> x, y = torch.tensor([[[1.0, 2.0], [2.0, -1.0]]]), torch.tensor([[3.0, 0.0]])
    >>> online_sgd(x, y, lr=0.05)  # w = (0.3, 0.6) after one example
    tensor([[0., 0.]])
    """
    _check_rate("lr", lr)
    _check_rate("weight_decay", weight_decay, positive=False)
    if clip is not None:
        _check_rate("clip", clip)
    check_examples(x, y)
    X, Y = x.double(), y.double()
    w = X.new_zeros(x.shape[0], x.shape[2])

    def weights(i: int) -> Tensor:
        nonlocal w
        u = X[:, i - 1]
        error = (w * u).sum(1) - Y[:, i - 1]
        gradient = 2 * (error[:, None] * u + weight_decay * w)
        w = w - lr * (gradient if clip is None else gradient.clamp(-clip, clip))
        return w

    return _predict_with(weights, X, y)


def online_gd(
    x: Tensor,
    y: Tensor,
    lr: float,
    steps: int = 1,
    weight_decay: float = 0.0,
    reduction: Literal["sum", "mean"] = "sum",
) -> Tensor:
    """Full-batch gradient descent on the examples before each, always from w = 0.

    w ← w − 2α (Σ_j x_j (wᵀx_j − y_j) + λ w), or with the mean over examples in place of the sum.

    Args:
        x: (B, n, d).
        y: (B, n).
        lr: α.
        steps: how many steps.
        weight_decay: λ.
        reduction: "sum" as in the equation, or "mean": a step that does not grow with the context.

    Returns:
        (B, n), entry i from the i examples before it.

    Raises:
        ValueError: x or y of other shapes or not finite, lr is not positive, weight_decay is
            negative, steps is not a positive integer, or another reduction.
        TypeError: x or y is not floating point.

    Source: arXiv 2211.15661, section 2.

    >>> x, y = torch.tensor([[[1.0, 2.0], [1.0, 0.0]]]), torch.tensor([[3.0, 0.0]])
    >>> online_gd(x, y, lr=0.05, steps=1)  # w = (0.3, 0.6) after one example
    tensor([[0.0000, 0.3000]])
    """
    _check_rate("lr", lr)
    _check_rate("weight_decay", weight_decay, positive=False)
    check_counts(steps=steps)
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}")
    check_examples(x, y)
    X, Y = x.double(), y.double()
    # moments of the examples before each position; w is linear in them
    second, first = _before(X[..., None] * X[..., None, :]), _before(X * Y[..., None])
    if reduction == "mean":
        seen = torch.arange(x.shape[1], device=x.device).clamp(min=1).to(X)[:, None]
        second, first = second / seen[..., None], first / seen
    w = torch.zeros_like(first)
    for _ in range(steps):
        w = w - 2 * lr * ((second @ w[..., None])[..., 0] - first + weight_decay * w)
    return (w * X).sum(-1).to(y)


def online_knn(
    x: Tensor, y: Tensor, k: int = 3, weights: Literal["uniform", "distance"] = "uniform"
) -> Tensor:
    """The mean y of the k nearest among the examples before each, of all while there are fewer.

    Args:
        x: (B, n, d).
        y: (B, n).
        k: neighbours; the paper has 3, the code's default is 5.
        weights: "uniform", or "distance": weights 1/‖x − x_j‖, and where distances are zero the
            mean of those.

    Returns:
        (B, n), entry i from the i examples before it.

    Raises:
        ValueError: x or y of other shapes or not finite, k is not a positive integer, or other
            weights.
        TypeError: x or y is not floating point.

    Source: arXiv 2211.15661, section 4.3.

    >>> x, y = torch.tensor([[[0.0], [1.0], [0.4]]]), torch.tensor([[2.0, 4.0, 0.0]])
    >>> online_knn(x, y), online_knn(x, y, k=1)
    (tensor([[0., 2., 3.]]), tensor([[0., 2., 2.]]))
    """
    check_counts(k=k)
    if weights not in ("uniform", "distance"):
        raise ValueError(f"weights must be 'uniform' or 'distance', got {weights!r}")
    check_examples(x, y)
    X, Y = x.double(), y.double()
    n = x.shape[1]
    # differences and not a matrix product, which would lose the zeros
    distance = torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist")
    unseen = torch.ones(n, n, dtype=torch.bool, device=x.device).triu()
    nearest, which = distance.masked_fill(unseen, torch.inf).topk(min(k, n), largest=False)
    if weights == "uniform":
        weight = nearest.isfinite().double()
    else:
        weight = torch.where((nearest == 0).any(-1, keepdim=True), nearest == 0, 1 / nearest)
    labels = Y[:, None].expand(-1, n, -1).gather(2, which)
    return ((weight * labels).sum(-1) / weight.sum(-1).clamp(min=1e-300)).to(y)


def _predict_with(weights: Callable[[int], Tensor], X: Tensor, y: Tensor) -> Tensor:
    """wᵀx at each position, with `weights(i)` called in order for i = 1, 2, … examples seen."""
    later = [(weights(i) * X[:, i]).sum(1) for i in range(1, X.shape[1])]
    return torch.stack([X.new_zeros(len(X)), *later], dim=1).to(y)


def _before(terms: Tensor) -> Tensor:
    """Sums of the terms before each position, (B, n, …)."""
    return torch.cat([torch.zeros_like(terms[:, :1]), terms[:, :-1].cumsum(1)], dim=1)


def _check_rate(name: str, value: float, positive: bool = True) -> None:
    if not isfinite(value) or value < 0 or (positive and value == 0):
        wanted = "positive" if positive else "not negative"
        raise ValueError(f"{name} must be {wanted} and finite, got {value}")
