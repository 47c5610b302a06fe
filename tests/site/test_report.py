"""The pages as text: what they say, what they escape, what they weigh."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from click.testing import CliRunner
from PIL import Image

from paperworks.cli import cli
from paperworks.site.pages import gauge, page_of
from paperworks.site.pictures import frame_of, pictures
from paperworks.site.prose import Block, parse, prose_of
from paperworks.site.report import write
from paperworks.study import evidence_files
from paperworks.study.catalogue import catalogue
from paperworks.study.claims import Verdict
from paperworks.study.contract import Study
from paperworks.study.errors import UserError
from paperworks.study.worker import load_study

VOID = {"meta", "link", "img", "input", "rect", "line", "circle"}


class Reader(HTMLParser):
    """A page's elements, whether they nest, and the text that a reader sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.elements, self.text, self.headings = [], [], "", []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += " ".join(data.split()) + " "

    def every(self, tag, key):
        return [attributes[key] for name, attributes in self.elements if name == tag]


def read(path):
    return Reader(path.read_text(encoding="utf-8"))


@pytest.fixture
def page(site):
    return read(site / "papers" / "sample.html")


def test_a_page_says_what_was_claimed_and_measured(page, evidence_of_sample):
    for said in (
        "3 seeds (100–102)",
        "2 of 3 claims reproduced at desk scale",
        "Your runs: 2 of 3",
        "✗ not reproduced",
        "The margin is ours.",
        "The margin is the paper's.",
        "Blocks of seeds used so far: 100",
        evidence_of_sample["environment"]["torch"],
        "lowest mean loss on seeds 90–92",
        "strong 2 lr 0.1, 0.01 lr 0.01",
        "a<b 2 lr 0.2, 0.3 lr 0.2",
        "n 1, 2, 3",
        "paperworks run sample",
        "paperworks verify sample",
        "All of them , & more.",
        "code < block",
    ):
        assert said in page.text, said
    assert "stale" not in page.text
    for claim in evidence_of_sample["claims"]:
        for part in claim["parts"] or [claim]:
            sentence = Verdict.from_json(part).sentence()
            assert page.text.count(sentence) >= 2  # shipped, and the user's own beside it


@pytest.mark.parametrize("name", ["index.html", "papers/sample.html", "papers/bare.html"])
def test_markup_in_texts_is_text(site, name):
    page = read(site / name)
    assert page.every("script", "src") == [("../" if "/" in name else "") + "assets/site.js"]
    assert "<script>alert(1)</script>" in page.text
    assert not {"b", "i", "u"} & {tag for tag, _ in page.elements}
    assert not any(key.startswith("on") for _, found in page.elements for key in found)
    assert all(not link.startswith("javascript:") for link in page.every("a", "href"))


@pytest.mark.parametrize("which", ["site", "shipped_site"])
def test_pages_are_sound(which, request):
    folder = request.getfixturevalue(which)
    for path in folder.rglob("*.html"):
        page = read(path)
        ids = [found["id"] for _, found in page.elements if "id" in found]
        assert len(ids) == len(set(ids))
        assert page.headings[0] == 1
        assert page.headings.count(1) == 1
        assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:]))
        assert all(len(alt) > 10 for alt in page.every("img", "alt"))
        for link in page.every("a", "href"):
            file, _, anchor = link.partition("#")
            if file.startswith("https://"):
                continue
            assert not file or (path.parent / file).exists()
            assert not anchor or file or anchor in ids


@pytest.mark.parametrize("which", ["site", "shipped_site"])
def test_a_page_weighs_at_most_300_kb_with_all_it_loads(which, request):
    folder = request.getfixturevalue(which)
    for path in folder.rglob("*.html"):
        page = read(path)
        loads = [*page.every("img", "src"), *page.every("script", "src")]
        loads += [href for href in page.every("link", "href") if not href.startswith("data:")]
        files = [path, *(path.parent / load for load in loads)]
        assert sum(file.stat().st_size for file in files) <= 300_000


def test_the_index_counts(site):
    index = read(site / "index.html")
    assert "3 of 6 claims reproduced" in index.text
    assert "about 0.2 would be reproduced by chance" in index.text
    assert "2 of 3 at desk scale" in index.text
    assert "✓ 2 reproduced" in index.text
    assert "No evidence is published yet" in index.text
    assert index.every("option", "value") == ["", "wide", "graphs"]


def test_without_evidence_a_page_says_so_and_how_to_get_it(site):
    bare = read(site / "papers" / "bare.html")
    assert "No evidence is published yet. To measure it here: paperworks run bare" in bare.text
    assert "It loses" in bare.text
    assert "paperworks verify" not in bare.text
    assert not bare.every("img", "src")


def test_a_face_off_has_no_authors_parts_or_links(site):
    many = read(site / "papers" / "many.html")
    assert "What is claimed" in many.text
    assert "Use it" not in many.text
    assert "arXiv" not in many.text


def test_stale_evidence_says_so(sample, evidence_of_sample, tmp_path):
    paper, _ = sample
    changed = {**evidence_of_sample, "fingerprints": {"scores": "another"}}
    evidence_files.write(changed, tmp_path)
    index = write([dataclasses.replace(paper, evidence=tmp_path)], tmp_path / "out")
    assert "stale" in read(index).text
    assert "The code of scores has changed" in read(tmp_path / "out/papers/sample.html").text


def test_own_runs_are_those_of_the_paper_and_decide(sample):
    paper, own = sample
    others = [{**v, "slug": "other"} for v in own] + [{**v, "scale": "smoke"} for v in own]
    assert all(not claim.own for claim in page_of(paper, None, others).claims)
    changed = [{**v, "overrides": "data=<b>"} for v in own]
    page = page_of(paper, None, own + changed)
    assert [found.origin for found in page.claims[0].own] == ["desk scale", "desk scale data=<b>"]
    assert page.own_score == "2 of 3"


def test_own_runs_stand_though_claim_and_study_are_gone(sample):
    paper, own = sample
    page = page_of(dataclasses.replace(paper, study="no_such_study"), None, own)
    assert [claim.text for claim in page.claims] == [v["text"] for v in own]
    assert "cannot import" in page.problem or "no_such_study" in page.problem


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ('raise RuntimeError("<script>alert(1)</script>")', "RuntimeError: <script>alert"),
        ("import <script>", "SyntaxError"),
        ("study = '<b>'", "study is a str"),
    ],
)
def test_a_study_that_cannot_be_had_leaves_a_page(source, said, sample, tmp_path, monkeypatch):
    name = f"raising_study_{len(source)}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    paper = dataclasses.replace(sample[0], study=name)
    write([paper], tmp_path / "out")
    page = read(tmp_path / "out/papers/sample.html")
    assert said in page.text
    assert "It loses" in page.text  # from the evidence
    assert not page.every("img", "src")


def test_a_missing_extra_is_named(sample, tmp_path, monkeypatch):
    (tmp_path / "needy_study.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    paper = dataclasses.replace(sample[0], study="needy_study", extras=("graphs",))
    assert "pip install 'paperworks[graphs]'" in page_of(paper, None, []).problem


def test_figures_are_drawn_from_the_evidence(sample, evidence_of_sample, site):
    score, curve, broken, own = pictures(load_study("sample_study"), evidence_of_sample)
    frame = frame_of(evidence_of_sample)
    assert len(frame) == 18
    means = frame[frame["method"] == "strong"].groupby("n")["<b>score</b>"].mean()
    assert score.header == ["n", "a<b", "strong"]
    assert [row[0] for row in score.rows] == ["1", "2", "3"]
    assert [float(row[2].split()[0]) for row in score.rows] == pytest.approx(means, rel=5e-3)
    assert "Bar chart. <b>score</b> by n, for each method" in score.alt
    assert "mean and 95 % interval over 3 seeds" in score.alt
    assert f"strong: {means[1]:.3g} at n 1" in score.alt
    assert len(curve.rows) <= 12
    assert curve.alt.count(" at step ") == 4  # the ends of both lines
    assert broken.error == "RuntimeError: <script>alert(1)</script>"
    assert (own.rows, own.error) == ((), "")
    assert "could not be drawn" in read(site / "papers/sample.html").text
    picture = Image.open(site / "papers" / "sample-1.png")
    assert picture.size == score.size == (1200, 864)


def test_pictures_are_the_same_from_the_same_evidence(evidence_of_sample):
    figures = load_study("sample_study").figures[:2]
    study = Study("sample", [], [], figures)
    assert pictures(study, evidence_of_sample) == pictures(study, evidence_of_sample)


def test_numbers_of_many_lines_stand_below_each_other(evidence_of_sample):
    cells = [
        {**entry, "cell": {**entry["cell"], "method": f"m{i}"}}
        for entry in evidence_of_sample["cells"]
        for i in range(9)
        if entry["cell"]["method"] == "strong"
    ]
    study = Study("sample", [], [], load_study("sample_study").figures[:1])
    (picture,) = pictures(study, {**evidence_of_sample, "cells": cells})
    assert picture.header == ["n", "1", "2", "3"]
    assert [row[0] for row in picture.rows] == [f"m{i}" for i in range(9)]
    assert picture.alt.count(" at n ") == 18  # the ends of each


def test_figures_of_what_was_not_run_are_left_out(evidence_of_sample):
    study = Study("sample", [], [], load_study("sample_study").figures[:1])
    study.figures[0].experiment, before = "elsewhere", study.figures[0].experiment
    assert pictures(study, evidence_of_sample) == []
    study.figures[0].experiment = before


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # zero, edge, low, effect, high on a line from 10 to 90
        ({"side": "above", "margin": 1.0}, (10.0, 50.0, 70.0, 80.0, 90.0, (50.0, 100))),
        ({"side": "below", "margin": 1.0}, (10.0, 50.0, 70.0, 80.0, 90.0, (0, 50.0))),
        ({"side": "between", "margin": (0.5, 1.0)}, (10.0, 30.0, 70.0, 80.0, 90.0, (30.0, 50.0))),
    ],
)
def test_gauge(values, expected):
    verdict = Verdict(quantity="difference", effect=1.75, low=1.5, high=2.0, **values)
    g = gauge(verdict)
    zero, _, low, effect, high, region = expected
    assert (g.zero, g.low, g.effect, g.high, g.region) == (zero, low, effect, high, region)


def test_gauge_of_ratios_is_logarithmic_and_there_may_be_none():
    g = gauge(Verdict(quantity="ratio", effect=10, low=1, high=100, side="above", margin=1.0))
    assert (g.low, g.effect, g.high) == (10.0, 50.0, 90.0)
    assert gauge(Verdict(quantity="value", effect=1.0, low=0.0, high=2.0)) is None
    assert gauge(Verdict(quantity="difference", effect=1.0)) is None
    point = gauge(Verdict(quantity="value", effect=1.0, low=1.0, high=1.0, side="above", margin=1))
    assert point.low == point.effect == point.high == 10.0


def test_prose():
    prose = parse("One\nquestion?\n\nText\n`here`.\n\n    code  a\n      b\n\n- one\n  on\n- two")
    assert prose.question == "One question?"
    assert prose.measured == (
        Block("text", ("Text `here`.",)),
        Block("code", ("code  a\n  b",)),
        Block("list", ("one on", "two")),
    )
    assert prose.differences == ()
    assert parse("") == parse("  ") == prose_of("no_such_module")


def test_every_study_of_ours_says_how_it_differs():
    for paper in catalogue().papers.values():
        prose = prose_of(paper.study)
        assert prose.question
        assert prose.measured
        assert bool(prose.differences) == (paper.kind == "paper")


@pytest.mark.parametrize("slug", [p.slug for p in catalogue().papers.values() if p.parts])
def test_an_example_runs_as_it_stands(slug, capsys):
    paper = catalogue().get(slug)
    assert f"from {paper.package} import" in paper.example
    exec(paper.example, {})
    assert capsys.readouterr().out
    assert paper.unverified


def test_shipped_pages_have_no_problem(shipped_site):
    for path in (shipped_site / "papers").glob("*.html"):
        text = read(path).text
        assert "could not be drawn" not in text
        assert "There are no figures" not in text
    assert {p.stem for p in (shipped_site / "papers").glob("*.html")} == set(catalogue().papers)


def test_a_report_is_written_over_an_earlier_one(sample, tmp_path):
    paper, _ = sample
    write([paper], tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    write([paper], tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_place_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        write([], tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    done = CliRunner().invoke(cli, ["report", "--store", "mysql://x"])
    assert isinstance(done.exception, UserError)
