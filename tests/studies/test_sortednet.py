"""The full-scale code of the study on tiny random models of the same classes, and its methods."""

import math

import pytest
import torch
from torch import nn

from paperworks.compress import macs, to_sorted
from paperworks.studies import sortednet as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24,
}  # fmt: skip
TINY = {"evaluations": 4, "batch_size": 4, "length": 8, "lr": 1e-3}


def metrics_of(experiment, method, cell):
    run = Run(0, methods=experiment.methods)
    metrics = study.trial(Setting(cell, method=method), run)
    assert all(map(math.isfinite, (m for m in metrics.values() if isinstance(m, float))))
    return metrics


def full_cell(experiment, **wanted):
    return next(c for c in experiment.full if wanted.items() <= c.items())


@pytest.fixture
def photos(photo_folder):
    return f"folder:{photo_folder}?size=16"


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_slimmable_networks(norm, photos):
    cell = full_cell(study.widths, norm=norm) | {"data": photos, "evaluations": 4, "batch_size": 4}
    metrics = metrics_of(study.widths, "sortednet", cell)
    assert len(metrics["accuracies"]) == 4
    assert metrics["share_of_macs"][0] < 0.1
    cell = full_cell(study.alone, norm=norm, share=0.5)
    cell |= {"data": photos, "evaluations": 2, "batch_size": 4}
    assert metrics_of(study.alone, "alone", cell)["share_of_macs"] == [1.0]


def test_resnet20_has_as_many_layers_and_is_cut_to_itself():
    network = study.resnet20(3, 16, 10, "batch")
    shapes = {n: p.shape for n, p in network.named_parameters()}
    layers = [s for n, s in shapes.items() if len(s) in (2, 4) and "skip" not in n]
    assert len(layers) == 20
    x = torch.randn(1, 3, 16, 16)
    setting = {"widths": 4}
    whole = study.make_sorted(setting, network, x)
    small = study.resnet20(3, 8, 10, "batch")
    cut = whole.materialize({"width": 0.5})
    assert {n: p.shape for n, p in cut.named_parameters()} == {
        n: p.shape for n, p in small.named_parameters()
    }
    assert whole.cost({"width": 0.5}, x) == macs(small, x)


@pytest.mark.slow
def test_mobilenet(photos):
    cell = full_cell(study.modular, network="mobilenet")
    assert study.make_spec(cell).size == 160
    cell |= {"data": photos, "evaluations": 4, "batch_size": 4, "width": 8, "blocks": 2}
    cell |= {"widths": 4, "first_widths": 1, "depths": 2}
    assert len(metrics_of(study.modular, "sortednet", cell)["accuracies"]) == 8


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A BERT and a LLaMA with their tokenizers, as they lie on the hub."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("hub")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder / "bert")
    vocabulary = {word: i for i, word in enumerate(words)}
    model = tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="[SEP]")
    fast.save_pretrained(folder / "llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        bert = transformers.BertConfig(vocab_size=25, **SIZES)
        transformers.BertModel(bert).save_pretrained(folder / "bert")
        llama = transformers.LlamaConfig(vocab_size=25, **SIZES)
        transformers.LlamaForCausalLM(llama).save_pretrained(folder / "llama")
    return folder


@pytest.fixture
def hub(monkeypatch):
    """What `datasets.load_dataset` is asked for; it gives rows of the right columns."""
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(path, config):
        asked.append((path, config))
        task = "gsm8k" if path == "openai/gsm8k" else config

        def rows(n):
            columns = {c: [f"w{i % 20} w{i % 3}" for i in range(n)] for c in study.TEXTS[task]}
            label = {} if task == "gsm8k" else {"label": [i % 2 for i in range(n)]}
            return datasets.Dataset.from_dict(columns | label)

        outer = {"gsm8k": "test", "mnli": "validation_matched"}.get(task, "validation")
        return {"train": rows(40), outer: rows(12)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cola", "mnli"])
def test_glue(task, checkpoints, hub):
    cell = full_cell(study.modular, task=task)
    assert study.make_spec(cell).size == 48
    cell |= TINY | {"network": str(checkpoints / "bert"), "depths": 2, "heads": 2}
    for method in study.modular.methods:
        assert len(metrics_of(study.modular, method, cell)["accuracies"]) == 4
    assert set(hub) == {("nyu-mll/glue", task)}


@pytest.mark.slow
def test_llama(checkpoints, hub):
    cell = full_cell(study.modular, task="gsm8k")
    assert [b["depth"] * 32 for b in study.make_spec(cell).configs] == [12, 16, 20, 24, 28, 32]
    cell |= TINY | {"network": str(checkpoints / "llama"), "depths": 2, "first_depths": 1}
    for method in study.modular.methods:
        metrics = metrics_of(study.modular, method, cell)
        assert len(metrics["accuracies"]) == 2
        assert metrics["accuracy"] < 1
    assert set(hub) == {("openai/gsm8k", "main")}
    (train, _, _), classes = study.load_parts(Setting(cell), Run(0))
    assert classes == 0
    assert train.x.shape[1:] == (2, 8)
    assert (train.y[train.x[:, 1] == 0] == -100).all()
    assert (train.y[train.x[:, 1] == 1] >= 0).all()


def test_next_token_targets_leave_out_padding():
    z = torch.arange(24.0).reshape(2, 4, 3)
    y = torch.tensor([[0, 1, 2, -100], [1, -100, -100, -100]])
    rows, targets = study.aligned(z, y)
    assert targets.tolist() == [1, 2]
    assert rows.tolist() == z[0, :2].tolist()


def task_of(experiment, method):
    cell = Setting(experiment.smoke[0], method=method)
    return study.Task(cell, Run(0, methods=experiment.methods))


def test_subsets_are_fixed_and_not_the_first_ones():
    task = task_of(study.widths, "non_nested")
    model = study.NonNested(task)
    x = torch.rand(3, 1, 8, 8)
    with model.at({"width": 0.25}):
        y = model(x)
        assert torch.equal(model(x), y)
    assert torch.equal(model(x), task.network(x))
    masks = [model.masks[key].bool() for key in model.masks if key[1] == 0.25]
    assert [int(mask.sum()) for mask in masks] == [32, 32]
    assert not masks[0][:32].all()
    assert not torch.equal(*masks)
    first, second, last = (m for m in task.network if isinstance(m, nn.Linear))
    h = first(x.flatten(1))[:, masks[0]].relu()
    h = nn.functional.linear(h, second.weight[masks[1]][:, masks[0]], second.bias[masks[1]]).relu()
    expected = nn.functional.linear(h, last.weight[:, masks[1]], last.bias)
    torch.testing.assert_close(y, expected)


def test_all_spend_as_many_gradients(monkeypatch):
    counts = {}
    for method in study.METHODS:
        task = task_of(study.widths, method)
        task.evaluations = 16
        loss, calls = task.loss, []
        monkeypatch.setattr(
            task, "loss", lambda m, b, loss=loss, c=calls: (c.append(1), loss(m, b))[1]
        )
        study.METHODS[method](task)
        counts[method] = len(calls)
    assert set(counts.values()) == {16}


def test_sharing_blocks_measures_what_separate_forwards_do():
    task = task_of(study.modular, "sortednet")
    model = task.sorted().eval()
    found = study.measure(task, model, task.test)
    x, y = task.test.tensors()
    for b, (loss, accuracy) in zip(task.spec.configs, found):
        z = model.materialize(b)(x)
        assert loss.item() == pytest.approx(nn.functional.cross_entropy(z, y).item(), rel=1e-4)
        assert accuracy.item() == pytest.approx((z.argmax(1) == y).double().mean().item())


def test_training_noise_is_fresh_and_test_noise_is_not():
    task = task_of(study.widths, "sortednet")
    assert float(task.train.tensors()[0].min()) >= 0
    for part in (task.val, task.test):
        assert float(part.tensors()[0].min()) < -0.3
    again = task_of(study.widths, "sandwich")
    assert torch.equal(task.test.tensors()[0], again.test.tensors()[0])
    assert len(task.train) + len(task.val) + len(task.test) == 1797
    assert len(task.train) == pytest.approx(900, abs=3)
    batches = task.batches()
    assert float(next(batches)[0].min()) < -0.3


def test_a_rival_needs_no_more_than_the_stated_convention():
    def mine(task):
        whole = to_sorted(task.network, task.spec, example=task.example)
        return task.fit(whole, accumulate=2)

    cell = Setting(study.widths.smoke[0], method="mine")
    metrics = study.trial(cell, Run(0, methods={"mine": mine}))
    assert len(metrics["accuracies"]) == 8


def test_everyone_tries_as_many_rates():
    for experiment in study.study:
        counts = {len(experiment.tune.candidates(method)) for method in experiment.methods}
        assert counts == {3}
