"""The catalogue: what is listed, and what is said about entries that cannot be."""

import subprocess
import sys
import textwrap

import pytest

from paperworks.study.catalogue import FIELDS, Catalogue, Paper, Source, catalogue, read_catalogue
from paperworks.study.errors import UserError


def entry(**changes):
    """An entry as TOML; None leaves a key out."""
    values = {
        "slug": '"first"',
        "title": '"The first"',
        "authors": '["A. Author", "B. Author"]',
        "year": "2020",
        "venue": '"preprint"',
        "arxiv": '"2001.00001"',
        "field": '"wide"',
        "summary": '"Says something."',
        "parts": '["Part", "function"]',
        "study": '"paperworks.study.contract"',
        **changes,
    }
    lines = [f"{key} = {value}" for key, value in values.items() if value is not None]
    return "\n".join(["[[paper]]", *lines, ""])


def faceoff(**changes):
    """A face-off as TOML: an entry without what only papers have."""
    paper = dict.fromkeys(["authors", "year", "venue", "arxiv", "parts"])
    return entry(**{"slug": '"duel"', **paper, **changes}).replace("[[paper]]", "[[faceoff]]")


@pytest.fixture
def read(tmp_path):
    def read(*entries, **source):
        path = tmp_path / "papers.toml"
        path.write_text("\n".join(entries))
        return read_catalogue([Source(path, **source)])

    return read


def test_entry_becomes_a_paper(read, tmp_path):
    found = read(entry(extras='["language"]', official='"https://example.org"'))
    assert found == Catalogue(
        {
            "first": Paper(
                slug="first",
                title="The first",
                authors=("A. Author", "B. Author"),
                year=2020,
                venue="preprint",
                arxiv="2001.00001",
                field="wide",
                summary="Says something.",
                parts=("Part", "function"),
                package="paperworks.wide",
                extras=("language",),
                study="paperworks.study.contract",
                official="https://example.org",
                evidence=tmp_path / "evidence",
            )
        },
        [],
    )


def test_study_is_named_by_the_slug(read):
    assert read(entry(slug='"relreps"', study=None)).papers["relreps"].study == (
        "paperworks.studies.relreps"
    )


def test_faceoff_is_an_entry_without_a_paper(read, tmp_path):
    found = read(faceoff(extras='["language"]'))
    assert found == Catalogue(
        {
            "duel": Paper(
                slug="duel",
                title="The first",
                field="wide",
                summary="Says something.",
                kind="faceoff",
                study="paperworks.study.contract",
                extras=("language",),
                evidence=tmp_path / "evidence",
            )
        },
        [],
    )
    assert found.search("something") == found.faceoffs("wide") == [found.get("duel")]


@pytest.mark.parametrize("key", ["authors", "year", "venue", "arxiv", "parts", "package"])
def test_faceoff_has_nothing_of_a_paper(read, key):
    (line,) = read(faceoff(**{key: '"x"'})).problems
    assert line.startswith(f"papers.toml, faceoff 'duel': unknown key '{key}'")


def test_faceoffs_of_a_field_that_has_none(read):
    found = read(entry(field='"compress"'), faceoff())
    with pytest.raises(UserError, match=r"^compress has no face-off yet: choose from wide$"):
        found.faceoffs("compress")
    with pytest.raises(UserError, match="unknown field 'wid': did you mean wide"):
        found.faceoffs("wid")


def test_another_package_names_its_modules(read):
    """Ours have places of their own in the package; nobody can guess those of others."""
    named = {"package": '"paperworks.study"'}
    assert read(entry(**named), distribution="tiny").papers["first"].distribution == "tiny"
    assert read(entry(**named), distribution="tiny").papers["first"].package == "paperworks.study"
    assert read(faceoff(), distribution="tiny").problems == []
    (line,) = read(entry(), distribution="tiny").problems
    assert line == "tiny, papers.toml, paper 'first': package is missing"
    (line,) = read(entry(**named, study=None), distribution="tiny").problems
    assert line == "tiny, papers.toml, paper 'first': study is missing"
    (line,) = read(entry(package='"tiny.parts"'), distribution="tiny").problems
    assert line == "tiny, papers.toml, paper 'first': there is no module tiny.parts"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"title": None}, "paper 'first': title is missing"),
        ({"slug": None}, "paper None: slug is missing"),
        ({"authors": "[]"}, "paper 'first': authors is missing"),
        ({"summary": '""'}, "paper 'first': summary is missing"),
        ({"year": '"2020"'}, "paper 'first': year is '2020', which is no whole number"),
        ({"year": "true"}, "paper 'first': year is True, which is no whole number"),
        ({"authors": '"A. Author"'}, "authors is 'A. Author', which is no list of texts"),
        ({"parts": "[1]"}, "parts is [1], which is no list of texts"),
        ({"extras": '"language"'}, "extras is 'language', which is no list of texts"),
        ({"official": "0"}, "official is 0, which is no text"),
        ({"slug": "[1]"}, "paper [1]: slug is [1], which is no text"),
        ({"slug": '"Flex-Round"'}, "paper 'Flex-Round': a slug is made of a-z"),
        ({"slug": '"2fast"'}, "paper '2fast': a slug is made of a-z"),
        ({"field": '"wid"'}, "paper 'first': unknown field 'wid': did you mean wide"),
        ({"study": '"paperworks.studies.nothing"'}, "no module paperworks.studies.nothing"),
        ({"study": '"nowhere.at.all"'}, "no module nowhere.at.all"),
        ({"autors": "[]"}, "paper 'first': unknown key 'autors': did you mean authors"),
    ],
)
def test_wrong_entry_is_named_and_the_others_work(read, changes, problem):
    found = read(entry(slug='"before"'), entry(**changes), entry(slug='"after"'))
    assert list(found.papers) == ["before", "after"]
    (line,) = found.problems
    assert line.startswith("papers.toml, paper ")
    assert problem in line
    assert "\n" not in line


def test_duplicate_slug_is_named_and_the_first_stays(read):
    found = read(entry(), entry(title='"The second"'), entry(slug='"other"'))
    assert list(found.papers) == ["first", "other"]
    assert found.papers["first"].title == "The first"
    assert found.problems == ["papers.toml, paper 'first': another entry has this slug"]


def test_source_that_cannot_be_read_leaves_the_others(tmp_path):
    good, broken, binary = (tmp_path / name for name in ("good.toml", "bad.toml", "binary.toml"))
    good.write_text(entry())
    broken.write_text("[[paper]\n")
    binary.write_bytes(b"\xff\xfe")
    (tmp_path / "table.toml").write_text("[paper]\nslug = 'one'")
    (tmp_path / "number.toml").write_text("paper = [1]")
    (tmp_path / "other.toml").write_text("[[papers]]\nslug = 'one'")
    bad = ["bad.toml", "missing.toml", "binary.toml", "table.toml", "number.toml", "other.toml"]
    found = read_catalogue([Source(tmp_path / name) for name in [*bad, "good.toml"]])
    assert list(found.papers) == ["first"]
    assert [line.split(":")[0] for line in found.problems] == bad
    assert found.problems[-1].endswith("unknown table 'papers': did you mean paper?")


def test_papers_come_field_by_field_and_faceoffs_after_them(read):
    fields = ["vision", "wide", "compress", "wide"]
    papers = (entry(slug=f'"p{i}"', field=f'"{f}"') for i, f in enumerate(fields))
    found = read(faceoff(), *papers)
    assert list(found.papers) == ["p2", "p1", "p3", "duel", "p0"]


def test_get_names_the_nearest(read):
    found = read(entry(slug='"flexround"'), entry(slug='"relreps"'))
    assert found.get("relreps").slug == "relreps"
    with pytest.raises(UserError, match="unknown paper 'flexrond': did you mean flexround"):
        found.get("flexrond")


def test_search(read):
    found = read(
        entry(slug='"a"', title='"Quantising Networks"', authors='["Émile Zola"]'),
        entry(slug='"b"', summary='"Networks by kernels."', field='"compress"'),
    )

    def slugs(*args, **kwargs):
        return [paper.slug for paper in found.search(*args, **kwargs)]

    assert slugs() == ["b", "a"]
    assert slugs("networks") == ["b", "a"]
    assert slugs("  KERNELS   networks ") == ["b"]
    assert slugs("émile") == ["a"]
    assert slugs("quantising kernels") == []
    assert slugs("networks", field="wide") == ["a"]
    assert slugs(field="vision") == []
    with pytest.raises(UserError, match="unknown field 'grphs': did you mean graphs"):
        found.search("", field="grphs")


def test_shipped_catalogue_has_no_problem():
    shipped = catalogue()
    assert shipped.problems == []
    assert {"flexround", "relreps", "optimal"} <= set(shipped.papers)
    assert catalogue() is shipped


def test_fields_are_the_designs():
    assert list(FIELDS) == [
        "compress", "representation", "training", "layers", "continual", "wide", "incontext",
        "operators", "graphs", "language", "sequences", "generative", "vision",
    ]  # fmt: skip
    assert all(FIELDS.values())


def test_listing_imports_no_study_and_nothing_heavy():
    code = """
        import sys
        from paperworks.study.catalogue import catalogue
        from paperworks.study.store import location, read_verdicts
        assert catalogue().papers
        read_verdicts(location("nothing.sqlite"))
        heavy = {"torch", "numpy", "scipy", "pandas", "sqlalchemy", "rich", "sklearn"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        studies = [name for name in sys.modules if name.startswith("paperworks.studies.")]
        assert not studies, studies
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)
