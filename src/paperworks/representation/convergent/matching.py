"""Pairs of units, from how similar they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from paperworks.representation.convergent.rows import check_similarity

Pairs = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, eq=False)
class Matching:
    """Which unit of A goes with which unit of B.

    Attributes:
        index_a: units of A, ascending, LongTensor (m,).
        index_b: the unit of B that each of them is paired with, LongTensor (m,).
        score: the similarity of each pair, (m,).
        unmatched: units of A and units of B that no pair has, two LongTensors.
    """

    index_a: Tensor
    index_b: Tensor
    score: Tensor
    unmatched: tuple[Tensor, Tensor]


def match_units(
    similarity: Tensor, method: Literal["bipartite", "semi", "greedy"] = "bipartite"
) -> Matching:
    """Pair the units of two networks by their similarity.

    - "bipartite": one to one, with the largest sum of similarities, max_π Σ_i c_{i,π(i)}; of p and
      q units, min(p, q) are paired. O(n³).
    - "semi": for each unit of A the most similar of B, argmax_j c_ij; units of B may repeat.
    - "greedy": one to one, the most similar pair first, then the most similar of the units left.

    "semi" scores at least as high as "bipartite" on any matrix, so compare scores of one method
    only. Where a unit has a clear partner all three agree. Give the correlation with its sign:
    after a ReLU, a unit and its negative are no match. arXiv 1511.07543, section 3.1; "greedy" is
    ours, a cheap bound.

    Args:
        similarity: (p, q), as `correlation` or `mutual_information` gives it.
        method: see above.

    Returns:
        The pairs, on the device and with scores in the dtype of `similarity`. Dead units are paired
        like any others, with a score of 0.

    Raises:
        TypeError: similarity is not a floating-point tensor.
        ValueError: no matrix, NaN or infinite numbers in it, or an unknown method.

    >>> similarity = torch.tensor([[0.9, 0.8], [0.8, 0.1]])
    >>> for method in ("bipartite", "semi", "greedy"):
    ...     matching = match_units(similarity, method)
    ...     print(method, matching.index_b.tolist(), f"{matching.score.mean():.2f}")
    bipartite [1, 0] 0.80
    semi [0, 0] 0.85
    greedy [0, 1] 0.50
    """
    if method not in _METHODS:
        raise ValueError(f"method must be one of {', '.join(_METHODS)}, got {method!r}")
    check_similarity(similarity)
    rows, columns = _METHODS[method](similarity.detach().double().cpu().numpy())
    device = similarity.device
    index_a, index_b = (torch.from_numpy(index).to(device) for index in (rows, columns))
    p, q = similarity.shape
    unmatched = _rest(index_a, p), _rest(index_b, q)
    return Matching(index_a, index_b, similarity.detach()[index_a, index_b], unmatched)


def _bipartite(c: NDArray[np.float64]) -> Pairs:
    rows, columns = linear_sum_assignment(c, maximize=True)
    return rows, columns


def _semi(c: NDArray[np.float64]) -> Pairs:
    return np.arange(len(c)), c.argmax(1)


def _greedy(c: NDArray[np.float64]) -> Pairs:
    """A pair in which each is the other's best would be taken before any that rivals it.

    So all such pairs are taken at once. Equal numbers count in the order of the matrix.
    """
    left_a, left_b = np.arange(c.shape[0]), np.arange(c.shape[1])
    pairs = []
    while len(left_a) and len(left_b):
        best_b, best_a = c.argmax(1), c.argmax(0)
        a = np.flatnonzero(best_a[best_b] == np.arange(len(left_a)))
        b = best_b[a]
        pairs.append((left_a[a], left_b[b]))
        left_a, left_b = np.delete(left_a, a), np.delete(left_b, b)
        c = np.delete(np.delete(c, a, 0), b, 1)
    rows, columns = (np.concatenate(side) for side in zip(*pairs))
    order = rows.argsort()
    return rows[order], columns[order]


_METHODS: dict[str, Callable[[NDArray[np.float64]], Pairs]] = {
    "bipartite": _bipartite,
    "semi": _semi,
    "greedy": _greedy,
}


def _rest(index: Tensor, n: int) -> Tensor:
    free = torch.ones(n, dtype=torch.bool, device=index.device)
    free[index] = False
    return free.nonzero().flatten()
