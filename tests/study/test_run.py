"""What a trial is handed: streams, places, witnesses, artefacts."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load

from paperworks.study.run import ARTEFACT_LIMIT, Run, digest

PNG = b"\x89PNG\r\n\x1a\n"


def draw(run, name, n=4):
    return torch.rand(n, generator=run.rng(name)).tolist()


def test_a_stream_depends_on_seed_and_name_alone():
    first, second = Run(7), Run(7)
    alone = draw(first, "weights")
    draw(second, "method", 1000)  # a method that draws much shifts nobody else's numbers
    assert draw(second, "weights") == alone
    assert draw(Run(8), "weights") != alone
    assert draw(Run(7), "split") != alone


def test_a_stream_asked_for_again_goes_on():
    run = Run(7)
    assert draw(run, "split", 4) + draw(run, "split", 4) == draw(Run(7), "split", 8)


def test_random_state_is_the_same_at_every_call_and_another_a_name():
    run = Run(7)
    assert run.random_state("split") == run.random_state("split") == Run(7).random_state("split")
    assert run.random_state("split") != run.random_state("weights")
    np.random.default_rng(run.random_state("split"))
    assert 0 <= run.random_state("split") < 2**32


def test_seeded_follows_the_stream_and_restores_the_global_generator():
    run, before = Run(7), torch.get_rng_state()
    with run.seeded("weights"):
        first = torch.nn.Linear(3, 2).weight
    assert torch.equal(torch.get_rng_state(), before)
    with run.seeded("weights"):
        second = torch.nn.Linear(3, 2).weight
    with Run(7).seeded("weights"):
        again = torch.nn.Linear(3, 2).weight
    assert torch.equal(first, again)
    assert not torch.equal(first, second)  # the stream has moved on


def test_seeded_restores_the_global_generator_after_an_error():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="shape"), Run(7).seeded("weights"):
        torch.rand(2).view(3, 3)
    assert torch.equal(torch.get_rng_state(), before)


def test_checkpoint_is_made_when_asked_for(tmp_path):
    run = Run(7, checkpoint=tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    assert run.checkpoint.is_dir()
    with pytest.raises(RuntimeError, match="no checkpoint"):
        _ = Run(7).checkpoint


def test_progress_reaches_whoever_watches_and_is_free_otherwise():
    seen = []
    Run(7, report=lambda *at: seen.append(at)).progress(3, 10)
    Run(7).progress(3, 10)
    assert seen == [(3, 10)]


def test_artefacts_are_kept_by_kind():
    run = Run(7)
    tensor = torch.arange(6.0).view(2, 3).T  # not contiguous
    run.artefact("picture", PNG)
    run.artefact("weights", {"w": tensor.requires_grad_()})
    run.artefact("table-1", {"rows": [1, 2.5, "x"]})
    assert list(run.artefacts) == ["picture.png", "weights.safetensors", "table-1.json"]
    assert torch.equal(load(run.artefacts["weights.safetensors"])["w"], tensor)
    assert json.loads(run.artefacts["table-1.json"]) == {"rows": [1, 2.5, "x"]}


def test_an_artefact_has_at_most_a_million_bytes():
    run = Run(7)
    run.artefact("just", PNG + bytes(ARTEFACT_LIMIT - len(PNG)))
    with pytest.raises(ValueError, match="'over' has 1,000,001 bytes"):
        run.artefact("over", PNG + bytes(ARTEFACT_LIMIT - len(PNG) + 1))
    with pytest.raises(ValueError, match="at most 1,000,000"):
        run.artefact("tensors", {"w": torch.zeros(250_000)})  # with its header it is over
    assert list(run.artefacts) == ["just.png"]


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a.png", "a b", "a\n"])
def test_artefact_names_are_plain(name):
    with pytest.raises(ValueError, match="letters, digits"):
        Run(7).artefact(name, {})


@pytest.mark.parametrize(
    ("data", "error"), [(b"GIF89a", "PNG"), (float("nan"), "JSON"), ({"a": object()}, "JSON")]
)
def test_an_artefact_that_cannot_be_kept(data, error):
    with pytest.raises((ValueError, TypeError), match=error):
        Run(7).artefact("it", data)


def test_witnesses_are_equal_where_the_values_are():
    first, second = Run(7), Run(8)
    for run in (first, second):
        run.witness(split=torch.arange(3), weights={"w": torch.ones(2), "rate": 0.5})
    assert first.witnesses == second.witnesses
    second.witness(split=torch.arange(3) + 1)
    assert first.witnesses["split"] != second.witnesses["split"]
    assert first.witnesses["weights"] == second.witnesses["weights"]
    assert digest(torch.tensor(2.0)) == digest(np.float32(2.0))
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(2), torch.tensor([0.0, 5e-324]).nextafter(torch.ones(2))),
        (["a", ["b"]], [["a"], "b"]),
        ({"a": "b"}, ["a", "b"]),
        ([1, 2], [12]),
        ("1", 1),
        ([], None),
        ([], {}),
    ],
)
def test_witnesses_tell_different_values_apart(one, other):
    assert digest(one) != digest(other)


def test_a_witness_of_a_parameter_counts_its_values():
    values = torch.ones(3, dtype=torch.bfloat16)
    assert digest(torch.nn.Parameter(values)) == digest(values)
