"""The skeleton of a new paper: what `paperworks new` writes into a checkout of the source.

Beside this file are its templates. What they make works as it comes, so that a paper grows from
something that passes; a TODO marks each place to fill in.
"""

from __future__ import annotations

import json
import keyword
import re
import tomllib
from datetime import date
from pathlib import Path
from string import Template

from paperworks.study.catalogue import FIELDS, SLUG, catalogue
from paperworks.study.errors import UserError, unknown

LONGEST = 20
"""Letters of a slug: it is to be typed, and the templates' lines stay short with it."""


def write_skeleton(slug: str, field: str, title: str = "") -> list[Path]:
    """Write the entry, part, study and test of a new paper; nothing at all if anything is wrong.

    Args:
        slug: the paper's name here.
        field: a key of `FIELDS`. A field that has no papers yet gets its room, too.
        title: the paper's title.

    Returns:
        What was written or changed, relative to the checkout.

    Raises:
        UserError: a slug that is malformed or in use, an unknown field, or this is no checkout.
    """
    if field not in FIELDS:
        raise unknown("field", field, FIELDS)
    if not re.fullmatch(SLUG, slug) or len(slug) > LONGEST or keyword.iskeyword(slug):
        raise UserError(
            f"{slug!r} cannot be a slug: at most {LONGEST} of a-z, 0-9 and _, a letter first, no "
            "word of Python's own"
        )
    root = _checkout()
    words = {
        "slug": slug,
        "field": field,
        "about": FIELDS[field][:1].upper() + FIELDS[field][1:],
        "title": json.dumps(" ".join(title.split()) or "TODO: the title", ensure_ascii=False),
        "year": str(date.today().year),
    }
    texts = _own_files(root, words)
    if slug in catalogue().papers:
        raise UserError(f"{slug!r} is in the catalogue already: paperworks show {slug}")
    for path in texts:
        if path.exists() or path.with_suffix("").exists():
            raise UserError(f"{slug!r} is in use: there is {path.relative_to(root)}")
    texts |= _shared_files(root, words)
    for path, text in texts.items():
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return [path.relative_to(root) for path in texts]


def _checkout() -> Path:
    """The checkout of the source that this package is imported from."""
    root = Path(__file__).parents[3]
    if not (root / "tests" / "test_house.py").exists():
        raise UserError(
            "papers are added to a checkout of the source that is installed with pip install -e . "
            "(CONTRIBUTING.md there says how a package of your own brings papers)"
        )
    return root


def _own_files(root: Path, words: dict[str, str]) -> dict[Path, str]:
    """The files that are the paper's alone."""
    package, slug, field = root / "src" / "paperworks", words["slug"], words["field"]
    return {
        package / field / f"{slug}.py": _filled("part.py", words),
        package / "studies" / f"{slug}.py": _filled("study.py", words),
        root / "tests" / field / f"test_{slug}.py": _filled("test.py", words),
    }


def _shared_files(root: Path, words: dict[str, str]) -> dict[Path, str]:
    """The files that it shares with other papers, as they are with it; those of a new field."""
    package, slug, field = root / "src" / "paperworks", words["slug"], words["field"]
    entries, stub = package / "papers.toml", package / field / "__init__.pyi"
    texts = {entries: f"{entries.read_text('utf-8').rstrip()}\n\n{_filled('entry.toml', words)}"}
    export = f"from .{slug} import {slug}_mean as {slug}_mean"
    if stub.exists():
        return texts | {stub: _with_export(stub.read_text("utf-8"), export)}
    project = root / "pyproject.toml"
    return texts | {
        stub: f"{export}\n",
        stub.with_suffix(".py"): _filled("field.py", words),
        project: _with_room(project.read_text("utf-8"), field),
    }


def _filled(template: str, words: dict[str, str]) -> str:
    text = Template(Path(__file__).with_name(f"{template}.in").read_text("utf-8")).substitute(words)
    imports = re.compile(r"(?:^from paperworks.*\n)+", re.MULTILINE)
    return imports.sub(lambda found: "".join(sorted(found[0].splitlines(keepends=True))), text)


def _with_export(stub: str, export: str) -> str:
    """The stub with one more line, its lines in order of the modules."""
    lines = [*stub.splitlines(), export]
    return "\n".join(sorted(lines, key=lambda line: line.split()[1])) + "\n"


def _with_room(project: str, field: str) -> str:
    """pyproject.toml with a new field on the floor of the fields."""
    (contract,) = tomllib.loads(project)["tool"]["importlinter"]["contracts"]
    rooms = {f"paperworks.{name}": name for name in FIELDS}
    (floor,) = (layer for layer in contract["layers"] if rooms.keys() & set(layer.split(" | ")))
    wider = [room for room in rooms if room in floor.split(" | ") or rooms[room] == field]
    return project.replace(f'"{floor}"', f'"{" | ".join(wider)}"')
