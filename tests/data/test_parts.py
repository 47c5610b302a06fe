"""Cutting into training, validation and test parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paperworks.data.parts import cut


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=60, deadline=None)
@given(
    class_sizes=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    fractions=st.tuples(*[st.floats(0.05, 1.0)] * 3),
    seed=st.integers(0, 99),
)
def test_parts_are_disjoint_and_stratified(class_sizes, fractions, seed):
    m = torch.tensor(class_sizes)
    y = torch.arange(len(m)).repeat_interleave(m)
    n = len(y)
    sizes = [int(n * f / sum(fractions)) for f in fractions]
    sizes[0] = max(sizes[0], 1)
    sizes[1:] = [min(size, (n - sizes[0]) // 2) for size in sizes[1:]]
    parts = cut({"train": n}, y, sizes=sizes, generator=seeded(seed))
    assert [len(part) for part in parts] == sizes
    assert len(torch.cat(parts).unique()) == sum(sizes)
    # a prefix of k ends at a place t with |k - t n| < C and holds t m +- 1 of a class
    prefix = parts[0]
    counts = torch.bincount(y[prefix], minlength=len(m))
    assert ((counts - len(prefix) * m / n).abs() <= 1 + len(m) * m / n).all()


def test_every_stretch_of_a_part_holds_the_classes_evenly():
    y = torch.arange(4).repeat_interleave(100)
    train = cut({"train": 400}, y, sizes=(300, 50, 50), generator=seeded(0))[0]
    for start in range(0, 280, 40):
        counts = torch.bincount(y[train[start : start + 40]], minlength=4)
        assert (counts - 10).abs().max() <= 2


def test_default_shares_and_their_rounding():
    assert [len(p) for p in cut({"train": 1797})] == [1259, 179, 359]
    assert [len(p) for p in cut({"train": 1})] == [1, 0, 0]


def test_shares_that_sum_to_one_use_everything():
    assert [len(p) for p in cut({"train": 100}, sizes=(0.58, 0.13, 0.29))] == [58, 13, 29]
    assert sum(len(p) for p in cut({"train": 1797}, sizes=(0.7, 0.15, 0.15))) == 1797


def test_shares_may_leave_some_out():
    assert [len(p) for p in cut({"train": 100}, sizes=(0.5, 0.0, 0.2))] == [50, 0, 20]


def test_a_part_that_the_source_brings_is_drawn_from_there():
    train, val, test = cut({"train": 100, "test": 20})
    assert [len(train), len(val), len(test)] == [90, 10, 20]
    assert torch.cat([train, val]).sort().values.equal(torch.arange(100))
    assert test.sort().values.equal(torch.arange(100, 120))


def test_a_source_with_three_parts_is_used_whole():
    train, val, test = cut({"train": 5, "val": 3, "test": 2})
    assert train.sort().values.tolist() == [0, 1, 2, 3, 4]
    assert val.sort().values.tolist() == [5, 6, 7]
    assert test.sort().values.tolist() == [8, 9]


def test_counts_and_shares_of_given_parts():
    counts = {"train": 100, "test": 20}
    assert [len(p) for p in cut(counts, sizes=(60, 40, 20))] == [60, 40, 20]
    assert [len(p) for p in cut(counts, sizes=(0.5, 0.1, 0.5))] == [50, 10, 10]


def test_the_generator_decides():
    def draw(generator):
        return torch.cat(cut({"train": 200}, generator=generator))

    assert draw(seeded(1)).equal(draw(seeded(1)))
    assert not draw(seeded(1)).equal(draw(seeded(2)))
    assert draw(None).equal(draw(None))
    generator = seeded(1)
    assert not draw(generator).equal(draw(generator))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    cut({"train": 10}, torch.arange(10) % 2)
    assert torch.get_rng_state().equal(before)


def test_real_targets_are_not_classes():
    y = torch.rand(50, generator=seeded(0))
    assert torch.cat(cut({"train": 50}, y)).sort().values.equal(torch.arange(50))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (8, "three counts or three shares"),
        ((8, 2), "three counts or three shares"),
        ((8, 2, -1), "three counts or three shares"),
        ((8, 2, True), "three counts or three shares"),
        ((8, 2, "1"), "three counts or three shares"),
        ((8, 0.1, 0.1), "three counts or three shares"),
        ((float("nan"), 0.1, 0.1), "three counts or three shares"),
        ((8, 2, 1), "ask for 11 samples of 10"),
        ((0.8, 0.3, 0.3), "ask for 14 samples of 10"),
        ((0, 5, 5), "leave nothing of 10 samples for training"),
        ((0.05, 0.5, 0.2), "leave nothing of 10 samples for training"),
    ],
)
def test_impossible_sizes(sizes, message):
    with pytest.raises(ValueError, match=message):
        cut({"train": 10}, sizes=sizes)


def test_a_given_part_cannot_be_exceeded():
    with pytest.raises(ValueError, match="ask for 21 samples of 20"):
        cut({"train": 100, "test": 20}, sizes=(50, 10, 21))
