"""The command line: what it prints, what it refuses, what it does not import."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paperworks.cli import main

ROOT = Path(__file__).parent.parent


def paperworks(*words, **kwargs):
    command = [sys.executable, "-m", "paperworks.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **kwargs)


def test_list_names_the_papers():
    done = paperworks("list", "--json")
    assert done.returncode == 0
    rows = json.loads(done.stdout)
    assert {"flexround", "relreps"} <= {row["slug"] for row in rows}


def test_list_searches_and_filters():
    assert "relreps" in paperworks("list", "--search", "latent space").stdout
    assert "relreps" not in paperworks("list", "--field", "compress").stdout
    assert "no paper matches" in paperworks("list", "--search", "zebra").stdout


def test_show_says_how_to_import():
    done = paperworks("show", "relreps")
    assert done.returncode == 0
    assert "from paperworks.representation import" in done.stdout


@pytest.mark.parametrize("words", [["list"], ["show", "relreps"], ["--help"], ["run", "--help"]])
def test_heavy_libraries_are_not_imported(words):
    code = (
        "import sys; from paperworks.cli import cli\n"
        f"try: cli({words!r}, standalone_mode=False)\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'sqlalchemy', 'numpy', 'pandas', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "flexrond"], "did you mean flexround"),
        (["show", "relrep"], "did you mean relreps"),
        (["lst"], "did you mean list"),
        (["list", "--field", "compres"], "did you mean compress"),
        (["run", "relreps", "--scale", "dsk"], "did you mean desk"),
        (["run", "relreps", "--claims", "C99"], "unknown claim"),
        (["run", "relreps", "--set", "ancors=3"], "unknown setting"),
        (["run", "relreps", "--set", "anchors"], "expected name=value"),
        (["run", "relreps", "--set", "data=digts"], "did you mean digits"),
        (["run", "relreps", "--set", "data=folder:./nowhere"], "nowhere"),
        (["run", "relreps", "--seeds", "many"], "expected a number or a range"),
        (["run", "relreps", "--seeds", "0"], "at least 1"),
        (["run", "relreps", "--add", "mine=no_such_module:f"], "no module named"),
        (["run", "relreps", "--store", "mysql://x"], "mysql"),
        (["run", "relreps", "--device", "cuda:77"], "cuda"),
        (["run"], "Missing argument"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["paperworks", *words])  # in this process, which has torch
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        main()
    signal.signal(signal.SIGTERM, before)
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert len(error.strip().splitlines()) == 1, error
    assert said in error


def test_dry_run_stores_nothing(tmp_path):
    store = tmp_path / "store.sqlite"
    done = paperworks("run", "relreps", "--scale", "smoke", "--dry-run", "--store", str(store))
    assert done.returncode == 0
    assert "trials to run, 0 stored" in done.stdout
    assert "network" not in done.stderr


def test_what_needs_the_network_is_told_before(tmp_path):
    store = tmp_path / "store.sqlite"
    done = paperworks("run", "relreps", "--scale", "full", "--dry-run", "--store", str(store))
    assert "needs the network for hub:ILSVRC/imagenet-1k" in done.stderr


def test_run_prints_verdicts_and_saves_figures(tmp_path):
    words = ["--scale", "smoke", "--jobs", "1", "--figures", str(tmp_path / "figures")]
    done = paperworks("run", "relreps", *words)
    assert done.returncode == 0, done.stderr
    assert "C1" in done.stdout
    assert "inconclusive" in done.stdout
    assert list((tmp_path / "figures" / "relreps").glob("*.png"))
    again = paperworks("run", "relreps", *words, "--json")
    assert json.loads(again.stdout)[0]["slug"] == "relreps"


def test_a_foreign_store_is_refused_and_untouched(tmp_path):
    store = tmp_path / "store.sqlite"
    store.write_text("these are my notes, not a database\n" * 40)
    before = store.read_bytes()
    done = paperworks("run", "relreps", "--scale", "smoke", "--store", str(store))
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert store.read_bytes() == before
