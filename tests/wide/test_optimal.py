"""The brief's checks, the three limits, precision at depth, and the estimators."""

import math
import pickle
import warnings

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
    z = torch.randn(2, 500_000, generator=torch.Generator().manual_seed(d), dtype=torch.float64)
    xi = 0.8
    u, v = z[0], xi * z[0] + math.sqrt(1 - xi**2) * z[1]
    assert phi(u).square().mean().item() == pytest.approx(1, abs=0.03 if d == 1 else 0.01)
    tolerance = 0.03 if d == 1 else 0.01  # h₇ has heavy tails
    assert (phi(u) * phi(v)).mean().item() == pytest.approx(dual(xi).item(), rel=tolerance)


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
    weights = optimal_dual(2).koenigs(
        torch.from_numpy(sphere(T) @ sphere(X).T).clamp(max=1 - 1e-15)
    )
    votes = weights.numpy() @ (2 * y - 1)
    assert np.mean((votes > 0) == limit.predict(T)) >= 0.999


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
        draw = [(o, i) for i, o in zip(sizes, sizes[1:])]
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


@pytest.mark.parametrize("d", [1.5, 2, 3.7, 25, 300])
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
    torch.testing.assert_close(dual.complement(near) / near, torch.full((3,), dual.B_prime).double(),
                               rtol=1e-4, atol=0)  # fmt: skip


@pytest.mark.parametrize("activation", DUALS)
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_scalar_map_equals_the_matrix_recursion(activation, depth):
    """On unit rows, with φ normalised, deep kernels are functions of δ = ‖x − z‖²/2."""
    phi = dual_activation(activation)
    X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X /= X.norm(dim=1, keepdim=True)  # negative inner products among them
    K, Theta = deep_kernels(2 * X, activation=activation, depth=depth)
    norm = deep_kernels(2 * X[:1], activation=activation, depth=1)[0].item() if depth else 1.0
    if depth > 1 and activation != "relu":
        pytest.skip("C_W = 1/E[φ²] makes this the next test")
    delta = torch.cdist(X, X).square() / 2
    torch.testing.assert_close(phi.deep_kernel(delta, depth), K / norm**depth, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        phi.deep_kernel(delta, depth, "ntk"), Theta / norm**depth, atol=1e-3, rtol=0
    )
