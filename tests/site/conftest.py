"""A paper whose every text tries to be markup, with evidence of its own, and the shipped pages."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from paperworks.cli import cli
from paperworks.site.report import write
from paperworks.study import api, engine, evidence, evidence_files
from paperworks.study.catalogue import Paper
from paperworks.study.plan import Plan, Request
from paperworks.study.store import Store, read_verdicts
from paperworks.study.worker import load_study

EVIL = "<script>alert(1)</script>"

STUDY = '''
    """Which <b>method</b> wins, `<i>` or not?

    One <u>experiment</u>:

    - `trial`: two methods
      on one line
    - nothing else

        code < block

    Differences from the paper. All of `them`, & more.
    """

    import random

    from matplotlib.figure import Figure

    from paperworks.study.claims import Claim, all_of, higher, report, within
    from paperworks.study.contract import Experiment, Study, Tune, grid
    from paperworks.study.figures import bars, drawn, lines


    def trial(setting, run):
        noise = random.Random(run.seed * setting.n).gauss(0, 0.1)
        score = run.methods[setting.method]() * setting.n + noise + setting.lr
        return {"<b>score</b>": score, "curve": [score / (i + 1) for i in range(40)], "loss": score}


    def weak():
        return 1.0


    def strong():
        return 2.0


    def broken(frame):
        raise RuntimeError("<script>alert(1)</script>")


    def own(frame):
        return Figure(figsize=(4, 3))


    trials = Experiment(
        trial,
        {"a<b": weak, "strong": strong},
        *[grid(n=[1, 2, 3], note="<i>held</i>")] * 3,
        name="scores",
        tune=Tune(by="loss", lr=[0.1, 0.01], only={"a<b": {"lr": [0.2, 0.3]}}),
    )
    score = trials.metric("<b>score</b>")
    study = Study(
        "sample",
        [trials],
        [
            Claim("C1", "<script>alert(1)</script> wins", higher(score("strong", n=1), 0.5),
                  margin="ours", note="It is `<b>` for sure."),
            Claim("C2", "It loses", higher(score("a<b", n=1), score("strong", n=1)),
                  margin="paper"),
            Claim("C3", "Both", all_of(within(score("strong", n=2), 4, 0.9),
                                       higher(score("a<b", n=2), 1))),
            Claim("C4", "The mean", report(score("strong", n=3))),
        ],
        figures=[
            bars(x="n", y="<b>score</b>"),
            lines(x="step", y="curve", title="<i>Curves</i>"),
            drawn(broken),
            drawn(own),
        ],
    )
'''  # fmt: skip


def sample_paper(folder: Path, **values) -> Paper:
    """An entry like one of the catalogue, full of markup."""
    texts = {
        "slug": "sample",
        "title": f"{EVIL} & title",
        "field": "wide",
        "summary": f"{EVIL} in one sentence",
        "authors": (EVIL, "Ada"),
        "year": 2024,
        "venue": "<b>Venue</b>",
        "arxiv": '2401.00001"onclick="x',
        "parts": ("<b>Part</b>", "other_part"),
        "package": "paperworks.wide",
        "study": "sample_study",
        "official": "javascript:alert(1)",
        "example": "print('<b>')  # & done",
        "unverified": (f"{EVIL} is from `memory`",),
        "evidence": folder,
    }
    return Paper(**{**texts, **values})


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """The paper, and what `read_verdicts` gives of a user's own run of it."""
    folder = tmp_path_factory.mktemp("sample")
    (folder / "sample_study.py").write_text("\n".join(line[4:] for line in STUDY.splitlines()))
    sys.path.insert(0, str(folder))
    place = folder / "store.sqlite"
    study = load_study("sample_study")
    with Store(str(place)) as store, api.running(0) as backend:
        plan = Plan("sample", "sample_study", study, Request(seeds=(100, 101, 102)))
        results = engine.run(plan, store, backend, api.Silent())
        api.remember(results, store)
    evidence_files.write(evidence.of(results, [100]), folder)
    yield sample_paper(folder), read_verdicts(place)[0]
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def site(sample, tmp_path_factory):
    """The pages of the sample, of one with old evidence, of one without, and of a face-off."""
    paper, own = sample
    nowhere, elsewhere = paper.evidence / "nowhere", paper.evidence / "elsewhere"
    aged = evidence_files.read("sample", paper.evidence) | {
        "slug": "aged",
        "fingerprints": {"x": ""},
    }
    for claim, word in zip(aged["claims"], ["smaller than stated", "inconclusive"]):
        claim["verdict"] = word
    evidence_files.write(aged, elsewhere)
    others = [
        dataclasses.replace(paper, slug="aged", title="An aged paper", evidence=elsewhere),
        dataclasses.replace(paper, slug="bare", title="A bare paper", evidence=nowhere),
        Paper(slug="many", title="Many on one table", field="graphs", summary="Which of these?",
              kind="faceoff", study="sample_study", evidence=nowhere),
    ]  # fmt: skip
    return write([paper, *others], tmp_path_factory.mktemp("site"), own).parent


@pytest.fixture(scope="session")
def shipped_site(tmp_path_factory):
    """The pages of the papers that are installed, as the command line writes them."""
    folder = tmp_path_factory.mktemp("shipped")
    words = ["report", "--out", str(folder / "report"), "--store", str(folder / "none.sqlite")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0
    assert done.stdout == f"open {folder / 'report' / 'index.html'}\n"
    return folder / "report"


@pytest.fixture
def evidence_of_sample(sample):
    return json.loads((sample[0].evidence / "sample.json").read_text())
