"""Which edits change a fingerprint and which do not, on packages written for the purpose."""

import sys
import textwrap

import pytest

from paperworks.study import fingerprint
from paperworks.study.errors import UserError
from paperworks.study.fingerprint import (
    code_fingerprint,
    fingerprints,
    function_fingerprint,
    module_file,
)

LAZY = """
    '''A package that hands its names out lazily.'''
    import lazy_loader
    __getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
"""

PACKAGE = {
    "__init__.py": "VERSION = 1",
    "study.py": '''
        """What is measured."""
        from torch import nn

        from acme import data
        from acme.parts import One, Two
        from paperworks.study import Claim, Experiment, Study, grid, higher

        from . import helpers
        from .methods import Method

        SIZE = 3
        METHODS = {"one": One}
        METHODS["other"] = Method

        def prepare(split):
            """Split."""
            return split * SIZE  # in three

        def trial(setting, run):
            error = prepare(data.load("digits"))
            from .late import late

            return {"error": helpers.loss(error), "late": [late(study) for study in [1]]}

        def second_trial(setting, run):
            return {"error": 0.0}

        def unrelated():
            return Two(), nn.Linear(1, 1)

        first = Experiment(trial, methods=METHODS, smoke=grid(bits=[3]))
        second = Experiment(second_trial, {"two": Two}, smoke=grid(bits=[3]))
        error = first.metric("error")
        study = Study("x", [first], [Claim("C1", "less", higher(error("one"), error("other")))])
    ''',
    "helpers.py": """
        def loss(value):
            '''The loss.'''
            return value + 1
    """,
    "methods.py": """
        from acme.deep import layer

        class Method:
            layer = layer
    """,
    "deep.py": """
        from . import helpers  # a circle: helpers could import this one
        from .deeper import DEPTH

        def layer():
            return DEPTH
    """,
    "deeper.py": "import acme.deep\nDEPTH = 1",
    "late.py": "def late(value): return value",
    "extra.py": "EXTRA = 1",
    "parts/__init__.py": LAZY,
    "parts/__init__.pyi": "from .one import One as One\nfrom .two import Two as Two",
    "parts/one.py": "class One: size = 1",
    "parts/two.py": "class Two: size = 1",
    "data/__init__.py": LAZY,
    "data/__init__.pyi": "from .load import load as load\nfrom .noise import noise as noise",
    "data/load.py": "def load(name): return 1",
    "data/noise.py": "def noise(name): return 1",
}


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Writes files of the package `acme`, the ones above at first."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / "acme" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    write(PACKAGE)
    monkeypatch.syspath_prepend(tmp_path)
    yield write
    assert not [name for name in sys.modules if name.split(".")[0] == "acme"], "it was imported"


def edited(file, old, new):
    assert PACKAGE[file].count(old) == 1, "the test edits what is not there"
    return {file: PACKAGE[file].replace(old, new)}


@pytest.mark.parametrize(
    "edit",
    [
        ("study.py", "What is measured", "What was measured"),
        ("study.py", '"""Split."""', '"""Split the data."""'),
        ("study.py", "  # in three", ""),
        ("study.py", "SIZE = 3", "\n\n        SIZE = (3)\n"),
        ("study.py", "from torch import nn", "from torch import nn, optim"),
        ("study.py", "first = Experiment(trial, methods=METHODS, smoke=grid(bits=[3]))",
         "first = Experiment(smoke=grid(bits=[2]), trial=trial, desk=1, methods=METHODS)"),
        ("study.py", "less", "less by far"),
        ("study.py", "higher(error", "higher(2 * error"),
        ("study.py", '[Claim("C1"', '[Claim("C0", "more", 1), Claim("C1"'),
        ("study.py", 'first.metric("error")', 'first.metric("late")'),
        ("study.py", "return Two(), nn", "return Two(), 3, nn"),
        ("study.py", '"two": Two', '"to": Two'),
        ("study.py", "second_trial, {", "second_trial, tune=1, methods={"),
        ("helpers.py", "'''The loss.'''", "'''A loss.'''"),
        ("extra.py", "1", "2"),
        ("parts/two.py", "1", "2"),
        ("parts/__init__.py", "A package", "The package"),
        ("parts/__init__.pyi", "from .two import Two as Two", ""),
        ("data/noise.py", "1", "2"),
        ("__init__.py", "1", "2"),
    ],
)  # fmt: skip
def test_edit_that_changes_nothing(package, edit):
    before = fingerprints("acme.study")["trial"]
    package(edited(*edit))
    assert fingerprints("acme.study")["trial"] == before


@pytest.mark.parametrize(
    "edit",
    [
        ("study.py", 'prepare(data.load("digits"))', 'prepare(data.load("wine"))'),
        ("study.py", "SIZE = 3", "SIZE = 4"),
        ("study.py", "split * SIZE", "split + SIZE"),
        ("study.py", "def prepare(split)", "def prepare(split, size=1)"),
        ("study.py", '{"one": One}', '{"a": One}'),
        ("study.py", '["other"]', '["more"]'),
        ("study.py", "methods=METHODS", "methods=METHODS | {}"),
        ("study.py", "from .methods import Method", "from .parts import Two as Method"),
        ("helpers.py", "+ 1", "+ 2"),
        ("methods.py", "layer = layer", "layer = [layer]"),
        ("deep.py", "return DEPTH", "return -DEPTH"),
        ("deeper.py", "1", "2"),
        ("late.py", "return value", "return -value"),
        ("parts/one.py", "1", "2"),
        ("parts/__init__.pyi", "from .one import One as One", "from .two import Two as One"),
        ("data/load.py", "1", "2"),
    ],
)
def test_edit_that_counts(package, edit):
    before = fingerprints("acme.study")["trial"]
    package(edited(*edit))
    assert fingerprints("acme.study")["trial"] != before


def test_one_trial_for_two_experiments_covers_the_methods_of_both(package):
    both = edited("study.py", "Experiment(second_trial, {", "Experiment(trial, name='b', methods={")
    package(both)
    before = fingerprints("acme.study")
    assert list(before) == ["trial"]
    package(edited("parts/two.py", "1", "2"))
    assert fingerprints("acme.study") != before


def test_same_code_in_another_place_is_the_same(package, tmp_path, monkeypatch):
    before = fingerprints("acme.study")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "acme").rename(tmp_path / "elsewhere" / "acme")
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert fingerprints("acme.study") == before


def test_same_in_every_version_of_python(package):
    """The value is the same under 3.11, 3.12 and 3.13."""
    package(
        {
            "study.py": """
                import dataclasses
                from .helpers import loss

                @dataclasses.dataclass(frozen=True)
                class Part:
                    size: int = 3

                    def show(self, *parts: str, width=9, **more) -> str:
                        return f"{loss(self.size):>{width}} {[p for p in parts]!r}" rf"\\d{more}"

                async def trial(setting, run):
                    match setting:
                        case {"bits": bits, **rest} if bits:
                            return Part(bits), -1.5e-7, 1j, b"bytes", ..., None, ""
                    try:
                        (yield) or (lambda x, /, y=1, *, z: x)
                    except* ValueError as error:
                        raise error from None
            """
        }
    )
    assert code_fingerprint("acme.study", ["trial"]) == "33ba12dcf12ab554"


# ---------------------------------------------------------------- ways to import


IMPORTS = [
    ("from acme import data", "data.load", {"load"}),
    ("from acme import data", "data.load.__doc__", {"load"}),
    ("from acme import data", "data", {"load", "noise"}),
    ("from acme import data", "getattr(data, 'load')", {"load", "noise"}),
    ("from acme import data", "data.__name__", {"load", "noise"}),
    ("from acme import data", "None", set()),
    ("from acme import data as d", "d.noise(1)", {"noise"}),
    ("import acme.data as d", "[d.noise, d.load]", {"load", "noise"}),
    ("import acme.data", "acme.data.noise", {"noise"}),
    ("import acme.data.noise", "acme", {"noise"}),
    ("import acme.data.noise as n", "n.noise", {"noise"}),
    ("from acme.data import noise", "noise", {"noise"}),
    ("from acme.data import noise as n", "n", {"noise"}),
    ("from acme.data.noise import noise", "noise", {"noise"}),
    ("from .data import noise", "noise", {"noise"}),
    ("from . import data", "data.noise", {"noise"}),
    ("from acme.data import *", "load", {"load", "noise"}),
    ("from acme.data.noise import *", "noise", {"noise"}),
    ("try:\n    from acme import data\nexcept OSError:\n    data = 0", "data.load", {"load"}),
    ("from torch import data", "data.load", set()),
]  # fmt: skip


@pytest.mark.parametrize(
    ("imports", "use", "counts", "where"),
    [
        (*row, where)
        for row in IMPORTS
        for where in ("in the study", "two imports deep", "in the function")
        if "*" not in row[0] or where != "in the function"  # Python has no such import
    ],
)
def test_imports_are_followed(package, imports, use, counts, where):
    if where == "in the function":
        text = f"def trial(data=None):\n{textwrap.indent(imports, '    ')}\n    return {use}"
    else:
        text = f"{imports}\n\ndef trial():\n    return {use}"
    if where == "two imports deep":
        package({"deep.py": text, "study.py": "from .deep import trial"})
    else:
        package({"study.py": text})
    changed = set()
    for name in ("load", "noise"):
        before = code_fingerprint("acme.study", ["trial"])
        package({f"data/{name}.py": f"def {name}(name): return 2"})
        if code_fingerprint("acme.study", ["trial"]) != before:
            changed.add(name)
    assert changed == counts


def test_local_names_are_not_the_modules(package):
    """A parameter, a loop variable, an attribute called like a lazy package or a claim's handle."""
    text = """
        from acme import data
        from acme.parts import One

        def trial(setting, run):
            def inner(data):
                return data, [One for One in data]
            error = [error for error in inner(setting.error)]
            return error, setting.One, {"One": lambda One: One}

        error = One
    """
    package({"study.py": text})
    before = code_fingerprint("acme.study", ["trial"])
    package({"data/load.py": "1", "parts/one.py": "2"})
    assert code_fingerprint("acme.study", ["trial"]) == before


@pytest.mark.parametrize(
    "signature",
    [
        "def trial(data=data.load):",
        "def trial(data: data.load):",
        "@data.load\ndef trial(data):",
        "def trial() -> data.load:",
        "def trial():\n    global data\n    return data.load\ndef unused():",
        "class trial:\n    data = data.load\ndef unused():",
        "trial = [data for data in data.load]\ndef unused():",
    ],
)
def test_what_a_local_name_does_not_hide(package, signature):
    package({"study.py": f"from acme import data\n\n{signature}\n    return data"})
    before = code_fingerprint("acme.study", ["trial"])
    package({"data/load.py": "1"})
    assert code_fingerprint("acme.study", ["trial"]) != before


def test_names_bound_in_blocks_and_by_calls(package):
    text = """
        import numpy as np
        if np:
            SIZE = {size}
        with np.errstate() as state, open("x") as (a, b):
            SHAPE = state
        table = {{}}
        table.update(a={a})
        unrelated = {{}}
        unrelated.update(a={b})
        def trial():
            return SIZE, table, SHAPE
    """
    values = {"size": 1, "a": 1, "b": 1}
    package({"study.py": text.format(**values)})
    before = code_fingerprint("acme.study", ["trial"])
    for name, counts in (("size", True), ("a", True), ("b", False)):
        package({"study.py": text.format(**{**values, name: 2})})
        assert (code_fingerprint("acme.study", ["trial"]) != before) is counts, name


def test_function_and_module_of_one_name(package):
    package({"data/__init__.pyi": "from .load import load as load\nfrom . import noise as noise"})
    package({"study.py": "from acme import data\ndef trial(): return data.load, data.noise.noise"})
    for name in ("load", "noise"):
        before = code_fingerprint("acme.study", ["trial"])
        package({f"data/{name}.py": "2"})
        assert code_fingerprint("acme.study", ["trial"]) != before


def test_plain_package_counts_by_what_is_read_of_it(package):
    package({"study.py": "import acme\ndef trial(): return acme.VERSION"})
    before = code_fingerprint("acme.study", ["trial"])
    package({"__init__.py": "VERSION = 2"})
    assert code_fingerprint("acme.study", ["trial"]) != before


def test_namespace_package(package):
    package(
        {"space/a.py": "A = 1", "study.py": "from acme.space import a\ndef trial(): return a.A"}
    )
    before = code_fingerprint("acme.study", ["trial"])
    package({"space/a.py": "A = 2"})
    assert code_fingerprint("acme.study", ["trial"]) != before


def test_paperworks_counts_for_a_plugin_and_its_engine_does_not(package):
    text = """
        from paperworks.common import mrr
        from paperworks.study import grid
        from paperworks.study.contract import Setting
        import paperworks
        def trial(): return mrr, grid, Setting, paperworks.run
    """
    package({"study.py": text})
    needs = fingerprint._needs(fingerprint._statements(fingerprint._source("acme.study")), "acme")
    modules = fingerprint._modules(needs, {"acme", "paperworks"})
    assert "paperworks.common.ranking" in modules
    assert not [name for name in modules if name.startswith("paperworks.study.")]


# ---------------------------------------------------------------- what cannot be told


@pytest.mark.parametrize(
    "call",
    [
        "Experiment(make(), methods={})",
        "Experiment(lambda setting, run: {}, methods={})",
        "[Experiment(t, methods={}) for t in [trial]]",
        "Experiment(missing)",
        "Experiment(methods={})",
        "Experiment(*arguments)",
        "Experiment(trial, **arguments)",
    ],
)
def test_experiment_that_hides_its_code(package, call):
    package({"study.py": f"arguments = {{}}\ndef make(): pass\ndef trial(): pass\nx = {call}"})
    with pytest.raises(UserError, match=r"acme.study, line 4: give Experiment"):
        fingerprints("acme.study")


def test_experiment_made_in_a_function_from_its_parameter(package):
    package({"study.py": "def trial(): pass\ndef make(m): return Experiment(trial, methods=m)"})
    with pytest.raises(UserError, match=r"acme.study, line 2: give Experiment"):
        fingerprints("acme.study")


def test_missing_module_and_name(package):
    with pytest.raises(UserError, match=r"no source file of a module 'acme.missing'"):
        fingerprints("acme.missing")
    with pytest.raises(UserError, match=r"no source file of a module 'nowhere.at.all'"):
        code_fingerprint("nowhere.at.all", ["trial"])
    with pytest.raises(UserError, match=r"acme.study does not define nothing at its top level"):
        code_fingerprint("acme.study", ["nothing", "trial"])


def test_module_file(package, tmp_path):
    assert module_file("acme") == tmp_path / "acme" / "__init__.py"
    assert module_file("acme.parts.one") == tmp_path / "acme" / "parts" / "one.py"
    assert module_file("acme.nothing") is None
    assert module_file("nothing.at.all") is None
    assert module_file("__main__.part") is None
    assert module_file("math") is None or module_file("math").suffix != ".py"


# ---------------------------------------------------------------- functions


def test_function_of_a_module(tmp_path, monkeypatch):
    path = tmp_path / "acme_fixtures.py"
    monkeypatch.syspath_prepend(tmp_path)
    marks = []
    for rate, other in ((1, 1), (2, 1), (1, 2)):
        path.write_text(
            f"RATE = {rate}\nOTHER = {other}\n"
            "def net(run): return RATE\n"
            "def outer():\n    def inner(): return RATE\n    return inner\n"
        )
        module = _fresh("acme_fixtures")
        assert function_fingerprint(module.outer()) == code_fingerprint("acme_fixtures", ["outer"])
        marks.append(function_fingerprint(module.net))
    assert marks[0] == marks[2] != marks[1]


def _fresh(name):
    import importlib

    sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
    try:
        sys.modules.pop(name, None)
        importlib.invalidate_caches()
        return importlib.import_module(name)
    finally:
        sys.dont_write_bytecode = before
        sys.modules.pop(name, None)


def test_function_of_a_script(monkeypatch):
    def net(run):
        return 1

    def other(run):
        return 2

    for function in (net, other):
        monkeypatch.setattr(function, "__module__", "__main__")
    assert function_fingerprint(net) != function_fingerprint(other)


def test_function_without_source():
    scope = {"__name__": "__main__"}
    exec("def net(run): return 1", scope)
    with pytest.raises(UserError, match="cannot read the source of net"):
        function_fingerprint(scope["net"])
