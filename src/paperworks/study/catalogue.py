"""The catalogue: which papers there are, read from TOML without importing any of them.

A source is a TOML file of `[[paper]]` tables; ours is `papers.toml`. What is wrong with an entry is
a line among `problems`, and the other entries work.
"""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Iterable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from paperworks.study.errors import unknown
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

OURS = Path(__file__).parent.parent / "papers.toml"


@dataclass(frozen=True)
class Paper:
    """One entry of the catalogue.

    Attributes:
        slug: the paper's name here.
        venue: where it appeared; `preprint` when nowhere.
        arxiv: its number there.
        summary: what it does, in one sentence of ours.
        parts: what can be imported from `paperworks.<field>`.
        extras: optional dependencies that its study needs.
        study: the module of the study.
        official: the authors' repository, or empty.
    """

    slug: str
    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    arxiv: str
    field: str
    summary: str
    parts: tuple[str, ...]
    extras: tuple[str, ...] = ()
    study: str = ""
    official: str = ""


@dataclass
class Catalogue:
    """Papers by slug, and a line for each thing that is wrong with a source."""

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


@functools.cache
def catalogue() -> Catalogue:
    """The papers that are installed."""
    return read_catalogue([OURS])


def read_catalogue(sources: Iterable[Path]) -> Catalogue:
    """The papers of several sources, field by field; of two with one slug the first."""
    found = Catalogue()
    for source in sources:
        try:
            entries = tomllib.loads(source.read_text(encoding="utf-8")).get("paper", [])
        except (OSError, ValueError) as error:
            found.problems.append(f"{source.name}: {error}")
            continue
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            found.problems.append(f"{source.name}: papers are written as tables, [[paper]]")
            continue
        for entry in entries:
            slug = entry.get("slug")
            problems = _problems(entry)
            if not problems and slug in found.papers:
                problems = ["another entry has this slug"]
            if not problems:
                found.papers[slug] = _paper(entry)
            found.problems += [f"{source.name}, paper {slug!r}: {problem}" for problem in problems]
    in_order = sorted(found.papers.values(), key=lambda paper: list(FIELDS).index(paper.field))
    return Catalogue({paper.slug: paper for paper in in_order}, found.problems)


def _problems(entry: dict[str, Any]) -> list[str]:
    """What is wrong with an entry, found without importing anything."""
    known = {f.name: f for f in fields(Paper)}
    problems = [str(unknown("key", key, known)) for key in entry if key not in known]
    for name, f in known.items():
        required = f.default is MISSING
        value = entry.get(name, "" if required else f.default)
        if required and not value:
            problems.append(f"{name} is missing")
        elif name in entry and not _fits(value, str(f.type)):
            problems.append(f"{name} is {value!r}, which is no {KINDS[str(f.type)]}")
    if problems:
        return problems
    paper = _paper(entry)
    if not re.fullmatch("[a-z][a-z0-9_]*", paper.slug):
        problems.append("a slug is made of a-z, 0-9 and _, and begins with a letter")
    elif module_file(paper.study) is None:
        problems.append(f"there is no module {paper.study}")
    if paper.field not in FIELDS:
        problems.append(str(unknown("field", paper.field, FIELDS)))
    return problems


KINDS = {"str": "text", "int": "whole number", "tuple[str, ...]": "list of texts"}


def _fits(value: Any, kind: str) -> bool:
    if kind == "tuple[str, ...]":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    return type(value).__name__ == kind


def _paper(entry: dict[str, Any]) -> Paper:
    values: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()
    }
    values.setdefault("study", f"paperworks.studies.{entry['slug']}")
    return Paper(**values)


def _text(paper: Paper) -> str:
    texts = (paper.slug, paper.title, *paper.authors, paper.field, paper.summary, *paper.parts)
    return " ".join(texts).casefold()
