"""Trials on a real Dask cluster: a scheduler and workers of our own, on the loopback interface."""

import contextlib
import dataclasses
import importlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from paperworks.study import dask, engine
from paperworks.study.api import Silent, running
from paperworks.study.child import differing
from paperworks.study.engine import Interrupted
from paperworks.study.errors import ClusterError, UserError
from paperworks.study.store import Store

pytest.importorskip("distributed")

START = 60  # seconds until a cluster that should be there counts as missing

STUDY = """
    def trial(setting, run):
        noise = torch.randn(50, generator=run.rng("split"))
        run.witness(split=noise)
        run.artefact("noise", {"noise": noise})
        shared = run.fixture(table, size=setting.size)
        dropped = torch.nn.functional.dropout(noise, 0.5)  # draws from the global generator
        factor = run.methods[setting.method]()
        return {
            "score": dropped.square().mean() + factor * shared["values"].sum(),
            "curve": [float(np.linalg.svd(np.outer(noise, noise))[1][0])],
        }

    def table(streams, size):
        return {"values": torch.rand(size, generator=streams.rng("split"))}

    def one():
        return 1.0

    def raising():
        raise RuntimeError("out of ideas")

    sizes = Experiment(trial, {"one": one, "raising": raising}, *[grid(size=[1, 2])] * 3)
    study = Study(
        "sample", [sizes], [Claim("C1", "It is.", report(sizes.metric("score")("one", size=1)))]
    )
"""

STEPS = """
    def trial(setting, run):
        note("began", setting.n, run.seed, os.getppid())
        deadly = setting.n in DEADLY
        while setting.n in HELD and not os.path.exists(os.environ["TRIAL_LOG"] + ".go on"):
            time.sleep(0.02)
        if deadly:
            os.kill(os.getppid() if WHOLE else os.getpid(), signal.SIGKILL)
            time.sleep(60)
        note("ended", setting.n, run.seed)
        return {"value": setting.n + torch.rand(1, generator=run.rng("split"))}

    steps = Experiment(trial, {}, *[grid(n=list(range(4)))] * 3)
    study = Study("sample", [steps], [Claim("C1", "It is.", report(steps.metric("value")(n=0)))])
"""


class Cluster:
    """A scheduler and its workers, processes of ours; their trials note what they do in a log."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.log, self.trials = folder / "cluster.log", folder / "trials.log"
        self._started: list[subprocess.Popen] = []
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", str(port))

    @property
    def on(self) -> str:
        return f"dask:{self.address}"

    def worker(self, *options: str) -> subprocess.Popen:
        options = options or ("--nthreads", "1")
        return self._start("worker", self.address, "--host", "127.0.0.1", *options)

    def _start(self, *words: str) -> subprocess.Popen:
        command = [Path(sys.executable).with_name("dask"), *words, "--no-dashboard"]
        mine = {
            "TRIAL_LOG": str(self.trials),
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",  # the first death gives trials up
        }
        with self.log.open("a") as log:
            self._started.append(
                subprocess.Popen(
                    command,
                    env={**os.environ, **mine},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            )
        return self._started[-1]

    def noted(self, word: str) -> list[list[str]]:
        """What trials have noted after this word: their n, seed, process."""
        lines = self.trials.read_text().splitlines() if self.trials.exists() else []
        return [line.split()[1:] for line in lines if line.startswith(word)]

    def go_on(self) -> None:
        """Let the trials that are held end."""
        Path(f"{self.trials}.go on").touch()

    def stop(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
            process.wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two workers, which the tests share."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.worker("--nthreads", "1", "--nworkers", "2")
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def lone(tmp_path):
    """A scheduler of the test's own, without workers."""
    cluster = Cluster(tmp_path)
    try:
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(autouse=True)
def clean(request):
    """No trial is held by what an earlier test has noted."""
    if "cluster" in request.fixturenames:
        for file in request.getfixturevalue("cluster").trials.parent.glob("trials.log*"):
            file.unlink()


class Meddler(Silent):
    """Meddles in the middle of a run: each act once, as soon as the cluster is ready for it."""

    def __init__(self, *acts):
        self._acts = list(acts)
        self._deadline = time.monotonic() + START

    def under_way(self, reports):
        assert time.monotonic() < self._deadline, "the run did not get to its middle"
        if self._acts and self._acts[0][0]():
            self._acts.pop(0)[1]()


def run(plan, cluster, watcher=None):
    with Store() as store, running(None, cluster.on) as backend:
        return engine.run(plan, store, backend, watcher or Silent())


def steps(project, held=(), deadly=(), whole=False):
    given = f"HELD, DEADLY, WHOLE = {set(held)}, {set(deadly)}, {whole}"
    module = project.write(given + textwrap.dedent(STEPS))
    return project.plan(module, seeds=[100])


def statuses():
    with Store() as store:
        return {t.setting["n"]: t.status for t in store.trials("sample").values()}


def test_a_cluster_gives_the_metrics_of_this_process(project, cluster):
    def local():
        return 4.0

    module = project.write(STUDY)
    reference = importlib.import_module(module).one
    added = {"by_name": f"{module}:one", "by_value": local, "by_reference": reference}
    there = run(project.plan(module, added=added), cluster)
    here = project.run(project.plan(module, added=added), store="other.sqlite")
    assert len(there.trials) == 5 * 2 * 2
    assert {t.setting["method"] for t in there.failures} == {"raising"}
    assert all("RuntimeError: out of ideas" in trial.error for trial in there.failures)
    for place, trial in here.trials.items():
        assert there.trials[place].metrics == trial.metrics
        assert there.trials[place].witness == trial.witness
    with Store() as one, Store(str(project.folder / "other.sqlite")) as other:
        keys = [trial.key for trial in here.trials.values() if trial.status == "ok"]
        assert keys
        assert all(one.artefacts(key) == other.artefacts(key) != {} for key in keys)


@pytest.mark.slow
def test_the_command_line_runs_on_a_cluster(cluster, tmp_path):
    words = ["relreps", "--scale", "smoke", "--claims", "demo", "--figures", str(tmp_path)]
    done = paperworks("run", *words, "--on", cluster.on)
    assert done.returncode == 0, done.stderr
    assert "0 stored" in done.stderr
    again = paperworks("run", *words, "--dry-run")  # of what a cluster has stored, nothing is left
    assert " 0 trials to run" in again.stdout


def test_a_trial_whose_worker_is_killed_runs_again(project, cluster):
    def began(times):
        return lambda: len(cluster.noted("began 2")) == times

    def kill():
        os.kill(int(cluster.noted("began 2")[0][-1]), signal.SIGKILL)

    results = run(
        steps(project, held=[2]), cluster, Meddler((began(1), kill), (began(2), cluster.go_on))
    )
    assert not results.failures
    assert len(results.trials) == 4
    assert len(cluster.noted("ended 2")) == 1


@pytest.mark.parametrize(
    ("whole", "words"),
    [
        (False, "killed its process, twice: exit code -9"),
        pytest.param(True, "killed its worker", marks=pytest.mark.slow),
    ],
)
def test_a_poison_trial_fails_and_the_others_finish(project, cluster, whole, words):
    results = run(steps(project, deadly=[1], whole=whole), cluster)
    (failed,) = results.failures
    assert failed.setting["n"] == 1
    assert words in failed.error
    assert statuses() == {0: "ok", 1: "failed", 2: "ok", 3: "ok"}
    assert len(cluster.noted("began 1")) == 2


def test_ctrl_c_keeps_what_had_finished_and_leaves_the_workers(project, cluster, caplog):
    def interrupt():
        raise KeyboardInterrupt

    plan = steps(project, held=[2, 3])
    middle = Meddler((lambda: len(statuses()) == 2 and cluster.noted("began 2"), interrupt))
    with pytest.raises(Interrupted):
        run(plan, cluster, middle)
    assert "trials that have begun on the cluster run on" in caplog.text
    assert statuses() == {0: "ok", 1: "ok"}
    cluster.go_on()
    assert not run(plan, cluster).failures
    assert len(cluster.noted("began 0")) == 1


def test_a_worker_in_another_environment_is_refused(project, cluster, monkeypatch):
    here = dask.environment
    planned = {"torch": "1.0", "cpu": "Z80"}
    monkeypatch.setattr(dask, "environment", lambda device: here(device) | planned)
    with pytest.raises(ClusterError, match=r"another environment: cpu is .*, not Z80") as caught:
        run(steps(project), cluster)
    assert "torch is 2." in str(caught.value)
    assert statuses() == {}


def test_a_worker_with_other_code_is_refused(project, cluster):
    plan = steps(project)
    plan.fingerprints = dict.fromkeys(plan.fingerprints, "another")
    with pytest.raises(ClusterError, match="is not the code that was planned"):
        run(plan, cluster)
    assert statuses() == {}


@pytest.mark.slow
def test_edited_code_runs_on_workers_that_had_loaded_the_old(project, cluster):
    plan = steps(project)
    run(plan, cluster)
    file = project.folder / f"{plan.module}.py"
    file.write_text(file.read_text().replace("setting.n +", "100 + setting.n +"))
    edited = run(project.plan(plan.module, seeds=[100]), cluster)
    assert not edited.failures
    assert all(trial.metrics["value"][0] >= 100 for trial in edited.trials.values())


def test_a_rival_that_cannot_be_sent_is_one_line(project, cluster):
    lock = threading.Lock()

    def locked():
        return lock

    plan = project.plan(project.write(STUDY), seeds=[100], added={"locked": locked})
    with pytest.raises(UserError, match="cannot send locked to a worker"):
        run(plan, cluster)


def test_a_rival_that_the_workers_lack_is_one_line(project, cluster):
    rival = importlib.import_module(project.write("def rival(): ...")).rival
    chosen = {"added": {"rival": rival}, "overrides": {"method": ["rival"]}}
    plan = project.plan(project.write(STUDY), **chosen)
    plan.request = dataclasses.replace(plan.request, paths=())
    with pytest.raises(ClusterError, match=f"cannot take the trial: .*{rival.__module__}"):
        run(plan, cluster)


def test_workers_without_paperworks_are_one_line(project, cluster, monkeypatch):
    here_only = importlib.import_module(project.write("def perform(call, environment): ..."))
    monkeypatch.setattr(dask, "perform_in_child", here_only.perform)
    with pytest.raises(ClusterError, match="is this paperworks installed on its scheduler and all"):
        run(steps(project), cluster)
    assert statuses() == {}


def test_the_number_of_jobs_follows_the_workers(lone):
    lone.worker()
    with running(None, lone.on) as backend:
        assert backend.jobs == 1
        second = lone.worker()
        assert soon(backend, 2)
        second.terminate()
        assert soon(backend, 1)


def soon(backend, jobs):
    """Whether the backend has so many jobs before long."""
    deadline = time.monotonic() + START
    while backend.jobs != jobs and time.monotonic() < deadline:
        assert list(backend.as_completed()) == []
    return backend.jobs == jobs


def test_no_worker_ends_a_run_before_it_begins(project, lone, monkeypatch):
    monkeypatch.setattr(dask, "PATIENCE", 1)
    with pytest.raises(ClusterError, match=f"no workers at {lone.address} for 1 seconds"):
        run(steps(project), lone)


def test_no_worker_left_ends_a_run(project, lone, monkeypatch):
    worker = lone.worker()

    def take_leave():
        monkeypatch.setattr(dask, "PATIENCE", 1)
        os.killpg(worker.pid, signal.SIGKILL)

    plan = steps(project, held=[0])
    with pytest.raises(ClusterError, match=r"no workers .* every finished trial is stored"):
        run(plan, lone, Meddler((lambda: lone.noted("began 0"), take_leave)))
    assert "failed" not in statuses().values()


def test_a_scheduler_that_dies_ends_the_run_and_fails_no_trial(project, lone):
    lone.worker()
    plan = steps(project, held=[3])
    middle = Meddler((lambda: len(statuses()) == 3, lone.scheduler.kill))
    with pytest.raises(ClusterError, match=f"lost the Dask scheduler at {lone.address}"):
        run(plan, lone, middle)
    assert statuses() == {0: "ok", 1: "ok", 2: "ok"}


def test_a_worker_of_two_threads_is_refused(project, lone):
    lone.worker("--nthreads", "2")
    with pytest.raises(ClusterError, match=r"worker tcp://.* has 2 threads") as caught:
        run(steps(project), lone)
    assert caught.value.exit_code == 1
    assert statuses() == {}


def test_no_scheduler_is_one_line(monkeypatch):
    monkeypatch.setattr(dask, "ANSWER", 0.5)
    with pytest.raises(ClusterError, match=r"no Dask scheduler answers at tcp://127.0.0.1:1$"):
        running(None, "dask:tcp://127.0.0.1:1").__enter__()


@pytest.mark.parametrize(
    "on",
    ["", "dask", "dask:", "tcp://host:8786", "dask:tcp://host", "dask:tcp://:8786", "dask:host:1",
     "dask:http://host:80", "dask:tcp://host:8786/x", "spark:tcp://host:1", "dask:tcp://host:port"],
)  # fmt: skip
def test_a_wrong_place_is_one_line(on):
    with pytest.raises(UserError, match="expected dask:tcp://host:port") as caught:
        running(None, on).__enter__()
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("address", ["tcp://host:8786", "tls://[::1]:8786", "tcp://10.0.0.7:1"])
def test_a_place_names_its_scheduler(address, monkeypatch):
    monkeypatch.setattr(dask, "DaskCluster", Asked)
    with running(None, f"dask:{address}") as backend:
        assert backend.address == address


@dataclasses.dataclass
class Asked:
    address: str

    def stop(self):
        pass


def test_a_cluster_decides_itself_how_many_jobs_there_are():
    with pytest.raises(UserError, match="leave jobs out"):
        running(2, "dask:tcp://host:8786").__enter__()


def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2():
    done = paperworks("run", "relreps", "--scale", "smoke", "--on", "dask:nowhere")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr


def paperworks(*words):
    command = [sys.executable, "-m", "paperworks.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'paperworks\[cluster\]'"):
        running(None, "dask:tcp://host:8786").__enter__()


def test_what_says_nothing_about_bits_may_differ():
    assert not differing({"cpu": "AVX2", "paperworks": "1"}, {"cpu": "AVX2", "paperworks": "2"})
    assert differing({}, {"cpu": "AVX2", "a": "b"}) == "a is b, not None; cpu is AVX2, not None"
