"""The hub's loading code, on small local files of the schemas it is meant for. No network."""

import logging
import pickle

import pytest
import torch
from PIL import Image

from paperworks.data import MapSplit, TextSplit, load
from paperworks.data import names as names_module
from paperworks.data.hub import from_splits
from paperworks.data.names import parse
from paperworks.data.parts import cut
from paperworks.study.errors import UserError

datasets = pytest.importorskip("datasets")


def pictures(label_columns, labels, image="image"):
    """A split of 8 x 8 pictures whose red is 10 times the first label."""
    features = datasets.Features(
        {image: datasets.Image()}
        | {name: datasets.ClassLabel(names=names) for name, names in label_columns.items()}
    )
    rows = dict.fromkeys(label_columns, labels)
    rows[image] = [Image.new("RGB", (8, 8), (max(10 * label, 0), 0, 0)) for label in labels]
    return datasets.Dataset.from_dict(rows, features=features)


def texts(lines):
    return datasets.Dataset.from_dict({"text": lines})


CIFAR10 = {"label": ["airplane", "automobile", "bird"]}
CIFAR100 = {"fine_label": ["apple", "bear", "can"], "coarse_label": ["fruit", "animal"]}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Serves splits from parquet files as `load_dataset` would; returns the calls it got."""
    original = datasets.load_dataset
    calls = []

    def serve(**splits):
        files = {name: str(tmp_path / f"{name}.parquet") for name in splits}
        for name, split in splits.items():
            split.to_parquet(files[name])

        def load_dataset(path, name=None, revision=None):
            calls.append((path, name, revision))
            return original("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return calls

    return serve


def test_cifar10(hub, caplog):
    calls = hub(
        train=pictures(CIFAR10, [0, 1, 2] * 20, image="img"),
        test=pictures(CIFAR10, [0, 1, 2] * 4, image="img"),
    )
    with caplog.at_level(logging.INFO):
        data = load("hub:uoft-cs/cifar10@v1?size=4", sizes=(30, 6, 6))
    assert calls == [("uoft-cs/cifar10", None, "v1")]
    assert "hub:uoft-cs/cifar10@v1?size=4: downloading" in caplog.text
    assert (data.kind, data.classes) == ("image", CIFAR10["label"])
    assert isinstance(data.train, MapSplit)
    x, y = data.train.tensors()
    assert x.shape == (30, 3, 4, 4)
    assert torch.equal((x[:, 0, 0, 0] * 25.5).round().long(), y)
    assert y.bincount().tolist() == [10, 10, 10]
    assert torch.cat([data.train.ids, data.val.ids]).max() < 60 <= data.test.ids.min()
    assert data.digest == "uoft-cs/cifar10@v1"
    assert pickle.loads(pickle.dumps(data.test)).tensors()[0].shape == (6, 3, 4, 4)


def test_cifar100_takes_the_finer_labels_or_those_asked_for(hub):
    split = pictures(CIFAR100, [0, 1] * 10, image="img")
    hub(train=split, test=split)
    assert load("hub:uoft-cs/cifar100").classes == CIFAR100["fine_label"]
    assert load("hub:uoft-cs/cifar100?label=coarse_label").classes == CIFAR100["coarse_label"]
    with pytest.raises(UserError, match="did you mean coarse_label"):
        load("hub:uoft-cs/cifar100?label=coarse_labels")


def test_imagenet_is_tested_on_validation_where_test_labels_are_hidden(hub):
    classes = {"label": ["tench", "goldfish"]}
    hub(
        train=pictures(classes, [0, 1] * 20),
        validation=pictures(classes, [1, 0, 1, 0]),
        test=pictures(classes, [-1] * 5),
    )
    data = load("hub:ILSVRC/imagenet-1k?channels=1")
    assert [len(data.train), len(data.val), len(data.test)] == [36, 4, 4]
    assert data.test.ids.sort().values.tolist() == [40, 41, 42, 43]
    assert data.test.y.sort().values.tolist() == [0, 0, 1, 1]
    assert data.train[0][0].shape == (1, 32, 32)


def test_wikitext_keeps_its_lines_in_order(hub):
    calls = hub(
        train=texts([f"line {i}" for i in range(50)]),
        validation=texts(["a", ""]),
        test=texts(["b"]),
    )
    data = load("hub:Salesforce/wikitext?config=wikitext-2-raw-v1")
    assert calls == [("Salesforce/wikitext", "wikitext-2-raw-v1", None)]
    assert data.kind == "text"
    assert isinstance(data.train, TextSplit)
    assert data.train.texts == [f"line {i}" for i in range(50)]
    assert (data.val.texts, data.test.texts) == (["a", ""], ["b"])
    assert data.train.y is None
    some = load("hub:Salesforce/wikitext", sizes=(10, 1, 1)).train
    assert some.texts == [f"line {i}" for i in sorted(some.ids.tolist())]


def test_labelled_texts():
    features = datasets.Features(
        {"sentence": datasets.Value("string"), "label": datasets.Value("int64")}
    )
    split = datasets.Dataset.from_dict(
        {"sentence": ["good", "bad"] * 5, "label": [1, 0] * 5}, features=features
    )
    data = from_splits(parse("hub:a/b"), {"train": split}, cut, "unit")
    assert data.classes == ["0", "1"]
    assert all((text == "good") == bool(y) for text, y in zip(data.train.texts, data.train.y))


def test_grey_pictures_are_noticed():
    features = datasets.Features({"image": datasets.Image()})
    split = datasets.Dataset.from_dict({"image": [Image.new("L", (9, 9))] * 10}, features=features)
    data = from_splits(parse("hub:ylecun/mnist"), {"train": split}, cut, "raw")
    assert data.train[0][0].shape == (1, 32, 32)
    assert data.train.y is None


def test_no_training_split_and_no_content():
    with pytest.raises(UserError, match="hub:a/b has no training split, only test"):
        from_splits(parse("hub:a/b"), {"test": texts(["a"])}, cut, "unit")
    numbers = datasets.Dataset.from_dict({"age": [1.5]})
    with pytest.raises(UserError, match="has no column of pictures or texts, only age"):
        from_splits(parse("hub:a/b"), {"train": numbers}, cut, "unit")


def test_a_damaged_picture_is_named():
    features = datasets.Features({"image": datasets.Image()})
    good = datasets.Dataset.from_dict({"image": [Image.new("L", (9, 9))] * 10}, features=features)
    bad = datasets.Dataset.from_dict(
        {"image": [{"bytes": b"rubbish", "path": None}]}, features=features
    )
    both = datasets.concatenate_datasets([good, bad])
    data = from_splits(parse("hub:a/b"), {"train": both}, cut, "unit")
    part = next(p for p in (data.train, data.val, data.test) if 10 in p.ids)
    with pytest.raises(UserError, match="cannot read the picture 10 of hub:a/b"):
        part.tensors()


@pytest.mark.parametrize(
    "error", [ConnectionError("Couldn't reach 'a/b' on the Hub\nmore"), ValueError("")]
)
def test_whatever_fails_is_one_line(monkeypatch, error):
    def load_dataset(*args, **kwargs):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match="hub:a/b cannot be had from the hub: ") as caught:
        load("hub:a/b")
    assert "\n" not in str(caught.value)
    assert str(caught.value).split(": ")[1]


def test_without_the_extra(monkeypatch):
    monkeypatch.setattr(names_module.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"hub:a/b needs datasets: pip install 'paperworks\[hub\]'"):
        load("hub:a/b")
