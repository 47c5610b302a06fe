"""CKA, RSA and Procrustes distance: hand-computed values, invariances, slow plain versions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr, spearmanr
from sklearn.cross_decomposition import CCA
from torch import Tensor, nn

from paperworks.representation import (
    MinibatchCKA,
    cka,
    procrustes_distance,
    pwcca,
    rsa,
    svcca,
)


def debiased_cka(x: Tensor, y: Tensor) -> Tensor:
    return cka(x, y, debiased=True)


def euclidean_rsa(x: Tensor, y: Tensor) -> Tensor:
    return rsa(x, y, dissimilarity="euclidean")


def pearson_rsa(x: Tensor, y: Tensor) -> Tensor:
    return rsa(x, y, dissimilarity="euclidean", comparison="pearson")


MEASURES: list[Callable[[Tensor, Tensor], Tensor]] = [
    cka,
    debiased_cka,
    rsa,
    euclidean_rsa,
    procrustes_distance,
]

CORRELATIONS: list[Callable[[Tensor, Tensor], Tensor]] = [svcca, pwcca]
"""Of canonical variables: blind to more than the others."""


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


def test_cka_by_hand() -> None:
    x, y = torch.tensor([[0.0], [1], [2]]), torch.tensor([[0.0], [1], [4]])
    assert cka(x, y).item() == pytest.approx(12 / 13)


def test_cka_is_the_squared_correlation_of_single_features() -> None:
    x, y = gaussian(50, 1), gaussian(50, 1, seed=1)
    expected = np.corrcoef(x[:, 0], y[:, 0])[0, 1] ** 2
    assert cka(x, y).item() == pytest.approx(expected)


def test_debiased_cka_equals_the_sums_over_the_hollow_gram_matrices() -> None:
    def hsic(k: Tensor, l: Tensor) -> Tensor:
        n, one = len(k), torch.ones(len(k), dtype=k.dtype)
        k, l = k - k.diag().diag(), l - l.diag().diag()
        middle = (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (k * l).sum() + middle - 2 / (n - 2) * (one @ k @ l @ one)

    x, y = gaussian(9, 4) + 3, gaussian(9, 30, seed=1)
    k, l = x @ x.T, y @ y.T
    expected = hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()
    torch.testing.assert_close(cka(x, y, debiased=True), expected)


@pytest.mark.parametrize(("d", "expected"), [(256, 0.5), (1024, 0.8)])
def test_bias_of_cka_on_independent_gaussians(d: int, expected: float) -> None:
    x, y = gaussian(256, d, dtype=torch.float32), gaussian(256, d, seed=1, dtype=torch.float32)
    assert cka(x, y).item() == pytest.approx(expected, abs=0.01)
    assert cka(x, y, debiased=True).item() == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize("widths", [(3, 5), (40, 3), (40, 60)])
def test_cka_does_not_depend_on_which_product_is_formed(widths: tuple[int, int]) -> None:
    x, y = gaussian(12, widths[0]), gaussian(12, widths[1], seed=1)
    centring = torch.eye(12, dtype=x.dtype) - 1 / 12
    k, l = (centring @ z @ z.T @ centring for z in (x, y))
    torch.testing.assert_close(cka(x, y), (k * l).sum() / (k.norm() * l.norm()))


@pytest.mark.parametrize("measure", MEASURES)
def test_a_representation_is_like_itself_shifted_rotated_and_scaled(measure) -> None:
    x = gaussian(20, 6)
    best = 0.0 if measure is procrustes_distance else 1.0
    moved = 3 * x @ rotation(6)
    if measure is not rsa:  # the correlation distance of two inputs sees shifts and rotations
        moved = moved + torch.arange(6)
        assert measure(x, moved).item() == pytest.approx(best, abs=1e-9)
    else:
        assert rsa(x, 3 * x + 1).item() == pytest.approx(best)
    assert measure(x, x * torch.arange(1.0, 7)).item() != pytest.approx(best, abs=1e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(4, 12), p=st.integers(1, 15), q=st.integers(1, 15))
def test_invariances(seed: int, n: int, p: int, q: int) -> None:
    x, y = gaussian(n, p, seed=seed), gaussian(n, q, seed=seed + 1)
    moved = 0.1 * y @ rotation(q, seed) - 5
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    for measure in (cka, debiased_cka, procrustes_distance, pearson_rsa):
        value = measure(x, y)
        torch.testing.assert_close(measure(x, moved), value, atol=1e-8, rtol=0)
        torch.testing.assert_close(measure(y, x), value, atol=1e-8, rtol=0)
        torch.testing.assert_close(measure(x[order], y[order]), value, atol=1e-8, rtol=0)


@pytest.mark.parametrize("measure", [*MEASURES, *CORRELATIONS])
def test_dimensions_after_the_first_are_features(measure) -> None:
    x, y = gaussian(8, 2, 3, 4), gaussian(8, 5, seed=1)
    assert measure(x, y) == measure(x.flatten(1), y)


@pytest.mark.parametrize("sizes", [[64] * 8, [128, 256, 96, 32]])
def test_minibatch_cka_tends_to_that_of_all_samples(sizes: list[int]) -> None:
    x, y = gaussian(512, 10), gaussian(512, 4, seed=1)
    y = y + x[:, :4]
    accumulator = MinibatchCKA()
    for a, b in zip(x.split(sizes), y.split(sizes), strict=True):
        accumulator.update(a, b)
    assert accumulator.compute().item() == pytest.approx(debiased_cka(x, y).item(), abs=0.02)
    assert cka(x[:8], y[:8]) > debiased_cka(x, y) + 0.1  # what a small biased batch would say


def test_minibatch_cka_of_one_batch_is_debiased_cka() -> None:
    x, y = gaussian(16, 3), gaussian(16, 5, seed=1)
    torch.testing.assert_close(MinibatchCKA().update(x, y).compute(), debiased_cka(x, y))


def test_minibatch_cka_averages_the_unbiased_terms_not_their_ratios() -> None:
    first, second = (gaussian(6, 3), gaussian(6, 3, seed=1)), (gaussian(9, 3) * 2, gaussian(9, 3))
    accumulator = MinibatchCKA().update(*first).update(*second)
    ratios = (debiased_cka(*first) + debiased_cka(*second)) / 2
    assert abs(accumulator.compute() - ratios) > 1e-3
    reordered = MinibatchCKA().update(*second).update(*first)
    torch.testing.assert_close(reordered.compute(), accumulator.compute())


def test_minibatch_cka_keeps_no_graph() -> None:
    x = gaussian(8, 3).requires_grad_()
    assert not MinibatchCKA().update(x, x).compute().requires_grad


def test_minibatch_cka_of_nothing() -> None:
    with pytest.raises(ValueError, match="at least one update"):
        MinibatchCKA().compute()


@pytest.mark.parametrize("dissimilarity", ["correlation", "cosine", "euclidean"])
def test_rsa_equals_scipy(dissimilarity) -> None:
    x, y = gaussian(12, 5) + 1, gaussian(12, 7, seed=1) + 1
    a, b = pdist(x.numpy(), dissimilarity), pdist(y.numpy(), dissimilarity)
    assert rsa(x, y, dissimilarity).item() == pytest.approx(spearmanr(a, b).statistic)
    assert rsa(x, y, dissimilarity, "pearson").item() == pytest.approx(pearsonr(a, b).statistic)


def test_rsa_shares_ranks_among_ties() -> None:
    x, y = torch.tensor([[0.0], [1], [2], [4]]), torch.tensor([[0.0], [1], [3], [1]])
    a, b = pdist(x.numpy()), pdist(y.numpy())
    expected = spearmanr(a, b).statistic
    assert rsa(x, y, dissimilarity="euclidean").item() == pytest.approx(expected)


def test_procrustes_distance_is_the_residual_of_the_best_rotation() -> None:
    x, y = gaussian(15, 4), gaussian(15, 4, seed=1)
    a, b = ((z - z.mean(0)) / (z - z.mean(0)).norm() for z in (x, y))
    u, _, vh = torch.linalg.svd(b.T @ a)
    expected = (a - b @ (u @ vh)).square().sum()
    torch.testing.assert_close(procrustes_distance(x, y), expected)
    wide = torch.nn.functional.pad(y, (0, 40)) @ rotation(44)
    torch.testing.assert_close(procrustes_distance(x, wide), expected)


def test_root_of_the_procrustes_distance_keeps_the_triangle_inequality() -> None:
    for seed in range(0, 60, 3):
        x, y, z = (gaussian(6, 3, seed=seed + i) for i in range(3))
        direct = procrustes_distance(x, z).sqrt()
        assert direct <= procrustes_distance(x, y).sqrt() + procrustes_distance(y, z).sqrt()


@pytest.mark.parametrize("measure", [cka, debiased_cka, pearson_rsa, procrustes_distance])
def test_gradients(measure) -> None:
    x, y = gaussian(6, 3).requires_grad_(), gaussian(6, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(measure, (x, y))


@pytest.mark.parametrize("measure", [cka, debiased_cka])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_a_dead_layer_gives_zero_and_a_finite_gradient(measure, value: float) -> None:
    x = torch.full((8, 3), value, requires_grad=True)
    similarity = measure(x, gaussian(8, 3, dtype=torch.float32))
    similarity.backward()
    assert similarity == 0
    assert x.grad.isfinite().all()


def test_what_does_not_vary_is_at_no_correlation_and_the_largest_distance() -> None:
    constant = torch.ones(5, 2)
    assert rsa(constant, torch.rand(5, 2)) == 0
    assert procrustes_distance(constant, torch.rand(5, 2)) == 2


@pytest.mark.parametrize("measure", [*MEASURES, *CORRELATIONS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(measure, dtype: torch.dtype) -> None:
    x, y = gaussian(10, 6).to(dtype), gaussian(10, 4, seed=1).to(dtype)
    value = measure(x, y)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(value.double(), measure(x.double(), y.double()), atol=1e-5, rtol=0)


def test_cka_in_half_precision_does_not_overflow() -> None:
    x = 100 * gaussian(64, 512).half()
    assert cka(x, x).item() == pytest.approx(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = nn.Linear(512, 512)(x.float())
        torch.testing.assert_close(cka(half, x), cka(half.float(), x.float()))


def test_scale_of_the_activations_does_not_overflow_float32() -> None:
    x, y = gaussian(32, 8, dtype=torch.float32), gaussian(32, 8, seed=1, dtype=torch.float32)
    torch.testing.assert_close(cka(1e12 * x, 1e-12 * y), cka(x, y))


@pytest.mark.parametrize("measure", [*MEASURES, *CORRELATIONS])
def test_bad_input(measure) -> None:
    with pytest.raises(ValueError, match="same number of samples, got 5 and 6"):
        measure(torch.rand(5, 2), torch.rand(6, 2))
    with pytest.raises(ValueError, match=r"at least \d samples, got 1"):
        measure(torch.rand(1, 2), torch.rand(1, 2))
    with pytest.raises(TypeError, match=r"y must be a floating-point tensor .* got torch\.int64"):
        measure(torch.rand(3, 2), torch.arange(3))
    with pytest.raises(TypeError, match=r"x must be a floating-point tensor .* got list"):
        measure([[1.0]], torch.rand(3, 2))


def test_how_many_samples_are_needed() -> None:
    x = torch.rand(3, 2)
    cka(x, x)
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        cka(x, x, debiased=True)
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        MinibatchCKA().update(x, x)
    with pytest.raises(ValueError, match="at least 3 samples, got 2"):
        rsa(x[:2], x[:2])


def test_unknown_names() -> None:
    x = torch.rand(4, 2)
    with pytest.raises(ValueError, match=r"dissimilarity must be one of .* got 'l1'"):
        rsa(x, x, dissimilarity="l1")
    with pytest.raises(ValueError, match=r"comparison must be .* got 'kendall'"):
        rsa(x, x, comparison="kendall")


@pytest.mark.parametrize("measure", CORRELATIONS)
def test_canonical_correlations_forgive_invertible_maps(measure) -> None:
    x = gaussian(60, 5)
    mixed = x @ (gaussian(5, 5, seed=1) + 3 * torch.eye(5)) + 7
    assert measure(x, mixed, 1.0).item() == pytest.approx(1)
    assert measure(x, gaussian(60, 5, seed=2), 1.0).item() < 0.5


def test_canonical_correlations_are_those_of_scikit_learn() -> None:
    x, y = gaussian(40, 3), gaussian(40, 4, seed=1)
    y[:, :2] += x[:, :2]
    model = CCA(n_components=3, scale=False, max_iter=10_000, tol=1e-10)
    variables = model.fit_transform(x.numpy(), y.numpy())
    rho = [np.corrcoef(a, b)[0, 1] for a, b in zip(variables[0].T, variables[1].T, strict=True)]
    assert svcca(x, y, 1.0).item() == pytest.approx(np.mean(rho), abs=1e-6)
    h = variables[0] / np.linalg.norm(variables[0], axis=0)
    alpha = np.abs(h.T @ (x - x.mean(0)).numpy()).sum(1)
    assert pwcca(x, y).item() == pytest.approx((alpha * rho).sum() / alpha.sum(), abs=1e-5)


def test_svcca_leaves_out_directions_of_little_variance() -> None:
    shared, own, other = gaussian(200, 1), gaussian(200, 1, seed=1), gaussian(200, 1, seed=2)
    x, y = torch.cat([shared, 0.01 * own], 1), torch.cat([shared, 0.01 * other], 1)
    assert svcca(x, y).item() == pytest.approx(1, abs=1e-3)
    assert svcca(x, y, 1.0).item() < 0.6
    assert pwcca(x, y).item() > 0.97


@pytest.mark.parametrize("measure", CORRELATIONS)
def test_canonical_correlations_of_what_does_not_vary(measure) -> None:
    assert measure(torch.ones(5, 2), torch.rand(5, 2)) == 0
    dead = torch.cat([gaussian(30, 2), torch.zeros(30, 1)], 1)
    assert measure(dead, dead).item() == pytest.approx(1)
    with pytest.raises(ValueError, match=r"variance must be in \(0, 1\], got 0"):
        measure(dead, dead, 0)
