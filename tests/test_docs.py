"""The guide builds without a warning, its Python runs, and every finished field has its page."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from paperworks.study.catalogue import OURS, catalogue

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FINISHED = {p.field for p in catalogue().search() if p.kind == "paper" and p.distribution == OURS}
PYTHON = {
    str(page.relative_to(DOCS)): blocks
    for page in sorted(DOCS.rglob("*.md"))
    if (blocks := re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
}
del PYTHON["cluster.md"]  # starts jobs on a SLURM cluster


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="the guide needs pip install 'paperworks[docs]'")
    out = tmp_path_factory.mktemp("guide")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", out],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return out


@pytest.mark.parametrize("field", sorted(FINISHED))
def test_every_finished_field_has_a_page(site, field):
    assert f'href="{field}.html"' in (site / "index.html").read_text()
    assert documented(site / f"{field}.html", field) == public(field)


@pytest.mark.parametrize("room", ["study", "data", "nets", "common"])
def test_the_reference_has_every_public_name(site, room):
    assert documented(site / "reference" / f"{room}.html", room) == public(room)


def documented(page, package):
    """The names that have an entry; `data.load`, which is also a module, has its own below that."""
    entry = rf'id="paperworks\.{package}\.(\w+)(?:\.\1)?"'
    return set(re.findall(entry, page.read_text()))


def public(package):
    return set(importlib.import_module(f"paperworks.{package}").__all__)


def test_verdicts_have_the_engines_own_text(site):
    source = (ROOT / "src" / "paperworks" / "study" / "README.md").read_text()
    last = re.findall(r"^\| (.*?) \|", source, re.MULTILINE)[-1]
    assert last.replace("…", "").strip() in (site / "verdicts.html").read_text()


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("*.html"):
        fetched = re.findall(
            r'<(?:script|img|iframe)[^>]*src="?(https?:[^" >]+)'
            r'|<link[^>]*rel="?(?:stylesheet|preconnect)"?[^>]*href="?(https?:[^" >]+)',
            page.read_text(),
        )
        assert fetched == [], page.name


@pytest.mark.parametrize("page", PYTHON)
def test_the_python_of_a_page_runs(page):
    names = {}
    for block in PYTHON[page]:
        exec(block, names)
