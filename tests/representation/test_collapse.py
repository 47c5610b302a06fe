"""Neural collapse: closed forms against hand values, gradients, training; metrics by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from paperworks.representation import (
    ETF,
    UnconstrainedFeatures,
    ce_etf_point,
    collapse_metrics,
    gof_matrices,
    gof_optimum,
    layerwise_collapse,
    minority_threshold,
    mse_bias_optimum,
    peeled_decay_loss,
)

DECAY = 5e-4


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def rotation(d: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(gaussian(d, d, seed=seed)).Q


# --- closed forms ---------------------------------------------------------------------------------


def test_one_layer_by_hand() -> None:
    gof = gof_optimum([9, 1], 0.01, 0.01)
    np.testing.assert_allclose(gof.sigma2, [2.9, 0.9])
    np.testing.assert_allclose(gof.feature_norms**2, [29 / 90, 0.9])
    np.testing.assert_allclose(gof.sigma2 / (gof.sigma2 + 0.1), [29 / 30, 0.9])
    erased = gof_optimum([9, 1], 0.11, 0.11)
    np.testing.assert_allclose(erased.sigma2, [1.9, 0], atol=1e-12)
    assert erased.b[1].item() == pytest.approx(1.21)
    assert erased.collapsed.tolist() == [False, True]


@pytest.mark.parametrize(
    ("depth", "sigma2"),
    [(1, [13.942, 9.8, 6.871, 6.871]), (3, [52.883, 31.322, 18.502, 18.502])],
)
def test_values_of_the_papers_counts(depth: int, sigma2: list[float]) -> None:
    gof = gof_optimum([200, 100, 50, 50], [DECAY] * depth, DECAY)
    np.testing.assert_allclose(gof.sigma2, sigma2, atol=6e-4)
    if depth == 3:
        assert gof.objective == pytest.approx(0.012218, abs=5e-7)


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (1, 0.0085206233),
        (2, 0.0078165011),
        (3, 0.0081759970),
        pytest.param(6, 0.0105063573, marks=pytest.mark.slow),
    ],
)
def test_training_free_features_ends_at_the_optimum(depth: int, expected: float) -> None:
    counts = [40, 20, 10, 10]
    gof = gof_optimum(counts, [DECAY] * depth, DECAY)
    assert gof.objective == pytest.approx(expected, abs=6e-11)
    model = UnconstrainedFeatures(counts, 32, depth, generator=seeded())
    model.fit()
    assert model.objective().item() == pytest.approx(gof.objective, rel=1e-8)


@pytest.mark.parametrize("decays", [[0.003], [0.004, 0.001], [0.002, 0.0005, 0.001]])
def test_the_matrices_are_a_balanced_stationary_point(decays: list[float]) -> None:
    counts, feature_decay = [30, 20, 7, 1], 0.0015
    gof = gof_optimum(counts, decays, feature_decay)
    weights, features = gof_matrices(gof, 6, seeded())
    model = UnconstrainedFeatures(
        counts,
        6,
        len(decays),
        weight_decays=decays,
        feature_decay=feature_decay,
        generator=seeded(),
    )
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), [features, *weights], strict=True):
            parameter.copy_(value)
    f = model.objective()
    f.backward()
    assert f.item() == pytest.approx(gof.objective, rel=1e-12)
    assert max(p.grad.abs().max().item() for p in model.parameters()) < 1e-10
    for m in range(len(decays) - 1):
        a, b = weights[m + 1], weights[m]
        torch.testing.assert_close(decays[m + 1] * a.T @ a, decays[m] * b @ b.T)
    w = weights[0]
    torch.testing.assert_close(decays[0] * w.T @ w, feature_decay * features.T @ features)
    for m, weight in enumerate(weights, start=1):
        singular = torch.linalg.svdvals(weight)[:4]
        torch.testing.assert_close(singular, gof.singular_values(m).sort(descending=True).values)


def test_the_largest_root_is_not_enough() -> None:
    """M=2, b=.55: the root .899 has φ = 1.047 > φ(0)."""
    decay = 0.275 ** (2 / 3)  # n = N = 1: b = 2 √(λ_H P) = 2 λ^(3/2)
    gof = gof_optimum([1], [decay] * 2, decay)
    assert gof.b.item() == pytest.approx(0.55)
    assert gof.collapsed.all()
    assert gof.objective == pytest.approx(0.5)


@settings(max_examples=25, deadline=None)
@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=5),
    depth=st.integers(1, 5),
    decay=st.floats(1e-6, 0.05),
)
def test_x_is_the_minimiser_of_phi(counts: list[int], depth: int, decay: float) -> None:
    gof = gof_optimum(counts, [decay] * depth, decay)
    grid = np.concatenate([[0], np.geomspace(1e-4, 1e4, 4000)])
    for b, x in zip(gof.b.tolist(), gof.x.tolist(), strict=True):
        best = (1 / (grid**depth + 1) + b * grid).min()
        assert 1 / (x**depth + 1) + b * x <= best + 1e-12


def test_a_narrow_layer_keeps_the_largest_classes() -> None:
    full, narrow = (gof_optimum([5, 40, 20], [DECAY] * 2, DECAY, width=w) for w in (None, 2))
    assert narrow.collapsed.tolist() == [True, False, False]
    torch.testing.assert_close(narrow.sigma2[1:], full.sigma2[1:])
    model = UnconstrainedFeatures([5, 40, 20], 2, 2, generator=seeded())
    model.fit()
    assert model.objective().item() == pytest.approx(narrow.objective, rel=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_balanced_classes_with_a_bias(depth: int) -> None:
    point = mse_bias_optimum(15, 4, [DECAY] * depth, DECAY)
    model = UnconstrainedFeatures([15] * 4, 8, depth, bias=True, generator=seeded())
    model.fit()
    assert model.objective().item() == pytest.approx(point.objective, rel=1e-8)
    logits = model().detach()[::15]
    expected = point.logit_scale * (torch.eye(4) - 0.25) + point.bias
    torch.testing.assert_close(logits, expected.double(), atol=1e-5, rtol=0)
    metrics = collapse_metrics(
        model.features.detach(),
        model.labels,
        torch.linalg.multi_dot([*model.weights][::-1]) if depth > 1 else model.weights[0],
    )
    assert max(metrics.values()) < 1e-4


def test_cross_entropy_by_hand() -> None:
    point = ce_etf_point(20, 4, 1e-3, 1e-3)
    assert point.logit_scale == pytest.approx(5.39638, abs=5e-6)
    assert point.objective == pytest.approx(0.0859073, abs=5e-8)
    assert ce_etf_point(20, 4, 0.1, 0.1).logit_scale == 0  # t = .447 > 1/4
    model = UnconstrainedFeatures(
        [20] * 4, 8, loss="ce", weight_decays=1e-3, feature_decay=1e-3, generator=seeded()
    )
    model.fit()
    assert model.objective().item() == pytest.approx(point.objective, rel=1e-8)


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_the_simplex_is_stationary_under_cross_entropy(depth: int) -> None:
    n, k, decay = 20, 4, 1e-3
    point = ce_etf_point(n, k, [decay] * depth, decay)
    model = UnconstrainedFeatures(
        [n] * k, k, depth, loss="ce", weight_decays=decay, feature_decay=decay, generator=seeded()
    )
    centre = (torch.eye(k) - 1 / k).double()
    s = (point.sigma2 ** (1 / (2 * depth))) * centre
    with torch.no_grad():
        for weight in model.weights:
            weight.copy_(s)
        model.features.copy_(point.logit_scale / point.sigma2**0.5 * centre[model.labels])
    f = model.objective()
    f.backward()
    assert f.item() == pytest.approx(point.objective, rel=1e-12)
    assert max(p.grad.abs().max().item() for p in model.parameters()) < 1e-12


def test_deep_cross_entropy_goes_below_the_simplex() -> None:
    """The brief's counterexample to the paper: K=4, n=20, M=3 has .03283 at rank 2."""
    point = ce_etf_point(20, 4, [1e-3] * 3, 1e-3)
    assert point.objective == pytest.approx(0.03628, abs=5e-6)
    model = UnconstrainedFeatures(
        [20] * 4,
        8,
        3,
        loss="ce",
        bias=True,
        weight_decays=1e-3,
        feature_decay=1e-3,
        generator=seeded(),
    )
    model.fit()
    assert model.objective().item() == pytest.approx(0.03283, abs=1e-5)
    product = torch.linalg.multi_dot([*model.weights][::-1])
    assert torch.linalg.matrix_rank(product, rtol=1e-3) == 2


@pytest.mark.parametrize(("depth", "decay"), [(1, 0.02), (2, 0.01), (3, 0.01)])
def test_minority_threshold(depth: int, decay: float) -> None:
    total = 200
    least = minority_threshold(total, [decay] * depth, decay)
    alive = gof_optimum([least, total - least], [decay] * depth, decay)
    lost = gof_optimum([least - 1, total - least + 1], [decay] * depth, decay)
    assert not alive.collapsed[0]
    assert lost.collapsed[0]


def test_sgd_as_the_paper_trains() -> None:
    model = UnconstrainedFeatures(
        [10, 5], 4, weight_decays=0.01, feature_decay=0.01, generator=seeded()
    )
    model.fit("sgd", steps=3000)
    expected = gof_optimum([10, 5], 0.01, 0.01).objective
    assert model.objective().item() == pytest.approx(expected, rel=1e-6)


# --- metrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "expected"), [(4, 0.51764), (10, 0.32036)])
def test_distance_of_the_two_frames(k: int, expected: float) -> None:
    eye = torch.eye(k)
    metrics = collapse_metrics(eye, torch.arange(k), eye, target="etf")
    assert metrics["nc2_w"] == pytest.approx(expected, abs=5e-6)
    assert metrics["nc2_h"] == pytest.approx(0, abs=1e-6)  # centring makes the one into the other
    centred = eye - 1 / k
    metrics = collapse_metrics(centred, torch.arange(k), centred, target="of")
    assert [metrics[name] for name in ("nc2_w", "nc2_h", "nc3")] == pytest.approx(
        [expected] * 3, abs=5e-6
    )


@pytest.mark.parametrize("depth", [1, 3])
def test_everything_is_zero_at_the_optimum_and_only_there(depth: int) -> None:
    counts = [30, 10, 4]
    gof = gof_optimum(counts, [0.001] * depth, 0.002)
    weights, features = gof_matrices(gof, 5, seeded())
    product = torch.linalg.multi_dot([*weights][::-1]) if depth > 1 else weights[0]
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    at = {
        name: collapse_metrics(features, labels, product, target)
        for name, target in {"gof": gof, "of": "of", "etf": "etf"}.items()
    }
    assert max(at["gof"].values()) < 1e-7
    for other in ("of", "etf"):
        assert min(at[other][name] for name in ("nc2_w", "nc2_h", "nc3", "nc3_w")) > 0.005
    as_matrix = collapse_metrics(features, labels, product, gof.sigma2.diag())
    assert as_matrix["nc2_w"] < 1e-7


def test_constant_features_per_class_have_no_spread() -> None:
    labels = torch.arange(12) % 3
    features = gaussian(3, 6)[labels]
    assert collapse_metrics(features, labels, gaussian(3, 6, seed=1))["nc1"] < 1e-20


def test_nc1_is_the_trace_formula() -> None:
    features, labels, w = gaussian(60, 5) + 1, torch.arange(60) ** 2 % 7 % 4, gaussian(4, 5, seed=1)
    labels = labels % 4
    k = int(labels.max()) + 1
    means = torch.stack([features[labels == c].mean(0) for c in range(k)])
    within = (features - means[labels]).T @ (features - means[labels]) / 60
    centred = means - features.mean(0)
    between = centred.T @ centred / k
    expected = torch.trace(within @ torch.linalg.pinv(between, rtol=1e-6, hermitian=True)) / k
    assert collapse_metrics(features, labels, w[:k])["nc1"] == pytest.approx(expected.item())


def test_metrics_do_not_depend_on_the_orientation() -> None:
    features, labels, w = gaussian(40, 6), torch.arange(40) % 4, gaussian(4, 6, seed=1)
    q = rotation(6, seed=2)
    gof = gof_optimum([10] * 4, DECAY, DECAY)
    for target in ("etf", "of", gof):
        before = collapse_metrics(features, labels, w, target)
        after = collapse_metrics(features @ q, labels, w @ q, target)
        assert after == pytest.approx(before, rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_and_large_means(dtype: torch.dtype) -> None:
    features, labels, w = gaussian(40, 6), torch.arange(40) % 4, gaussian(4, 6, seed=1)
    features, w = (features + 100).to(dtype), w.to(dtype)
    expected = collapse_metrics(features.double(), labels, w.double())
    assert collapse_metrics(features, labels, w) == pytest.approx(expected, rel=1e-9)


def test_dead_features_and_heads_give_no_nan() -> None:
    labels = torch.arange(9) % 3
    dead = collapse_metrics(torch.zeros(9, 4), labels, torch.zeros(3, 4))
    assert dead["nc1"] == 0
    assert [dead[name] for name in ("nc2_w", "nc2_h", "nc3", "nc3_w")] == pytest.approx(
        [1, 1, 1, 0]
    )
    same_means = torch.tensor([[1.0], [-1.0]]).repeat(6, 1)
    spread = collapse_metrics(same_means, torch.arange(3).repeat_interleave(4), torch.ones(3, 1))
    assert spread["nc1"] == math.inf


def test_a_class_with_one_sample() -> None:
    features, labels = gaussian(7, 3), torch.tensor([0, 0, 0, 1, 1, 1, 2])
    assert all(map(math.isfinite, collapse_metrics(features, labels, gaussian(3, 3)).values()))


# --- networks -------------------------------------------------------------------------------------


class Network(nn.Module):
    """A tuple-returning body and a linear head of two layers."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.first, self.between, self.last = nn.Linear(8, 6), between, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        h = self.first(self.body(x))
        return self.last(self.between(h) if self.between else h), None


def test_layers_of_a_head_streamed_equal_those_in_memory() -> None:
    torch.manual_seed(0)
    model = Network().double().train()
    x, y = gaussian(50, 5), torch.arange(50) % 3
    gof = gof_optimum([17, 17, 16], [DECAY] * 2, DECAY)
    loader = list(zip(x.split(8), y.split(8), strict=True))
    for target in ("etf", gof):
        layers = layerwise_collapse(model, ["first", "last"], loader, target)
        assert list(layers) == ["first", "last"]
        assert model.training
        assert model.body[3].training
        model.eval()
        with torch.no_grad():
            h = model.body(x)
            product = model.last.weight @ model.first.weight
            first = collapse_metrics(h, y, product, target)
            last = collapse_metrics(model.first(h), y, model.last.weight)
        model.train()
        assert layers["first"] == pytest.approx(first, rel=1e-9)
        if target == "etf":
            assert layers["last"] == pytest.approx(last, rel=1e-9)


def test_every_layer_of_an_optimal_head_is_at_its_own_target() -> None:
    counts, decays = [12, 6, 3], [0.001, 0.003, 0.002]
    gof = gof_optimum(counts, decays, 0.002)
    weights, features = gof_matrices(gof, 4, seeded())
    model = nn.Sequential(*(nn.Linear(4, len(w), bias=False) for w in weights)).double()
    with torch.no_grad():
        for layer, weight in zip(model, weights, strict=True):
            layer.weight.copy_(weight)
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    layers = layerwise_collapse(model, ["0", "1", "2"], [(features, labels)], gof)
    assert all(max(metrics.values()) < 1e-7 for metrics in layers.values())
    wrong = gof_optimum(counts[::-1], decays, 0.002)
    worse = layerwise_collapse(model, ["0", "1", "2"], [(features, labels)], wrong)
    assert all(metrics["nc2_w"] > 0.1 for metrics in worse.values())


def test_the_loss_of_a_network_is_that_of_free_features() -> None:
    counts, decays = [4, 2], [0.1, 0.2]
    model = UnconstrainedFeatures(
        counts, 3, 2, weight_decays=decays, feature_decay=0.3, generator=seeded()
    )
    h, (w1, w2) = model.features, model.weights
    y = F.one_hot(model.labels, 2)
    expected = ((h @ w1.T @ w2.T - y) ** 2).sum() / 12 + 0.05 * (w1**2).sum()
    expected = expected + 0.1 * (w2**2).sum() + 0.15 * (h**2).sum()
    torch.testing.assert_close(model.objective(), expected)
    halves = [
        peeled_decay_loss(
            model()[part], model.labels[part], h[part], [w1, w2], decays, 0.3, num_samples=6
        )
        for part in (slice(0, 6, 2), slice(1, 6, 2))
    ]
    torch.testing.assert_close(sum(halves) / 2, expected)  # batches average to the full objective


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gof_optimum([3, 0], 0.1, 0.1), "counts must be positive integers"),
        (lambda: gof_optimum([], 0.1, 0.1), "counts must be positive integers"),
        (lambda: gof_optimum([3], [0.1, 0.0], 0.1), "weight_decays must be positive"),
        (lambda: gof_optimum([3], [], 0.1), "weight_decays must be positive"),
        (lambda: gof_optimum([3], 0.1, -1.0), "feature_decay must be a positive"),
        (lambda: gof_optimum([3], 0.1, 0.1, width=0), "width must be a positive"),
        (lambda: mse_bias_optimum(3, 1, 0.1, 0.1), "num_classes must be at least 2"),
        (lambda: ce_etf_point(0, 3, 0.1, 0.1), "n must be a positive"),
        (lambda: minority_threshold(0, 0.1, 0.1), "total must be a positive"),
        (lambda: gof_matrices(gof_optimum([1, 1], 0.1, 0.1), 1, seeded()), "number of classes 2"),
        (lambda: gof_optimum([3], 0.1, 0.1).singular_values(2), r"layer must be in 1\.\.1"),
        (lambda: UnconstrainedFeatures([2], 2, loss="l1", generator=seeded()), "loss must be one"),
        (lambda: UnconstrainedFeatures([2, 0], 2, generator=seeded()), "counts, d and depth"),
        (
            lambda: UnconstrainedFeatures([2], 2, 3, weight_decays=[1, 1], generator=seeded()),
            "weight_decays must be 3, one a layer, got 2",
        ),
        (
            lambda: UnconstrainedFeatures([2], 2, generator=seeded()).fit("newton"),
            "method must be 'lbfgs' or 'sgd', got 'newton'",
        ),
    ],
)
def test_bad_numbers(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("features", "labels", "weight", "target", "message"),
    [
        (gaussian(4, 2), torch.tensor([0, 1, 1, 0]), gaussian(3, 2), "etf", "class 2 has no"),
        (gaussian(4, 2), torch.tensor([0, 1, 2, 0]), gaussian(2, 2), "etf", r"labels must be in 0"),
        (gaussian(4, 2), torch.tensor([0, 1]), gaussian(2, 2), "etf", r"shape \(4,\), got \(2,\)"),
        (gaussian(4, 2), torch.tensor([0, 1, 1, 0]), gaussian(2, 3), "etf", "columns as features"),
        (gaussian(4, 2), torch.tensor([0, 1, 1, 0]), gaussian(2, 2), "simplex", "target must be"),
        (gaussian(4, 2), torch.tensor([0, 1, 1, 0]), gaussian(2, 2), gaussian(3, 3), r"\(2, 2\)"),
        (
            gaussian(4, 2),
            torch.tensor([0, 1, 1, 0]),
            gaussian(2, 2),
            gof_optimum([1, 1, 1], 0.1, 0.1),
            "of 3 classes",
        ),
        (gaussian(4, 2, 2), torch.tensor([0, 1, 1, 0]), gaussian(2, 2), "etf", "must be a matrix"),
    ],
)
def test_bad_metrics(features, labels, weight, target, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collapse_metrics(features, labels, weight, target)


def test_bad_types() -> None:
    with pytest.raises(TypeError, match=r"features must be floating-point, got torch\.int64"):
        collapse_metrics(torch.ones(2, 2).long(), torch.arange(2), torch.eye(2))
    with pytest.raises(TypeError, match="labels must be integers"):
        collapse_metrics(torch.eye(2), torch.ones(2), torch.eye(2))


def test_bad_heads() -> None:
    torch.manual_seed(0)
    batch = (torch.rand(6, 5), torch.arange(6) % 3)
    with pytest.raises(ValueError, match="something stands between head layers 'first' and 'last'"):
        layerwise_collapse(Network(nn.ReLU()), ["first", "last"], [batch])
    with pytest.raises(ValueError, match=r"head layer 'body' must be nn\.Linear, got Sequential"):
        layerwise_collapse(Network(), ["body"], [batch])
    with pytest.raises(ValueError, match="head layer 'lst' not found: did you mean last"):
        layerwise_collapse(Network(), ["lst"], [batch])
    with pytest.raises(ValueError, match="at least one layer"):
        layerwise_collapse(Network(), [], [batch])
    with pytest.raises(ValueError, match="loader is empty"):
        layerwise_collapse(Network(), ["last"], [])
    with pytest.raises(ValueError, match="1 layers, head_layers are 2"):
        layerwise_collapse(
            Network(), ["first", "last"], [batch], gof_optimum([2, 2, 2], DECAY, DECAY)
        )
    with pytest.raises(ValueError, match="class 2 has no samples"):
        layerwise_collapse(Network(), ["last"], [(batch[0][:2], batch[1][:2])])
    used_up = iter([batch, batch, batch])
    with pytest.raises(ValueError, match="cannot be iterated twice"):
        layerwise_collapse(Network(), ["last"], used_up)


def test_an_erased_etf_has_no_lengths() -> None:
    assert ce_etf_point(20, 4, 0.1, 0.1).sigma2 == 0
    assert isinstance(mse_bias_optimum(2, 2, 0.1, 0.1), ETF)
