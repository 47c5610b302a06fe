"""A run that is killed or interrupted leaves no process behind, and goes on where it was.

A run's processes inherit its standard output: the pipe that a test reads ends when the last of
them has gone.
"""

import collections
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from paperworks.study.store import Store

STUDY = """
    def trial(setting, run):
        slow = setting.n >= 4 and not os.path.exists("go on")
        note("began", setting.n, run.seed)
        time.sleep(600 if slow else 0)
        note("ended", setting.n, run.seed)
        return {"value": setting.n + torch.rand(1, generator=run.rng("split"))}

    steps = Experiment(trial, {}, *[grid(n=list(range(8)))] * 3)
    study = Study("sample", [steps], [Claim("C1", "It is.", report(steps.metric("value")(n=0)))])
"""

DRIVER = """
    import signal, sys
    from paperworks.study import engine
    from paperworks.study.api import Silent, running
    from paperworks.study.plan import Plan, Request
    from paperworks.study.store import Store
    from paperworks.study.worker import load_study

    module, folder, jobs = sys.argv[1:]
    if __name__ == "__main__":
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's "&" has it ignored
        plan = Plan("sample", module, load_study(module), Request((100,), paths=(folder,)))
        try:
            with Store() as store, running(int(jobs)) as backend:
                results = engine.run(plan, store, backend, Silent())
        except engine.Interrupted:
            sys.exit(130)
        print("failures", len(results.failures), "trials", len(results.trials))
"""
PATIENCE = 30  # seconds until a process that should have gone counts as left; trials sleep for 600


@pytest.fixture
def start(project):
    """Starts the study in a process of its own, with so many workers."""
    driver = project.folder / "driver.py"
    driver.write_text(textwrap.dedent(DRIVER))
    module = project.write(STUDY)
    started = []

    def start(jobs):
        command = [sys.executable, driver, module, project.folder, str(jobs)]
        env = {**os.environ, "PYTHONPATH": str(project.folder)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(
            subprocess.Popen(
                command, env=env, cwd=project.folder, start_new_session=True, text=True, **pipes
            )
        )
        return started[-1]

    yield start
    for process in started:
        with process:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def wait_until_in_the_middle(project, process, jobs):
    """Until the quick trials are stored and every worker is in a slow one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if project.log.exists():
            lines = [line.split() for line in project.log.read_text().splitlines()]
            slow = [n for word, n, _ in lines if word == "began" and int(n) >= 4]
            if len(slow) >= jobs and len(stored()) == 4:
                return
        time.sleep(0.05)
    raise AssertionError(f"the run did not get to its middle: {process.communicate(timeout=5)}")


def stored():
    with Store() as store:
        return {t.setting["n"]: t for t in store.trials("sample").values() if t.status == "ok"}


def test_a_killed_run_goes_on_where_it_was(project, start):
    process = start(2)
    wait_until_in_the_middle(project, process, 2)
    process.kill()
    process.communicate(timeout=PATIENCE)  # to the end of the pipe: no worker lives on
    before = stored()
    began = collections.Counter(project.logged())
    assert sorted(before) == [0, 1, 2, 3]
    assert all(began[f"ended {n} 100"] == 1 for n in before)

    (project.folder / "go on").touch()
    told, _ = start(0).communicate(timeout=120)
    assert "failures 0 trials 8" in told
    assert project.logged() == [
        f"{word} {n} 100" for n in range(4, 8) for word in ("began", "ended")
    ]
    assert {n: stored()[n] for n in before} == before


@pytest.mark.parametrize("jobs", [0, 1])
def test_ctrl_c_ends_a_run_and_all_its_processes(project, start, jobs):
    process = start(jobs)
    wait_until_in_the_middle(project, process, max(jobs, 1))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert sorted(stored()) == [0, 1, 2, 3]
