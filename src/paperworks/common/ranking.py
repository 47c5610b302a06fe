"""Measures of a ranking that are honest about ties.

Scores from hashes, counts or saturated networks tie often, and then the order in which a sort
happens to leave the items decides the measure (and leaks the labels when the data are sorted by
class). Every measure here is the **expectation over uniformly random orders of the tied items**, in
closed form; without ties it is the usual measure. McSherry & Najork 2008, "Computing information
retrieval performance measures efficiently in the presence of tied scores".

Shared conventions: `scores` and `relevance` have shape (..., N), one row a query, N candidates; a
higher score ranks earlier; `relevance` is boolean or 0/1 (graded for `ndcg`). The result has shape
(...), one value a query in float64, and is NaN for a query without a relevant candidate: `.mean()`
of it refuses to hide such queries, `.nanmean()` leaves them out. A row with fewer candidates is
padded with the score -inf and relevance 0.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


def average_precision(scores: Tensor, relevance: Tensor, k: int | None = None) -> Tensor:
    """Expected average precision of each query; its mean over queries is the MAP.

        AP@k = 1 / min(k, R) · Σ_{relevant items at a rank i <= k} (relevant among the first i) / i

    with R relevant candidates. Reach for it when there are several relevant items a query and the
    whole ranking matters.

    Args:
        scores: (..., N), higher ranks earlier.
        relevance: (..., N), boolean or 0/1.
        k: cut the ranking here (MAP@k); None ranks everything.

    Returns:
        (...), in [0, 1]; NaN where nothing is relevant.

    Raises:
        TypeError: an argument is no tensor, or k is no integer.
        ValueError: shapes differ, N is 0, a score is NaN, relevance is not 0/1, or k < 1.

    >>> scores, relevance = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([1, 0, 1, 0])
    >>> average_precision(scores, relevance)
    tensor(0.8333, dtype=torch.float64)
    >>> average_precision(torch.zeros(2), torch.tensor([1, 0]))  # (1 + 1/2) / 2
    tensor(0.7500, dtype=torch.float64)
    """
    _check(scores, relevance, k)
    rank = _rank(scores, relevance)
    # an item of the tie group stands at this rank and is relevant: so are those above, itself, and
    # of the j group members before it a share of (relevant - 1) / (size - 1)
    j = rank.position - 1 - rank.above
    others = (rank.relevant_tied - 1) / (rank.tied - 1).clamp_min(1)
    precision = (rank.relevant_above + 1 + j * others) / rank.position
    total = (rank.chance * precision)[..., :k].sum(-1)
    count = relevance.sum(-1, dtype=torch.float64)
    return total / (count if k is None else count.clamp_max(k))


def ndcg(scores: Tensor, relevance: Tensor, k: int | None = None) -> Tensor:
    """Expected normalised discounted cumulative gain of each query.

        DCG@k = Σ_{i <= k} gain of the item at rank i / log2(i + 1),   nDCG@k = DCG@k / best DCG@k

    Reach for it when relevance is graded or the top of the ranking matters most. The gain is the
    relevance itself; pass `2**grades - 1` for the exponential gain.

    Args:
        scores: (..., N), higher ranks earlier.
        relevance: (..., N), gains >= 0.
        k: cut the ranking here; None ranks everything.

    Returns:
        (...), in [0, 1]; NaN where every gain is 0.

    Raises:
        TypeError: an argument is no tensor, or k is no integer.
        ValueError: shapes differ, N is 0, a score is NaN, a gain is negative or not finite, k < 1.

    >>> ndcg(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1, 0, 1]))
    tensor(0.9197, dtype=torch.float64)
    """
    _check(scores, relevance, k, graded=True)
    rank = _rank(scores, relevance)
    discount = 1 / torch.log2(rank.position + 1)
    best = relevance.double().sort(dim=-1, descending=True).values
    dcg, best_dcg = ((gain * discount)[..., :k].sum(-1) for gain in (rank.chance, best))
    return dcg / best_dcg


def mrr(scores: Tensor, relevance: Tensor) -> Tensor:
    """Expected reciprocal rank of each query's first relevant candidate; its mean is the MRR.

    With n items tied at the best relevant score, r of them relevant and a items above,

        E[1 / rank] = Σ_{j=1}^{n-r+1} C(n - j, r - 1) / C(n, r) · 1 / (a + j)

    Reach for it when one right answer is enough. Nothing is sorted: linear in N.

    Args:
        scores: (..., N), higher ranks earlier.
        relevance: (..., N), boolean or 0/1.

    Returns:
        (...), in (0, 1]; NaN where nothing is relevant.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: shapes differ, N is 0, a score is NaN, or relevance is not 0/1.

    >>> mrr(torch.tensor([[3.0, 2.0, 1.0], [1.0, 1.0, 0.0]]), torch.tensor([[0, 1, 1], [0, 1, 0]]))
    tensor([0.5000, 0.7500], dtype=torch.float64)
    """
    _check(scores, relevance)
    relevant = relevance.bool()
    best = torch.where(relevant, scores, scores.amin(-1, keepdim=True)).amax(-1, keepdim=True)
    a = (scores > best).sum(-1, keepdim=True)
    n = (scores == best).sum(-1, keepdim=True)
    r = ((scores == best) & relevant).sum(-1, keepdim=True)
    j = torch.arange(1, int(n.max()) + 1, device=scores.device)
    possible = j <= n - r + 1
    chance = _first_success(j.where(possible, 1).double(), n.double(), r.double())
    expected = torch.where(possible, chance / (a + j), 0).sum(-1)
    return torch.where(relevant.any(-1), expected, torch.nan)


def recall_at_k(scores: Tensor, relevance: Tensor, k: int) -> Tensor:
    """Expected share of each query's relevant candidates that stand among the first k.

        recall@k = (relevant among the first k) / R

    Relevant candidates compete with each other: with R > k it stays below 1.

    Args:
        scores: (..., N), higher ranks earlier.
        relevance: (..., N), boolean or 0/1.
        k: length of the list.

    Returns:
        (...), in [0, 1]; NaN where nothing is relevant.

    Raises:
        TypeError: an argument is no tensor, or k is no integer.
        ValueError: shapes differ, N is 0, a score is NaN, relevance is not 0/1, or k < 1.

    >>> recall_at_k(torch.tensor([3.0, 2.0, 2.0, 0.0]), torch.tensor([1, 0, 1, 0]), k=2)
    tensor(0.7500, dtype=torch.float64)
    """
    _check(scores, relevance, k)
    rank = _rank(scores, relevance)
    return rank.chance[..., :k].sum(-1) / relevance.sum(-1, dtype=torch.float64)


def hits_at_k(
    scores: Tensor,
    relevance: Tensor,
    k: int,
    ties: Literal["expected", "miss"] = "expected",
) -> Tensor:
    """Expected share of the relevant candidates that rank within k among the irrelevant ones.

    The measure of link prediction and of knowledge graphs ("filtered"): each relevant candidate is
    ranked against the irrelevant ones alone, so relevant candidates do not push each other out. One
    positive and its negatives a row, or all positives and all negatives in a single row (OGB).

    Args:
        scores: (..., N), higher ranks earlier.
        relevance: (..., N), boolean or 0/1.
        k: the last rank that counts as a hit.
        ties: "expected" over random orders; "miss" ranks a candidate behind every irrelevant one
            of its own score, as OGB does (strictly above the k-th best negative).

    Returns:
        (...), in [0, 1]; NaN where nothing is relevant.

    Raises:
        TypeError: an argument is no tensor, or k is no integer.
        ValueError: shapes differ, N is 0, a score is NaN, relevance is not 0/1, k < 1, or `ties`
            is neither of the two.

    >>> scores, relevance = torch.tensor([0.9, 0.5, 0.5, 0.1]), torch.tensor([1, 1, 0, 0])
    >>> hits_at_k(scores, relevance, k=1), hits_at_k(scores, relevance, k=1, ties="miss")
    (tensor(0.7500, dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    if ties not in ("expected", "miss"):
        raise ValueError(f"ties must be 'expected' or 'miss', got {ties!r}")
    _check(scores, relevance, k)
    rank = _rank(scores, relevance)
    above = rank.above - rank.relevant_above
    tied = rank.tied - rank.relevant_tied
    hit = k - above - tied if ties == "miss" else (k - above) / (tied + 1)
    return (rank.chance * hit.clamp(0, 1)).sum(-1) / relevance.sum(-1, dtype=torch.float64)


class _Rank(NamedTuple):
    """The candidates by falling score; every field but `position` has shape (..., N)."""

    position: Tensor  # 1, ..., N
    above: Tensor  # how many candidates score higher than the one at this position
    tied: Tensor  # how many score the same, itself included
    relevant_above: Tensor  # the summed relevance of those above
    relevant_tied: Tensor  # and of those tied

    @property
    def chance(self) -> Tensor:
        """Expected relevance of what stands at this position."""
        return self.relevant_tied / self.tied


def _rank(scores: Tensor, relevance: Tensor) -> _Rank:
    n = scores.shape[-1]
    sorted_scores, order = scores.sort(dim=-1, descending=True)
    place = torch.arange(n, device=scores.device).expand(scores.shape)
    changes = sorted_scores[..., 1:] != sorted_scores[..., :-1]
    edge = changes.new_ones(*scores.shape[:-1], 1)
    starts, ends = torch.cat([edge, changes], -1), torch.cat([changes, edge], -1)
    start = place.where(starts, 0).cummax(-1).values
    end = (place + 1).where(ends, n).flip(-1).cummin(-1).values.flip(-1)
    summed = F.pad(relevance.gather(-1, order).cumsum(-1, dtype=torch.float64), (1, 0))
    relevant_above = summed.gather(-1, start)
    relevant_tied = summed.gather(-1, end) - relevant_above
    return _Rank(place.double() + 1, start, end - start, relevant_above, relevant_tied)


def _first_success(j: Tensor, n: Tensor, r: Tensor) -> Tensor:
    """Chance that the first of r successes in random order among n stands at place j <= n - r + 1.

    C(n - j, r - 1) / C(n, r), in logarithms because the binomials overflow.
    """
    ways = torch.lgamma(n - j + 1) - torch.lgamma(n - j - r + 2)
    all_ways = torch.lgamma(n + 1) - torch.lgamma(n - r + 1)
    return r * (ways - all_ways).exp()


def _check(scores: Tensor, relevance: Tensor, k: int | None = None, graded: bool = False) -> None:
    for name, value in (("scores", scores), ("relevance", relevance)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    if scores.shape != relevance.shape or scores.dim() == 0 or scores.shape[-1] == 0:
        raise ValueError(
            "scores and relevance must share a shape (..., N) with N >= 1, got "
            f"{tuple(scores.shape)} and {tuple(relevance.shape)}"
        )
    if scores.is_floating_point() and scores.isnan().any():
        raise ValueError("scores contains NaN, which has no rank")
    if graded and not (relevance.isfinite() & (relevance >= 0)).all():
        raise ValueError("relevance must be finite and >= 0")
    if not graded and not ((relevance == 0) | (relevance == 1)).all():
        raise ValueError("relevance must be boolean or 0/1; only ndcg takes grades")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int)):
        raise TypeError(f"k must be an integer, got {k!r}")
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
