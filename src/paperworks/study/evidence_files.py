"""The evidence's files, read without torch: what `list`, `show` and RESULTS.md need."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "evidence"
FORMAT = 1
BY_CHANCE = 0.025
"""How often a claim with no truth in it comes out as reproduced."""

SIGNS = {
    "reproduced": "✓",
    "smaller than stated": "◐",
    "not reproduced": "✗",
    "inconclusive": "?",
    "reported": "·",
}


def read(slug: str, folder: Path = FOLDER) -> dict[str, Any] | None:
    """The published evidence of a paper or face-off, or None."""
    path = folder / f"{slug}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write(evidence: Mapping[str, Any], folder: Path = FOLDER) -> Path:
    """Put evidence in its place, whole or not at all."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{evidence['slug']}.json"
    part = path.with_suffix(".part")
    part.write_text(_layout(evidence))
    os.replace(part, path)
    return path


def _layout(evidence: Mapping[str, Any]) -> str:
    """JSON with a line a cell, which reviews and diffs can read."""
    head = {key: value for key, value in evidence.items() if key != "cells"}
    lines = ",\n".join("  " + json.dumps(cell, allow_nan=False) for cell in evidence["cells"])
    return f'{json.dumps(head, indent=1, allow_nan=False)[:-2]},\n "cells": [\n{lines}\n ]\n}}\n'


def stale(evidence: Mapping[str, Any], fingerprints: Iterable[str]) -> list[str]:
    """The experiments of the evidence whose code is no longer among the study's fingerprints."""
    today = set(fingerprints)
    return [name for name, mark in evidence["fingerprints"].items() if mark not in today]


def score(verdicts: Iterable[str]) -> str:
    """`4 of 6`: how many of the claims with a verdict are reproduced.

    >>> score(["reproduced", "inconclusive", "reported"])
    '1 of 2'
    """
    judged = [verdict for verdict in verdicts if verdict != "reported"]
    return f"{judged.count('reproduced')} of {len(judged)}"


def results_markdown(papers: Mapping[str, Any], folder: Path = FOLDER) -> str:
    """RESULTS.md: every verdict published in `folder`, from the evidence alone."""
    shipped = {slug: evidence for slug in papers if (evidence := read(slug, folder))}
    verdicts = [claim["verdict"] for e in shipped.values() for claim in e["claims"]]
    judged = [verdict for verdict in verdicts if verdict != "reported"]
    kinds = [papers[slug].kind for slug in shipped]
    counts = f"{kinds.count('paper')} paper{'s' * (kinds.count('paper') != 1)}"
    if "faceoff" in kinds:
        counts += f" and {kinds.count('faceoff')} face-off{'s' * (kinds.count('faceoff') > 1)}"
    lines = [
        "# Results",
        "",
        "Generated from `src/paperworks/evidence/` by `paperworks publish`. Every verdict",
        "is at desk scale: minutes on two CPU cores, which is not the paper's scale.",
        "",
        f"{counts}, {len(judged)} claims, {judged.count('reproduced')} reproduced. If",
        f"no claim were true, about {BY_CHANCE * len(judged):.1f} would be reproduced by chance.",
        "",
    ]
    for slug, evidence in shipped.items():
        lines += _paper(papers[slug], evidence)
    return "\n".join(lines)


def _paper(paper: Any, evidence: Mapping[str, Any]) -> list[str]:
    claims, seeds = evidence["claims"], evidence["seeds"]
    link = f"[arXiv:{paper.arxiv}](https://arxiv.org/abs/{paper.arxiv})"
    return [
        f"## {paper.title}",
        f"`{paper.slug}` · {paper.field} · {link if paper.arxiv else 'face-off'} · "
        f"**{score(c['verdict'] for c in claims)} at desk scale** · "
        f"seeds {seeds[0]}–{seeds[-1]} · {evidence['published']}",
        "",
        "| | claim | verdict | measured | margin |",
        "|-|-|-|-|-|",
        *(
            f"| {c['claim']} | {c['text']} | {SIGNS[c['verdict']]} {c['verdict']} | "
            f"{c['sentence']} | {c['margin_owner'] or '–'} |"
            for c in claims
        ),
        "",
    ]
