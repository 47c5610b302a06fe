"""Pictures from a folder."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from paperworks.data import Accepts, MapSplit, batches, load
from paperworks.study.errors import UserError


def picture(path, colour=(255, 0, 0), size=(6, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of five pictures, red and blue."""
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        for i in range(5):
            picture(tmp_path / name / f"{i}.png", colour)
    (tmp_path / "notes.txt").write_text("not a picture")
    (tmp_path / ".hidden").mkdir()
    return tmp_path


def test_class_folders(folder):
    data = load(f"folder:{folder}?size=8", sizes=(6, 2, 2))
    assert (data.kind, data.classes) == ("image", ["blue", "red"])
    assert isinstance(data.train, MapSplit)
    x, y = data.train.tensors()
    assert x.shape == (6, 3, 8, 8)
    assert torch.equal(x[:, 0, 0, 0], y.float())
    assert torch.equal(x[:, 2, 0, 0], 1 - y.float())
    assert [len(data.val), len(data.test)] == [2, 2]
    assert data.test.y.sort().values.tolist() == [0, 1]


def test_the_default_size_the_scale_and_grey(folder):
    x, _ = load(f"folder:{folder}").train.tensors()
    assert x.shape[1:] == (3, 32, 32)
    assert load(f"folder:{folder}", scale="raw").train.tensors()[0].max() == 255
    grey, y = load(f"folder:{folder}?channels=1&size=2").train.tensors()
    assert grey.shape[1:] == (1, 2, 2)
    assert torch.equal(grey[:, 0, 0, 0] * 255, torch.where(y == 1, 76.0, 29.0))


def test_channels_follow_the_first_picture(tmp_path):
    picture(tmp_path / "a" / "0.png", 128)
    picture(tmp_path / "b" / "0.png", (0, 255, 0))
    assert load(f"folder:{tmp_path}").train.tensors()[0].shape[1] == 1


def test_the_centre_is_cropped_and_the_picture_turned_upright(tmp_path):
    pixels = np.zeros((4, 12, 3), np.uint8)
    pixels[:2, 4:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png", exif=exif)
    x, _ = load(f"folder:{tmp_path}?size=4").train.tensors()
    assert x[0, :, :2].max() == 0
    assert x[0, :, 2:].min() == 1


def test_parts_that_the_folder_brings(tmp_path):
    for part, n in (("train", 20), ("Validation", 3), ("test", 4)):
        for name in ("a", "b"):
            for i in range(n):
                picture(tmp_path / part / name / f"{i}.jpg")
    data = load(f"folder:{tmp_path}")
    assert [len(data.train), len(data.val), len(data.test)] == [40, 6, 8]
    assert data.val.ids.sort().values.tolist() == list(range(40, 46))
    (tmp_path / "Validation").rename(tmp_path / "x")
    with pytest.raises(UserError, match="holds no picture"):
        load(f"folder:{tmp_path}")  # now four classes, of which none holds pictures


def test_a_missing_validation_part_is_cut_from_the_training_part(tmp_path):
    for part, n in (("train", 20), ("test", 4)):
        for name in ("a", "b"):
            for i in range(n):
                picture(tmp_path / part / name / f"{i}.png")
    data = load(f"folder:{tmp_path}")
    assert [len(data.train), len(data.val), len(data.test)] == [36, 4, 8]


def test_unlabelled_pictures(tmp_path):
    for i in range(4):
        picture(tmp_path / f"{i}.png")
    data = load(f"folder:{tmp_path}", sizes=(4, 0, 0))
    assert data.classes == []
    assert data.train.y is None
    assert data.train[0][1] is None
    with pytest.raises(UserError, match="has no targets"):
        Accepts("image").check(f"folder:{tmp_path}")
    Accepts("image", labelled=False).check(f"folder:{tmp_path}")


def test_batches_and_pickles(folder):
    part = pickle.loads(pickle.dumps(load(f"folder:{folder}?size=4").train))
    x, y = next(iter(batches(part, 3, torch.Generator().manual_seed(0))))
    assert x.shape == (3, 3, 4, 4)
    assert torch.equal(x[:, 0, 0, 0], y.float())
    assert part.to(torch.float64)[0][0].dtype == torch.float64


def test_no_folder_and_an_empty_folder(tmp_path):
    with pytest.raises(UserError, match=r"there is no folder .*nowhere"):
        load(f"folder:{tmp_path}/nowhere")
    with pytest.raises(UserError, match=r"holds no picture \(\.bmp, "):
        load(f"folder:{tmp_path}")


def test_an_empty_class_folder_is_named(folder):
    (folder / "green").mkdir()
    with pytest.raises(UserError, match=r"class folder .*green holds no picture"):
        load(f"folder:{folder}")


def test_pictures_beside_class_folders(folder):
    picture(folder / "stray.png")
    with pytest.raises(UserError, match=r"holds both pictures and folders \(blue, red\)"):
        load(f"folder:{folder}")


def test_a_class_that_training_lacks(tmp_path):
    picture(tmp_path / "train" / "a" / "0.png")
    picture(tmp_path / "test" / "b" / "0.png")
    with pytest.raises(UserError, match="test has b, the training part has not"):
        load(f"folder:{tmp_path}")


def test_an_unreadable_picture_is_named(folder):
    (folder / "red" / "2.png").write_bytes(b"no picture at all")
    data = load(f"folder:{folder}", sizes=(10, 0, 0))
    with pytest.raises(UserError, match=r"cannot read the picture .*red.2\.png"):
        data.train.tensors()


def test_a_truncated_picture_is_named(folder):
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    broken = folder / "blue" / "3.png"
    Image.fromarray(noise).save(broken)
    broken.write_bytes(broken.read_bytes()[:3000])
    data = load(f"folder:{folder}", sizes=(10, 0, 0))
    with pytest.raises(UserError, match=r"cannot read the picture .*blue.3\.png"):
        data.train.tensors()


def test_sixteen_bits_are_refused_rather_than_clipped(tmp_path):
    (tmp_path / "a").mkdir()
    Image.fromarray(np.full((4, 4), 30000, np.uint16)).save(tmp_path / "a" / "deep.png")
    data = load(f"folder:{tmp_path}?channels=1", sizes=(1, 0, 0))
    with pytest.raises(UserError, match=r"deep\.png: mode I.* more than 8 bits"):
        data.train.tensors()


def test_options(folder):
    with pytest.raises(UserError, match="size='0' is not a positive integer"):
        load(f"folder:{folder}?size=0")
    with pytest.raises(UserError, match="channels='2' is not 1 or 3"):
        load(f"folder:{folder}?channels=2")


def test_the_digest_follows_names_and_contents(folder):
    name = f"folder:{folder}"
    first = load(name).digest
    assert len(first) == 64
    (folder / "notes.txt").write_text("still not a picture")
    assert Accepts("image").digest(name) == Accepts("image").digest(name + "?size=4") == first
    (folder / "red" / "0.png").rename(folder / "red" / "9.png")
    renamed = Accepts("image").digest(name)
    picture(folder / "red" / "9.png", (254, 0, 0))
    assert len({first, renamed, Accepts("image").digest(name)}) == 3


def test_the_digest_does_not_depend_on_where_the_folder_lies(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("moved") / "copy"
    first = Accepts("image").digest(f"folder:{folder}")
    folder.rename(elsewhere)
    assert Accepts("image").digest(f"folder:{elsewhere}") == first
