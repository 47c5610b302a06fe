"""The study's readers and steerers, and its full-scale code on tiny models and texts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from paperworks.representation import CodeEdit, steer, wrap_codebooks
from paperworks.studies import codebook as study
from paperworks.study import Run
from paperworks.study.contract import Setting

WORDS = ["a", "dragon", "saw", "the", "king", "and", "fire", "fell"]


@pytest.fixture
def cell(tmp_path, monkeypatch):
    """The full cells of language, on texts and a model that are there."""
    transformers, datasets = pytest.importorskip("transformers"), pytest.importorskip("datasets")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate([*WORDS, "?"])}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = str(tmp_path / "model")
    transformers.PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(folder)
    config = transformers.GPTNeoConfig(
        vocab_size=9, hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=16,
        attention_types=[[["global"], 1]], bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.GPTNeoForCausalLM(config).save_pretrained(folder)

    def load_dataset(name, config, revision):
        assert (name, config) in [("roneneldan/TinyStories", None),
                                  ("Salesforce/wikitext", "wikitext-103-v1")]  # fmt: skip
        generator = torch.Generator().manual_seed(0)

        def part(n):
            lines = torch.randint(8, (n, 12), generator=generator).tolist()
            text = [" ".join(WORDS[i] for i in line) for line in lines]
            return datasets.Dataset.from_dict({"text": text})

        return datasets.DatasetDict({"train": part(60), "validation": part(20)})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return {"network": folder, "context": 8, "batch": 4, "finetune_batch": 4, "finetune": 2,
            "codes": 20, "test": 8}  # fmt: skip


def language(experiment, **change):
    return [Setting(c | change) for c in experiment.cells("full") if c["corpus"] != "machine"]


def test_losses_of_language_models(cell):
    cells = language(study.predictions, **cell)
    assert len(cells) == 5
    assert {c["k"] for c in cells} == {8, 100}
    for number in (1, 3):
        setting = Setting(cells[number] | {"k": 8})
        metrics = study.predicting(setting, Run(0, methods=study.MODELS))
        assert 1 < metrics["loss"] < 4
        assert set(metrics) == {"loss"}


def test_topics_are_forced_in_texts(cell):
    cells = language(study.forced, **cell, sampled=6)
    assert [c["topic"] for c in cells if c["method"] == "codes"] == [
        " dragon", " fire", " football",
    ]  # fmt: skip
    for setting in cells[:2]:
        setting = Setting(setting | {"topic": "dragon", "method": "codes"})
        metrics = study.forcing(setting, Run(0, methods=study.FORCES))
        assert 0 <= metrics["share"] <= metrics["mentions"] <= 1
    task = study.Texts(setting, Run(0))
    assert task.topic() == WORDS.index("dragon")
    edits = study.announcing_codes(task, task.trained("attn"), task.topic())
    assert len(edits) == setting["forced"] == 8
    assert {edit.site for edit in edits} == {"attn_0"}
    with steer(task.trained("attn"), edits):
        pass


def test_texts_are_packed_without_gaps(cell):
    task = study.Texts(language(study.predictions, **cell)[0], Run(0))
    again = study.Texts(language(study.predictions, **cell)[0], Run(0))
    assert torch.equal(task.sequences(5, None), again.sequences(5, None))
    assert task.test.shape == (8, 8)
    texts = [task.parts["train"][i][0] for i in range(len(task.parts["train"]))]
    order = torch.randperm(len(texts), generator=Run(0).rng("train"))
    words = " ".join(texts[i] for i in order.tolist()).split()
    fresh = study.Texts(language(study.predictions, **cell)[0], Run(0))
    expected = torch.tensor([WORDS.index(w) for w in words[:24]]).view(3, 8)
    assert torch.equal(fresh.sequences(3, None), expected)


def walks(**change):
    return study.Walks(Setting(study.readings.smoke[0] | change), Run(0))


def test_masks_mark_last_digits():
    task = walks()
    masks = task.masks(task.test).view(task.machine.n_states, *task.test.shape)
    states = task.machine.decode(task.test)
    assert masks.any(0)[0].nonzero().flatten().tolist() == [2, 4, 6, 8]
    for column in range(4):
        at = masks[:, :, 2 + 2 * column].int().argmax(0)
        assert torch.equal(at, states[:, column])
    assert masks.sum() == states.numel()


def test_divergence_is_nought_for_who_knows_the_other_state():
    task = walks()

    def oracle(tokens, others, position):
        assert position == 2 * (4 // 2 + 1)
        last = task.machine.decode(others)[:, -1]
        return nn.functional.pad(task.machine.next_digit(last), (0, 1))

    assert study.divergence(task, task.test, oracle) == pytest.approx(0, abs=1e-6)
    blind = study.divergence(task, task.test, lambda t, o, p: oracle(o, t, p))
    assert blind > 0.05


def test_an_autoencoder_finds_planted_directions():
    generator = torch.Generator().manual_seed(0)
    directions = torch.eye(8)[:6]
    on = torch.rand(3000, 6, generator=generator) < 0.2
    x = on.float() @ directions
    task = walks(latents=30, sae_steps=400)
    encode = study.sparse_autoencoder(task, x, 0.1)
    best = study.best_of(encode(x), on.T, torch.full((6,), 0.95))
    assert best.median() > 0.99
    blind = study.best_of(torch.rand(3000, 30, generator=generator), on.T, torch.full((6,), 0.95))
    assert blind.max() < 0.3


def test_swapping_sets_the_codes_of_the_other_walk():
    setting = Setting(study.swapped.cells("smoke")[1])
    run = Run(0, methods=study.SWAPS)
    task = study.Walks(setting, run)
    tokens, others = task.test[:, :5], task.test.roll(1, 0)[:, :5]
    model = wrap_codebooks(task.untrained(), ["mlp"], num_codes=300).eval()
    task.trained = lambda at: model
    found = study.swapped_codes(task, [0, 1], tokens, others, 4)
    study.next_token(model, others)
    edits = [CodeEdit(s, b.ids, positions=4, slot="all") for s, b in model.codebooks.items()]
    with steer(model, edits):
        torch.testing.assert_close(found, study.next_token(model, tokens))
    assert not torch.equal(found, study.next_token(model, tokens))


def test_a_rival_needs_no_more_than_the_stated_conventions():
    def mine(task):
        return task.finetune(task.base())

    setting = Setting(study.predictions.smoke[0] | {"method": "mine"})
    metrics = study.predicting(setting, Run(0, methods={"mine": mine}))
    base = study.predicting(Setting(setting, method="base"), Run(0, methods=study.MODELS))
    assert metrics == base  # the same steps on the same walks
    assert math.isfinite(metrics["transition_accuracy"])
    reading = Setting(study.readings.smoke[0] | {"method": "mine"})
    always = {"mine": lambda task, tokens, masks, recalls: torch.ones(len(masks))}
    assert study.reading(reading, Run(0, methods=always))["precision"] == 1
