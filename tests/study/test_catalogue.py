"""The catalogue: what is listed, and what is said about entries that cannot be."""

import subprocess
import sys
import textwrap

import pytest

from paperworks.study.catalogue import FIELDS, Catalogue, Paper, catalogue, read_catalogue
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


@pytest.fixture
def read(tmp_path):
    def read(*entries):
        path = tmp_path / "papers.toml"
        path.write_text("\n".join(entries))
        return read_catalogue([path])

    return read


def test_entry_becomes_a_paper(read):
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
                extras=("language",),
                study="paperworks.study.contract",
                official="https://example.org",
            )
        },
        [],
    )


def test_study_is_named_by_the_slug(read):
    assert read(entry(slug='"relreps"', study=None)).papers["relreps"].study == (
        "paperworks.studies.relreps"
    )


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
    good, bad, binary = (tmp_path / name for name in ("good.toml", "bad.toml", "binary.toml"))
    good.write_text(entry())
    bad.write_text("[[paper]\n")
    binary.write_bytes(b"\xff\xfe")
    (tmp_path / "table.toml").write_text("[paper]\nslug = 'one'")
    (tmp_path / "number.toml").write_text("paper = [1]")
    names = ["bad.toml", "missing.toml", "binary.toml", "table.toml", "number.toml", "good.toml"]
    found = read_catalogue([tmp_path / name for name in names])
    assert list(found.papers) == ["first"]
    assert [line.split(":")[0] for line in found.problems] == names[:-1]


def test_papers_come_field_by_field(read):
    fields = ["vision", "wide", "compress", "wide"]
    found = read(*(entry(slug=f'"p{i}"', field=f'"{f}"') for i, f in enumerate(fields)))
    assert list(found.papers) == ["p2", "p1", "p3", "p0"]


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
