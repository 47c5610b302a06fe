"""The standard library as texts and as a graph."""

import ast
import inspect
import json
import platform

import pytest
import torch

from paperworks.data import load, stdlib_documents, stdlib_graph
from paperworks.data import names as names_module
from paperworks.study.errors import UserError


def test_docstrings():
    documents = stdlib_documents()
    assert documents.columns.tolist() == ["text", "file", "package"]
    assert documents.attrs["python"] == platform.python_version()
    assert 5000 < len(documents) < 12000
    decoder = documents[documents["file"] == "json/decoder.py"]["text"].tolist()
    assert decoder[0] == "Implementation of JSONDecoder"
    assert inspect.getdoc(json.JSONDecoder.decode) in decoder
    assert set(documents[documents["file"] == "json/decoder.py"]["package"]) == {"json"}
    assert set(documents[documents["file"] == "argparse.py"]["package"]) == {"argparse"}


@pytest.mark.skipif(platform.python_version() != "3.11.7", reason="counts are of Python 3.11.7")
def test_the_size_of_the_corpus():
    documents = stdlib_documents()
    assert len(documents) == 7683
    assert documents["text"].str.len().sum() == 1_631_279


def test_functions_are_whole_and_parse():
    functions = stdlib_documents("function")
    text = functions[functions["file"] == "bisect.py"]["text"]
    assert [t.split("(")[0] for t in text] == [
        "def insort_right", "def bisect_right", "def insort_left", "def bisect_left"
    ]  # fmt: skip
    for text in functions["text"].iloc[::97]:
        ast.parse(text)
    decorated = functions["text"].str.startswith("@").mean()
    assert 0 < decorated < 0.3


def test_nothing_left_out_slips_in():
    for unit in ("docstring", "function"):
        parts = stdlib_documents(unit)["file"].str.split("/").explode()
        assert not set(parts) & {"test", "tests", "idlelib", "lib2to3", "site-packages"}
        assert not parts.str.startswith(("config-", "_sysconfigdata")).any()


def test_a_users_change_does_not_reach_the_next_user():
    mine = stdlib_documents()
    mine["text"] = "gone"
    assert stdlib_documents()["text"].nunique() > 1


def test_an_unknown_unit():
    with pytest.raises(ValueError, match="unit must be 'docstring' or 'function', got 'class'"):
        stdlib_documents("class")


def test_text_is_split_by_file():
    data = load("stdlib-text", sizes=(100, 20, 50), generator=torch.Generator().manual_seed(0))
    documents = stdlib_documents()
    files = [set(documents["file"].iloc[part.ids]) for part in (data.train, data.val, data.test)]
    assert [len(some) for some in files] == [100, 20, 50]
    assert len(set.union(*files)) == 170
    assert data.train.texts == documents["text"].iloc[data.train.ids].tolist()
    assert platform.python_version() in data.licence


def test_the_graph_of_imports():
    graph = stdlib_graph()
    place = {name: node for node, name in enumerate(graph.names)}
    edges = set(map(tuple, graph.edge_index.T.tolist()))
    n = len(graph.names)
    assert graph.edge_index.min() >= 0
    assert graph.edge_index.max() < n
    assert all((b, a) in edges and a != b for a, b in edges)
    assert len(edges) == graph.edge_index.shape[1]
    # json/decoder.py: `import re`, `from json import scanner`
    assert (place["json.decoder"], place["re"]) in edges
    assert (place["json.decoder"], place["json.scanner"]) in edges
    # json/__init__.py: `from .decoder import JSONDecoder`
    assert (place["json"], place["json.decoder"]) in edges
    # xml/dom/minidom.py: `from xml.dom.minicompat import *`
    assert (place["xml.dom.minidom"], place["xml.dom.minicompat"]) in edges
    assert (place["json.decoder"], place["asyncio"]) not in edges


def test_features_and_labels_of_the_graph():
    graph = stdlib_graph()
    n = len(graph.names)
    assert graph.x.shape == (n, 256)
    assert set(graph.x.unique().tolist()) == {0.0, 1.0}
    assert graph.y.shape == (n,)
    assert graph.classes[graph.y[graph.names.index("asyncio.events")]] == "asyncio"
    assert graph.classes[graph.y[graph.names.index("argparse")]] == "other"
    assert graph.y.bincount().min() >= 5


def test_the_graph_as_data():
    pytest.importorskip("torch_geometric")
    data = load("stdlib-graph")
    graph = stdlib_graph()
    assert data.kind == "graph"
    assert torch.equal(data.train.edge_index, graph.edge_index)
    masks = torch.stack([data.train.train_mask, data.train.val_mask, data.train.test_mask])
    assert masks.sum(0).eq(1).all()
    assert data.train.is_undirected()


def test_without_geometric_one_line_names_the_extra(monkeypatch):
    monkeypatch.setattr(names_module.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(UserError, match=r"stdlib-graph needs .*'paperworks\[graphs\]'"):
        load("stdlib-graph")
