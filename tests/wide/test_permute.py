"""Theory against published values and dense algebra, trained networks against theory."""

import contextlib
import copy
import itertools
import math
from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import estimator_checks_generator

from paperworks.wide import (
    NTKMLP,
    EnsembleBinaryRegressor,
    PermutationTheory,
    empirical_ntk,
    ntk_kernel,
    train_ensemble,
)

KERNELS = ("ntk", "last_layer")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def binary(k, m):
    """All binary vectors of m ones."""
    rows = torch.zeros(math.comb(k, m), k, dtype=torch.float64)
    for row, ones in zip(rows, itertools.combinations(range(k), m)):
        row[list(ones)] = 1
    return rows


# Theory


@pytest.mark.parametrize(
    ("kernel", "k", "m", "one", "zero", "variance"),
    [
        ("ntk", 10, 2, 0.565422, -0.009850, 0.0065187),
        ("last_layer", 10, 2, 0.617941, -0.023259, 0.006282),
        ("ntk", 10, 5, 0.283730, -0.040712, 0.012505),
        ("ntk", 30, 2, 0.571005, -0.004267, 0.002140),
        ("ntk", 6, 2, 0.5619, -0.0133, 0.01098),
    ],
)
def test_moments_have_their_published_values(kernel, k, m, one, zero, variance):
    theory = PermutationTheory(k, kernel)
    assert [float(mean) for mean in theory.mean(m)] == pytest.approx([one, zero], abs=6e-5)
    assert float(theory.variance(m)) == pytest.approx(variance, abs=6e-6)


@pytest.mark.parametrize("kernel", KERNELS)
def test_training_inputs_are_reproduced_without_variance(kernel):
    theory = PermutationTheory(9, kernel)
    one, zero = theory.mean(1)
    assert float(one) == pytest.approx(1, abs=1e-12)
    assert float(zero) == pytest.approx(0, abs=1e-12)
    assert float(theory.variance(1)) == pytest.approx(0, abs=1e-12)
    permutation = torch.tensor([3, 0, 1, 2, 8, 7, 6, 5, 4])
    mean, covariance = theory.posterior(torch.eye(9), permutation)
    images = torch.zeros(9, 9, dtype=torch.float64)
    images[torch.arange(9), permutation] = 1
    torch.testing.assert_close(mean, images)
    torch.testing.assert_close(covariance, torch.zeros_like(covariance))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("k", [2, 5, 12])
def test_closed_forms_equal_a_dense_solve(kernel, k):
    theory = PermutationTheory(k, kernel)
    for m in range(1, k + 1):
        X = torch.zeros(2, k, dtype=torch.float64)
        X[0, :m] = X[1, -m:] = 1
        mean, covariance = theory.posterior(X)
        one, zero = theory.mean(m)
        torch.testing.assert_close(mean, torch.where(X == 1, torch.tensor(one), torch.tensor(zero)))
        variance = torch.full((2,), float(theory.variance(m)), dtype=torch.float64)
        torch.testing.assert_close(covariance.diagonal(), variance, atol=1e-12, rtol=1e-7)


@given(k=st.integers(3, 3000), share=st.floats(0, 1), kernel=st.sampled_from(KERNELS))
def test_the_mean_has_the_right_sign_at_every_bit(k, share, kernel):
    m = 2 + round(share * (k - 3))
    theory = PermutationTheory(k, kernel)
    one, zero = theory.mean(m)
    assert zero < 0 < one
    assert theory.variance(m) > 0
    assert theory.ensemble_size(0.1, m) <= theory.ensemble_size(0.1)


def test_two_ones_are_the_worst_and_have_their_limits():
    theory = PermutationTheory(100_000)
    assert theory.ensemble_size(0.1) == theory.ensemble_size(0.1, 2)
    assert 100_000 * float(theory.mean(2)[1]) == pytest.approx(-0.1505, abs=2e-4)
    assert 100_000 * float(theory.variance(2)) == pytest.approx(0.0635, abs=2e-4)


@pytest.mark.parametrize(
    ("kernel", "k", "N", "probability"),
    [("last_layer", 20, 100, 0.821), ("last_layer", 30, 200, 0.919), ("ntk", 10, 100, 0.389)],
)
def test_exact_match_has_its_published_values(kernel, k, N, probability):
    theory = PermutationTheory(k, kernel)
    assert float(theory.exact_match_probability(N, 2)) == pytest.approx(probability, abs=6e-4)


@pytest.mark.parametrize(
    ("kernel", "k", "N"),
    [("ntk", 10, 333), ("ntk", 30, 840), ("last_layer", 10, 58), ("last_layer", 20, 121),
     ("last_layer", 30, 190)],
)  # fmt: skip
def test_smallest_ensembles_have_their_published_sizes(kernel, k, N):
    theory = PermutationTheory(k, kernel)
    assert theory.smallest_ensemble(0.9) == N
    assert theory.exact_match_probability(N, 2) >= 0.9 > theory.exact_match_probability(N - 1, 2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_bounds_are_bounds(kernel):
    for k, m, delta in [(4, 2, 0.3), (10, 2, 0.1), (10, 10, 0.01), (50, 20, 0.05)]:
        theory = PermutationTheory(k, kernel)
        size = theory.ensemble_size(delta, m)
        assert theory.exact_match_probability(size, m) >= 1 - delta
        assert theory.smallest_ensemble(1 - delta, m) <= size
        assert theory.ensemble_size(delta, simultaneous=True) > theory.ensemble_size(delta)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: PermutationTheory(1), "k must be >= 2, got 1"),
        (lambda: PermutationTheory(3.0), "k must be >= 2, got 3.0"),
        (lambda: PermutationTheory(3, "nngp"), "kernel must be"),
        (lambda: PermutationTheory(3).mean(4), r"m must be integers in 1..3, got 4"),
        (lambda: PermutationTheory(3).ensemble_size(0.1, 1), r"m must be in 2..3"),
        (lambda: PermutationTheory(3).ensemble_size(1.0), "delta must be in"),
        (lambda: PermutationTheory(3).ensemble_size(0.1, 2, simultaneous=True), "m must be left"),
        (lambda: PermutationTheory(3).smallest_ensemble(1.0), "probability must be in"),
        (lambda: PermutationTheory(3).exact_match_probability(0, 2), "N must be at least 1"),
        (lambda: PermutationTheory(3).posterior(torch.zeros(1, 3)), "got a zero row"),
        (lambda: PermutationTheory(3).posterior(torch.ones(1, 4)), "nonzero binary of length 3"),
        (lambda: PermutationTheory(3).posterior(torch.full((1, 3), 0.5)), "nonzero binary"),
    ],
)
def test_theory_refuses_what_it_cannot_say(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# Networks


@pytest.mark.parametrize(("parametrization", "kernel"), [*zip(("ntk", "standard"), KERNELS)])
def test_trained_networks_have_the_moments_of_theory(parametrization, kernel):
    k, models = 6, 300
    permutation = torch.tensor([2, 0, 1, 5, 3, 4])
    images = torch.eye(k)[permutation]  # row i is the image of e_i
    nets = train_ensemble(
        torch.eye(k), images, models, 1200, parametrization=parametrization, generator=generator()
    )
    X = binary(k, 2).float()
    outputs = nets(X / 2**0.5).detach()
    ones = (X @ images).bool()
    theory = PermutationTheory(k, kernel)
    for bits, mean in zip((ones, ~ones), theory.mean(2)):
        found = outputs[:, bits].mean(1)  # of each network
        error = found.std() / models**0.5
        assert abs(found.mean() - mean) < 3 * error
    variance = outputs.var(0).mean()
    # 300 networks of 15 inputs and 6 bits, which are correlated between inputs: about 2 %
    assert float(variance / theory.variance(2)) == pytest.approx(1, abs=0.08)


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
@pytest.mark.parametrize("bias", [False, True])
def test_a_step_is_the_gradient_of_half_the_squared_error(parametrization, bias):
    X = torch.randn(7, 3, generator=generator(1), dtype=torch.float64)
    Y = torch.randn(7, 2, generator=generator(2), dtype=torch.float64)
    options = {"parametrization": parametrization, "bias": bias}
    nets = train_ensemble(X, Y, 4, 11, 3, 1e-3, generator=generator(), chunk=3, **options)
    slow = NTKMLP(3, 11, 2, stacked=4, generator=generator(), dtype=torch.float64, **options)
    optimizer = torch.optim.SGD(slow.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        (0.5 * (slow(X) - Y).square().sum()).backward()
        optimizer.step()
    for name, parameter in slow.named_parameters():
        torch.testing.assert_close(nets.get_parameter(name), parameter, rtol=1e-9, atol=1e-12)


def test_sixty_steps_fit_the_unit_vectors():
    eye = torch.eye(12, dtype=torch.float64)
    nets = train_ensemble(eye, eye.flip(0), 3, 2000, generator=generator())
    assert (nets(eye) - eye.flip(0)).abs().max() < 1e-5


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
@pytest.mark.parametrize("bias", [False, True])
def test_the_automatic_rate_converges_on_any_examples(parametrization, bias):
    X = torch.randn(10, 6, generator=generator(3)) * 3 + 1
    Y = torch.randn(10, 2, generator=generator(4))
    options = {"parametrization": parametrization, "bias": bias, "generator": generator()}
    few = train_ensemble(X, Y, 5, 300, 5, **options)
    many = train_ensemble(X, Y, 5, 300, 300, **options)
    errors = [(nets(X) - Y).square().mean() for nets in (few, many)]
    assert errors[1] < errors[0] < Y.square().mean() * 30


def test_the_ntk_parametrisation_has_the_limits_tangent_kernel():
    X = torch.randn(4, 5, generator=generator(), dtype=torch.float64)
    net = NTKMLP(5, 20_000, 1, generator=generator(1), dtype=torch.float64)
    limit = ntk_kernel(X, activation="relu", depth=1)
    torch.testing.assert_close(empirical_ntk(net, X), limit, atol=0.02, rtol=0.05)


def test_networks_are_ordinary_modules():
    nets = NTKMLP(3, 8, 2, bias=True, stacked=4, generator=generator())
    assert nets(torch.ones(5, 3)).shape == (4, 5, 2)
    other = NTKMLP(3, 8, 2, bias=True, stacked=4)
    other.load_state_dict(nets.state_dict())
    assert torch.equal(copy.deepcopy(other)(torch.ones(1, 3)), nets(torch.ones(1, 3)))
    single = NTKMLP(3, 8, 2, generator=generator(), dtype=torch.bfloat16)
    assert single(torch.ones(5, 3, dtype=torch.bfloat16)).shape == (5, 2)
    assert str(single) == "NTKMLP(3, 8, 2, 'ntk', bias=False)"


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), parametrization=st.sampled_from(["ntk", "standard"]))
def test_without_biases_networks_are_homogeneous(scale, parametrization):
    net = NTKMLP(4, 9, 2, parametrization, generator=generator(), dtype=torch.float64)
    x = torch.randn(3, 4, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(net(scale * x), scale * net(x))


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"X": torch.ones(3)}, ValueError, r"X must have shape \(B, d\), got \(3,\)"),
        ({"X": torch.ones(3, 2).int()}, TypeError, "X must be a floating-point tensor"),
        ({"Y": torch.ones(2, 1)}, ValueError, r"Y must have shape \(3, q\), got \(2, 1\)"),
        ({"Y": torch.full((3, 1), math.nan)}, ValueError, "Y has entries that are not finite"),
        ({"n_models": 0}, ValueError, "n_models must be at least 1"),
        ({"width": 0}, ValueError, "width must be at least 1"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"chunk": 0}, ValueError, "chunk must be at least 1"),
        ({"parametrization": "mup"}, ValueError, "parametrization must be"),
        ({"lr": 0.0}, ValueError, "lr must be positive"),
        ({"lr": 1e20, "steps": 9}, ValueError, "training diverged"),
    ],
)
def test_training_refuses_bad_input(changes, error, match):
    X = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [1.0, 0.0]])  # some unit is never dead on both
    arguments = {"X": X, "Y": torch.ones(3, 1), "n_models": 9, "width": 99} | changes
    with pytest.raises(error, match=match):
        train_ensemble(**arguments)
    with pytest.raises(ValueError, match=r"x must have shape \(B, 2\)"):
        NTKMLP(2, 3, 1)(torch.ones(2))


# Estimator


def test_scikit_learn_contract():
    estimator = EnsembleBinaryRegressor(n_models=5, width=20, random_state=0)
    refused = {"check_estimators_dtypes": "its data have a row of zeros, which has no direction"}
    checks = estimator_checks_generator(estimator, expected_failed_checks=refused, mark="skip")
    for instance, check in checks:
        with contextlib.suppress(SkipTest):
            check(instance)


def test_the_estimator_learns_a_permutation_exactly():
    X = np.eye(6)
    model = EnsembleBinaryRegressor(600, 300, parametrization="standard", random_state=0)
    model.fit(pd.DataFrame(X, columns=list("abcdef")), X[:, ::-1])
    T = binary(6, 2).numpy()
    frame = pd.DataFrame(T, columns=list("abcdef"))
    assert model.score(frame, T[:, ::-1]) == 1.0
    assert model.predict(frame).dtype == np.int64
    spread = PermutationTheory(6, "last_layer").variance(2) ** 0.5
    assert model.predict_std(frame).mean() == pytest.approx(spread, rel=0.1)
    assert model.training_error_ < 1e-4


def test_the_estimator_takes_one_target_floats_and_a_grid():
    X = np.eye(6, dtype=np.float32)
    y = (np.arange(6) % 2).astype(np.float32)
    model = EnsembleBinaryRegressor(10, 30, threshold=0.5, random_state=0).fit(X, y)
    assert model.predict(X).tolist() == [0, 1, 0, 1, 0, 1]
    assert model.decision_function(X).dtype == np.float32
    assert model.predict_std(X).shape == (6,)
    search = GridSearchCV(model, {"width": [20, 30]}, cv=2).fit(X, y)
    assert search.best_params_["width"] in (20, 30)


def test_the_estimator_refuses_zero_rows():
    X = np.eye(3)
    X[1] = 0
    with pytest.raises(ValueError, match="row 1 is zero"):
        EnsembleBinaryRegressor().fit(X, np.eye(3))
    with pytest.raises(ValueError, match="row 1 is zero"):
        EnsembleBinaryRegressor(3, 5).fit(np.eye(3), np.eye(3)).predict(X)
