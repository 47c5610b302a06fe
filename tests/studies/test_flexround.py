"""The full-scale code of the study on tiny random models of the same classes, and its metrics."""

import json
import math
from functools import partial

import pytest
import torch
from torch import nn

from paperworks.compress import AdaRound, FlexRound, RoundToNearest, reconstruct_
from paperworks.studies import flexround as study
from paperworks.study import UserError
from paperworks.study.contract import Setting
from paperworks.study.run import Run

TINY_PICTURES = {"bits": 3, "calibration": 6, "iterations": 2, "batch_size": 4}
TINY_TEXT = {"sequences": 4, "context": 8, "iterations": 2, "batch_size": 2}


@pytest.fixture
def photos(photo_folder):
    return f"folder:{photo_folder}?size=32"


def classifier(kind, folder, labels):
    """A checkpoint as it lies on the hub: weights, configuration, preprocessing."""
    transformers = pytest.importorskip("transformers")
    if kind == "mobilenet":
        config = transformers.MobileNetV2Config(
            num_labels=labels, depth_multiplier=0.1, min_depth=8, finegrained_output=False
        )
        model = transformers.MobileNetV2ForImageClassification(config)
    else:
        layer = "basic" if kind == "resnet18" else "bottleneck"
        config = transformers.ResNetConfig(
            depths=[1, 2], hidden_sizes=[8, 16], embedding_size=8, layer_type=layer,
            num_labels=labels,
        )  # fmt: skip
        model = transformers.ResNetForImageClassification(config)
    for module in model.modules():  # the models' own start is too small to carry a signal
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data.normal_(0, (2 / module.weight[0].numel()) ** 0.5)
    model.save_pretrained(folder)
    recipe = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"shortest_edge": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(recipe))
    return str(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "labels"), [("resnet18", 3), ("resnet50", 3), ("mobilenet", 4)])
def test_imagenet_networks(kind, labels, photos, tmp_path):
    name = classifier(kind, tmp_path / "net", labels)
    cell = study.rounding.full[0] | TINY_PICTURES | {"network": name, "data": photos}
    for method in ("rtn", "flexround"):
        run = Run(0, methods=study.rounding.methods)
        metrics = study.trial(Setting(cell, method=method), run)
        assert all(map(math.isfinite, metrics.values()))
        assert 0 < metrics["logit_error"] < 10
    network, blocks = study.picture_network(
        Setting(cell), Run(0), study.data.load(photos, generator=torch.Generator())
    )
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    weights = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert all(any(w.startswith(block) for block in blocks) for w in weights)


@pytest.mark.slow
def test_a_classifier_of_other_classes_is_refused(photos, tmp_path):
    name = classifier("resnet18", tmp_path / "net", 7)
    cell = study.rounding.full[0] | TINY_PICTURES | {"network": name, "data": photos}
    with pytest.raises(UserError, match="knows 7 classes, the data have 3"):
        study.trial(Setting(cell, method="rtn"), Run(0, methods=study.rounding.methods))


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
        vocab_size=21, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "llama")

    asked = []

    def load_dataset(path, config, *, split, streaming):
        asked.append((path, config, split, streaming))
        rows = [{"text": " ".join(words[i % 20 :] + words[: i % 20])} for i in range(40)]
        return datasets.Dataset.from_list(rows).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    sizes = TINY_TEXT | {"sequences": 32, "network": str(tmp_path / "llama")}
    for cell in study.perplexities.full:
        for method in ("rtn", "flexround"):
            run = Run(0, methods=study.perplexities.methods)
            metrics = study.language(Setting(cell | sizes, method=method), run)
            assert metrics["float_perplexity"] == pytest.approx(21, rel=0.5)
            assert metrics["perplexity"] != metrics["float_perplexity"]
    assert set(asked) == {
        ("allenai/c4", "en", "train", True),
        ("Salesforce/wikitext", "wikitext-2-raw-v1", "test", True),
    }
    too_long = study.perplexities.full[0] | sizes | {"sequences": 1000}
    with pytest.raises(UserError, match="gave 800 tokens, 8000 are needed"):
        study.language(Setting(too_long, method="rtn"), Run(0, methods=study.perplexities.methods))


def test_other_pictures_decide_channels_classes_and_stride(photos):
    cell = study.rounding.smoke[0] | TINY_PICTURES | {"data": photos.replace("32", "40")}
    metrics = study.trial(Setting(cell, method="rtn"), Run(0, methods=study.rounding.methods))
    assert metrics["accuracy"] in {i / 4 for i in range(5)}  # 20 % of 24 pictures, rounded down
    pictures = study.data.load(cell["data"], generator=torch.Generator())
    network = study.small_mobilenet(pictures, 8, 1)
    assert network.stem.conv.in_channels == 3
    assert network.stem.conv.stride == (2, 2)
    assert network.head.out_features == 3


def test_a_rival_needs_no_more_than_the_stated_convention():
    class Down(RoundToNearest):
        def levels(self, weight):
            return self.clip((weight / self.scale).floor())

    run = Run(0, methods={"down": Down})
    cell = study.rounding.smoke[0] | TINY_PICTURES
    assert study.trial(Setting(cell, method="down", lr=0.1), run)["logit_error"] > 0
    assert (
        study.language(Setting(study.perplexities.smoke[0], method="down"), run)["perplexity"] > 0
    )


def test_moved_counts_weights_two_cells_or_more_away():
    network = nn.Sequential(nn.Linear(3, 1, bias=False))
    network[0].weight.data = torch.tensor([[0.1, 1.0, -2.0]])
    grid = (torch.tensor(0.5), torch.tensor(0))

    class Shifted(RoundToNearest):
        def levels(self, weight):
            return super().levels(weight) + torch.tensor([[0.0, 1.0, 2.0]])

    original = network[0].weight.detach().clone()
    shares = []
    for method in (Shifted, RoundToNearest):
        result = reconstruct_(
            network,
            ["0"],
            torch.eye(3),
            rounding=partial(method, scale=grid),
            bits=4,
            quantize_first_last=True,
        )
        network[0].weight.data = original.clone()
        shares.append(study.moved(network, result, 4))
    assert shares == [pytest.approx(1 / 3), 0.0]


def test_factor_correlation_by_hand():
    w = torch.tensor([[0.5, -1.0, 2.0, 4.0]])
    rounding = FlexRound(w, 4)
    rounding.log_S2.data = torch.tensor([[0.1, -0.2, 0.3, -0.4]])
    assert study.factor_correlation(w, rounding) == pytest.approx(1)
    rounding.log_s3.data.fill_(-0.4)  # |log S|: 0.3, 0.6, 0.1, 0.8
    assert study.factor_correlation(w, rounding) == pytest.approx(0.4)


def test_the_chain_is_the_seed_s_own_and_a_text_of_its_law():
    law = study.markov_law(Run(0))
    assert torch.allclose(law.sum(-1), torch.ones(16, 16))
    assert not torch.equal(law, study.markov_law(Run(1)))
    tokens = study.markov_chain(law, 4000, 8, torch.Generator().manual_seed(0))
    pair = tokens[:, 5] * 16 + tokens[:, 6]
    most = pair.mode().values
    seen = torch.bincount(tokens[pair == most, 7], minlength=16).double()
    expected = law[most // 16, most % 16].double()
    assert (seen / seen.sum() - expected).abs().max() < 0.2


def test_baselines_try_as_many_rates_as_the_method():
    tune = study.rounding.tune
    assert [len(tune.candidates(m)) for m in study.rounding.methods] == [0, 3, 3, 3]
    assert study.rounding.methods["adaround"] is AdaRound
