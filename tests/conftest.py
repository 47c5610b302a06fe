"""What all tests share: a skip that may not be one, and the report of who overspends."""

from __future__ import annotations

import os
import re
from collections import defaultdict

import pytest

from paperworks.study.catalogue import catalogue

PAPER_SECONDS = 12
HOUSE_SECONDS = 240


def pytest_configure():
    """Tests run beside each other, one thread each: more of them only wait for one another."""
    for library in ("OMP", "OPENBLAS", "MKL"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's own results; fixtures are shared within a session."""
    monkeypatch.setenv("PAPERWORKS_STORE", str(tmp_path_factory.mktemp("store") / "store.sqlite"))
    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("PAPERWORKS_CACHE", os.environ.get("PAPERWORKS_CACHE") or str(cache))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Where everything is promised to be installed (REQUIRE_ALL=1), a skip is a failure."""
    report = (yield).get_result()
    if report.skipped and os.environ.get("REQUIRE_ALL") == "1" and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped although REQUIRE_ALL=1: {report.longrepr[-1]}"


def pytest_terminal_summary(terminalreporter):
    """Name the papers, and the house, that take longer than their budget."""
    spent: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if hasattr(report, "duration"):
                spent[_owner(report.nodeid)] += report.duration
    for owner, seconds in sorted(spent.items()):
        budget = HOUSE_SECONDS if owner == "the house" else PAPER_SECONDS
        if seconds > budget:
            terminalreporter.write_line(f"overspent: {owner} took {seconds:.0f} s of {budget} s")


def _owner(nodeid: str) -> str:
    """The paper whose file, folder or parameter a test is."""
    words = set(re.split(r"[/\[\]]|::|\.py|test_", nodeid))
    return next((slug for slug in catalogue().papers if slug in words), "the house")
