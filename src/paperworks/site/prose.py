"""A study's docstring as blocks that a template can write: paragraphs, lists, code.

The source is read, not imported, so that a page can say how a paper is measured whose extra is
missing. Backticks stay in the text: the templates turn them into code, and escape everything.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from typing import NamedTuple

from paperworks.study.fingerprint import module_file

DIFFERENCES = "Differences from the paper"
"""The words with which a study's docstring begins to say them."""


class Block(NamedTuple):
    """`kind` is text, list or code; `items` has one entry, of a list one an item."""

    kind: str
    items: tuple[str, ...]


class Prose(NamedTuple):
    """A docstring in three: the question, how it is measured, the differences from the paper."""

    question: str = ""
    measured: tuple[Block, ...] = ()
    differences: tuple[Block, ...] = ()


def prose_of(module: str) -> Prose:
    """What the docstring of a study's module says; empty where it has none or cannot be read.

    >>> prose_of("paperworks.studies.flexround").question[:30]
    'FlexRound: how low can the bit'
    """
    path = module_file(module)
    try:
        source = path.read_text(encoding="utf-8") if path and path.is_file() else ""
        return parse(ast.get_docstring(ast.parse(source)) or "")
    except (SyntaxError, UnicodeDecodeError):
        return Prose()


def parse(docstring: str) -> Prose:
    """A docstring's parts.

    >>> parse("What?\\n\\n- `a`: one,\\n  still one\\n- two\\n\\nDifferences from the paper. None.")
    ... # doctest: +NORMALIZE_WHITESPACE
    Prose(question='What?',
          measured=(Block(kind='list', items=('`a`: one, still one', 'two')),),
          differences=(Block(kind='text', items=('None.',)),))
    """
    question, _, rest = docstring.strip().partition("\n\n")
    measured, found, differences = rest.partition(DIFFERENCES)
    return Prose(
        question=_joined(question),
        measured=tuple(_blocks(measured)),
        differences=tuple(_blocks(differences.lstrip(".: \n"))) if found else (),
    )


def _blocks(text: str) -> Iterator[Block]:
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        if part.startswith("    "):
            yield Block("code", (textwrap.dedent(part).rstrip(),))
        elif part.startswith("- "):
            yield Block("list", tuple(map(_joined, re.split(r"(?m)^- ", part)[1:])))
        elif part.strip():
            yield Block("text", (_joined(part),))


def _joined(text: str) -> str:
    return " ".join(text.split())
