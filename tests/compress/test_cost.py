"""Bytes and multiply-adds, by hand."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paperworks import nets
from paperworks.compress import footprint, layer_macs, macs


def test_bytes_by_dtype_with_buffers():
    model = nn.Sequential(nn.Linear(3, 5).bfloat16(), nn.BatchNorm1d(5).double())
    sizes = footprint(model)
    assert sizes == {"parameters": 20 * 2 + 10 * 8, "buffers": 10 * 8 + 8, "total": 208}


def test_shared_tensors_count_once_and_empty_ones_nothing():
    one, other = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    other.weight = one.weight
    model = nn.Sequential(one, other)
    model.register_buffer("alias", one.weight.detach())
    model.register_buffer("empty", torch.empty(0))
    model.register_buffer("nothing", torch.empty(0))
    assert footprint(model) == {"parameters": 64, "buffers": 0, "total": 64}


def test_modules_name_their_own_kinds():
    class Coded(nn.Module):
        stored_as = {"codes": "codebooks", "weight": "codebooks"}

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))
            self.register_buffer("codes", torch.zeros(3, dtype=torch.uint8))
            self.register_buffer("other", torch.zeros(5, dtype=torch.uint8))

    sizes = footprint(nn.Sequential(nn.Linear(2, 1), Coded()))
    assert sizes == {"parameters": 12, "buffers": 5, "codebooks": 11, "total": 28}


def test_tensors_by_name():
    tensors = {"a": torch.ones(3), "b": torch.ones(2, dtype=torch.uint8)}
    assert footprint(tensors | {"c": tensors["a"]}) == {"total": 14}


def test_a_model_without_memory_is_measured_too():
    with torch.device("meta"):
        model = nets.MLP([1000, 5000, 1000])
    assert footprint(model)["total"] == 4 * (2 * 5_000_000 + 6000)


@pytest.mark.parametrize("batch", [1, 7])
def test_multiply_adds_of_a_perceptron(batch):
    model = nets.MLP([64, 128, 128, 10])
    assert macs(model, torch.rand(batch, 64)) == 25_856 * batch
    assert layer_macs(model, torch.rand(batch, 64)) == {
        "0": 64 * 128 * batch,
        "2": 128 * 128 * batch,
        "4": 1280 * batch,
    }


def test_multiply_adds_of_convolutions():
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 4, 1, groups=2, stride=2),
    )
    counted = {"0.0": 3 * 8 * 9 * 64, "0.1": 0, "1": 8 * 9 * 36, "2": 4 * 4 * 9}
    assert layer_macs(model, torch.rand(1, 3, 8, 8)) == counted
    assert macs(model, torch.rand(1, 3, 8, 8)) == sum(counted.values())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return F.linear(self.layer(self.layer(x)), self.layer.weight)


def test_a_layer_that_runs_twice_counts_twice_and_work_outside_layers_counts():
    model = Tied()
    assert layer_macs(model, torch.rand(1, 4)) == {"layer": 32}
    assert macs(model, torch.rand(1, 4)) == 48


def test_a_layer_alone_and_attention():
    assert layer_macs(nn.Linear(3, 4), torch.rand(2, 3)) == {"": 24}
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    T = 5
    expected = T * (4 * 8 * 8 + 2 * 8 * 16) + 2 * T * T * 8
    assert macs(attention, torch.rand(1, T, 8)) == expected


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Dropout()).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    macs(model, torch.rand(5, 4, generator=torch.Generator().manual_seed(0)))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


def test_dicts_and_wrong_batches():
    assert macs(nn.Linear(2, 3), {"input": torch.rand(4, 2)}) == 24
    with pytest.raises(TypeError, match="batch must be"):
        macs(nn.Linear(2, 3), "x")
