"""Our docstrings as Markdown: examples and equations become blocks of code."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^>>> .*(?:\n.+)*", re.MULTILINE)
EQUATION = re.compile(r"(?<=\n\n)(?: {4}.*\n)+(?=\n|\Z)")


class Blocks(griffe.Extension):
    """Fences what begins with `>>>`; takes the backticks off an equation that stands indented."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by Griffe for every object that it has read."""
        if obj.docstring is not None:
            text = EQUATION.sub(lambda block: block[0].replace("`", ""), obj.docstring.value)
            obj.docstring.value = EXAMPLE.sub(r"```pycon\n\g<0>\n```", text)
