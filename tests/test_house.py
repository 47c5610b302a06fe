"""A paper is the same slug in five places, a face-off in four; figures agree with the evidence."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from paperworks.study import evidence_files
from paperworks.study.catalogue import OURS, catalogue
from paperworks.study.worker import load_study

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "paperworks"
PAPERS = {slug: paper for slug, paper in catalogue().papers.items() if paper.distribution == OURS}
SLUGS = sorted(PAPERS)


def places(slug):
    """Where the code of an entry is: its part, if it is a paper's, its study, its tests."""
    paper = PAPERS[slug]
    study = PACKAGE / "studies" / f"{slug}.py"
    if paper.kind == "faceoff":
        return [study, ROOT / "tests" / "studies" / f"test_{slug}.py"]
    part = PACKAGE / paper.field / slug
    part = part / "__init__.py" if part.is_dir() else part.with_suffix(".py")
    return [part, study, ROOT / "tests" / paper.field / f"test_{slug}.py"]


def test_the_catalogue_has_no_problem():
    assert catalogue().problems == []


@pytest.mark.parametrize("slug", SLUGS)
def test_places_agree(slug):
    assert [path for path in places(slug) if not path.exists()] == []
    study = load_study(PAPERS[slug].study)
    assert study.slug == slug
    assert study.claims
    assert set(study.demo) <= {claim.id for claim in study.claims}


@pytest.mark.parametrize("slug", SLUGS)
def test_every_part_can_be_imported(slug):
    field = importlib.import_module(f"paperworks.{PAPERS[slug].field}")
    for name in PAPERS[slug].parts:
        assert getattr(field, name).__doc__, name


@pytest.mark.parametrize("slug", SLUGS)
def test_evidence_is_the_studys(slug):
    evidence = evidence_files.read(slug)
    if evidence is None:
        assert f"`{slug}`" not in (ROOT / "RESULTS.md").read_text()
        return
    assert not any("TODO" in path.read_text() for path in places(slug))
    assert "TODO" not in str(PAPERS[slug])
    study = load_study(PAPERS[slug].study)
    assert [entry["claim"] for entry in evidence["claims"]] == [claim.id for claim in study.claims]
    assert [entry["text"] for entry in evidence["claims"]] == [c.text for c in study.claims]
    assert len(evidence["seeds"]) in (10, 20, 30)
    assert min(evidence["seeds"]) >= 100


def test_results_follow_the_evidence():
    expected = evidence_files.results_markdown(PAPERS)
    assert (ROOT / "RESULTS.md").read_text() == expected


def test_no_evidence_without_an_entry():
    slugs = {path.stem for path in evidence_files.FOLDER.glob("*.json")}
    assert slugs <= set(SLUGS)


def test_versions_agree():
    import paperworks

    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version is not None
    assert version[1] == paperworks.__version__
