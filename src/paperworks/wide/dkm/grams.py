"""Gram matrices, kernels as functions of them, and the divergence of two Gaussians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor, nn

from paperworks.wide.kernels import gaussian_dual, psd_safe_cholesky


@dataclass(frozen=True)
class Gram:
    """The blocks of a Gram or kernel matrix over inducing points i and data points t.

    What a sparse method needs of the whole: never the block between data points, of which only
    the diagonal is kept.

    Attributes:
        ii: inducing by inducing, shape (..., P, P).
        ti: data by inducing, shape (..., n, P), or None without data points.
        t: diagonal of the data block, shape (..., n), or None.
    """

    ii: Tensor
    ti: Tensor | None = None
    t: Tensor | None = None


class GramKernel(nn.Module):
    """A kernel that knows its inputs only by their Gram matrix G; base class of those below.

    Takes a Gram matrix, shape (..., P, P), or its blocks as a `Gram`, and gives the same of the
    kernel, variance · k(G). A subclass says what k is, in `pairs` and `diagonal`.

    Args:
        variance: the factor, positive.
        learned: whether it is trained (through its logarithm).

    Raises:
        ValueError: the variance is not positive, or what comes is no square matrix.
    """

    def __init__(self, variance: float = 1.0, learned: bool = True) -> None:
        super().__init__()
        self.log_variance = log_parameter("variance", variance, learned)

    @overload
    def forward(self, gram: Tensor) -> Tensor: ...
    @overload
    def forward(self, gram: Gram) -> Gram: ...
    def forward(self, gram: Tensor | Gram) -> Tensor | Gram:
        """K of a Gram matrix, or the blocks of K of its blocks."""
        if isinstance(gram, Tensor):
            return self._square(gram)
        if gram.ti is None or gram.t is None:
            return Gram(self._square(gram.ii))
        inducing = gram.ii.diagonal(dim1=-2, dim2=-1)
        cross = self.pairs(gram.ti, gram.t[..., :, None], inducing[..., None, :])
        variance = self._variance(gram.ii)
        return Gram(self._square(gram.ii), variance * cross, variance * self.diagonal(gram.t))

    def pairs(self, cov: Tensor, var_u: Tensor, var_v: Tensor) -> Tensor:
        """k of pairs of points, from G_uv, G_uu and G_vv, which broadcast."""
        raise NotImplementedError

    def diagonal(self, var: Tensor) -> Tensor:
        """k of a point with itself, from G_uu."""
        raise NotImplementedError

    def _square(self, G: Tensor) -> Tensor:
        if G.ndim < 2 or G.shape[-1] != G.shape[-2]:
            raise ValueError(f"gram must have shape (..., P, P), got {tuple(G.shape)}")
        var = G.diagonal(dim1=-2, dim2=-1)
        K = self.pairs(G, var[..., :, None], var[..., None, :])
        K = torch.diagonal_scatter(K, self.diagonal(var), dim1=-2, dim2=-1)
        return self._variance(G) * K

    def _variance(self, like: Tensor) -> Tensor:
        return self.log_variance.exp().to(like.dtype)

    def extra_repr(self) -> str:
        return f"variance={self.log_variance.exp().item():.4g}"


class SqExpKernel(GramKernel):
    """Squared exponential: k = exp(−R), R_ij = ½(G_ii + G_jj) − G_ij.

    With G = XXᵀ/(ν ℓ²), R = ‖x − x′‖²/(2νℓ²): columns of X should have about one scale.

    >>> SqExpKernel()(torch.tensor([[0.5, 0.0], [0.0, 0.5]]))
    tensor([[1.0000, 0.6065],
            [0.6065, 1.0000]], grad_fn=<MulBackward0>)
    """

    def pairs(self, cov: Tensor, var_u: Tensor, var_v: Tensor) -> Tensor:
        return torch.exp(cov - (var_u + var_v) / 2)

    def diagonal(self, var: Tensor) -> Tensor:
        return torch.ones_like(var)


class ReLUKernel(GramKernel):
    """Arc-cosine kernel: k = bias_var + √(G_ii G_jj) [sin θ + (π − θ) cos θ]/π, cos θ = ρ_ij.

    The kernel of a ReLU layer of infinite width with weights of variance 2/fan_in; without a bias
    k_ii = G_ii. Where the bias enters is ours (it is that of the layer after the ReLU).

    Args:
        bias_var: variance of the bias, not negative; at 0 it is not trained.
        variance, learned: see `GramKernel`.

    >>> ReLUKernel(bias_var=0.0)(torch.eye(2))
    tensor([[1.0000, 0.3183],
            [0.3183, 1.0000]], grad_fn=<MulBackward0>)
    """

    def __init__(self, bias_var: float = 0.1, variance: float = 1.0, learned: bool = True) -> None:
        super().__init__(variance, learned)
        if not 0 <= bias_var < math.inf:
            raise ValueError(f"bias_var must not be negative, got {bias_var}")
        log_bias = torch.tensor(bias_var, dtype=torch.float64).log()
        self.log_bias_var = nn.Parameter(log_bias, requires_grad=learned and bias_var > 0)

    def pairs(self, cov: Tensor, var_u: Tensor, var_v: Tensor) -> Tensor:
        return 2 * gaussian_dual("relu")(cov, var_u, var_v) + self._bias(cov)

    def diagonal(self, var: Tensor) -> Tensor:
        return var + self._bias(var)

    def _bias(self, like: Tensor) -> Tensor:
        return self.log_bias_var.exp().to(like.dtype)

    def extra_repr(self) -> str:
        return f"bias_var={self.log_bias_var.exp().item():.4g}, {super().extra_repr()}"


class LinearKernel(GramKernel):
    """k = G: a deep Gaussian process that is linear, whose optimum is known in closed form.

    >>> LinearKernel(variance=2.0, learned=False)(torch.eye(2))
    tensor([[2., 0.],
            [0., 2.]])
    """

    def pairs(self, cov: Tensor, var_u: Tensor, var_v: Tensor) -> Tensor:
        return cov

    def diagonal(self, var: Tensor) -> Tensor:
        return var


KERNELS: dict[str, type[GramKernel]] = {
    "rbf": SqExpKernel,
    "relu": ReLUKernel,
    "linear": LinearKernel,
}


def gaussian_kl(G: Tensor, K: Tensor) -> Tensor:
    """KL(N(0, G) ‖ N(0, K)) = ½[tr(K⁻¹G) − log det(K⁻¹G) − P].

    Args:
        G, K: positive definite matrices, shape (..., P, P), of one floating dtype.

    Returns:
        Shape (...), differentiable in both.

    Raises:
        ValueError: shapes that do not fit, or a matrix that is not positive definite.

    >>> K = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> gaussian_kl(2 * K, K)  # P(1 − log 2)/2
    tensor(0.3069)
    """
    if G.ndim < 2 or G.shape[-1] != G.shape[-2] or K.shape[-2:] != G.shape[-2:]:
        raise ValueError(f"G and K must be of shape (..., P, P), got {(*G.shape,)}, {(*K.shape,)}")
    return whitened_kl(whitened(gram_cholesky(G), psd_safe_cholesky(K)))


def gram_cholesky(G: Tensor) -> Tensor:
    """Cholesky factor of a Gram matrix; there is no mending a G that is singular: its KL is ∞."""
    L, info = torch.linalg.cholesky_ex(G)
    if info.any():
        raise ValueError("Gram matrix is not positive definite")
    return L


def whitened(L_G: Tensor, L_K: Tensor) -> Tensor:
    """C of G = L_K C Cᵀ L_Kᵀ: lower triangular, and the identity where G = K."""
    return torch.linalg.solve_triangular(L_K, L_G, upper=False)


def whitened_kl(C: Tensor) -> Tensor:
    """The divergence that G = L_K C Cᵀ L_Kᵀ has from K = L_K L_Kᵀ, of a triangular C."""
    log_det = 2 * C.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return (C.square().sum((-2, -1)) - log_det - C.shape[-1]) / 2


def log_parameter(name: str, value: float | Tensor, learned: bool = True) -> nn.Parameter:
    """log(value) as a float64 parameter, for what has to stay positive."""
    value = torch.as_tensor(value, dtype=torch.float64)
    if not ((value > 0) & value.isfinite()).all():
        raise ValueError(f"{name} must be positive and finite, got {value.tolist()}")
    return nn.Parameter(value.log(), requires_grad=learned)


def widths_of_layers(nu: float | Sequence[float], num_layers: int) -> list[float]:
    """One ν a layer, from one for all or from as many as there are layers."""
    nus = [float(n) for n in nu] if isinstance(nu, Sequence) else [float(nu)] * num_layers
    if len(nus) != num_layers:
        raise ValueError(f"nu must be one number or {num_layers}, got {len(nus)}")
    if not all(n > 0 for n in nus):
        raise ValueError(f"nu must be positive, got {nu}")
    return nus
