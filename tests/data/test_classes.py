import pytest
import torch

from paperworks.data import Split, TextSplit, load, take_per_class


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_counts_are_met_and_samples_recognisable():
    train = load("digits").train
    counts = [5, 0, 3, 1, 1, 1, 1, 1, 1, 20]
    part = take_per_class(train, counts, seeded())
    assert torch.equal(part.y.bincount(minlength=10), torch.tensor(counts))
    assert len(part.ids.unique()) == len(part)
    position = {int(i): k for k, i in enumerate(train.ids)}
    original = train[torch.tensor([position[int(i)] for i in part.ids])]
    assert torch.equal(original.x, part.x)
    assert torch.equal(original.y, part.y)


def test_generator_decides():
    train = load("digits").train
    draws = [take_per_class(train, [3] * 10, seeded(seed)).ids for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_texts():
    part = TextSplit(["a", "b", "c"], torch.arange(3), torch.tensor([0, 1, 1]))
    assert sorted(take_per_class(part, [0, 2], seeded()).texts) == ["b", "c"]


@pytest.mark.parametrize(
    ("y", "counts", "message"),
    [
        (torch.tensor([0, 1]), [2, 1], r"counts\[0\] must be in 0..1, got 2"),
        (torch.tensor([0, 1]), [-1, 1], r"counts\[0\]"),
        (torch.tensor([0.0, 1.0]), [1, 1], "class labels"),
        (None, [1, 1], "class labels"),
    ],
)
def test_bad_input(y, counts, message):
    with pytest.raises(ValueError, match=message):
        take_per_class(Split(torch.rand(2, 3), y), counts, seeded())
