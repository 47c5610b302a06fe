"""The book's numbers and closed forms, flows against kernels, real networks against theory."""

import copy
import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from paperworks import nets
from paperworks.wide import (
    criticality,
    diagnose,
    gaussian_dual,
    gaussian_mean,
    gaussian_mean2,
    init_critical_,
    kernel_flow,
    layer_learning_rates,
    nngp_kernel,
    ntk_flow,
    ntk_kernel,
    optimal_aspect_ratio,
    susceptibilities,
    vertex_flow,
)

KERNELS = torch.tensor([1e-3, 0.1, 1.0, 7.0, 300.0], dtype=torch.float64)
GELU = criticality("gelu")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def chain(activation, depth=10, width=32, n_in=20, n_out=4):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nets.MLP([n_in, *[width] * (depth - 1), n_out], activation)


def flow_of_one(activation, K1, depth, C_W, C_b=0.0):
    return vertex_flow(activation, K1, [100] * depth, C_W, C_b)


# Checks


def test_check_1_variances_of_the_first_two_kinds():
    relu = criticality("relu")
    assert (relu.C_W, relu.C_b, relu.kind) == (2, 0, "scale-invariant")
    for chi in susceptibilities("relu", KERNELS, C_W=2.0):
        torch.testing.assert_close(chi, torch.ones_like(KERNELS), atol=1e-12, rtol=0)
    for name, C_W in (("tanh", 1), ("sin", 1), ("erf", math.pi / 4)):
        found = criticality(name)
        assert (found.kind, found.C_b, found.K_star) == ("K*=0", 0, 0)
        assert found[0] == pytest.approx(C_W, abs=1e-12)
        assert (found.p_0, found.p_par, found.p_perp) == pytest.approx((1, 2, 1))
        assert found.nu == pytest.approx(2 / 3)


def test_check_2_half_stable_variances():
    assert GELU[:3] == pytest.approx((1.98305826, 0.17292239, (3 + math.sqrt(17)) / 2), abs=5e-9)
    swish = criticality(nn.SiLU())
    assert swish[:3] == pytest.approx((1.98800468, 0.55514317, 14.32017362), abs=5e-9)
    for activation, found in (("gelu", GELU), (nn.SiLU(), swish)):
        assert found.kind == "half-stable"
        chi = susceptibilities(activation, found.K_star, found.C_W)
        assert [x.item() for x in chi] == pytest.approx([1, 1], abs=1e-9)
        K, _ = flow_of_one(activation, found.K_star, 3, found.C_W, found.C_b)
        assert K.tolist() == pytest.approx([found.K_star] * 3, rel=1e-9)


def test_check_3_tanh_flow():
    K, V = flow_of_one("tanh", 1.0, 200, 1.0)
    assert [K[layer - 1].item() for layer in (2, 5, 100)] == pytest.approx(
        [0.394294, 0.127905, 0.005121], abs=6e-7
    )
    ratio = V / K**2
    assert [ratio[layer - 1].item() for layer in (10, 100, 200)] == pytest.approx(
        [5.5235, 64.804, 131.27], rel=4e-5
    )
    assert 2 * 200 * K[-1].item() == pytest.approx(1, rel=0.03)
    assert (ratio[-1] - ratio[-2]).item() == pytest.approx(2 / 3, rel=5e-3)


def test_check_4_relu_angle_map():
    gram = torch.eye(2, dtype=torch.float64) / 2  # K¹ of size 1
    K = kernel_flow("relu", gram, 2, C_W=2.0)
    torch.testing.assert_close(K[0], torch.eye(2, dtype=torch.float64))
    assert K[1].flatten().tolist() == pytest.approx([1, 1 / math.pi, 1 / math.pi, 1])


def test_check_5_relu_ntk_grows_by_layers():
    gram = rows(4, 6) @ rows(4, 6).mT / 6
    Theta = ntk_flow("relu", gram, 7, C_W=2.0, lambda_W=0.3, lambda_b=1.7)
    layer = torch.arange(1, 8, dtype=torch.float64)[:, None]
    torch.testing.assert_close(
        Theta.diagonal(dim1=1, dim2=2), layer * (1.7 + 0.3 * gram.diagonal())
    )


def test_check_6_gelu_with_kaiming_and_critical():
    K, _ = flow_of_one("gelu", 1.0, 20, 2.0)
    assert K[9].item() == pytest.approx(0.0535, abs=5e-5)
    assert K[19].item() == pytest.approx(6.4e-5, abs=5e-7)
    K, _ = flow_of_one("gelu", 1.0, 100, GELU.C_W, GELU.C_b)
    assert [K[9].item(), K[99].item()] == pytest.approx([1.1280, 1.6814], abs=5e-5)


def test_check_7_real_relu_networks_follow_the_exact_law():
    n, draws, layers, generator = 64, 4000, [2, 4, 6], rng()
    exact = [n * ((1 + 5 / n) ** (layer - 1) - 1) for layer in layers]
    assert exact == pytest.approx([5.00, 16.20, 29.22], abs=5e-3)
    C_W = criticality("relu").C_W
    products = torch.zeros(6, dtype=torch.float64)
    for _ in range(draws // 200):
        z = torch.full((200, n, 1), C_W**-0.5)  # what the first layer sees
        for layer in range(6):
            W = torch.randn(200, n, n, generator=generator) * math.sqrt(C_W / n)
            z = W @ (z if layer == 0 else z.relu())
            squares = z[..., 0].double().square()
            pairs = squares.sum(1) ** 2 - squares.square().sum(1)
            products[layer] += pairs.sum() / (n * (n - 1) * draws)
    for layer, expected in zip(layers, exact):  # the linear law is 14 % off in layer 6
        assert n * (products[layer - 1].item() - 1) == pytest.approx(expected, rel=0.09)


# Averages


@pytest.mark.parametrize("K", [1e-6, 0.3, 40.0])
def test_means_of_known_functions(K):
    assert gaussian_mean(torch.relu, K).item() == pytest.approx(math.sqrt(K / 2 / math.pi))
    assert gaussian_mean(lambda z: z**6, K).item() == pytest.approx(15 * K**3)
    tail = gaussian_mean(lambda z: (z > 0.7).double(), K, breakpoints=[0.7]).item()
    assert tail == pytest.approx(0.5 * math.erfc(0.7 / math.sqrt(2 * K)), abs=1e-12)


def test_means_keep_shape_and_dtype():
    K = torch.tensor([[0.0, 1.0, 4.0]])
    assert gaussian_mean(torch.square, K).tolist() == [[0, 1, 4]]
    assert gaussian_mean(torch.square, K.bfloat16()).dtype == torch.bfloat16
    assert gaussian_mean(torch.cos, 0.0).item() == pytest.approx(1)


@settings(max_examples=12, deadline=None)
@given(a=st.floats(0.05, 5), b=st.floats(0.05, 5), rho=st.floats(-1, 1))
def test_pair_means_equal_the_duals(a, b, rho):
    cov = rho * math.sqrt(a * b)
    K = torch.tensor([[a, cov], [cov, b]], dtype=torch.float64)
    for name in ("relu", "gelu"):
        dual = gaussian_dual(name)
        mean = gaussian_mean2(dual.activation, dual.activation, K).item()
        assert mean == pytest.approx(dual(cov, a, b).item(), abs=1e-7)


def test_pair_means_of_two_functions_by_hand():
    K = torch.tensor([[[2.0, 0.5], [0.5, 1.0]], [[1.0, 1.0], [1.0, 1.0]]], dtype=torch.float64)
    assert gaussian_mean2(lambda z: z, torch.sin, K).tolist() == pytest.approx(
        [0.5 * math.exp(-0.5), math.exp(-0.5)]  # Stein
    )
    step = gaussian_mean2(lambda z: (z > 1).double(), lambda z: (z > 1).double(), K[1], [1.0])
    assert step.item() == pytest.approx(0.5 * math.erfc(1 / math.sqrt(2)), abs=1e-12)


ACTIVATIONS = [
    "relu", "tanh", "sin", "gelu", "silu", "sigmoid", "softplus", "elu", "selu",
    nn.Hardtanh(), nn.ReLU6(), nn.Hardswish(), nn.Softshrink(), nn.LeakyReLU(0.2),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_parallel_susceptibility_is_the_slope_of_the_kernel(activation):
    """Against differences of ⟨σ²⟩; with kinks, the derivative of the integrand would not do."""
    phi = gaussian_dual(activation).activation
    kinks = [-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0, 6.0]
    K = torch.tensor([0.2, 1.0, 4.0], dtype=torch.float64)
    high, low = (gaussian_mean(lambda z: phi(z) ** 2, K * s, kinks) for s in (1 + 1e-5, 1 - 1e-5))
    chi_par, chi_perp = susceptibilities(activation, K, C_W=1.5)
    torch.testing.assert_close(chi_par, 1.5 * (high - low) / (2e-5 * K), rtol=1e-6, atol=1e-8)

    def squared_derivative(z):
        z.requires_grad_()
        return torch.autograd.grad(phi(z).sum(), z)[0].square()

    slope = gaussian_mean(squared_derivative, K, kinks)
    torch.testing.assert_close(chi_perp, 1.5 * slope, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["tanh", "gelu", "softplus", "sigmoid"])
def test_small_kernels_lose_no_digits(name):
    """g′(0) = σ_1² + σ_0σ_2 and ⟨σ′²⟩ = σ_1²."""
    zero = torch.zeros((), dtype=torch.float64)
    phi = gaussian_dual(name).activation
    s0, s1 = phi(zero), torch.func.grad(phi)(zero)
    s2 = torch.func.grad(torch.func.grad(phi))(zero)
    chi_par, chi_perp = susceptibilities(name, torch.tensor([0.0, 1e-9, 1e-6]).double())
    torch.testing.assert_close(chi_par, (s1**2 + s0 * s2).expand(3), atol=5e-6, rtol=0)
    torch.testing.assert_close(chi_perp, (s1**2).expand(3), atol=2e-6, rtol=0)


# Criticality


def test_scale_invariant_activations_by_hand():
    leaky = criticality(nn.LeakyReLU(0.5))
    assert leaky[:2] == pytest.approx((1.6, 0))
    assert leaky.nu == pytest.approx(3 * 0.53125 / 0.625**2 - 1)
    assert criticality(nn.Identity()).nu == pytest.approx(2)
    assert criticality("abs")[:2] == pytest.approx((1, 0))
    assert criticality(nn.ReLU(inplace=True)) == pytest.approx(criticality("relu"), nan_ok=True)
    assert math.isnan(leaky.K_star)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.Softsign(), (1, 3, 2, 2 / 3)),
        (nn.ELU(), (1, 3, 2, 2 / 3)),
        (nn.ELU(inplace=True), (1, 3, 2, 2 / 3)),
        (nn.Tanh(), (1, 2, 1, 2 / 3)),
        (lambda z: torch.tanh(z) + 0.1 * torch.tanh(z) ** 2, (1, 2, 1.96 / 1.97, 2 / 3)),
    ],
)
def test_powers_are_those_of_the_flow(activation, expected):
    """χ ≈ 1 − p/ℓ, K ~ ℓ^{−p_0} and V/K² ≈ νℓ in layer 400."""
    found = criticality(activation)
    assert (found.C_W, found.p_par, found.p_perp, found.nu) == pytest.approx(expected, rel=2e-2)
    K, V = flow_of_one(activation, 0.05, 400, found.C_W, found.C_b)
    assert 400 * math.log(K[-2] / K[-1]) == pytest.approx(found.p_0, rel=0.08)
    chi_par, chi_perp = susceptibilities(activation, K[-1], found.C_W)
    powers = [400 * (1 - chi.item()) for chi in (chi_par, chi_perp)]
    assert powers == pytest.approx([found.p_par, found.p_perp], rel=0.08)
    assert (V / K**2)[-1].item() / 400 == pytest.approx(found.nu, rel=0.08)


def test_bent_and_straight_activations():
    selu = criticality("selu")
    right, left = 1.0507009873554805, 1.0507009873554805 * 1.6732632423543772
    assert selu[0] == pytest.approx(2 / (right**2 + left**2))
    assert (selu.kind, selu.p_0, selu.p_perp) == ("K*=0", 2, 2)
    for activation, C_W, nu in ((nn.Hardtanh(), 1, 2 / 3), (nn.ReLU6(), 2, 5 / 3)):
        found = criticality(activation)
        assert (found.kind, found.C_W, found.p_0) == ("K*=0", C_W, 0)
        assert found.nu == pytest.approx(nu)


@pytest.mark.parametrize("activation", ["sigmoid", "softplus", "cos", torch.square])
def test_activations_without_criticality(activation):
    found = criticality(activation)
    assert found.kind == "none"
    assert np.isnan([found.C_W, found.C_b, found.K_star, found.nu, found.p_par]).all()
    with pytest.raises(ValueError, match="no criticality for"):
        optimal_aspect_ratio(activation, 1)
    with pytest.raises(ValueError, match="no criticality for"):
        layer_learning_rates(activation, 3)


def test_a_half_stable_kernel_moves_one_way():
    for start in (0.9 * GELU.K_star, 1.1 * GELU.K_star):
        K, _ = flow_of_one("gelu", start, 50, GELU.C_W, GELU.C_b)
        assert (K.diff() > 0).all() or (K.diff() < 0).all()
    assert GELU.nu == pytest.approx(
        flow_of_one("gelu", GELU.K_star, 11, GELU.C_W, GELU.C_b)[1][10] / 10 / GELU.K_star**2
    )


@pytest.mark.parametrize(("activation", "sigma"), [("relu", torch.relu), ("abs", torch.abs)])
def test_skips_change_the_fluctuations(activation, sigma):
    """z′ = Wσ(z) + γz, drawn layer by layer: given z, the sums Wσ(z) are Gaussian."""
    n, generator = 256, rng()
    C_W, nu = (criticality(activation, residual=0.5)[i] for i in (0, 6))
    z, growth = torch.randn(8000, n, generator=generator), []
    for _ in range(8):
        variance = C_W * sigma(z).square().mean(1, keepdim=True)
        z = variance.sqrt() * torch.randn(z.shape, generator=generator) + 0.5 * z
        squares = z.double().square()
        pairs = (squares.sum(1) ** 2 - squares.square().sum(1)).mean() / (n * (n - 1))
        growth.append(n * (pairs / squares.mean() ** 2 - 1).item())
    assert squares.mean().item() == pytest.approx(1, rel=0.02)
    assert (growth[7] - growth[2]) / 5 == pytest.approx(nu, rel=0.12)


def test_skips_by_hand():
    assert criticality("relu", residual=0.6)[0] == pytest.approx(1.28)
    skew = 4 / math.pi * (0.64 * 2) ** 2 * 1.5
    assert criticality("relu", residual=0.6).nu == pytest.approx(
        0.64 * (0.64 * 5 + 4 * 0.36) + skew
    )
    assert criticality(nn.Identity(), residual=0.6).nu == pytest.approx(0.64 * (1.28 + 1.44))


def test_aspect_ratio_by_hand():
    assert optimal_aspect_ratio("tanh", 10) == pytest.approx(4 / (50 * 2 / 3))
    assert optimal_aspect_ratio("relu", 1, residual=0.9) > optimal_aspect_ratio("relu", 1)
    with pytest.raises(ValueError, match="n_out must be a positive integer, got 0"):
        optimal_aspect_ratio("tanh", 0)


# Flows


@pytest.mark.parametrize("activation", ["relu", "erf", "gelu", "tanh", nn.ELU(inplace=True)])
def test_last_layers_are_those_of_the_deep_kernels(activation):
    X = rows(200, 8)  # more than one tile
    gram = X @ X.mT / 8
    plain = nn.ELU() if isinstance(activation, nn.ELU) else activation
    options = {"C_W": 1.7, "C_b": 0.2}
    K = kernel_flow(activation, gram, 4, **options)
    Theta = ntk_flow(activation, gram, 4, **options, lambda_W=1.7, lambda_b=0.2)
    assert K.shape == Theta.shape == (4, 200, 200)
    expected = nngp_kernel(X, activation=plain, depth=3, **options)
    torch.testing.assert_close(K[-1], expected, rtol=1e-9, atol=1e-9)
    expected = ntk_kernel(X, activation=plain, depth=3, **options)
    torch.testing.assert_close(Theta[-1], expected, rtol=1e-9, atol=1e-9)
    diagonal, _ = vertex_flow(activation, K[0].diagonal(), [9] * 4, **options)
    torch.testing.assert_close(diagonal, K.diagonal(dim1=1, dim2=2), rtol=1e-7, atol=0)


def test_ntk_of_a_real_network():
    """Gradients of a wide network, biases and weights at rates of their own."""
    n, X = 2000, rows(3, 5)
    net = init_critical_(nets.MLP([5, n, n, 1], "tanh").double(), generator=rng())
    grams = [torch.zeros(3, 3, dtype=torch.float64) for _ in range(2)]
    gradients = [torch.autograd.grad(net(x), list(net.parameters())) for x in X[:, None]]
    for i, per_x in enumerate(gradients):
        for j, per_z in enumerate(gradients):
            for a, b in zip(per_x, per_z):
                rate = 0.5 / a.shape[1] if a.ndim == 2 else 2.0
                grams[0][i, j] += rate * (a * b).sum()
    Theta = ntk_flow("tanh", X @ X.mT / 5, 3, 1.0, lambda_W=0.5, lambda_b=2.0)[-1]
    torch.testing.assert_close(grams[0], Theta, rtol=0.1, atol=0.05)


@pytest.mark.parametrize(("activation", "start"), [("relu", 1.0), ("tanh", 0.5), ("gelu", 3.56)])
def test_layers_contribute_alike(activation, start):
    """The layer's share of Θ^L is λ times the product of χ_⊥ behind it."""
    depth, found = 60, criticality(activation)
    lambda_W, lambda_b = layer_learning_rates(activation, depth, lambda_W=2.0, lambda_b=3.0)
    start = (start - found.C_b) / found.C_W
    gram = torch.tensor([[start]], dtype=torch.float64)

    def shares(which, rates):
        shares = []
        for layer in (20, 58):
            rate = torch.zeros(depth, dtype=torch.float64)
            rate[layer] = rates[layer]
            other = "lambda_b" if which == "lambda_W" else "lambda_W"
            options = {which: rate, other: 0.0}
            Theta = ntk_flow(activation, gram, depth, found.C_W, found.C_b, **options)
            shares.append(Theta[-1].item())
        return torch.tensor(shares)

    for which, rates in (("lambda_W", lambda_W), ("lambda_b", lambda_b)):
        even = shares(which, rates)
        assert (even.max() / even.min()).item() < 1.35
    if activation == "tanh":
        uneven = shares("lambda_b", torch.ones(depth))
        assert (uneven.max() / uneven.min()).item() > 2


def test_vertex_with_unequal_widths_by_hand():
    """Linear layers: V^{ℓ+1} = (n_ℓ/n_{ℓ−1})V^ℓ + 2K²."""
    K, V = vertex_flow(nn.Identity(), torch.tensor([1.0, 2.0]), [10, 30, 15, 7], C_W=1.0)
    assert V[:, 0].tolist() == pytest.approx([0, 2, 8, 6])
    torch.testing.assert_close(V[:, 1], 4 * V[:, 0])
    assert torch.equal(K, torch.tensor([1.0, 2.0]).expand(4, 2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_flows_keep_the_dtype(dtype):
    gram = torch.eye(3, dtype=dtype)
    for flow in (kernel_flow, ntk_flow):
        values = flow("tanh", gram, 3, 1.0)
        assert values.dtype == dtype
        expected = flow("tanh", gram.double(), 3, 1.0)
        torch.testing.assert_close(values.double(), expected, rtol=1e-2, atol=1e-3)
    assert vertex_flow("tanh", torch.ones((), dtype=dtype), [4, 4], 1.0)[1].dtype == dtype


def test_zero_inputs_flow():
    K = kernel_flow("relu", torch.zeros(2, 2), 3, 2.0, 0.5)
    assert K[0].tolist() == [[0.5, 0.5], [0.5, 0.5]]
    for name in ("relu", "tanh"):
        assert not kernel_flow(name, torch.zeros(2, 2), 3, 1.0).any()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gram0": torch.ones(2, 3)}, r"gram0 must have shape \(P, P\), got \(2, 3\)"),
        ({"gram0": [[1.0]]}, "gram0 must have shape"),
        ({"gram0": torch.tensor([[1.0, 2.0], [2.0, 1.0]])}, "gram0 is no covariance"),
        ({"gram0": torch.tensor([[1.0, 0.5], [0.0, 1.0]])}, "gram0 is no covariance"),
        ({"gram0": torch.tensor([[math.nan]])}, "gram0 must be floating-point and finite"),
        ({"gram0": torch.tensor([[-1.0]])}, "gram0 must not have negative"),
        ({"depth": 0}, "depth must be a positive integer, got 0"),
        ({"C_W": 0.0}, "C_W must be positive and finite, got 0"),
        ({"C_b": -1.0}, "C_b must not be negative"),
        ({"activation": lambda z: z.sum()}, "activation must be elementwise"),
        ({"activation": nn.Softmax(-1)}, r"activation must be elementwise: shape \(N,\) -> \(N,\)"),
        ({"activation": "swish"}, "activation 'swish' is unknown"),
    ],
)
def test_wrong_flows_are_refused(change, match):
    arguments = {"activation": "relu", "gram0": torch.eye(2), "depth": 2, "C_W": 2.0} | change
    for flow in (kernel_flow, ntk_flow):
        with pytest.raises(ValueError, match=match):
            flow(**arguments)


def test_other_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="lambda_W must be a number or 3 numbers"):
        ntk_flow("relu", torch.eye(2), 3, 2.0, lambda_W=[1.0, 2.0])
    with pytest.raises(ValueError, match="lambda_b must be finite and not negative"):
        ntk_flow("relu", torch.eye(2), 3, 2.0, lambda_b=-1.0)
    with pytest.raises(ValueError, match="K1 must be finite and not negative"):
        vertex_flow("relu", -1.0, [3], 2.0)
    with pytest.raises(ValueError, match="widths must be positive integers"):
        vertex_flow("relu", 1.0, [], 2.0)
    with pytest.raises(ValueError, match="K must be finite and not negative, got -1"):
        susceptibilities("relu", -1.0)
    with pytest.raises(ValueError, match="f must be elementwise"):
        gaussian_mean(lambda z: z.sum(), 1.0)
    with pytest.raises(ValueError, match=r"K must have shape \(..., 2, 2\)"):
        gaussian_mean2(torch.relu, torch.relu, torch.eye(3))
    with pytest.raises(ValueError, match="activation must be elementwise"):
        criticality(nn.Softmax(-1))
    with pytest.raises(ValueError, match=r"residual must lie in \[0, 1\), got 1"):
        criticality("relu", residual=1)
    with pytest.raises(ValueError, match="residual must be 0"):
        criticality("tanh", residual=0.5)


# Networks


class Own(nn.Module):
    """A reader's own class: flattening, functions and modules."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 30)
        self.body = nn.Sequential(nn.Linear(30, 30), nn.Sequential(nn.Tanh(), nn.Dropout(0.5)))
        self.head = nn.Linear(30, 3)

    def forward(self, x):
        return self.head(self.body(torch.tanh(self.first(x.flatten(1))))).log_softmax(-1)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.first(x)
        return x + self.second(x.relu())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [None, "gelu", nn.GELU()])
def test_initialisation_draws_the_variances(dtype, activation):
    net = chain(nn.GELU(), depth=3, width=400).to(dtype)
    before = torch.random.get_rng_state()
    assert init_critical_(net, activation, generator=rng()) is net
    assert torch.equal(torch.random.get_rng_state(), before)
    weight, bias = net[2].weight, net[2].bias
    assert weight.dtype == dtype
    assert 400 * weight.double().square().mean().item() == pytest.approx(GELU.C_W, rel=0.02)
    assert bias.double().square().mean().item() == pytest.approx(GELU.C_b, rel=0.3)
    again = init_critical_(copy.deepcopy(net), activation, generator=rng())
    assert torch.equal(again[2].weight, weight)
    other = init_critical_(copy.deepcopy(net), activation, generator=rng(1))
    assert not torch.equal(other[2].weight, weight)


def test_initialisation_finds_the_activation():
    assert (init_critical_(Own()).head.bias == 0).all()
    functional = nn.Sequential(nn.Linear(9, 9), nets.MLP([9, 9, 9], torch.sin))
    with pytest.raises(ValueError, match=r"the network has Identity\(\), Elementwise\(sin\)"):
        init_critical_(functional)
    weight = copy.deepcopy(functional[0].weight)
    with pytest.raises(ValueError, match="no criticality for Sigmoid"):
        init_critical_(functional, nn.Sigmoid())
    assert torch.equal(functional[0].weight, weight)
    assert init_critical_(Residual(), "relu").first.weight.square().mean() * 4 > 0.5
    with pytest.raises(ValueError, match=r"expects a chain of Linear.*branches or joins"):
        init_critical_(Residual())
    with pytest.raises(ValueError, match=r"has no nn.Linear"):
        init_critical_(nn.Tanh())


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_without_criticality_gradients_keep_their_size(name):
    activation = {"sigmoid": nn.Sigmoid(), "softplus": nn.Softplus()}[name]
    net = init_critical_(chain(activation, depth=30, width=64), strict=False, generator=rng())
    ratio = diagnose(net, torch.randn(5, 20, generator=rng())).gradient_ratio[5:29]
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.25)


def test_diagnosis_measures_what_theory_predicts():
    net = init_critical_(chain("tanh", depth=8, width=300), generator=rng())
    table = diagnose(net, torch.randn(50, 20, generator=rng()))
    assert table.layer.tolist() == [str(2 * layer) for layer in range(8)]
    assert table.width.tolist() == [300] * 7 + [4]
    assert table.C_W[1:7].tolist() == pytest.approx([1] * 6, rel=0.02)
    assert (table.C_b == 0).all()
    np.testing.assert_allclose(table.K[:7], table.K_predicted[:7], rtol=0.15)
    np.testing.assert_allclose(table.gradient_ratio[1:7], table.chi_perp[1:7], rtol=0.25)
    _, V = vertex_flow("tanh", table.K_predicted[0], [300] * 8, 1.0)
    K, _ = vertex_flow("tanh", table.K_predicted[0], [300] * 8, 1.0)
    np.testing.assert_allclose(table.fluctuation, V / K**2 / 300, rtol=0.15, atol=1e-4)
    assert np.isnan([table.chi_par[0], table.chi_perp[0], table.gradient_ratio[0]]).all()


def test_drawn_copies_show_the_fluctuations():
    net = init_critical_(chain("tanh", depth=6, width=20), generator=rng())
    state = copy.deepcopy(net.state_dict())
    table = diagnose(net, torch.randn(4, 20, generator=rng()), n_draws=500, generator=rng())
    assert all(torch.equal(net.state_dict()[name], state[name]) for name in state)
    np.testing.assert_allclose(table.K, table.K_predicted, rtol=0.1)
    np.testing.assert_allclose(table.gradient_ratio[1:], table.chi_perp[1:], rtol=0.12)
    np.testing.assert_allclose(table.fluctuation_measured[1:5], table.fluctuation[1:5], rtol=0.3)


def verdicts(activation, C_W, C_b=0.0, depth=20, width=100):
    net, generator = chain(activation, depth, width), rng()
    for layer in net:
        if isinstance(layer, nn.Linear):
            shape = layer.weight.shape
            scale = math.sqrt(C_W / shape[1])
            layer.weight.data = torch.randn(shape, generator=generator) * scale
            layer.bias.data = torch.randn(shape[0], generator=generator) * math.sqrt(C_b)
    return diagnose(net, torch.randn(20, 20, generator=generator)).verdict.tolist()


@pytest.mark.parametrize(
    ("activation", "C_W", "C_b", "said"),
    [
        (
            "relu",
            1.0,
            0.0,
            r"ordered: gradients fall .* 1.[45] layers, the signal .* 1.[45] ",
        ),
        (
            "relu",
            3.0,
            0.0,
            r"chaotic: gradients grow .* 2.[456] layers, the signal .* 2.[456] ",
        ),
        ("relu", 2.0, 0.0, "critical: signal and gradients survive this depth"),
        (
            "tanh",
            0.5,
            0.0,
            r"ordered: .* 1.[45] layers, the signal \(K\) every 1.[45] .*C_W = 1, C_b = 0",
        ),
        ("tanh", 0.5, 0.1, "ordered: .* all inputs come to look alike"),
        ("tanh", 4.0, 0.0, "chaotic: .*, like inputs part"),
        ("tanh", 1.0, 0.0, "critical: .* only by a power of depth"),
        ("gelu", 2.0, 0.0, r"ordered: .* 1.[45] layers, the signal .*C_W = 1.983, C_b = 0.1729"),
        ("gelu", GELU.C_W, GELU.C_b, "critical: signal and gradients survive this depth"),
    ],
)
def test_verdicts_name_the_phase(activation, C_W, C_b, said):
    found = verdicts(activation, C_W, C_b)
    assert found[0].startswith("first layer")
    assert found[-1].startswith("readout: gradients reach the first layer")
    for verdict in found[1:-1]:
        assert re.match(said, verdict), verdict


def test_verdicts_say_when_the_depth_is_too_large():
    narrow, wide = (verdicts("relu", 2.0, depth=25, width=n) for n in (16, 500))
    assert "too deep for its width" in narrow[-1]
    needed = re.search(r"widen to (\d+) or use fewer layers", narrow[-1])
    assert int(needed[1]) == pytest.approx(5 * 24 / 0.3, rel=0.1)
    assert "for its width" in narrow[3]
    assert "too deep" not in narrow[3]
    assert not any("for its width" in verdict for verdict in wide)  # 0.24


def test_default_initialisation_is_ordered():
    """Trap: nn.Linear's own C_W is 1/3, at any width."""
    table = diagnose(chain("tanh", width=64), torch.randn(20, 20, generator=rng()))
    np.testing.assert_allclose(table.C_W[1:9], 1 / 3, rtol=0.05)
    assert table.verdict[4].startswith("ordered: gradients fall e-fold every 0.")


def test_readers_networks_are_understood():
    x = torch.randn(10, 3, 2, 2, generator=rng())
    own = Own().train()
    table = diagnose(init_critical_(own), x)
    assert own.training
    assert table.layer.tolist() == ["first", "body.0", "head"]
    direct = diagnose(own, x)
    assert direct.equals(table)  # dropout is off
    mixed = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 8),
        nn.Linear(8, 8), nn.ELU(inplace=True), nn.Hardtanh(), nn.Linear(8, 1), nn.Sigmoid(),
    )  # fmt: skip
    assert len(diagnose(mixed, x)) == 4
    assert mixed[2].inplace
    assert len(diagnose(nn.Linear(12, 4), x.flatten(1))) == 1
    assert diagnose(mixed.double(), x, n_draws=2).fluctuation_measured.isna().tolist()[-1]

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = F.relu(self.a(torch.flatten(x, 1)))
            return self.c(F.leaky_relu(F.dropout(self.b(x), training=self.training), 0.2).relu_())

    assert len(diagnose(Functional(), x)) == 3


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(self.layer(x).relu())


class Deciding(nn.Sequential):
    def forward(self, x):
        return super().forward(x) if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("net", "match"),
    [
        (Residual(), "branches or joins"),
        (Loop(), "'layer' is used more than once"),
        (Deciding(nn.Linear(4, 4)), "torch.fx cannot follow Deciding"),
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)), "LayerNorm"),
        (nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1), nn.Linear(4, 4)), "Softmax"),
        (nn.Sequential(nn.Conv1d(1, 1, 1), nn.ReLU()), "it has no Linear"),
        (nn.Sequential(nn.Linear(4, 6), nn.Unflatten(1, (2, 3)), nn.Linear(3, 1)), "not take what"),
    ],
)
def test_other_shapes_of_networks_are_refused(net, match):
    expected = f"expects a chain of Linear and elementwise activations.*{match}"
    with pytest.raises(ValueError, match=expected):
        diagnose(net, torch.ones(2, 4))


@pytest.mark.parametrize(
    ("x", "n_draws", "match"),
    [
        (torch.ones(2, 7), 0, r"x: the first layer takes \(N, 20\), gets \(2, 7\)"),
        (torch.ones(0, 20), 0, "x must be a floating-point tensor of inputs"),
        (torch.ones(2, 20, dtype=torch.int64), 0, "x must be a floating-point tensor"),
        (torch.full((2, 20), math.nan), 0, "x must be finite"),
        (torch.ones(2, 20), 1, "n_draws must be 0, or an integer of at least 2, got 1"),
        (torch.ones(2, 20), -3, "n_draws"),
    ],
)
def test_wrong_inputs_are_refused(x, n_draws, match):
    with pytest.raises(ValueError, match=match):
        diagnose(chain("relu", depth=3), x, n_draws)
