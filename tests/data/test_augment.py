import pytest
import torch

from paperworks.data import crop_flip, noise


def test_noise_is_normal_and_follows_its_generator():
    x = torch.full((100, 1, 10, 10), 0.5, dtype=torch.float64)
    noisy = noise(x, 0.2, torch.Generator().manual_seed(0))
    assert noisy.dtype == x.dtype
    assert (noisy - 0.5).mean().abs() < 0.01
    assert (noisy - 0.5).std().item() == pytest.approx(0.2, rel=0.03)
    assert (noisy < 0).any()  # nothing is clipped
    assert torch.equal(noisy, noise(x, 0.2, torch.Generator().manual_seed(0)))
    assert torch.equal(x, noise(x, 0, torch.Generator()))


def test_bad_noise():
    with pytest.raises(ValueError, match=r"std must be >= 0, got -1"):
        noise(torch.rand(2), -1, torch.Generator())
    with pytest.raises(ValueError, match=r"std must be >= 0, got nan"):
        noise(torch.rand(2), float("nan"), torch.Generator())
    with pytest.raises(ValueError, match=r"x must be floating-point, got torch.int64"):
        noise(torch.arange(2), 1, torch.Generator())


def test_crops_and_mirrors():
    x = torch.arange(9.0).reshape(1, 1, 3, 3).repeat(400, 1, 1, 1)
    mirrored = crop_flip(x, 0, torch.Generator().manual_seed(0))
    same = (mirrored == x).flatten(1).all(1)
    assert torch.equal(mirrored[~same], x[~same].flip(-1))
    assert 150 < same.sum() < 250
    moved = crop_flip(x, 1, torch.Generator().manual_seed(0))
    assert len(moved.flatten(1).unique(dim=0)) == 18  # nine offsets, mirrored or not
