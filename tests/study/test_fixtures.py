"""Fixtures: computed once, read whole, and computed again when anything they depend on changes."""

import os
import subprocess
import sys

import pytest
import torch

from paperworks.study.fixtures import isolated_generators
from paperworks.study.run import Run, Streams
from paperworks.study.worker import load_method

BUILD = """
    def build(streams, size=3, name="x"):
        note("built", size, name, streams.seed)
        network = torch.nn.Linear(size, size)
        drawn = torch.rand(size, generator=streams.rng("split"), dtype=torch.float64)
        return {
            "state": dict(network.state_dict()),
            "list": [drawn, torch.arange(size).bool(), drawn.bfloat16()],
            "plain": {"rate": 0.1, "none": None, "name": name, "yes": True, "big": 2**60},
            "transposed": torch.arange(6).view(2, 3).T,
            "empty": {},
        }
"""


def same(a, b):
    if torch.is_tensor(a):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def files(project):
    return sorted((project.folder / "cache" / "fixtures").glob("*.safetensors"))


@pytest.fixture
def build(project):
    return load_method(f"{project.write(BUILD)}:build")


def test_a_fixture_is_computed_once_and_read_bit_for_bit(project, build):
    first = Run(100).fixture(build)
    second = Run(101).fixture(build)  # every seed shares it, unless it passes its own
    assert same(first, second)
    assert project.logged() == ["built 3 x 0"]
    assert len(files(project)) == 1
    with isolated_generators(5):
        direct = build(Streams(0))
    for name in ("list", "plain", "transposed", "empty"):  # the weights follow the global generator
        assert same(first[name], direct[name])


def test_a_trial_that_writes_into_a_fixture_harms_nobody(project, build):
    kept = Run(100).fixture(build)
    kept["list"][0].zero_()
    assert Run(100).fixture(build)["list"][0].any()


def test_a_fixture_does_not_depend_on_what_was_drawn_before(project, build):
    first = Run(100).fixture(build)
    files(project)[0].unlink()
    with isolated_generators(1):
        torch.rand(17)
        before = torch.get_rng_state()
        assert same(Run(100).fixture(build), first)
        assert torch.equal(torch.get_rng_state(), before)
    assert len(project.logged()) == 2


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_a_file_cut_short_is_built_again(project, build, kept):
    first = Run(100).fixture(build)
    (file,) = files(project)
    content = file.read_bytes()[:kept]
    file.unlink()  # `first` is mapped into memory from the file: not to be cut under its feet
    file.write_bytes(content)
    assert same(Run(100).fixture(build), first)
    assert len(project.logged()) == 2
    Run(100).fixture(build)
    assert not project.logged()


def test_other_arguments_seeds_and_data_are_other_fixtures(project, build):
    Run(100).fixture(build)
    Run(100).fixture(build, size=2)
    Run(100).fixture(build, size=2, name="y")
    Run(100).fixture(build, seed=1)
    Run(100, data_digest="theirs").fixture(build)
    assert len(project.logged()) == len(files(project)) == 5
    Run(100).fixture(build, name="y", size=2)
    assert not project.logged()


def test_a_changed_source_is_another_fixture(project, build):
    name = build.__module__
    first = Run(100).fixture(build)
    file = project.folder / f"{name}.py"
    file.write_text(file.read_text().replace('"rate": 0.1', '"rate": 0.2'))
    read = (
        f"import {name} as m; from paperworks.study.run import Run; print(Run(1).fixture(m.build))"
    )
    env = {**os.environ, "PYTHONPATH": str(project.folder)}
    told = subprocess.run([sys.executable, "-c", read], env=env, capture_output=True, text=True)
    assert "'rate': 0.2" in told.stdout, told.stderr
    assert first["plain"]["rate"] == 0.1
    assert len(project.logged()) == len(files(project)) == 2


def test_two_processes_at_once_build_once(project):
    module = project.write(
        """
        def slow(streams):
            note("built")
            time.sleep(0.5)
            return torch.rand(3, generator=streams.rng("x"))
        """
    )
    script = f"""if True:
        import os, pathlib, sys, time
        import {module} as m
        from paperworks.study.run import Run
        here = pathlib.Path({str(project.folder)!r})
        (here / f"ready-{{os.getpid()}}").touch()
        while len(list(here.glob("ready-*"))) < 2:
            time.sleep(0.01)
        print(Run(1).fixture(m.slow).tolist())
    """
    env = {**os.environ, "PYTHONPATH": str(project.folder)}
    both = [
        subprocess.Popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        one, other = (process.communicate(timeout=60)[0] for process in both)
    finally:
        for process in both:
            process.kill()
    assert one
    assert one == other
    assert project.logged() == ["built"]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("{1: torch.zeros(1)}", "strings as keys"),
        ("torch.nn.Linear(1, 1)", "not Linear"),
        ("[float('nan')]", "JSON"),
    ],
)
def test_what_cannot_be_kept_is_refused(project, returned, message):
    module = project.write(f"def odd(streams):\n    return {returned}\n")
    with pytest.raises((TypeError, ValueError), match=message):
        Run(1).fixture(load_method(f"{module}:odd"))
    assert not files(project)


def test_arguments_are_plain_values(project, build):
    with pytest.raises(TypeError, match="arguments must be JSON values"):
        Run(1).fixture(build, size=torch.ones(1))
    assert not project.logged()


def test_a_fixture_must_not_draw_from_the_shared_generators(project):
    module = project.write("def greedy(streams):\n    return float(np.random.rand())\n")
    with pytest.raises(RuntimeError, match=r"draw from run\.rng"):
        Run(1).fixture(load_method(f"{module}:greedy"))
