"""`paperworks report`: a static site of an index and a page a paper, which opens from a folder."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from paperworks.site.pages import Page, page_of
from paperworks.study import evidence_files as shipped
from paperworks.study.catalogue import FIELDS, Paper
from paperworks.study.errors import UserError

HERE = Path(__file__).parent


def write(
    papers: Iterable[Paper],
    out: Path,
    own: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the pages of papers into a folder.

    Args:
        papers: of any source; what an entry leaves empty, its page leaves out.
        out: the folder, made where there is none; files of an earlier report are written over.
        own: the verdicts of a user's own runs, as `read_verdicts` gives them.

    Returns:
        The path of the index.

    Raises:
        UserError: the folder cannot be written.
    """
    pages = [page_of(paper, shipped.read(paper.slug, paper.evidence), own) for paper in papers]
    try:
        return _written(pages, out)
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}") from error


def _written(pages: Sequence[Page], out: Path) -> Path:
    templates = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["signs"] = shipped.SIGNS
    (out / "papers").mkdir(parents=True, exist_ok=True)
    shutil.copytree(HERE / "assets", out / "assets", dirs_exist_ok=True)
    for page in pages:
        for number, picture in enumerate(page.pictures, 1):
            if picture.png:
                (out / "papers" / f"{page.paper.slug}-{number}.png").write_bytes(picture.png)
        text = templates.get_template("paper.html").render(page=page, paper=page.paper, root="../")
        (out / "papers" / f"{page.paper.slug}.html").write_text(text, encoding="utf-8")
    judged = sum(n for page in pages for word, n in page.counts.items() if word != "reported")
    text = templates.get_template("index.html").render(
        pages=pages,
        fields={name: FIELDS[name] for name in FIELDS if any(p.paper.field == name for p in pages)},
        judged=judged,
        reproduced=sum(page.counts.get("reproduced", 0) for page in pages),
        by_chance=shipped.BY_CHANCE * judged,
        root="",
    )
    index = out / "index.html"
    index.write_text(text, encoding="utf-8")
    return index
