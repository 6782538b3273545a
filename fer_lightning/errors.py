"""Exceptions that end a command or run early, and suggestions for misspelt names."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """A user mistake or bad input data: the message names the value, the cause and the remedy.

    Commands print the message alone, without a traceback, and exit with code 1.
    """


class Pruned(Exception):
    """A search stopped this unpromising run early. This is not a failure."""


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, so that no ``except Exception`` swallows it."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def check_at_least_one(setting: str, value: int) -> None:
    """Raise UserError if the value of a setting is below 1."""
    if value < 1:
        raise UserError(f"{setting}={value}: expected at least 1.")


def check_probability(setting: str, value: float) -> None:
    """Raise UserError if the value of a setting is not a probability."""
    if not 0 <= value <= 1:
        raise UserError(f"{setting}={value:g}: expected a probability from 0 to 1, e.g. 0.5.")


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """Return ' Did you mean X?', or an empty string if no candidate is close.

    Dotted names are compared as a whole first, then by their last part, so that ``lr`` finds ``optim.lr``.
    """
    names = sorted(candidates)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if not near:
        last_parts = {candidate.rpartition(".")[2]: candidate for candidate in names}
        matches = difflib.get_close_matches(name.rpartition(".")[2], last_parts, n=1, cutoff=0.7)
        near = [last_parts[match] for match in matches]
    return f" Did you mean {near[0]}?" if near else ""
