"""The standard library of the running Python as a corpus of texts and as a graph of imports.

What is found depends on the version of Python, which `documents.attrs["python"]` and the licence of
the data set record. Left out are tests, `idlelib`, `lib2to3`, installed packages, and the files
that a build of Python writes for itself.
"""

from __future__ import annotations

import ast
import os
import platform
import sysconfig
import textwrap
import tokenize
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperworks.data.datasets import DataSet, TextSplit
from paperworks.data.names import BUNDLED, Source
from paperworks.data.parts import PARTS, Cut

_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}
_BUILT = ("config-", "_sysconfigdata")
_WORDS = 256
_SMALLEST_PACKAGE = 5

FunctionDef = ast.FunctionDef | ast.AsyncFunctionDef


def stdlib_documents(unit: str = "docstring") -> pd.DataFrame:
    """The texts of the standard library, in the order of its files.

    Args:
        unit: "docstring" for the docstrings of modules, classes and functions, freed of their
            indentation; "function" for the source of functions and methods (a function inside
            another belongs to that one's text).

    Returns:
        A frame with a row a text: `text`, `file` (relative, with slashes) and `package` (the
        top-level module). `attrs["python"]` is the version of Python. Split it by file: texts of
        one file resemble each other.

    Raises:
        ValueError: an unknown unit.

    >>> documents = stdlib_documents()
    >>> documents.columns.tolist()
    ['text', 'file', 'package']
    """
    if unit not in ("docstring", "function"):
        raise ValueError(f"unit must be 'docstring' or 'function', got {unit!r}")
    rows = [
        (text, module.file.as_posix(), module.name.partition(".")[0])
        for module in _modules()
        for text in (module.docstrings if unit == "docstring" else module.functions)
    ]
    frame = pd.DataFrame(rows, columns=["text", "file", "package"])
    frame.attrs["python"] = platform.python_version()
    return frame


@dataclass(frozen=True, eq=False)
class ModuleGraph:
    """Modules and who imports whom.

    Args:
        names: dotted names of the modules, one a node.
        edge_index: (2, E) pairs of nodes, each import in both directions, sorted, no loops.
        x: (N, 256) float32, 1 where a word occurs in the docstrings of a module.
        y: (N,) int64, the package of the module.
        classes: names of the packages; "other" holds the packages of fewer than five modules.
    """

    names: list[str]
    edge_index: Tensor
    x: Tensor
    y: Tensor
    classes: list[str]


def stdlib_graph() -> ModuleGraph:
    """The graph of imports between the modules of the standard library.

    The words are the 256 that occur most often; an import anywhere in a module counts, of the
    deepest module it names.

    >>> graph = stdlib_graph()
    >>> graph.x.shape[0] == len(graph.names)
    True
    """
    from sklearn.feature_extraction.text import CountVectorizer

    modules = sorted(_modules(), key=lambda module: module.name)
    names = [module.name for module in modules]
    texts = [" ".join(module.docstrings) for module in modules]
    words = CountVectorizer(max_features=_WORDS, binary=True).fit_transform(texts)
    package = pd.Series([name.partition(".")[0] for name in names])
    package = package.where(package.map(package.value_counts()) >= _SMALLEST_PACKAGE, "other")
    y, classes = pd.factorize(package, sort=True)
    x = torch.from_numpy(words.toarray()).to(torch.float32)
    return ModuleGraph(names, _edge_index(modules), x, torch.from_numpy(y), list(classes))


def load_text(source: Source, cut: Cut, scale: str) -> DataSet:
    """`stdlib-text`: docstrings, split by file; sizes count files."""
    documents = stdlib_documents("docstring")
    file_of, files = pd.factorize(documents["file"])
    parts = [
        torch.isin(torch.from_numpy(file_of), some).nonzero().squeeze(1)
        for some in cut({"train": len(files)})
    ]
    whole = TextSplit(documents["text"].tolist(), torch.arange(len(documents)))
    return DataSet.from_whole(source.name, "text", whole, parts, licence=_licence(source.name))


def load_graph(source: Source, cut: Cut, scale: str) -> DataSet:
    """`stdlib-graph`: a PyTorch Geometric `Data` with masks that cut the modules into parts."""
    graph = stdlib_graph()
    data = to_data(graph, cut({"train": len(graph.y)}, graph.y))
    classes, licence = graph.classes, _licence(source.name)
    return DataSet(source.name, "graph", data, data, data, classes=classes, licence=licence)


def to_data(graph: ModuleGraph, parts: list[Tensor]) -> Any:
    """PyTorch Geometric's `Data` of a graph, with `train_mask`, `val_mask` and `test_mask`."""
    from torch_geometric.data import Data

    masks = {
        f"{part}_mask": torch.isin(torch.arange(len(graph.y)), ids)
        for part, ids in zip(PARTS, parts)
    }
    return Data(x=graph.x.clone(), edge_index=graph.edge_index.clone(), y=graph.y.clone(), **masks)


def _licence(name: str) -> str:
    return f"{BUNDLED[name].licence} (Python {platform.python_version()})"


@dataclass(frozen=True)
class _Module:
    name: str
    file: Path
    docstrings: list[str]
    functions: list[str]
    imports: list[str]


@cache
def _modules() -> list[_Module]:
    return [_read(file) for file in _files()]


def _read(file: Path) -> _Module:
    with tokenize.open(_root() / file) as lines:
        source = lines.read()
    tree = ast.parse(source)
    is_package = file.name == "__init__.py"
    parts = file.parent.parts if is_package else file.with_suffix("").parts
    package = parts if is_package else parts[:-1]
    return _Module(
        ".".join(parts),
        file,
        list(_docstrings(tree)),
        list(_functions(tree, source.split("\n"))),
        list(_imports(tree, package)),
    )


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _files() -> list[Path]:
    """Relative paths of the source files, sorted."""
    found = []
    for folder, subfolders, names in os.walk(_root()):
        subfolders[:] = [name for name in subfolders if not _is_left_out(name)]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(file.relative_to(_root()) for file in found if not _is_left_out(file.name))


def _is_left_out(name: str) -> bool:
    return name in _LEFT_OUT or name.startswith(_BUILT)


def _docstrings(tree: ast.Module) -> Iterator[str]:
    documented = (s for s in _statements(tree) if isinstance(s, ast.ClassDef | FunctionDef))
    for node in (tree, *documented):
        text = ast.get_docstring(node)
        if text:
            yield text


def _functions(tree: ast.Module, lines: list[str]) -> Iterator[str]:
    for node in _statements(tree, inside_functions=False):
        if isinstance(node, FunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))


def _imports(tree: ast.Module, package: tuple[str, ...]) -> Iterator[str]:
    """Dotted names that are imported; the last component may be no module but a name in one."""
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # one dot is the package itself, and each further dot its parent
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (node.module,) if node.module else ()
            yield from (".".join([*base, *module, alias.name]) for alias in node.names)


def _statements(node: ast.AST, inside_functions: bool = True) -> Iterator[ast.AST]:
    """Every statement below a node, in the order of the source."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):
            yield child
            if inside_functions or not isinstance(child, FunctionDef):
                yield from _statements(child, inside_functions)


def _edge_index(modules: list[_Module]) -> Tensor:
    place = {module.name: node for node, module in enumerate(modules)}
    pairs = [
        (place[module.name], place[imported])
        for module in modules
        for name in module.imports
        if (imported := _deepest(name, place)) is not None
    ]
    edges = torch.tensor(pairs).T
    edges = torch.cat([edges, edges.flip(0)], dim=1).unique(dim=1)
    return edges[:, edges[0] != edges[1]]


def _deepest(name: str, modules: Container[str]) -> str | None:
    """The longest prefix of a dotted name that is a module of the graph."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name or None
