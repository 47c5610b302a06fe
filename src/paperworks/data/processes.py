"""Functions drawn from a Gaussian process."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def gaussian_process(
    kernel: Callable[[Tensor], Tensor],
    X: Tensor,
    *,
    generator: torch.Generator,
    draws: int | None = None,
    jitter: float = 1e-10,
) -> Tensor:
    """Values at rows X of functions with covariance `kernel`, f ~ N(0, kernel(X)).

    Joint in all rows: training and test points of one function are drawn together.

    Args:
        kernel: maps X to covariances of shape (..., n, n); batches are drawn independently.
        X: inputs, whatever the kernel takes.
        generator: draws the values.
        draws: functions to draw, or one without that dimension.
        jitter: added to the diagonal, as a part of its mean.

    Returns:
        Shape (..., n), or (draws, ..., n); dtype and device of the covariances, computed in
        float64.

    Raises:
        ValueError: the covariance has no such shape or is not positive definite, even so.

    >>> X = torch.linspace(0, 1, 50, dtype=torch.float64)[:, None]
    >>> smooth = lambda X: torch.exp(-torch.cdist(X, X).square() / 0.02)
    >>> f = gaussian_process(smooth, X, generator=torch.Generator().manual_seed(0))
    >>> f.shape, bool(f.diff().abs().max() < 1)
    (torch.Size([50]), True)
    """
    K = kernel(X)
    if K.ndim < 2 or K.shape[-1] != K.shape[-2]:
        raise ValueError(f"kernel: expected covariances of shape (..., n, n), got {tuple(K.shape)}")
    amount = jitter * K.diagonal(dim1=-2, dim2=-1).double().mean(-1)
    eye = torch.eye(K.shape[-1], dtype=torch.float64, device=K.device)
    L, info = torch.linalg.cholesky_ex(K.double() + amount[..., None, None] * eye)
    if info.any():
        raise ValueError(
            f"kernel: the covariance is not positive definite; increase jitter (it is {jitter})"
        )
    shape = (*K.shape[:-1], 1 if draws is None else draws)
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64, device=generator.device)
    values = (L @ normal.to(K.device)).to(K.dtype)
    return values[..., 0] if draws is None else values.movedim(-1, 0)
