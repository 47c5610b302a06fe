"""Random causal language models."""

import copy
import sys

import pytest
import torch

from paperworks.nets import causal_lm

SIZES = {"vocab_size": 11, "width": 16, "layers": 2, "heads": 2, "context": 8}
ARCHITECTURES = ["gpt2", "gpt_neox"]


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    pytest.importorskip("transformers")
    return seeded(request.param)


def seeded(architecture, seed=0, **sizes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return causal_lm(architecture, **(SIZES | sizes))


def tokens(*shape):
    return torch.randint(11, shape, generator=torch.Generator().manual_seed(0))


def test_logits_of_the_sizes_asked_for(model):
    assert model(input_ids=tokens(3, 8)).logits.shape == (3, 8, 11)
    assert model.config.num_hidden_layers == 2
    assert model.config.num_attention_heads == 2
    assert model.config.hidden_size == 16
    assert model.config.max_position_embeddings == 8
    assert not model.training


def test_a_token_sees_those_before_it_only(model):
    x = tokens(1, 6)
    y = x.clone()
    y[0, 4] = (x[0, 4] + 1) % 11
    a, b = (model(input_ids=ids).logits for ids in (x, y))
    torch.testing.assert_close(a[:, :4], b[:, :4])
    assert (a[:, 4:] - b[:, 4:]).abs().amax(-1).min() > 1e-6


def test_no_dropout_in_training(model):
    twin = copy.deepcopy(model).train()
    assert torch.equal(twin(input_ids=tokens(2, 5)).logits, model(input_ids=tokens(2, 5)).logits)


def test_generation_runs_to_the_end_and_equals_that_without_a_cache(model):
    long = model.generate(tokens(4, 2), max_new_tokens=6, do_sample=False)
    assert long.shape == (4, 8)  # no token ends a text
    plain = model.generate(tokens(4, 2), max_new_tokens=6, do_sample=False, use_cache=False)
    assert torch.equal(long, plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_follow_the_global_generator(architecture):
    pytest.importorskip("transformers")
    a, b, c = (torch.nn.utils.parameters_to_vector(seeded(architecture, s).parameters())
               for s in (0, 0, 1))  # fmt: skip
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_dtype_and_saving(model, tmp_path):
    transformers = pytest.importorskip("transformers")
    model.save_pretrained(tmp_path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    x = tokens(2, 5)
    torch.testing.assert_close(loaded(input_ids=x).logits, model(input_ids=x).logits)
    double = copy.deepcopy(model).double()
    torch.testing.assert_close(
        double(input_ids=x).logits.float(), model(input_ids=x).logits, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "gpt3"}, "architecture must be one of gpt2, gpt_neox, got 'gpt3'"),
        ({"vocab_size": 0}, "vocab_size must be a positive integer, got 0"),
        ({"layers": True}, "layers must be a positive integer, got True"),
        ({"width": 15}, "width must be a multiple of heads, got 15 and 2"),
        ({"architecture": "gpt_neox", "width": 8}, "at least 8 wide, got width 8 for 2 heads"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        causal_lm(**({"architecture": "gpt2"} | SIZES | change))


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'paperworks\[language\]'"):
        causal_lm("gpt2", **SIZES)
