"""The full-scale code of the study on tiny random models of the same classes, and its metrics."""

import json
import math

import pytest
import torch
from torch import nn

from paperworks.compress import footprint, learn_codebooks
from paperworks.studies import jlcm as study
from paperworks.study.contract import Setting
from paperworks.study.run import Run

TINY_PICTURES = {"bits": 2, "calibration": 6, "iterations": 2, "batch_size": 4}


@pytest.fixture
def photos(photo_folder):
    return f"folder:{photo_folder}?size=32"


@pytest.mark.slow
def test_a_residual_network_of_transformers(photos, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        depths=[1, 1], hidden_sizes=[16, 32], embedding_size=8, layer_type="bottleneck",
        num_labels=3,
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config)
    for module in model.modules():  # the models' own start is too small to carry a signal
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5)
    model.save_pretrained(tmp_path / "net")
    recipe = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 32}}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(recipe))
    cell = study.compression.full[0] | TINY_PICTURES | {"data": photos}
    cell |= {"network": str(tmp_path / "net")}
    for method in ("rtn", "groups", "jlcm"):
        run = Run(0, methods=study.compression.methods)
        metrics = study.pictures(Setting(cell, method=method), run)
        assert all(map(math.isfinite, metrics.values()))
        assert 0 < metrics["logit_error"] < 10
        assert 2 < metrics["bits_per_weight"] < 12  # batch norms stay, and are many


@pytest.mark.slow
def test_llama(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    datasets = pytest.importorskip("datasets")
    tokenizers = pytest.importorskip("tokenizers")
    words = [f"w{i}" for i in range(20)]
    vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.save_pretrained(tmp_path / "llama")
    config = transformers.LlamaConfig(
        vocab_size=21, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "llama")

    def load_dataset(path, config, *, split, streaming):
        rows = [{"text": " ".join(words[i % 20 :] + words[: i % 20])} for i in range(40)]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sizes = {"sequences": 32, "context": 8, "iterations": 2, "network": str(tmp_path / "llama")}
    cell = study.perplexities.full[0] | sizes
    found = {}
    for method in study.perplexities.methods:
        run = Run(0, methods=study.perplexities.methods)
        found[method] = study.language(Setting(cell, method=method), run)
        assert found[method]["float_perplexity"] == pytest.approx(21, rel=0.5)
        assert found[method]["perplexity"] != found[method]["float_perplexity"]
    weights = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48) + 21 * 32
    rest = 2 * (21 * 32 + 5 * 32)  # embedding and norms in half precision
    assert found["jlcm"]["gigabytes"] * 1e9 == pytest.approx(weights * 2 / 8 + rest, rel=0.15)


def test_sizes_by_hand():
    network = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    setting = Setting(bits=3)
    task = study.Task(network, torch.rand(4, 8), setting, torch.Generator().manual_seed(0))
    rounded, size = study.rtn(task)
    # 40 weights of 3 bits, 6 rows with a half-precision step and a zero point, 6 float biases
    assert 8 * size == 40 * 3 + 6 * (16 + 3) + 6 * 32
    assert rounded[0].weight.unique(dim=None).numel() <= 4 * 8
    assert study.weights_of(network) == 40


def test_changes_of_rank_by_hand():
    network = nn.Sequential(nn.Linear(4, 1, bias=False))
    network[0].weight.data = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    task = study.Task(network, torch.eye(4), Setting(bits=2), torch.Generator())

    def after(report, codebooks):
        (codebook,) = codebooks.values()
        moves = torch.tensor([[2, 1, 3, 3]])  # by 2, 0, 1 and 0 places
        codebook.logits.data = nn.functional.one_hot(moves, 4).permute(2, 0, 1).float()
        task.after_block(report, codebooks)

    learn_codebooks(network, task.inputs, bits=2, steps=0, after_block=after)
    assert [change.tolist() for change in task.changes] == [[2, 0, 1, 0]]


def test_a_rival_needs_no_more_than_the_stated_convention():
    def keep(task):
        return task.network, footprint(task.network)["total"]

    run = Run(0, methods={"keep": keep})
    metrics = study.pictures(Setting(study.compression.smoke[0], method="keep", lr=0.1), run)
    assert metrics["logit_error"] == 0
    assert metrics["bits_per_weight"] > 32
    assert "moved" not in metrics


def test_baselines_try_as_many_rates_as_the_method():
    counts = {m: len(study.tuning.candidates(m)) for m in study.compression.methods}
    assert [counts[m] for m in ("codebook_only", "ordinary", "jlcm")] == [3, 3, 3]
    assert sum(counts.values()) == 9
