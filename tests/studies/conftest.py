"""What full-scale code is tried on: little data of the schema that the real ones have."""

from __future__ import annotations

import pytest
import torch

SCHEMAS = {
    "uoft-cs/cifar10": ("img", "label", 32, 3, "test"),
    "uoft-cs/cifar100": ("img", "fine_label", 32, 3, "test"),
    "ufldl-stanford/svhn": ("image", "label", 32, 3, "test"),
    "ylecun/mnist": ("image", "label", 28, 1, "test"),
    "ILSVRC/imagenet-1k": ("image", "label", 40, 3, "validation"),
}
"""By name on the hub: columns of pictures and labels, size, channels, and the part that tests."""


@pytest.fixture(autouse=True)
def seeded():
    """Modules draw their weights from the global generator."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def photo_folder(tmp_path):
    """Class folders of pictures, as ImageNet's would be."""
    image = pytest.importorskip("PIL.Image")
    for label in ("cat", "dog", "eel"):
        folder = tmp_path / "photos" / label
        folder.mkdir(parents=True)
        for i, pixels in enumerate(random_pictures(8, 40, 3)):
            image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def tiny_hub(monkeypatch):
    """`datasets.load_dataset` gives few random pictures, in three classes, of the right schema."""
    datasets, image = pytest.importorskip("datasets"), pytest.importorskip("PIL.Image")

    def load_dataset(name, *_, **__):
        picture, label, side, channels, test = SCHEMAS[name]
        features = {picture: datasets.Image(), label: datasets.ClassLabel(num_classes=3)}

        def part(n):
            pictures = [image.fromarray(p) for p in random_pictures(n, side, channels)]
            rows = {picture: pictures, label: [i % 3 for i in range(n)]}
            return datasets.Dataset.from_dict(rows, features=datasets.Features(features))

        return datasets.DatasetDict({"train": part(40), test: part(12)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def random_pictures(n, side, channels):
    """uint8 arrays, (side, side, 3) or, in grey, (side, side)."""
    shape = (n, side, side, 3) if channels == 3 else (n, side, side)
    generator = torch.Generator().manual_seed(0)
    return list(torch.randint(256, shape, generator=generator, dtype=torch.uint8).numpy())
