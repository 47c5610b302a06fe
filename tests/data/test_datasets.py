"""Split, MapSplit, TextSplit and DataSet."""

import copy
import pickle

import pytest
import torch
from torch.utils.data import DataLoader

from paperworks.data import DataSet, MapSplit, Split, TextSplit


def in_memory():
    return Split(torch.arange(12.0).reshape(6, 2), torch.arange(6) * 10)


def _row(position):
    return torch.tensor([2.0 * position, 2.0 * position + 1])


def on_demand():
    return MapSplit(_row, torch.arange(6), torch.arange(6) * 10)


@pytest.fixture(params=[in_memory, on_demand], ids=["Split", "MapSplit"])
def part(request):
    return request.param()


def test_indexing_selects_inputs_targets_and_ids_together(part):
    few = part[torch.tensor([4, 1, 1])]
    assert type(few) is type(part)
    x, y = few.tensors()
    assert x.tolist() == [[8.0, 9.0], [2.0, 3.0], [2.0, 3.0]]
    assert y.tolist() == [40, 10, 10]
    assert few.ids.tolist() == [4, 1, 1]


def test_ids_survive_a_selection_of_a_selection(part):
    assert part[2:][torch.tensor([0, 3])].ids.tolist() == [2, 5]


def test_a_mask_selects(part):
    assert part[torch.arange(6) % 2 == 1].ids.tolist() == [1, 3, 5]


def test_an_integer_gives_one_sample(part):
    x, y = part[-2]
    assert x.tolist() == [8.0, 9.0]
    assert y == 40


def test_a_dataloader_takes_it(part):
    x, y = next(iter(DataLoader(part, batch_size=6)))
    assert torch.equal(x, part.tensors()[0])
    assert torch.equal(y, part.tensors()[1])


def test_without_targets(part):
    bare = Split(part.tensors()[0])
    assert bare[2:4].tensors()[1] is None
    assert bare[0][1] is None
    assert MapSplit(_row, torch.arange(3))[1:].tensors()[1] is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_moves_inputs_and_leaves_classes(part, dtype):
    x, y = part.to(dtype).tensors()
    assert x.dtype == dtype
    assert y.dtype == torch.int64


def test_a_dtype_moves_real_targets_and_leaves_token_inputs():
    part = Split(torch.arange(3), torch.rand(3)).to(torch.float64)
    assert part.x.dtype == torch.int64
    assert part.y.dtype == torch.float64


def test_a_device_moves_all(part):
    x, y = (
        part.to("meta")[torch.tensor([1, 0])].to("meta").tensors()
        if isinstance(part, Split)
        else part.to("meta").tensors()
    )
    assert x.device.type == y.device.type == "meta"


def test_to_leaves_the_original_alone(part):
    part.to(torch.float64)
    assert part.tensors()[0].dtype == torch.float32


def test_copies_and_pickles(part):
    for twin in (copy.deepcopy(part.to(torch.float64)), pickle.loads(pickle.dumps(part))):
        assert twin.ids.tolist() == part.ids.tolist()
        assert twin.tensors()[0].tolist() == part.tensors()[0].tolist()


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="y has 2 entries for 3"):
        Split(torch.zeros(3, 1), torch.zeros(2))
    with pytest.raises(ValueError, match="ids has 1 entries for 3"):
        Split(torch.zeros(3, 1), ids=torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="y has 2 entries for 3"):
        MapSplit(_row, torch.arange(3), torch.zeros(2))
    with pytest.raises(ValueError, match="ids has 2 entries for 1"):
        TextSplit(["a"], torch.arange(2))


def test_an_index_of_another_type_is_refused(part):
    with pytest.raises(TypeError, match="index must be an int, a slice or a tensor, got list"):
        part[[1, 2]]


def test_tensors_of_a_map_refuse_above_the_limit_after_one_decoding():
    decoded = []

    def decode(position):
        decoded.append(position)
        return torch.zeros(3, 256, 256)

    part = MapSplit(decode, torch.arange(10_000))
    with pytest.raises(ValueError, match=r"10,000 samples of shape \(3, 256, 256\) would fill 7.3"):
        part.tensors()
    assert decoded == [0]
    with pytest.raises(ValueError, match="the limit is"):
        part[:2].tensors(limit=2 * 3 * 256 * 256 * 4 - 1)
    assert len(part[:2].tensors(limit=2 * 3 * 256 * 256 * 4)[0]) == 2


def test_an_empty_map_has_no_tensors():
    with pytest.raises(ValueError, match="empty"):
        on_demand()[:0].tensors()


def test_selecting_from_a_map_decodes_nothing():
    def decode(position):
        raise AssertionError("decoded")

    assert len(MapSplit(decode, torch.arange(5))[torch.tensor([3, 4])][1:]) == 1


def test_texts_are_selected_like_tensors():
    part = TextSplit(["a", "b", "c"], torch.tensor([7, 8, 9]), torch.tensor([0, 1, 0]))
    few = part[torch.tensor([2, 0])]
    assert few.texts == ["c", "a"]
    assert few.ids.tolist() == [9, 7]
    assert part[1] == ("b", torch.tensor(1))


def test_a_data_set_without_a_part_has_none():
    data = DataSet.from_whole(
        "digits", "image", in_memory(), [torch.arange(4), torch.arange(0), torch.tensor([5])]
    )
    assert len(data.train) == 4
    assert data.val is None
    assert data.test.ids.tolist() == [5]
    assert data.digest == ""
