"""Patches of natural pictures."""

import pytest
import torch

from paperworks.data import load, photo_patches


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_patches_are_cut_from_the_pictures():
    a = torch.arange(5 * 7.0).reshape(1, 5, 7)
    b = 1000 + torch.arange(4 * 4.0).reshape(1, 4, 4)
    patches = photo_patches(200, 3, 1, [a, b], generator=seeded())
    assert patches.shape == (200, 1, 3, 3)
    for patch in patches:
        photo = b if patch.max() >= 1000 else a
        corner = int(patch[0, 0, 0] - photo[0, 0, 0])
        top, left = divmod(corner, photo.shape[2])
        assert patch.equal(photo[:, top : top + 3, left : left + 3])


def test_pictures_and_places_are_uniform():
    a = torch.arange(4.0).reshape(1, 2, 2)
    patches = photo_patches(8000, 1, 1, [a, a + 4], generator=seeded())
    shares = patches.flatten().long().bincount(minlength=8) / 8000
    assert (shares - 1 / 8).abs().max() < 0.015


def test_the_default_is_the_two_photos():
    patches = photo_patches(20, 8, generator=seeded())
    assert patches.shape == (20, 3, 8, 8)
    grey = photo_patches(20, 8, 1, generator=seeded())
    weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    torch.testing.assert_close(grey, (patches * weights).sum(1, keepdim=True))


def test_one_photo_only_and_repeatable():
    first = load("photos", sizes=(2, 0, 0)).train.x[:1]
    patches = photo_patches(5, 427, 3, first, generator=seeded())
    assert patches[0].shape == (3, 427, 427)
    again = photo_patches(5, 427, 3, first, generator=seeded())
    assert patches.equal(again)
    assert not patches.equal(photo_patches(5, 427, 3, first, generator=seeded(1)))


def test_float64_stays():
    photo = torch.rand(3, 5, 5, dtype=torch.float64, generator=seeded())
    assert photo_patches(2, 3, 1, [photo], generator=seeded()).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8), "n must be a positive integer"),
        ((5, 0), "size must be a positive integer"),
        ((5, 8, 2), "channels must be 1 or 3"),
        ((5, 8, 3, []), "photos is empty"),
        ((5, 428), "H and W of at least 428"),
        ((5, 2, 3, [torch.zeros(1, 4, 4)]), "C of 3 or 3"),
        ((5, 2, 1, [torch.zeros(4, 4)]), r"got \(4, 4\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        photo_patches(*arguments, generator=seeded())
