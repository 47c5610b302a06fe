"""The brief's checks, the kernel against a recursion written out, theory, estimators, networks."""

import contextlib
import copy
import math
import pickle
import warnings
from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_diabetes, load_digits, load_wine
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator

from paperworks import data
from paperworks.wide import (
    HierarchicalKernel,
    HierarchicalKernelClassifier,
    HierarchicalKernelRegressor,
    LocallyConnectedNet,
    cnn_ntk_kernel,
    effective_dimension,
    empirical_ntk,
    gram_spectrum,
    kernel_spectrum_torus,
    learning_curve_exponent,
    locality_profile,
    ntk_kernel,
    predicted_exponent,
    quadtree_order,
    sample_patches_on_spheres,
    widecnn,
)

KINDS = ["ntk", "rf"]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(n, d, seed=0, dtype=torch.float64):
    return torch.randn(n, d, generator=seeded(seed), dtype=dtype)


def circles(n, d=8, seed=0):
    return sample_patches_on_spheres(n, d, 2, generator=seeded(seed))


def recursion(X, Y, sizes, kind):
    """The brief's recursion, pair by pair and layer by layer, on whole arrays of positions."""
    x, y = (Z.reshape(len(Z), -1, sizes[0]) for Z in (X.numpy(), Y.numpy()))
    C = T = np.einsum("npi,mpi->pnm", x, y)
    u, v = (np.square(z).sum(-1).T for z in (x, y))
    for size in [*sizes[1:], None]:
        scale = np.sqrt(u[:, :, None] * v[:, None])
        t = np.clip(np.divide(C, scale, out=np.zeros_like(C), where=scale > 0), -1, 1)
        k0 = (np.pi - np.arccos(t)) / np.pi
        k1 = (np.sqrt(1 - t**2) + (np.pi - np.arccos(t)) * t) / np.pi
        groups = len(C) // (size or len(C))

        def mean(values, groups=groups):
            return values.reshape(groups, -1, *values.shape[1:]).mean(1)

        C, T = mean(scale * k1), mean(k0 * T) + mean(scale * k1)
        u, v = mean(u), mean(v)
    return torch.from_numpy((T if kind == "ntk" else C)[0])


# The brief's checks

X1 = torch.tensor([[1.0, 0, 1, 0, 1, 0, 1, 0]], dtype=torch.float64)
Y1 = torch.tensor([[0.0, 1, 1, 0, 1, 0, -1, 0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("sizes", "ntk", "rf"),
    [
        ((2,), 1.0795775, 0.5795775),
        ((2, 2), 1.4203699, 0.6644749),
        ((2, 2, 2), 1.7626165, 0.7238365),
    ],
)
def test_check_1_one_pair(sizes, ntk, rf):
    assert HierarchicalKernel(sizes)(X1, Y1).item() == pytest.approx(ntk, abs=1e-7)
    assert HierarchicalKernel(sizes, "rf")(X1, Y1).item() == pytest.approx(rf, abs=1e-7)
    assert HierarchicalKernel(sizes)(X1).item() == pytest.approx(len(sizes) + 1)
    assert HierarchicalKernel(sizes, "rf")(X1).item() == pytest.approx(1)


def test_check_2_circle():
    ntk, rf = (kernel_spectrum_torus(HierarchicalKernel((2,), kind), 4096) for kind in KINDS)
    assert ntk[:5].tolist() == pytest.approx([0.607927, 0.5, 0.157611, 0, 0.017112], abs=1e-6)
    assert rf[:5].tolist() == pytest.approx([0.405285, 0.25, 0.045032, 0, 0.001801], abs=1e-6)
    k = torch.arange(30, 70, 2)
    torch.testing.assert_close(k**2 * ntk[k], torch.full((20,), 0.203).double(), rtol=0.01, atol=0)
    torch.testing.assert_close(k**4 * rf[k], torch.full((20,), 0.4053).double(), rtol=0.01, atol=0)
    assert ntk[3:50:2].abs().max() < 1e-12  # parity


def test_check_3_torus():
    spectrum = kernel_spectrum_torus(HierarchicalKernel((2, 2)), 2048)
    found = [spectrum[k].item() for k in [(0, 0), (1, 0), (1, 1), (2, 0)]]
    assert found == pytest.approx([1.00016, 0.279593, 0.034818, 0.088460], abs=5e-6)
    assert 32**2 * spectrum[32, 0].item() == pytest.approx(0.0705, abs=1e-4)
    assert 64**3 * spectrum[64, 64].item() == pytest.approx(0.02521, abs=5e-5)
    assert 128**3 * spectrum[128, 128].item() == pytest.approx(0.02521, rel=0.05)
    torch.testing.assert_close(spectrum, spectrum.mT)


@pytest.mark.parametrize("kind", KINDS)
def test_check_4_permutations_inside_a_group_change_nothing(kind):
    kernel = HierarchicalKernel((2, 2, 2), kind)
    x, y = circles(5, seed=1), circles(4, seed=2)

    def swapped(rows, first, second):
        patches = rows.unflatten(1, (4, 2)).clone()
        patches[:, [first, second]] = patches[:, [second, first]]
        return patches.flatten(1)

    inside, across = (kernel(swapped(x, 0, j), swapped(y, 0, j)) for j in (1, 2))
    torch.testing.assert_close(inside, kernel(x, y))
    assert (across - kernel(x, y)).abs().max() > 1e-3


@pytest.mark.parametrize("normalize", [False, True])
def test_check_5_one_filter_is_fully_connected(normalize):
    x, y = normal(6, 5), normal(4, 5, 1)
    expected = ntk_kernel(x, y, activation="relu", depth=1, C_W=2.0) * 5 / 2
    if normalize:
        expected /= x.norm(dim=1)[:, None] * y.norm(dim=1)
    found = HierarchicalKernel((5,), normalize=normalize)(x, y)
    torch.testing.assert_close(found, expected)


def mean_ntk(width, sizes, X, draws=16, **options):
    generator = seeded(3)
    return torch.stack(
        [
            empirical_ntk(
                LocallyConnectedNet(X.shape[1], width, sizes, generator=generator, **options), X
            )
            for _ in range(draws)
        ]
    ).mean(0)


def distance(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("sizes", [(2,), (4,)])
def test_check_6_ntk_of_a_wide_network(sizes):
    X = normal(4, 4, dtype=torch.float32)
    found = mean_ntk(4096, sizes, X)
    assert distance(found, HierarchicalKernel(sizes)(X)) < 0.05
    assert distance(found, HierarchicalKernel((2, 2))(X)) > 0.1


@pytest.mark.slow
def test_check_6_at_two_layers():
    X = normal(3, 4, dtype=torch.float32)
    found = mean_ntk(4096, (2, 2), X)
    assert distance(found, HierarchicalKernel((2, 2))(X)) < 0.05


@pytest.mark.parametrize("shared", [False, True])
def test_networks_tend_to_the_kernel_of_three_layers(shared):
    """Width 128: what is left of the deviation falls like 1/width."""
    X = normal(3, 8, dtype=torch.float32)
    found = mean_ntk(128, (2, 2, 2), X, shared=shared)
    assert distance(found, HierarchicalKernel((2, 2, 2))(X)) < 0.08
    assert distance(found, HierarchicalKernel((2, 2))(X)) > 0.15


def test_outputs_of_networks_have_the_other_kernel():
    X = normal(3, 8, dtype=torch.float32)
    net = LocallyConnectedNet(8, 256, (2, 4), out_features=2000, generator=seeded())
    with torch.no_grad():
        outputs = net(X)
    assert distance(outputs @ outputs.mT / 2000, HierarchicalKernel((2, 4), "rf")(X)) < 0.15


@pytest.mark.parametrize("kind", KINDS)
def test_check_7_homogeneity_and_blank_patches(kind):
    kernel = HierarchicalKernel((2, 2), kind)
    x, y = normal(4, 8), normal(3, 8, 1)
    for c in (1e-6, 3.0, 1e6):
        torch.testing.assert_close(kernel(c * x, y), c * kernel(x, y))
    x[0, 2:4] = y[1, 2:4] = y[2] = 0
    unit = torch.nn.functional.normalize(x.unflatten(1, (4, 2)), dim=-1).flatten(1)
    unit_y = torch.nn.functional.normalize(y.unflatten(1, (4, 2)), dim=-1).flatten(1)
    expected = {False: (x, y), True: (unit, unit_y)}
    for normalize, pair in expected.items():
        K = HierarchicalKernel((2, 2), kind, normalize)(x, y)
        assert K[:, 2].abs().max() < 1e-100
        torch.testing.assert_close(K, recursion(*pair, (2, 2), kind))


@pytest.mark.parametrize(
    ("student", "teacher", "beta"),
    [
        ((2, 2, 2), (2,), 0.625),
        ((2, 2, 2), (2, 2), 5 / 12),
        ((2, 2, 2), (2, 2, 2), 0.25),
        ((2, 2), (2,), 0.75),
        ((2, 2), (2, 2), 0.5),
    ],
)
def test_check_8_predicted_exponents(student, teacher, beta):
    assert predicted_exponent(student, teacher) == pytest.approx(beta)


# The kernel


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(3,), (2, 3), (3, 2, 2), (12,), (1, 4), (4, 1, 3)])
def test_kernel_is_the_recursion(sizes, kind):
    x, y = normal(5, 24), normal(7, 24, 1)
    kernel = HierarchicalKernel(sizes, kind)
    torch.testing.assert_close(kernel(x, y), recursion(x, y, sizes, kind))
    torch.testing.assert_close(kernel(x), recursion(x, x, sizes, kind), atol=2e-7, rtol=0)
    torch.testing.assert_close(kernel.diag(x), kernel(x).diagonal())


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    blocks=st.integers(1, 3),
    kind=st.sampled_from(KINDS),
    normalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_kernels_are_symmetric_and_positive(sizes, blocks, kind, normalize, seed):
    x = normal(6, blocks * math.prod(sizes), seed)
    kernel = HierarchicalKernel(sizes, kind, normalize)
    K = kernel(x)
    torch.testing.assert_close(K, kernel(x, x), atol=1e-6, rtol=0)
    torch.testing.assert_close(K.diagonal(), kernel.diag(x))
    assert torch.linalg.eigvalsh(K).min() > -1e-9 * K.trace()


def test_layers_add_structure_over_one_block():
    """[2,2] on 8 entries is the mean over two blocks of four."""
    x, y = circles(5), circles(4, seed=1)
    kernel = HierarchicalKernel((2, 2))
    halves = (kernel(x[:, :4], y[:, :4]) + kernel(x[:, 4:], y[:, 4:])) / 2
    torch.testing.assert_close(kernel(x, y), halves)


def test_pictures_are_the_two_dimensional_network():
    """Blocks in contiguous order are filters of 2 × 2 with stride 2, with channels."""
    pictures = torch.randn(5, 3, 8, 8, generator=seeded(), dtype=torch.float64)
    options = {"strides": 2, "padding": "valid", "activation": "relu", "C_W": 2.0}
    expected = cnn_ntk_kernel(pictures, filter_sizes=[2, 2], **options) * 12 / 2
    kernel = HierarchicalKernel((12, 4), order=quadtree_order(8, 8, channels=3))
    torch.testing.assert_close(kernel(pictures.flatten(1)), expected)


def test_quadtree_order():
    order = quadtree_order(6, 6)
    assert sorted(order) == list(range(36))
    assert order[:8].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]  # then rows of blocks
    assert quadtree_order(9, 9, 3)[:9].tolist() == [0, 1, 2, 9, 10, 11, 18, 19, 20]
    assert quadtree_order(2, 4, channels=2)[:8].tolist() == [0, 8, 1, 9, 4, 12, 5, 13]
    for wrong in ((7, 8), (8, 8, 1), (0, 2)):
        with pytest.raises(ValueError, match=r"branching|positive"):
            quadtree_order(*wrong)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    x, y = normal(5, 8).to(dtype), normal(4, 8, 1).to(dtype)
    kernel = HierarchicalKernel((2, 2), normalize=True)
    found = kernel(x, y)
    assert found.dtype == kernel.diag(x).dtype == dtype
    torch.testing.assert_close(found, kernel(x.double(), y.double()).to(dtype))


def test_arrays_come_back_as_arrays():
    x, y = normal(5, 8), normal(4, 8, 1)
    kernel = HierarchicalKernel((2, 2), order=np.arange(8)[::-1])
    expected = kernel(x, y).numpy()
    np.testing.assert_array_equal(kernel(x.numpy(), y.numpy()), expected)
    np.testing.assert_array_equal(kernel(x.tolist(), y.tolist()), expected)
    np.testing.assert_array_equal(kernel(pd.DataFrame(x.numpy()), y.numpy()), expected)
    assert kernel(x.float().numpy()).dtype == np.float32
    assert kernel.diag(np.ones((2, 8), dtype=int)).tolist() == [6.0, 6.0]


@pytest.mark.parametrize("normalize", [False, True])
def test_gradients(normalize):
    x, y = normal(2, 4).requires_grad_(), normal(3, 4, 1).requires_grad_()
    kernel = HierarchicalKernel((2, 2), normalize=normalize)
    assert torch.autograd.gradcheck(kernel, (x, y))
    blank = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    kernel(blank, y).sum().backward()
    assert not blank.grad.isnan().any()


@pytest.mark.parametrize(
    ("sizes", "rows", "match"),
    [
        ((2, 2, 3), torch.ones(1, 8), r"filter sizes \(2,2,3\) do not divide input dimension 8"),
        ((2,), torch.ones(8), r"X must have shape \(n, d\), got \(8,\)"),
        ((2,), torch.ones(1, 0), "do not divide input dimension 0"),
        ((2,), torch.tensor([[1.0, math.nan]]), "X has entries that are not finite"),
    ],
)
def test_kernel_refuses_rows(sizes, rows, match):
    with pytest.raises(ValueError, match=match):
        HierarchicalKernel(sizes)(rows)


def test_kernel_refuses_arguments():
    for sizes in ((), (2, 0), (2.0, 2), (True, 2)[:0], "22"):
        with pytest.raises(ValueError, match="filter_sizes must be one or more positive integers"):
            HierarchicalKernel(sizes)
    with pytest.raises(ValueError, match='kind must be "ntk" or "rf", got \'nngp\''):
        HierarchicalKernel((2,), "nngp")
    with pytest.raises(ValueError, match=r"order must be a permutation of range\(4\)"):
        HierarchicalKernel((2,), order=[0, 1, 2, 2])(torch.ones(1, 4))
    with pytest.raises(ValueError, match="Y must have rows of 4 entries"):
        HierarchicalKernel((2,))(torch.ones(1, 4), torch.ones(1, 6))
    with pytest.raises(TypeError, match="X must be a tensor of a floating dtype"):
        HierarchicalKernel((2,))(torch.ones(1, 4, dtype=torch.int64))
    with pytest.raises(TypeError, match="Y must be a tensor of a floating dtype, like X, got nda"):
        HierarchicalKernel((2,))(torch.ones(1, 4), np.ones((1, 4)))
    assert repr(HierarchicalKernel([2, 2], "rf", True)) == (
        "HierarchicalKernel((2, 2), 'rf', normalize=True)"
    )


# Spectra


def test_torus_spectrum_is_that_of_the_grid():
    """Against the eigenvalues of the kernel matrix of all grid points, with four angles."""
    kernel = HierarchicalKernel((2, 2, 2), "rf")
    angle = torch.arange(4, dtype=torch.float64) * math.pi / 2 + 0.3
    points = torch.cartesian_prod(*[angle] * 4)
    rows = torch.stack([points.cos(), points.sin()], -1).flatten(1)
    spectrum = kernel_spectrum_torus(kernel, 4)
    assert spectrum.shape == (4, 4, 4, 4)
    eigenvalues = gram_spectrum(kernel(rows))
    torch.testing.assert_close(
        spectrum.flatten().sort(descending=True).values, eigenvalues, atol=1e-7, rtol=0
    )
    assert gram_spectrum(kernel(rows).numpy()).sum() == pytest.approx(1)


def test_eigenvalues_of_local_modes_do_not_depend_on_further_layers_rate():
    """Modes on one patch fall like k^{−2ν−1}, those on a pair like k^{−2ν−2}."""
    for kind, nu in (("ntk", 0.5), ("rf", 1.5)):
        spectrum = kernel_spectrum_torus(HierarchicalKernel((2, 2), kind), 1024)
        k = np.arange(16, 65, 2)
        for dim, values in ((1, spectrum[k, 0]), (2, spectrum[k, k])):
            slope, _ = learning_curve_exponent(k, values)
            assert slope == pytest.approx(2 * nu + dim, abs=0.15)


def test_spectra_refuse():
    with pytest.raises(ValueError, match=r"filter_sizes\[0\] must be 2, got 3"):
        kernel_spectrum_torus(HierarchicalKernel((3,)), 8)
    with pytest.raises(TypeError, match="kernel must be a HierarchicalKernel, got function"):
        kernel_spectrum_torus(seeded, 8)
    with pytest.raises(ValueError, match="n_grid must be at least 2"):
        kernel_spectrum_torus(HierarchicalKernel((2,)), 1)
    with pytest.raises(ValueError, match=r"K must have shape \(n, n\)"):
        gram_spectrum(np.ones((2, 3)))
    with pytest.raises(ValueError, match="not finite"):
        gram_spectrum(np.full((2, 2), np.nan))


# Theory


def test_dimensions_and_exponents():
    assert [effective_dimension(s) for s in [(2,), (2, 2), (2, 2, 2), (3, 2), (8,)]] == [
        1, 2, 4, 4, 7,
    ]  # fmt: skip
    # deeper kernels of the same family: 2ν_T/D; smoother students keep it, smoother targets do not
    assert predicted_exponent((2, 2), (2, 2), nu_s=1.5) == pytest.approx(0.5)
    assert predicted_exponent((2, 2), (2, 2), nu_t=1.5) == pytest.approx(1.5)
    assert predicted_exponent((2, 2, 2), (2,), 1.5, 0.5) == pytest.approx(7 / 16)
    for wrong in [((2,), (2, 2)), ((1,), (1,))]:
        with pytest.raises(ValueError, match="filter_sizes_teacher: expected an effective dim"):
            predicted_exponent(*wrong)
    with pytest.raises(ValueError, match="nu_s must be positive and finite, got 0"):
        predicted_exponent((2,), (2,), nu_s=0)


def test_learning_curve_exponent():
    n = np.array([64, 128, 256, 512])
    beta, (low, high) = learning_curve_exponent(n, 3 * n**-0.7)
    assert (beta, low, high) == pytest.approx((0.7, 0.7, 0.7))
    errors = np.stack([n**-0.5, 2 * n**-0.7, 3 * n**-0.6])
    beta, (low, high) = learning_curve_exponent(n, errors)
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (beta, low, high) == pytest.approx((0.6, 0.6 - half, 0.6 + half))
    beta, (low, high) = learning_curve_exponent([10, 100], torch.tensor([1.0, 0.1]))
    assert (beta, low, high) == pytest.approx((1, -math.inf, math.inf))


def test_interval_of_one_curve_covers():
    rng, n, hits = np.random.default_rng(0), np.array([100, 200, 400, 800, 1600]), 0
    for _ in range(400):
        _, (low, high) = learning_curve_exponent(n, n**-0.5 * np.exp(rng.normal(0, 0.1, 5)))
        hits += low < 0.5 < high
    assert 0.92 < hits / 400 < 0.98


@pytest.mark.parametrize(
    ("sizes", "errors", "match"),
    [
        ([10], [1.0], "sizes must hold at least two different numbers"),
        ([10, 10], [1.0, 1.0], "sizes must hold at least two different numbers"),
        ([10, 20], [1.0], r"errors must have shape \(2,\) or \(repeats, 2\)"),
        ([10, 20], [1.0, 0.0], "errors must be positive and finite"),
        ([10, -20], [1.0, 1.0], "sizes must be positive and finite"),
    ],
)
def test_learning_curves_refuse(sizes, errors, match):
    with pytest.raises(ValueError, match=match):
        learning_curve_exponent(sizes, errors)


def test_patches_on_spheres():
    x = sample_patches_on_spheres(4000, 6, 3, generator=seeded(), dtype=torch.float32)
    patches = x.unflatten(1, (2, 3))
    assert x.dtype == torch.float32
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(4000, 2))
    second = torch.einsum("npi,nqj->piqj", patches, patches) / 4000
    expected = torch.eye(6).view(2, 3, 2, 3) / 3
    assert (second - expected).abs().max() < 0.03
    with pytest.raises(ValueError, match="s divide d, got 2, 7 and 2"):
        sample_patches_on_spheres(2, 7, 2, generator=seeded())


# Estimators

ESTIMATORS = [
    HierarchicalKernelRegressor(),
    HierarchicalKernelRegressor(kind="rf", alpha=0.1, normalize=True),
    HierarchicalKernelRegressor((1,), alpha=0.1),
    HierarchicalKernelClassifier(),
    HierarchicalKernelClassifier((1,), alpha=0.1),
]


@pytest.mark.filterwarnings("ignore:the kernel matrix is singular")
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_scikit_learn_contract(estimator):
    for instance, check in estimator_checks_generator(estimator, mark="skip"):
        with contextlib.suppress(SkipTest):
            check(instance)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_estimators_solve_the_kernel_system(alpha, kind):
    (X, T), y = (circles(n, seed=n) for n in (60, 25)), normal(60, 2)
    kernel = HierarchicalKernel((2, 2), kind)
    K = kernel(X).numpy() + 1e-15
    ridge = KernelRidge(alpha=alpha, kernel="precomputed").fit(K, y.numpy())
    expected = ridge.predict(kernel(T, X).numpy())
    options = {"filter_sizes": (2, 2), "kind": kind, "alpha": alpha}
    model = HierarchicalKernelRegressor(**options).fit(X.numpy(), y.numpy())
    np.testing.assert_allclose(model.predict(T.numpy()), expected, rtol=1e-6, atol=1e-8)
    single = HierarchicalKernelRegressor(**options).fit(X.numpy(), y[:, 0].numpy())
    np.testing.assert_allclose(single.predict(T.numpy()), expected[:, 0], rtol=1e-6, atol=1e-8)
    labels = y.argmax(1).numpy()
    classes = HierarchicalKernelClassifier(**options).fit(X.numpy(), labels)
    signs = KernelRidge(alpha=alpha, kernel="precomputed").fit(K, 2.0 * labels - 1)
    np.testing.assert_allclose(
        classes.decision_function(T.numpy()), signs.predict(kernel(T, X).numpy()), atol=1e-7
    )


def test_ridgeless_regression_interpolates_and_beats_the_fully_connected_on_local_targets():
    X = circles(500).numpy()
    y = data.gaussian_process(
        HierarchicalKernel((2,)), torch.from_numpy(X), generator=seeded(1)
    ).numpy()
    scores = {}
    for sizes in (None, (2, 2, 2), (2, 2), (2,)):
        model = HierarchicalKernelRegressor(sizes).fit(X[:350], y[:350])
        np.testing.assert_allclose(model.predict(X[:350]), y[:350], atol=1e-6)
        scores[sizes] = model.score(X[350:], y[350:])
    assert scores[None] < scores[2, 2, 2] < scores[2, 2] < scores[(2,)]


def test_batches_do_not_change_predictions(monkeypatch):
    X, y = circles(50).numpy(), normal(50, 1)[:, 0].numpy()
    model = HierarchicalKernelRegressor((2, 2)).fit(X, y)
    T = circles(23, seed=1).numpy()
    whole = model.predict(T)
    monkeypatch.setattr(widecnn, "_BATCH", 50 * 4)
    np.testing.assert_allclose(model.predict(T), whole, rtol=1e-10)


def test_labels_may_be_strings_and_tables_frames():
    X, y = load_wine(return_X_y=True, as_frame=True)
    names = pd.Series(np.array(["red", "rosé", "white"])[y])
    for labels in (names, names.astype("category"), y):
        pipeline = make_pipeline(StandardScaler(), HierarchicalKernelClassifier(alpha=0.1))
        search = GridSearchCV(
            pipeline, {"hierarchicalkernelclassifier__filter_sizes": [None, (1,), (13,)]}, cv=3
        ).fit(X, labels)
        assert search.best_score_ > 0.9
        assert set(search.predict(X)) == set(labels)
    assert list(search.best_estimator_[-1].classes_) == [0, 1, 2]


def test_regression_of_a_table():
    X, y = load_diabetes(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    model = HierarchicalKernelRegressor(alpha=30.0).fit(X[:300], y[:300] - y[:300].mean())
    assert model.score(X[300:], y[300:] - y[:300].mean()) > 0.4


def test_duplicate_rows_say_so_and_share_a_mean():
    X = np.repeat(circles(20).numpy(), 2, 0)
    y = np.arange(40.0)
    with pytest.warns(RuntimeWarning, match="singular"):
        model = HierarchicalKernelRegressor((2, 2)).fit(X, y)
    np.testing.assert_allclose(model.predict(X[::2]), y[::2] + 0.5, atol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        HierarchicalKernelRegressor((2, 2), alpha=1e-3).fit(X, y)
    doubled = np.concatenate([X[::2], 2 * X[::2]])
    with pytest.warns(RuntimeWarning, match="singular"):
        HierarchicalKernelRegressor((2, 2)).fit(doubled, np.r_[y[:20], 2 * y[:20]])


def test_zero_rows_are_zero():
    X = circles(20).numpy()
    X[3] = X[7] = 0
    y = np.ones(20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = HierarchicalKernelRegressor((2, 2)).fit(X, y)
    np.testing.assert_allclose(model.predict(X), (X != 0).any(1).astype(float), atol=1e-7)
    nothing = HierarchicalKernelRegressor().fit(0 * X, y).predict(X)
    np.testing.assert_allclose(nothing, 0, atol=1e-100)


def test_small_and_odd_tables():
    one = HierarchicalKernelRegressor().fit([[1.0, 2.0]], [3.0])
    np.testing.assert_allclose(one.predict([[2.0, 4.0]]), [6.0])
    only = HierarchicalKernelClassifier().fit(circles(5).numpy(), ["yes"] * 5)
    assert set(only.predict(circles(3, seed=1).numpy())) == {"yes"}
    X = np.c_[circles(30).numpy(), np.ones((30, 4))]  # constant columns
    y = X[:, 0]
    model = HierarchicalKernelRegressor((2, 2)).fit(X.astype(np.float32), y.astype(np.float32))
    np.testing.assert_allclose(model.predict(X), y, atol=1e-5)
    X[2, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        HierarchicalKernelRegressor().fit(X, y)


def test_estimators_refuse():
    X, y = circles(10).numpy(), np.arange(10.0)
    for options, match in (
        ({"filter_sizes": (3,)}, r"filter sizes \(3\) do not divide input dimension 8"),
        ({"alpha": -1}, "alpha must be finite and not negative, got -1"),
        ({"kind": "rbf"}, "kind must be"),
        ({"order": [0, 1]}, r"order must be a permutation of range\(8\)"),
    ):
        with pytest.raises(ValueError, match=match):
            HierarchicalKernelRegressor(**options).fit(X, y)
    with pytest.raises(ValueError, match="continuous"):
        HierarchicalKernelClassifier().fit(X, y + 0.5)


def test_locality_profile_finds_the_patch():
    X = circles(200)
    field = HierarchicalKernel((2, 2))
    y = data.gaussian_process(field, X, generator=seeded(2)).numpy()
    candidates = [(2,), (2, 2), (2, 2, 2), (8,)]
    profile = locality_profile(X.numpy(), y, candidates, random_state=0)
    assert profile["filter_sizes"][profile["error"].argmin()] == (2, 2)
    assert profile["patch"].tolist() == [2, 4, 8, 8]
    assert profile["error"][0] > 0.3
    again = locality_profile(X.numpy(), y, candidates[1:2], random_state=0)
    assert again["error"][0] == profile["error"][1]
    labels = np.where(X[:, 0] * X[:, 2] > 0, "same", "other")
    wrong = locality_profile(X.numpy(), labels, candidates, task="classification", random_state=0)
    assert wrong["error"][0] > 0.4 > 0.2 > wrong["error"][1:].max()
    with pytest.raises(ValueError, match="task must be"):
        locality_profile(X.numpy(), y, candidates, task="ranking")
    with pytest.raises(ValueError, match="candidates must hold"):
        locality_profile(X.numpy(), y, [])
    with pytest.raises(ValueError, match=r"filter sizes \(3\) do not divide"):
        locality_profile(X.numpy(), y, [(3,)])


def test_digits_with_blank_patches():
    X, y = load_digits(return_X_y=True)
    for normalize in (False, True):
        model = HierarchicalKernelClassifier(
            (4, 4, 4), normalize=normalize, order=quadtree_order(8, 8)
        ).fit(X[::6], y[::6])
        assert model.score(X[1::6], y[1::6]) > 0.93


# Networks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_networks_are_modules(dtype, shared):
    net = LocallyConnectedNet(8, 6, (2, 2), 3, shared=shared, generator=seeded(), dtype=dtype)
    x = normal(5, 8, dtype=dtype)
    assert net(x).shape == (5, 3)
    torch.testing.assert_close(net(2 * x), 2 * net(x))
    net(x).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters())
    other = LocallyConnectedNet(8, 6, (2, 2), 3, shared=shared, generator=seeded(1), dtype=dtype)
    other.load_state_dict(net.state_dict())
    for twin in (other, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), net(x))


def test_shared_weights_see_every_patch_alike():
    """Against a one-dimensional convolution of stride 2."""
    net = LocallyConnectedNet(8, 6, (2, 2), shared=True, generator=seeded(), dtype=torch.float64)
    x = normal(5, 8)
    conv = torch.nn.functional.conv1d
    first = (2**0.5 * conv(x[:, None], net.weights[0][0][:, None], stride=2)).relu()
    kernel = net.weights[1][0].view(6, 2, 6).transpose(1, 2) / 12**0.5
    second = (2**0.5 * conv(first, kernel, stride=2)).relu()  # (5, 6, 2)
    out = second.transpose(1, 2).flatten(1) @ net.readout.mT / 12**0.5
    torch.testing.assert_close(net(x), out)


def test_networks_refuse():
    with pytest.raises(ValueError, match=r"filter sizes \(2,2,3\) do not divide in_features 8"):
        LocallyConnectedNet(8, 4, (2, 2, 3))
    with pytest.raises(ValueError, match="width and out_features must be positive, got 0 and 1"):
        LocallyConnectedNet(8, 0, (2,))
    with pytest.raises(ValueError, match=r"x must have shape \(n, 8\), got \(3, 4\)"):
        LocallyConnectedNet(8, 4, (2,))(torch.ones(3, 4))
