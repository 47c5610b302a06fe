"""Packed numbers, and files of compressed models: what comes back, and how large they are."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from paperworks import nets
from paperworks.compress import (
    Masks,
    RoundToNearest,
    dense_state_dict,
    float_state_dict,
    footprint,
    integer_state_dict,
    load_tensors,
    make_masks,
    pack_bits,
    reconstruct_,
    save_tensors,
    scores,
    sparse_state_dict,
    unpack_bits,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- packing --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(
    bits=st.integers(1, 8),
    shape=st.lists(st.integers(0, 7), max_size=3),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.int64]),
    data=st.data(),
)
def test_packing_loses_nothing_and_wastes_less_than_a_byte(bits, shape, dtype, data):
    seed = data.draw(st.integers(0, 1000))
    values = torch.randint(2**bits, shape, generator=generator(seed)).to(dtype)
    packed = pack_bits(values, bits)
    assert packed.dtype == torch.uint8
    assert 0 <= 8 * len(packed) - bits * values.numel() < 8
    assert torch.equal(unpack_bits(packed, bits, shape), values.to(torch.uint8))


def test_packing_by_hand():
    # 5, 6, 7 in three bits, lowest bit first: 101 011 111 -> 1010 1111 | 1
    packed = pack_bits(torch.tensor([5, 6, 7]), bits=3)
    assert packed.tolist() == [0b11110101, 0b00000001]


def test_packing_keeps_what_is_not_contiguous():
    values = torch.randint(4, (5, 3), generator=generator()).T
    assert torch.equal(unpack_bits(pack_bits(values, 2), 2, (3, 5)), values.to(torch.uint8))


@pytest.mark.parametrize(
    ("values", "bits", "message"),
    [
        (torch.tensor([4]), 2, r"values must be in \[0, 4\) for 2 bits, got 4 to 4"),
        (torch.tensor([-1, 1]), 2, "got -1 to 1"),
        (torch.tensor([1.0]), 2, "values must be whole numbers, got torch.float32"),
        (torch.tensor([1]), 0, r"bits must be in \[1, 8\], got 0"),
        (torch.tensor([1]), 9, r"bits must be in \[1, 8\], got 9"),
    ],
)
def test_what_cannot_be_packed(values, bits, message):
    with pytest.raises(ValueError, match=message):
        pack_bits(values, bits)


def test_what_cannot_be_unpacked():
    with pytest.raises(ValueError, match=r"packed must be uint8 of shape \(2,\) for 3 bits"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), 3, (5,))


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    return tmp_path / "model.safetensors"


def test_a_file_gives_back_names_dtypes_and_shared_memory(file):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).bfloat16(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    tensors = {**model.state_dict(), "view": model[0].weight[:, ::2], "empty": torch.empty(0)}
    save_tensors(tensors, file)
    loaded = load_tensors(file)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert loaded["2.weight"] is loaded["0.weight"]
    assert footprint(loaded) == {"total": footprint(model)["total"] + 32}


def test_a_file_is_replaced_whole(file):
    save_tensors({"a": torch.ones(2)}, file)
    with pytest.raises(TypeError, match=r"tensors\['b'\] must be a tensor, got int"):
        save_tensors({"b": 1}, file)
    assert torch.equal(load_tensors(file)["a"], torch.ones(2))
    save_tensors({"b": torch.zeros(2)}, file)
    assert list(load_tensors(file)) == ["b"]
    assert os.listdir(file.parent) == [file.name]


def test_truncated_and_foreign_files_are_refused(file):
    with pytest.raises(FileNotFoundError):
        load_tensors(file)
    save_tensors({"a": torch.rand(100)}, file)
    whole = file.read_bytes()
    for length in (0, 5, 60, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"is no safetensors file, or was cut off"):
            load_tensors(file)
    torch.save({"a": torch.rand(100)}, file)
    with pytest.raises(ValueError, match=r"is no safetensors file"):
        load_tensors(file)
    save_file({"a": torch.rand(100)}, file)
    with pytest.raises(ValueError, match=r"was not written by save_tensors"):
        load_tensors(file)


def assert_size(file, tensors):
    """The file has the size of the accounting within 2 %: the header is small."""
    assert footprint(tensors)["total"] <= file.stat().st_size <= 1.02 * footprint(tensors)["total"]


@pytest.mark.parametrize(
    ("bits", "symmetric"), [(2, True), (3, True), (4, True), (8, True), (2, False), (3, False)]
)
def test_rounded_weights_take_their_bits(bits, symmetric, file):
    model = nets.MLP([512, 512, 512])
    report = reconstruct_(
        model,
        ["0", "2"],
        torch.rand(8, 512, generator=generator()),
        rounding=lambda weight, bits: RoundToNearest(weight, bits, symmetric=symmetric),
        bits=bits,
        quantize_first_last=True,
    )
    tensors = integer_state_dict(model, report.weights)
    save_tensors(tensors, file)
    assert_size(file, tensors)
    weights = 2 * 512 * 512
    assert file.stat().st_size == pytest.approx(weights * bits / 8 + 4 * 2 * 512, rel=0.02)
    restored = float_state_dict(load_tensors(file))
    assert all(torch.equal(restored[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropped_weights_take_a_bit(dtype, file):
    model = nn.Sequential(nn.Conv1d(64, 128, 7, groups=4), nn.GRU(128, 64)).to(dtype)
    masks = Masks(model, make_masks(scores(model, "random"), 0.1))
    masks.apply()
    tensors = sparse_state_dict(model, masks)
    save_tensors(tensors, file)
    assert_size(file, tensors)
    restored = dense_state_dict(load_tensors(file))
    assert all(torch.equal(restored[name], t) for name, t in model.state_dict().items())
    weights = sum(mask.numel() for mask in masks.values())
    rest = footprint(model)["total"] - weights * dtype.itemsize
    promised = weights * (0.1 * dtype.itemsize + 1 / 8) + rest
    assert footprint(tensors)["total"] == pytest.approx(promised, rel=0.01)


def test_what_is_no_masked_model():
    model = nn.Sequential(nn.Linear(4, 2))
    mask = torch.eye(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"0\.weight has weights that are not zero where"):
        sparse_state_dict(model, {"0.weight": mask})
    with pytest.raises(ValueError, match=r"no parameter '1\.weight'"):
        sparse_state_dict(model, {"1.weight": mask})
    with pytest.raises(ValueError, match=r"must have shape \(2, 4\), got \(4, 2\)"):
        sparse_state_dict(model, {"0.weight": mask.T})
    Masks(model, {"0.weight": mask}).apply()
    tensors = sparse_state_dict(model, {"0.weight": mask})
    with pytest.raises(ValueError, match=r"lack \['0\.weight\.values'\]"):
        dense_state_dict({k: t for k, t in tensors.items() if not k.endswith("values")})
    with pytest.raises(ValueError, match=r"0\.weight has 1 values for a mask that keeps 2"):
        dense_state_dict(tensors | {"0.weight.values": torch.ones(1)})
