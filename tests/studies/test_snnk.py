"""The full-scale code of the study on tiny random models of the same classes, and its metrics."""

import math

import pytest
import torch
from torch import nn

from paperworks.common.surgery import replace_modules
from paperworks.compress import HoulsbyAdapter, LowRankLinear, SNNKLinear
from paperworks.studies import snnk as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

SIZES = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
TINY = {"m": 4, "length": 8, "epochs": 1, "most_steps": 2, "batch_size": 4, "lr": 1e-2}


def full_cell(task):
    return next(cell for cell in study.adapters.full if cell["task"] == task)


def adapt(method, cell):
    run = Run(0, methods=study.adapters.methods)
    return study.adaptation(Setting(cell | TINY, method=method), run)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT checkpoint with its tokenizer, as it lies on the hub."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(20))]
    (folder / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(vocab_size=len(words), **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["cola", "mnli", "stsb"])
def test_glue(task, bert, monkeypatch):
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("peft")
    asked = []

    def rows(n):
        texts = {column: [f"w{i % 20} w{i % 3}" for i in range(n)] for column in study.GLUE[task]}
        label = [i / 4 if task == "stsb" else i % (3 if task == "mnli" else 2) for i in range(n)]
        return datasets.Dataset.from_dict(texts | {"label": label})

    def load_dataset(path, config):
        asked.append((path, config))
        outer = "validation_matched" if task == "mnli" else "validation"
        return {"train": rows(40), outer: rows(12)}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    cell = full_cell(task) | {"network": bert}
    for method in study.adapters.methods:
        metrics = adapt(method, cell)
        assert all(map(math.isfinite, metrics.values()))
    assert set(asked) == {("nyu-mll/glue", task)}
    train, val, test, outputs = study.task_parts(Setting(cell | TINY), Run(0))
    assert (len(train), len(val), len(test)) == (36, 4, 12)
    assert outputs == {"stsb": 1, "mnli": 3, "cola": 2}[task]
    assert train.x.shape[1:] == (3, TINY["length"])
    if task != "cola":  # the second sentence is of another kind
        assert train.x[:, 2].sum() > 0


@pytest.mark.slow
def test_pictures(tmp_path):
    transformers = pytest.importorskip("transformers")
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("peft")
    generator = torch.Generator().manual_seed(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(10):
            pixels = torch.randint(256, (8, 8, 3), generator=generator, dtype=torch.uint8)
            image.fromarray(pixels.numpy()).save(tmp_path / "photos" / label / f"{i}.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.ViTConfig(image_size=8, patch_size=4, **SIZES)
        transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    cell = full_cell("hub:uoft-cs/cifar10?size=224") | {"network": str(tmp_path / "vit")}
    real = study.data.load
    with pytest.MonkeyPatch.context() as patch:
        folder = f"folder:{tmp_path / 'photos'}?size=8"
        patch.setattr(study.data, "load", lambda name, **options: real(folder, **options))
        for method in study.adapters.methods:
            assert adapt(method, cell)["score"] in {i / 4 for i in range(5)}


@pytest.mark.slow
def test_lora_learns_as_many_numbers_as_snnk(bert):
    pytest.importorskip("peft")
    from transformers import AutoModel

    model = AutoModel.from_pretrained(bert)
    adapted = study.lora(model, 16)
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all("lora" in name and ("query" in name or "value" in name) for name in trained)
    assert not any("lora" in name for name, _ in model.named_parameters())
    inputs = torch.randint(5, 25, (2, 6))
    before = model.eval()(inputs).last_hidden_state
    assert torch.equal(adapted.eval()(inputs).last_hidden_state, before)


def test_low_rank_layers_have_no_fewer_numbers():
    linear = nn.Linear(64, 256)
    for m in study.WIDTHS:
        ours, theirs = study.snnk_layer(linear, m), study.low_rank_layer(linear, m)
        sizes = [sum(p.numel() for p in layer.parameters()) for layer in (ours, theirs)]
        assert isinstance(ours, SNNKLinear)
        assert isinstance(theirs[0], LowRankLinear)
        assert sizes[0] == 256 * m <= sizes[1] < 256 * m + 64 + 256
    assert study.low_rank_layer(linear, 1000)[0].V.out_features == 64


def test_files_are_cut_and_not_their_texts():
    y = torch.tensor([0] * 40 + [1] * 60)
    file = torch.cat([torch.arange(20).repeat(2), 20 + torch.arange(20).repeat(3)])
    parts = study.cut_by_file(y, file, torch.Generator().manual_seed(0))
    assert sorted(torch.cat(parts).tolist()) == list(range(100))
    files = [set(file[part].tolist()) for part in parts]
    assert len(set.union(*files)) == sum(map(len, files))
    for label in (0, 1):
        assert [len(set(file[p][y[p] == label].tolist())) for p in parts] == [10, 3, 7]
    other = study.cut_by_file(y, file, torch.Generator().manual_seed(1))
    assert other[0].tolist() != parts[0].tolist()


def test_scores():
    z = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 3.0]])
    y = torch.tensor([0, 1, 0])
    assert study.score("sst2", z, y) == pytest.approx(2 / 3)
    assert study.score("cola", z, y) == pytest.approx(0.5)
    assert study.score("stsb", z[:, 1:], torch.tensor([0.1, 0.0, 9.0])) == pytest.approx(3**0.5 / 2)
    assert study.loss(z[:, 1:], torch.tensor([1.0, 1.0, 1.0])) == pytest.approx(4 / 3)


def test_gaussian_process_has_its_covariance():
    draws = [study.gaussian_process(10, Run(seed)) for seed in range(400)]
    assert [len(part) for part in draws[0]] == [6, 2, 2]
    train = torch.stack([parts[0].y for parts in draws])
    assert train.square().mean() == pytest.approx(1.01, abs=0.1)
    x = torch.stack([parts[0].x for parts in draws])
    near = torch.exp(-(x[:, 0] - x[:, 1]).square().sum(1) / 8)
    assert (train[:, 0] * train[:, 1] - near).mean() == pytest.approx(0, abs=0.15)


def test_a_rival_needs_no_more_than_the_stated_conventions():
    run = Run(0, methods={"mine": lambda linear, m: nn.Sequential(linear, nn.Tanh())})
    cell = Setting(study.compressed.smoke[0], method="mine", lr=1e-2)
    assert 0 <= study.classification(cell, run)["accuracy"] <= 1
    run = Run(0, methods={"mine": lambda train, val, setting, run: lambda x: x[:, 0]})
    cell = Setting(study.tables.smoke[0], method="mine")
    assert math.isfinite(study.regression(cell, run)["r2"])

    def after_everything(model, m):
        adapted, _ = replace_modules(
            model.requires_grad_(False),
            nn.Linear,
            lambda name, old: nn.Sequential(old, HoulsbyAdapter(old.out_features, m)),
        )
        return adapted

    run = Run(0, methods={"mine": after_everything})
    cell = Setting(study.adapters.smoke[0] | {"method": "mine", "lr": 1e-2})
    assert study.adaptation(cell, run)["trainables"] == 16 * (2 * 4 + 1) + 4


def test_everyone_tries_as_many_candidates():
    for experiment in (study.compressed, study.dense, study.tables, study.adapters):
        counts = {len(experiment.tune.candidates(method)) for method in experiment.methods}
        assert len(counts) == 1
