"""Densities that integrate, networks that keep the product form, estimators, references."""

import contextlib
import copy
import itertools
import math
import pickle
from unittest import SkipTest

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Matern
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import estimator_checks_generator
from torch import nn
from torch.distributions import Gamma, Normal

from paperworks.compress import save_tensors
from paperworks.incontext import (
    PFN,
    BarDistribution,
    BNNPrior,
    CategoricalHead,
    FunctionPrior,
    GPPrior,
    LinearTasks,
    MixturePrior,
    PFNClassifier,
    PFNRegressor,
    exact_gp_ppd,
    fit_pfn,
    hmc_ppd,
    load_pfn,
    log_uniform,
    save_pfn,
    standardize_context,
)

BORDERS = torch.tensor([-1.5, -0.2, 0.1, 0.9, 2.5], dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def small(num_features=2, head=None, **sizes):
    """A PFN in float64 none of whose weights is zero."""
    sizes = {"d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24} | sizes
    model = PFN(num_features, head or CategoricalHead(3), **sizes).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def tasks(batch=3, n=6, queries=4, features=2):
    shapes = (batch, n, features), (batch, n), (batch, queries, features)
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


# Check 1 and 2: the bar distribution


@pytest.mark.parametrize("full_support", [True, False])
def test_density_integrates_to_one_and_has_its_moments(full_support):
    bars = BarDistribution(BORDERS, full_support)
    logits = torch.randn(1, 4, generator=generator(), dtype=torch.float64)
    edges = [-30.0, *BORDERS.tolist(), 30.0] if full_support else BORDERS.tolist()
    mass = mean = square = 0.0
    for low, high in itertools.pairwise(edges):  # midpoints, bucket by bucket
        step = (high - low) / 5_000
        y = low + step * (torch.arange(5_000, dtype=torch.float64) + 0.5)
        density = bars.log_prob(logits, y).exp() * step
        mass, mean = mass + density.sum(), mean + (density * y).sum()
        square = square + (density * y.square()).sum()
    assert mass.item() == pytest.approx(1, abs=1e-4)
    assert bars.mean(logits).item() == pytest.approx(mean.item(), abs=1e-4)
    assert bars.variance(logits).item() == pytest.approx((square - mean**2).item(), abs=1e-3)


@pytest.mark.parametrize("full_support", [True, False])
def test_borders_belong_to_the_bucket_below_and_the_lowest_to_the_first(full_support):
    bars = BarDistribution(BORDERS, full_support)
    logits = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    log_p = logits.log_softmax(0) - BORDERS.diff().log()
    expected = torch.stack([log_p[0], log_p[0], log_p[1], log_p[2], log_p[3]])
    if full_support:
        median = 0.6744897501960817  # at its outer border a half-normal has passed half its mass
        scale = BORDERS.diff() / median
        peak = math.log(2 / math.pi) / 2 - scale.log()
        outer = logits.log_softmax(0) + peak
        tail = median**2 / 2
        expected[0], expected[1], expected[4] = outer[0] - tail, outer[0], outer[3] - tail
        torch.testing.assert_close(bars.cdf(logits, BORDERS[0]), logits.softmax(0)[0] / 2)
    torch.testing.assert_close(bars.log_prob(logits, BORDERS), expected)


@pytest.mark.parametrize("full_support", [True, False])
@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_quantile_and_cdf_are_inverse(full_support, seed):
    draw = generator(seed)
    bars = BarDistribution(BORDERS, full_support)
    logits = 3 * torch.randn(5, 1, 4, generator=draw, dtype=torch.float64)
    p = torch.rand(5, 20, generator=draw, dtype=torch.float64)
    torch.testing.assert_close(bars.cdf(logits, bars.quantile(logits, p)), p)
    y = bars.sample(logits[:, 0], 7, draw)
    assert y.shape == (7, 5)
    again = bars.quantile(logits[:, 0], bars.cdf(logits[:, 0], y))
    torch.testing.assert_close(again, y, rtol=1e-6, atol=1e-6)


def test_ends_of_the_support():
    tails, bounded = BarDistribution(BORDERS), BarDistribution(BORDERS, full_support=False)
    logits, ends = torch.zeros(4).double(), torch.tensor([0.0, 1.0]).double()
    assert tails.quantile(logits, ends).tolist() == [-math.inf, math.inf]
    assert bounded.quantile(logits, ends).tolist() == [-1.5, 2.5]
    assert tails.log_prob(logits, torch.tensor(9.0)).isfinite()
    assert bounded.log_prob(logits, torch.tensor(9.0)) == -math.inf
    assert bounded.cdf(logits, torch.tensor([-9.0, 9.0])).tolist() == [0, 1]


def test_two_buckets_by_hand():
    bars = BarDistribution(torch.tensor([0.0, 1.0, 3.0]), full_support=False)
    logits = torch.zeros(2, 2)
    expected = torch.tensor([-0.693147, -1.386294])
    torch.testing.assert_close(bars.log_prob(logits, torch.tensor([0.5, 2.0])), expected)
    assert bars.mean(torch.zeros(2)).item() == 1.25


def test_buckets_of_samples_hold_equally_many():
    y = torch.randn(10_000, generator=generator())
    bars = BarDistribution.from_samples(y, 13)
    counts = torch.histogram(y, bars.borders).hist
    assert counts.min() >= 768
    assert counts.max() <= 771
    assert (bars.borders[0], bars.borders[-1]) == (y.min(), y.max())
    draws = bars.sample(torch.zeros(13), 20_000, generator(1))
    assert torch.histogram(draws, bars.borders[1:-1]).hist.std() < 60


def test_log_prob_has_the_right_gradient():
    bars = BarDistribution(BORDERS)
    y = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0]).double()
    logits = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: bars.log_prob(z, y), logits)
    assert torch.autograd.gradcheck(bars.mean, logits)


@pytest.mark.parametrize(
    ("borders", "match"),
    [
        (torch.tensor([0.0, 1.0, 1.0]), "strictly increasing"),
        (torch.tensor([0.0, 2.0, 1.0, 3.0]), "strictly increasing, got 2 and then 1"),
        (torch.tensor([0.0, math.nan, 1.0]), "finite"),
        (torch.tensor([0.0, 1.0]), "at least 3"),
        (torch.zeros(2, 3), "shape"),
    ],
)
def test_wrong_borders(borders, match):
    with pytest.raises(ValueError, match=match):
        BarDistribution(borders)


def test_wrong_samples_and_logits():
    with pytest.raises(ValueError, match="too many equal values"):
        BarDistribution.from_samples(torch.ones(100), 5)
    with pytest.raises(ValueError, match="twice as many"):
        BarDistribution.from_samples(torch.rand(9), 5)
    with pytest.raises(ValueError, match="finite"):
        BarDistribution.from_samples(torch.full((100,), math.nan), 5)
    with pytest.raises(ValueError, match=r"\(\.\.\., 4\)"):
        BarDistribution(BORDERS).mean(torch.zeros(3))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        BarDistribution(BORDERS).quantile(torch.zeros(4), 1.5)
    with pytest.raises(ValueError, match="at least 2"):
        CategoricalHead(1)


# Checks 3, 4, 7 and 8: the network


def test_order_of_the_context_and_other_queries_do_not_matter():
    model = small()
    x, y, queries = tasks()
    out = model(x, y, queries)
    order = torch.randperm(6)
    torch.testing.assert_close(model(x[:, order], y[:, order], queries), out, atol=1e-10, rtol=0)
    torch.testing.assert_close(model(x, y, queries[:, 1:2]), out[:, 1:2], atol=1e-10, rtol=0)
    changed = queries.clone()
    changed[:, 0] += 5
    torch.testing.assert_close(model(x, y, changed)[:, 1:], out[:, 1:], atol=1e-10, rtol=0)
    assert not torch.allclose(model(x[:, 1:], y[:, 1:], queries), out, atol=1e-3)


def test_blocks_are_those_of_a_masked_encoder():
    """torch's own layer under the paper's mask: all see the context, a query also itself."""
    block, n = small().blocks[0], 7
    layer = nn.TransformerEncoderLayer(16, 2, 24, 0.0, "gelu", batch_first=True).double()
    layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias = block.qkv.parameters()
    layer.self_attn.out_proj = block.out
    for name in ("linear1", "linear2", "norm1", "norm2"):
        setattr(layer, name, getattr(block, name))
    seen = torch.eye(11, dtype=torch.bool)
    seen[:, :n] = True
    tokens = torch.randn(3, 11, 16, dtype=torch.float64)
    torch.testing.assert_close(block(tokens, n), layer(tokens, src_mask=~seen))


def test_an_empty_context_works():
    model = small()
    x, y, queries = tasks(n=0)
    out = model(x, y, queries)
    torch.testing.assert_close(model(x, y, queries[:, :1]), out[:, :1])
    assert out.shape == (3, 4, 3)


def test_at_initialisation_an_output_depends_on_its_own_token_only():
    model = PFN(2, CategoricalHead(3), 16, 3, 2, 24).double()
    x, y, queries = tasks()
    out = model(x, y, queries)
    torch.testing.assert_close(model(x + 1, y - 2, queries), out)
    queries[:, 0] += 1
    assert not torch.allclose(model(x, y, queries)[:, 0], out[:, 0])
    torch.testing.assert_close(model(x, y, queries)[:, 1:], out[:, 1:])


def test_gradients_reach_all_layers_after_one_step():
    model = PFN(1, CategoricalHead(2), 8, 3, 2, 8)
    coin = FunctionPrior(coins)
    fit_pfn(model, coin, 2, batch_size=8, num_points=6, min_context=2, max_context=4, lr=1e-2)
    x, y = coins(4, 6, generator())
    loss = -model.head.log_prob(model(x[:, :4], y[:, :4], x[:, 4:]), y[:, 4:]).mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        unused = name == "embed_x.weight"  # x is constant, and normalised away
        assert unused or parameter.grad.abs().max() > 0, name


def test_attention_cost_is_quadratic_in_the_context_and_linear_in_queries():
    """Multiply-adds of attention, which torch counts at the tensors' shapes."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    model = PFN(1, CategoricalHead(2), 8, 1, 1, 8)

    def attention(n, queries):
        x, y, q = (torch.zeros(1, n, 1), torch.zeros(1, n), torch.zeros(1, queries, 1))
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),  # as products that are counted
        ):
            model(x, y, q)
        return counter.get_flop_counts()["Global"][torch.ops.aten.bmm]

    assert attention(512, 512) / attention(256, 256) == pytest.approx(4, rel=0.02)
    more = attention(256, 768) - attention(256, 512)
    assert more == attention(256, 512) - attention(256, 256)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_copies_and_state(dtype):
    model = PFN(2, BarDistribution(BORDERS), 16, 2, 2, 24).to(dtype)
    x, y, queries = tasks()
    out = model(x, y, queries)
    assert out.dtype == dtype
    assert model.head.log_prob(out, torch.zeros(3, 4)).isfinite().all()
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(twin(x, y, queries), out)


@pytest.mark.parametrize("head", [BarDistribution(BORDERS, False), CategoricalHead(4)])
def test_saved_networks_come_back(tmp_path, head):
    model = small(head=head)
    model.max_context.fill_(17)
    save_pfn(model, tmp_path / "pfn.safetensors")
    again = load_pfn(tmp_path / "pfn.safetensors")
    x, y, queries = tasks()
    torch.testing.assert_close(again(x, y, queries), model(x, y, queries))
    assert int(again.max_context) == 17
    assert getattr(again.head, "full_support", None) == getattr(head, "full_support", None)
    assert all(p.requires_grad for p in again.parameters())
    save_tensors({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="holds no PFN"):
        load_pfn(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (((2, 5, 3), (2, 5), (2, 4, 2)), "x_ctx must be"),
        (((2, 5, 2), (2, 5), (2, 4, 3)), "x_query must be"),
        (((2, 5, 2), (2, 5), (1, 4, 2)), "x_query must be"),
        (((2, 5, 2), (2, 4), (2, 4, 2)), "y_ctx must be"),
    ],
)
def test_wrong_shapes(shapes, match):
    with pytest.raises(ValueError, match=match):
        small()(*(torch.zeros(shape) for shape in shapes))


def test_wrong_sizes():
    with pytest.raises(ValueError, match="multiple of 3 heads"):
        PFN(1, CategoricalHead(2), d_model=8, num_heads=3)
    with pytest.raises(ValueError, match="num_features"):
        PFN(0, CategoricalHead(2))


# Checks 5 and 6: training


def coins(batch, n_points, generator):
    """Beta(1, 1)-Bernoulli: the predictive probability of 1 is (k + 1)/(n + 2)."""
    p = torch.rand(batch, 1, generator=generator).expand(-1, n_points)
    return torch.ones(batch, n_points, 1), torch.bernoulli(p, generator=generator)


def test_a_coin_of_unknown_bias_gives_laplaces_rule():
    model = PFN(1, CategoricalHead(2), 32, 1, 1, 32)
    fit_pfn(model, FunctionPrior(coins), 500, num_points=11, lr=3e-3, generator=generator())
    x, y = coins(500, 11, generator(7))
    errors = []
    for n in range(11):
        with torch.no_grad():
            p = model(x[:, :n], y[:, :n], x[:, n : n + 1]).softmax(-1)[:, 0, 1]
        rule = (y[:, :n].sum(1) + 1) / (n + 2)
        errors.append((p - rule).abs().mean().item())
    assert np.mean(errors) < 0.03


def test_loss_stays_above_the_exact_process_and_approaches_it():
    prior = GPPrior("rbf", 0.3, 0.01)
    _, y = prior.sample(2000, 5, generator(1))
    model = PFN(1, BarDistribution.from_samples(y, 30), 32, 2, 2, 32)
    gaps = []
    x, y = prior.sample(2000, 7, generator(2))
    exact = exact_gp_ppd(x[:, :6], y[:, :6], x[:, 6:], lengthscale=0.3, noise=0.01)
    best = exact.log_prob(y[:, 6:].double())[:, 0]
    draw = generator()
    for steps in (1, 200):
        options = {"num_points": 9, "max_context": 7, "lr": 4e-3, "generator": draw}
        fit_pfn(model, prior, steps, batch_size=32, **options)
        with torch.no_grad():
            logits = model(x[:, :6], y[:, :6], x[:, 6:])
        gap = best - model.head.log_prob(logits, y[:, 6:])[:, 0]
        assert gap.mean() > -2 * gap.std() / len(gap) ** 0.5
        gaps.append(gap.mean().item())
    assert gaps[1] < 0.7 * gaps[0]


def test_training_is_repeatable_and_leaves_the_global_generator_alone():
    prior = GPPrior("matern52", Gamma(3.0, 6.0), log_uniform(1e-3, 0.1), ard=True, num_features=2)
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        model = PFN(2, BarDistribution(BORDERS.float()), 8, 1, 1, 8)
        before = torch.get_rng_state()
        fit_pfn(model, prior, 3, batch_size=4, num_points=8, accumulate=2, generator=generator())
        assert torch.equal(before, torch.get_rng_state())
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert int(states[0]["trained_steps"]) == 3
    assert int(states[0]["max_context"]) == 7


def test_accumulated_gradients_are_summed():
    def fixed(batch, n_points, _):
        x = torch.linspace(-1, 1, n_points).expand(batch, -1)[..., None]
        return x, (x[..., 0] > 0).float()

    weights = []
    for options in ({"accumulate": 3, "batch_size": 2}, {"accumulate": 1, "batch_size": 6}):
        torch.manual_seed(0)
        model = PFN(1, CategoricalHead(2), 8, 1, 1, 8)
        seen = []
        model.decoder[0].bias.register_post_accumulate_grad_hook(
            lambda p, seen=seen: seen.append(p.grad.norm().item())
        )
        fit_pfn(
            model, FunctionPrior(fixed), 1, num_points=5, min_context=3, max_context=3, **options
        )
        weights.append(max(seen))
    assert weights[0] == pytest.approx(3 * weights[1], rel=1e-4)


def test_inputs_are_normalised_once():
    def far(batch, n_points, generator):
        x = 1000 + 50 * torch.rand(batch, n_points, 2, generator=generator)
        x[..., 1] = 4.0
        return x, (x[..., 0] > 1025).float()

    model = PFN(2, CategoricalHead(2), 8, 1, 1, 8)
    fit_pfn(model, FunctionPrior(far), 1, num_points=50)
    assert model.x_mean.tolist() == pytest.approx([1025, 4], abs=1)
    assert model.x_std.tolist() == pytest.approx([50 / 12**0.5, 1], rel=0.05)
    mean = model.x_mean.clone()
    fit_pfn(model, BNNPrior([2, 4]), 1, num_points=5)
    assert torch.equal(mean, model.x_mean)


@pytest.mark.parametrize(
    ("drawn", "match"),
    [
        (lambda b, n, g: (torch.full((b, n, 2), math.nan), torch.zeros(b, n)), "x has .* NaN"),
        (lambda b, n, g: (torch.zeros(b, n, 2), torch.full((b, n), math.inf)), "y has .* infinite"),
        (lambda b, n, g: (torch.zeros(b, n), torch.zeros(b, n)), "x and y must be"),
        (lambda b, n, g: (torch.zeros(b, n, 3), torch.zeros(b, n)), "x and y must be"),
        (lambda b, n, g: (torch.zeros(b, n, 2), torch.zeros(b, n, 1)), "x and y must be"),
        (lambda b, n, g: torch.zeros(b, n, 2), "must return x and y"),
        (lambda b, n, g: (torch.zeros(b, n, 2), "no"), "tensors or arrays"),
        (lambda b, n, g: (torch.zeros(b, n, 2), torch.full((b, n), 2)), "labels 0 to 1"),
    ],
)
def test_a_prior_that_is_wrong_is_named(drawn, match):
    model = PFN(2, CategoricalHead(2), 8, 1, 1, 8)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"prior 'my simulator': .*{match}"):
        fit_pfn(model, FunctionPrior(drawn, "my simulator"), 2, num_points=5)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"num_points": 0}, {"max_context": 5}, {"min_context": -1}, {"lr": -1.0},
        {"context_sizes": "log"}, {"min_context": 4, "max_context": 3}, {"accumulate": 0},
    ],
)  # fmt: skip
def test_wrong_arguments_of_training(wrong):
    arguments = {"steps": 1, "num_points": 5} | wrong
    with pytest.raises(ValueError, match=next(iter(wrong))):
        fit_pfn(PFN(1, CategoricalHead(2), 8, 1, 1, 8), FunctionPrior(coins), **arguments)


# Priors


def test_processes_have_the_covariance_asked_for():
    prior = GPPrior("matern32", 0.7, noise=0.2, outputscale=1.5)
    x, y = prior.sample(20_000, 3, generator())
    r = (x[:, 0] - x[:, 1]).abs()[:, 0] * 3**0.5 / 0.7
    expected = 1.5 * ((1 + r) * torch.exp(-r)).mean()
    assert (y[:, 0] * y[:, 1]).mean().item() == pytest.approx(expected.item(), abs=0.1)
    assert y.var().item() == pytest.approx(1.7, abs=0.1)
    assert 0 <= x.min() < x.max() <= 1


def test_hyperparameters_are_drawn_per_task():
    prior = GPPrior(lengthscale=1e3, noise=log_uniform(1e-4, 1.0))
    _, y = prior.sample(200, 50, generator())
    deviations = y.std(1).log10()
    assert deviations.std() > 0.4
    torch.testing.assert_close(prior.sample(3, 4, generator(2)), prior.sample(3, 4, generator(2)))


@pytest.mark.parametrize("inputs", ["normal", "correlated"])
def test_networks_as_priors(inputs):
    prior = BNNPrior([6, 8], min_features=2, inputs=inputs)
    x, y = prior.sample(300, 20, generator())
    counts = (x.abs().sum(1) > 0).sum(1)
    assert set(counts.tolist()) == {2, 3, 4, 5, 6}
    assert set(y.unique().tolist()) == {0, 1}
    linear = BNNPrior([4, 8], activation=None, task="regression")
    x, y = linear.sample(5, 12, generator())
    with_one = torch.cat([x, torch.ones(5, 12, 1)], dim=-1)
    fit = torch.linalg.lstsq(with_one, y[..., None]).solution
    torch.testing.assert_close((with_one @ fit)[..., 0], y, atol=1e-3, rtol=1e-3)


def test_mixtures_have_their_shares():
    one = FunctionPrior(lambda b, n, g: (torch.zeros(b, n, 1), torch.ones(b, n)))
    two = FunctionPrior(lambda b, n, g: (torch.zeros(b, n, 1), 2 * torch.ones(b, n)))
    _, y = MixturePrior([one, two], [1, 3]).sample(4000, 2, generator())
    assert (y[:, 0] == 2).float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert (y[:, 0] == y[:, 1]).all()
    assert (y[1:, 0] != y[:-1, 0]).any(), "in random order"


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: GPPrior("cosine"), "kernel"),
        (lambda: GPPrior(lengthscale=0.0), "lengthscale"),
        (lambda: GPPrior(noise=-1.0), "noise"),
        (lambda: GPPrior(outputscale="big"), "outputscale"),
        (lambda: GPPrior(inputs="grid"), "inputs"),
        (lambda: BNNPrior([]), "widths"),
        (lambda: BNNPrior([3, 0]), "widths"),
        (lambda: BNNPrior([3], "cube"), "activation"),
        (lambda: BNNPrior([3], task="ranking"), "task"),
        (lambda: BNNPrior([3], min_features=4), "min_features"),
        (lambda: MixturePrior([]), "priors"),
        (lambda: MixturePrior([LinearTasks(1)], [0.0]), "weights"),
        (lambda: log_uniform(1.0, 0.1), "low < high"),
    ],
)
def test_wrong_priors(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_prior_must_be_callable():
    with pytest.raises(TypeError, match="callable"):
        FunctionPrior(3)


def test_linear_tasks_are_a_prior():
    model = PFN(3, BarDistribution(torch.linspace(-6, 6, 31)), 8, 1, 1, 8)
    assert not fit_pfn(model, LinearTasks(3), 3, num_points=6).diverged


# References


@pytest.mark.parametrize(("name", "theirs"), [("rbf", RBF(0.4)), ("matern52", Matern(0.4, nu=2.5))])
def test_exact_predictive_is_scikit_learns(name, theirs):
    x, y, queries = tasks(batch=2, n=8)
    exact = exact_gp_ppd(x, y, queries, kernel=name, lengthscale=0.4, noise=0.1)
    for b in range(2):
        process = GaussianProcessRegressor(theirs, alpha=0.1, optimizer=None).fit(x[b], y[b])
        mean, std = process.predict(queries[b], return_std=True)
        np.testing.assert_allclose(exact.mean[b], mean, atol=1e-8)
        np.testing.assert_allclose(exact.variance[b], std**2 + 0.1, atol=1e-8)


def test_unknown_hyperparameters_are_weighted_by_their_evidence():
    x, y, queries = tasks(batch=2, n=5)
    grid = {"lengthscale": torch.tensor([0.2, 0.9]), "noise": torch.tensor([0.3, 0.1])}
    prior = torch.tensor([0.3, 0.7])
    mixed = exact_gp_ppd(x, y, queries, **grid, weights=prior)
    logs, densities = [], []
    for i in range(2):
        one = {name: values[i].item() for name, values in grid.items()}
        chain = [  # p(y) as the product of one-step predictives
            exact_gp_ppd(x[:, :j], y[:, :j], x[:, j : j + 1], **one).log_prob(y[:, j : j + 1])
            for j in range(5)
        ]
        logs.append(torch.cat(chain, 1).sum(1) + prior[i].log())
        densities.append(exact_gp_ppd(x, y, queries, **one).log_prob(torch.zeros(2, 4)))
    weights = torch.stack(logs).softmax(0)
    expected = (weights[:, :, None] * torch.stack(densities).exp()).sum(0)
    torch.testing.assert_close(mixed.log_prob(torch.zeros(2, 4)).exp(), expected)
    empty = exact_gp_ppd(x[:, :0], y[:, :0], queries, **grid, weights=prior)
    torch.testing.assert_close(empty.variance[0, 0].item(), 1 + 0.3 * 0.3 + 0.7 * 0.1)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"noise": -1.0}, "noise"),
        ({"lengthscale": 0.0}, "lengthscale"),
        ({"lengthscale": torch.ones(2), "noise": torch.ones(3)}, "one length"),
        ({"lengthscale": torch.ones(2, 3)}, "columns"),
        ({"lengthscale": torch.ones(2), "weights": torch.ones(3)}, "weights"),
        ({"x_query": torch.zeros(2, 4, 5)}, "x_query"),
        ({"y_ctx": torch.zeros(2, 4)}, "must be"),
    ],
)
def test_wrong_references(wrong, match):
    x, y, queries = tasks(batch=2, n=5)
    arguments = {"x_ctx": x, "y_ctx": y, "x_query": queries, "noise": 0.1} | wrong
    with pytest.raises(ValueError, match=match):
        exact_gp_ppd(**arguments)


def test_monte_carlo_agrees_with_conjugacy():
    y = torch.tensor([[1.0, 2.0], [-1.0, 0.5]]).double()  # theta ~ N(0, 1), y ~ N(theta, 1)

    def joint(theta):
        return Normal(0.0, 1.0).log_prob(theta[:, 0]) + Normal(theta, 1.0).log_prob(y).sum(1)

    def predictive(theta):
        return Normal(theta, 1.0).log_prob(torch.tensor([0.0, 1.0]).double())

    start = torch.zeros(2, 1).double()
    found = hmc_ppd(joint, predictive, start, num_steps=5, warmup=100, generator=generator())
    exact = Normal(y.sum(1, keepdim=True) / 3, (4 / 3) ** 0.5).log_prob(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(found, exact, atol=0.1, rtol=0)
    with pytest.raises(ValueError, match="log_predictive"):
        hmc_ppd(joint, lambda t: predictive(t)[:1], torch.zeros(2, 1).double(), warmup=1)


# Estimators


@pytest.mark.parametrize("estimator", [PFNClassifier(), PFNRegressor()], ids=repr)
def test_scikit_learn_contract(estimator):
    for instance, check in estimator_checks_generator(estimator, mark="skip"):
        with contextlib.suppress(SkipTest):
            check(instance)


@pytest.mark.parametrize("n", [30, 99])
def test_the_shipped_classifier_is_as_good_as_a_tuned_one(n):
    from sklearn.linear_model import LogisticRegressionCV

    X, y = load_breast_cancer(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(X))
    ours = PFNClassifier().fit(X[rows[:n]], y[rows[:n]]).score(X[rows[n:]], y[rows[n:]])
    rival = make_pipeline(StandardScaler(), LogisticRegressionCV(use_legacy_attributes=False))
    theirs = rival.fit(X[rows[:n]], y[rows[:n]]).score(X[rows[n:]], y[rows[n:]])
    assert ours > theirs - 0.03


def test_the_shipped_regressor_predicts_and_knows_its_error():
    X, y = load_diabetes(return_X_y=True)
    model = PFNRegressor().fit(X[:99], y[:99])
    assert model.score(X[99:], y[99:]) > 0.35
    mean, std = model.predict(X[99:], return_std=True)
    assert (np.abs(y[99:] - mean) < 2 * std).mean() > 0.9
    low, high = model.predict_quantile(X[99:], [0.1, 0.9]).T
    assert ((low < y[99:]) & (y[99:] < high)).mean() == pytest.approx(0.8, abs=0.1)
    np.testing.assert_allclose(model.predict_quantile(X[99:], 0.9), high)
    moved = PFNRegressor().fit(X[:99], 7 - 1e3 * y[:99])
    density = moved.log_density(X[99:], 7 - 1e3 * y[99:])
    assert density.mean() + math.log(1e3) == pytest.approx(
        model.log_density(X[99:], y[99:]).mean(), abs=0.1
    )


def test_shipped_files_are_small_and_have_their_logs():
    from importlib.resources import files

    folder = files("paperworks.incontext.pfn")
    for name in ("classifier", "regressor"):
        assert len((folder / f"{name}.safetensors").read_bytes()) < 1_000_000
        assert "paperworks.incontext.pfn.train" in (folder / f"{name}.log").read_text()


def test_the_command_trains_and_keeps_its_log(tmp_path, monkeypatch):
    from paperworks.incontext.pfn import train

    for name in train.NETWORKS:
        monkeypatch.setattr("sys.argv", ["train", name, "--steps", "1", "--out", str(tmp_path)])
        train.main()
        assert int(load_pfn(tmp_path / f"{name}.safetensors").trained_steps) == 1
        assert "seed 0" in (tmp_path / f"{name}.log").read_text()


def test_labels_frames_and_many_classes():
    X, y = load_iris(return_X_y=True, as_frame=True)
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = PFNClassifier().fit(X[::3], names[::3])
    assert list(model.classes_) == ["setosa", "versicolor", "virginica"]
    p = model.predict_proba(X)
    np.testing.assert_allclose(p.sum(1), 1)
    assert (model.predict(X) == names).mean() > 0.85
    pairs = PFNClassifier().fit(X[50:][::2], names[50:][::2])
    assert pairs.predict_proba(X).shape == (150, 2)
    scores = cross_val_score(make_pipeline(StandardScaler(), PFNClassifier()), X, names, cv=3)
    assert scores.mean() > 0.9


def test_units_of_columns_and_constant_ones_do_not_matter():
    X, y = load_iris(return_X_y=True)
    X, y = X[50:], y[50:]
    p = PFNClassifier().fit(X[::2], y[::2]).predict_proba(X)
    changed = np.column_stack([X * [1e3, 1e-3, 7, 1] + [5, 0, -1e4, 0], np.full(100, 3.3)])
    again = PFNClassifier().fit(changed[::2], y[::2]).predict_proba(changed)
    np.testing.assert_allclose(again, p, atol=1e-6)
    changed[1::2, -1] = 1e9  # what was constant in training says nothing
    again = PFNClassifier().fit(changed[::2], y[::2]).predict_proba(changed)
    np.testing.assert_allclose(again, p, atol=1e-6)


def test_few_rows_one_class_duplicates_and_float32():
    X = np.array([[1.0, 2.0], [1.0, 2.0], [3.0, 1.0]], dtype=np.float32)
    for rows, labels in ((X[:1], ["a"]), (X, ["a", "a", "a"]), (X, ["a", "b", "b"])):
        model = PFNClassifier().fit(rows, labels)
        p = model.predict_proba(X)
        assert p.shape == (3, len(set(labels)))
        assert np.isfinite(p).all()
        regression = PFNRegressor().fit(rows, np.arange(len(rows)))
        assert np.isfinite(regression.predict(X)).all()
    assert (PFNClassifier().fit(X, ["a"] * 3).predict(X) == "a").all()


def test_more_rows_and_columns_than_were_trained_with():
    X, y = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))
    X, y = X[order], y[order]
    with pytest.warns(UserWarning, match="300 rows are more than the 99"):
        model = PFNClassifier().fit(X[:300], y[:300])
    assert model.components_.shape == (10, 30)
    assert model.score(X[300:], y[300:]) > 0.93
    X[:, 3] = 4.0
    assert PFNClassifier().fit(X[:50], y[:50]).score(X, y) > 0.9


def test_missing_values_are_refused_with_advice():
    X = np.array([[1.0, np.nan], [2.0, 1.0]])
    for estimator in (PFNClassifier(), PFNRegressor()):
        with pytest.raises(ValueError, match="imputer"):
            estimator.fit(X, [0, 1])


def test_wrong_models():
    X, y = np.eye(4), np.array([0, 1, 2, 3])
    with pytest.raises(ValueError, match="CategoricalHead"):
        PFNClassifier(small(4, BarDistribution(BORDERS))).fit(X, y)
    with pytest.raises(ValueError, match="BarDistribution"):
        PFNRegressor(small(4)).fit(X, y)
    with pytest.raises(ValueError, match="4 classes, and the model knows 3"):
        PFNClassifier(small(4)).fit(X, y)
    with pytest.raises(TypeError, match="must be a PFN"):
        PFNClassifier("tabpfn").fit(X, y)
    with pytest.raises(ValueError, match="between 0 and 1"):
        PFNRegressor().fit(X, y).predict_quantile(X, [0.5, 1.0])


def test_a_model_of_ones_own_sees_data_as_it_was_trained():
    model = small(2, BarDistribution(BORDERS))
    X, y = np.random.default_rng(0).normal(5, 3, (2, 20, 2))[0], np.linspace(0, 1, 20)
    raw = PFNRegressor(model).fit(X, y).predict(X)
    rows, answers = torch.from_numpy(X)[None], torch.from_numpy(y)[None]
    with torch.no_grad():
        expected = model.head.mean(model(rows, answers, rows))[0]
    np.testing.assert_allclose(raw, expected)
    x, z = standardize_context(torch.cat([rows, rows], 1), torch.cat([answers, answers], 1), 20)
    with torch.no_grad():
        mean = model.head.mean(model(x[:, :20], z[:, :20], x[:, 20:]))[0]
    scaled = PFNRegressor(model, standardize=True).fit(X, y).predict(X)
    np.testing.assert_allclose(scaled, y.mean() + y.std() * mean)


def test_several_classes_of_a_model_of_ones_own():
    model = small(2, CategoricalHead(4))
    X = np.random.default_rng(0).normal(size=(20, 2))
    p = PFNClassifier(model).fit(X, np.arange(20) % 3).predict_proba(X)
    assert p.shape == (20, 3)
    np.testing.assert_allclose(p.sum(1), 1)


def test_fitted_estimators_are_copied_and_pickled():
    X, y = load_iris(return_X_y=True)
    model = PFNClassifier().fit(pd.DataFrame(X), y)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(twin.predict_proba(X), model.predict_proba(X))
