"""What a page says of a paper, gathered from catalogue, study, evidence and a user's own runs.

Everything here is text and numbers; the templates lay it out and escape it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from paperworks.site.pictures import Picture, pictures
from paperworks.site.prose import Prose, prose_of
from paperworks.study import evidence_files as shipped
from paperworks.study.api import study_of
from paperworks.study.catalogue import Paper
from paperworks.study.claims import Verdict
from paperworks.study.contract import Study
from paperworks.study.errors import UserError
from paperworks.study.fingerprint import fingerprints


@dataclass(frozen=True)
class Found:
    """A verdict as a page shows it: one row, or one for each part of `all_of`.

    Attributes:
        word: the verdict.
        rows: sentences with their gauges.
        origin: of a user's own run the scale and the settings that were changed.
    """

    word: str
    rows: Sequence[tuple[str, Gauge | None]]
    origin: str = ""

    @classmethod
    def of(cls, entry: Mapping[str, Any], origin: str = "") -> Found:
        verdict = Verdict.from_json(entry)
        parts = verdict.parts or [verdict]
        return cls(verdict.verdict, [(part.sentence(), gauge(part)) for part in parts], origin)


@dataclass(frozen=True)
class Gauge:
    """Where interval, effect and the region asked for lie, in percent of a line's length."""

    low: float
    effect: float
    high: float
    region: tuple[float, float] | None
    zero: float | None


@dataclass(frozen=True)
class Claimed:
    """A claim with what was shipped for it and what the user's runs say."""

    id: str
    text: str
    margin: str
    note: str
    shipped: Found | None
    own: Sequence[Found]


@dataclass(frozen=True)
class Settings:
    """An experiment's grid: what varies, what is held, and what each method may tune."""

    experiment: str
    varied: Mapping[str, Sequence[str]]
    held: Mapping[str, str]
    tuning: str = ""
    budgets: Sequence[tuple[str, int, str, str]] = ()


@dataclass(frozen=True)
class Page:
    """Everything about one paper.

    Attributes:
        problem: why its study cannot be imported here; it then has no figures.
        stale: the experiments whose code has changed since the evidence was published.
        score, own_score: "4 of 6", or empty.
    """

    paper: Paper
    evidence: Mapping[str, Any] | None
    prose: Prose
    claims: Sequence[Claimed]
    settings: Sequence[Settings]
    pictures: Sequence[Picture] = ()
    problem: str = ""
    takes_data: bool = False
    stale: Sequence[str] = ()
    score: str = ""
    own_score: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What the search of the index looks through."""
        p = self.paper
        words = (p.slug, p.title, *p.authors, p.year or "", p.venue, p.field, p.summary, *p.parts)
        return " ".join(map(str, words)).casefold()


def page_of(
    paper: Paper, evidence: Mapping[str, Any] | None, own: Iterable[Mapping[str, Any]]
) -> Page:
    """The page of a paper; without evidence, or without its study, it says less and says so."""
    study, problem = _study(paper)
    marks = fingerprints(paper.study).values() if study else ()
    mine = [v for v in own if v["slug"] == paper.slug and v["scale"] != "smoke"]
    verdicts = [entry["verdict"] for entry in evidence["claims"]] if evidence else []
    desk = [v["verdict"] for v in mine if v["scale"] == "desk" and not v["overrides"]]
    return Page(
        paper=paper,
        evidence=evidence,
        prose=prose_of(paper.study),
        claims=_claims(study, evidence, mine),
        settings=_settings(study, evidence),
        pictures=pictures(study, evidence) if study and evidence else (),
        problem=problem,
        takes_data=bool(study and study.data),
        stale=shipped.stale(evidence, marks) if study and evidence else (),
        score=shipped.score(verdicts) if verdicts else "",
        own_score=shipped.score(desk) if desk else "",
        counts={word: verdicts.count(word) for word in shipped.SIGNS if word in verdicts},
    )


def gauge(verdict: Verdict) -> Gauge | None:
    """Where things lie on a line that has room for the interval, the margin and "no effect".

    None without an interval, or with nothing to hold it against.

    >>> gauge(Verdict(effect=1.0, low=0.5, high=1.5, side="above", margin=0.0, quantity="value"))
    Gauge(low=36.67, effect=63.33, high=90.0, region=(10.0, 100), zero=None)
    """
    margin = () if verdict.margin is None else verdict.margin
    edges = margin if isinstance(margin, tuple) else (margin,)
    zero = {"difference": 0.0, "ratio": 1.0}.get(verdict.quantity)
    if verdict.effect is None or verdict.low is None or verdict.high is None:
        return None
    if not edges and zero is None:
        return None
    marks = [verdict.effect, verdict.low, verdict.high, *edges, *([] if zero is None else [zero])]
    scale = math.log if verdict.quantity == "ratio" and min(marks) > 0 else float
    first, last = scale(min(marks)), scale(max(marks))
    width = (last - first) / 80 or 1.0

    def place(mark: float) -> float:
        return round(10 + (scale(mark) - first) / width, 2)

    ends = [place(edge) for edge in edges]
    regions = {"above": lambda: (ends[0], 100), "below": lambda: (0, ends[0])}
    region = regions.get(verdict.side, lambda: (ends[0], ends[1]))() if ends else None
    return Gauge(
        low=place(verdict.low),
        effect=place(verdict.effect),
        high=place(verdict.high),
        region=region,
        zero=None if zero is None else place(zero),
    )


def _study(paper: Paper) -> tuple[Study | None, str]:
    """The study, or why there is none here."""
    try:
        return study_of(paper), ""
    except UserError as error:
        return None, str(error)
    except Exception as error:  # a third party's module: whatever it raises, the page stands
        return None, f"{paper.study} cannot be imported: {type(error).__name__}: {error}"


def _claims(
    study: Study | None, evidence: Mapping[str, Any] | None, own: Sequence[Mapping[str, Any]]
) -> list[Claimed]:
    """The claims in the study's order, then those that only evidence or own runs know."""
    written = {claim.id: claim for claim in study.claims} if study else {}
    shipped_ones = {entry["claim"]: entry for entry in evidence["claims"]} if evidence else {}
    run = {entry["claim"]: entry for entry in own}
    found = []
    for id in {**written, **shipped_ones, **run}:
        claim, entry = written.get(id), shipped_ones.get(id)
        source = entry or run.get(id) or {}
        found.append(
            Claimed(
                id=id,
                text=source.get("text") or (claim.text if claim else ""),
                margin=source.get("margin_owner") or (claim.margin if claim else ""),
                note=source.get("note") or (claim.note if claim else ""),
                shipped=Found.of(entry) if entry else None,
                own=[
                    Found.of(v, " ".join(filter(None, (f"{v['scale']} scale", v["overrides"]))))
                    for v in own
                    if v["claim"] == id
                ],
            )
        )
    return found


def _settings(study: Study | None, evidence: Mapping[str, Any] | None) -> list[Settings]:
    """The desk-scale grid of each experiment, with what tuning chose where there is evidence."""
    entries = evidence["cells"] if evidence else []
    if study and not entries:
        entries = [
            {"experiment": experiment.name, "cell": cell, "tuned": {}}
            for experiment in study
            for cell in experiment.cells("desk")
        ]
    return [
        _of_experiment(name, [e for e in entries if e["experiment"] == name], study)
        for name in dict.fromkeys(entry["experiment"] for entry in entries)
    ]


def _of_experiment(
    name: str, entries: Sequence[Mapping[str, Any]], study: Study | None
) -> Settings:
    values: dict[str, dict[str, None]] = {}
    for entry in entries:
        for key, value in entry["cell"].items():
            values.setdefault(key, {})[_said(value)] = None
    varied = {key: list(found) for key, found in values.items() if len(found) > 1}
    held = {key: next(iter(found)) for key, found in values.items() if len(found) == 1}
    experiment = next((e for e in study or () if e.name == name), None)
    if experiment is None or experiment.tune is None:
        return Settings(name, varied, held)
    tune = experiment.tune
    budgets = []
    for method in experiment.methods:
        candidates = tune.candidates(method)
        tried = {key: [_said(c[key]) for c in candidates] for c in candidates for key in c}
        chosen = [
            _pairs(e["tuned"]) for e in entries if e["cell"].get("method") == method and e["tuned"]
        ]
        ranges = "; ".join(f"{key} {', '.join(dict.fromkeys(v))}" for key, v in tried.items())
        budgets.append((method, len(candidates), ranges, " or ".join(dict.fromkeys(chosen))))
    best = "highest" if tune.higher else "lowest"
    return Settings(name, varied, held, f"{best} mean {tune.by} on seeds 90–92", budgets)


def _pairs(tuned: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_said(value)}" for key, value in tuned.items())


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
