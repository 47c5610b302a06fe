"""Plans, run in this process and in workers: equal numbers, faults, resuming, tuning, requests."""

import textwrap

import pytest

from paperworks.study.api import Silent, running
from paperworks.study.engine import Interrupted, execute, remaining, run
from paperworks.study.errors import UserError
from paperworks.study.store import Store
from paperworks.study.worker import Outcome

STUDY = """
    def trial(setting, run):
        note(setting.method, setting.size, run.seed)
        factor = run.methods[setting.method]()
        noise = torch.randn(50, generator=run.rng("split"))
        run.witness(split=noise)
        run.artefact("noise", {"noise": noise})
        with run.seeded("weights"):
            network = torch.nn.Linear(50, 50)
        dropped = torch.nn.functional.dropout(noise, 0.5)  # draws from the global generator
        shared = run.fixture(table, size=setting.size)
        return {
            "score": (network(dropped).square().mean() + factor * setting.size).detach(),
            "curve": [float(np.linalg.svd(np.outer(noise, noise))[1][0]), shared["values"].sum()],
        }

    def table(streams, size):
        return {"values": torch.rand(size, generator=streams.rng("split"))}

    def one():
        return 1.0

    def two():
        return 2.0

    def third():
        return 3.0

    sizes = Experiment(trial, {"one": one, "two": two}, *[grid(size=[1, 2])] * 3, name="sizes")
    score = sizes.metric("score")
    study = Study(
        "sample",
        [sizes],
        [
            Claim("C1", "Two is better.", higher(score("two", size=2), score("one", size=2))),
            Claim("C2", "It is so.", report(score("one", size=1))),
        ],
    )
"""

FAULTS = """
    def good(run):
        return 1.0

    def raising(run):
        raise RuntimeError("out of ideas")

    def diverging(run):
        return float("nan")

    def numpy_global(run):
        return np.random.rand()

    def python_global(run):
        return random.random()

    def mended(run):
        assert os.path.exists(os.environ["TRIAL_LOG"] + ".mended"), "not yet"
        return 2.0

    def leaving(run):
        return os._exit(3) if run.seed == 100 else 1.0

    def killed(run):
        return os.kill(os.getpid(), signal.SIGKILL) if run.seed == 100 else 1.0

    def trial(setting, run):
        note(setting.method, run.seed)
        return {"value": run.methods[setting.method](run)}

    METHODS = {name: globals()[name] for name in NAMES}
    faults = Experiment(trial, METHODS, *[grid(n=0)] * 3)
    study = Study(
        "sample", [faults], [Claim("C1", "It is.", report(faults.metric("value")("good")))]
    )
"""

TUNED = """
    BEST = {2: 0.1, 3: 0.01}

    def trial(setting, run):
        note(setting.method, setting.bits, setting.get("lr"), run.seed)
        if setting.method == "fragile" and setting.lr == BEST[setting.bits] and run.seed == 91:
            raise RuntimeError("this candidate fails on a tuning seed")
        off = abs(setting.lr - BEST[setting.bits]) if "lr" in setting else 5.0
        return {"loss": off, "gain": -off, "fit_seconds": 0.5}

    METHODS = {"plain": None, "careful": None, "fragile": None}
    LR = [1.0, 0.1, 0.01]

    GRIDS = [grid(bits=[2, 3])] * 3
    own = Experiment(trial, METHODS, *GRIDS, Tune(by="loss", only={"plain": {}}, lr=LR), "own")
    once = Experiment(
        trial,
        METHODS,
        *GRIDS,
        Tune(by="gain", higher=True, shared=["bits"], only={"plain": {}}, lr=LR),
        "once",
    )
    times = once.metric("fit_seconds")
    claims = [
        Claim("C1", "It is.", report(own.metric("loss")("careful", bits=2))),
        Claim("C2", "It is.", report(once.metric("loss")("careful", bits=3))),
        Claim("C3", "It takes this long.", report(times("plain", bits=2))),
    ]
    study = Study("sample", [own, once], claims)
"""


def metrics(results):
    return {place: trial.metrics for place, trial in results.trials.items()}


def errors(results):
    return {trial.setting["method"]: trial.error for trial in results.failures}


def choices(results, experiment):
    return {
        (cell, tuned["lr"])
        for (name, cell), tuned in results.choices.items()
        if name == experiment
    }  # fmt: skip


def test_metrics_do_not_depend_on_where_and_in_what_order_trials_run(project):
    def local():
        return 4.0

    module = project.write(STUDY)
    added = {"by_name": f"{module}:third", "by_value": local}
    here = project.run(project.plan(module, added=added))
    assert not here.failures
    assert len(here.trials) == 4 * 2 * 2
    backwards = project.plan(module, seeds=(101, 100), added=added)
    there = project.run(backwards, jobs=2, store="other.sqlite")
    assert metrics(there) == metrics(here)
    assert [t.witness for t in here.trials.values()] == [
        there.trials[place].witness for place in here.trials
    ]
    with Store() as one, Store(str(project.folder / "other.sqlite")) as other:
        keys = [trial.key for trial in here.trials.values()]
        assert all(one.artefacts(key) == other.artefacts(key) for key in keys)
        assert all(list(one.artefacts(key)) == ["noise.safetensors"] for key in keys)
    assert [verdict.verdict for verdict in here.claims()] == [v.verdict for v in there.claims()]


MILD = ["good", "raising", "diverging", "mended", "numpy_global", "python_global"]
FATAL = ["good", "leaving", "killed"]


def test_a_fault_fails_its_trial_and_no_other(project):
    plan = project.plan(project.write(f"NAMES = {MILD}" + textwrap.dedent(FAULTS)), seeds=[100])
    results = project.run(plan)
    failed = errors(results)
    assert sorted(failed) == sorted(set(MILD) - {"good"})
    assert "RuntimeError: out of ideas" in failed["raising"]
    assert "in raising" in failed["raising"]  # the place, too
    assert "metric 'value' is nan: report divergence" in failed["diverging"]
    for name in ("numpy_global", "python_global"):
        assert (
            "drew from the global generator of numpy or random: draw from run.rng(name)"
            in (failed[name])
        )
    assert [m for m in metrics(results).values() if m] == [{"value": 1.0}]

    project.logged()
    (project.folder / "trials.log.mended").touch()
    again = project.run(plan)  # what failed is tried again, and only that
    assert sorted(project.logged()) == sorted(f"{name} 100" for name in MILD if name != "good")
    assert sorted(errors(again)) == sorted(set(MILD) - {"good", "mended"})


def test_a_trial_that_kills_its_worker_fails_and_the_others_finish(project):
    results = project.run(
        project.plan(project.write(f"NAMES = {FATAL}" + textwrap.dedent(FAULTS))), jobs=2
    )
    assert sorted((t.setting["method"], t.seed) for t in results.failures) == [
        ("killed", 100),
        ("leaving", 100),
    ]
    assert all("killed its worker process" in error for error in errors(results).values())
    assert sum(m == {"value": 1.0} for m in metrics(results).values()) == 4


def test_a_second_run_runs_nothing_and_more_seeds_only_themselves(project):
    module = project.write(STUDY)
    first = project.run(project.plan(module))
    assert len(project.logged()) == 8
    assert metrics(project.run(project.plan(module))) == metrics(first)
    assert not project.logged()
    more = project.run(project.plan(module, seeds=(100, 101, 102)))
    assert sorted(project.logged()) == sorted(
        f"{m} {n} 102" for m in ("one", "two") for n in (1, 2)
    )
    assert metrics(first).items() <= metrics(more).items()


def test_only_the_cells_of_a_claim_are_run(project):
    project.run(project.plan(project.write(STUDY), seeds=[100], claims=("C1",)))
    assert project.logged() == ["one 2 100", "two 2 100"]


def test_a_rival_runs_beside_the_cells_of_a_claim(project):
    module = project.write(STUDY)
    added = {"mine": f"{module}:one"}
    plan = project.plan(module, seeds=[100], claims=("C1",), added=added)
    cells = [cell for grid in plan.cells.values() for cell in grid]
    assert sorted((cell.method, cell.size) for cell in cells) == [
        ("mine", 2),
        ("one", 2),
        ("two", 2),
    ]


def test_a_dry_run_counts_what_is_left(project):
    plan = project.plan(project.write(TUNED), claims=("C1",))
    with Store() as store:
        assert remaining(plan, store, {})[:2] == (9 + 2, 0)
    project.run(plan)
    assert len(project.logged()) == 9 + 2
    with Store() as store:
        assert remaining(plan, store, {})[:2] == (0, 9 + 2)


def test_tuning_picks_the_candidate_with_the_best_mean(project):
    results = project.run(project.plan(project.write(TUNED), seeds=[100]))
    assert choices(results, "own") == {
        ('{"bits":2,"method":"careful"}', 0.1),
        ('{"bits":3,"method":"careful"}', 0.01),
        ('{"bits":2,"method":"fragile"}', 0.01),  # its best one failed on a tuning seed
        ('{"bits":3,"method":"fragile"}', 0.1),
    }
    assert not any("plain" in cell for _, cell in results.choices)  # `only`: it has no knob
    assert {
        t.setting.get("lr") for t in results.trials.values() if t.setting["method"] == "plain"
    } == {None}
    assert all(t.seed == 100 for t in results.trials.values())


def test_shared_keys_tune_once_at_their_first_value(project):
    results = project.run(project.plan(project.write(TUNED), seeds=[100], claims=("C2",)))
    assert choices(results, "once") == {('{"bits":3,"method":"careful"}', 0.1)}
    tuned = [line for line in project.logged() if not line.endswith(" 100")]
    assert sorted(tuned) == sorted(
        f"careful 2 {lr} {seed}" for lr in (1.0, 0.1, 0.01) for seed in (90, 91, 92)
    )


def test_a_smoke_run_and_a_set_knob_tune_nothing(project):
    module = project.write(TUNED)
    results = project.run(project.plan(module, seeds=[0], scale="smoke", claims=("C1",)))
    assert project.logged() == ["careful 2 1.0 0"]
    results = project.run(
        project.plan(module, seeds=[0], claims=("C1",), overrides={"lr": [0.5]})
    )  # fmt: skip
    assert project.logged() == ["careful 2 0.5 0"]
    assert not results.failures


def test_overrides_take_the_place_of_the_grid(project):
    plan = project.plan(
        project.write(STUDY), seeds=[100], overrides={"size": [5, 7], "method": ["two"]}
    )
    assert plan.size == 2
    project.run(plan)
    assert project.logged() == ["two 5 100", "two 7 100"]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"overrides": {"siz": [1]}}, "'siz': did you mean size?"),
        ({"overrides": {"size": ["big"]}}, "--set size=big: expected int, as in size=1"),
        ({"overrides": {"size": [True]}}, "--set size=True: expected int"),
        ({"overrides": {"method": ["tow"]}}, "'tow': did you mean two?"),
        ({"overrides": {"data": ["mnist"]}}, "takes no data"),
        ({"claims": ("C7",)}, "'C7': choose from C1, C2"),
        ({"scale": "dsk"}, "'dsk': did you mean desk?"),
        ({"added": {"one": "math:sqrt"}}, "has a method of that name"),
        ({"added": {"mine": "math"}}, "write module:factory"),
        ({"added": {"mine": "no_such_module:f"}}, "no module named 'no_such_module'"),
        ({"added": {"mine": "math:no_such_name"}}, "math has no 'no_such_name'"),
    ],
)
def test_what_is_wrong_with_a_request_is_said_before_any_work(project, request_, message):
    module = project.write(STUDY)
    with pytest.raises(UserError) as caught:
        project.plan(module, **request_)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not project.logged()


def test_a_changed_rival_runs_again_and_the_studys_methods_do_not(project):
    module = project.write(STUDY)
    for constant in ("return 3.0", "return 4.0"):
        rival = project.write(f"def mine():\n    {constant}\n")
        results = project.run(project.plan(module, [100], added={"mine": f"{rival}:mine"}))
        assert len(project.logged()) == (6 if constant == "return 3.0" else 2)
        assert not results.failures


class Recorder:
    """A backend that runs nothing and keeps what was in flight together."""

    jobs = 4

    def __init__(self):
        self.flying, self.together = [], []

    def submit(self, task):
        self.flying.append(task)
        self.together.append([t.key for t in self.flying])

    def as_completed(self):
        task = self.flying.pop(0)
        yield task, Outcome({"loss": 1.0, "gain": 1.0, "fit_seconds": 1.0})

    def stop(self):
        self.flying.clear()


def test_trials_whose_time_is_compared_run_last_and_alone(project):
    plan = project.plan(project.write(TUNED))
    tasks = list(plan.trials({}).values())
    alone = {task.key for task in tasks if task.alone}
    assert {task.experiment for task in tasks if task.alone} == {"once"}
    backend = Recorder()
    with Store() as store:
        execute(plan, tasks, "trials", store, backend, Silent())
    started = [flight[-1] for flight in backend.together]
    assert len(started) == len(tasks) == 24
    assert set(started[-12:]) == alone
    assert all(len(flight) == 1 for flight in backend.together[-12:])
    assert max(map(len, backend.together)) == 2 * backend.jobs


def test_ctrl_c_in_a_trial_keeps_what_had_finished(project):
    module = project.write(STUDY)
    plan = project.plan(module, seeds=[100])

    class Impatient(Silent):
        def finished(self, task, outcome):
            raise KeyboardInterrupt

    with Store() as store, running(0) as backend:
        with pytest.raises(Interrupted):
            run(plan, store, backend, Impatient())
        assert list(store.statuses("sample").values()) == ["ok"]
    assert len(project.logged()) == 1
    assert not project.run(plan).failures
    assert len(project.logged()) == 3
