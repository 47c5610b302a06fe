"""Every measure against its plain definition, averaged over all orders of the tied items."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor

from paperworks.common import average_precision, hits_at_k, mrr, ndcg, recall_at_k


def plain_average_precision(ranked: list[float], k: int) -> float:
    hits = [sum(ranked[: i + 1]) / (i + 1) for i in range(min(k, len(ranked))) if ranked[i]]
    return sum(hits) / min(k, sum(ranked))


def plain_ndcg(ranked: list[float], k: int) -> float:
    def dcg(gains: list[float]) -> float:
        return sum(gain / math.log2(i + 2) for i, gain in enumerate(gains[:k]))

    return dcg(ranked) / dcg(sorted(ranked, reverse=True))


def plain_mrr(ranked: list[float], k: int) -> float:
    return 1 / (1 + ranked.index(1))


def plain_recall(ranked: list[float], k: int) -> float:
    return sum(ranked[:k]) / sum(ranked)


def plain_hits(ranked: list[float], k: int) -> float:
    ranks = [1 + ranked[:i].count(0) for i, relevant in enumerate(ranked) if relevant]
    return sum(rank <= k for rank in ranks) / len(ranks)


MEASURES = {
    "average_precision": (plain_average_precision, average_precision),
    "ndcg": (plain_ndcg, ndcg),
    "mrr": (plain_mrr, lambda scores, relevance, k: mrr(scores, relevance)),
    "recall_at_k": (plain_recall, recall_at_k),
    "hits_at_k": (plain_hits, hits_at_k),
}


def all_orders(scores: list[int], relevance: list[float], plain, k: int) -> float:
    """The plain measure averaged over every permutation that the scores allow."""
    values = []
    for order in itertools.permutations(range(len(scores))):
        ranked = [scores[i] for i in order]
        if ranked == sorted(scores, reverse=True):
            values.append(plain([relevance[i] for i in order], k))
    return sum(values) / len(values)


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equals_the_average_over_all_orders_of_ties(name: str, data: st.DataObject) -> None:
    plain, measure = MEASURES[name]
    n = data.draw(st.integers(1, 6))
    scores = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    relevance = data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n).filter(any))
    k = data.draw(st.integers(1, n + 1))
    got = measure(torch.tensor(scores), torch.tensor(relevance), k)
    torch.testing.assert_close(got.item(), all_orders(scores, relevance, plain, k))


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_graded_ndcg_equals_the_average_over_all_orders(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    scores = data.draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    gains = data.draw(
        st.lists(st.sampled_from([0.0, 0.5, 3.0]), min_size=n, max_size=n).filter(any)
    )
    got = ndcg(torch.tensor(scores), torch.tensor(gains), k=3)
    torch.testing.assert_close(got.item(), all_orders(scores, gains, plain_ndcg, 3))


def test_known_values() -> None:
    scores, relevance = torch.tensor([4.0, 3, 2, 1]), torch.tensor([1, 0, 1, 0])
    assert average_precision(scores, relevance).item() == pytest.approx(5 / 6)
    assert ndcg(scores, relevance, k=4).item() == pytest.approx(0.91972, abs=1e-5)
    assert mrr(scores, 1 - relevance).item() == 0.5
    assert recall_at_k(scores, relevance, k=2).item() == 0.5
    assert hits_at_k(scores, relevance, k=1).item() == 0.5


def test_map_at_k_is_normalised_by_what_the_list_can_hold() -> None:
    scores, relevance = torch.tensor([3.0, 2, 1]), torch.tensor([1, 1, 1])
    assert average_precision(scores, relevance, k=2).item() == 1


def test_ndcg_agrees_with_scikit_learn_on_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 8, (20, 50), generator=generator).double()
    gains = torch.randint(0, 4, (20, 50), generator=generator).double()
    for k in (1, 10, 50, None):
        expected = ndcg_score(gains.numpy(), scores.numpy(), k=k)
        assert ndcg(scores, gains, k).mean().item() == pytest.approx(expected, abs=1e-12)


def test_hits_that_count_ties_as_misses() -> None:
    generator = torch.Generator().manual_seed(1)
    positives = torch.randint(0, 9, (40,), generator=generator)
    negatives = torch.randint(0, 9, (100,), generator=generator)
    scores = torch.cat([positives, negatives])
    relevance = torch.cat([torch.ones(40), torch.zeros(100)])
    for k in (1, 5, 20, 100):
        strictly_above = (positives > negatives.sort(descending=True).values[k - 1]).double().mean()
        assert hits_at_k(scores, relevance, k, ties="miss") == strictly_above
    assert hits_at_k(scores, relevance, 20, ties="miss") < hits_at_k(scores, relevance, 20)


@pytest.mark.parametrize("name", MEASURES)
def test_order_of_the_candidates_does_not_matter(name: str) -> None:
    generator = torch.Generator().manual_seed(2)
    scores = torch.randint(0, 5, (6, 200), generator=generator).float()
    relevance = torch.rand(6, 200, generator=generator) < 0.2
    relevance[:, 0] = True
    measure = MEASURES[name][1]
    by_label = relevance.int().argsort(dim=-1, descending=True)
    expected = measure(scores, relevance, 10)
    got = measure(scores.gather(1, by_label), relevance.gather(1, by_label), 10)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("name", MEASURES)
def test_rows_are_independent_and_padding_changes_nothing(name: str) -> None:
    generator = torch.Generator().manual_seed(3)
    measure = MEASURES[name][1]
    scores = torch.randint(0, 4, (2, 3, 7), generator=generator).float()
    relevance = torch.randint(0, 2, (2, 3, 7), generator=generator)
    relevance[..., 3] = 1
    rows = [
        measure(s, y, 3) for s, y in zip(scores.flatten(0, 1), relevance.flatten(0, 1), strict=True)
    ]
    expected = torch.stack(rows).reshape(2, 3)
    torch.testing.assert_close(measure(scores, relevance, 3), expected)
    padded = torch.nn.functional.pad(scores, (0, 4), value=-math.inf)
    torch.testing.assert_close(
        measure(padded, torch.nn.functional.pad(relevance, (0, 4)), 3), expected
    )


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8, torch.int64]
)
def test_any_dtype_of_scores(name: str, dtype: torch.dtype) -> None:
    measure = MEASURES[name][1]
    scores = torch.tensor([3, 1, 2, 1])
    relevance = torch.tensor([False, True, True, False])
    got = measure(scores.to(dtype), relevance, 2)
    assert got.dtype == torch.float64
    assert got == measure(scores.double(), relevance, 2)


@pytest.mark.parametrize("name", MEASURES)
def test_a_query_without_an_answer_is_nan(name: str) -> None:
    values = MEASURES[name][1](torch.rand(2, 3), torch.tensor([[0, 0, 0], [0, 1, 0]]), 2)
    assert values.isnan().tolist() == [True, False]


def test_mrr_of_a_relevant_candidate_at_minus_infinity() -> None:
    scores = torch.tensor([1.0, -math.inf, -math.inf])
    assert mrr(scores, torch.tensor([0, 0, 1])).item() == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_mrr_of_many_ties_stays_exact() -> None:
    n = 100_000
    relevance = torch.zeros(n)
    relevance[:3] = 1
    j = np.arange(1, n - 1, dtype=float)  # C(n - j, 2) / C(n, 3) / j
    expected = np.sum((n - j) * (n - j - 1) / 2 / j) / (n * (n - 1) * (n - 2) / 6)
    assert mrr(torch.zeros(n), relevance).item() == pytest.approx(expected, rel=1e-8)


BAD = [
    ((torch.zeros(2, 3), torch.zeros(2, 4)), ValueError, r"\(2, 3\) and \(2, 4\)"),
    ((torch.zeros(2, 0), torch.zeros(2, 0)), ValueError, "N >= 1"),
    ((torch.tensor(1.0), torch.tensor(1.0)), ValueError, "N >= 1"),
    ((torch.tensor([math.nan, 0]), torch.ones(2)), ValueError, "NaN"),
    (([1.0], torch.ones(1)), TypeError, "scores must be a tensor, got list"),
    ((torch.ones(1), [1]), TypeError, "relevance must be a tensor, got list"),
]


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize(("arguments", "error", "message"), BAD)
def test_bad_input(
    name: str, arguments: tuple[Tensor, Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        MEASURES[name][1](*arguments, 1)


@pytest.mark.parametrize("name", ["average_precision", "mrr", "recall_at_k", "hits_at_k"])
def test_grades_are_refused_outside_ndcg(name: str) -> None:
    with pytest.raises(ValueError, match="only ndcg takes grades"):
        MEASURES[name][1](torch.rand(3), torch.tensor([0.5, 1, 0]), 1)


@pytest.mark.parametrize("gain", [-1.0, math.nan, math.inf])
def test_gains_must_be_finite_and_not_negative(gain: float) -> None:
    with pytest.raises(ValueError, match="relevance must be finite and >= 0"):
        ndcg(torch.rand(2), torch.tensor([gain, 1]))


@pytest.mark.parametrize("measure", [average_precision, ndcg, recall_at_k, hits_at_k])
def test_bad_k(measure) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        measure(torch.rand(3), torch.ones(3), 0)
    with pytest.raises(TypeError, match=r"k must be an integer, got 1\.5"):
        measure(torch.rand(3), torch.ones(3), 1.5)


def test_unknown_ties() -> None:
    with pytest.raises(ValueError, match="ties must be 'expected' or 'miss', got 'mean'"):
        hits_at_k(torch.rand(3), torch.ones(3), 1, ties="mean")
