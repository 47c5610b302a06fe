"""The fingerprint of the code that a trial reaches: it says which results an edit makes stale.

In the study's file those top-level statements count that the trial and its methods reach by name:
editing a claim, a figure or a grid changes nothing. Every module of the same package, or of
paperworks, that they import counts whole, and so on with its imports. A name that a package hands
out lazily is followed through the package's `.pyi` stub to the file that defines it. Comments,
docstrings, layout, the versions of libraries and `paperworks.study` itself do not count.

All of it is read from files; nothing is imported. An import by a computed name is not seen.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import importlib.util
import inspect
import symtable
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from paperworks.study.errors import UserError

LEFT_OUT = {"ctx", "kind", "type_comment", "type_params"}
"""Fields of the syntax tree that say nothing, or that versions of Python fill differently."""

Origin = tuple[str, tuple[str, ...]]
"""A module, and the attributes to read of it, one after the other."""

Need = tuple[str, tuple[str, ...], bool]
"""An origin, and whether what it leads to is used and not only imported."""


class Statement(NamedTuple):
    """A statement at a module's top level."""

    node: ast.stmt
    binds: set[str]
    """The names it gives a value, or may change the value of."""
    uses: set[str]
    """The module's names that it reads, in functions too."""


def fingerprints(module: str) -> dict[str, str]:
    """Trial function -> fingerprint, for every `Experiment(...)` of a study's module.

    Experiments that share a trial function share a fingerprint, which covers the methods of all.

    Raises:
        UserError: there is no such file, or an `Experiment(...)` gets its trial function or methods
            otherwise than by the file's top-level names, so that the source cannot tell them.
    """
    source = _source(module)
    known = set(vars(builtins)).union(*(statement.binds for statement in _statements(source)))
    given: dict[str, list[Statement]] = {}
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or _dotted(call.func)[-1:] != ("Experiment",):
            continue
        arguments = dict(zip(["trial", "methods"], call.args))
        arguments |= {keyword.arg or "**": keyword.value for keyword in call.keywords}
        trial = arguments.get("trial")
        names = [arguments[name] for name in ("trial", "methods") if name in arguments]
        code = [_statement(ast.Expr(name)) for name in names]
        unclear = "**" in arguments or any(statement.uses - known for statement in code)
        if unclear or not isinstance(trial, ast.Name):
            raise UserError(
                f"{module}, line {call.lineno}: give Experiment(...) its trial function and its "
                "methods by names that the file defines at its top level"
            )
        given.setdefault(trial.id, []).extend(code)
    return {trial: _fingerprint(module, code) for trial, code in given.items()}


def code_fingerprint(module: str, roots: Collection[str]) -> str:
    """The fingerprint of what some names of a module reach.

    Raises:
        UserError: there is no such file, or no such name at its top level.
    """
    known = set().union(*(statement.binds for statement in _statements(_source(module))))
    if missing := sorted(set(roots) - known):
        raise UserError(f"{module} does not define {', '.join(missing)} at its top level")
    names = [ast.Name(root, ast.Load()) for root in sorted(roots)]
    return _fingerprint(module, [_statement(ast.Expr(name)) for name in names])


@functools.cache
def function_fingerprint(function: Callable[..., Any]) -> str:
    """The fingerprint of a function; of one from a notebook or a script, of its own text alone.

    It is taken once in a process, which runs the code that it loaded, whatever becomes of the file.

    Raises:
        UserError: its source cannot be read.
    """
    module, root = function.__module__, function.__qualname__.partition(".")[0]
    if module != "__main__" and module_file(module) and root.isidentifier():
        return code_fingerprint(module, [root])
    try:
        return _hash([inspect.getsource(function)])
    except (OSError, TypeError):
        raise UserError(f"cannot read the source of {root}: define it in a file") from None


def module_file(module: str) -> Path | None:
    """Where a module's source is, found without importing it or its parents; None if nowhere.

    Of a namespace package it is the folder.
    """
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # a module that was made by hand
        return None
    if spec is None:
        return None
    if not rest and spec.origin and spec.origin.endswith(".py"):
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest)
        for path in (place / "__init__.py", place.with_suffix(".py"), place):
            if path.exists():
                return path
    return None


def _source(module: str) -> bytes:
    file = module_file(module)
    if file is None or file.suffix != ".py":
        raise UserError(f"there is no source file of a module {module!r}")
    return file.read_bytes()


def _fingerprint(module: str, code: list[Statement]) -> str:
    """Of what some code reaches that stands in the module."""
    roots = set().union(*(statement.uses for statement in code))
    reached = [*code, *_reached(_statements(_source(module)), roots)]
    modules = _modules(_needs(reached, _package(module)), {module.split(".")[0], "paperworks"})
    texts = [_text(statement.node) for statement in reached]
    return _hash([*texts, *(f"{name} {modules[name]}" for name in sorted(modules))])


def _reached(statements: list[Statement], names: set[str]) -> list[Statement]:
    """The statements that bind the names, those that bind what these use, and so on."""
    names = names | {"*"}
    while new := set().union(*(s.uses for s in statements if s.binds & names)) - names:
        names |= new
    return [statement for statement in statements if statement.binds & names]


@functools.cache
def _statements(source: bytes) -> list[Statement]:
    """The top-level statements of a module, an import of several names taken apart."""
    nodes: list[ast.stmt] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import):
            nodes += [ast.Import([alias]) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            nodes += [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]
        elif not _is_text(node):
            nodes.append(node)
    return [_statement(node) for node in nodes]


def _statement(node: ast.stmt) -> Statement:
    if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
        return Statement(node, {"*"}, set())
    module = symtable.symtable(ast.unparse(node), "", "exec")
    binds = {s.get_name() for s in module.get_symbols() if s.is_assigned() or s.is_imported()}
    uses: set[str] = set()
    scopes = [module]
    while scopes:
        scope = scopes.pop()
        scopes += scope.get_children()
        for symbol in scope.get_symbols():
            # What a class reads may be the module's even if it then assigns a name of its own.
            in_function = scope.get_type() == "function"
            if symbol.is_global() if in_function else symbol.is_referenced():
                uses.add(symbol.get_name())
    defines = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    if not defines and any(map(_may_change, ast.walk(node))):
        binds |= uses
    return Statement(node, binds, uses)


def _may_change(node: ast.AST) -> bool:
    """Whether what a statement mentions may be changed: by a call, or by assigning into it."""
    into = isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(node.ctx, ast.Load)
    return into or isinstance(node, ast.Expr)


@functools.cache
def _whole(source: bytes, package: str) -> tuple[str, set[Need]]:
    """The hash of a module's code, and what it needs."""
    statements = _statements(source)
    return _hash(_text(statement.node) for statement in statements), _needs(statements, package)


def _needs(statements: list[Statement], package: str) -> set[Need]:
    """What code imports, in functions too, and what it uses of what it has imported."""
    needs: set[Need] = set()
    origins: dict[str, set[Origin]] = {}
    local: set[str] = set()
    for statement in statements:
        for node in ast.walk(statement.node):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name, origin, imported in _imported(node, package):
                    needs.add((*imported, False))
                    origins.setdefault(name, set()).add(origin)
                    local |= {name} - statement.binds
    for statement in statements:
        for name, *attributes in _chains(statement.node):
            if name in statement.uses | local:
                for module, inside in origins.get(name, ()):
                    needs.add((module, (*inside, *attributes), True))
    return needs


def _imported(
    node: ast.Import | ast.ImportFrom, package: str
) -> Iterator[tuple[str, Origin, Origin]]:
    """The names that an import binds, what each stands for, and what is imported for it.

    The last two differ in `import a.b`, which imports a.b and binds a.
    """
    for alias in node.names:
        if isinstance(node, ast.ImportFrom):
            home = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield alias.asname or alias.name, (home, (alias.name,)), (home, (alias.name,))
        else:
            name = alias.asname or alias.name.split(".")[0]
            yield name, (alias.name if alias.asname else name, ()), (alias.name, ())


def _chains(node: ast.AST) -> Iterator[tuple[str, ...]]:
    """The dotted names that some code reads, each as long as it is: `("data", "load")`."""
    if chain := _dotted(node):
        yield chain
    else:
        for child in ast.iter_child_nodes(node):
            yield from _chains(child)


def _dotted(node: ast.AST) -> tuple[str, ...]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return (node.id,)
    if isinstance(node, ast.Attribute) and (front := _dotted(node.value)):
        return (*front, node.attr)
    return ()


def _modules(needs: set[Need], packages: set[str]) -> dict[str, str]:
    """Every module that is needed, with the hash of its code."""
    found: dict[str, str] = {}
    waiting, done = set(needs), set()
    while waiting:
        done.add(need := waiting.pop())
        if need[0].split(".")[0] not in packages:
            continue
        for name in _holders(*need) - found.keys():
            file = module_file(name)
            if file and file.suffix == ".py" and not f"{name}.".startswith("paperworks.study."):
                found[name], more = _whole(file.read_bytes(), _package(name))
                waiting |= more - done
    return found


def _holders(module: str, attributes: tuple[str, ...], used: bool) -> set[str]:
    """The modules that hold what a dotted name stands for.

    Of a package that hands its names out lazily an import takes nothing yet; to use the package
    otherwise than by one of those names takes all of them.
    """
    exports = _exports(module)
    if attributes:
        name, *rest = attributes
        if exports and name in exports:
            home, inside = exports[name]
            return _holders(home, (*inside, *rest), used)
        if module_file(f"{module}.{name}"):
            return _holders(f"{module}.{name}", tuple(rest), used)
    if exports is None:
        return {module}
    if attributes or used:
        return set().union(*(_holders(*origin, True) for origin in exports.values()))
    return set()


def _exports(module: str) -> dict[str, Origin] | None:
    """Name -> origin of what a lazy package hands out; None for a module of another kind."""
    file = module_file(module)
    if file is None or file.name != "__init__.py" or b"attach_stub" not in file.read_bytes():
        return None
    return _handed_out(file.with_suffix(".pyi").read_bytes(), module)


@functools.cache
def _handed_out(stub: bytes, package: str) -> dict[str, Origin]:
    return {
        name: origin
        for node in ast.parse(stub).body
        if isinstance(node, ast.ImportFrom)
        for name, origin, _ in _imported(node, package)
        if origin[0] != package  # `from . import x` hands out a module of its own
    }


def _package(module: str) -> str:
    """What a module's relative imports start from."""
    file = module_file(module)
    is_package = file is not None and file.name == "__init__.py"
    return module if is_package else module.rpartition(".")[0]


def _text(node: Any) -> str:
    """Code as text that is the same in every version of Python, without docstrings."""
    if isinstance(node, list):
        return f"[{','.join(_text(item) for item in node if not _is_text(item))}]"
    if not isinstance(node, ast.AST):
        return repr(node)
    if isinstance(node, ast.JoinedStr):  # some Pythons leave an empty string behind in f"{x:{n}}"
        node.values = [v for v in node.values if getattr(v, "value", None) != ""]
    filled = [(k, v) for k, v in ast.iter_fields(node) if k not in LEFT_OUT and v not in (None, [])]
    return f"{type(node).__name__}({','.join(f'{k}={_text(v)}' for k, v in filled)})"


def _is_text(node: Any) -> bool:
    """Whether a statement is a docstring, or another string that stands by itself."""
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]
