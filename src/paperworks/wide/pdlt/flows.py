"""How kernels, fluctuations and tangent kernels flow from layer to layer of a wide network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from paperworks.wide.kernels import Activation, GaussianDual, gaussian_dual
from paperworks.wide.pdlt.critical import (
    as_variances,
    check_covariance,
    check_variances,
    criticality,
    moments_of,
    no_criticality,
)

_TILE = 180
"""Side of the squares in which kernels flow: their few temporaries stay in the L2 cache."""


def kernel_flow(
    activation: Activation, gram0: Tensor, depth: int, C_W: float, C_b: float = 0.0
) -> Tensor:
    """The kernel of every layer: covariances of preactivations of a wide network at the start.

    K¹ = C_b + C_W gram0,  K^{ℓ+1} = C_b + C_W⟨σ_α σ_β⟩_{K^ℓ}. Reach for it to see what depth makes
    of lengths and angles; `nngp_kernel` gives the last layer alone, from inputs. Averages are in
    closed form for the activations of `gaussian_dual` that have one.

    Args:
        activation: elementwise σ: a module, a function, or a name such as "relu".
        gram0: x_α·x_β/n_0 of P inputs, shape (P, P).
        depth: number of layers L of preactivations, at least 1.
        C_W: variance of a weight times fan-in.
        C_b: variance of a bias.

    Returns:
        K¹ … K^L, shape (L, P, P), dtype and device of gram0; not differentiable.

    Raises:
        ValueError: gram0 is no Gram matrix, depth is not positive, a variance is out of range.

    Source: arXiv 2106.10165, chapter 4.

    >>> K = kernel_flow("relu", torch.eye(2), depth=2, C_W=2.0)  # K¹ = 2·identity
    >>> K[1] / 2  # the angle map: orthogonal inputs come to the correlation 1/π
    tensor([[1.0000, 0.3183],
            [0.3183, 1.0000]])
    """
    _check(gram0, depth, C_W, C_b)
    K, _ = _flow(gaussian_dual(activation), gram0, depth, C_W, C_b, None)
    return K


def ntk_flow(
    activation: Activation,
    gram0: Tensor,
    depth: int,
    C_W: float,
    C_b: float = 0.0,
    *,
    lambda_W: float | Sequence[float] | Tensor = 1.0,
    lambda_b: float | Sequence[float] | Tensor = 1.0,
) -> Tensor:
    """The neural tangent kernel of every layer, for any learning rates of weights and biases.

    Θ¹ = λ_b + λ_W gram0,  Θ^{ℓ+1} = λ_b + λ_W⟨σσ⟩_{K^ℓ} + C_W⟨σ′σ′⟩_{K^ℓ} Θ^ℓ, where biases learn
    at the rate λ_b and weights at λ_W/fan_in, each layer at its own if a sequence is given. With
    λ_W = C_W and λ_b = C_b the last layer is `ntk_kernel`'s.

    Args:
        activation, gram0, depth, C_W, C_b: as for `kernel_flow`.
        lambda_W, lambda_b: λ of every layer, or `depth` numbers; `layer_learning_rates` gives
            those with which all layers contribute alike.

    Returns:
        Θ¹ … Θ^L, shape (L, P, P), dtype and device of gram0; not differentiable.

    Raises:
        ValueError: as `kernel_flow`; or rates that are negative, not finite, or of another number.

    Source: arXiv 2106.10165, chapters 8 and 9.

    >>> ntk_flow("relu", torch.ones(1, 1), 3, C_W=2.0).flatten()  # ℓ(λ_b + λ_W|x|²/n_0)
    tensor([2., 4., 6.])
    """
    _check(gram0, depth, C_W, C_b)
    rates = [
        _rates(name, rate, depth) for name, rate in (("lambda_W", lambda_W), ("lambda_b", lambda_b))
    ]
    _, Theta = _flow(gaussian_dual(activation), gram0, depth, C_W, C_b, rates)
    assert Theta is not None
    return Theta


def layer_learning_rates(
    activation: Activation, depth: int, *, lambda_W: float = 1.0, lambda_b: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Learning rates with which each layer of a critical network adds alike to its NTK.

    λ_b^ℓ = λ̃_b L^{p_⊥−1} ℓ^{−p_⊥},  λ_W^ℓ = λ̃_W L^{p_⊥−1} ℓ^{p_0−p_⊥}, with K ~ ℓ^{−p_0}. The
    optimizer's rate for the weights of layer ℓ is λ_W^ℓ/fan_in.

    Args:
        activation: elementwise σ with a criticality.
        depth: number of layers L.
        lambda_W, lambda_b: λ̃, the rates that do not depend on depth.

    Returns:
        λ_W and λ_b of the layers 1 … L, float64.

    Raises:
        ValueError: depth is not positive, or the activation has no criticality.

    Source: arXiv 2106.10165, chapter 9. For K* > 0 (GELU), p_0 = p_⊥ = 0 is our reading.

    >>> layer_learning_rates("tanh", 4)[1]  # 1/ℓ
    tensor([1.0000, 0.5000, 0.3333, 0.2500], dtype=torch.float64)
    """
    _check_depth(depth)
    critical = criticality(activation)
    if critical.kind == "none":
        raise no_criticality(activation)
    layer = torch.arange(1, depth + 1, dtype=torch.float64)
    scale = depth ** (critical.p_perp - 1) * layer**-critical.p_perp
    return lambda_W * scale * layer**critical.p_0, lambda_b * scale


def vertex_flow(
    activation: Activation,
    K1: Tensor | float,
    widths: Sequence[int],
    C_W: float,
    C_b: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """How much finite networks differ among each other: the four-point vertex of every layer.

    To leading order in 1/n two neurons of a layer have Cov(z_i², z_j²) = V/n, and one E[z⁴] =
    3K² + 3V/n, over draws of the weights, with n the width of the layer before. For one input

    V¹ = 0,  V^{ℓ+1} = (n_ℓ/n_{ℓ−1}) χ_∥(K^ℓ)² V^ℓ + C_W²(⟨σ⁴⟩ − ⟨σ²⟩²)_{K^ℓ}.

    At criticality V/K² grows like ν per layer, so that V/(nK²) ≈ νL/n: the ratio of depth to width
    decides. Above about 1 the theory, and the network, is beyond its range.

    Args:
        activation: elementwise σ.
        K1: kernel of the first layer, C_b + C_W|x|²/n_0, shape (...).
        widths: n_1 … n_L of the layers of preactivations. Only their ratios matter, and the last
            not at all.
        C_W: variance of a weight times fan-in.
        C_b: variance of a bias.

    Returns:
        K and V of the layers 1 … L, each of shape (L, ...), dtype of K1, float64 for a number.
        Divide V[ℓ−1] by widths[ℓ−2] for the covariance in layer ℓ.

    Raises:
        ValueError: K1 is negative or not finite, no widths or not positive ones, a variance is out
            of range.

    Source: arXiv 2106.10165, sections 4.2, 4.3 and 5.4 (numbering from memory).

    >>> K, V = vertex_flow("relu", 1.0, [64] * 4, C_W=2.0)
    >>> (V / K**2).round()  # 5(ℓ − 1)
    tensor([ 0.,  5., 10., 15.], dtype=torch.float64)
    """
    K = as_variances("K1", K1)
    widths = [int(n) for n in widths]
    if not widths or min(widths) < 1:
        raise ValueError(f"widths must be positive integers, got {widths}")
    check_variances(C_W, C_b)
    kernels, vertices = [K.double()], [torch.zeros_like(K, dtype=torch.float64)]
    moments_at = moments_of(activation)
    for here, before in zip(widths[:-1], widths[:1] + widths[:-2]):
        moments = moments_at(kernels[-1])
        growth = here / before * (C_W * moments.g_prime).square()
        vertices.append(growth * vertices[-1] + C_W**2 * moments.spread)
        kernels.append(C_b + C_W * moments.g)
    return torch.stack(kernels).to(K.dtype), torch.stack(vertices).to(K.dtype)


# ---------------------------------------------------------------------------------------------
# Private
# ---------------------------------------------------------------------------------------------


@torch.no_grad()
def _flow(
    dual: GaussianDual,
    gram0: Tensor,
    depth: int,
    C_W: float,
    C_b: float,
    rates: Sequence[Tensor] | None,
) -> tuple[Tensor, Tensor | None]:
    """K and, given rates (λ_W, λ_b), Θ of all layers.

    Squares of the lower half go through all layers one after the other, and are mirrored. The
    diagonals go first: they have rules of their own, and pairs need to know them.
    """
    gram = gram0.double()
    size = (depth, *gram0.shape)
    K_all = gram0.new_empty(size)
    Theta_all = None if rates is None else gram0.new_empty(size)
    weight, bias = rates if rates is not None else (gram.new_zeros(depth),) * 2
    K = C_b + C_W * gram.diagonal()
    Theta = bias[0] + weight[0] * gram.diagonal()
    rows, kernels, tangents = [], [K], [Theta]
    for layer in range(1, depth):
        rows.append(dual._row(K))
        value, slope = dual.moments(K)
        K = C_b + C_W * value
        Theta = bias[layer] + weight[layer] * value + C_W * slope * Theta
        kernels.append(K)
        tangents.append(Theta)

    def layers(i: slice, j: slice) -> None:
        K = C_b + C_W * gram[i, j]
        Theta = bias[0] + weight[0] * gram[i, j]
        for layer in range(depth):
            if layer:
                row = rows[layer - 1]
                value, *slope = dual._pair(K, row[:, i, None], row[:, None, j], rates is not None)
                value = dual.gain * value
                K = C_b + C_W * value
                if slope:
                    Theta = bias[layer] + weight[layer] * value + C_W * dual.gain * slope[0] * Theta
            for flow, block in ((K_all, K), (Theta_all, Theta)):
                if flow is not None:
                    flow[layer, i, j] = block
                    flow[layer, j, i] = block.mT

    blocks = [slice(start, start + _TILE) for start in range(0, len(gram), _TILE)]
    for b, i in enumerate(blocks):
        for j in blocks[: b + 1]:
            layers(i, j)
    K_all.diagonal(dim1=1, dim2=2).copy_(torch.stack(kernels))
    if Theta_all is not None:
        Theta_all.diagonal(dim1=1, dim2=2).copy_(torch.stack(tangents))
    return K_all, Theta_all


def _check(gram0: Tensor, depth: int, C_W: float, C_b: float) -> None:
    if not isinstance(gram0, Tensor) or gram0.ndim != 2 or gram0.shape[0] != gram0.shape[1]:
        got = tuple(gram0.shape) if isinstance(gram0, Tensor) else type(gram0).__name__
        raise ValueError(f"gram0 must have shape (P, P), got {got}")
    check_covariance("gram0", gram0)
    _check_depth(depth)
    check_variances(C_W, C_b)


def _check_depth(depth: int) -> None:
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 1:
        raise ValueError(f"depth must be a positive integer, got {depth!r}")


def _rates(name: str, rate: float | Sequence[float] | Tensor, depth: int) -> Tensor:
    rates = torch.as_tensor(rate, dtype=torch.float64)
    if rates.ndim > 1 or rates.numel() not in (1, depth):
        raise ValueError(f"{name} must be a number or {depth} numbers, got {tuple(rates.shape)}")
    if not (torch.isfinite(rates) & (rates >= 0)).all():
        raise ValueError(f"{name} must be finite and not negative")
    return rates.expand(depth)
