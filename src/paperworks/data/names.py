"""What a data set's name says, and what is known about it before anything is read.

Nothing here imports torch: names are checked before any work begins.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl

from paperworks.study.errors import UserError, unknown


@dataclass(frozen=True)
class Bundled:
    """A data set that comes with a dependency or with Python itself.

    Args:
        kind: "image", "table", "text" or "graph".
        licence: the terms of use.
        labelled: whether the parts have targets.
        classes: number of classes, or fewer where that depends on the Python; 0 without.
        channels: of pictures.
        requires: optional modules that it needs, each with the extra that brings it.
    """

    kind: str
    licence: str
    labelled: bool = True
    classes: int = 0
    channels: int | None = None
    requires: tuple[tuple[str, str], ...] = ()


BUNDLED = {
    "digits": Bundled("image", "CC BY 4.0 (UCI)", classes=10, channels=1),
    "photos": Bundled("image", "CC BY 2.0 (danielbuechele, vultilion)", labelled=False, channels=3),
    "diabetes": Bundled("table", "not stated; comes with scikit-learn (BSD-3-Clause)"),
    "wine": Bundled("table", "CC BY 4.0 (UCI)", classes=3),
    "iris": Bundled("table", "CC BY 4.0 (UCI)", classes=3),
    "breast_cancer": Bundled("table", "CC BY 4.0 (UCI)", classes=2),
    "stdlib-text": Bundled("text", "PSF-2.0", labelled=False),
    "stdlib-graph": Bundled(
        "graph", "PSF-2.0", classes=2, requires=(("torch_geometric", "graphs"),)
    ),
}

SCHEMES = {
    "folder": ("PATH", ("image",), ("size", "channels")),
    "file": ("TABLE.csv", ("table",), ("target",)),
    "hub": ("OWNER/NAME", ("image", "text"), ("config", "size", "channels", "label")),
}
"""For each scheme: what follows the colon, the kinds it can bring, its options."""


@dataclass(frozen=True)
class Source:
    """A parsed name: `hub:owner/name@revision?size=64` has every field.

    Args:
        name: the whole of it.
        scheme: "folder", "file", "hub", or "" for a plain name.
        place: the path, repository or plain name.
        revision: of a repository; "" for its main branch.
        options: what follows the question mark.
    """

    name: str
    scheme: str
    place: str
    revision: str = ""
    options: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return Path(self.place).expanduser()

    def number(self, option: str, valid: Collection[int] = ()) -> int | None:
        """An option as a positive integer, or None where it is not given."""
        text = self.options.get(option)
        if text is None:
            return None
        if not text.isdecimal() or int(text) < 1 or (valid and int(text) not in valid):
            wanted = " or ".join(map(str, valid)) if valid else "a positive integer"
            raise UserError(f"{self.scheme}:{self.place}: {option}={text!r} is not {wanted}")
        return int(text)


def parse(name: str, plain: Collection[str] = BUNDLED) -> Source:
    """Take a name apart.

    Args:
        name: `digits`, `folder:PATH?size=64`, `file:TABLE.csv?target=price`,
            `hub:OWNER/NAME@REVISION?config=CONFIG`.
        plain: the names without a scheme that exist.

    Raises:
        UserError: the name, its scheme or one of its options does not exist, or nothing follows
            the colon.

    >>> source = parse("hub:uoft-cs/cifar10@main?size=16")
    >>> source.scheme, source.place, source.revision, source.options
    ('hub', 'uoft-cs/cifar10', 'main', {'size': '16'})
    """
    scheme, colon, rest = name.partition(":")
    if not colon:
        if name not in plain:
            raise unknown("data set", name, [*plain, *_forms(SCHEMES)])
        return Source(name, "", name)
    if scheme not in SCHEMES:
        raise unknown("source of data", f"{scheme}:", [f"{known}:" for known in SCHEMES])
    place, _, query = rest.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in SCHEMES[scheme][2]:
            raise unknown(f"option of {scheme}:", option, SCHEMES[scheme][2])
    place, _, revision = place.partition("@") if scheme == "hub" else (place, "", "")
    form = _forms([scheme])[0]
    if not place:
        raise UserError(f"{name!r} names nothing: write {form}")
    if scheme == "hub" and place.count("/") > 1:
        raise UserError(f"{name!r} is not the name of a data set on the hub: write {form}")
    return Source(name, scheme, place, revision, options)


def names_of(kinds: Iterable[str]) -> list[str]:
    """The names that bring data of one of these kinds, for messages.

    >>> names_of(["text"])
    ['stdlib-text', 'hub:OWNER/NAME']
    """
    kinds = set(kinds)
    plain = [name for name, known in BUNDLED.items() if known.kind in kinds]
    return plain + _forms(scheme for scheme, row in SCHEMES.items() if kinds & set(row[1]))


def require(module: str, extra: str, what: str) -> None:
    """Raise `UserError` when an optional module is not installed."""
    if importlib.util.find_spec(module) is None:
        raise UserError(f"{what} needs {module}: pip install 'paperworks[{extra}]'")


def _forms(schemes: Iterable[str]) -> list[str]:
    return [f"{scheme}:{SCHEMES[scheme][0]}" for scheme in schemes]
