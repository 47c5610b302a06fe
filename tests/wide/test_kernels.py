"""Duals against integrals and closed values, deep kernels against known flows, posteriors."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from torch import nn

from paperworks.wide import (
    HermiteActivation,
    SineActivation,
    cnn_nngp_kernel,
    cnn_ntk_kernel,
    deep_kernels,
    empirical_ntk,
    gaussian_dual,
    gaussian_quadrature,
    gp_posterior,
    hermite_coefficients,
    kernels,
    nngp_kernel,
    ntk_kernel,
    ntk_posterior,
    psd_safe_cholesky,
)

CLOSED = ["relu", "erf", "sin", "cos", "gelu", "identity", "abs"]
SMOOTH = ["erf", "sin", "cos", "gelu"]


def rows(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def integral(f, g, cov, var_u, var_v):
    """E[f(u)g(v)] on a product of 1-D rules; f and g may have a kink at 0 only in u's rule."""
    z, w = gaussian_quadrature()
    keep = z.abs() < 8
    z, w = z[keep], w[keep]
    u = math.sqrt(var_u) * z
    mean, std = cov / var_u * u, math.sqrt(var_v - cov**2 / var_u)
    return (w * f(u)) @ (g(mean[:, None] + std * z) @ w)


# Duals


def test_relu_dual_has_its_hand_computed_values():
    relu = gaussian_dual("relu")
    assert relu(0.0).item() == pytest.approx(1 / (2 * math.pi), abs=1e-15)
    assert relu(1.0).item() == pytest.approx(0.5, abs=1e-15)
    assert relu.derivative(torch.tensor([0.0, 1.0, -1.0])).tolist() == [0.25, 0.5, 0.0]
    assert gaussian_dual("relu", normalized=True)(1.0).item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_equal_the_double_integral(name):
    dual, phi = gaussian_dual(name), gaussian_dual(name).activation
    for cov, var_u, var_v in [(0.3, 1.0, 1.0), (-0.6, 0.7, 1.9), (1.1, 2.5, 0.8)]:
        expected = integral(phi, phi, cov, var_u, var_v)
        # the rule is exact to 1e-5 only where the kink of v falls between its nodes
        assert dual(cov, var_u, var_v).item() == pytest.approx(expected.item(), abs=2e-6)


@pytest.mark.parametrize("name", SMOOTH)
def test_closed_forms_equal_mehlers_formula(name):
    closed = gaussian_dual(name)
    series = kernels.HermiteDual(closed.activation, degree=90)
    cov = torch.linspace(-0.9, 0.9, 7, dtype=torch.float64)
    torch.testing.assert_close(closed(cov, 0.9, 1.2), series(cov, 0.9, 1.2), atol=1e-9, rtol=0)
    torch.testing.assert_close(
        closed.derivative(cov, 0.9, 1.2), series.derivative(cov, 0.9, 1.2), atol=1e-7, rtol=0
    )


def test_leaky_relu_interpolates_relu_and_identity_by_mehlers_formula():
    leaky = nn.LeakyReLU(0.3)
    closed, series = gaussian_dual(leaky), kernels.HermiteDual(leaky, degree=60)
    cov = torch.linspace(-0.7, 0.7, 5, dtype=torch.float64)
    torch.testing.assert_close(closed(cov), series(cov), atol=1e-9, rtol=0)
    prelu = nn.PReLU(init=0.3).double()
    torch.testing.assert_close(gaussian_dual(prelu)(cov), closed(cov), atol=1e-7, rtol=0)


@pytest.mark.parametrize("name", [*CLOSED, "tanh", "silu"])
def test_derivative_dual_is_the_slope_in_the_covariance(name):
    """Price's theorem."""
    dual = gaussian_dual(name)
    cov = torch.linspace(-0.8, 0.8, 5, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(dual(cov, 0.8, 1.3).sum(), cov)
    torch.testing.assert_close(dual.derivative(cov, 0.8, 1.3), slope, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("name", [*CLOSED, "tanh"])
def test_duals_have_correct_gradients(name):
    dual = gaussian_dual(name)
    arguments = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.3, 0.8, 1.4)]
    assert torch.autograd.gradcheck(dual, arguments)
    assert torch.autograd.gradcheck(dual.derivative, arguments)


@pytest.mark.parametrize("name", [*CLOSED, "tanh", "elu"])
def test_moments_are_the_pair_at_coincidence(name):
    dual = gaussian_dual(name)
    var = torch.tensor([0.3, 1.0, 2.7], dtype=torch.float64)
    value, slope = dual.moments(var)
    torch.testing.assert_close(value, dual(var, var, var), atol=2e-6, rtol=0)
    torch.testing.assert_close(slope, dual.derivative(var, var, var), atol=1e-3, rtol=0)


def test_polynomials_are_exact_at_any_variance():
    # E[u²v²] = var_u var_v + 2cov², E[u³v³] = 9 var_u var_v cov + 6cov³
    assert gaussian_dual(lambda u: u**2)(0.7, 1.5, 3.0).item() == pytest.approx(4.5 + 2 * 0.49)
    assert gaussian_dual(lambda u: u**3)(0.7, 1.5, 3.0).item() == pytest.approx(
        9 * 4.5 * 0.7 + 6 * 0.343
    )


def test_an_activation_brings_its_own_closed_form():
    activation = SineActivation(2.0)
    assert isinstance(gaussian_dual(activation), kernels.SineDual)
    series = kernels.HermiteDual(activation)
    assert gaussian_dual(activation)(0.4, 0.8, 1.1).item() == pytest.approx(
        series(0.4, 0.8, 1.1).item(), abs=1e-12
    )
    X = rows(4, 3)
    torch.testing.assert_close(  # the normalisation of the activation reaches deep kernels
        nngp_kernel(X, activation=activation, depth=2),
        nngp_kernel(X, activation=lambda u: activation(u), depth=2),
        atol=1e-9,
        rtol=0,
    )


def test_sine_dual_neither_overflows_nor_loses_small_correlations():
    dual = gaussian_dual(SineActivation(5.0))
    assert dual(1e-30).item() == pytest.approx(1e-30 * 5 / math.sinh(5), rel=1e-12)
    assert gaussian_dual("sin")(500.0, 1000.0, 1000.0).item() == pytest.approx(
        math.exp(-500) / 2, rel=1e-9
    )


def test_hermite_coefficients_are_orthonormal():
    for k in (0, 3, 17):
        weights = [0.0] * k + [1.0]
        coef = hermite_coefficients(HermiteActivation(weights), degree=20)
        assert coef.tolist() == pytest.approx([float(j == k) for j in range(21)], abs=1e-9)
    assert hermite_coefficients("identity", torch.tensor([[0.5], [2.0]]), degree=2).shape == (
        2,
        1,
        3,
    )


def test_zero_rows_give_finite_kernels():
    X = torch.zeros(2, 3, dtype=torch.float64)
    X[1, 0] = 1
    for name in ("relu", "tanh", "gelu"):
        K, Theta = deep_kernels(X, activation=name, depth=2)
        assert K.isfinite().all()
        assert Theta.isfinite().all()


def test_activations_are_left_as_they_are():
    module = nn.Sequential(nn.PReLU(), nn.Dropout(0.5)).train()
    before = copy.deepcopy(module.state_dict())
    gaussian_dual(module)(0.5)
    assert module.training
    assert module[0].weight.dtype == torch.float32
    assert module[0].weight.requires_grad
    assert torch.equal(before["0.weight"], module.state_dict()["0.weight"])


@pytest.mark.parametrize("kind", [nn.ReLU, nn.LeakyReLU, nn.SiLU, nn.ELU, nn.Hardtanh])
def test_activations_set_to_overwrite_their_input(kind):
    module = nn.Sequential(kind(inplace=True))
    X = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ours, expected = (deep_kernels(X, activation=phi, depth=2) for phi in (module, kind()))
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-9)
    assert module[0].inplace


def test_duals_can_be_copied_and_stored():
    dual = gaussian_dual(nn.Tanh(), normalized=True)
    again = pickle.loads(pickle.dumps(copy.deepcopy(dual)))
    assert again(0.3).item() == dual(0.3).item()


@pytest.mark.parametrize(
    ("activation", "error", "match"),
    [
        ("rleu", ValueError, "activation 'rleu' is unknown: choose from identity, relu"),
        (3, TypeError, "activation must be callable or a name, got int"),
        (nn.Softmax(0), ValueError, r"elementwise: shape \(N,\) -> \(N,\)"),
        (nn.Linear(3, 3), ValueError, r"elementwise: shape \(N,\) -> \(N,\)"),
        (torch.relu_, ValueError, "must return new values, and it overwrites its input"),
        (torch.tanh_, ValueError, "must return new values, and it overwrites its input"),
        (lambda u: u[None], ValueError, r"elementwise: shape \(N,\) -> \(N,\)"),
    ],
)
def test_wrong_activations_are_refused(activation, error, match):
    with pytest.raises(error, match=match):
        gaussian_dual(activation)


def test_zero_activation_cannot_be_normalized():
    with pytest.raises(ValueError, match="activation has zero second moment"):
        gaussian_dual(torch.zeros_like, normalized=True)
    with pytest.raises(ValueError, match="degree must be at least 0, got -1"):
        hermite_coefficients("relu", degree=-1)


# Deep kernels


def test_tanh_kernel_follows_the_published_flow():
    """Roberts, Yaida, Hanin (arXiv 2106.10165), critical tanh from K = 1."""
    x = torch.ones(1, 4, dtype=torch.float64)
    for depth, K in [(1, 0.394294), (4, 0.127905), (99, 0.005121)]:
        assert nngp_kernel(x, activation="tanh", depth=depth).item() == pytest.approx(K, abs=1e-6)


def test_gelu_kernel_follows_the_published_flow():
    def flow(depth, C_W, C_b):
        x = torch.full((1, 3), ((1 - C_b) / C_W) ** 0.5, dtype=torch.float64)  # K = 1 at first
        return nngp_kernel(x, activation=nn.GELU(), depth=depth, C_W=C_W, C_b=C_b).item()

    kaiming = [flow(depth, 2.0, 0.0) for depth in (9, 19)]
    assert kaiming == pytest.approx([0.0535, 6.4e-5], rel=1e-2)
    critical = [flow(depth, 1.98305826, 0.17292239) for depth in (9, 99)]
    assert critical == pytest.approx([1.1280, 1.6814], abs=1e-4)


def test_critical_relu_ntk_grows_linearly():
    X = rows(5, 3)
    norms = X.square().sum(-1) / 3
    for depth in (0, 1, 6):
        Theta = ntk_kernel(X, activation="relu", depth=depth, C_W=2.0)
        torch.testing.assert_close(Theta.diagonal(), (depth + 1) * 2 * norms)


def test_two_layer_relu_kernels_of_unit_vectors():
    """K = κ₁/k and Θ = (κ₁ + ρκ₀)/k for f(x) = W₁ ReLU(W₀x/√k)/√n (arXiv 2502.16763)."""
    k, m = 6, 3
    X = torch.eye(k, dtype=torch.float64)
    x = torch.tensor([[1.0] * m + [0.0] * (k - m)], dtype=torch.float64) / math.sqrt(m)
    K, Theta = deep_kernels(x, X, activation="relu", depth=1)
    rho = 1 / math.sqrt(m)
    k0 = (math.pi - math.acos(rho)) / (2 * math.pi)
    k1 = math.sqrt(1 - rho**2) / (2 * math.pi) + rho * k0
    assert K[0, 0].item() == pytest.approx(k1 / k)
    assert Theta[0, 0].item() == pytest.approx((k1 + rho * k0) / k)
    assert (k * Theta[0, -1]).item() == pytest.approx(1 / (2 * math.pi))


@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", "tanh"])
def test_tiles_halves_and_batches_change_nothing(activation, monkeypatch):
    X = rows(2, 23, 5)
    options = {"activation": activation, "depth": 2, "C_W": 1.7, "C_b": 0.3}
    K, Theta = deep_kernels(X, **options)
    monkeypatch.setattr(kernels, "_TILE", 4)
    for computed in (deep_kernels(X, **options), deep_kernels(X, X.clone(), **options)):
        torch.testing.assert_close(computed[0], K, atol=1e-6, rtol=0)
        torch.testing.assert_close(computed[1], Theta, atol=1e-4, rtol=0)
    torch.testing.assert_close(deep_kernels(X[1], X[1, :3], **options)[0], K[1, :, :3])
    one_thread = deep_kernels(X, **options)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(map(torch.equal, deep_kernels(X, **options), one_thread))
    assert torch.equal(K, K.mT)
    assert torch.equal(nngp_kernel(X, **options), deep_kernels(X, **options)[0])
    assert torch.equal(ntk_kernel(X, **options), deep_kernels(X, **options)[1])


@pytest.mark.parametrize("activation", ["relu", "erf", "tanh"])
def test_kernels_are_differentiable_diagonal_included(activation):
    X = rows(3, 2).requires_grad_()
    C_W, C_b = (torch.tensor(c, dtype=torch.float64, requires_grad=True) for c in (1.3, 0.2))

    def both(X, C_W, C_b):
        return deep_kernels(X, activation=activation, depth=2, C_W=C_W, C_b=C_b)

    assert torch.autograd.gradcheck(both, (X, C_W, C_b))
    with torch.no_grad():
        plain = both(X, C_W, C_b)
    torch.testing.assert_close(both(X, C_W, C_b), plain, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_input_sets_the_dtype_and_float64_the_digits(dtype):
    X = rows(6, 3, dtype=dtype)
    K = nngp_kernel(X, activation="relu", depth=3, C_W=2.0)
    assert K.dtype == dtype
    assert torch.equal(K, nngp_kernel(X.double(), activation="relu", depth=3, C_W=2.0).to(dtype))


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(1e-3, 1e3),
    depth=st.integers(0, 4),
    negative_slope=st.floats(-1, 1),
    seed=st.integers(0, 99),
)
def test_rectifier_kernels_are_homogeneous_and_positive(scale, depth, negative_slope, seed):
    X = rows(7, 3, seed=seed)
    options = {"activation": nn.LeakyReLU(negative_slope), "depth": depth, "C_W": 1.5}
    for K, scaled in zip(deep_kernels(X, **options), deep_kernels(scale * X, **options)):
        torch.testing.assert_close(scaled, scale**2 * K)
        assert torch.linalg.eigvalsh(K).min() > -1e-6 * K.diagonal().max()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), C_b=st.floats(0, 2), name=st.sampled_from(CLOSED))
def test_rotations_leave_kernels_alone(seed, C_b, name):
    X = rows(5, 4, seed=seed)
    Q, _ = torch.linalg.qr(rows(4, 4, seed=seed + 1))
    options = {"activation": name, "depth": 2, "C_b": C_b}
    torch.testing.assert_close(
        nngp_kernel(X @ Q, **options), nngp_kernel(X, **options), atol=1e-7, rtol=1e-7
    )


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"X": torch.ones(3)}, ValueError, r"X must have shape \(..., n, d\), got \(3,\)"),
        (
            {"X": torch.ones(3, 2, dtype=torch.int64)},
            TypeError,
            "X must be a floating-point tensor",
        ),
        ({"X": [[1.0]]}, TypeError, "X must be a floating-point tensor, got list"),
        ({"Z": torch.ones(3, 5)}, ValueError, r"X \(3, 2\) and Z \(3, 5\) must agree"),
        ({"depth": -1}, ValueError, "depth must be an integer of at least 0, got -1"),
        ({"depth": 1.5}, ValueError, "depth must be an integer"),
        ({"C_W": 0.0}, ValueError, "C_W must be positive"),
        ({"C_b": -1.0}, ValueError, "C_b must not be negative"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, match):
    options = {"X": torch.ones(3, 2), "activation": "relu", "depth": 1} | arguments
    X = options.pop("X")
    with pytest.raises(error, match=match):
        nngp_kernel(X, **options)


# Posteriors


def ramp(*shape, period):
    """Small integers around zero, in an order that repeats."""
    count = torch.arange(math.prod(shape), dtype=torch.float64)
    return (count % period - period // 2).reshape(shape)


def neural_tangents_said():
    """Its kernels of two rows, then of both with a third; NNGP and NTK. All with 1.7 and 0.3."""
    same, valid = {"padding": "same"}, {"padding": "valid"}
    line = {"filter_sizes": [3, 2], "strides": [1, 2], **same}
    tight = {"filter_sizes": [2, 2], "strides": [1, 2], **valid}
    plane = {"filter_sizes": [3, 3], "strides": [1, 2], **same}
    yield (
        "relu",
        (2, 5),
        line,
        [
            [4.5227291667, 1.7452250414, 3.5333055556, 1.734442346, 1.9557975745],
            [12.7131875, 1.8530293967, 9.7449166667, 2.5444584179, 3.5702119435],
        ],
    )
    yield (
        "relu",
        (2, 5),
        tight,
        [
            [6.068578125, 2.1411146471, 4.533265625, 2.1785507407, 2.4865211662],
            [17.350734375, 2.2371961892, 12.744796875, 3.2174755522, 4.6492319793],
        ],
    )
    yield (
        "erf",
        (2, 5),
        line,
        [
            [1.1657411816, 0.2672479901, 1.1647867667, 0.5651512271, 0.7190558706],
            [4.1046005636, 0.0011268498, 3.9200189191, 0.924394318, 1.4314969436],
        ],
    )
    yield (
        "relu",
        (1, 4, 5),
        plane,
        [
            [3.2075859053, 2.0740125369, 3.1696769547, 1.3725863106, 1.5530057093],
            [8.767757716, 3.362184883, 8.6540308642, 1.8959139301, 2.5268192056],
        ],
    )


@pytest.mark.parametrize(("activation", "shape", "layers", "said"), [*neural_tangents_said()])
def test_convolutional_kernels_are_those_of_neural_tangents(activation, shape, layers, said):
    X, Z = ramp(2, *shape, period=7), ramp(1, *shape, period=4) + 1
    options = {"activation": activation, "C_W": 1.7, "C_b": 0.3, **layers}
    for kernel, values in zip((cnn_nngp_kernel, cnn_ntk_kernel), said):
        K, cross = kernel(X, **options), kernel(X, Z, **options)
        found = [*K[0].tolist(), K[1, 1].item(), *cross[:, 0].tolist()]
        assert found == pytest.approx(values, abs=2e-9)


def test_a_window_over_everything_is_a_fully_connected_network():
    X = rows(6, 12)
    options = {"activation": "gelu", "C_W": 1.4, "C_b": 0.2}
    signals = X.reshape(6, 3, 4)
    K = cnn_nngp_kernel(signals, filter_sizes=[4], padding="valid", **options)
    Theta = cnn_ntk_kernel(signals, filter_sizes=[4], padding="valid", **options)
    torch.testing.assert_close(K, nngp_kernel(X, depth=1, **options))
    torch.testing.assert_close(Theta, ntk_kernel(X, depth=1, **options))


def test_tiles_do_not_change_convolutional_kernels(monkeypatch):
    X = rows(2, 23, 20).reshape(46, 1, 4, 5)
    options = {"activation": "erf", "filter_sizes": [3, 2], "C_b": 0.1}
    K, Theta = cnn_nngp_kernel(X, **options), cnn_ntk_kernel(X, **options)
    assert torch.equal(K, K.mT)
    monkeypatch.setattr(kernels, "_TILE", 40)
    for kernel, whole in ((cnn_nngp_kernel, K), (cnn_ntk_kernel, Theta)):
        torch.testing.assert_close(kernel(X, **options), whole)
        torch.testing.assert_close(kernel(X, X[:9].clone(), **options), whole[:, :9])


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_convolutional_kernels_are_differentiable(padding):
    X = rows(3, 8).reshape(3, 2, 4).requires_grad_()
    C_W = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def both(X, C_W):
        options = {"activation": "relu", "filter_sizes": [2, 2], "padding": padding, "C_W": C_W}
        return cnn_nngp_kernel(X, **options), cnn_ntk_kernel(X, **options)

    assert torch.autograd.gradcheck(both, (X, C_W))
    with torch.no_grad():
        plain = both(X, C_W)
    torch.testing.assert_close(both(X, C_W), plain, atol=1e-12, rtol=1e-12)


def test_blank_pictures_have_finite_kernels():
    X = torch.zeros(2, 1, 4, 4)
    X[1, 0, 0, 0] = 1.0
    K = cnn_ntk_kernel(X, activation="relu", filter_sizes=[3, 3], C_W=2.0)
    assert K.dtype == torch.float32
    assert K.isfinite().all()
    assert (K.diagonal() > 0).tolist() == [False, True]


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"X": torch.ones(3, 4)}, ValueError, r"X must have shape \(n, channels, length, ...\)"),
        ({"X": torch.ones(3, 1, 4).int()}, TypeError, "X must be a floating-point tensor"),
        ({"Z": torch.ones(3, 1, 5)}, ValueError, "must agree in all but the number of rows"),
        ({"filter_sizes": []}, ValueError, "filter_sizes must be one or more positive"),
        ({"filter_sizes": [0]}, ValueError, "filter_sizes must be one or more positive"),
        ({"strides": [1, 1]}, ValueError, "strides must be positive, one for each filter"),
        ({"padding": "full"}, ValueError, "padding must be"),
        ({"filter_sizes": [5], "padding": "valid"}, ValueError, "a window of 5 does not fit the 4"),
        ({"C_W": 0.0}, ValueError, "C_W must be positive"),
    ],
)
def test_wrong_convolutions_are_refused(changes, error, match):
    arguments = {"X": torch.ones(3, 1, 4), "activation": "relu", "filter_sizes": [2]} | changes
    with pytest.raises(error, match=match):
        cnn_nngp_kernel(arguments.pop("X"), **arguments)


def test_posterior_by_hand():
    """K_t K⁻¹ y of arXiv 2107.01408's example, by Cramer's rule."""
    K = torch.tensor([[2.0, 0.5, 0.3], [0.5, 1.0, 0.2], [0.3, 0.2, 1.5]], dtype=torch.float64)
    y = torch.tensor([1.0, -2.0], dtype=torch.float64)
    mean, cov = gp_posterior(K[:2, :2], K[2:, :2], K[2:, 2:], y)
    assert mean.item() == pytest.approx(-0.1714286, abs=1e-7)
    quadratic = (0.3**2 * 1 - 2 * 0.3 * 0.2 * 0.5 + 0.2**2 * 2) / 1.75
    assert cov.item() == pytest.approx(1.5 - quadratic)


def test_posterior_equals_scikit_learns():
    X, T = rows(20, 2), rows(6, 2, seed=1)
    kernel = ConstantKernel(1.3) * RBF(0.8)
    y = torch.stack([X.sum(1), X.prod(1)], 1)
    reference = GaussianProcessRegressor(kernel, alpha=0.1, optimizer=None).fit(X, y)
    expected_mean, expected_cov = reference.predict(T.numpy(), return_cov=True)
    K = [torch.from_numpy(kernel(a.numpy(), b.numpy())) for a, b in ((X, X), (T, X), (T, T))]
    mean, cov = gp_posterior(*K, y, noise=0.1)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-10)
    np.testing.assert_allclose(cov, expected_cov[..., 0], atol=1e-10)
    vector, variance = gp_posterior(
        K[0], K[1], K[2].diagonal(), y[:, 0], noise=torch.full((20,), 0.1)
    )
    torch.testing.assert_close(vector, mean[:, 0])
    torch.testing.assert_close(variance, cov.diagonal())
    batched = gp_posterior(*(k.expand(3, *k.shape) for k in (*K, y)), noise=0.1)
    torch.testing.assert_close(batched[0][1], mean)


def test_posterior_passes_gradients():
    L, y, t = rows(3, 3), rows(3, seed=1), rows(2, 3, seed=2)

    def mean(L, y):
        K = L @ L.mT
        return gp_posterior(K, t @ K, t @ K @ t.mT, y, noise=0.5)

    assert torch.autograd.gradcheck(mean, (L.requires_grad_(), y.requires_grad_()))


def test_posterior_refuses_what_does_not_fit():
    K, y = torch.eye(3), torch.ones(3)
    with pytest.raises(ValueError, match="disagree on the number of training points"):
        gp_posterior(K, torch.ones(2, 4), torch.eye(2), y)
    with pytest.raises(ValueError, match=r"K_tt must have shape \(..., 2, 2\) or \(..., 2\)"):
        gp_posterior(K, torch.ones(2, 3), torch.eye(5), y)
    with pytest.raises(ValueError, match="noise must not be negative"):
        gp_posterior(K, torch.ones(2, 3), torch.eye(2), y, noise=-1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular_kernels_get_jitter_and_a_warning(dtype):
    v = rows(4, 1, dtype=dtype)
    K = torch.stack([torch.eye(4, dtype=dtype), v @ v.mT])
    with pytest.warns(RuntimeWarning, match="singular to rounding"):
        L = psd_safe_cholesky(K)
    assert torch.equal(L[0], torch.eye(4, dtype=dtype))  # only what failed is changed
    torch.testing.assert_close(L @ L.mT, K, atol=1e-3, rtol=0)


def test_indefinite_kernels_are_refused():
    with pytest.raises(ValueError, match="kernel matrix is not positive definite; increase noise"):
        psd_safe_cholesky(torch.diag(torch.tensor([1.0, -1.0])))
    with pytest.raises(ValueError, match="not finite"):
        psd_safe_cholesky(torch.full((2, 2), math.nan))
    with pytest.raises(ValueError, match=r"K must have shape \(..., n, n\), got \(2, 3\)"):
        psd_safe_cholesky(torch.ones(2, 3))


# Empirical NTK


def test_trained_ensembles_are_gaussian_with_the_kernels_moments():
    """Linear in features φ, f = φᵀw with w ~ N(0, I), gradient descent in any fixed metric M."""
    phi, psi = rows(3, 5, seed=1), rows(4, 5, seed=2)
    M = torch.diag(torch.tensor([1.0, 2.0, 0.5, 1.5, 3.0], dtype=torch.float64))
    y = rows(3, 2, seed=3)
    kernels_of = (phi @ phi.T, psi @ phi.T, psi @ psi.T, phi @ M @ phi.T, psi @ M @ phi.T)
    for time in (0.0, 0.3, math.inf):
        flow = torch.eye(5, dtype=torch.float64)  # w(time) = flow w(0) + push y
        if math.isinf(time):
            push = M @ phi.T @ torch.linalg.inv(phi @ M @ phi.T)
            flow = flow - push @ phi
        else:
            flow = torch.linalg.matrix_exp(-time * M @ phi.T @ phi)
            steps = torch.linspace(0, time, 20001, dtype=torch.float64)[:, None, None]
            path = torch.linalg.matrix_exp(-steps[::100] * (M @ phi.T @ phi)) @ (M @ phi.T)
            push = torch.trapezoid(path, steps[::100, 0, 0], dim=0)
        mean, covariance = ntk_posterior(*kernels_of, y, time=time)
        torch.testing.assert_close(mean, psi @ push @ y, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(covariance, psi @ flow @ flow.T @ psi.T, atol=1e-8, rtol=1e-8)
        parts = (*kernels_of[:2], kernels_of[2].diagonal(), *kernels_of[3:])
        _, variance = ntk_posterior(*parts, y[:, 0], time=time)
        torch.testing.assert_close(variance, covariance.diagonal())


def test_training_the_last_layer_is_conditioning_without_noise():
    X = rows(7, 3)
    K = nngp_kernel(X, activation="relu", depth=2)
    y = rows(4, 1)[:, 0]
    parts = K[:4, :4], K[4:, :4], K[4:, 4:]
    trained = ntk_posterior(*parts, K[:4, :4], K[4:, :4], y)
    torch.testing.assert_close(trained, gp_posterior(*parts, y))
    untrained = ntk_posterior(*parts, K[:4, :4], K[4:, :4], y, time=0.0)
    torch.testing.assert_close(untrained, (torch.zeros(3, dtype=torch.float64), parts[2]))


@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        (3, torch.ones(2, 2), r"Theta_xx must have shape \(3, 3\)"),
        (2, torch.ones(3), r"K_tt must have shape \(2, 2\) or \(2,\)"),
        (5, torch.ones(4), r"y must have shape \(3,\)"),
        (3, torch.zeros(3, 3), "not positive definite"),
    ],
)
def test_trained_ensembles_refuse_what_does_not_fit(place, value, match):
    arguments = [torch.eye(3), torch.ones(2, 3), torch.ones(2), torch.eye(3), torch.ones(2, 3),
                 torch.ones(3)]  # fmt: skip
    arguments[place] = value
    with pytest.raises(ValueError, match=match):
        ntk_posterior(*arguments)
    with pytest.raises(ValueError, match="time must not be negative"):
        ntk_posterior(*[torch.ones(1, 1)] * 5, torch.ones(1), time=-1.0)


def test_empirical_ntk_is_the_product_of_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    model[0].bias.requires_grad_(False)
    X, Z = rows(5, 3), rows(4, 3, seed=1)

    def gradient(x, c):
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.cat([g.flatten() for g in torch.autograd.grad(model(x)[c], trained)])

    expected = torch.stack(
        [
            torch.stack([sum(gradient(x, c) @ gradient(z, c) for c in (0, 1)) / 2 for z in Z])
            for x in X
        ]
    )
    torch.testing.assert_close(empirical_ntk(model, X, Z), expected)
    torch.testing.assert_close(empirical_ntk(model, X, Z, chunk_size=2), expected)
    torch.testing.assert_close(empirical_ntk(model, X, chunk_size=2), empirical_ntk(model, X, X))
    assert all(p.grad is None for p in model.parameters())


def test_empirical_ntk_refuses_what_cannot_be():
    model = nn.Linear(2, 1)
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        empirical_ntk(model, torch.ones(2, 2), chunk_size=0)
    with pytest.raises(ValueError, match="no parameter requires gradients"):
        empirical_ntk(model.requires_grad_(False), torch.ones(2, 2))
