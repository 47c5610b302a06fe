"""The brief's checks, the pieces by hand, the estimators, and everything that is refused."""

import contextlib
import copy
import io
import math
import pickle
import warnings
from unittest import SkipTest

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch.utils.flop_counter import FlopCounterMode

from paperworks.wide import (
    DeepKernelMachine,
    GaussianLikelihood,
    Gram,
    GramLayer,
    InducingInput,
    LinearKernel,
    ReLUKernel,
    SoftmaxLikelihood,
    SparseDKM,
    SparseDKMClassifier,
    SparseDKMRegressor,
    SqExpKernel,
    SVGPOutput,
    dkm_objective,
    dkm_regularizer,
    gaussian_kl,
    gp_posterior,
    nngp_kernel,
    sample_dgp_grams,
)

X3 = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
Y3 = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
SE = SqExpKernel(learned=False)
LINEAR = LinearKernel(learned=False)


def double(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def maximum(G0, Y, kernel, nu, noise, num_layers, seed=None):
    """The highest J and its Gram matrices, from the identity or from a random start."""
    P = len(Y)
    start = [torch.eye(P, dtype=torch.float64) for _ in range(num_layers)]
    if seed is not None:
        start = [V + 0.3 * double(P, P, seed=seed + i).tril() for i, V in enumerate(start)]
    factors = [V.requires_grad_() for V in start]
    optimizer = torch.optim.LBFGS(
        factors, max_iter=500, max_eval=1000, tolerance_grad=1e-9, tolerance_change=1e-15,
        history_size=30, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        value = -dkm_objective(factors, G0, Y, kernel, nu, noise)
        value.backward()
        return value

    optimizer.step(loss)
    return -loss().item(), [(V.tril() @ V.tril().T).detach() for V in factors]


def wavy(n, seed=0, features=2):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, features))
    return X, np.sin(2 * X[:, 0]) + 0.1 * rng.normal(size=n)


# The brief's checks


@pytest.mark.parametrize(
    ("nu", "J", "G"),
    [
        (1.0, -4.122534, {(0, 0): 1.1754, (0, 1): 0.4035, (0, 2): 0.9036, (1, 1): 1.2292,
                          (1, 2): 0.6606, (2, 2): 0.9702}),
        (10.0, -4.644712, {(0, 1): 0.5663}),
        (1e4, -4.810619, {(0, 1): math.exp(-0.5)}),
    ],
)  # fmt: skip
def test_check_1_maximum_of_the_objective(nu, J, G):
    found = [maximum(X3 @ X3.T / 2, Y3, SE, nu, 0.1, 1, seed) for seed in (None, 1, 2)]
    for value, (G_1,) in found:
        assert value == pytest.approx(J, abs=1e-6)
        assert value == pytest.approx(found[0][0], abs=1e-8)
        for place, entry in G.items():
            assert G_1[place].item() == pytest.approx(entry, abs=1e-4)


def test_check_1_two_layers():
    found = [maximum(X3 @ X3.T / 2, Y3, SE, 1.0, 0.1, 2, seed) for seed in (None, 1, 2)]
    for value, (_, G_2) in found:
        assert value == pytest.approx(-4.016358, abs=1e-6)
        assert value == pytest.approx(found[0][0], abs=1e-8)
        assert G_2.diagonal().tolist() == pytest.approx([1.2208, 1.2191, 1.0051], abs=1e-4)


def test_check_2_deep_linear_optimum():
    """G_ℓ = G_0 (G_0⁻¹ G_{L+1})^{ℓ/(L+1)}, by the eigenvalues of G_0⁻¹ G_{L+1}."""
    X, Y = double(4, 6), double(4, 7, seed=1)
    G0, end = X @ X.T / 6, Y @ Y.T / 7
    _, grams = maximum(G0, Y, LINEAR, 7.0, 0.0, 2)
    values, vectors = torch.linalg.eig(torch.linalg.solve(G0, end))
    for layer, G in enumerate(grams, start=1):
        power = vectors @ torch.diag(values ** (layer / 3)) @ torch.linalg.inv(vectors)
        torch.testing.assert_close(G, G0 @ power.real, atol=1e-6, rtol=0)


def test_check_2_scalar():
    one = torch.ones(1, 1, dtype=torch.float64)
    _, grams = maximum(one, math.sqrt(8) * one, LINEAR, 1.0, 0.0, 2)
    assert [G.item() for G in grams] == pytest.approx([2, 4], abs=1e-6)


def test_check_3_no_divergence_at_the_nngp():
    K = SE(X3 @ X3.T / 2)
    V = torch.linalg.cholesky(K).requires_grad_()
    plain = V.detach().clone().requires_grad_()
    assert gaussian_kl(V @ V.T, K).item() == pytest.approx(0, abs=1e-12)
    J = dkm_objective([V], X3 @ X3.T / 2, Y3, SE, nu=5.0, noise=0.1)
    K_1 = SE(plain @ plain.T) + 0.1 * torch.eye(3).double()
    fit = torch.distributions.MultivariateNormal(torch.zeros(3).double(), K_1).log_prob(Y3[:, 0])
    assert J.item() == pytest.approx(fit.item(), abs=1e-10)
    J.backward()
    fit.backward()
    torch.testing.assert_close(V.grad.tril(), plain.grad.tril(), atol=1e-10, rtol=0)
    assert (plain.grad.abs() > 1e-3).any()


def test_check_3_infinite_nu_is_the_nngp():
    G0 = X3 @ X3.T / 2
    J = dkm_objective([torch.eye(3).double()] * 2, G0, Y3, SE, nu=math.inf, noise=0.1)
    nngp = dkm_objective([], SE(SE(G0)), Y3, SE, nu=1.0, noise=0.1)
    assert J.item() == pytest.approx(nngp.item(), abs=1e-12)
    machine = DeepKernelMachine(2, nu=math.inf, fit_kernel=False, normalize_y=False)
    machine.fit(X3.numpy(), Y3[:, 0].numpy())
    assert machine.objective_ == pytest.approx(J.item(), abs=1e-4)
    np.testing.assert_allclose(machine.grams_[1], SE(SE(G0)), atol=1e-5)


def test_check_4_all_rows_as_inducing_points():
    """With X_i = X and the top layer at its optimum the sparse machine is the full one."""
    X, Y = double(8, 2), double(8, 1, seed=1)
    T = double(5, 2, seed=2)
    full = DeepKernelMachine(
        2, nu=3.0, noise=0.1, fit_kernel=False, normalize_y=False, max_iter=1000, tol=1e-9
    ).fit(X.numpy(), Y[:, 0].numpy())
    sparse = SparseDKM.deep(X, 1, num_layers=2, kernel=SE, nu=3.0)
    sparse[0].requires_grad_(False)
    likelihood = GaussianLikelihood(0.1, learned=False)
    parameters = [p for p in sparse.parameters() if p.requires_grad]
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=1000, tolerance_grad=1e-8, tolerance_change=1e-14,
        history_size=30, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss():
        optimizer.zero_grad()
        value = dkm_regularizer(sparse) - likelihood(*sparse(X), Y).sum()
        value.backward()
        return value

    optimizer.step(loss)
    assert -loss().item() == pytest.approx(full.objective_, abs=1e-3)
    for ours, theirs in zip(sparse.grams(), full.grams_):
        np.testing.assert_allclose(ours, theirs, atol=1e-3)
    with torch.no_grad():
        for rows in (X, T):
            mean, variance = sparse(rows)
            expected, std = full.predict(rows.numpy(), return_std=True)
            np.testing.assert_allclose(mean[:, 0], expected, atol=1e-3)
            np.testing.assert_allclose(variance + 0.1, std**2, atol=1e-3)
        gram = sparse[:5](X)  # behind the second Gram layer
        torch.testing.assert_close(gram.t, gram.ii.diagonal(), atol=1e-4, rtol=0)
        torch.testing.assert_close(gram.ti, gram.ii, atol=1e-4, rtol=0)
        assert (gram.ii - sparse[:4](X).ii).abs().max() > 0.05  # it has learned something


def test_check_5_divergence():
    V, W = (torch.eye(4).double() + 0.3 * double(4, 4, seed=s).tril() for s in (0, 1))
    G, K = (V @ V.T).requires_grad_(), (W @ W.T).requires_grad_()
    symmetric = lambda G, K: gaussian_kl((G + G.T) / 2, (K + K.T) / 2)  # noqa: E731
    assert torch.autograd.gradcheck(symmetric, (G, K))
    assert gaussian_kl(2 * K, K).item() == pytest.approx(4 * (1 - math.log(2)) / 2)
    p, q = (torch.distributions.MultivariateNormal(torch.zeros(4).double(), S) for S in (G, K))
    assert gaussian_kl(G, K).item() == pytest.approx(
        torch.distributions.kl_divergence(p, q).item(), abs=1e-10
    )


@pytest.mark.parametrize("replicate", [64, pytest.param(1, marks=pytest.mark.slow)])
def test_check_6_sampled_deep_gaussian_process(replicate):
    samples = sample_dgp_grams(
        X3, Y3, SE, [64], replicate, 80, noise=0.1, chains=64, warmup=60,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    mean = samples.grams[0].mean((0, 1))
    if replicate == 64:
        limit = maximum(X3 @ X3.T / 2, Y3, SE, 1.0, 0.1, 1)[1][0]
        pilot = torch.tensor([[1.182, 0.394, 0.909], [0.394, 1.207, 0.654], [0.909, 0.654, 0.975]])
        torch.testing.assert_close(mean, pilot.double(), atol=0.03, rtol=0)
    else:
        limit = SE(X3 @ X3.T / 2)
    torch.testing.assert_close(mean, limit, atol=0.03, rtol=0)
    assert 0.6 < samples.acceptance.mean().item() < 0.99


def operations(model, rows):
    """Multiply-adds of a training step, as torch counts matrix products."""
    X = double(rows, 3)
    likelihood = GaussianLikelihood()
    with FlopCounterMode(display=False) as counter:
        (dkm_regularizer(model) - likelihood(*model(X), X[:, :1]).mean()).backward()
    return counter.get_total_flops()


def test_check_7_a_step_is_linear_in_the_batch():
    """And does not know how many rows there are: it gets only the batch."""
    model = SparseDKM.deep(double(10, 3), 1)
    few, some, many = (operations(model, n) for n in (100, 200, 400))
    assert (many - some) == 2 * (some - few)
    assert some - few == pytest.approx(few - operations(model, 1), rel=0.02)


def test_check_7_no_tensor_between_data_points():
    """Memory |B|P: nothing of |B|² numbers is saved for the backward pass."""
    sizes = []
    model, X = SparseDKM.deep(double(5, 3), 1, kernel="relu"), double(300, 3)
    hooks = (lambda t: sizes.append(t.numel()) or t), (lambda t: t)
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        model(X)
    assert max(sizes) <= 300 * 5


# The pieces


@pytest.mark.parametrize("kernel", [SqExpKernel(2.0), ReLUKernel(0.3), LinearKernel(0.5)])
def test_blocks_are_the_dense_kernel(kernel):
    X = double(7, 3)
    G = X @ X.T
    whole = kernel(G)
    blocks = kernel(Gram(G[:3, :3], G[3:, :3], G.diagonal()[3:]))
    torch.testing.assert_close(blocks.ii, whole[:3, :3])
    torch.testing.assert_close(blocks.ti, whole[3:, :3])
    torch.testing.assert_close(blocks.t, whole.diagonal()[3:])
    batch = torch.stack([G, 2 * G])
    torch.testing.assert_close(kernel(batch), torch.stack([whole, kernel(2 * G)]))
    torch.linalg.cholesky(whole + 1e-8 * torch.eye(7))
    assert kernel(G.float()).dtype == torch.float32


def test_kernels_by_hand():
    X = double(5, 3)
    distances = torch.cdist(X, X).square()
    torch.testing.assert_close(SE(X @ X.T), torch.exp(-distances / 2))
    deep = ReLUKernel(bias_var=0.2)(ReLUKernel(bias_var=0.2)(X @ X.T / 3))
    C_b_first = nngp_kernel(X, activation="relu", depth=2, C_W=1.0)
    plain = ReLUKernel(bias_var=0.0)(ReLUKernel(bias_var=0.0)(X @ X.T / 3))
    torch.testing.assert_close(plain, 4 * C_b_first)  # C_W = 2 in both layers
    assert (deep > plain).all()
    assert not ReLUKernel(bias_var=0.0).log_bias_var.requires_grad


@pytest.mark.parametrize("kernel", [SqExpKernel(1.5), ReLUKernel(0.3), LinearKernel(0.5)])
def test_gradients_of_a_chain(kernel):
    """Gradients through Cholesky factors and conditionals, and of kernel parameters."""
    X_i, X = double(3, 2), double(4, 2, seed=1)
    model = SparseDKM.deep(X_i, 1, num_layers=1, kernel=kernel, nu=2.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * double(*parameter.shape, seed=5))
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]
    names = [name for name, _ in model.named_parameters()]

    def outputs(*parameters):
        moved = dict(zip(names, parameters))
        mean, variance = torch.func.functional_call(model, moved, (X,))
        return mean.sum() + variance.log().sum()

    assert torch.autograd.gradcheck(outputs, values, atol=1e-4, rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_layers=st.integers(0, 3),
    kernel=st.sampled_from(["rbf", "relu", "linear"]),
    size=st.floats(0, 1),
)
def test_variances_stay_positive_and_rows_independent(seed, num_layers, kernel, size):
    X = double(12, 2, seed=seed)
    model = SparseDKM.deep(X[:6], 2, num_layers=num_layers, kernel=kernel, nu=1.0)
    with torch.no_grad():
        for module in model:
            if isinstance(module, GramLayer | SVGPOutput):
                module.factor.raw.add_(size * double(6, 6, seed=seed))
        mean, variance = model(X)
        again, same = model(X[3:5])
    assert (variance > 0).all()
    assert mean.isfinite().all()
    torch.testing.assert_close(mean[3:5], again, atol=1e-7, rtol=1e-6)
    torch.testing.assert_close(variance[3:5], same, atol=1e-7, rtol=1e-6)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_gram_of_data_is_what_the_conditional_says(seed):
    """Blocks against F_t = K_ti K_ii⁻¹ F_i + noise, with the moments written out."""
    X = double(9, 3, seed=seed)
    layer = GramLayer(4, nu=1.0)
    layer.factor.raw.data.copy_(0.5 * double(4, 4, seed=seed + 1))
    K = SE(X @ X.T)
    gram = layer(Gram(K[:4, :4], K[4:, :4], K.diagonal()[4:]))
    W = torch.linalg.solve(K[:4, :4], K[:4, 4:]).T
    rest = K[4:, 4:] - W @ K[:4, 4:]
    torch.testing.assert_close(gram.ti, W @ gram.ii, atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(
        gram.t, (rest + W @ gram.ii @ W.T).diagonal(), atol=2e-2, rtol=1e-2
    )  # fmt: skip
    assert layer.regularizer().item() == pytest.approx(
        gaussian_kl(gram.ii, K[:4, :4]).item(), abs=1e-2
    )


def test_nngp_layers_have_no_parameters():
    layer = GramLayer(2, nu=math.inf)
    assert not list(layer.parameters())
    assert layer.regularizer().item() == 0
    learning = GramLayer(2, nu=2.0)
    K = SE(X3 @ X3.T)
    blocks = Gram(K[:2, :2], K[2:, :2], K.diagonal()[2:])
    ours, theirs = (vars(each(blocks)) for each in (layer, learning))
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-5, rtol=0)


def test_without_layers_it_is_a_sparse_gaussian_process():
    """The optimal Q of Titsias: with X_i = X the exact posterior."""
    X, Y, T = double(6, 2), double(6, 1, seed=1), double(3, 2, seed=2)
    model = SparseDKM.deep(X, 1, num_layers=0, kernel=SE)
    halves = ((model[:-1](rows), y) for rows, y in zip(X.split(4), Y.split(4)))
    model[-1].condition_(halves, noise=0.1)
    likelihood = GaussianLikelihood(0.1, learned=False)
    bound = likelihood(*model(X), Y).sum() - dkm_regularizer(model)
    evidence = dkm_objective([], X @ X.T / 2, Y, SE, 1.0, 0.1)
    assert bound.item() == pytest.approx(evidence.item(), abs=3e-4)
    bound.backward()
    assert model[-1].mean.grad.abs().max() < 1e-8  # an optimum
    assert model[-1].factor.raw.grad.abs().max() < 1e-8
    with torch.no_grad():
        mean, variance = model(T)
    both = torch.cat([X, T])
    K = SE(both @ both.T / 2)
    exact, covariance = gp_posterior(K[:6, :6], K[6:, :6], K[6:, 6:], Y, noise=0.1)
    torch.testing.assert_close(mean, exact, atol=1e-4, rtol=0)
    torch.testing.assert_close(variance, covariance.diagonal(), atol=1e-4, rtol=0)


def test_likelihoods():
    mean, variance, y = double(5, 2), double(5, seed=1).exp(), double(5, 2, seed=2)
    z = double(200_000, 1, 2, seed=3)
    f = mean + variance.sqrt()[:, None] * z
    likelihood = GaussianLikelihood(0.3)
    density = torch.distributions.Normal(f, math.sqrt(0.3)).log_prob(y).sum(2).mean(0)
    torch.testing.assert_close(likelihood(mean, variance, y), density, atol=0.05, rtol=0.01)
    softmax = SoftmaxLikelihood(2000)
    labels = torch.tensor([0, 1, 0, 1, 1])
    exact = f.log_softmax(2)[:, torch.arange(5), labels].mean(0)
    sampled = softmax(mean, variance, labels, torch.Generator().manual_seed(0))
    torch.testing.assert_close(sampled, exact, atol=0.1, rtol=0)
    certain = softmax(mean, torch.zeros(5).double(), labels)
    torch.testing.assert_close(certain, mean.log_softmax(1)[torch.arange(5), labels])


def test_a_readers_own_training_loop():
    """Any optimiser, mini-batches, float32 rows; state_dict, deepcopy and pickle."""
    X, y = map(torch.tensor, wavy(200))
    model = SparseDKM.deep(X[:20], 1, num_layers=1, nu=5.0)
    likelihood = GaussianLikelihood()
    optimizer = torch.optim.AdamW(
        [*model.parameters(), *likelihood.parameters()], lr=0.05, weight_decay=0.0
    )
    losses = []
    for step in range(100):
        batch = torch.arange(50) + 50 * (step % 4)
        optimizer.zero_grad()
        fit = likelihood(*model(X[batch].float()), y[batch, None]).sum()
        loss = dkm_regularizer(model) - 200 / 50 * fit
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-8:]) < np.mean(losses[:8]) - 100
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    fresh = SparseDKM.deep(X[20:40], 1, num_layers=1, nu=5.0)
    fresh.load_state_dict(torch.load(stored, weights_only=True))
    for again in (fresh, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(X)[0], model(X)[0])
    nested = torch.nn.ModuleDict({"a": model, "b": fresh})
    assert dkm_regularizer(nested).item() == pytest.approx(2 * dkm_regularizer(model).item())


def test_single_precision():
    model = SparseDKM.deep(double(20, 2), 1).float()
    mean, variance = model(double(50, 2, seed=1))
    assert mean.dtype == variance.dtype == torch.float32
    (mean.sum() + variance.sum() + dkm_regularizer(model)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# Estimators


ESTIMATORS = [
    DeepKernelMachine(n_layers=1, max_iter=3),
    SparseDKMRegressor(n_layers=1, max_iter=2),
    SparseDKMClassifier(n_layers=1, max_iter=15, learning_rate=0.2, n_samples=4),
]


@pytest.mark.parametrize(
    "estimator",
    [ESTIMATORS[0], ESTIMATORS[1], pytest.param(ESTIMATORS[2], marks=pytest.mark.slow)],
    ids=["full", "regressor", "classifier"],
)
def test_scikit_learn_contract(estimator):
    for instance, check in estimator_checks_generator(estimator, mark="skip"):
        with contextlib.suppress(SkipTest):
            check(instance)


def test_full_machine_learns_a_step_that_its_kernel_does_not_know():
    X = np.linspace(-2, 2, 60)[:, None]
    y = np.sign(X[:, 0])
    T = np.array([[-0.15], [0.15]])
    learned = DeepKernelMachine(1, nu=0.5, max_iter=100).fit(X, y)
    nngp = DeepKernelMachine(1, nu=np.inf, max_iter=100).fit(X, y)
    assert np.abs(learned.predict(T) - np.sign(T[:, 0])).max() < 0.3
    same, other = learned.grams_[0][0, [29, 30]] / learned.grams_[0][0, 0]
    plain_same, plain_other = nngp.grams_[0][0, [29, 30]] / nngp.grams_[0][0, 0]
    assert same - other > plain_same - plain_other + 0.1  # the jump is in the representation
    assert learned.objective_ > nngp.objective_


def test_optimisers_agree():
    X, y = wavy(20)
    options = {"n_layers": 1, "nu": 2.0, "fit_kernel": False}
    first = DeepKernelMachine(**options, max_iter=300, tol=1e-8).fit(X, y)
    second = DeepKernelMachine(**options, optimizer="adam", max_iter=600).fit(X, y)
    assert second.objective_ == pytest.approx(first.objective_, abs=0.02)


@pytest.mark.parametrize("n_layers", [0, 2])
def test_sparse_regressor_on_a_wave(n_layers):
    (X, y), (T, truth) = wavy(300), wavy(200, seed=1)
    model = SparseDKMRegressor(
        20, n_layers=n_layers, max_iter=100, learning_rate=0.1, random_state=0
    ).fit(X, 100 + 7 * y)
    mean, std = model.predict(T, return_std=True)
    assert np.sqrt(np.mean((mean - 100 - 7 * truth) ** 2)) < 0.25 * 7
    z = (mean - 100 - 7 * truth) / std
    assert 0.6 < np.sqrt(np.mean(z**2)) < 1.4
    assert model.lengthscale_[0] < model.lengthscale_[1]  # the column that matters
    assert [gram.shape for gram in model.grams_] == [(20, 20)] * n_layers


@pytest.mark.parametrize("labels", [("no", "yes"), (3, 7)])
def test_sparse_classifier_on_a_ring(labels):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 2))
    y = np.array(labels)[(np.linalg.norm(X, axis=1) > 1.1).astype(int)]
    model = SparseDKMClassifier(20, 1, max_iter=80, learning_rate=0.1, random_state=0)
    model.fit(X[:200], y[:200])
    assert model.score(X[200:], y[200:]) > 0.85
    probabilities = model.predict_proba(X[200:])
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert (model.classes_[probabilities.argmax(1)] == model.predict(X[200:])).all()
    np.testing.assert_allclose(model.predict_proba(X[200:203]), probabilities[:3], atol=1e-10)


def test_pipelines_and_searches():
    X, y = load_iris(return_X_y=True, as_frame=True)
    model = make_pipeline(
        StandardScaler(), SparseDKMClassifier(15, 1, max_iter=40, learning_rate=0.1, random_state=0)
    )
    search = GridSearchCV(model, {"sparsedkmclassifier__nu": [1.0, np.inf]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.85


def test_partial_fit_streams():
    X, y = wavy(2000)
    model = SparseDKMRegressor(30, n_layers=1, learning_rate=0.05, batch_size=50, random_state=0)
    for start in range(0, 2000, 200):
        model.partial_fit(X[start : start + 200], y[start : start + 200])
    assert model.n_samples_seen_ == 2000
    assert model.n_iter_ == 40
    T, truth = wavy(200, seed=1)
    assert model.score(T, truth) > 0.5
    again = pickle.loads(pickle.dumps(model)).partial_fit(X, y)
    assert again.score(T, truth) > model.score(T, truth) - 0.05
    with pytest.raises(ValueError, match="y must have 1 outputs"):
        model.partial_fit(X, np.c_[y, y])


def test_partial_fit_knows_its_classes():
    X, _ = wavy(90)
    labels = np.array(["a", "b", "c"])[np.arange(90) % 3]
    model = SparseDKMClassifier(10, 1, random_state=0)
    model.partial_fit(X, np.full(90, "a"), classes=["a", "b", "c"]).partial_fit(X, labels)
    assert model.predict_proba(X).shape == (90, 3)
    with pytest.raises(ValueError, match="classes that were not named at first"):
        model.partial_fit(X, np.full(90, "d"))


def test_random_state_decides():
    X, y = wavy(100)
    fits = [
        SparseDKMRegressor(10, 1, max_iter=10, batch_size=30, random_state=seed).fit(X, y)
        for seed in (0, 0, 1)
    ]
    state = torch.get_rng_state()
    first, again, other = (fit.predict(X) for fit in fits)
    assert (first == again).all()
    assert (first != other).any()
    assert torch.equal(state, torch.get_rng_state())


MODELS = [
    DeepKernelMachine(n_layers=1, max_iter=10),
    SparseDKMRegressor(n_layers=1, max_iter=10, random_state=0),
    SparseDKMClassifier(n_layers=1, max_iter=10, random_state=0),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kernel", ["rbf", "relu", "linear"])
def test_awkward_tables(model, kernel):
    """Copies of rows with different targets, constant columns, rows of zeros, float32, one row."""
    model = copy.deepcopy(model).set_params(kernel=kernel)
    X, y = wavy(20)
    X = np.c_[np.r_[X, X, np.zeros((2, 2))], np.ones(42)]
    y = (np.r_[y, -y, 0, 1] > 0).astype(int)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isfinite(model.fit(X, y).predict(X).astype(float)).all()
        single = model.fit(X.astype(np.float32), y).predict(X)
        assert np.isfinite(single.astype(float)).all()
        assert model.fit(X[:1], y[:1]).predict(X[:1]) == pytest.approx(y[:1])


def test_one_class_only():
    X, _ = wavy(20)
    model = SparseDKMClassifier(5, max_iter=5).fit(X, ["only"] * 20)
    assert set(model.predict(X)) == {"only"}
    assert (model.predict_proba(X) == 1).all()


def test_constant_and_several_targets():
    X, y = wavy(40)
    for model in MODELS[:2]:
        model = copy.deepcopy(model)
        mean, std = model.fit(X, np.full(40, 1e6)).predict(X, return_std=True)
        np.testing.assert_allclose(mean, 1e6, rtol=1e-6)
        several, std = model.fit(X, np.c_[y, 10 * y]).predict(X[:7], return_std=True)
        assert several.shape == std.shape == (7, 2)
        np.testing.assert_allclose(several[:, 1], 10 * several[:, 0], rtol=1e-6)
        np.testing.assert_allclose(std[:, 1], 10 * std[:, 0], rtol=1e-6)


# What is refused


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"nu": 0}, "nu must be positive, got 0"),
        ({"nu": [1.0, math.nan]}, "nu must be positive"),
        ({"nu": [1.0]}, "nu must be one number or 2, got 1"),
        ({"n_layers": -1}, "n_layers must be an integer of at least 0, got -1"),
        ({"n_layers": 1.5}, "n_layers must be an integer of at least 0, got 1.5"),
        ({"kernel": "cubic"}, "kernel must be a GramKernel or one of rbf, relu, linear: 'cubic'"),
        ({"lengthscale": 0}, "lengthscale must be positive and finite"),
    ],
)
@pytest.mark.parametrize("model", MODELS)
def test_wrong_parameters(model, options, match):
    X, y = wavy(10)
    with pytest.raises(ValueError, match=match):
        copy.deepcopy(model).set_params(**{"n_layers": 2, **options}).fit(X, y > 0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"n_inducing": 11}, "n_inducing exceeds n_samples: 11 inducing points, 10 rows"),
        ({"n_inducing": 0}, "n_inducing must be at least 1, got 0"),
        ({"max_iter": 0}, "max_iter must be a positive integer, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a positive integer, got 2.5"),
        ({"learning_rate": -1}, "learning_rate must be positive, got -1"),
    ],
)
@pytest.mark.parametrize("model", MODELS[1:])
def test_wrong_training(model, options, match):
    X, y = wavy(10)
    with pytest.raises(ValueError, match=match):
        copy.deepcopy(model).set_params(**options).fit(X, y > 0)


def test_missing_values_are_named():
    X, y = wavy(10)
    X[3, 1] = np.nan
    for model in MODELS:
        with pytest.raises(ValueError, match="contains NaN"):
            model.fit(X, y > 0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: gaussian_kl(torch.zeros(2, 2), torch.eye(2)), "is not positive definite"),
        (lambda: gaussian_kl(torch.eye(2), torch.eye(3)), r"must be of shape \(..., P, P\)"),
        (lambda: dkm_objective([torch.zeros(3, 3)], X3 @ X3.T, Y3, SE, 1.0, 0.1),
         "Gram matrix is not positive definite"),
        (lambda: dkm_objective([], X3, Y3, SE, 1.0, 0.1), r"must be \(P, P\) and \(P, q\)"),
        (lambda: dkm_objective([], X3 @ X3.T, Y3, [SE, SE], 1.0, 0.1), "needs 1, one a layer"),
        (lambda: dkm_objective([X3 @ X3.T], X3 @ X3.T, Y3, SE, -1.0, 0.1), "nu must be positive"),
        (lambda: SqExpKernel(variance=0.0), "variance must be positive and finite, got 0"),
        (lambda: ReLUKernel(bias_var=-1.0), "bias_var must not be negative, got -1"),
        (lambda: SE(X3), r"gram must have shape \(..., P, P\), got \(3, 2\)"),
        (lambda: InducingInput(X3[0]), r"X_i must have shape \(P, features\), got \(2,\)"),
        (lambda: InducingInput(X3 * math.nan), "X_i must be finite"),
        (lambda: InducingInput(X3, lengthscale=torch.ones(3)), "lengthscale must be one number"),
        (lambda: InducingInput(X3)(double(4, 3)), r"X must have shape \(n, 2\), got \(4, 3\)"),
        (lambda: GramLayer(0, 1.0), "num_inducing must be a positive integer, got 0"),
        (lambda: SVGPOutput(3, 1)(Gram(X3 @ X3.T)), "kernel has no data points"),
        (lambda: SparseDKM(InducingInput(X3), SE, SVGPOutput(4, 1)), r"disagree .* \[3, 4\]"),
        (lambda: GaussianLikelihood()(Y3, Y3[:, 0], Y3[:, 0]), r"y must have shape \(3, 1\)"),
        (lambda: sample_dgp_grams(X3, Y3, SE, [0], 1, 1, noise=0.1), "must be positive"),
        (lambda: sample_dgp_grams(X3, Y3[:2], SE, [4], 1, 1, noise=0.1), r"and \(P, q\)"),
        (lambda: DeepKernelMachine(optimizer="sgd").fit(X3, Y3), "must be 'lbfgs' or 'adam'"),
    ],
)  # fmt: skip
def test_wrong_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()
