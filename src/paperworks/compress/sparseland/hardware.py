"""Sparse layers that hardware runs faster."""

from __future__ import annotations

import copy

import torch
from torch import nn


def to_2_4(linear: nn.Linear) -> nn.Linear:
    """A copy of a linear layer whose 2:4 sparse weight NVIDIA's sparse tensor cores multiply with.

    For layers pruned with `make_masks(..., structure=(2, 4))`: the zeros are no longer stored, and
    products take up to half the time. The copy is for inference. It is
    `torch.sparse.to_sparse_semi_structured`, with the checks in front.

    Args:
        linear: on a CUDA device of compute capability 8 or more, in float16 or bfloat16, with
            sizes that torch's kernels take (multiples of 32 or 64).

    Raises:
        ValueError: four consecutive inputs with more than two weights that are not zero; a layer
            that is not on a CUDA device.
        TypeError: not an `nn.Linear`.

    >>> layer = nn.Linear(64, 64)
    >>> layer.weight.data[:, ::2] = 0
    >>> to_2_4(layer)
    Traceback (most recent call last):
    ValueError: linear must be on a CUDA device for 2:4 kernels, got cpu
    """
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
    weight = linear.weight.detach()
    if weight.shape[1] % 4:
        raise ValueError(f"linear: {weight.shape[1]} inputs not divisible by m=4")
    worst = int(weight.reshape(-1, 4).count_nonzero(dim=1).max())
    if worst > 2:
        raise ValueError(f"linear is not 2:4 sparse: four consecutive inputs have {worst} weights")
    if weight.device.type != "cuda":
        raise ValueError(f"linear must be on a CUDA device for 2:4 kernels, got {weight.device}")
    sparse = copy.deepcopy(linear)
    values = torch.sparse.to_sparse_semi_structured(weight)
    sparse.weight = nn.Parameter(values, requires_grad=False)
    return sparse
