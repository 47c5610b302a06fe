"""The objective of a deep kernel machine on full Gram matrices, and the deep Gaussian processes
of finite width that it is the limit of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from paperworks.wide.dkm.grams import GramKernel, whitened, whitened_kl, widths_of_layers
from paperworks.wide.hmc import hamiltonian_monte_carlo
from paperworks.wide.kernels import psd_safe_cholesky


def gaussian_log_likelihood(Y: Tensor, K: Tensor, noise: float | Tensor) -> Tensor:
    """Σ_c log N(y_c; 0, K + noise·I) over the columns of Y (P, q); K of shape (..., P, P)."""
    P, q = Y.shape
    L = psd_safe_cholesky(K + noise * torch.eye(P, dtype=K.dtype, device=K.device))
    white = torch.linalg.solve_triangular(L, Y.expand(*K.shape[:-2], P, q), upper=False)
    log_det = L.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -white.square().sum((-2, -1)) / 2 - q * (log_det + P / 2 * math.log(2 * math.pi))


def dkm_objective(
    gram_factors: Sequence[Tensor],
    G0: Tensor,
    Y: Tensor,
    kernel: GramKernel | Sequence[GramKernel],
    nu: float | Sequence[float],
    noise: float | Tensor,
) -> Tensor:
    """The DKM objective of a regression, whose maximum are the exact posterior Gram matrices.

    J(G_1 … G_L) = Σ_c log N(y_c; 0, K(G_L) + noise·I) − Σ_ℓ ν_ℓ KL(N(0, G_ℓ) ‖ N(0, K(G_{ℓ−1}))).

    Nothing is added to a kernel unless it is singular (`psd_safe_cholesky`). Reach for it to study
    J itself; `DeepKernelMachine` maximises it on data.

    Args:
        gram_factors: lower triangular V_ℓ of G_ℓ = V_ℓ V_ℓᵀ, shape (P, P), ℓ = 1 … L (a factor is
            positive definite by itself, G is not); what stands above the diagonal is not read. No
            factors: a Gaussian process with kernel K(G_0).
        G0: Gram matrix of the inputs, XXᵀ/ν_0.
        Y: targets, shape (P, q).
        kernel: for all layers, or L + 1 of them.
        nu: ν for all layers, or L of them; a layer with `math.inf` is held at G_ℓ = K(G_{ℓ−1}), its
            factor not read.
        noise: variance of the observation noise, not negative.

    Raises:
        ValueError: numbers or shapes that do not fit, "nu must be positive", "Gram matrix is not
            positive definite".

    Source: arXiv 2108.13097, the DKM objective.

    >>> from paperworks.wide.dkm import SqExpKernel
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> Y = torch.tensor([[1.0], [-1.0], [0.5]])
    >>> G0 = X @ X.T / 2
    >>> V = torch.linalg.cholesky(SqExpKernel()(G0)).detach()
    >>> round(dkm_objective([V], G0, Y, SqExpKernel(), nu=1.0, noise=0.1).item(), 4)
    -4.8108
    """
    kernels = [kernel] * (len(gram_factors) + 1) if isinstance(kernel, GramKernel) else kernel
    if len(kernels) != len(gram_factors) + 1:
        raise ValueError(f"kernel: needs {len(gram_factors) + 1}, one a layer, got {len(kernels)}")
    if Y.ndim != 2 or G0.shape != (len(Y), len(Y)):
        raise ValueError(f"G0 {tuple(G0.shape)} and Y {tuple(Y.shape)} must be (P, P) and (P, q)")
    divergence = torch.zeros((), dtype=G0.dtype, device=G0.device)
    K = kernels[0](G0)
    widths = widths_of_layers(nu, len(gram_factors))
    for V, width, k in zip(gram_factors, widths, kernels[1:]):
        G = K
        if width < math.inf:
            V = V.tril()
            if not V.diagonal().all():
                raise ValueError("Gram matrix is not positive definite")
            G = V @ V.mT
            divergence = divergence + width * whitened_kl(whitened(V, psd_safe_cholesky(K)))
        K = k(G)
    return gaussian_log_likelihood(Y, K, noise) - divergence


class DGPSamples(NamedTuple):
    """What `sample_dgp_grams` returns.

    Attributes:
        grams: samples of each G_ℓ, a tensor (num_samples, chains, P, P) a layer.
        acceptance: mean acceptance probability of each chain, (chains,).
    """

    grams: list[Tensor]
    acceptance: Tensor


def sample_dgp_grams(
    X: Tensor,
    Y: Tensor,
    kernel: GramKernel,
    widths: Sequence[int],
    replicate: int,
    num_samples: int,
    *,
    noise: float,
    chains: int = 16,
    warmup: int = 200,
    num_steps: int = 4,
    generator: torch.Generator | None = None,
) -> DGPSamples:
    """Posterior samples of the Gram matrices of a deep Gaussian process of finite width.

    F_ℓ ∈ R^{P×N_ℓ} has columns iid N(0, K(G_{ℓ−1})), G_ℓ = F_ℓ F_ℓᵀ/N_ℓ, and the labels are
    seen `replicate` times. With widths N_ℓ = Nν_ℓ and replicate = N, N → ∞, the samples close
    in on the maximum of `dkm_objective`; with replicate = 1 on the NNGP. Hamiltonian Monte Carlo
    on ε_ℓ = chol(K(G_{ℓ−1}))⁻¹ F_ℓ, whose prior is N(0, I).

    Args:
        X: inputs, shape (P, features), float64 for many layers.
        Y: targets, shape (P, q).
        kernel: of all layers; its parameters are held.
        widths: N_ℓ for each hidden layer.
        replicate: how many times the labels are seen.
        num_samples: samples of each chain.
        noise: variance of the observation noise.
        chains, warmup, num_steps, generator: see `hamiltonian_monte_carlo`.

    Raises:
        ValueError: widths or replicate that are not positive, shapes that do not fit.

    >>> from paperworks.wide.dkm import SqExpKernel
    >>> X, Y = torch.eye(2).double(), torch.tensor([[1.0], [-1.0]]).double()
    >>> generator = torch.Generator().manual_seed(0)
    >>> samples = sample_dgp_grams(X, Y, SqExpKernel(), [32], 1, 50, noise=0.1, generator=generator)
    >>> samples.grams[0].shape
    torch.Size([50, 16, 2, 2])
    """
    if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y):
        raise ValueError(f"X {tuple(X.shape)} and Y {tuple(Y.shape)} must be (P, ...) and (P, q)")
    if not widths or min(*widths, replicate, replicate) < 1:
        raise ValueError(f"widths and replicate must be positive, got {list(widths)}, {replicate}")
    P = len(X)
    with torch.no_grad():
        K0 = kernel(X @ X.mT / X.shape[1])

    def propagate(state: Tensor) -> tuple[list[Tensor], Tensor]:
        K, grams = K0, []
        for width, white in zip(widths, state.split([P * w for w in widths], dim=1)):
            F = psd_safe_cholesky(K) @ white.view(-1, P, width)
            grams.append(F @ F.mT / width)
            K = kernel(grams[-1])
        return grams, K

    def log_prob(state: Tensor) -> Tensor:
        fit = gaussian_log_likelihood(Y, propagate(state)[1], noise)
        return replicate * fit - state.square().sum(1) / 2

    def keep(state: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.stack(propagate(state)[0], 1)

    initial = X.new_empty(chains, P * sum(widths)).normal_(generator=generator)
    result = hamiltonian_monte_carlo(
        log_prob,
        initial,
        num_samples=num_samples,
        warmup=warmup,
        num_steps=num_steps,
        keep=keep,
        generator=generator,
    )
    return DGPSamples(list(result.samples.unbind(2)), result.acceptance)
