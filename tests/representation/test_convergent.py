"""Matching units: the brief's checks first, planted relations, then each part."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster
from sklearn.linear_model import Lasso
from sklearn.utils.estimator_checks import check_estimator
from torch import Tensor, nn

from paperworks.common import collect_activations, unit_rows
from paperworks.nets import MLP, ConvNet, ResNet
from paperworks.representation import (
    CorrelationAccumulator,
    Matching,
    SparsePrediction,
    align_model,
    cluster_tree,
    correlation,
    match_units,
    mutual_information,
    spectral_matching,
)
from paperworks.representation.convergent import correlations, information

METHODS = ["bipartite", "semi", "greedy"]


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def permutation(n: int, seed: int = 0) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


def seeded(make, seed: int = 0):
    """A module whose weights depend on the seed alone, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def whitened(n: int, d: int) -> Tensor:
    x = gaussian(n, d)
    return torch.linalg.qr(x - x.mean(0)).Q * n**0.5


# ---- the checks of the brief


def test_check_1_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.8], [0.8, 0.1]], dtype=torch.float64)
    expected = {"semi": ([0, 0], 0.85), "bipartite": ([1, 0], 0.80), "greedy": ([0, 1], 0.50)}
    for method, (index_b, mean) in expected.items():
        matching = match_units(similarity, method)
        assert matching.index_a.tolist() == [0, 1]
        assert matching.index_b.tolist() == index_b
        assert matching.score.mean().item() == pytest.approx(mean, abs=1e-12)


def test_check_2_permuted_and_scaled_units_are_found() -> None:
    a = seeded(lambda: MLP([6, 20, 20, 3])).double()
    b, x = copy.deepcopy(a), gaussian(200, 6)
    orders = {0: permutation(20), 2: permutation(20, seed=1)}
    for layer, order in orders.items():
        scale = gaussian(20, seed=layer).exp()
        b[layer].weight.data = scale[:, None] * b[layer].weight[order]
        b[layer].bias.data = scale * b[layer].bias[order]
        b[layer + 2].weight.data = b[layer + 2].weight[:, order] / scale
    torch.testing.assert_close(a(x), b(x))
    for layer, order in orders.items():
        of_a, of_b = (collect_activations(m, x, [str(layer + 1)])[str(layer + 1)] for m in (a, b))
        alive = of_a.std(0) > 0
        matching = match_units(correlation(of_a, of_b))
        assert torch.equal(matching.index_b[alive], order.argsort()[alive])
        torch.testing.assert_close(
            matching.score[alive], torch.ones(int(alive.sum())).double(), atol=1e-6, rtol=0
        )


def test_check_3_a_rotation_is_a_subspace_without_partners() -> None:
    x = whitened(2000, 64)
    y = x @ rotation(64, seed=3)
    dense = SparsePrediction(alpha=0).fit(x, y)
    assert dense.half_mse_.max() < 1e-8
    assert match_units(correlation(x, y)).score.mean() < 0.45


def correlated(n: int, rho: float) -> tuple[Tensor, Tensor]:
    """Two columns of exactly this correlation."""
    x = whitened(n, 2)
    return x[:, :1], rho * x[:, :1] + (1 - rho**2) ** 0.5 * x[:, 1:]


def test_check_4_a_single_predictor_by_hand() -> None:
    x, y = correlated(500, 0.8)
    found = SparsePrediction(alpha=0.1).fit(x, y)
    assert found.coef_.item() == pytest.approx(0.7, abs=1e-8)
    assert found.half_mse_.item() == pytest.approx(0.185, abs=1e-8)
    for alpha in (0.8000001, 5.0):
        found = SparsePrediction(alpha=alpha).fit(x, y)
        assert found.coef_.item() == 0
        assert found.half_mse_.item() == pytest.approx(0.5)
        assert found.n_nonzero_.tolist() == [0]


def test_check_5_information_of_gaussians() -> None:
    x = gaussian(100_000, 1)
    y = 0.9 * x + 0.19**0.5 * gaussian(100_000, 1, seed=1)
    values = [mutual_information(x, y, bins).item() for bins in (10, 20, 40)]
    assert values == pytest.approx([0.728, 0.785, 0.809], abs=4e-3)
    assert values[-1] < 0.8304


def test_check_5_independent_units_have_none() -> None:
    x, y = gaussian(100_000, 8, seed=2), gaussian(100_000, 8, seed=3)
    assert abs(mutual_information(x, y).mean().item()) < 1e-3
    plain = mutual_information(x[:1000], y[:1000], correct_bias=False).mean().item()
    assert plain == pytest.approx(81 / 2000, rel=0.1)
    assert abs(mutual_information(x[:1000], y[:1000]).mean().item()) < 4e-3


def test_check_6_means_far_above_deviations() -> None:
    x = 1e4 + gaussian(5000, 6)
    y = 1e4 + 0.7 * x.roll(1, 1) - 0.7e4 + 0.7 * gaussian(5000, 6, seed=1)
    expected = np.corrcoef(x.T, y.T)[:6, 6:]
    accumulator = CorrelationAccumulator(6, 6)
    for a, b in zip(x.split(700), y.split(700)):
        accumulator.update(a, b)
    assert np.abs(accumulator.compute().numpy() - expected).max() < 1e-8
    assert np.abs(one_pass(x.float(), y.float()).numpy() - expected).max() > 1e-2


def one_pass(x: Tensor, y: Tensor) -> Tensor:
    """E[xy] - E[x]E[y], which cancels."""
    c = x.T @ y / len(x) - torch.outer(x.mean(0), y.mean(0))
    return c / torch.outer(x.std(0), y.std(0))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), p=st.integers(1, 12), q=st.integers(1, 12))
def test_check_7_semi_scores_at_least_as_high(seed: int, p: int, q: int) -> None:
    similarity = gaussian(p, q, seed=seed)
    semi, bipartite, greedy = (match_units(similarity, m) for m in ("semi", "bipartite", "greedy"))
    best = semi.score[bipartite.index_a]
    assert (best >= bipartite.score).all()
    assert bipartite.score.sum() >= greedy.score.sum() - 1e-12
    assert len(bipartite.index_a) == len(greedy.index_a) == min(p, q)
    if len(semi.index_b.unique()) == p:
        assert torch.equal(semi.index_b, bipartite.index_b)
        assert torch.equal(semi.index_b, greedy.index_b)


def test_check_7_equal_when_all_have_their_own_partner() -> None:
    similarity = 0.1 * gaussian(9, 9) + 5 * torch.eye(9)[permutation(9)]
    assert torch.equal(match_units(similarity).index_b, match_units(similarity, "semi").index_b)


def blocks(sizes: list[tuple[int, int]]) -> Tensor:
    return torch.block_diag(*(0.5 + 0.5 * gaussian(*size).abs().clamp(max=1) for size in sizes))


def test_check_8_blocks_are_recovered() -> None:
    of_a, of_b = permutation(9), permutation(12, seed=1)
    between = blocks([(2, 5), (4, 4), (3, 3)])[of_a][:, of_b]
    truth_a = torch.tensor([0, 0, 1, 1, 1, 1, 2, 2, 2])[of_a]
    truth_b = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)[of_b]
    labels_a, labels_b = spectral_matching(between, 3)
    names = {int(found): int(true) for found, true in zip(labels_a, truth_a)}
    assert sorted(names) == sorted(names.values()) == [0, 1, 2]
    assert [names[int(label)] for label in labels_a] == truth_a.tolist()
    assert [names[int(label)] for label in labels_b] == truth_b.tolist()


# ---- planted relations


def test_partly_shared_units_are_told_from_the_others() -> None:
    shared, n = 12, 4000
    x = torch.cat([gaussian(n, shared), gaussian(n, 8, seed=1)], 1).relu()
    y = torch.cat([gaussian(n, shared), gaussian(n, 8, seed=2)], 1)
    order = permutation(20, seed=3)
    y = ((y + 0.2 * gaussian(n, 20, seed=4))[:, order]).relu()
    matching = match_units(correlation(x, y))
    assert torch.equal(matching.index_b[:shared], order.argsort()[:shared])
    assert matching.score[:shared].min() > 0.9
    assert matching.score[shared:].max() < 0.2


def test_a_network_that_shares_some_units() -> None:
    a, b = (seeded(lambda: MLP([6, 20, 3]), seed).double() for seed in (0, 1))
    x, order = gaussian(2000, 6), permutation(20)
    b[0].weight.data[order[:8]] = 3 * a[0].weight[:8]
    b[0].bias.data[order[:8]] = 3 * a[0].bias[:8]
    of_a, of_b = (collect_activations(m, x, ["1"])["1"] for m in (a, b))
    matching = match_units(correlation(of_a, of_b))
    assert torch.equal(matching.index_b[:8], order[:8])
    assert matching.score[:8].min() > 1 - 1e-6
    assert matching.score[8:].max() < 0.95
    single = 0.5 * (1 - correlation(of_a, of_b).amax(0).square())
    assert single[order[:8]].max() < 1e-6
    assert single[order[8:]].min() > 0.05


def test_partners_are_found_by_information_whatever_the_relation() -> None:
    x, order = gaussian(3000, 10), permutation(10)
    y = x.square()[:, order]  # uncorrelated with x
    assert torch.equal(match_units(mutual_information(x, y)).index_b, order.argsort())
    assert match_units(correlation(x, y)).score.max() < 0.2


def test_a_negative_copy_is_no_match() -> None:
    x = gaussian(1000, 5)
    y = torch.stack([-x[:, 0], x[:, 0] + gaussian(1000, seed=1)], 1)
    assert match_units(correlation(x, y), "semi").index_b[0] == 1


def test_few_to_one_finds_the_planted_few() -> None:
    x = gaussian(5000, 30).relu()
    chosen = torch.stack([permutation(30, seed=j)[:3] for j in range(10)])
    y = x[:, chosen].sum(2) + 0.1 * gaussian(5000, 10, seed=1)
    sparse = SparsePrediction(alpha=0.1).fit(x, y)
    assert sparse.n_nonzero_.tolist() == [3] * 10
    found = torch.from_numpy(sparse.coef_).topk(3).indices.sort().values
    assert torch.equal(found, chosen.sort().values)
    single = 0.5 * (1 - correlation(x, y).amax(0).square())
    assert (sparse.half_mse_ < 0.3 * single.numpy()).all()


def test_a_rotation_needs_all_units() -> None:
    x = whitened(2000, 64)
    y = x @ rotation(64)
    sparse = SparsePrediction(alpha=0.1).fit(x, y)
    assert sparse.n_nonzero_.mean() > 10
    assert sparse.half_mse_.mean() > 0.1
    assert SparsePrediction(alpha=0).fit(x, y).half_mse_.max() < 1e-8


def test_subspaces_shared_by_groups_are_clustered() -> None:
    """Groups of four units, each rotated on its own: no partners, but groups of them."""
    x = gaussian(4000, 12).abs()  # a mixture of positive units has positive correlations
    mix = torch.block_diag(*(torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator()
                                        .manual_seed(j)) for j in range(3)))  # fmt: skip
    order = permutation(12)
    y = (x @ mix)[:, order]
    between = correlation(x, y)
    labels_a, labels_b = spectral_matching(between - 0.1, 3)
    group = torch.arange(12) // 4
    assert [len(labels_a[group == g].unique()) for g in range(3)] == [1, 1, 1]
    assert torch.equal(labels_b, labels_a[::4][group[order]])


# ---- correlation


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1000),
    n=st.integers(2, 60),
    size=st.integers(1, 60),
    p=st.integers(1, 5),
    q=st.integers(1, 5),
)
def test_streams_agree_with_numpy(seed: int, n: int, size: int, p: int, q: int) -> None:
    x, y = gaussian(n, p, seed=seed), gaussian(n, q, seed=seed + 1)
    expected = np.corrcoef(x.T, y.T)[:p, p:]
    accumulator = CorrelationAccumulator(p, q)
    for a, b in zip(x.split(size), y.split(size)):
        accumulator.update(a, b)
    np.testing.assert_allclose(accumulator.compute(), expected, atol=1e-12)
    np.testing.assert_allclose(correlation(x, y), expected, atol=1e-12)
    assert accumulator.count == n


def test_blocks_inside_a_batch_change_nothing(monkeypatch) -> None:
    x, y = gaussian(100, 7), gaussian(100, 3, seed=1)
    whole = correlation(x, y)
    monkeypatch.setattr(correlations, "_BLOCK", 21)
    torch.testing.assert_close(correlation(x, y), whole)


def test_compute_leaves_the_stream_as_it_is() -> None:
    x = gaussian(50, 3)
    accumulator = CorrelationAccumulator(3, 3).update(x[:30], x[:30])
    first = accumulator.compute()
    torch.testing.assert_close(accumulator.compute(), first)
    torch.testing.assert_close(copy.deepcopy(accumulator).compute(), first)
    torch.testing.assert_close(accumulator.update(x[30:], x[30:]).compute(), correlation(x))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_correlation_ignores_shift_and_positive_scale(seed: int) -> None:
    x, y = gaussian(40, 4, seed=seed), gaussian(40, 3, seed=seed + 1)
    scale, shift = gaussian(4, seed=seed).exp(), 10 * gaussian(4, seed=seed + 2)
    c = correlation(x, y)
    torch.testing.assert_close(correlation(scale * x + shift, y), c)
    torch.testing.assert_close(correlation(-scale * x, y), -c)
    torch.testing.assert_close(correlation(y, x), c.T)
    assert c.abs().max() <= 1


def test_within_a_network_the_diagonal_is_one() -> None:
    c = correlation(gaussian(60, 5))
    torch.testing.assert_close(c.diag(), torch.ones(5, dtype=c.dtype))
    torch.testing.assert_close(c, c.T)
    alone = match_units(c.fill_diagonal_(-1), "semi")
    assert (alone.index_a != alone.index_b).all()


@pytest.mark.parametrize("value", [0.0, 0.1, -1e4, 1e30])
def test_constant_units_are_dead_whatever_their_value(value: float) -> None:
    x = gaussian(1000, 3, dtype=torch.float32)
    x[:, 1] = value
    accumulator = CorrelationAccumulator(3, 3)
    for rows in x.split(77):
        accumulator.update(rows, rows)
    assert [index.tolist() for index in accumulator.dead] == [[1], [1]]
    c = accumulator.compute()
    assert not c[1].any()
    assert not c[:, 1].any()
    assert match_units(c).score[1] == 0


def test_a_unit_that_wakes_up_late_is_not_dead() -> None:
    x = torch.zeros(20, 1)
    accumulator = CorrelationAccumulator(1, 1).update(x, x)
    assert accumulator.compute().item() == 0
    accumulator.update(x + 1, x + 1)
    assert accumulator.compute().item() == pytest.approx(1)
    assert accumulator.dead[0].tolist() == []


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_activations(dtype: torch.dtype) -> None:
    x, y = gaussian(500, 4).to(dtype), gaussian(500, 3, seed=1).to(dtype)
    before = x.clone()
    exact = correlation(x.double(), y.double())
    assert torch.equal(correlation(x, y), exact)
    torch.testing.assert_close(mutual_information(x, y), mutual_information(x.double(), y.double()))
    assert torch.equal(x, before)


def test_activations_with_gradients_are_taken() -> None:
    x = gaussian(30, 3).requires_grad_()
    for found in (correlation(x, x), mutual_information(x, x), match_units(x[:3]).score):
        assert not found.requires_grad


DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


@pytest.mark.parametrize("device", DEVICES)
def test_results_stay_on_the_device(device: str) -> None:
    x, noise = gaussian(3000, 40, dtype=torch.float32).relu(), gaussian(3000, 30, seed=1)
    y = noise.float() + x[:, :30]
    there = x.to(device)
    c = correlation(there, y)  # each side may be elsewhere
    torch.testing.assert_close(c.cpu(), correlation(x, y))
    information = mutual_information(there, y)
    torch.testing.assert_close(information.cpu(), mutual_information(x, y))
    for found in (c, information, match_units(c).index_b, *spectral_matching(c, 3)):
        assert found.device.type == device
    model = seeded(lambda: MLP([4, 6, 2])).to(device)
    example = torch.rand(3, 4, device=device)
    aligned = align_model(model, "0", match_units(torch.eye(6)[permutation(6)]), example)
    torch.testing.assert_close(aligned(example), model(example))


@pytest.mark.parametrize("call", [correlation, mutual_information])
@pytest.mark.parametrize(
    ("x", "y", "error", "named"),
    [
        (torch.ones(5, 3), torch.ones(4, 3), ValueError, "5 and 4 rows"),
        (torch.ones(5), torch.ones(5, 3), ValueError, "x must have shape"),
        (torch.ones(5, 3), torch.ones(5, 3, 2, 2), ValueError, "y must have shape.*unit_rows"),
        (torch.ones(5, 3, dtype=torch.int64), torch.ones(5, 3), TypeError, "x must be a floating"),
        (torch.ones(5, 3), np.ones((5, 3)), TypeError, "y must be a floating.*ndarray"),
        (torch.full((5, 3), torch.nan), torch.ones(5, 3), ValueError, "x has values that are not"),
        (torch.ones(5, 3), torch.tensor([[torch.inf]] * 5), ValueError, "y has values"),
        (torch.ones(0, 3), torch.ones(0, 3), ValueError, ". rows or more, got 0"),
    ],
)
def test_bad_activations(call, x, y, error, named) -> None:
    with pytest.raises(error, match=named):
        call(x, y)


def test_bad_streams() -> None:
    with pytest.raises(ValueError, match="p must be a positive integer, got 0"):
        CorrelationAccumulator(0, 3)
    accumulator = CorrelationAccumulator(3, 2)
    with pytest.raises(ValueError, match="2 rows or more, got 0"):
        accumulator.compute()
    accumulator.update(torch.ones(1, 3), torch.ones(1, 2))
    with pytest.raises(ValueError, match="2 rows or more, got 1"):
        accumulator.compute()
    with pytest.raises(ValueError, match="p = 3 and q = 2 columns, got 2 and 3"):
        accumulator.update(torch.ones(5, 2), torch.ones(5, 3))
    with pytest.raises(ValueError, match="1 rows or more, got 0"):
        accumulator.update(torch.ones(0, 3), torch.ones(0, 2))
    with pytest.raises(ValueError, match="5 and 6 rows"):
        accumulator.update(torch.ones(5, 3), torch.ones(6, 2))
    with pytest.raises(ValueError, match="not finite"):
        accumulator.update(torch.full((5, 3), torch.inf), torch.ones(5, 2))
    assert accumulator.count == 1
    with pytest.raises(ValueError, match="2 rows or more, got 1"):
        correlation(torch.ones(1, 3))


# ---- mutual information


def naive_information(x: np.ndarray, y: np.ndarray) -> float:
    """From labels of bins."""
    joint = np.histogram2d(x, y, bins=[np.arange(x.max() + 2), np.arange(y.max() + 2)])[0] / len(x)
    outer = np.outer(joint.sum(1), joint.sum(0))
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / outer[seen])).sum())


def test_zeros_have_a_bin_of_their_own() -> None:
    x = torch.tensor([0.0, 0, 0, 0, 3, 4, 1, 2, 6, 5])[:, None]  # 4 zeros, bins {1,2} {3,4} {5,6}
    bins = np.array([0, 0, 0, 0, 2, 2, 1, 1, 3, 3])
    expected = naive_information(bins, bins)
    assert mutual_information(x, x, 4, correct_bias=False).item() == pytest.approx(expected)
    y = torch.arange(10.0)[:, None] + 1  # no zeros: {1..5} {6..10}
    halves = np.array([0] * 5 + [1] * 5)
    assert mutual_information(y, y, 2, correct_bias=False).item() == pytest.approx(np.log(2))
    assert mutual_information(x, y, 2, correct_bias=False).item() == pytest.approx(
        naive_information((bins > 0).astype(int), halves)
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(1, 200), bins=st.integers(2, 12))
def test_tiles_agree_with_a_loop_over_pairs(seed: int, n: int, bins: int) -> None:
    x, y = gaussian(n, 5, seed=seed).relu(), gaussian(n, 4, seed=seed + 1)
    y[:, 1] = (2 * y[:, 1]).round()  # ties
    found = mutual_information(x, y, bins)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(information, "_TILE", 2 * bins)
        patch.setattr(information, "_ROWS", 33)
        torch.testing.assert_close(mutual_information(x, y, bins), found)
    a, b = (information._binned(z, bins).numpy().astype(int) for z in (x, y))
    for i in range(5):
        for j in range(4):
            bias = (len(set(a[i])) - 1) * (len(set(b[j])) - 1) / (2 * n)
            assert found[i, j].item() == pytest.approx(naive_information(a[i], b[j]) - bias)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_information_ignores_increasing_maps(seed: int) -> None:
    x, y = gaussian(300, 3, seed=seed).relu(), gaussian(300, 3, seed=seed + 1)
    information = mutual_information(x, y)
    torch.testing.assert_close(mutual_information(x.expm1(), y.exp()), information)
    torch.testing.assert_close(mutual_information(y, x), information.T)


def test_units_without_variation_have_no_information() -> None:
    x = gaussian(100, 2).relu()
    for value in (0.0, 2.5):
        x[:, 1] = value
        found = mutual_information(x, x)
        assert found[1].abs().max() < 1e-12
        assert found[0, 0] > 0


def test_information_under_autocast_is_the_same() -> None:
    x = gaussian(5000, 6, dtype=torch.float32).relu()
    expected = mutual_information(x, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mutual_information(x, x), expected)


@pytest.mark.parametrize("bins", [1, 257, 2.0, True])
def test_bad_bins(bins) -> None:
    with pytest.raises(ValueError, match="bins must be an integer from 2 to 256"):
        mutual_information(torch.rand(5, 2), torch.rand(5, 2), bins)


# ---- matching


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (1, 1)])
def test_unequal_numbers_of_units(method: str, shape: tuple[int, int]) -> None:
    similarity = gaussian(*shape)
    matching = match_units(similarity, method)
    assert torch.equal(matching.score, similarity[matching.index_a, matching.index_b])
    assert torch.equal(matching.index_a, matching.index_a.sort().values)
    assert len(matching.index_a) == (shape[0] if method == "semi" else min(shape))
    for index, unmatched, n in zip((matching.index_a, matching.index_b), matching.unmatched, shape):
        assert sorted({*index.tolist(), *unmatched.tolist()}) == list(range(n))
        assert not set(index.tolist()) & set(unmatched.tolist())


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), p=st.integers(1, 9), q=st.integers(1, 9), levels=st.integers(1, 30)
)
def test_greedy_takes_the_most_similar_pair_first(seed: int, p: int, q: int, levels: int) -> None:
    similarity = torch.randint(levels, (p, q), generator=torch.Generator().manual_seed(seed))
    left = similarity.double().numpy().copy()
    expected = {}
    for _ in range(min(p, q)):
        i, j = np.unravel_index(left.argmax(), left.shape)
        expected[int(i)] = int(j)
        left[i], left[:, j] = -1, -1
    matching = match_units(similarity.double(), "greedy")
    assert dict(zip(matching.index_a.tolist(), matching.index_b.tolist())) == expected


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_scores_keep_the_dtype(dtype: torch.dtype, method: str) -> None:
    similarity = gaussian(4, 4).to(dtype)
    matching = match_units(similarity, method)
    assert matching.score.dtype == dtype
    assert torch.equal(matching.index_b, match_units(similarity.double(), method).index_b)


@pytest.mark.parametrize(
    ("similarity", "method", "error", "named"),
    [
        (torch.tensor([[torch.nan]]), "semi", ValueError, "similarity contains NaN .dead units.."),
        (torch.tensor([[torch.inf]]), "semi", ValueError, "similarity must be finite"),
        (torch.ones(2, 2), "best", ValueError, "one of bipartite, semi, greedy, got 'best'"),
        (torch.ones(3), "semi", ValueError, "similarity must have shape"),
        (torch.ones(0, 3), "greedy", ValueError, "similarity must have shape"),
        (torch.ones(2, 2, dtype=torch.int64), "semi", TypeError, "floating-point"),
        ([[1.0]], "semi", TypeError, "floating-point tensor, got list"),
    ],
)
def test_bad_similarity(similarity, method, error, named) -> None:
    with pytest.raises(error, match=named):
        match_units(similarity, method)


# ---- sparse prediction


def test_scikit_learn_accepts_the_estimator() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a skipped check of the array API
        check_estimator(SparsePrediction())


def test_it_is_the_lasso_of_standardised_units() -> None:
    x, y = gaussian(300, 6) * 7 + 100, None
    y = x[:, :4] @ gaussian(4, 3, seed=1) + gaussian(300, 3, seed=2)
    found = SparsePrediction(alpha=0.05).fit(x, y)
    z, t = ((v - v.mean(0)) / v.std(0, correction=0) for v in (x, y))
    for j in range(3):
        lasso = Lasso(0.05, fit_intercept=False).fit(z, t[:, j])
        np.testing.assert_allclose(found.coef_[j], lasso.coef_, atol=1e-3)
    residual = (t - z @ torch.from_numpy(found.coef_).T).square().mean(0) / 2
    np.testing.assert_allclose(found.half_mse_, residual)
    np.testing.assert_allclose(found.half_mse(x, y), residual)
    assert found.n_nonzero_.tolist() == np.count_nonzero(found.coef_, axis=1).tolist()


def test_units_are_penalised_alike_whatever_their_scale() -> None:
    x, y = gaussian(200, 5), gaussian(200, 2, seed=1) + gaussian(200, 5)[:, :2]
    scale = torch.tensor([1e-3, 1e3, 1, 50, 0.1]).double()
    a, b = SparsePrediction().fit(x, y), SparsePrediction().fit(x * scale + 5, 30 * y - 2)
    np.testing.assert_allclose(a.coef_, b.coef_, atol=1e-6)
    np.testing.assert_allclose(30 * a.predict(x) - 2, b.predict(x * scale + 5), atol=1e-6)


def test_stronger_penalties_use_fewer_units() -> None:
    x = gaussian(400, 10)
    y = x @ gaussian(10, 6, seed=1)
    fits = [SparsePrediction(alpha).fit(x, y) for alpha in (0, 0.02, 0.1, 0.4, 10)]
    used = [fit.n_nonzero_.mean() for fit in fits]
    assert used == sorted(used, reverse=True)
    assert used[-1] == 0
    error = [fit.half_mse_.mean() for fit in fits]
    assert error == sorted(error)
    assert error[-1] == pytest.approx(0.5)


def test_the_papers_decay() -> None:
    fit = SparsePrediction.from_paper_decay(10**-2.6, q=96)
    assert fit.alpha == pytest.approx(0.24114, abs=1e-4)
    assert SparsePrediction.from_paper_decay(1e-3, q=256).alpha == pytest.approx(0.256)


def test_dead_units_are_named_and_harmless() -> None:
    x, y = gaussian(100, 4), gaussian(100, 3, seed=1)
    x[:, 2], y[:, 1] = 3.3, -0.1
    for alpha in (0, 0.1):
        found = SparsePrediction(alpha).fit(x, y)
        assert found.dead_.tolist() == [1]
        assert not found.coef_[:, 2].any()
        assert not found.coef_[1].any()
        assert found.half_mse_[1] == 0
        np.testing.assert_allclose(found.predict(x)[:, 1], -0.1)
        assert np.isfinite(found.predict(x)).all()


def test_one_target_comes_back_as_a_vector() -> None:
    x = gaussian(50, 3)
    found = SparsePrediction().fit(x, x[:, 0])
    assert found.predict(x).shape == (50,)
    assert found.coef_.shape == (1, 3)
    assert found.half_mse(x, x[:, 0]).shape == (1,)


def test_bad_predictions() -> None:
    x = gaussian(10, 3)
    with pytest.raises(ValueError, match="alpha must be >= 0, got -1"):
        SparsePrediction(alpha=-1).fit(x, x)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SparsePrediction().fit(x, x[:9])
    with pytest.raises(ValueError, match="minimum of 2"):
        SparsePrediction().fit(x[:1], x[:1])
    with pytest.raises(ValueError, match="NaN"):
        SparsePrediction().fit(x, x * torch.nan)
    with pytest.raises(ValueError, match=r"Y must have shape \(10, 3\), got \(9, 3\)"):
        SparsePrediction().fit(x, x).half_mse(x, x[:9])


# ---- clusters


def test_units_without_positive_correlation_belong_nowhere() -> None:
    between = torch.zeros(5, 5)
    between[:4, :4] = blocks([(2, 2), (2, 2)])
    between[4] = -0.5
    labels_a, labels_b = spectral_matching(between, 2)
    assert labels_a[4] == labels_b[4] == -1
    assert torch.equal(labels_a[:4], labels_b[:4])
    assert len(labels_a[:4].unique()) == 2


def test_as_many_clusters_as_units() -> None:
    labels_a, labels_b = spectral_matching(gaussian(3, 2).abs() + 0.1, 5)
    assert sorted(torch.cat([labels_a, labels_b]).tolist()) == [0, 1, 2, 3, 4]


def test_clusters_repeat() -> None:
    between = correlation(gaussian(40, 8), gaussian(40, 8, seed=1))
    first, second = (spectral_matching(between, 3, random_state=4) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_global_generators_are_left_alone() -> None:
    x = gaussian(40, 8)
    before = np.random.get_state()[1:3], torch.get_rng_state()  # noqa: NPY002
    spectral_matching(correlation(x), 3)
    SparsePrediction().fit(x, x)
    mutual_information(x, x)
    after = np.random.get_state()[1:3], torch.get_rng_state()  # noqa: NPY002
    assert (after[0][0] == before[0][0]).all()
    assert after[0][1] == before[0][1]
    assert torch.equal(after[1], before[1])


@pytest.mark.parametrize(
    ("between", "n_clusters", "named"),
    [
        (torch.ones(2, 3), 6, "at most p . q = 5, got 6"),
        (torch.ones(2, 3), 0, "positive integer"),
        (-torch.ones(2, 3), 1, "at most the 0 units that have a positive"),
        (torch.full((2, 3), torch.nan), 1, "between contains NaN"),
    ],
)
def test_bad_clusters(between: Tensor, n_clusters: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        spectral_matching(between, n_clusters)


def test_the_closest_clusters_merge_first() -> None:
    between = blocks([(2, 2), (2, 2), (2, 2), (2, 2)])
    between[:4, :4] += 0.2  # the first two blocks are kin
    labels = torch.arange(8) // 2
    tree = cluster_tree(between, labels, labels)
    assert tree.shape == (3, 4)
    assert sorted(tree[0, :2]) == [0, 1]
    assert tree[0, 2] == pytest.approx(0.8)
    assert tree[-1, 2] == pytest.approx(1)
    coarse = fcluster(tree, 3, "maxclust")
    assert coarse[0] == coarse[1]
    assert len(set(coarse)) == 3


def test_clusters_of_one_network_are_far_from_each_other() -> None:
    between = torch.ones(2, 2)
    tree = cluster_tree(between, torch.tensor([0, 1]), torch.tensor([2, 2]))
    assert tree[0, 2] == 0  # A's unit and B's
    assert tree[1, 2] == pytest.approx(0.5)  # of 1, between A's own, and 0


def test_bad_trees() -> None:
    between, labels = torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"labels_b must have shape \(3,\), got \(2,\)"):
        cluster_tree(between, labels, labels)
    with pytest.raises(ValueError, match="at least two clusters, got 1"):
        cluster_tree(between, torch.zeros(2).long(), torch.zeros(3).long())


# ---- alignment


def scrambled(model: nn.Module, layers: list[str], x: Tensor) -> nn.Module:
    """The same function with its units in another order, by `align_model` itself."""
    for i, layer in enumerate(layers):
        units = next(model.get_submodule(layer).parameters()).shape[0]
        model = align_model(
            model, layer, match_units(torch.eye(units)[permutation(units, seed=i)]), x
        )
    return model


def chain() -> nn.Module:
    return ConvNet(1, [6, 8], pool_after=[0], head="flatten", hidden=[12], image_size=(8, 8))


@pytest.mark.parametrize(
    ("make", "shape", "layers"),
    [
        (lambda: MLP([5, 9, 7, 3]), (30, 5), {"0": "1", "2": "3"}),
        (chain, (10, 1, 8, 8), {"0": "2", "4": "6", "8": "9"}),
    ],
)
def test_a_scrambled_network_is_put_back(make, shape, layers: dict[str, str]) -> None:
    a, x = seeded(make).double().eval(), gaussian(*shape)
    b = scrambled(a, [*layers], x)
    torch.testing.assert_close(a(x), b(x))
    assert not torch.equal(next(a.parameters()), next(b.parameters()))
    aligned = b
    for layer, seen in layers.items():
        of_a, of_b = (
            collect_activations(m, x, [seen], transform=unit_rows)[seen] for m in (a, aligned)
        )
        aligned = align_model(aligned, layer, match_units(correlation(of_a, of_b)), x)
    torch.testing.assert_close(aligned(x), a(x))
    for (key, mine), theirs in zip(aligned.state_dict().items(), a.state_dict().values()):
        torch.testing.assert_close(mine, theirs, msg=key)


def test_a_residual_stream_moves_as_one() -> None:
    model = seeded(lambda: ResNet(1, [8], [2], num_classes=3)).double().eval()
    x = gaussian(4, 1, 8, 8)
    name = next(n for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    before = copy.deepcopy(model.state_dict())
    moved = scrambled(model, [name], x)
    torch.testing.assert_close(moved(x), model(x))
    assert sum(not torch.equal(m, p) for m, p in zip(moved.parameters(), model.parameters())) > 3
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_units_without_a_partner_come_last() -> None:
    b, x = seeded(lambda: MLP([3, 4, 2])), gaussian(6, 3, dtype=torch.float32)
    similarity = torch.eye(4)[[2, 0]]  # A has two units
    aligned = align_model(b, "0", match_units(similarity), x)
    assert torch.equal(aligned[0].weight, b[0].weight[[2, 0, 1, 3]])


def test_modes_and_gradients_survive_alignment() -> None:
    b, x = seeded(chain).train(), gaussian(4, 1, 8, 8, dtype=torch.float32)
    b[0].weight.requires_grad_(False)
    b[1].eval()
    aligned = align_model(b, "0", match_units(torch.eye(6)), x)
    assert aligned.training
    assert b.training
    assert not aligned[1].training
    assert not aligned[0].weight.requires_grad
    assert aligned[4].weight.requires_grad
    assert not b[1].num_batches_tracked


class Attends(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.norm(self.embed(x)))


@pytest.mark.parametrize(
    ("make", "layer", "similarity", "named"),
    [
        (lambda: MLP([4, 5, 2]), "2", torch.eye(2), "layer '2' has no units that are free.*'0'"),
        (lambda: MLP([4, 5, 2]), "1", torch.eye(5), "layer '1' has no units.*no linear layer"),
        (Attends, "embed", torch.eye(8), "layer 'embed' has no units that are free.*no layer"),
        (lambda: MLP([4, 5, 2]), "zero", torch.eye(5), "layer 'zero' not found"),
        (lambda: MLP([4, 5, 2]), "0", torch.eye(6), "over 6 units of B, but at layer '0' 5 are"),
        (lambda: MLP([4, 5, 2]), "0", torch.eye(4), "over 4 units of B, but at layer '0' 5 are"),
    ],
)
def test_bad_alignments(make, layer: str, similarity: Tensor, named: str) -> None:
    model = seeded(make)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=named):
        align_model(model, layer, match_units(similarity), torch.rand(3, 4))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_unit_cannot_be_in_two_places() -> None:
    semi = match_units(torch.ones(5, 5), "semi")
    assert isinstance(semi, Matching)
    with pytest.raises(ValueError, match="units of B more than once"):
        align_model(seeded(lambda: MLP([4, 5, 2])), "0", semi, torch.rand(3, 4))
