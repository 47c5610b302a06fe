"""`paperworks new` in a copy of the checkout: what it writes passes as it comes."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from paperworks.study.catalogue import FIELDS

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
SHORT, LONG = "x9", "abcdefgh_jklmnop_rst"
"""The slugs that are made: the lines that hold them are short, and as long as they may be."""
EMPTY = [field for field in FIELDS if not (ROOT / "src" / "paperworks" / field).exists()][-1]
"""A field without papers."""


class Checkout:
    """A copy of the source, whose command line and tools are run in it."""

    def __init__(self, folder, *names):
        self.root = folder
        for name in names:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, folder / name)

    def run(self, *command):
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
        env |= {"PYTHONPATH": str(self.root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            command, cwd=self.root, env=env, capture_output=True, text=True, timeout=300
        )

    def new(self, *words):
        return self.run(sys.executable, "-m", "paperworks.cli", "new", *words)

    def texts(self):
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {path.relative_to(self.root): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The copy; tests leave it as it is, or refuse to change it."""
    folder = tmp_path_factory.mktemp("checkout")
    return Checkout(folder, "src", "tests", "pyproject.toml", "RESULTS.md")


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A copy with two new papers, one of them the first of its field; and what was written."""
    folder = tmp_path_factory.mktemp("grown")
    copy = Checkout(folder, "src", "tests", "pyproject.toml", "RESULTS.md")
    before, written = copy.texts(), []
    for words in (
        [SHORT, "--field", "wide", "--title", 'Of "γ" \\ and\n <b>more</b>'],
        [LONG, "--field", EMPTY],
    ):
        done = copy.new(*words)
        assert done.returncode == 0, done.stderr
        *paths, last = done.stdout.splitlines()
        assert f"paperworks run {words[0]} --dev" in last
        written += map(Path, paths)
    changed = {path for path, text in copy.texts().items() if before.get(path) != text}
    assert changed == set(written)
    return copy, sorted(changed)


def test_five_places_but_the_evidence_are_there(grown):
    copy, written = grown
    own = {
        Path(f"{place}{slug}.py")
        for slug, field in ((SHORT, "wide"), (LONG, EMPTY))
        for place in (f"src/paperworks/{field}/", "src/paperworks/studies/", f"tests/{field}/test_")
    }
    assert own <= set(written)
    assert all("TODO" in (copy.root / path).read_text() for path in own)
    entries = tomllib.loads((copy.root / "src/paperworks/papers.toml").read_text())["paper"]
    first, second = entries[-2:]
    assert (first["slug"], first["title"]) == (SHORT, 'Of "γ" \\ and <b>more</b>')
    assert (second["slug"], second["field"]) == (LONG, EMPTY)


def test_a_new_field_gets_its_room(grown):
    copy, written = grown
    room = Path("src/paperworks", EMPTY)
    assert {room / "__init__.py", room / "__init__.pyi", Path("pyproject.toml")} <= set(written)
    docstring = ast.get_docstring(ast.parse((copy.root / room / "__init__.py").read_text()))
    assert docstring == f"{FIELDS[EMPTY][0].upper()}{FIELDS[EMPTY][1:]}."
    project = tomllib.loads((copy.root / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    (rooms,) = (layer.split(" | ") for layer in layers if "paperworks.wide" in layer)
    assert f"paperworks.{EMPTY}" in rooms
    assert rooms == [f"paperworks.{field}" for field in FIELDS if f"paperworks.{field}" in rooms]


def test_exports_stay_sorted(grown):
    copy, _ = grown
    lines = (copy.root / "src/paperworks/wide/__init__.pyi").read_text().splitlines()
    assert lines[-1] == f"from .{SHORT} import {SHORT}_mean as {SHORT}_mean"
    assert lines[:-1] == (ROOT / "src/paperworks/wide/__init__.pyi").read_text().splitlines()


def test_it_passes_lint(grown):
    copy, written = grown
    code = [str(path) for path in written if path.suffix in (".py", ".pyi")]
    assert len(code) == 9
    for command in (["ruff", "check"], ["ruff", "format", "--check"]):
        done = copy.run(BIN / command[0], *command[1:], *code)
        assert done.returncode == 0, done.stdout
    done = copy.run(BIN / "lint-imports", "--no-cache")
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_it_passes_the_type_checker(grown):
    copy, _ = grown
    done = copy.run(BIN / "mypy", "--cache-dir", os.devnull)
    assert done.returncode == 0, done.stdout


def test_it_passes_the_tests(grown):
    """Its own, those of the house and of every study, and its example."""
    copy, _ = grown
    where = [
        "tests/test_house.py",
        "tests/studies/test_every_study.py",
        f"tests/wide/test_{SHORT}.py",
        f"tests/{EMPTY}/test_{LONG}.py",
        f"src/paperworks/wide/{SHORT}.py",
        f"src/paperworks/{EMPTY}/{LONG}.py",
    ]
    only = f"{SHORT} or {LONG} or catalogue or results_follow"
    done = copy.run(sys.executable, "-m", "pytest", "-v", *where, "-k", only)
    assert done.returncode == 0, done.stdout
    for slug in (SHORT, LONG):
        for test in ("places_agree", "runs_at_smoke_scale", "same_metrics_in_another_process"):
            assert f"test_{test}[{slug}] PASSED" in done.stdout
        assert re.search(rf"::paperworks\.\w+\.{slug}\.{slug}_mean PASSED", done.stdout)
        assert f"test_{slug}.py::test_values_by_hand PASSED" in done.stdout


@pytest.mark.parametrize("place", range(2))
def test_its_worked_example_runs(grown, place):
    copy, _ = grown
    entries = tomllib.loads((copy.root / "src/paperworks/papers.toml").read_text())["paper"]
    done = copy.run(sys.executable, "-c", entries[-1 - place]["example"])
    assert done.stdout.startswith("tensor("), done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["flexround", "--field", "wide"], "'flexround' is in the catalogue already"),
        (["wide_faceoff", "--field", "wide"], "'wide_faceoff' is in the catalogue already"),
        (["kernels", "--field", "wide"], "in use: there is src/paperworks/wide/kernels.py"),
        (["every_study", "--field", "studies"], "unknown field 'studies'"),
        (["mine", "--field", "graph"], "unknown field 'graph': did you mean graphs"),
        (["Mine", "--field", "wide"], "'Mine' cannot be a slug"),
        (["../mine", "--field", "wide"], "'../mine' cannot be a slug"),
        (["class", "--field", "wide"], "'class' cannot be a slug"),
        ([f"{LONG}u", "--field", "wide"], "cannot be a slug: at most 20"),
        (["mine"], "Missing option '--field'"),
    ],
)
def test_what_cannot_be_is_one_line_and_nothing_is_written(checkout, words, said):
    before = checkout.texts()
    done = checkout.new(*words)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert said in done.stderr
    assert checkout.texts() == before


def test_outside_a_checkout_it_says_where_papers_go(tmp_path):
    installed = Checkout(tmp_path, "src")
    before = installed.texts()
    done = installed.new("mine", "--field", "wide")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "checkout" in done.stderr
    assert "CONTRIBUTING.md" in done.stderr
    assert installed.texts() == before
