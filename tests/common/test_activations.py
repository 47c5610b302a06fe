import pytest
import torch
from torch import nn

from paperworks.common.activations import (
    ActivationRecorder,
    collect_activations,
    evaluating,
    find_modules,
    unit_rows,
)


@pytest.fixture
def chain():
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Dropout(0.5), nn.Linear(4, 2)]
    return nn.Sequential(*layers).double()


def inputs(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def hook_count(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# --- live -----------------------------------------------------------------------------------------


def test_records_outputs_of_one_forward_in_execution_order(chain):
    x = inputs(5, 3)
    with ActivationRecorder(chain, ["3", "0", "1"]) as recorder:
        y = chain(x)
    assert list(recorder.activations) == ["0", "1", "3"]
    assert recorder.activations["3"] is y
    assert torch.equal(recorder.activations["0"], chain[0](x))


def test_records_inputs(chain):
    x = inputs(5, 3)
    with ActivationRecorder(chain, ["0", "1"], of="input") as recorder:
        chain(x)
    assert recorder.activations["0"] is x
    assert torch.equal(recorder.activations["1"], chain[0](x))


def test_input_given_by_keyword():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x):
            return self.inner(input=x)

    x = torch.rand(1, 3)
    with ActivationRecorder(model := Outer(), ["inner"], of="input") as recorder:
        model(x)
    assert recorder.activations["inner"] is x


def test_recorded_tensors_are_part_of_the_graph(chain):
    chain.eval()
    with ActivationRecorder(chain, ["0"]) as recorder:
        loss = chain(inputs(5, 3)).sum()
    hidden = recorder.activations["0"]
    (on_the_way,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    assert torch.equal(on_the_way, (hidden > 0) * chain[3].weight.sum(0))
    hidden.square().sum().backward()
    assert chain[0].weight.grad.abs().sum() > 0


def test_each_forward_starts_afresh(chain):
    with ActivationRecorder(chain, ["0"]) as recorder:
        chain(inputs(5, 3))
        chain(inputs(2, 3))
        assert recorder.activations["0"].shape == (2, 4)


def test_hooks_go_when_the_forward_raises(chain):
    with pytest.raises(RuntimeError), ActivationRecorder(chain, ["0"]):
        chain(inputs(5, 7))
    assert hook_count(chain) == 0


def test_one_forward_updates_batch_norm_once():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with ActivationRecorder(model, ["0"]):
        model(torch.rand(5, 3))
    assert model[1].num_batches_tracked == 1


def test_a_tensor_changed_in_place_is_never_handed_out():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.rand(5, 3)
    with ActivationRecorder(model, ["0"]) as recorder:
        model(x)
    with pytest.raises(ValueError, match="output of layer '0' was changed in place"):
        recorder.activations  # noqa: B018
    with ActivationRecorder(model, ["0"], transform=torch.clone) as recorder:
        model(x)
    assert torch.equal(recorder.activations["0"], model[0](x))


def test_tuples_give_their_first_item_and_dicts_ask_for_a_transform():
    class Dictionary(nn.Module):
        def forward(self, x):
            return {"logits": x[0]}

    model = nn.Sequential(nn.GRU(3, 4), Dictionary())
    x = torch.rand(5, 2, 3)
    with ActivationRecorder(model, ["0"]) as recorder:
        model(x)
    assert torch.equal(recorder.activations["0"], model[0](x)[0])
    message = "output of layer '1' is a dict with keys \\['logits'\\]"
    with pytest.raises(TypeError, match=message), ActivationRecorder(model, ["1"]):
        model(x)
    assert hook_count(model) == 0
    with ActivationRecorder(model, ["1"], transform=lambda out: out["logits"]) as recorder:
        model(x)
    assert recorder.activations["1"].shape == (5, 2, 4)


def test_a_layer_that_runs_twice_is_refused():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, shared)
    with pytest.raises(ValueError, match="'0' ran twice"), ActivationRecorder(model, ["0"]):
        model(torch.rand(1, 3))


def test_works_under_inference_mode(chain):
    with torch.inference_mode(), ActivationRecorder(chain, ["0"]) as recorder:
        chain(inputs(5, 3))
        assert recorder.activations["0"].shape == (5, 4)


def test_unknown_names_come_with_near_ones(chain):
    model = nn.ModuleDict({"encoder": chain})
    with pytest.raises(ValueError, match="layer 'encodr' not found: did you mean encoder"):
        ActivationRecorder(model, ["encodr"])
    with pytest.raises(ValueError, match=r"block 'x' not found: see model\.named_modules"):
        find_modules(model, ["x"], "block")
    with pytest.raises(TypeError, match="sequence of layer names, got the string 'encoder'"):
        ActivationRecorder(model, "encoder")
    with pytest.raises(ValueError, match="of must be"):
        ActivationRecorder(model, ["encoder"], of="gradient")


# --- streamed -------------------------------------------------------------------------------------


def test_streaming_equals_one_large_forward_in_evaluation_mode(chain):
    x = inputs(10, 3)
    chain.train()
    chain[2].eval()
    kept = collect_activations(chain, x.split(4), ["0", "3"])
    assert [m.training for m in chain] == [True, True, False, True]
    with evaluating(chain):
        torch.testing.assert_close(kept["0"], chain[0](x))
        torch.testing.assert_close(kept["3"], chain(x))
    assert not any(a.requires_grad for a in kept.values())
    assert hook_count(chain) == 0


def test_kinds_of_batches(chain):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = chain

        def forward(self, pixels, scale):
            return self.chain(pixels * scale)

    x = inputs(4, 3)
    expected = collect_activations(chain, x, ["0"])["0"]
    for batch in [(x, torch.zeros(4)), [x, "label"]]:
        assert torch.equal(collect_activations(chain, [batch], ["0"])["0"], expected)
    batches = [{"pixels": x, "scale": 1.0}]
    assert torch.equal(collect_activations(Named(), batches, ["chain.0"])["chain.0"], expected)
    with pytest.raises(TypeError, match=r"a batch must be a tensor, .* got a str"):
        collect_activations(chain, ["abc"], ["0"])
    with pytest.raises(ValueError, match="batches is empty"):
        collect_activations(chain, [], ["0"])


def test_in_place_layers_do_no_harm_to_what_is_streamed():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True))
    x = torch.rand(6, 3)
    kept = collect_activations(model, [x], ["0"])
    assert torch.equal(kept["0"], model[0](x))
    assert (kept["0"] < 0).any()


def test_reduce_gets_one_batch_at_a_time_with_its_labels(chain):
    seen = []
    batches = [(inputs(4, 3), torch.tensor([0, 1, 0, 1])), (inputs(2, 3), torch.tensor([1, 1]))]

    def reduce(activations, batch):
        seen.append((activations["1"].shape[0], batch[1].tolist()))

    assert collect_activations(chain, batches, ["1"], reduce=reduce) == {}
    assert seen == [(4, [0, 1, 0, 1]), (2, [1, 1])]


def test_transform_may_keep_anything_for_reduce_but_tensors_for_concatenation(chain):
    means = []
    collect_activations(
        chain,
        inputs(4, 3),
        ["0"],
        transform=lambda out: out.mean().item(),
        reduce=lambda activations, _: means.append(activations["0"]),
    )
    assert isinstance(means[0], float)
    with pytest.raises(TypeError, match="transform gave a float for layer '0'"):
        collect_activations(chain, inputs(4, 3), ["0"], transform=lambda out: out.mean().item())


def test_early_stop_leaves_the_forward():
    class Explodes(nn.Module):
        def forward(self, x):
            raise RuntimeError("must not run")

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), Explodes())
    x = torch.rand(5, 3)
    for of in ("input", "output"):
        kept = collect_activations(model, x.split(2), ["0", "1"], of=of, early_stop=True)
        assert kept["1"].shape == (5, 4)
    with pytest.raises(RuntimeError, match="must not run"):
        collect_activations(model, x, ["0", "1"])


def test_layers_that_do_not_run_and_shapes_that_do_not_fit_are_named():
    model = nn.ModuleDict({"used": nn.Identity(), "unused": nn.Identity()})
    model.forward = lambda x: model["used"](x)
    with pytest.raises(ValueError, match="'unused' did not run"):
        collect_activations(model, torch.rand(2, 3), ["used", "unused"])
    with pytest.raises(ValueError, match=r"'used' gives shapes \[\(2, 3\), \(2, 5\)\]"):
        collect_activations(model, [torch.rand(2, 3), torch.rand(2, 5)], ["used"])
    assert model.training


# --- samples of rows ------------------------------------------------------------------------------


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_sample_of_rows_is_the_same_for_all_layers_and_networks(chain):
    x = inputs(50, 3)
    sample = {"max_rows": 7, "generator": seeded()}
    kept = collect_activations(chain, x.split(8), ["0", "1"], **sample)
    assert kept["0"].shape == (7, 4)
    assert torch.equal(kept["0"].relu(), kept["1"])
    other = collect_activations(nn.Identity(), x.split(8), [""], max_rows=7, generator=seeded())
    torch.testing.assert_close(chain[0](other[""]), kept["0"])


def test_a_sample_is_in_order_and_without_repetition():
    x = torch.arange(1000.0)[:, None]
    (kept,) = collect_activations(
        nn.Identity(), x.split(30), [""], max_rows=100, generator=seeded()
    ).values()
    assert torch.equal(kept.flatten(), kept.flatten().unique(sorted=True))
    assert len(kept) == 100


def test_a_sample_is_uniform():
    x = torch.arange(20.0)[:, None]
    generator, counts = seeded(), torch.zeros(20)
    for _ in range(400):
        sample = {"max_rows": 5, "generator": generator}
        kept = collect_activations(nn.Identity(), x.split(6), [""], **sample)[""]
        counts[kept.flatten().long()] += 1
    expected = 400 * 5 / 20
    assert ((counts - expected).square() / expected).sum() < 43.8  # chi squared, 19, 0.1 %


def test_fewer_rows_than_the_sample_are_all_kept(chain):
    x = inputs(5, 3)
    kept = collect_activations(chain, x.split(2), ["0"], max_rows=9, generator=seeded())["0"]
    torch.testing.assert_close(kept, chain[0](x))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_rows": 0, "generator": seeded()}, "max_rows must be a positive integer, got 0"),
        ({"max_rows": 3}, "needs generator="),
        ({"max_rows": 3, "generator": seeded(), "reduce": print}, "reduce= keeps none"),
    ],
)
def test_bad_samples(chain, arguments, message):
    with pytest.raises(ValueError, match=message):
        collect_activations(chain, inputs(5, 3), ["0"], **arguments)


def test_unit_rows():
    maps = torch.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    rows = unit_rows(maps)
    assert rows.shape == (8, 3)
    assert torch.equal(rows[5], maps[1, :, 0, 1])
    sequence = torch.rand(2, 5, 3)
    assert torch.equal(unit_rows((sequence, None)), sequence.flatten(0, 1))
    assert torch.equal(unit_rows(sequence[0]), sequence[0])
    with pytest.raises(TypeError, match="a dict"):
        unit_rows({"x": sequence})
    with pytest.raises(ValueError, match="shape"):
        unit_rows(torch.rand(3))
