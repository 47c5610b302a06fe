"""The command line: thin, over the rest. What takes long to import is imported in the command."""

from __future__ import annotations

import functools
import json
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from paperworks.study import evidence_files as shipped
from paperworks.study.catalogue import FIELDS, OURS, Paper, catalogue
from paperworks.study.errors import UserError, unknown
from paperworks.study.store import location, read_verdicts


class Group(click.Group):
    """Commands in the order of a newcomer's day, and one line for what a user got wrong."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        command = super().get_command(ctx, name)
        if command is None:
            raise unknown("command", name, self.commands)
        return command


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit code 2."""
    try:
        cli(standalone_mode=False)
    except UserError as error:
        click.echo(f"paperworks: {error}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        sys.exit(0)
    except click.ClickException as error:
        click.echo(f"paperworks: {error.format_message()}", err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("paperworks: stopped", err=True)
        sys.exit(130)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="paperworks")
def cli() -> None:
    """Papers that work: import a method, test its claims, compare your own."""


@cli.command("list")
@click.option("--field", help="Only this field.")
@click.option("--search", "words", default="", help="Only papers that have all these words.")
@click.option("--store", help="Where your own results are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(field: str | None, words: str, store: str | None, as_json: bool) -> None:
    """The catalogue, with the shipped verdicts and your own."""
    if field is not None and field not in FIELDS:
        raise unknown("field", field, FIELDS)
    papers = catalogue().search(words, field)
    mine, problem = read_verdicts(location(store))
    rows = [_row(paper, [v for v in mine if v["slug"] == paper.slug]) for paper in papers]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        wide = max((len(row["slug"]) for row in rows), default=0)
        for row in rows:
            yours = f"  yours: {row['yours']}" if row["yours"] else ""
            start = f"{row['slug']:{wide}}  {row['field']:15} {row['shipped'] or '–':8}"
            click.echo(f"{start} {row['title']}{yours}")
        if not rows:
            click.echo("no paper matches")
    for line in filter(None, [*catalogue().problems, problem]):
        click.echo(f"paperworks: {line}", err=True)


def _row(paper: Paper, mine: list[dict[str, Any]]) -> dict[str, Any]:
    evidence = shipped.read(paper.slug, paper.evidence)
    desk = [v for v in mine if v["scale"] == "desk" and not v["overrides"]]
    return {
        "slug": paper.slug,
        "kind": paper.kind,
        "field": paper.field,
        "title": paper.title,
        "year": paper.year,
        "arxiv": paper.arxiv,
        "summary": paper.summary,
        "shipped": shipped.score(v["verdict"] for v in evidence["claims"]) if evidence else "",
        "yours": shipped.score(v["verdict"] for v in desk) if desk else "",
    }


@cli.command()
@click.argument("slug")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show(slug: str, as_json: bool) -> None:
    """A paper: what it is, how to import it, what was measured."""
    from paperworks.study.fingerprint import fingerprints

    paper = catalogue().get(slug)
    evidence = shipped.read(slug, paper.evidence)
    old = shipped.stale(evidence, fingerprints(paper.study).values()) if evidence else []
    if as_json:
        entry = {**vars(paper), "evidence": evidence, "stale": bool(old)}
        click.echo(json.dumps(entry, indent=1, default=str))
        return
    click.echo(paper.title)
    if paper.kind == "paper":
        click.echo(f"{', '.join(paper.authors)}; {paper.venue}; arXiv:{paper.arxiv}")
    click.echo(f"\n{paper.summary}\n")
    if paper.parts:
        click.echo(f"from {paper.package} import {', '.join(paper.parts)}\n")
    if paper.unverified:
        click.echo("From memory, or read our own way:")
        click.echo("".join(f"  - {sentence}\n" for sentence in paper.unverified))
    if evidence is None:
        click.echo(f"No evidence is published yet: paperworks run {slug}")
        return
    seeds = evidence["seeds"]
    click.echo(f"At desk scale, seeds {seeds[0]}-{seeds[-1]}, {evidence['published']}:")
    for v in evidence["claims"]:
        click.echo(f"  {v['claim']:4} {shipped.SIGNS[v['verdict']]} {v['verdict']:20} {v['text']}")
        click.echo(f"       {v['sentence']}")
    if old:
        click.echo(f"stale: the code of {', '.join(old)} has changed since (paperworks recheck)")


def _options(command: Any) -> Any:
    for option in (
        click.option("--jobs", type=int, help="Worker processes (default: one a core)."),
        click.option("--on", metavar="dask:tcp://HOST:PORT", help="Run on a Dask cluster."),
        click.option("--store", help="Where results are kept (default: $PAPERWORKS_STORE)."),
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
    ):
        command = option(command)
    return command


def _run_options(command: Any) -> Any:
    command = _options(command)
    for option in reversed(
        [
            click.option("--scale", default="desk", show_default=True, help="smoke, desk or full."),
            click.option(
                "--claims", default="", help="Only these, as C1,C2; `demo`: the quick subset."
            ),
            click.option("--seeds", help="How many, or a range as 0:10."),
            click.option("--dev", is_flag=True, help="Development seeds 0-9."),
            click.option(
                "--device", default="cpu", show_default=True, help="cpu, cuda, cuda:1, mps."
            ),
            click.option(
                "--set", "changes", multiple=True, metavar="K=V", help="A setting of your own."
            ),
            click.option(
                "--add", "added", multiple=True, metavar="NAME=MODULE:FACTORY", help="Your rival."
            ),
            click.option(
                "--retune", is_flag=True, help="Tune again; ignore the published choices."
            ),
            click.option("--dry-run", is_flag=True, help="Say what would run."),
            click.option(
                "--figures", default="figures", show_default=True, help="Where figures go."
            ),
        ]
    ):
        command = option(command)
    return command


@cli.command()
@click.argument("slugs", nargs=-1, required=True, metavar="SLUG...")
@_run_options
def run(
    slugs: tuple[str, ...],
    scale: str,
    claims: str,
    seeds: str | None,
    dev: bool,
    device: str,
    changes: tuple[str, ...],
    added: tuple[str, ...],
    retune: bool,
    dry_run: bool,
    figures: str,
    jobs: int | None,
    on: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Run studies, print verdicts, save figures."""
    papers = [catalogue().get(slug) for slug in slugs]
    if added:
        sys.path.insert(0, str(Path.cwd()))
    overrides, rivals = _pairs(changes), dict(_split("add", entry) for entry in added)
    location(store)  # a wrong URL is told before torch is imported

    from paperworks.study import api, engine

    asked = _seeds(seeds)
    done = []
    failed = False
    with _interruptible(), api.running(jobs, on) as backend, api.Store(store) as results_store:
        plans = []
        for paper in papers:
            study = api.study_of(paper)
            ids = study.demo if claims == "demo" else [c for c in claims.split(",") if c]
            request = api.Request(
                seeds=api.chosen_seeds(paper, scale, asked, dev),
                scale=scale,
                claims=tuple(ids),
                overrides=overrides,
                added=rivals,
                retune=retune,
                device=device,
                paths=tuple(sys.path[:1]) if added else (),
            )
            plans.append(api.Plan(paper.slug, paper.study, study, request))
        for plan in plans:
            if plan.downloads:
                names = ", ".join(plan.downloads)
                click.echo(f"{plan.slug}: needs the network for {names}, unless cached", err=True)
        for paper, plan in zip(papers, plans):
            choices = api.published_choices(plan, shipped.read(plan.slug, paper.evidence))
            if dry_run:
                left, stored, seconds = engine.remaining(plan, results_store, choices)
                estimate = f", about {left * seconds / backend.jobs:.0f} s" if seconds else ""
                click.echo(f"{plan.slug}: {left} trials to run, {stored} stored{estimate}")
                continue
            with _watching(as_json) as watcher:
                results = engine.run(plan, results_store, backend, watcher, choices=choices)
            api.remember(results, results_store)
            failed |= bool(results.failures)
            done.append(results)
            if not as_json:
                _print_results(results, Path(figures) / plan.slug)
    if as_json and not dry_run:
        click.echo(json.dumps([results.to_json() for results in done], indent=1))
    if failed:
        sys.exit(1)


@cli.command()
@click.argument("field")
@_run_options
@click.pass_context
def faceoff(ctx: click.Context, field: str, **options: Any) -> None:
    """A field's methods on one task: which of these for my data?"""
    slugs = [entry.slug for entry in catalogue().faceoffs(field)]
    ctx.invoke(run, slugs=slugs, **options)


@cli.command()
@click.argument("slugs", nargs=-1, metavar="[SLUG...]")
@click.option("--field", help="Only this field.")
@_options
def verify(
    slugs: tuple[str, ...],
    field: str | None,
    jobs: int | None,
    on: str | None,
    store: str | None,
    as_json: bool,
) -> None:
    """Run at desk scale and compare with the shipped evidence."""
    from paperworks.study import api, evidence

    found: dict[str, list[str]] = {}
    for paper in _published(slugs, field):
        with _interruptible(), _watching(as_json) as watcher:
            results = api.run(paper.slug, jobs=jobs, on=on, store=store, watcher=watcher)
        published = shipped.read(paper.slug, paper.evidence) or {}
        found[paper.slug] = evidence.verify(results, published)
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        for slug, problems in found.items():
            click.echo(f"{slug}: {'agrees' if not problems else f'{len(problems)} problems'}")
            for problem in problems[:20]:
                click.echo(f"  {problem}")
    if any(found.values()):
        sys.exit(1)


@cli.command()
@click.option("--out", default="report", show_default=True, help="The folder for the pages.")
@click.option("--store", help="Where your own results are kept.")
def report(out: str, store: str | None) -> None:
    """Write the pages: an index and a page a paper, for your browser."""
    mine, problem = read_verdicts(location(store))

    from paperworks.site.report import write

    index = write(catalogue().papers.values(), Path(out), mine)
    click.echo(f"open {index.resolve()}")
    for line in filter(None, [*catalogue().problems, problem]):
        click.echo(f"paperworks: {line}", err=True)


@cli.command()
@click.argument("slugs", nargs=-1, required=True, metavar="SLUG...")
@_options
def publish(
    slugs: tuple[str, ...], jobs: int | None, on: str | None, store: str | None, as_json: bool
) -> None:
    """Run on the published seeds and write the evidence (for contributors)."""
    from paperworks.study import api, evidence

    for slug in slugs:
        folder = catalogue().get(slug).evidence
        old = shipped.read(slug, folder)
        with _interruptible(), _watching(as_json) as watcher:
            again = functools.partial(
                api.run, slug, jobs=jobs, on=on, store=store, watcher=watcher, retune=True
            )
            development = again(dev=True)
            seeds, blocks = evidence.next_seeds(development, old)
            results = again(seeds=seeds)
        path = shipped.write(evidence.of(results, blocks), folder)
        click.echo(f"{slug}: seeds {seeds[0]}-{seeds[-1]}, evidence in {path}")
    _write_results()


@cli.command()
@click.argument("slugs", nargs=-1, metavar="[SLUG...]")
@_options
def recheck(
    slugs: tuple[str, ...], jobs: int | None, on: str | None, store: str | None, as_json: bool
) -> None:
    """Run one seed of each stale study; restamp what gives equal metrics, list the rest."""
    from paperworks.study import api, engine, evidence

    states = {}
    ours = [paper.slug for paper in catalogue().papers.values() if paper.distribution == OURS]
    for paper in _published(slugs or ours, None):
        old = shipped.read(paper.slug, paper.evidence) or {}
        plan = api.plan_of(paper.slug, api.Request(seeds=(old["seeds"][0],)))
        if not shipped.stale(old, plan.fingerprints.values()):
            states[paper.slug] = "fresh"
        elif plan.stamp != old["stamp"]:
            states[paper.slug] = "stale, and published in another environment: publish it again"
        else:
            known = evidence.choices_of(old)
            with (
                _interruptible(),
                _watching(as_json) as watcher,
                api.running(jobs, on) as backend,
                api.Store(store) as results_store,
            ):
                results = engine.run(plan, results_store, backend, watcher, choices=known)
            if results.failures or evidence.differing(results, old):
                states[paper.slug] = "stale, and its metrics differ: publish it again"
            else:
                shipped.write(evidence.restamped(old, plan), paper.evidence)
                states[paper.slug] = "restamped: equal metrics"
    if as_json:
        click.echo(json.dumps(states, indent=1))
    else:
        for slug, state in states.items():
            click.echo(f"{slug}: {state}")


@cli.command()
@click.argument("slug")
@click.option("--field", required=True, help="Where it belongs.")
@click.option("--title", default="", help="The paper's title.")
def new(slug: str, field: str, title: str) -> None:
    """The skeleton of a new paper: entry, part, study, test (for contributors)."""
    from paperworks.skeleton import write_skeleton

    for path in write_skeleton(slug, field, title):
        click.echo(path)
    click.echo(f"All of it works as it is: paperworks run {slug} --dev. Now fill in each TODO.")


def _published(slugs: Iterable[str], field: str | None) -> list[Paper]:
    if field is not None and field not in FIELDS:
        raise unknown("field", field, FIELDS)
    papers = [catalogue().get(slug) for slug in slugs] or catalogue().search("", field)
    return [paper for paper in papers if shipped.read(paper.slug, paper.evidence)]


def _write_results() -> None:
    """RESULTS.md follows the evidence, in a checkout of the source."""
    path = Path(__file__).parents[2] / "RESULTS.md"
    results = shipped.results_markdown(catalogue().papers)
    if path.exists() and path.read_text() != results:
        path.write_text(results)


def _split(option: str, entry: str) -> tuple[str, str]:
    name, found, value = entry.partition("=")
    if not found or not name or not value:
        raise UserError(f"--{option} {entry}: expected name=value")
    return name, value


def _pairs(entries: Iterable[str]) -> dict[str, list[Any]]:
    """`--set` options: values are JSON where they can be, else text; repeated keys make a list."""
    pairs: dict[str, list[Any]] = {}
    for entry in entries:
        key, text = _split("set", entry)
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        pairs.setdefault(key, []).extend(value if isinstance(value, list) else [value])
    return pairs


def _seeds(text: str | None) -> int | list[int] | None:
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        return list(range(int(first), int(last))) if colon else int(first)
    except ValueError:
        raise UserError(f"--seeds {text}: expected a number or a range as 0:10") from None


def _interruptible() -> Any:
    from paperworks.progress import interruptible

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return interruptible()


def _watching(quiet: bool) -> Any:
    from paperworks.progress import watching

    return watching(quiet)


def _print_results(results: Any, figures: Path) -> None:
    from paperworks.progress import print_results

    print_results(results, figures)


if __name__ == "__main__":
    main()
