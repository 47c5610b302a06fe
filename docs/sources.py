"""Texts that the repository has already are taken into pages, so that nothing is written twice.

`{{ README.md }}` on a line of its own becomes that file, `{{ README.md § The catalogue }}` what
stands under that heading of level two. Links to files that are pages here lead to the pages.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "RESULTS.md": "results.md",
    "CONTRIBUTING.md": "contributing.md",
    "src/paperworks/study/README.md": "verdicts.md",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in a page; MkDocs calls it before it reads the page's Markdown."""
    return re.sub(r"^\{\{ ([^}§]+?)(?: § ([^}]+))? \}\}$", _taken, markdown, flags=re.MULTILINE)


def _taken(wanted: re.Match[str]) -> str:
    path, heading = wanted.groups()
    text = (ROOT / path).read_text(encoding="utf-8")
    if heading is not None:
        found = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.M)
        if found is None:
            raise ValueError(f"{path} has no heading {heading!r}")
        text = found[1]
    return re.sub(r"(?<=\]\()[^)#]+", _page, text)


def _page(link: re.Match[str]) -> str:
    return PAGES.get(link[0], link[0].removeprefix("docs/"))
