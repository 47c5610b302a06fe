"""Batches and augmentation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.data import MapSplit, Split, batches, shift


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def numbers(n):
    return Split(torch.arange(float(n)), torch.arange(n))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 45))
def test_an_epoch_uses_every_sample_once(n, size):
    epoch = batches(numbers(n), size, seeded())
    drawn = list(epoch)
    assert len(drawn) == len(epoch) == -(-n // size)
    assert all(len(x) == size for x, _ in drawn[:-1])
    x, y = (torch.cat(column) for column in zip(*drawn))
    assert x.sort().values.equal(torch.arange(float(n)))
    assert x.long().equal(y)


def test_each_iteration_is_a_fresh_order_and_seeds_repeat():
    def epochs(seed):
        both = batches(numbers(50), 50, seeded(seed))
        return [next(iter(both))[1], next(iter(both))[1]]

    first, second = epochs(0)
    assert not first.equal(second)
    assert all(a.equal(b) for a, b in zip(epochs(0), [first, second]))
    assert not epochs(1)[0].equal(first)


def test_drop_last():
    epoch = batches(numbers(10), 4, seeded(), drop_last=True)
    assert [len(x) for x, _ in epoch] == [4, 4]
    assert len(epoch) == 2


def test_replace_draws_without_end():
    endless = batches(numbers(3), 8, seeded(), replace=True)
    draws = [y for (_, y), _ in zip(endless, range(200))]
    assert all(len(y) == 8 for y in draws)
    shares = torch.cat(draws).bincount() / 1600
    assert (shares - 1 / 3).abs().max() < 0.05
    with pytest.raises(TypeError, match="no length"):
        len(endless)


def test_augment_gets_the_inputs_and_the_generator():
    seen = []

    def augment(x, generator):
        seen.append(generator)
        return x + 100

    generator = seeded()
    x, y = next(iter(batches(numbers(6), 3, generator, augment=augment)))
    assert (x - 100).long().equal(y)
    assert seen == [generator]


def test_a_map_decodes_only_the_batch_at_hand():
    decoded = []

    def decode(position):
        decoded.append(position)
        return torch.tensor([float(position)])

    x, y = next(iter(batches(MapSplit(decode, torch.arange(100)), 4, seeded())))
    assert x.shape == (4, 1)
    assert y is None
    # the first sample of a batch is decoded once, like the others
    assert sorted(decoded) == sorted(x[:, 0].long().tolist())


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    list(batches(Split(torch.rand(5, 1, 4, 4, generator=seeded())), 2, seeded(),
                 augment=lambda x, g: shift(x, 1, g)))  # fmt: skip
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
def test_bad_size(size):
    with pytest.raises(ValueError, match="size must be a positive integer"):
        batches(numbers(3), size, seeded())


def test_no_batch_to_be_had():
    with pytest.raises(ValueError, match="no batch of 2 to be had from 0 samples"):
        batches(numbers(0), 2, seeded())
    with pytest.raises(ValueError, match="no batch of 4 to be had from 3 samples"):
        batches(numbers(3), 4, seeded(), drop_last=True)
    assert len(next(iter(batches(numbers(3), 4, seeded(), drop_last=True, replace=True)))[0]) == 4


def test_a_bare_tensor_is_no_part():
    with pytest.raises(TypeError, match="part must be a Split or a MapSplit, got Tensor"):
        batches(torch.zeros(3), 1, seeded())


@settings(max_examples=30, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    most=st.integers(0, 7),
    seed=st.integers(0, 99),
)
def test_shift_moves_by_whole_pixels_and_fills_with_zero(height, width, most, seed):
    x = torch.arange(1.0, 3 * 2 * height * width + 1).reshape(3, 2, height, width)
    moved = shift(x, most, seeded(seed))
    assert moved.shape == x.shape
    for before, after in zip(x, moved):
        candidates = [
            _moved(before, down, right)
            for down in range(-most, most + 1)
            for right in range(-most, most + 1)
        ]
        assert any(after.equal(candidate) for candidate in candidates)


def _moved(picture, down, right):
    """The slow way: pixel by pixel."""
    _, height, width = picture.shape
    out = torch.zeros_like(picture)
    for i in range(height):
        for j in range(width):
            if 0 <= i - down < height and 0 <= j - right < width:
                out[:, i, j] = picture[:, i - down, j - right]
    return out


def test_shift_draws_every_offset_equally_often_for_each_picture():
    x = torch.zeros(9000, 1, 5, 5)
    x[:, :, 2, 2] = 1
    landed = shift(x, 1, seeded()).mean(0)[0]
    assert landed[1:4, 1:4].sub(1 / 9).abs().max() < 0.015
    assert landed.sum() == pytest.approx(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8])
def test_shift_keeps_the_dtype(dtype):
    x = torch.ones(2, 1, 4, 4, dtype=dtype)
    assert shift(x, 1, seeded()).dtype == dtype


def test_shift_by_nothing_changes_nothing_and_shares_no_memory():
    x = torch.rand(2, 1, 4, 4, generator=seeded())
    still = shift(x, 0, seeded())
    assert still.equal(x)
    still.zero_()
    assert x.any()


def test_shift_refuses():
    with pytest.raises(ValueError, match=r"shape \(N, C, H, W\), got \(4, 4\)"):
        shift(torch.zeros(4, 4), 1, seeded())
    for most in (-1, 0.5, True):
        with pytest.raises(ValueError, match="max_shift must be an integer >= 0"):
            shift(torch.zeros(1, 1, 4, 4), most, seeded())
