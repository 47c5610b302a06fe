"""The catalogue: which papers and face-offs there are, read from TOML without importing any.

A source is a TOML file of `[[paper]]` and `[[faceoff]]` tables. Ours is `papers.toml`; an installed
package adds its own by an entry point in the group `paperworks.papers`, whose value is `package` or
`package:file.toml`. What is wrong with an entry is a line among `problems`, and the others work.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from paperworks.study.errors import UserError, unknown
from paperworks.study.evidence_files import FOLDER
from paperworks.study.fingerprint import module_file

FIELDS = {
    "compress": "make a network smaller and keep what it does",
    "representation": "read, relate and simplify what networks have learned",
    "training": "train better: batches, gradients, losses, hyperparameters",
    "layers": "layers and cells to build networks from",
    "continual": "keep learning without forgetting",
    "wide": "what infinite width can tell about a network, and its kernels",
    "incontext": "transformers that learn from the examples in their input",
    "operators": "maps between functions: solvers of differential equations",
    "graphs": "learn on graphs and relational databases",
    "language": "text: models, tokens, embeddings",
    "sequences": "ordered data: recurrence, pointers, click histories",
    "generative": "probabilistic models that sample, complete and compress",
    "vision": "images and video: from raw sensor data to captions",
}
"""What each field is for, in the order in which they are listed."""

SLUG = "[a-z][a-z0-9_]*"

GROUP = "paperworks.papers"
"""The entry points by which other packages name their catalogues."""

OURS = "paperworks"
"""The distribution whose papers win over those of others."""

REQUIRED = {
    "paper": ["slug", "title", "authors", "year", "venue", "arxiv", "field", "summary", "parts"],
    "faceoff": ["slug", "title", "field", "summary"],
}
OPTIONAL = {
    "paper": ["package", "study", "extras", "official", "example", "unverified"],
    "faceoff": ["study", "extras"],
}
"""The keys of an entry of each kind. Of another package `study` and `package` are required."""


class Source(NamedTuple):
    """A catalogue's file, and the distribution that brings it."""

    path: Path
    distribution: str = OURS

    def __str__(self) -> str:
        name = self.path.name
        return name if self.distribution == OURS else f"{self.distribution}, {name}"


@dataclass(frozen=True)
class Paper:
    """One entry of the catalogue: a paper, or a face-off, which is a study tied to no paper.

    Attributes:
        slug: the paper's name here.
        field: the field it belongs to, a key of `FIELDS`.
        summary: what it does, in one sentence of ours.
        kind: `paper` or `faceoff`.
        venue: where it appeared; `preprint` when nowhere. A face-off has no venue, authors, parts.
        arxiv: its number there.
        parts: what can be imported from `package`.
        package: where the parts are imported from, by default `paperworks.<field>`.
        study: the module of the study.
        extras: optional dependencies that its study needs.
        official: the authors' repository, or empty.
        example: Python lines that use a part on a reader's own model or data; they run as they are.
        unverified: what we know from memory or read our own way, a sentence each.
        distribution: what is installed that brings it.
        evidence: the folder of its evidence.
    """

    slug: str
    title: str
    field: str
    summary: str
    kind: str = "paper"
    authors: tuple[str, ...] = ()
    year: int = 0
    venue: str = ""
    arxiv: str = ""
    parts: tuple[str, ...] = ()
    package: str = ""
    study: str = ""
    extras: tuple[str, ...] = ()
    official: str = ""
    example: str = ""
    unverified: tuple[str, ...] = ()
    distribution: str = OURS
    evidence: Path = FOLDER


@dataclass
class Catalogue:
    """Papers and face-offs by slug, and a line for each thing that is wrong with a source."""

    papers: dict[str, Paper] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def get(self, slug: str) -> Paper:
        """The paper of that name.

        Raises:
            UserError: there is none; the message names the nearest.
        """
        if slug not in self.papers:
            raise unknown("paper", slug, self.papers)
        return self.papers[slug]

    def search(self, words: str = "", field: str | None = None) -> list[Paper]:
        """The papers, of a field or of all, in which every word occurs somewhere.

        Raises:
            UserError: there is no such field.
        """
        if field is not None and field not in FIELDS:
            raise unknown("field", field, FIELDS)
        return [
            paper
            for paper in self.papers.values()
            if field in (None, paper.field)
            and all(word in _text(paper) for word in words.casefold().split())
        ]

    def faceoffs(self, field: str) -> list[Paper]:
        """The face-offs of a field.

        Raises:
            UserError: there is no such field, or it has none; the message names those that have.
        """
        found = [entry for entry in self.search(field=field) if entry.kind == "faceoff"]
        if not found:
            have = dict.fromkeys(p.field for p in self.papers.values() if p.kind == "faceoff")
            raise UserError(f"{field} has no face-off yet: choose from {', '.join(have)}")
        return found


@functools.cache
def catalogue() -> Catalogue:
    """What is installed: our papers, and those of other packages."""
    sources, problems = other_sources()
    found = read_catalogue([Source(Path(__file__).parent.parent / "papers.toml"), *sources])
    return Catalogue(found.papers, found.problems + problems)


def other_sources() -> tuple[list[Source], list[str]]:
    """The catalogues that other packages bring, found by metadata, and what is wrong with them."""
    sources, problems = [], []
    try:
        points = entry_points(group=GROUP)
    except ValueError as error:  # one that is malformed, in any package, hides them all
        return [], [f"the entry points of installed packages cannot be read: {error}"]
    for distribution, value in sorted({(str(p.dist and p.dist.name), p.value) for p in points}):
        package, _, name = (text.strip() for text in value.partition(":"))
        file = module_file(package)
        if file is None or (file.is_file() and file.name != "__init__.py"):
            problems.append(f"{distribution}: its entry point names no package: {package!r}")
            continue
        folder = file.parent if file.is_file() else file
        sources.append(Source(folder / (name or "papers.toml"), distribution))
    return sources, problems


def read_catalogue(sources: Iterable[Source]) -> Catalogue:
    """The entries of several sources, field by field; of two with one slug the first."""
    found = Catalogue()
    for source in sources:
        try:
            tables = tomllib.loads(source.path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            found.problems.append(f"{source}: {error}")
            continue
        for key in tables.keys() - REQUIRED.keys():
            found.problems.append(f"{source}: {unknown('table', key, REQUIRED)}")
        for kind in REQUIRED:
            _read(found, source, kind, tables.get(kind, []))
    order = list(FIELDS)
    papers = sorted(found.papers.values(), key=lambda p: (order.index(p.field), p.kind != "paper"))
    return Catalogue({paper.slug: paper for paper in papers}, found.problems)


def _read(found: Catalogue, source: Source, kind: str, entries: Any) -> None:
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        found.problems.append(f"{source}: {kind}s are written as tables, [[{kind}]]")
        return
    for entry in entries:
        slug = entry.get("slug")
        problems = _problems(entry, kind, source)
        if not problems and slug in found.papers:
            problems = ["another entry has this slug"]
        if not problems:
            found.papers[slug] = _paper(entry, kind, source)
        found.problems += [f"{source}, {kind} {slug!r}: {problem}" for problem in problems]


def _problems(entry: dict[str, Any], kind: str, source: Source) -> list[str]:
    """What is wrong with an entry, found without importing anything."""
    required, known = REQUIRED[kind], [*REQUIRED[kind], *OPTIONAL[kind]]
    if source.distribution != OURS:  # nobody can guess the names of their modules
        required = [*required, *({"study", "package"} & {*known})]
    problems = [str(unknown("key", key, known)) for key in entry if key not in known]
    types = {f.name: str(f.type) for f in fields(Paper)}
    for name in known:
        if name in required and not entry.get(name):
            problems.append(f"{name} is missing")
        elif name in entry and not _fits(entry[name], types[name]):
            problems.append(f"{name} is {entry[name]!r}, which is no {KINDS[types[name]]}")
    if problems:
        return problems
    paper = _paper(entry, kind, source)
    if not re.fullmatch(SLUG, paper.slug):
        problems.append("a slug is made of a-z, 0-9 and _, and begins with a letter")
    if paper.field not in FIELDS:
        problems.append(str(unknown("field", paper.field, FIELDS)))
    if not problems:
        modules = sorted({paper.study, entry.get("package", paper.study)})
        problems += [f"there is no module {name}" for name in modules if not module_file(name)]
    return problems


KINDS = {"str": "text", "int": "whole number", "tuple[str, ...]": "list of texts"}


def _fits(value: Any, kind: str) -> bool:
    if kind == "tuple[str, ...]":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value).__name__ == kind


def _paper(entry: dict[str, Any], kind: str, source: Source) -> Paper:
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()
    }
    values.setdefault("study", f"paperworks.studies.{entry['slug']}")
    if kind == "paper":
        values.setdefault("package", f"paperworks.{entry['field']}")
    evidence = source.path.parent / "evidence"
    return Paper(**values, kind=kind, distribution=source.distribution, evidence=evidence)


def _text(paper: Paper) -> str:
    texts = (paper.slug, paper.title, *paper.authors, paper.field, paper.summary, *paper.parts)
    return " ".join(texts).casefold()
