"""Evidence: what the desk-scale verdicts come from, one JSON file a paper, in the package.

It holds every metric of every seed, the tuned choices, the verdicts, the environment and the code's
fingerprints, so that a reader can draw, doubt and repeat what the page says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import Any

from paperworks.study.claims import Verdict, seeds_needed
from paperworks.study.contract import Setting
from paperworks.study.errors import UserError
from paperworks.study.evidence_files import FORMAT, stale
from paperworks.study.plan import FIRST_BLOCK, Plan
from paperworks.study.results import Results
from paperworks.study.terms import Record, Table


def of(results: Results, blocks: Sequence[int]) -> dict[str, Any]:
    """The evidence that these results are.

    Raises:
        UserError: a trial failed.
    """
    if results.failures:
        raise UserError(
            f"{results.slug}: {len(results.failures)} trials failed, nothing is published"
        )
    plan = results.plan
    cells = []
    for experiment in plan.study:
        for cell in plan.cells[experiment.name]:
            rows = [
                results.trials[experiment.name, cell.canonical(), seed].metrics
                for seed in plan.request.seeds
            ]
            tuned = results.choices.get((experiment.name, cell.canonical()), Setting())
            cells.append(
                {
                    "experiment": experiment.name,
                    "cell": dict(cell),
                    "tuned": dict(tuned),
                    "metrics": {name: [row[name] for row in rows if row] for name in rows[0] or {}},
                }
            )
    return {
        "format": FORMAT,
        "slug": plan.slug,
        "published": date.today().isoformat(),
        "scale": plan.request.scale,
        "seeds": list(plan.request.seeds),
        "blocks": list(blocks),
        "stamp": plan.stamp,
        "environment": plan.environment,
        "fingerprints": plan.fingerprints,
        "claims": [v.to_json() | {"sentence": v.sentence()} for v in results.claims()],
        "cells": cells,
    }


def choices_of(evidence: Mapping[str, Any]) -> dict[tuple[str, str], Setting]:
    """What tuning chose, by experiment and canonical cell."""
    return {
        (entry["experiment"], Setting(entry["cell"]).canonical()): Setting(entry["tuned"])
        for entry in evidence["cells"]
        if entry["tuned"]
    }


def table_of(evidence: Mapping[str, Any]) -> Table:
    """The evidence's trials, as claims and figures read them."""
    return Table(
        Record(
            experiment=entry["experiment"],
            cell=Setting(entry["cell"]),
            seed=seed,
            metrics={name: values[i] for name, values in entry["metrics"].items()},
            tuned=Setting(entry["tuned"]),
        )
        for entry in evidence["cells"]
        for i, seed in enumerate(evidence["seeds"])
    )


def next_seeds(
    development: Results, evidence: Mapping[str, Any] | None
) -> tuple[tuple[int, ...], list[int]]:
    """The seeds to publish on and the blocks used so far, this one included.

    Ten seeds, or 20 or 30 where the development seeds' spread says that ten cannot decide. The code
    that has been published keeps its seeds; changed code gets the next hundred.
    """
    if evidence is not None and not stale(evidence, development.plan.fingerprints.values()):
        return tuple(evidence["seeds"]), list(evidence["blocks"])
    blocks = list(evidence["blocks"]) if evidence is not None else []
    first = blocks[-1] + 100 if blocks else FIRST_BLOCK
    plan = development.plan
    count = max(
        seeds_needed(claim, development.table, plan.grids, plan.request.seeds)
        for claim in plan.claims
    )
    return tuple(range(first, first + count)), [*blocks, first]


def differing(results: Results, evidence: Mapping[str, Any]) -> list[str]:
    """Metrics that are not, digit for digit, what the evidence says; timings are exempt."""
    found = []
    shipped = {
        (entry["experiment"], Setting(entry["cell"]).canonical()): entry["metrics"]
        for entry in evidence["cells"]
    }
    for (name, cell, seed), trial in results.trials.items():
        theirs = shipped.get((name, cell))
        if theirs is None or seed not in evidence["seeds"] or trial.metrics is None:
            continue
        at = evidence["seeds"].index(seed)
        found += [
            f"{name} {cell} seed {seed}: {metric} {trial.metrics.get(metric)!r}, was {values[at]!r}"
            for metric, values in theirs.items()
            if not metric.endswith("_seconds") and trial.metrics.get(metric) != values[at]
        ]
    return found


def verify(results: Results, evidence: Mapping[str, Any]) -> list[str]:
    """What speaks against the evidence: failed trials, changed metrics, shifted effects.

    In an environment of the same stamp metrics must be equal. Elsewhere an effect may move: it is a
    problem when the seed-paired shift from the shipped effect excludes zero and is larger than half
    of the shipped interval's width.
    """
    failed = [f"{t.experiment} {t.setting} seed {t.seed} failed" for t in results.failures]
    if results.plan.stamp == evidence["stamp"]:
        return failed + differing(results, evidence)
    ours, theirs = results.table, table_of(evidence)
    seeds = [seed for seed in results.plan.request.seeds if seed in evidence["seeds"]]
    shipped = {entry["claim"]: Verdict.from_json(entry) for entry in evidence["claims"]}
    return failed + [
        f"{claim.id}: {problem}"
        for claim in results.plan.claims
        if claim.id in shipped
        and (problem := claim.shift(ours, theirs, results.plan.grids, seeds, shipped[claim.id]))
    ]


def restamped(evidence: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The same evidence under the fingerprints of code that gives the same metrics."""
    return {**evidence, "fingerprints": plan.fingerprints}
