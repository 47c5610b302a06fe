"""The brief's checks, the three limits, precision at depth, and the estimators."""

import contextlib
import math
import pickle
import warnings
from decimal import Decimal, localcontext
from itertools import pairwise
from unittest import SkipTest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.dummy import DummyClassifier
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn

from paperworks.wide import (
    DeepKernelClassifier,
    HermiteActivation,
    SineActivation,
    SingularKernelClassifier,
    deep_kernels,
    dual_activation,
    empirical_ntk,
    gaussian_dual,
    intrinsic_dimension,
    nngp_kernel,
    ntk_kernel,
    optimal,
    optimal_activation,
    optimal_dual,
    taxonomy,
)

H2 = HermiteActivation([0, 0, 1])
CUBIC = HermiteActivation([1, 0, 0, 1])  # φ̌ = (1 + ξ³)/2


def dirichlet(n, seed, alphas=((0.5, 0.5, 2.5), (2.5, 0.1, 0.5))):
    """Two Dirichlet classes, the first with probability 0.4."""
    rng = np.random.default_rng(seed)
    y = (rng.random(n) >= 0.4).astype(int)
    return np.where(y[:, None] == 0, *(rng.dirichlet(a, n) for a in alphas)), y


def sphere(X):
    return X / np.linalg.norm(X, axis=1, keepdims=True)


# The brief's checks


def test_check_1_exponents_of_sine_and_erf():
    for a, alpha in [(1.0, 1.18557), (2.676, 2.0), (6.13539, 4.0), (13.8258, 8.0)]:
        assert taxonomy(SineActivation(a)) == ("singular", pytest.approx(alpha, abs=5e-5))
    erf = dual_activation("erf")
    assert erf.alpha == pytest.approx(0.88821, abs=5e-6)
    assert erf.A_prime**2 == pytest.approx(0.913583, abs=5e-7)
    assert erf.B_prime == pytest.approx(1.225700, abs=5e-7)


@pytest.mark.parametrize("d", range(1, 11))
def test_check_2_optimal_activations_are_optimal(d):
    dual = optimal_dual(d)
    assert dual.alpha == pytest.approx(d, abs=1e-9)
    assert dual.coef.sum().item() == pytest.approx(1, abs=1e-12)
    phi = optimal_activation(d)
    generator, scale, xi = torch.Generator().manual_seed(d), 2.0, 0.8
    z = scale * torch.randn(2, 400_000, generator=generator, dtype=torch.float64)
    weight = scale**2 * (z.square().sum(0) * (1 / scale**2 - 1) / 2).exp()  # h₇ has heavy tails
    u, v = z[0], xi * z[0] + math.sqrt(1 - xi**2) * z[1]
    assert (weight * phi(u).square()).mean().item() == pytest.approx(1, abs=0.01)
    assert (weight * phi(u) * phi(v)).mean().item() == pytest.approx(dual(xi).item(), rel=0.01)


def test_check_3_koenigs_function():
    dual = optimal_dual(2)
    psi = dual.koenigs(torch.tensor([0.5, 0.9, 0.99]))
    assert psi.tolist() == pytest.approx([0.713599, 5.591163, 60.062228], rel=1e-5)
    _, log = dual.log_deep_kernel(torch.tensor([1e-8, 1e-12, 1e-20, 1e-30]), math.inf)
    singularity = log.exp() * 2 * torch.tensor([1e-8, 1e-12, 1e-20, 1e-30], dtype=torch.float64)
    assert singularity.tolist() == pytest.approx([1.2103] * 4, abs=5e-5)
    # the equation that defines it
    xi = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    torch.testing.assert_close(dual.koenigs(dual(xi)), 0.5 * dual.koenigs(xi))
    assert dual.koenigs(1e-9).item() == pytest.approx(1e-9, rel=1e-9)


@pytest.mark.parametrize(("depth", "value"), [(10, 0.34298), (100, 0.27482), (1000, 0.25352)])
def test_check_4_deep_relu_ntk(depth, value):
    relu = dual_activation("relu")
    assert relu.deep_kernel(0.7, depth, "ntk").item() / (depth + 1) == pytest.approx(
        value, abs=5e-6
    )
    assert relu.deep_kernel(0.0, depth, "ntk").item() == pytest.approx(depth + 1)


def test_check_5_cubic_limit_is_the_majority():
    dual = dual_activation(CUBIC)
    assert dual.deep_kernel(torch.tensor([0.05, 0.5, 0.95]), 100).tolist() == pytest.approx(
        [0.618034] * 3, abs=1e-6
    )
    (X, y), (T, _) = dirichlet(200, 0), dirichlet(300, 1)
    majority = DummyClassifier().fit(X, y).predict(T)
    for depth in (100, np.inf):
        assert (DeepKernelClassifier(CUBIC, depth=depth).fit(X, y).predict(T) == majority).all()


def test_check_6_deep_classifier_is_the_smoother():
    (X, y), (T, _) = dirichlet(1000, 0), dirichlet(2000, 1)
    deep = DeepKernelClassifier(depth=60).fit(X, y).predict(T)
    limit = DeepKernelClassifier().fit(X, y)
    assert np.mean(deep == limit.predict(T)) >= 0.999
    # and by hand, Σ ψ(x·x_i) y_i
    weights = optimal_dual(2).koenigs(sphere(T[:50]) @ sphere(X).T)
    assert ((weights.numpy() @ (2 * y - 1) > 0) == limit.predict(T[:50])).all()


@pytest.mark.parametrize("depth", [30, 100, np.inf])
def test_check_7_even_activation_is_the_nearest_neighbour(depth):
    (X, y), (T, _) = dirichlet(500, 0), dirichlet(1000, 1)
    nearest = KNeighborsClassifier(1).fit(sphere(X), y).predict(sphere(T))
    assert (DeepKernelClassifier(H2, depth=depth).fit(X, y).predict(T) == nearest).all()


class NTKNetwork(nn.Module):
    """Two hidden layers in the NTK parametrisation, C_W = 2 and C_b = 0.1."""

    def __init__(self, width, generator):
        super().__init__()
        sizes = [3, width, width, 1]
        draw = [(o, i) for i, o in pairwise(sizes)]
        self.w = nn.ParameterList(torch.randn(*s, generator=generator) for s in draw)
        self.b = nn.ParameterList(torch.randn(s[0], generator=generator) for s in draw)

    def forward(self, x):
        for i, (w, b) in enumerate(zip(self.w, self.b)):
            x = x.relu() if i else x
            x = x @ w.mT * math.sqrt(2 / w.shape[1]) + math.sqrt(0.1) * b
        return x


def test_check_8_ntk_of_a_wide_network():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(4, 3, generator=generator)
    empirical = empirical_ntk(NTKNetwork(4096, generator), X)
    exact = ntk_kernel(X, activation="relu", depth=2, C_W=2.0, C_b=0.1)
    assert ((empirical - exact).norm() / exact.norm()).item() < 0.03


# Taxonomy


@pytest.mark.parametrize(
    ("activation", "kind"),
    [
        ("relu", "majority"),
        (nn.LeakyReLU(0.2), "majority"),
        ("gelu", "majority"),
        (CUBIC, "majority"),
        (H2, "1-nn"),
        (HermiteActivation([0, 0, 1, 1]), "1-nn"),
        ("tanh", "singular"),
        ("sin", "singular"),
        (nn.Hardtanh(), "singular"),
        ("identity", "degenerate"),
        ("sigmoid", "degenerate"),
        ("cos", "degenerate"),
        (lambda z: 3 * z, "degenerate"),
    ],
)
def test_kinds(activation, kind):
    assert taxonomy(activation)[0] == kind


def test_jumps_have_infinite_slope():
    sign = dual_activation(torch.sign)
    assert sign.B_prime == math.inf
    assert (sign.kind, sign.alpha) == ("singular", 0.0)
    with pytest.raises(ValueError, match="an activation that jumps"):
        sign.log_deep_kernel(0.5, 3, "ntk")


def test_scale_does_not_matter():
    assert taxonomy(lambda z: 7 * torch.tanh(z))[1] == pytest.approx(taxonomy("tanh")[1])
    assert dual_activation(lambda z: 7 * torch.tanh(z)).coef[1].item() == pytest.approx(
        dual_activation("tanh").coef[1].item()
    )


@pytest.mark.parametrize("d", [1.5, 2, 3.7, 25, 100])
def test_sine_reaches_every_dimension_above_one(d):
    assert taxonomy(optimal_activation(d, kind="sine"))[1] == pytest.approx(d, rel=1e-6)


def test_optimal_activations_that_do_not_exist():
    for d in (0, 1.5, math.inf, math.nan):
        with pytest.raises(ValueError, match="d = 1 or d >= 2"):
            optimal_activation(d)
    with pytest.raises(ValueError, match="d > 1"):
        optimal_activation(1, kind="sine")
    with pytest.raises(ValueError, match="kind must be 'hermite' or 'sine', got 'relu'"):
        optimal_activation(2, kind="relu")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["hermite", "sine"])
def test_optimal_activations_work_in_networks(dtype, kind):
    net = nn.Sequential(nn.Linear(3, 8), optimal_activation(3, kind=kind), nn.Linear(8, 1)).to(
        dtype
    )
    net(torch.ones(2, 3, dtype=dtype)).sum().backward()
    assert net[0].weight.grad.isfinite().all()
    again = pickle.loads(pickle.dumps(net))
    assert torch.equal(again(torch.ones(2, 3, dtype=dtype)), net(torch.ones(2, 3, dtype=dtype)))
    assert net.state_dict().keys() == again.state_dict().keys()


def test_hermite_activation_by_hand():
    z = torch.linspace(-2, 2, 5, dtype=torch.float64)
    h3 = (z**3 - 3 * z) / math.sqrt(6)
    torch.testing.assert_close(HermiteActivation([0.5, 0, 0, 2])(z), 0.5 + 2 * h3)
    assert torch.autograd.gradcheck(HermiteActivation([1, 2, 3]), z.requires_grad_())
    with pytest.raises(ValueError, match="weights must be finite and not all zero"):
        HermiteActivation([0, 0])
    with pytest.raises(ValueError, match="a must be positive, got 0"):
        SineActivation(0)


def test_wrong_activations_have_no_dual():
    with pytest.raises(ValueError, match="activation has zero second moment"):
        dual_activation(torch.zeros_like)
    with pytest.raises(ValueError, match="degree must be at least 1, got 0"):
        dual_activation("relu", degree=0)


# The scalar map


DUALS = ["relu", "erf", "tanh", "gelu", H2, CUBIC, nn.Hardtanh(), SineActivation(6.0)]


@pytest.mark.parametrize("activation", [*DUALS, "cos", "abs", nn.LeakyReLU(0.3)])
def test_complement_keeps_all_digits(activation):
    dual = dual_activation(activation)
    delta = torch.tensor([1.0, 0.7, 0.3, 0.011, 0.004], dtype=torch.float64)
    torch.testing.assert_close(dual.complement(delta), 1 - dual(1 - delta), rtol=1e-9, atol=1e-12)
    near = torch.tensor([1e-12, 1e-20, 1e-30], dtype=torch.float64)
    torch.testing.assert_close(
        dual.complement(near) / near, torch.full_like(near, dual.B_prime), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("activation", DUALS)
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_scalar_map_equals_the_matrix_recursion(activation, depth):
    """On unit rows, with φ normalised, deep kernels are functions of δ = ‖x − z‖²/2."""
    X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X /= X.norm(dim=1, keepdim=True)  # negative inner products are among them
    C_W = 1 / gaussian_dual(activation).moments(1.0)[0].item()
    K, Theta = deep_kernels(X * (4 / C_W) ** 0.5, activation=activation, depth=depth, C_W=C_W)
    delta = torch.cdist(X, X).square().fill_diagonal_(0) / 2
    dual = dual_activation(activation)
    torch.testing.assert_close(dual.deep_kernel(delta, depth), K, atol=2e-4, rtol=0)
    torch.testing.assert_close(dual.deep_kernel(delta, depth, "ntk"), Theta, atol=1e-2, rtol=1e-3)
    if activation in ("relu", "erf", H2, CUBIC):  # no kink, or a closed form
        torch.testing.assert_close(dual.deep_kernel(delta, depth), K, atol=1e-9, rtol=0)
        ntk = dual.deep_kernel(delta, depth, "ntk")
        torch.testing.assert_close(ntk, Theta, atol=1e-7, rtol=1e-7)


@pytest.mark.parametrize(("d", "power"), [(1, 7), (2, 3)])
def test_deep_kernel_survives_rounding(d, power):
    """Trap: 1 − ξ below 1e-16 rounds to 0, and B′^L magnifies it; against 60 digits."""
    dual, depth = optimal_dual(d), 100
    delta = [1e-4, 1e-13, 1e-20, 1e-28]
    with localcontext(prec=80):
        expected = [Decimal(1) - Decimal(x) for x in delta]
        for _ in range(depth):
            expected = [(xi + xi**power) / 2 for xi in expected]
    computed = dual.deep_kernel(torch.tensor(delta, dtype=torch.float64), depth)
    assert computed.tolist() == pytest.approx([float(x) for x in expected], rel=1e-9)
    assert dual.deep_kernel(0.0, depth).item() == 1


@pytest.mark.parametrize(
    "activation", [optimal_activation(1), optimal_activation(8), "erf", "relu"]
)
@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
def test_table_equals_the_map(activation, kernel):
    dual = dual_activation(activation)
    t = torch.linspace(-65, 33, 1001, dtype=torch.float64)
    delta = torch.cat([t.sigmoid(), torch.linspace(1.001, 2, 200)])
    sign, log = dual.log_deep_kernel(delta, 40, kernel)
    table_sign, table_log = dual.log_deep_kernel(delta, 40, kernel, tabulate=True)
    torch.testing.assert_close(table_sign * table_log.exp(), sign * log.exp(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(table_log[:1001], log[:1001], rtol=1e-6, atol=2e-6)


@settings(max_examples=30, deadline=None)
@given(
    delta=st.lists(st.floats(1e-20, 0.99), min_size=2, max_size=5),
    weights=st.lists(st.floats(0.1, 1), min_size=2, max_size=5),
    depth=st.integers(0, 60),
)
def test_deep_kernels_fall_with_distance(delta, weights, depth):
    """Every φ̌ is increasing on [0, 1], so that every depth keeps the order of neighbours."""
    dual = dual_activation(HermiteActivation([0, *weights]))
    order = torch.tensor(delta, dtype=torch.float64).sort().values
    for kernel in ("nngp", "ntk"):
        _, log = dual.log_deep_kernel(order, depth, kernel)
        assert (log.diff() <= 1e-9 * log.abs()[1:]).all()


def test_ntk_has_the_same_limit_as_the_nngp():
    dual = optimal_dual(2)
    delta = torch.tensor([0.5, 0.1, 0.01], dtype=torch.float64)
    _, log_psi = dual.log_deep_kernel(delta, math.inf)
    depth = 10**6
    _, log_ntk = dual.log_deep_kernel(delta, depth, "ntk", tabulate=True)
    scale = depth * math.log(dual.A_prime**2) + math.log(depth + 1)
    torch.testing.assert_close(log_ntk - scale, log_psi, atol=1e-3, rtol=0)


def test_koenigs_of_negative_correlations():
    odd, mixed = dual_activation("erf"), optimal_dual(4)
    assert odd.koenigs(-0.4).item() == pytest.approx(-odd.koenigs(0.4).item())
    assert mixed.koenigs(-0.4).item() == pytest.approx(4 * mixed.koenigs(mixed(-0.4)).item())
    with pytest.raises(
        ValueError, match="Koenigs function is of the singular kind, this is '1-nn'"
    ):
        dual_activation(H2).koenigs(0.5)


def test_scalar_map_refuses_what_it_cannot_take():
    dual = optimal_dual(2)
    with pytest.raises(ValueError, match=r"xi must lie in \[-1, 1\], got values in \[0, 1.5\]"):
        dual(torch.tensor([0.0, 1.5]))
    with pytest.raises(ValueError, match=r"delta must lie in \[0, 2\]"):
        dual.deep_kernel(-0.1, 3)
    with pytest.raises(ValueError, match="depth must be an integer of at least 0, or infinite"):
        dual.deep_kernel(0.1, 2.5)
    with pytest.raises(ValueError, match="kernel must be 'nngp' or 'ntk', got 'rbf'"):
        dual.deep_kernel(0.1, 2, "rbf")


# Estimators


ESTIMATORS = [
    DeepKernelClassifier(),
    DeepKernelClassifier("erf", depth=20, kernel="ntk"),
    SingularKernelClassifier(),
    SingularKernelClassifier(normalize=False),
]


@pytest.mark.filterwarnings("ignore:some pairs of rows", "ignore:the kernel matrix is singular")
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=["limit", "finite", "smoother", "flat"])
def test_scikit_learn_contract(estimator):
    refused = {"check_estimators_dtypes": "its data have a row of zeros, which has no direction"}
    checks = estimator_checks_generator(
        estimator, expected_failed_checks=refused if estimator.normalize else {}, mark="skip"
    )
    for instance, check in checks:
        with contextlib.suppress(SkipTest):
            check(instance)


@pytest.mark.parametrize("depth", [3, 100, np.inf])
def test_training_rows_keep_their_labels(depth):
    X, y = dirichlet(100, 0)
    y = y + (X[:, 0] > 0.5)  # three classes
    for activation in (None, "erf", CUBIC, H2):
        model = DeepKernelClassifier(activation, depth=depth)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # shallow polynomial kernels
            fitted = model.fit(X, y)
        if depth > 3 or activation == "erf":
            assert (fitted.predict(X) == y).all()


@pytest.mark.parametrize("kernel", ["nngp", "ntk"])
@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_finite_depth_solves_the_kernel_system(kernel, ridge):
    (X, y), (T, _) = dirichlet(60, 0), dirichlet(50, 1)
    y = y + (X[:, 0] > 0.5)
    kernel_of = nngp_kernel if kernel == "nngp" else ntk_kernel
    C_W = 1 / gaussian_dual("relu").moments(1.0)[0].item()
    x, t = (torch.from_numpy(sphere(rows)) * (3 / C_W) ** 0.5 for rows in (X, T))
    options = {"activation": "relu", "depth": 6, "C_W": C_W}
    K = kernel_of(x, **options) + ridge * torch.eye(60)
    F = kernel_of(t, x, **options) @ torch.linalg.solve(K, torch.eye(3, dtype=K.dtype)[y])
    model = DeepKernelClassifier("relu", depth=6, kernel=kernel, ridge=ridge).fit(X, y)
    votes = torch.from_numpy(model.decision_function(T))
    torch.testing.assert_close(
        votes / votes.norm(dim=1, keepdim=True), F / F.norm(dim=1, keepdim=True), atol=1e-4, rtol=0
    )
    assert (model.predict(T) == F.argmax(1).numpy()).all()


def test_dimension_of_the_sphere_is_one_less_than_the_features():
    X, y = dirichlet(30, 0, ((1, 2, 1, 2), (2, 1, 2, 1)))
    assert DeepKernelClassifier().fit(X, y).dual_.alpha == pytest.approx(3)
    assert SingularKernelClassifier().fit(X, y).alpha_ == 3
    assert SingularKernelClassifier(normalize=False).fit(X, y).alpha_ == 4
    assert SingularKernelClassifier(dim=2).fit(X, y).alpha_ == 2
    assert SingularKernelClassifier(alpha=2.5, dim=7).fit(X, y).alpha_ == 2.5


def test_the_circle_problem_does_not_collapse():
    """Trap: rounding alone takes this accuracy from about 0.73 to 0.57."""
    alphas = ((1, 2), (2, 1))
    (X, y), (T, labels) = dirichlet(2000, 0, alphas), dirichlet(2000, 1, alphas)
    assert DeepKernelClassifier(depth=100).fit(X, y).score(T, labels) > 0.71


def test_relu_needs_depth_much_larger_than_the_sample():
    """Trap: the majority limit is approached like 1/L only, and later by pairs that are near."""
    (X, y), (T, _) = dirichlet(100, 0), dirichlet(500, 1)
    majority = np.bincount(y).argmax()
    models = (DeepKernelClassifier("relu", depth=L, kernel="ntk") for L in (10, 1000, 100_000))
    shares = [np.mean(model.fit(X, y).predict(T) == majority) for model in models]
    assert max(shares[:2]) < 0.9
    assert shares[2] > 0.99


@pytest.mark.parametrize("depth", [40, np.inf])
def test_copies_with_different_labels(depth):
    X = np.array([[1.0, 0.2], [2.0, 0.4], [3.0, 0.6], [0.1, 1.0]])  # three are one direction
    model = DeepKernelClassifier(depth=depth).fit(X, [0, 0, 1, 1])
    assert model.predict([[1.0, 0.2], [1.0, 0.21], [0.1, 0.9]]).tolist() == [0, 0, 1]
    smoother = SingularKernelClassifier().fit(X[[0, 0, 0, 3]], [0, 0, 1, 1])
    np.testing.assert_allclose(smoother.predict_proba([[1.0, 0.2]]), [[2 / 3, 1 / 3]])


def test_negative_inner_products_warn():
    X, y = dirichlet(40, 0)
    for depth in (8, np.inf):
        model = DeepKernelClassifier(H2, depth=depth).fit(X, y)
        with pytest.warns(UserWarning, match="negative inner product"):
            mirrored = model.predict(-X)  # an even kernel takes −x for x
        assert (mirrored == y).all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.predict(X)


def test_degenerate_limit_needs_a_ridge():
    X, y = dirichlet(40, 0)
    with pytest.raises(ValueError, match="degenerate"):
        DeepKernelClassifier("sigmoid").fit(X, y)
    ridged = DeepKernelClassifier("sigmoid", ridge=0.1).fit(X, y)
    assert (ridged.predict(X) == np.bincount(y).argmax()).all()


def test_smoother_is_the_hilbert_estimate():
    (X, y), (T, _) = dirichlet(50, 0), dirichlet(20, 1)
    distances = np.linalg.norm(sphere(T)[:, None] - sphere(X), axis=-1)
    weights = distances**-1.5
    expected = (weights @ np.eye(2)[y]) / weights.sum(1, keepdims=True)
    model = SingularKernelClassifier(alpha=1.5).fit(X, y)
    np.testing.assert_allclose(model.predict_proba(T), expected, rtol=1e-12)
    np.testing.assert_allclose(model.decision_function(T), expected[:, 1] - expected[:, 0])


def test_batches_do_not_change_predictions(monkeypatch):
    (X, y), (T, _) = dirichlet(50, 0), dirichlet(33, 1)
    models = [DeepKernelClassifier(), DeepKernelClassifier(depth=9), SingularKernelClassifier()]
    whole = [model.fit(X, y).decision_function(T) for model in models]
    monkeypatch.setattr(optimal, "_BATCH", 50 * 4)
    for model, expected in zip(models, whole):
        np.testing.assert_allclose(clone(model).fit(X, y).decision_function(T), expected, rtol=1e-9)


def test_intrinsic_dimension_of_known_manifolds():
    rng = np.random.default_rng(0)
    for d in (1, 2, 5):
        flat = np.zeros((2000, 9))
        flat[:, :d] = rng.random((2000, d))
        assert intrinsic_dimension(flat) == pytest.approx(d, rel=0.12)
    square = rng.random((1000, 2))
    copies = np.concatenate([square, square])
    assert intrinsic_dimension(copies) == intrinsic_dimension(square)
    rows = np.c_[square, np.ones(1000)]
    y = rng.integers(0, 2, 1000)
    alpha = SingularKernelClassifier("intrinsic").fit(rows, y).alpha_
    assert alpha == pytest.approx(2, rel=0.15)
    with pytest.raises(ValueError, match="three distinct rows, got 2"):
        intrinsic_dimension([[0.0], [0.0], [1.0]])
    with pytest.raises(ValueError, match="at one distance"):
        intrinsic_dimension(np.eye(3))


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (DeepKernelClassifier(depth=-1), "depth must be an integer of at least 0"),
        (DeepKernelClassifier(kernel="rbf"), "kernel must be 'nngp' or 'ntk', got 'rbf'"),
        (DeepKernelClassifier(ridge=-1), "ridge must not be negative, got -1"),
        (DeepKernelClassifier(normalize=False), "rows must have norm 1 when normalize=False"),
        (DeepKernelClassifier(H2, depth=5000), "use depth=np.inf"),
        (SingularKernelClassifier(alpha=0), "alpha must be positive and finite, got 0"),
        (SingularKernelClassifier(alpha="d"), "alpha must be positive and finite, got 'd'"),
        (SingularKernelClassifier(dim="intrinsic"), "dim must be positive and finite"),
    ],
)
def test_wrong_parameters_are_refused(model, match):
    X, y = dirichlet(20, 0)
    with pytest.raises(ValueError, match=match):
        model.fit(X, y)


@pytest.mark.parametrize("model", [DeepKernelClassifier(), SingularKernelClassifier()])
def test_zero_rows_are_refused(model):
    with pytest.raises(ValueError, match="rows must be nonzero, row 1 of X is not"):
        model.fit([[1.0, 1.0], [0.0, 0.0]], [0, 1])


@pytest.mark.parametrize(
    "model", [DeepKernelClassifier("erf", depth=5), SingularKernelClassifier()]
)
def test_fitted_models_can_be_stored(model):
    X, y = dirichlet(40, 0)
    again = pickle.loads(pickle.dumps(clone(model).fit(X, y)))
    assert (again.predict(X) == y).all()
