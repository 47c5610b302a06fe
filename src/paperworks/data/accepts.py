"""Which data sets a study takes."""

from __future__ import annotations

from collections.abc import Sequence

from paperworks.data.listing import channels_of, digest, find_target, list_pictures
from paperworks.data.names import BUNDLED, Source, names_of, parse, require
from paperworks.study.errors import UserError

_A_KIND = {"image": "pictures", "table": "a table", "text": "text", "graph": "a graph"}


class Accepts:
    """A study's rule for its setting key `data`: checked before anything is loaded.

    Args:
        kind: "image", "table", "text" or "graph", or several of them.
        min_classes: how many classes the study needs.
        channels: how many channels its pictures must have.
        labelled: whether it needs targets.
        bundled: the names without a scheme that it takes; data that the study generates itself may
            be among them. By default all that come with the package and meet the rule.

    Raises:
        ValueError: a kind that does not exist.

    >>> rule = Accepts("image", min_classes=2)
    >>> rule.check("digits")
    >>> rule.check("wine")
    Traceback (most recent call last):
    paperworks.study.errors.UserError: 'wine' is a table, this study takes pictures: ...
    """

    def __init__(
        self,
        kind: str | Sequence[str] = "image",
        *,
        min_classes: int = 0,
        channels: int | None = None,
        labelled: bool = True,
        bundled: Sequence[str] | None = None,
    ) -> None:
        self.kinds = (kind,) if isinstance(kind, str) else tuple(kind)
        for kind in self.kinds:
            if kind not in _A_KIND:
                raise ValueError(f"kind must be one of {', '.join(_A_KIND)}, got {kind!r}")
        self.min_classes = min_classes
        self.channels = channels
        self.labelled = labelled
        self.bundled = None if bundled is None else tuple(bundled)

    def check(self, name: str) -> None:
        """Look whether the study can take the data set of this name, without loading it.

        What only the data on the hub could tell (their kind, classes, channels) is not asked.

        Raises:
            UserError: one line that says what is wrong and what may be given instead.
        """
        source = parse(name, [*BUNDLED, *(self.bundled or ())])
        check = {"": self._plain, "folder": self._folder, "file": self._file, "hub": self._hub}
        check[source.scheme](name, source)

    def digest(self, name: str) -> str:
        """What identifies the content of a data set.

        Empty for what comes with the package; for a folder or file the SHA-256 of the names and
        contents of what is read; for the hub the name with its revision.

        Raises:
            UserError: the folder or file cannot be read.
        """
        return digest(name)

    def _plain(self, name: str, source: Source) -> None:
        if self.bundled is not None and name not in self.bundled:
            raise UserError(f"this study does not take {name!r}: {self._choices()}")
        if name not in BUNDLED:
            return
        known = BUNDLED[name]
        self._check_kind(name, [known.kind])
        self._check_content(name, known.labelled, known.classes, known.channels)
        for module, extra in known.requires:
            require(module, extra, what=name)

    def _folder(self, name: str, source: Source) -> None:
        self._check_kind(name, ["image"])
        source.number("size")
        channels = source.number("channels", valid=(1, 3))
        found = list_pictures(source.path)
        if self.channels and channels is None:
            channels = channels_of(found.files[0])
        self._check_content(name, found.labels is not None, len(found.classes), channels)

    def _file(self, name: str, source: Source) -> None:
        self._check_kind(name, ["table"])
        target = find_target(source.path, source.options.get("target"))
        self._check_content(name, True, len(target.classes or ()), None)

    def _hub(self, name: str, source: Source) -> None:
        self._check_kind(name, ["image", "text"])
        source.number("size")
        source.number("channels", valid=(1, 3))
        require("datasets", "hub", what=name)

    def _check_kind(self, name: str, kinds: Sequence[str]) -> None:
        if not set(kinds) & set(self.kinds):
            is_a, takes = (" or ".join(_A_KIND[kind] for kind in k) for k in (kinds, self.kinds))
            raise UserError(f"{name!r} is {is_a}, this study takes {takes}: {self._choices()}")

    def _check_content(self, name: str, labelled: bool, classes: int, channels: int | None) -> None:
        if self.labelled and not labelled:
            raise UserError(f"{name!r} has no targets, this study needs them")
        if classes < self.min_classes:
            has = f"{classes} class{'es' * (classes != 1)}" if classes else "no classes"
            raise UserError(f"{name!r} has {has}, this study needs at least {self.min_classes}")
        if self.channels and channels and channels != self.channels:
            hint = f" (append ?channels={self.channels} to convert)" if ":" in name else ""
            raise UserError(
                f"{name!r} has {channels} channels, this study needs {self.channels}{hint}"
            )

    def _choices(self) -> str:
        names = names_of(self.kinds)
        fitting = [n for n in names if n in BUNDLED and BUNDLED[n].labelled >= self.labelled]
        plain = fitting if self.bundled is None else self.bundled
        return f"choose from {', '.join([*plain, *(name for name in names if ':' in name)])}"
