"""Scale mixtures against closed forms, quadrature, other libraries' posteriors, finite networks."""

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
from scipy import integrate, stats
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn
from torch.distributions import Gamma, InverseGamma, LogNormal, Normal, Uniform

from paperworks.wide import (
    NTKMLP,
    SVSP,
    BurrXII,
    Delta,
    GaussianScaleMixture,
    HeavyTailedEnsemble,
    MultivariateStudentT,
    NNGPKernel,
    ScaleMixtureClassifier,
    ScaleMixtureRegressor,
    cnn_nngp_kernel,
    gp_posterior,
    nngp_kernel,
    ntk_posterior,
    scale_last_layer_,
    scale_mixture,
)
from paperworks.wide.smnngp.regression import _evidence_and_slope
from paperworks.wide.smnngp.scales import (
    ImportanceLaw,
    InverseGammaLaw,
    WeightedLaw,
    law_of,
)

F64 = torch.float64
K3 = torch.tensor([[2.0, 0.5, 0.3], [0.5, 1.0, 0.2], [0.3, 0.2, 1.5]], dtype=F64)
Y2 = np.array([1.0, -2.0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def table_kernel(K):
    """A kernel on rows that hold the index of a row of K."""

    def kernel(X, Z=None):
        rows, columns = (x[:, 0].long() for x in (X, X if Z is None else Z))
        return K[rows][:, columns]

    return kernel


def checked_regressor(prior=(2.0, 3.0), **options):
    """The regressor of the brief's example: two of three values observed, no noise."""
    model = ScaleMixtureRegressor(
        table_kernel(K3), prior=prior, noise=0.0, optimize=False, normalize_y=False, **options
    )
    return model.fit([[0.0], [1.0]], Y2)


def rbf(X, Z=None):
    return torch.exp(-torch.cdist(X, X if Z is None else Z).square() / 2)


def table(n=40, d=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d))
    return X, np.sin(X[:, 0]) + 0.5 * X[:, 1] + 0.2 * rng.standard_t(3, size=n)


# Closed form


def test_posterior_has_its_published_values():
    model = checked_regressor()
    mean, std = model.predict([[2.0]], return_std=True)
    law = model.scale_
    assert mean[0] == pytest.approx(-0.1714286, abs=1e-7)
    assert 2 * law.alpha == 6
    assert 2 * (law.beta - 3) == pytest.approx(6.2857143, abs=1e-7)
    scale2 = std[0] ** 2 * (6 - 2) / 6
    assert scale2 == pytest.approx(2.9427211, abs=1e-7)
    assert model.evidence() == pytest.approx(-4.6731831, abs=1e-7)
    density = np.exp(model.log_predictive_density([[2.0]], [0.3]))
    assert density[0] == pytest.approx(0.2135539, abs=1e-7)


def test_importance_sampling_finds_the_same_evidence_and_posterior():
    law = ImportanceLaw(InverseGamma(torch.tensor(2.0), torch.tensor(3.0)), 400_000, seed=0)
    L = torch.linalg.cholesky(K3[:2, :2])
    q = torch.linalg.solve_triangular(L, torch.from_numpy(Y2)[:, None], upper=False).square().sum()
    evidence = law.log_marginal(q, 2) - L.diagonal().log().sum()
    assert evidence.item() == pytest.approx(-4.675, abs=0.01)
    assert evidence.item() == pytest.approx(-4.6731831, abs=0.005)
    exact = InverseGammaLaw(2.0, 3.0).posterior(q, 2)
    found = law.posterior(q, 2)
    assert found.mean == pytest.approx(exact.mean, rel=0.02)
    for p in (0.01, 0.3, 0.5, 0.975):
        assert found.quantile(p) == pytest.approx(exact.quantile(p), rel=0.02, abs=0.01)


@pytest.mark.parametrize(
    "prior", [BurrXII(2.0, 1.0), Gamma(2.0, 1.0), LogNormal(0.0, 1.0), Uniform(0.2, 5.0)], ids=str
)
@pytest.mark.parametrize(("q", "n"), [(0.5, 1), (30.0, 20), (700.0, 1000)])
def test_any_prior_agrees_with_quadrature(prior, q, n):
    peak = -n / 2 * (1 + math.log(2 * math.pi * q / n))  # of the likelihood, at s = q/n

    def integrand(log_s):
        s = math.exp(log_s)
        inside = prior.support.check(torch.tensor(s)).item()
        density = prior.log_prob(torch.tensor(s)).exp().item() if inside else 0.0
        likelihood = math.exp(-q / (2 * s) - n / 2 * math.log(2 * math.pi * s) - peak)
        return s * density * likelihood

    edges = [math.log(0.2), math.log(q / n), math.log(5)]
    exact = integrate.quad(integrand, -12, 12, limit=400, points=edges)[0]
    mean = integrate.quad(lambda x: math.exp(x) * integrand(x), -12, 12, limit=400, points=edges)[0]
    law = law_of(prior, 20_000, seed=1)
    Q = torch.tensor(q, dtype=F64)
    assert law.log_marginal(Q, n).item() == pytest.approx(peak + math.log(exact), abs=0.02)
    if n > 1:  # with one target the posterior of some of these has a heavy tail
        assert law.posterior(Q, n).mean == pytest.approx(mean / exact, rel=0.02)


def test_a_prior_that_is_sure_gives_the_gaussian_process():
    X, y = table()
    sure, gaussian = (
        ScaleMixtureRegressor(rbf, prior=prior, optimize=False).fit(X, y)
        for prior in [(1e5, 1e5), Delta(1.0)]
    )
    for a, b in zip(sure.predict(X + 0.3, True), gaussian.predict(X + 0.3, True)):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3)
    np.testing.assert_allclose(
        sure.log_predictive_density(X + 0.3, y),
        gaussian.log_predictive_density(X + 0.3, y),
        atol=1e-2,
    )
    np.testing.assert_allclose(
        sure.predict_quantile(X, [0.1, 0.9]), gaussian.predict_quantile(X, [0.1, 0.9]), atol=1e-3
    )
    assert sure.evidence() == pytest.approx(gaussian.evidence(), abs=1e-2)


def test_the_gaussian_process_is_scikit_learns():
    X, y = table(30)
    theirs = GaussianProcessRegressor(RBF(1.0), alpha=0.1, optimizer=None).fit(X, y)
    ours = ScaleMixtureRegressor(
        rbf, prior=Delta(1.0), noise=0.1, optimize=False, normalize_y=False
    ).fit(X, y)
    mean, std = theirs.predict(X + 0.2, return_std=True)
    np.testing.assert_allclose(ours.predict(X + 0.2), mean, atol=1e-9)
    np.testing.assert_allclose(ours.predict(X + 0.2, True)[1] ** 2, std**2 + 0.1, atol=1e-9)
    assert ours.evidence() == pytest.approx(theirs.log_marginal_likelihood_value_)


@given(y=st.floats(-50, 50), alpha=st.floats(0.2, 20), beta=st.floats(0.1, 10))
@settings(max_examples=30, deadline=None)
def test_the_ratio_of_joint_densities_is_the_conditional_everywhere(y, alpha, beta):
    prior = InverseGamma(torch.tensor(alpha, dtype=F64), torch.tensor(beta, dtype=F64))
    zeros = torch.zeros(3, dtype=F64)
    joint, seen = scale_mixture(zeros, K3, prior), scale_mixture(zeros[:2], K3[:2, :2], prior)
    values = torch.tensor([*Y2, y], dtype=F64)
    ratio = joint.log_prob(values) - seen.log_prob(values[:2])
    model = checked_regressor(prior=(alpha, beta))
    assert model.log_predictive_density([[2.0]], [y])[0] == pytest.approx(ratio.item(), abs=1e-8)
    assert model.evidence() == pytest.approx(seen.log_prob(values[:2]).item())


@pytest.mark.parametrize("prior", [(2.0, 2.0), "ml", BurrXII(2.0, 1.0)], ids=str)
def test_means_do_not_depend_on_the_prior(prior):
    X, y = table()
    gaussian = ScaleMixtureRegressor(rbf, prior=Delta(1.0), optimize=False).fit(X, y)
    model = ScaleMixtureRegressor(rbf, prior=prior, optimize=False, random_state=0).fit(X, y)
    np.testing.assert_allclose(model.predict(X + 1), gaussian.predict(X + 1), atol=1e-12)


def test_the_scale_of_largest_likelihood_is_the_one():
    X, y = table()
    best = ScaleMixtureRegressor(rbf, prior="ml", optimize=False).fit(X, y)
    s = best.scale_.mean
    fixed = [
        ScaleMixtureRegressor(rbf, prior=Delta(factor * s), optimize=False).fit(X, y).evidence()
        for factor in (0.9, 1.0, 1.1)
    ]
    assert best.evidence() == pytest.approx(fixed[1], abs=1e-4)
    assert fixed[1] > max(fixed[0], fixed[2])


def test_several_outputs_share_the_scale():
    X, y = table()
    Y = np.stack([y, 3 * y[::-1] + 1], 1)
    model = ScaleMixtureRegressor(rbf, optimize=False).fit(X, Y)
    assert 2 * model.scale_.alpha == 4 + 80
    mean, std = model.predict(X[:5], return_std=True)
    assert mean.shape == std.shape == (5, 2)
    np.testing.assert_allclose(std[:, 1] / std[:, 0], Y.std(0)[1] / Y.std(0)[0])
    assert model.predict_quantile(X[:5], [0.1, 0.5, 0.9]).shape == (3, 5, 2)
    np.testing.assert_allclose(model.predict_quantile(X[:5], 0.5), mean)
    # jointly: bivariate t with one scale
    law, variance = model.scale_, (std**2 / model.scale_.mean)[0]
    shape = torch.tensor(variance * law.beta / law.alpha).sqrt().diag()
    joint = MultivariateStudentT(2 * law.alpha, torch.from_numpy(mean[0]), shape)
    density = model.log_predictive_density(X[:1], Y[:1])[0]
    assert density == pytest.approx(joint.log_prob(torch.from_numpy(Y[0])).item())
    assert model.sample_y(X[:5], 7).shape == (5, 2, 7)


# Learning


@pytest.mark.parametrize("prior", [(2.0, 2.0), "ml", BurrXII(2.0, 1.0)], ids=str)
def test_noise_is_the_one_of_largest_evidence(prior):
    X, y = table()
    model = ScaleMixtureRegressor(rbf, prior=prior, random_state=0).fit(X, y)
    for factor in (0.8, 1.25):
        other = ScaleMixtureRegressor(
            rbf, prior=prior, noise=factor * model.noise_, optimize=False, random_state=0
        ).fit(X, y)
        assert other.evidence() < model.evidence()


@pytest.mark.parametrize("prior", [(2.0, 2.0), "ml", BurrXII(2.0, 1.0)], ids=["t", "ml", "burr"])
def test_the_slope_of_the_evidence_is_that_of_autograd(prior):
    draw = torch.Generator().manual_seed(0)
    A, Y = (torch.randn(shape, generator=draw, dtype=F64) for shape in ((6, 6), (6, 2)))
    law, noise = law_of(prior, 400, 0), torch.tensor(0.3, dtype=F64)
    K = (A @ A.mT).requires_grad_()
    L = torch.linalg.cholesky(K + noise * torch.eye(6, dtype=F64))
    q = torch.linalg.solve_triangular(L, Y, upper=False).square().sum()
    evidence = law.log_marginal(q, 12) - 2 * L.diagonal().log().sum()
    (expected,) = torch.autograd.grad(evidence, K)
    value, slope = _evidence_and_slope(K.detach(), Y, noise, law)
    assert value == pytest.approx(evidence.item())
    torch.testing.assert_close(slope, (expected + expected.mT) / 2)


def test_kernels_learn_and_the_users_own_stays():
    X, y = table()
    kernel = NNGPKernel("relu", 2, C_W=1.0, C_b=0.5)
    before = copy.deepcopy(kernel.state_dict())
    learned, fixed = (
        ScaleMixtureRegressor(kernel, prior=Delta(1.0), optimize=on).fit(X, y)
        for on in (True, False)
    )
    assert learned.evidence() > fixed.evidence() + 1
    assert all(torch.equal(before[name], value) for name, value in kernel.state_dict().items())
    # at the top: no gradient is left
    K = learned.kernel_(torch.from_numpy(X)) + learned.noise_ * torch.eye(len(X), dtype=F64)
    z = torch.from_numpy((y - y.mean()) / y.std())
    law = torch.distributions.MultivariateNormal(torch.zeros_like(z), K)
    law.log_prob(z).backward()
    assert max(abs(p.grad.item()) for p in learned.kernel_.parameters()) < 0.05


def test_kernel_module_is_the_kernel():
    X = torch.randn(7, 12, generator=generator(), dtype=F64)
    variances = {"C_W": 1.3, "C_b": 0.2}
    dense, pictures = (
        NNGPKernel("erf", 3, **variances, image_shape=shape) for shape in (None, (3, 2, 2))
    )
    torch.testing.assert_close(
        dense(X, X[:2]), nngp_kernel(X, X[:2], activation="erf", depth=3, **variances)
    )
    torch.testing.assert_close(
        pictures(X),
        cnn_nngp_kernel(X.view(7, 3, 2, 2), activation="erf", filter_sizes=[3, 3, 3], **variances),
    )
    for kernel in (dense, pictures):
        torch.testing.assert_close(kernel.diag(X), kernel(X).diagonal())
        assert kernel(X.float()).dtype == torch.float32
        other = NNGPKernel("erf", 3, image_shape=kernel.image_shape)
        other.load_state_dict(kernel.state_dict())
        assert torch.equal(other(X), kernel(X))
    assert NNGPKernel(C_b=0.0)(X).isfinite().all()


# Distributions


def test_burr_is_scipys():
    burr, theirs = BurrXII(2.0, 1.5), stats.burr12(2.0, 1.5)
    x = torch.tensor([1e-3, 0.5, 1.0, 40.0], dtype=F64)
    np.testing.assert_allclose(burr.log_prob(x), theirs.logpdf(x), rtol=1e-6)
    np.testing.assert_allclose(burr.cdf(x), theirs.cdf(x), rtol=1e-6)
    torch.testing.assert_close(burr.icdf(burr.cdf(x)), x)
    assert burr.mean.item() == pytest.approx(theirs.mean(), rel=1e-5)
    assert BurrXII(1.0, 1.0).mean == math.inf
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert stats.kstest(burr.sample((2000,)).numpy(), theirs.cdf).pvalue > 1e-3


def test_multivariate_t_is_scipys():
    loc = torch.tensor([1.0, -1.0, 0.0], dtype=F64)
    t = MultivariateStudentT(3.0, loc, torch.linalg.cholesky(K3))
    theirs = stats.multivariate_t(loc.numpy(), K3.numpy(), df=3)
    x = torch.randn(5, 2, 3, generator=generator(), dtype=F64) * 4
    np.testing.assert_allclose(t.log_prob(x), theirs.logpdf(x.numpy()), rtol=1e-10)
    torch.testing.assert_close(t.variance, 3 * K3.diagonal())
    assert MultivariateStudentT(2.0, loc, torch.eye(3, dtype=F64)).variance[0] == math.inf
    draws = t.sample((4000,), generator=generator())
    assert torch.equal(draws, t.sample((4000,), generator=generator()))
    for direction in torch.eye(3, dtype=F64), torch.ones(1, 3, dtype=F64):
        for a in direction:
            law = stats.t(3, float(a @ loc), float(a @ K3 @ a) ** 0.5)
            assert stats.kstest((draws @ a).numpy(), law.cdf).pvalue > 1e-3


def test_the_tails_of_a_multivariate_t_are_joint():
    """Independent t's through a Cholesky factor, the official sampler, are another law."""
    t = MultivariateStudentT(4.0, torch.zeros(2), torch.eye(2))
    joint = t.sample((20_000,), generator=generator())
    rng = np.random.default_rng(0)
    separate = stats.t(4).rvs((20_000, 2), random_state=rng)
    radius = stats.f(2, 4)  # ‖x‖²/2
    assert stats.kstest(joint.square().sum(1).numpy() / 2, radius.cdf).pvalue > 1e-3
    assert stats.kstest(np.square(separate).sum(1) / 2, radius.cdf).pvalue < 1e-3


def test_mixture_of_draws_agrees_with_the_closed_form():
    loc = torch.tensor([1.0, -1.0, 0.0], dtype=F64)
    prior = InverseGamma(torch.tensor(3.0, dtype=F64), torch.tensor(2.0, dtype=F64))
    exact = scale_mixture(loc, K3, prior)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        mixture = GaussianScaleMixture(loc, torch.linalg.cholesky(K3), prior.sample((200_000,)))
    x = torch.tensor([[0.0, 0, 0], [1, 2, 3], [-3, 0, 1]], dtype=F64)
    torch.testing.assert_close(mixture.log_prob(x), exact.log_prob(x), atol=0.02, rtol=0)
    torch.testing.assert_close(mixture.variance, exact.variance, rtol=0.03, atol=0)
    weighted = GaussianScaleMixture(
        loc, torch.eye(3, dtype=F64), torch.tensor([1.0, 9.0]), torch.tensor([3.0, 1.0]).log()
    )
    torch.testing.assert_close(weighted.variance, torch.full((3,), 3.0, dtype=F64))
    draws = weighted.sample((20_000,), generator=generator())
    torch.testing.assert_close(draws.var(0), weighted.variance, rtol=0.1, atol=0)


def test_distributions_take_shapes_and_dtypes():
    for dtype in (torch.float32, F64):
        loc, eye = torch.zeros(2, dtype=dtype), torch.eye(2, dtype=dtype)
        for prior in ((2.0, 2.0), (BurrXII(2.0, 1.0)), Delta(4.0)):
            prior = InverseGamma(*map(torch.tensor, prior)) if type(prior) is tuple else prior
            law = scale_mixture(loc, eye, prior, generator=generator())
            assert law.sample((3, 5)).shape == (3, 5, 2)
            assert law.sample().dtype == dtype
            assert law.log_prob(loc.expand(4, 2)).shape == (4,)
    assert Delta(4.0).log_prob(torch.tensor([4.0, 1.0])).tolist() == [0.0, -math.inf]
    assert BurrXII(2.0, torch.ones(3)).sample((2,)).shape == (2, 3)


# Quantiles and samples


@pytest.mark.parametrize("prior", [(1.0, 1.0), BurrXII(2.0, 1.0), "ml"], ids=str)
def test_quantiles_and_draws_follow_the_predictive_density(prior):
    X, y = table(6)
    model = ScaleMixtureRegressor(rbf, prior=prior, random_state=0).fit(X, y)
    x = X[:1] + 1
    levels = np.array([0.01, 0.25, 0.5, 0.9])
    quantiles = model.predict_quantile(x, levels)[:, 0]

    def density(v):
        return float(np.exp(model.log_predictive_density(x, [v]))[0])

    centre = float(model.predict(x)[0])
    mass = [integrate.quad(density, centre, q, limit=200)[0] for q in quantiles]
    # draws of a density are not those of a quantile, where there are any
    np.testing.assert_allclose(0.5 + np.array(mass), levels, atol=5e-4)
    draws = model.sample_y(np.concatenate([x, X]), 4000, random_state=1)
    assert draws.shape == (7, 4000)
    assert np.quantile(draws[0], 0.9) == pytest.approx(quantiles[3], rel=0.1, abs=0.05)


def test_draws_have_one_scale():
    model = ScaleMixtureRegressor(rbf, prior=(1.0, 1.0), noise=1e-3, optimize=False).fit(
        [[0.0]], [0.0]
    )
    far, farther = model.sample_y([[50.0], [-50.0]], 4000)
    assert stats.spearmanr(far, farther).statistic == pytest.approx(0, abs=0.05)
    assert stats.spearmanr(far**2, farther**2).pvalue < 1e-3


# Networks


@pytest.fixture(scope="module")
def outputs():
    """4000 networks of width 2048 with one hidden layer at x and −x, where the kernel is 0."""
    x = torch.tensor([[0.6, 0.8]])
    found = []
    for part in range(8):  # a quarter of a gigabyte otherwise
        nets = NTKMLP(2, 2048, 1, stacked=500, generator=generator(part))
        with torch.no_grad():
            found.append(nets(torch.cat([x, -x]))[..., 0])
    s = torch.distributions.InverseGamma(torch.tensor(2.0), torch.tensor(2.0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sigma = s.sample((4000, 1)).sqrt()
    return (sigma * torch.cat(found)).numpy()


def test_wide_networks_are_a_t_process(outputs):
    x = torch.tensor([[0.6, 0.8], [-0.6, -0.8]], dtype=F64)
    K = nngp_kernel(x, activation="relu", depth=1)
    assert K[0, 1].item() == pytest.approx(0, abs=1e-9)
    deviation = K[0, 0].item() ** 0.5
    f, opposite = outputs.T
    assert stats.kstest(f, stats.t(4, scale=deviation).cdf).pvalue > 0.05
    assert stats.kstest(f, stats.norm(scale=2**0.5 * deviation).cdf).pvalue < 1e-3
    assert stats.spearmanr(f**2, opposite**2).pvalue < 1e-3
    assert abs(stats.spearmanr(f, opposite).statistic) < 0.05


def test_a_trained_last_layer_keeps_its_degrees_of_freedom():
    """Gradient descent on real readouts, to the end."""
    X = torch.tensor([[1.0, 0.2], [-0.3, 0.9], [-0.8, -0.6]])
    x, y = torch.tensor([[0.9, -0.7]]), torch.tensor([[1.0], [-1.0], [0.5]])
    values = []
    for part in range(4):
        nets = NTKMLP(2, 1024, 1, stacked=500, generator=generator(part))
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(part)
            s = InverseGamma(torch.tensor(2.0), torch.tensor(2.0)).sample((500, 1, 1))
            nets.W1.mul_(s.sqrt())
            h, h_test = ((z @ nets.W0.mT / 2**0.5).relu() / 1024**0.5 for z in (X, x))
            rate = 1.9 / torch.linalg.eigvalsh(h @ h.mT)[:, -1].view(-1, 1, 1)
            for _ in range(150):
                nets.W1 -= rate * ((nets.W1 @ h.mT).mT - y).mT @ h
            assert ((nets.W1 @ h.mT).mT - y).abs().max() < 0.02
            values.append((nets.W1 @ h_test.mT)[:, 0, 0])
    f = torch.cat(values).numpy()
    K = nngp_kernel(torch.cat([X, x]).double(), activation="relu", depth=1)
    seen, test = slice(3), slice(3, 4)
    posterior = ntk_posterior(
        K[seen, seen], K[test, seen], K[test, test], K[seen, seen], K[test, seen], y[:, 0].double()
    )
    law = scale_mixture(*posterior, InverseGamma(torch.tensor(2.0), torch.tensor(2.0)))
    mean, _ = gp_posterior(K[seen, seen], K[test, seen], K[test, test], y[:, 0].double())
    assert law.mean.item() == pytest.approx(mean.item())
    assert law.df == 4
    assert np.median(f) == pytest.approx(mean.item(), abs=0.05)
    scale = law.scale_tril.item()
    assert stats.kstest(f, stats.t(4, mean.item(), scale).cdf).pvalue > 0.01
    assert stats.kstest(f, stats.norm(mean.item(), 2**0.5 * scale).cdf).pvalue < 1e-3
    low, quarter, three, high = np.quantile(f, [0.01, 0.25, 0.75, 0.99])
    tails = (high - low) / (three - quarter)  # 5.06 of t_4, 3.45 of a normal
    assert tails == pytest.approx(5.06, abs=0.6)


def network(dtype=torch.float32):
    return nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 1)).to(dtype)


def test_scaling_multiplies_the_output_of_any_network():
    net = nn.ModuleDict({"body": network(), "head": nn.Linear(1, 3)})
    x = torch.ones(4, 2)
    before = net["head"](net["body"](x))
    factor = scale_last_layer_(net, BurrXII(2.0, 1.0), generator=generator())
    torch.testing.assert_close(net["head"](net["body"](x)), factor * before)
    assert scale_last_layer_(network(torch.bfloat16), Delta(4.0)) == 2.0
    factors = [scale_last_layer_(network(), (2.0, 2.0), generator=generator(3)) for _ in range(2)]
    assert factors[0] == factors[1]


def test_ensembles_are_ordinary_modules():
    state = torch.get_rng_state()
    ensemble = HeavyTailedEnsemble(network, 3, (2.0, 2.0), generator=generator())
    assert torch.equal(state, torch.get_rng_state())
    x = torch.ones(4, 2)
    assert ensemble(x).shape == (3, 4, 1)
    other = HeavyTailedEnsemble(network, 3, Delta(1.0))
    other.load_state_dict(ensemble.state_dict())
    assert torch.equal(copy.deepcopy(other)(x), ensemble(x))
    assert torch.equal(other.factors, ensemble.factors)
    again = HeavyTailedEnsemble(network, 3, (2.0, 2.0), generator=generator())
    assert torch.equal(again(x), ensemble(x))
    assert not torch.equal(ensemble(x)[0], ensemble(x)[1])


# SVSP


def svsp(n=10, M=4, prior=(2.0, 3.0), covariance="full", **options):
    x = torch.randn(n, 2, generator=generator(), dtype=F64)
    model = SVSP(rbf, x[:M], 3, prior, num_data=n, covariance=covariance, **options)
    for i, p in enumerate(model.parameters()):
        with torch.no_grad():
            p.add_(0.3 * torch.randn(p.shape, generator=generator(i), dtype=F64))
    return model, x


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_kl_is_the_papers_formula_and_what_samples_say(covariance):
    model, _ = svsp(covariance=covariance)
    alpha, beta = torch.tensor([2.0, 3.0], dtype=F64)
    a, b = model.scale.log_a.exp(), model.scale.log_b.exp()
    M = 4
    K = rbf(model.inducing)
    K = K + 1e-6 * K.diagonal().mean() * torch.eye(M, dtype=F64)
    L = torch.linalg.cholesky(K)
    diagonal = model._log_diagonal().exp()
    factor = torch.diag_embed(diagonal)
    if covariance == "full":
        factor = factor + model.factor.tril(-1)
    m = (L @ model.mean.mT).mT
    S = L @ factor @ factor.mT @ L.mT
    gaussian = sum(
        K.logdet() - S[c].logdet() - M + torch.trace(torch.linalg.solve(K, S[c]))
        + a / b * m[c] @ torch.linalg.solve(K, m[c])
        for c in range(3)
    ) / 2  # fmt: skip
    gamma = (a - alpha) * a.digamma() - a.lgamma() + alpha.lgamma()
    gamma = gamma + alpha * (b / beta).log() + a * (beta - b) / b
    torch.testing.assert_close(model.kl(), gaussian + gamma)

    q, p = InverseGamma(a, b), InverseGamma(alpha, beta)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        s = q.sample((20_000,))
        total = q.log_prob(s) - p.log_prob(s)
        for c in range(3):
            z = torch.randn(20_000, M, dtype=F64)
            u = model.mean[c] + s.sqrt()[:, None] * z @ factor[c].mT
            log_q = -z.square().sum(1) / 2 - diagonal[c].log().sum() - M / 2 * s.log()
            total += log_q + u.square().sum(1) / (2 * s) + M / 2 * s.log()
    assert total.mean().item() == pytest.approx(model.kl().item(), rel=0.05)


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
@pytest.mark.parametrize("prior", [(2.0, 3.0), Delta(2.0)], ids=str)
def test_kl_is_zero_at_the_prior(prior, covariance):
    model = SVSP(rbf, torch.eye(3, dtype=F64), 2, prior, num_data=9, covariance=covariance)
    assert model.kl().item() == pytest.approx(0, abs=1e-12)


def gaussian_likelihood(f, y):
    return -((f[..., 0] - y) ** 2) / 0.2 - math.log(0.2 * math.pi) / 2  # variance 0.1


def exact_evidence(x, y, prior):
    """log ∫ N(y; 0, sK + 0.1·I) dH(s), by quadrature."""
    value, vector = torch.linalg.eigh(rbf(x))
    power = ((vector.mT @ y) ** 2).numpy()

    def log_density(s):
        total = s * value.numpy() + 0.1
        return -(power / total + np.log(2 * np.pi * total)).sum() / 2

    if isinstance(prior, Delta):
        return log_density(prior.value.item())
    density = stats.invgamma(prior[0], scale=prior[1])
    total = integrate.quad(
        lambda u: np.exp(u) * density.pdf(np.exp(u)) * np.exp(log_density(np.exp(u))), -8, 8
    )
    return math.log(total[0])


def test_svgp_is_exact_where_it_can_be():
    x = torch.randn(10, 2, generator=generator(), dtype=F64)
    y = x[:, 0].sin()
    model = SVSP(rbf, x, 1, Delta(1.0), num_data=10, likelihood=gaussian_likelihood)
    K = rbf(x) + 1e-6 * torch.eye(10, dtype=F64)
    A = torch.linalg.solve_triangular(torch.linalg.cholesky(K), rbf(x), upper=False)
    S = torch.linalg.inv(torch.eye(10, dtype=F64) + A @ A.mT / 0.1)
    factor = torch.linalg.cholesky((S + S.mT) / 2)
    with torch.no_grad():
        model.mean.copy_((S @ A @ y / 0.1)[None])
        model.factor.copy_((factor.tril(-1) + factor.diagonal().log().diag())[None])
        elbo = 10 * model.elbo(x, y, num_samples=40_000, generator=generator())
    assert elbo.item() == pytest.approx(exact_evidence(x, y, Delta(1.0)), abs=0.05)
    assert model.sample(x, 5).shape == (5, 10, 1)


@pytest.mark.parametrize("M", [3, 10])
def test_elbo_stays_below_the_evidence_while_it_learns(M):
    x = torch.randn(10, 2, generator=generator(), dtype=F64)
    y = x[:, 0].sin()
    model = SVSP(rbf, x[:M], 1, (2.0, 2.0), num_data=10, likelihood=gaussian_likelihood)
    evidence = exact_evidence(x, y, (2.0, 2.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    bounds, stream = [], generator()
    for step in range(161):
        optimizer.zero_grad()
        (-model.elbo(x, y, num_samples=50, generator=stream)).backward()
        optimizer.step()
        if step in (0, 160):
            with torch.no_grad():
                bound = 10 * model.elbo(x, y, num_samples=20_000, generator=generator())
            bounds.append(bound.item())
    assert max(bounds) < evidence + 0.05
    assert bounds[-1] > bounds[0] + 1
    if M == 10:
        assert bounds[-1] > evidence - 1


def test_the_marginal_of_svsp_is_a_t():
    model, x = svsp()
    mean, variance = model(x)
    f = model.sample(x, 4000, generator()).detach()
    a, b = model.scale.log_a.exp().item(), model.scale.log_b.exp().item()
    law = stats.t(2 * a, mean[3, 1].item(), (b / a * variance[3, 1].item()) ** 0.5)
    assert stats.kstest(f[:, 3, 1].numpy(), law.cdf).pvalue > 1e-3
    # one scale for all points and classes
    squares = (f - mean.detach()).square()
    assert stats.spearmanr(squares[:, 0, 0], squares[:, 5, 2]).pvalue < 1e-3


def test_gradients_of_elbo_reach_everything():
    x = torch.randn(6, 3, generator=generator(), dtype=F64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    model = SVSP(NNGPKernel("relu", 2), x[:4], 3, num_data=6)
    model.elbo(x, y, num_samples=5, generator=generator()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert (model.scale.log_a.grad != 0).item()
    other = SVSP(NNGPKernel("relu", 2), x[2:], 3, num_data=6)
    other.load_state_dict(model.state_dict())
    first, second = (m.predict_proba(x, generator=generator()) for m in (model, other))
    assert torch.equal(first, second)
    torch.testing.assert_close(first.sum(1), torch.ones(6, dtype=F64))
    single = SVSP(NNGPKernel(), x[:4].float(), 3, num_data=6)
    assert single.predict_proba(x.float()).dtype == torch.float32


# Estimators


HASHED = {"check_estimators_overwrite_params": "joblib hashes a copied distribution differently"}


@pytest.mark.parametrize(
    ("estimator", "failing"),
    [
        (ScaleMixtureRegressor(max_iter=3, n_layers=1, random_state=0), {}),
        (
            ScaleMixtureRegressor(rbf, 3, prior=BurrXII(2.0, 1.0), n_draws=50, random_state=0),
            HASHED,
        ),
        (
            ScaleMixtureClassifier(
                n_inducing=10,
                n_layers=1,
                max_iter=10,
                learning_rate=0.4,
                n_samples=2,
                random_state=0,
            ),
            {},
        ),
    ],
    ids=["regressor", "own kernel and prior", "classifier"],
)
def test_scikit_learn_contract(estimator, failing):
    checks = estimator_checks_generator(estimator, expected_failed_checks=failing, mark="skip")
    for instance, check in checks:
        with contextlib.suppress(SkipTest):
            check(instance)


def test_estimators_take_frames_pipelines_grids_and_pickles():
    X, y = table()
    frame = pd.DataFrame(X, columns=list("abc"))
    pipeline = make_pipeline(StandardScaler(), ScaleMixtureRegressor(n_layers=1, max_iter=5))
    priors = [(1.0, 1.0), InverseGamma(torch.tensor(2.0), torch.tensor(2.0)), Delta(1.0)]
    search = GridSearchCV(pipeline, {"scalemixtureregressor__prior": priors}, cv=2).fit(frame, y)
    assert search.best_score_ > 0.3
    fitted = search.best_estimator_
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict(frame), fitted.predict(frame))
    labels = np.where(y > 0, "high", "low")
    model = ScaleMixtureClassifier(n_inducing=8, n_layers=1, max_iter=40, random_state=0)
    model.fit(frame, labels)
    assert set(model.predict(frame)) == {"high", "low"}
    assert model.score(frame, labels) > 0.7
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict_proba(frame), model.predict_proba(frame))
    assert len(model.elbo_) == 40


@pytest.mark.parametrize(
    "X",
    [
        np.ones((6, 2)),
        np.zeros((6, 2)),
        np.repeat(np.arange(3.0)[:, None], 2, 0),
        np.arange(6, dtype=np.float32)[:, None],
        np.ones((1, 2)),
    ],
    ids=["constant", "zeros", "twice", "float32", "one"],
)
@pytest.mark.parametrize("prior", [(2.0, 2.0), BurrXII(2.0, 1.0), "ml"], ids=str)
def test_odd_tables_work(X, prior):
    for y in (np.arange(len(X)) % 2 + 1.0, np.full(len(X), 3.0)):
        model = ScaleMixtureRegressor("relu", 1, prior=prior, random_state=0, max_iter=3).fit(X, y)
        mean, std = model.predict(X, return_std=True)
        assert np.isfinite(mean).all()
        assert np.isfinite(std).all()
        assert np.isfinite(model.log_predictive_density(X, y)).all()
    labels = np.array(["a", "b", "c"])[np.arange(len(X)) % 3]
    for names in (labels, labels[:1].repeat(len(X))):
        model = ScaleMixtureClassifier(n_layers=1, max_iter=3, random_state=0).fit(X, names)
        assert set(model.predict(X)) <= set(names)
        np.testing.assert_allclose(model.predict_proba(X).sum(1), 1)


def nan_prior():
    class Broken(LogNormal):
        def log_prob(self, value):
            return super().log_prob(value) * math.nan

    return Broken(0.0, 1.0)


X2 = [[0.0], [1.0]]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"prior": (0.0, 1.0)}, ValueError, "alpha and beta must be positive"),
        ({"prior": (1.0, math.nan)}, ValueError, "alpha and beta must be positive"),
        ({"prior": "gamma"}, ValueError, "prior must be a distribution, a pair"),
        ({"prior": 2.0}, TypeError, "prior must be a torch distribution"),
        ({"prior": Normal(0.0, 1.0)}, ValueError, "prior must give positive finite numbers"),
        ({"prior": nan_prior()}, ValueError, "density of NaN"),
        ({"prior": Gamma(torch.ones(2), 1.0)}, ValueError, "prior must be of one number"),
        ({"noise": -1.0}, ValueError, "noise must be finite and not negative"),
        ({"n_draws": 0}, ValueError, "n_draws must be at least 1"),
        ({"kernel": "rule"}, ValueError, "activation 'rule' is unknown"),
        ({"kernel": 3}, TypeError, "kernel must be the name of an activation"),
        ({"kernel": lambda X, Z=None: X}, ValueError, r"kernel must give a tensor of shape \(2, 2"),
        ({"kernel": lambda X, Z=None: X @ X.T / 0}, ValueError, "not finite"),
        (
            {"kernel": lambda X, Z=None: -torch.eye(2, dtype=F64), "noise": 0.0, "optimize": False},
            ValueError,
            "kernel matrix is not positive definite; increase noise",
        ),
    ],
)
def test_the_regressor_refuses_what_it_cannot_do(options, error, match):
    with pytest.raises(error, match=match):
        ScaleMixtureRegressor(**options).fit(X2, [0.0, 1.0])


def test_predictions_refuse_what_they_cannot_do():
    model = checked_regressor()
    with pytest.raises(ValueError, match="q must be between 0 and 1"):
        model.predict_quantile(X2, 1.0)
    with pytest.raises(ValueError, match=r"y must have shape \(2,\), got \(3,\)"):
        model.log_predictive_density(X2, [0.0, 1.0, 2.0])
    for estimator in (ScaleMixtureRegressor(), ScaleMixtureClassifier()):
        with pytest.raises(ValueError, match="contains NaN"):
            estimator.fit([[0.0], [math.nan]], [0, 1])


def test_infinite_variances_are_said_and_quantiles_stay():
    model = ScaleMixtureRegressor(rbf, prior=(0.4, 1.0), normalize_y=False).fit([[0.0]], [1.0])
    assert model.predict([[1.0]], return_std=True)[1] == math.inf
    assert np.isfinite(model.predict_quantile([[1.0]], [0.1, 0.9])).all()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: SVSP(rbf, torch.ones(3), 2, num_data=3), ValueError, "inducing must be"),
        (lambda: SVSP(rbf, torch.ones(3, 2).int(), 2, num_data=3), ValueError, "floating point"),
        (lambda: SVSP(rbf, torch.ones(3, 2), 0, num_data=3), ValueError, "num_classes and num"),
        (lambda: SVSP(rbf, torch.ones(3, 2), 2, (0, 1), num_data=3), ValueError, "alpha and beta"),
        (
            lambda: SVSP(rbf, torch.ones(3, 2), 2, BurrXII(2.0, 1.0), num_data=3),
            TypeError,
            "prior must be InverseGamma, a pair .* or Delta, got BurrXII",
        ),
        (
            lambda: SVSP(rbf, torch.ones(3, 2), 2, num_data=3, covariance="none"),
            ValueError,
            "covariance must be",
        ),
        (
            lambda: ScaleMixtureClassifier(n_inducing=0).fit(X2, [0, 1]),
            ValueError,
            "n_inducing must be at least 1",
        ),
        (
            lambda: ScaleMixtureClassifier(learning_rate=0.0).fit(X2, [0, 1]),
            ValueError,
            "learning_rate must be positive",
        ),
        (lambda: ScaleMixtureClassifier().fit(X2, [0.1, 0.7]), ValueError, "Unknown label type"),
        (lambda: NNGPKernel(C_W=0.0), ValueError, "C_W must be positive"),
        (lambda: HeavyTailedEnsemble(network, 0), ValueError, "num_members must be at least 1"),
        (lambda: scale_last_layer_(nn.ReLU(), (1.0, 1.0)), ValueError, "has no Linear layer"),
        (lambda: scale_last_layer_(network(), (1.0, 0.0)), ValueError, "must be positive"),
        (lambda: scale_last_layer_(network(), "ml"), TypeError, "prior must be a torch dist"),
        (lambda: BurrXII(-1.0, 1.0), ValueError, "parameter c"),
        (
            lambda: MultivariateStudentT(1.0, torch.zeros(2), torch.eye(3)),
            ValueError,
            r"must have shapes \(k,\) and \(k, k\)",
        ),
        (
            lambda: scale_mixture(torch.zeros(2), -torch.eye(2), Delta(1.0)),
            ValueError,
            "not positive definite",
        ),
    ],
)
def test_parts_refuse_what_they_cannot_do(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_a_tied_last_layer_is_refused_and_left_alone():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    net[1].weight = net[0].weight
    before = net[1].weight.clone()
    with pytest.raises(ValueError, match="shares its weights"):
        scale_last_layer_(net, (2.0, 2.0))
    assert torch.equal(net[1].weight, before)


def test_nothing_touches_the_global_generators():
    X, y = table(12)
    state, theirs = torch.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ScaleMixtureRegressor(rbf, prior=Gamma(2.0, 1.0), n_draws=20).fit(X, y).sample_y(X)
        ScaleMixtureClassifier(n_inducing=4, max_iter=2, random_state=0).fit(X, y > 0)
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(theirs, np.random.mtrand._rand.get_state()[1])
    assert isinstance(law_of(Delta(2.0), 1, 0), WeightedLaw)
