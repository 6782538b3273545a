"""What a person can put right, how a command ends, and the nearest right name for a wrong one."""

import difflib
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import NoReturn


class UserError(Exception):
    """A mistake of the person's or of their data: the message names the value, the cause and the remedy.

    ``train.py`` prints the message alone, without a traceback, and exits with code 1.
    """


_STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, so that nothing swallows it on the way out."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def exit_code(command: Callable[[], int]) -> int:
    """The exit code of a command: its own, 1 for a UserError, told on stderr, 130 or 143 for SIGINT or SIGTERM."""
    before = {signum: signal.signal(signum, _stop) for signum in _STOPPING}
    try:
        return command()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"stopped by {stopped}", file=sys.stderr)
        return stopped.exit_code
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _stop(signum: int, frame: FrameType | None) -> NoReturn:
    # A second Ctrl-C must not cut the first one's tidying short, nor a scheduler's SIGTERM after it.
    for each in _STOPPING:
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(signum)


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """' Did you mean X?', or nothing where nothing is near.

    Dotted names are compared whole first, then by their last part, so that ``lr`` finds ``optim.lr``.
    """
    names = sorted(candidates)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    if not near:
        last_parts = {candidate.rpartition(".")[2]: candidate for candidate in names}
        matches = difflib.get_close_matches(name.rpartition(".")[2], last_parts, n=1, cutoff=0.7)
        near = [last_parts[match] for match in matches]
    return f" Did you mean {near[0]}?" if near else ""
