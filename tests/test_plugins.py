"""A package of somebody else's adds papers: found without being imported, listed, run, reported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import zipfile

import pytest

from paperworks.study.catalogue import catalogue, other_sources, read_catalogue

ENTRIES = """
[[paper]]
slug = "doubling"
title = "Doubling <em>considered</em> useful"
authors = ["A. Author"]
year = 2026
venue = "preprint"
arxiv = "2601.00001"
field = "compress"
summary = "Doubles a number."
parts = ["double"]
package = "tiny_papers.parts"
study = "tiny_papers.study"

[[faceoff]]
slug = "doublers"
title = "Who doubles best"
field = "generative"
summary = "Puts doublers beside each other."
study = "tiny_papers.duel"
"""

STUDY = """
import torch
from paperworks.study import Claim, Experiment, Study, bars, grid, higher
from tiny_papers.parts import double


def once(x):
    return x


def trial(setting, run):
    x = torch.rand(1, generator=run.rng("split")).item() + setting.least
    run.witness(split=[x])
    return {{"value": run.methods[setting.method](x)}}


values = Experiment(
    trial,
    {{"once": once, "double": double}},
    smoke=grid(least=1.0), desk=grid(least=1.0), full=grid(least=1.0),
)
value = values.metric("value")
study = Study(
    "{slug}",
    [values],
    [Claim("C1", "Doubling is more", higher(value("double"), value("once")), margin="ours")],
    [bars(x="least", y="value")],
)
"""

PACKAGE = {
    "tiny_papers/__init__.py": "import os\nopen(os.environ['TINY_IMPORTED'], 'w').close()\n",
    "tiny_papers/parts.py": 'def double(x):\n    """2x."""\n    return 2 * x\n',
    "tiny_papers/study.py": STUDY.format(slug="doubling"),
    "tiny_papers/duel.py": STUDY.format(slug="doublers"),
    "tiny_papers/papers.toml": ENTRIES,
}


def metadata(value, name="tiny-papers"):
    """What an installer leaves of a distribution, with one entry point."""
    folder = f"{name.replace('-', '_')}-1.0.dist-info"
    return {
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{folder}/entry_points.txt": f"[paperworks.papers]\npapers = {value}\n",
    }


def write(folder, files):
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))


class Installed:
    """A place where packages are installed, and the command line that sees it."""

    def __init__(self, folder):
        self.folder, self.mark = folder / "site", folder / "imported"
        self.env = {
            **os.environ,
            "PYTHONPATH": str(self.folder),
            "PAPERWORKS_STORE": str(folder / "store.sqlite"),
            "TINY_IMPORTED": str(self.mark),
        }

    def __call__(self, *words, code=0):
        """What the command line prints; with an exit code, what it says of the mistake."""
        command = [sys.executable, "-m", "paperworks.cli", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=self.env)
        assert done.returncode == code, done.stderr
        return done.stderr if code else done.stdout


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The package as a wheel, installed by pip."""
    folder = tmp_path_factory.mktemp("tiny")
    files = {**PACKAGE, **metadata("tiny_papers")}
    record = "tiny_papers-1.0.dist-info/RECORD"
    files[record] = "".join(f"{name},,\n" for name in [*files, record])
    wheel = folder / "tiny_papers-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    installed = Installed(folder)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, "--target", str(installed.folder), str(wheel)], check=True, timeout=120)
    return installed


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that Python imports from in this process, too."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TINY_IMPORTED", str(tmp_path / "imported"))
    return tmp_path


def test_it_is_listed_and_shown_without_being_imported(tiny):
    tiny.mark.unlink(missing_ok=True)
    rows = {row["slug"]: row for row in json.loads(tiny("list", "--json"))}
    assert rows["doubling"]["field"] == "compress"
    assert {"doubling", "doublers", "relreps"} <= rows.keys()
    assert "doubling" in tiny("list", "--search", "doubles a number")
    shown = tiny("show", "doubling")
    assert "A. Author; preprint; arXiv:2601.00001" in shown
    assert "from tiny_papers.parts import double\n" in shown
    assert not tiny.mark.exists()


def test_a_faceoff_shows_no_paper(tiny):
    title, blank, summary, *_ = tiny("show", "doublers").splitlines()
    assert (title, blank, summary) == ("Who doubles best", "", "Puts doublers beside each other.")
    assert "import" not in tiny("show", "doublers")


def test_it_runs_and_its_results_are_listed(tiny, tmp_path):
    said = tiny("run", "doubling", "--dev", "--jobs", "0", "--figures", str(tmp_path))
    assert "reproduced" in said
    assert list((tmp_path / "doubling").glob("*.png"))
    assert tiny.mark.exists()
    rows = {row["slug"]: row for row in json.loads(tiny("list", "--json"))}
    assert rows["doubling"]["yours"] == "1 of 1"


def test_a_faceoff_runs_by_its_field_with_the_options_of_run(tiny):
    words = ["--dev", "--jobs", "0", "--seeds", "3", "--set", "least=2.0", "--json"]
    (results,) = json.loads(tiny("faceoff", "generative", *words))
    assert results["slug"] == "doublers"
    assert {trial["seed"] for trial in results["trials"]} == {0, 1, 2}
    assert all(trial["setting"]["least"] == 2.0 for trial in results["trials"])


def test_its_evidence_is_published_to_its_own_folder(tiny):
    said = tiny("publish", "doubling", "doublers", "--jobs", "0")
    folder = tiny.folder / "tiny_papers" / "evidence"
    assert {path.name for path in folder.iterdir()} == {"doubling.json", "doublers.json"}
    assert str(folder / "doubling.json") in said
    rows = {row["slug"]: row for row in json.loads(tiny("list", "--json"))}
    assert rows["doubling"]["shipped"] == rows["doublers"]["shipped"] == "1 of 1"
    assert "C1   ✓ reproduced" in tiny("show", "doubling")
    assert "doubling: agrees" in tiny("verify", "doubling", "--jobs", "0")
    assert tiny("recheck", "doublers") == "doublers: fresh\n"


def test_it_is_reported(tiny, tmp_path):
    tiny("report", "--out", str(tmp_path))
    pages = "\n".join(path.read_text() for path in tmp_path.rglob("*.html"))
    assert "Doubling &lt;em&gt;considered&lt;/em&gt; useful" in pages
    assert "from tiny_papers.parts import double" in pages
    assert "Who doubles best" in pages


def test_a_field_without_a_faceoff_is_one_line(tiny):
    said = tiny("faceoff", "vision", code=2)
    fields = "compress, representation, wide, generative"
    assert said == f"paperworks: vision has no face-off yet: choose from {fields}\n"


def test_a_development_install_is_found(tmp_path):
    """pip install -e leaves the metadata and a .pth file with the path of the source."""
    installed = Installed(tmp_path)
    write(tmp_path / "source", PACKAGE)
    write(installed.folder, {**metadata("tiny_papers:papers.toml"), "tiny.pth": "../source\n"})
    (installed.folder / "tiny.pth").write_text(f"{tmp_path / 'source'}\n")
    code = (
        f"import site; site.addsitedir({str(installed.folder)!r})\n"
        "from paperworks.study.catalogue import catalogue\n"
        "print(catalogue().get('doubling').evidence)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=installed.env
    )
    assert done.stdout.strip() == str(tmp_path / "source" / "tiny_papers" / "evidence")
    assert not installed.mark.exists()


def test_ours_win_and_the_other_is_named(site):
    files = {
        "tiny_papers/__init__.py": "",
        "tiny_papers/parts.py": "",
        "tiny_papers/study.py": "",
        "tiny_papers/more.toml": ENTRIES.replace('"doubling"', '"relreps"').replace(".duel", ""),
        **metadata("tiny_papers:more.toml"),
    }
    write(site, files)
    catalogue.cache_clear()
    try:
        found = catalogue()
    finally:
        catalogue.cache_clear()
    assert found.get("relreps").distribution == "paperworks"
    assert found.get("doublers").distribution == "tiny-papers"
    assert found.problems == [
        "tiny-papers, more.toml, paper 'relreps': another entry has this slug"
    ]


@pytest.mark.parametrize("value", ["nowhere", "nowhere:papers.toml", "module"])
def test_an_entry_point_that_names_no_package_is_said(site, value):
    write(site, {"module.py": "", **metadata(value)})
    sources, problems = other_sources()
    assert sources == []
    assert problems == [f"tiny-papers: its entry point names no package: {value.split(':')[0]!r}"]


def test_a_malformed_entry_point_is_said(monkeypatch):
    def unreadable(group):
        raise ValueError("Invalid object reference", ":papers.toml")

    monkeypatch.setattr("paperworks.study.catalogue.entry_points", unreadable)
    sources, (problem,) = other_sources()
    assert sources == []
    assert ":papers.toml" in problem


def test_a_catalogue_that_is_not_there_is_said(site):
    write(site, {"tiny_papers/__init__.py": "", **metadata("tiny_papers")})
    sources, problems = other_sources()
    assert problems == []
    (line,) = read_catalogue(sources).problems
    assert line.startswith("tiny-papers, papers.toml: ")


def test_a_missing_dependency_names_their_extra(site):
    """The command is theirs, not ours."""
    files = {
        "tiny_papers/__init__.py": "",
        "tiny_papers/study.py": "import a_package_that_nobody_has",
        "tiny_papers/papers.toml": ENTRIES.replace("[[faceoff]]", 'extras = ["x"]\n[[faceoff]]', 1),
        **metadata("tiny_papers"),
    }
    write(site, files)
    installed = Installed(site)
    installed.env["PYTHONPATH"] = str(site)
    (site / "tiny_papers" / "parts.py").touch()
    said = installed("run", "doubling", code=2)
    assert said == (
        "paperworks: doubling needs a_package_that_nobody_has: pip install 'tiny-papers[x]'\n"
    )
