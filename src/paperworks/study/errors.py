"""Errors that a user sees as one line, without a traceback."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Something the user typed or passed is wrong; the command line exits with 2."""

    exit_code = 2


class StoreError(UserError):
    """The place where results are kept cannot be used; the command line exits with 1."""

    exit_code = 1


class ClusterError(UserError):
    """The cluster cannot be used; the command line exits with 1."""

    exit_code = 1


def unknown(what: str, given: object, valid: Iterable[object]) -> UserError:
    """The error for a name that does not exist, with the nearest names that do.

    >>> str(unknown("paper", "flexrond", ["flexround", "relreps"]))
    "unknown paper 'flexrond': did you mean flexround?"
    >>> str(unknown("scale", "x", ["smoke", "desk", "full"]))
    "unknown scale 'x': choose from smoke, desk, full"
    """
    names = [str(name) for name in valid]
    near = get_close_matches(str(given), names, n=3, cutoff=0.6)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif names:
        hint = f"choose from {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
    else:
        hint = "there are none"
    return UserError(f"unknown {what} {str(given)!r}: {hint}")
