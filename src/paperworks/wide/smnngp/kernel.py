"""Kernels as modules, whose variances can be learned, and what is asked of a user's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperworks.wide.kernels import Activation, cnn_nngp_kernel, nngp_kernel

Kernel = Callable[..., Tensor]
"""kernel(X, Z=None): rows (n, d) and (m, d), or X itself, to a matrix (n, m), positive definite."""

_ROWS = 256
"""Rows whose kernel matrix is made for its diagonal."""


class NNGPKernel(nn.Module):
    """`nngp_kernel` or `cnn_nngp_kernel` as a module, with its variances as parameters.

    Hand it to `ScaleMixtureRegressor`, `SVSP` or `ScaleMixtureClassifier`, which learn what its
    parameters are along with their own. `requires_grad_(False)` holds them.

    Args:
        activation: elementwise φ, see `gaussian_dual`.
        depth: number of hidden layers; of convolutions with `image_shape`.
        C_W: first weight variance times fan-in, positive.
        C_b: first bias variance; 0 stays 0.
        image_shape: (channels, height, width) of which a row is flattened, for the network of
            convolutions with `filter_size` and padding "same"; fully connected when left out.
        filter_size: side of the window of each convolution.

    Called with X (n, d), and Z (m, d) if it is another, it gives K (n, m) in the dtype of X;
    `diag(X)` gives K(x, x), shape (n,).

    Raises:
        ValueError: variances that are no variances; when called, rows that do not fit.

    >>> kernel = NNGPKernel("relu", depth=1, C_W=2.0, C_b=0.0)
    >>> kernel(torch.eye(2)).detach()  # 2 · 1/2 · ρ-map of x·z
    tensor([[1.0000, 0.3183],
            [0.3183, 1.0000]])
    """

    def __init__(
        self,
        activation: Activation = "relu",
        depth: int = 4,
        C_W: float = 2.0,
        C_b: float = 0.1,
        image_shape: Sequence[int] | None = None,
        filter_size: int = 3,
    ) -> None:
        super().__init__()
        if not C_W > 0 or not C_b >= 0:
            raise ValueError(
                f"C_W must be positive and C_b not negative, got C_W={C_W} and C_b={C_b}"
            )
        self.activation, self.depth = activation, depth
        self.image_shape = None if image_shape is None else tuple(image_shape)
        self.filter_size = filter_size
        self.log_C_W = nn.Parameter(torch.tensor(C_W, dtype=torch.float64).log())
        log_C_b = torch.tensor(C_b, dtype=torch.float64).log()
        self.log_C_b = nn.Parameter(log_C_b, requires_grad=C_b > 0)

    @property
    def C_W(self) -> Tensor:
        """Weight variance times fan-in."""
        return self.log_C_W.exp()

    @property
    def C_b(self) -> Tensor:
        """Bias variance."""
        return self.log_C_b.exp()

    def forward(self, X: Tensor, Z: Tensor | None = None) -> Tensor:
        variances: dict[str, Any] = {"C_W": self.C_W, "C_b": self.C_b}
        if self.image_shape is None:
            return nngp_kernel(X, Z, activation=self.activation, depth=self.depth, **variances)
        pictures, others = (
            None if rows is None else rows.unflatten(-1, self.image_shape) for rows in (X, Z)
        )
        assert pictures is not None
        sizes = [self.filter_size] * self.depth
        return cnn_nngp_kernel(
            pictures, others, activation=self.activation, filter_sizes=sizes, **variances
        )

    def diag(self, X: Tensor) -> Tensor:
        """K(x, x) for each row of X (n, d), shape (n,)."""
        if self.image_shape is None:
            return self(X[:, None])[:, 0, 0]  # each row as a batch of its own
        return _diagonal_by_blocks(self, X)

    def extra_repr(self) -> str:
        shape = "" if self.image_shape is None else f", image_shape={self.image_shape}"
        return (
            f"{self.activation!r}, {self.depth}, C_W={self.C_W.item():.4g}, "
            f"C_b={self.C_b.item():.4g}{shape}"
        )


# ---- shared by the modules of this folder


def own_kernel(kernel: Kernel | str, depth: int) -> Kernel:
    """A copy of a user's kernel that may be trained, or the NNGP kernel of a named activation."""
    if isinstance(kernel, str):
        return NNGPKernel(kernel, depth)
    if not callable(kernel):
        raise TypeError(
            "kernel must be the name of an activation or a function kernel(X, Z=None) of tensors, "
            f"got {type(kernel).__name__}"
        )
    return copy.deepcopy(kernel) if isinstance(kernel, nn.Module) else kernel


def parameters_of(kernel: Kernel) -> list[nn.Parameter]:
    """What can be learned of it."""
    if not isinstance(kernel, nn.Module):
        return []
    return [p for p in kernel.parameters() if p.requires_grad]


def gram(kernel: Kernel, X: Tensor, Z: Tensor | None = None) -> Tensor:
    """K(X, Z), and a clear line where a user's kernel gives something else."""
    K = kernel(X) if Z is None else kernel(X, Z)
    shape = (len(X), len(X if Z is None else Z))
    if not isinstance(K, Tensor) or K.shape != shape:
        got = tuple(K.shape) if isinstance(K, Tensor) else type(K).__name__
        raise ValueError(f"kernel must give a tensor of shape {shape}, got {got}")
    if not K.isfinite().all():
        raise ValueError("kernel gave entries that are not finite")
    return K


def diagonal(kernel: Kernel, X: Tensor) -> Tensor:
    """K(x, x), shape (n,): by the kernel's own `diag` where it has one."""
    own = getattr(kernel, "diag", None)
    return _diagonal_by_blocks(kernel, X) if own is None else own(X)


def _diagonal_by_blocks(kernel: Kernel, X: Tensor) -> Tensor:
    return torch.cat([gram(kernel, rows).diagonal() for rows in X.split(_ROWS)])
