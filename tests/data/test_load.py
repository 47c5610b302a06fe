"""The bundled data sets and the names."""

import pytest
import torch

from paperworks.data import load
from paperworks.data.names import BUNDLED, parse
from paperworks.study.errors import UserError


def test_digits():
    data = load("digits")
    assert (data.kind, data.classes) == ("image", [str(digit) for digit in range(10)])
    assert [len(part) for part in (data.train, data.val, data.test)] == [1259, 179, 359]
    assert data.train.x.shape == (1259, 1, 8, 8)
    assert data.train.x.dtype == torch.float32
    assert data.train.x.min() == 0
    assert data.train.x.max() == 1
    assert data.train.y.dtype == torch.int64
    assert data.digest == ""


def test_digits_by_id_are_those_of_the_source():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = load("digits", scale="raw", generator=torch.Generator().manual_seed(3))
    for part in (data.train, data.val, data.test):
        assert torch.equal(part.x[:, 0].double(), torch.from_numpy(bunch.images)[part.ids])
        assert torch.equal(part.y, torch.from_numpy(bunch.target)[part.ids])
    assert data.train.x.max() == 16


def test_a_part_of_size_zero_is_none():
    data = load("digits", sizes=(1300, 0, 497))
    assert data.val is None
    assert len(data.train) + len(data.test) == 1797
    assert len(torch.cat([data.train.ids, data.test.ids]).unique()) == 1797


@pytest.mark.parametrize(
    ("name", "shape", "classes"),
    [
        ("diabetes", (442, 10), 0),
        ("wine", (178, 13), 3),
        ("iris", (150, 4), 3),
        ("breast_cancer", (569, 30), 2),
    ],
)
def test_tables(name, shape, classes):
    data = load(name, sizes=(1.0, 0.0, 0.0))
    assert data.kind == "table"
    assert data.train.x.shape == shape
    assert data.train.x.dtype == torch.float32
    assert len(data.classes) == classes == BUNDLED[name].classes
    assert data.train.y.dtype == (torch.int64 if classes else torch.float32)
    assert data.licence == BUNDLED[name].licence


def test_standard_scale_uses_the_training_rows_only():
    raw, standard = load("wine"), load("wine", scale="standard")
    assert torch.equal(raw.test.ids, standard.test.ids)
    mean, deviation = raw.train.x.mean(0), raw.train.x.std(0, correction=0)
    torch.testing.assert_close(standard.train.x.mean(0), torch.zeros(13), atol=1e-5, rtol=0)
    torch.testing.assert_close(standard.train.x.std(0, correction=0), torch.ones(13))
    torch.testing.assert_close(standard.test.x, (raw.test.x - mean) / deviation)


def test_photos():
    data = load("photos", sizes=(2, 0, 0))
    assert data.train.x.shape == (2, 3, 427, 640)
    assert 0 <= data.train.x.min() < data.train.x.max() <= 1
    assert data.train.y is None
    assert torch.equal(load("photos", scale="raw").train.x, data.train.x * 255)


def test_a_generator_moves_the_split_and_repeats():
    def ids(seed):
        return load("iris", generator=torch.Generator().manual_seed(seed)).test.ids

    assert ids(0).equal(ids(0))
    assert not ids(0).equal(ids(1))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown data set 'digit': did you mean digits?"),
        ("cifar", "unknown data set 'cifar'"),
        ("foldr:./x", "unknown source of data 'foldr:': did you mean folder:?"),
        ("folder:", "'folder:' names nothing: write folder:PATH"),
        ("hub:", "'hub:' names nothing: write hub:OWNER/NAME"),
        ("hub:a/b/c", "'hub:a/b/c' is not the name of a data set on the hub"),
        ("folder:x?sise=3", "unknown option of folder: 'sise': did you mean size?"),
        ("file:x.csv?size=3", "unknown option of file: 'size': choose from target"),
    ],
)
def test_wrong_names_get_one_line(name, message):
    with pytest.raises(UserError) as caught:
        load(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_a_wrong_scale():
    with pytest.raises(ValueError, match=r"scale of digits must be one of \('unit', 'raw'\)"):
        load("digits", scale="standard")
    with pytest.raises(ValueError, match="scale of stdlib-text"):
        load("stdlib-text", scale="raw")


def test_too_many_samples_asked_for():
    with pytest.raises(ValueError, match="ask for 2000 samples of 1797"):
        load("digits", sizes=(1500, 200, 300))


def test_names_are_taken_apart():
    source = parse("hub:Salesforce/wikitext@abc?config=wikitext-2-raw-v1&size=8")
    assert (source.place, source.revision) == ("Salesforce/wikitext", "abc")
    assert source.options == {"config": "wikitext-2-raw-v1", "size": "8"}
    assert source.number("size") == 8
    assert source.number("channels") is None
    assert parse("folder:a@b/c").place == "a@b/c"


@pytest.mark.parametrize("size", ["0", "-3", "big", "2.5", ""])
def test_a_size_must_be_a_positive_integer(size):
    with pytest.raises(UserError, match="is not a positive integer"):
        parse(f"folder:x?size={size}").number("size")
