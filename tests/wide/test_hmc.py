"""Hamiltonian Monte Carlo against densities whose moments are known."""

import math

import pytest
import torch

from paperworks.wide.hmc import hamiltonian_monte_carlo


def standard(q):
    return -q.square().sum(1) / 2


def run(log_prob, initial, seed=0, **options):
    options = {"num_samples": 150, "warmup": 60, **options}
    return hamiltonian_monte_carlo(
        log_prob, initial, generator=torch.Generator().manual_seed(seed), **options
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_moments_of_a_correlated_gaussian(dtype):
    covariance = torch.tensor([[2.0, 0.9, 0.0], [0.9, 1.0, -0.4], [0.0, -0.4, 0.5]], dtype=dtype)
    precision, mean = covariance.inverse(), torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    result = run(
        lambda q: -torch.einsum("ci,ij,cj->c", q - mean, precision, q - mean) / 2,
        torch.zeros(200, 3, dtype=dtype),
    )
    assert result.samples.dtype == dtype
    assert result.samples.shape == (150, 200, 3)
    rows = result.samples.reshape(-1, 3)
    torch.testing.assert_close(rows.mean(0), mean, atol=0.04, rtol=0)
    torch.testing.assert_close(rows.T.cov(), covariance, atol=0.06, rtol=0)


def test_moments_of_a_skewed_density():
    """log of a Gamma(2, 1) variable: mean ψ(2), variance ψ′(2), third central moment ψ″(2)."""
    result = run(lambda q: (2 * q - q.exp()).sum(1), torch.zeros(500, 1).double())
    x = result.samples.flatten()
    two = torch.tensor(2.0, dtype=torch.float64)
    mean, variance, third = (torch.special.polygamma(n, two).item() for n in range(3))
    assert x.mean().item() == pytest.approx(mean, abs=0.02)
    assert x.var().item() == pytest.approx(variance, abs=0.03)
    assert (x - x.mean()).pow(3).mean().item() == pytest.approx(third, abs=0.08)


def test_each_chain_finds_the_scale_of_its_own_target():
    """Trap of a shared step size: one target a hundred times narrower than another."""
    scale = torch.tensor([0.05, 5.0], dtype=torch.float64).repeat(50)[:, None]
    result = run(
        lambda q: -(q / scale).square().sum(1) / 2,
        torch.ones(100, 2).double() * scale,
        warmup=250,
        shared=False,
    )
    spread = result.samples.std(dim=(0, 2))[:, None] / scale
    torch.testing.assert_close(spread.mean().item(), 1.0, atol=0.02, rtol=0)
    assert (result.step_size[1::2].mean() / result.step_size[::2].mean()).item() > 50
    assert result.acceptance.mean().item() == pytest.approx(0.85, abs=0.1)


def test_leapfrog_is_exact_where_acceptance_corrects_it():
    """A step size fixed so large that a third is rejected must not move the moments."""
    result = run(standard, torch.zeros(500, 5).double(), warmup=0, step_size=1.4, num_steps=3)
    assert 0.3 < result.acceptance.mean().item() < 0.95
    assert (result.step_size == 1.4).all()
    assert result.samples[50:].var().item() == pytest.approx(1, abs=0.03)


def test_bounded_support():
    """−∞ outside of (0, ∞) is never entered: an exponential variable."""
    start = torch.empty(400, 1).double().exponential_(generator=torch.Generator().manual_seed(0))
    result = run(
        lambda q: torch.where(q > 0, -q, -math.inf).sum(1),
        start,
        num_samples=300,
        num_steps=5,
        target_acceptance=0.6,
    )
    assert (result.samples > 0).all()
    assert result.samples.mean().item() == pytest.approx(1, abs=0.05)
    assert result.step_size.unique().numel() == 1


def test_log_of_a_negative_number_is_rejected():
    result = run(lambda q: (q.log() - q).sum(1), torch.ones(200, 1).double(), num_steps=5)
    assert result.samples.isfinite().all()
    assert result.samples.mean().item() == pytest.approx(2, abs=0.1)  # Gamma(2, 1)


def test_generator_decides_and_globals_stay():
    state = torch.get_rng_state()
    first, again, other = (run(standard, torch.zeros(3, 2), seed, num_samples=5).samples
                           for seed in (0, 0, 1))  # fmt: skip
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_keep_stores_less():
    result = run(standard, torch.zeros(3, 2), num_samples=5, keep=lambda q: q.square().sum(1))
    everything = run(standard, torch.zeros(3, 2), num_samples=5)
    torch.testing.assert_close(result.samples, everything.samples.square().sum(2))


@pytest.mark.parametrize(
    ("log_prob", "match"),
    [
        (lambda q: q.sum(1) * math.nan, "must be finite at the initial states, got nan in chain 0"),
        (lambda q: q.sum(1) / 0.0 + math.inf, "must be finite at the initial states"),
        (lambda q: -q.square().sum() / 2, r"one value a chain, shape \(3,\), got \(\)"),
        (lambda q: -q.square() / 2, r"one value a chain, shape \(3,\), got \(3, 2\)"),
        (lambda q: 0.0, r"one value a chain, shape \(3,\), got float"),
        (lambda q: -q.detach().square().sum(1), "must be differentiable in the states"),
    ],
)
def test_wrong_log_densities_are_refused(log_prob, match):
    with pytest.raises(ValueError, match=match):
        run(log_prob, torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 0}, "num_samples must be an integer of at least 1, got 0"),
        ({"warmup": -1}, "warmup must be an integer of at least 0, got -1"),
        ({"num_steps": 2.5}, "num_steps must be an integer of at least 1, got 2.5"),
        ({"step_size": 0}, "step_size must be positive and finite, got 0"),
        ({"target_acceptance": 1}, "target_acceptance must lie between 0 and 1, got 1"),
    ],
)
def test_wrong_arguments_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        run(standard, torch.zeros(3, 2), **options)


def test_wrong_initial_states_are_refused():
    with pytest.raises(ValueError, match=r"initial must have shape \(chains, d\), got \(3,\)"):
        run(standard, torch.zeros(3))
    with pytest.raises(TypeError, match=r"floating-point tensor, got torch\.int64"):
        run(standard, torch.zeros(3, 2, dtype=torch.long))
