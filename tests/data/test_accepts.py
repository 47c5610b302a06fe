"""What a study takes, before anything is loaded."""

import subprocess
import sys

import pytest

from paperworks.data import Accepts
from paperworks.data import names as names_module
from paperworks.study.errors import UserError


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (Accepts(), "digits"),
        (Accepts("table"), "diabetes"),
        (Accepts(["table", "image"]), "wine"),
        (Accepts("image", labelled=False), "photos"),
        (Accepts("text", labelled=False), "stdlib-text"),
        (Accepts("image", min_classes=10, channels=1), "digits"),
        (Accepts("table", bundled=["dirichlet-2", "wine"]), "dirichlet-2"),
        (Accepts("table", bundled=["dirichlet-2", "wine"]), "wine"),
    ],
)
def test_takes(rule, name):
    rule.check(name)
    assert rule.digest(name) == ""


@pytest.mark.parametrize(
    ("rule", "name", "message"),
    [
        (Accepts(), "dgits", "unknown data set 'dgits': did you mean digits"),
        (
            Accepts(),
            "wine",
            "'wine' is a table, this study takes pictures: choose from digits, folder:PATH, "
            "hub:OWNER/NAME",
        ),
        (Accepts(), "photos", "'photos' has no targets, this study needs them"),
        (Accepts(min_classes=11), "digits", "'digits' has 10 classes, this study needs at least"),
        (Accepts("table", min_classes=2), "diabetes", "'diabetes' has no classes, this study"),
        (Accepts(channels=3), "digits", "'digits' has 1 channels, this study needs 3"),
        (
            Accepts("table", bundled=["dirichlet-2"]),
            "wine",
            "this study does not take 'wine': choose from dirichlet-2, file:TABLE.csv",
        ),
        (Accepts("table"), "hub:a/b", "'hub:a/b' is pictures or text, this study takes a table"),
        (Accepts(), "folder:/nowhere", "there is no folder /nowhere"),
        (Accepts(), "hub:a/b?size=x", "hub:a/b: size='x' is not a positive integer"),
        (Accepts("table", bundled=["dirichlet"]), "dirichlt", "unknown data set 'dirichlt': did"),
    ],
)
def test_refuses_in_one_line(rule, name, message):
    with pytest.raises(UserError) as caught:
        rule.check(name)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_folders_are_checked_without_decoding(tmp_path):
    from PIL import Image

    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "0.png")
    name = f"folder:{tmp_path}"
    with pytest.raises(UserError, match="has 1 class, this study needs at least 2"):
        Accepts(min_classes=2).check(name)
    with pytest.raises(UserError, match=r"has 3 channels, .* \(append \?channels=1 to convert\)"):
        Accepts(channels=1).check(name)
    Accepts(channels=1).check(name + "?channels=1")
    (tmp_path / "a" / "0.png").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"cannot read the picture .*0\.png"):
        Accepts(channels=1).check(name)
    Accepts(channels=1).check(name + "?channels=1")


@pytest.mark.parametrize(
    ("kind", "name", "extra"),
    [("image", "hub:uoft-cs/cifar10", "hub"), ("graph", "stdlib-graph", "graphs")],
)
def test_a_missing_extra_is_named(kind, name, extra, monkeypatch):
    monkeypatch.setattr(names_module.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=rf"pip install 'paperworks\[{extra}\]'"):
        Accepts(kind).check(name)


def test_digest_of_the_hub_is_its_revision():
    assert Accepts().digest("hub:uoft-cs/cifar10?size=8") == "uoft-cs/cifar10@main"
    assert Accepts().digest("hub:uoft-cs/cifar10@v1") == "uoft-cs/cifar10@v1"


def test_an_unknown_kind():
    with pytest.raises(ValueError, match="kind must be one of image, table, text, graph"):
        Accepts("images")


def test_checking_imports_nothing_heavy(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.png").write_bytes(b"")
    script = (
        "import sys; from paperworks.data import Accepts; rule = Accepts(min_classes=1);"
        f"name = 'folder:{tmp_path}'; rule.check('digits'); rule.check(name); rule.digest(name);"
        "print(sorted({'torch', 'numpy', 'pandas', 'datasets', 'PIL'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
