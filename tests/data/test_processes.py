"""Draws have the kernel's covariance, whatever the shapes."""

import pytest
import torch

from paperworks import data


def generator():
    return torch.Generator().manual_seed(0)


def exponential(X):
    return torch.exp(-torch.cdist(X, X))


def test_draws_have_the_kernels_covariance():
    X = torch.tensor([[0.0], [0.3], [2.0]], dtype=torch.float64)
    f = data.gaussian_process(exponential, X, generator=generator(), draws=40_000)
    assert f.shape == (40_000, 3)
    torch.testing.assert_close(f.mT.cov(), exponential(X), atol=0.03, rtol=0)
    assert f.mean(0).abs().max() < 0.02


def test_batches_are_drawn_independently():
    X = torch.rand(2, 5, 3)
    f = data.gaussian_process(exponential, torch.stack([X[0], X[0]]), generator=generator())
    assert f.shape == (2, 5)
    assert f.dtype == torch.float32
    assert not torch.allclose(f[0], f[1])
    again = data.gaussian_process(exponential, torch.stack([X[0], X[0]]), generator=generator())
    assert torch.equal(f, again)


def test_rows_that_repeat_have_equal_values():
    X = torch.zeros(4, 1, dtype=torch.float64)
    f = data.gaussian_process(exponential, X, generator=generator())
    torch.testing.assert_close(f, f[:1].expand(4), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("kernel", "match"),
    [
        (lambda X: X, r"expected covariances of shape \(..., n, n\), got \(3, 2\)"),
        (lambda X: -torch.eye(3), "not positive definite; increase jitter"),
    ],
)
def test_what_is_no_covariance_is_refused(kernel, match):
    with pytest.raises(ValueError, match=match):
        data.gaussian_process(kernel, torch.ones(3, 2), generator=generator())
