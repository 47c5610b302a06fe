"""A paper is the same slug in five places; the house's figures agree with its evidence."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from paperworks.study import evidence_files
from paperworks.study.catalogue import catalogue
from paperworks.study.worker import load_study

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "paperworks"
SLUGS = sorted(catalogue().papers)


def test_the_catalogue_has_no_problem():
    assert catalogue().problems == []


@pytest.mark.parametrize("slug", SLUGS)
def test_places_agree(slug):
    paper = catalogue().get(slug)
    part = PACKAGE / paper.field / slug
    assert part.with_suffix(".py").exists() or (part / "__init__.py").exists()
    assert (PACKAGE / "studies" / f"{slug}.py").exists()
    assert (ROOT / "tests" / paper.field / f"test_{slug}.py").exists()
    study = load_study(paper.study)
    assert study.slug == slug
    assert study.claims
    assert set(study.demo) <= {claim.id for claim in study.claims}


@pytest.mark.parametrize("slug", SLUGS)
def test_every_part_can_be_imported(slug):
    paper = catalogue().get(slug)
    field = importlib.import_module(f"paperworks.{paper.field}")
    for name in paper.parts:
        assert getattr(field, name).__doc__, name


@pytest.mark.parametrize("slug", SLUGS)
def test_evidence_is_the_studys(slug):
    evidence = evidence_files.read(slug)
    if evidence is None:
        assert slug not in (ROOT / "RESULTS.md").read_text()
        return
    study = load_study(catalogue().get(slug).study)
    assert [entry["claim"] for entry in evidence["claims"]] == [claim.id for claim in study.claims]
    assert [entry["text"] for entry in evidence["claims"]] == [c.text for c in study.claims]
    assert len(evidence["seeds"]) in (10, 20, 30)
    assert min(evidence["seeds"]) >= 100


def test_results_follow_the_evidence():
    expected = evidence_files.results_markdown(catalogue().papers)
    assert (ROOT / "RESULTS.md").read_text() == expected


def test_no_evidence_without_a_paper():
    slugs = {path.stem for path in evidence_files.FOLDER.glob("*.json")}
    assert slugs <= set(SLUGS)


def test_versions_agree():
    import paperworks

    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert version[1] == paperworks.__version__
