"""What holds for every study: it runs small, twice alike, fairly, and its claims can be decided."""

from __future__ import annotations

import json
from collections import defaultdict

import pytest
from loky import ProcessPoolExecutor

import paperworks
from paperworks.study.catalogue import catalogue
from paperworks.study.worker import load_study

SLUGS = sorted(catalogue().papers)


def trials_of(slug, store):
    """What a smoke run of the study measures, in this process."""
    results = paperworks.run(slug, scale="smoke", jobs=0, store=str(store))
    assert not results.failures, results.failures[0].error
    return results.to_json()["trials"]


@pytest.fixture(scope="module")
def another_process():
    """A process with another hash seed; starting it takes longer than most studies."""
    env = {"PYTHONHASHSEED": "77", "OMP_NUM_THREADS": "1"}
    with ProcessPoolExecutor(1, env=env, timeout=None) as pool:
        yield pool


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """Each study's smoke run, made once."""
    made = {}

    def run(slug):
        if slug not in made:
            store = tmp_path_factory.mktemp(slug) / "store.sqlite"
            made[slug] = paperworks.run(slug, scale="smoke", jobs=0, store=str(store))
        return made[slug]

    return run


@pytest.mark.parametrize("slug", SLUGS)
def test_runs_at_smoke_scale(slug, smoke):
    results = smoke(slug)
    assert not results.failures, results.failures[0].error
    assert {verdict.claim for verdict in results.claims()} == {
        claim.id for claim in results.plan.study.claims
    }
    assert results.figures()


@pytest.mark.parametrize("slug", SLUGS)
def test_same_metrics_in_another_process(slug, smoke, another_process, tmp_path):
    """Another process, another hash seed, warm caches: the same bits, timings apart."""
    first = smoke(slug).to_json()["trials"]
    second = another_process.submit(trials_of, slug, tmp_path / "store.sqlite").result()
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a["setting"] == b["setting"]
        for name in a["metrics"]:
            if not name.endswith("_seconds"):
                assert a["metrics"][name] == b["metrics"][name], (a["setting"], name)


@pytest.mark.parametrize("slug", SLUGS)
def test_competing_methods_share_split_and_weights(slug, smoke):
    groups = defaultdict(list)
    for name, cell, seed, witness in smoke(slug).witnesses():
        setting = json.loads(cell)
        setting.pop("method", None)
        groups[name, json.dumps(setting, sort_keys=True), seed].append(witness)
    assert any(witness for group in groups.values() for witness in group)
    for place, group in groups.items():
        for key in set.intersection(*(set(witness) for witness in group)):
            assert len({witness[key] for witness in group}) == 1, (place, key)


@pytest.mark.parametrize("slug", SLUGS)
@pytest.mark.parametrize("scale", ["desk", "full"])
def test_every_claim_finds_its_cells(slug, scale):
    """At desk scale each claim's cells are in the grid; at full scale no selector is ambiguous."""
    study = load_study(catalogue().get(slug).study)
    grids = {experiment.name: experiment.cells(scale) for experiment in study}
    for claim in study.claims:
        cells = claim.form.cells(grids)
        assert cells or scale == "full", claim.id
