"""What a person can put right, how a command ends, and the nearest right name for a wrong one."""

import difflib
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType


class UserError(Exception):
    """A mistake of the person's or of their data: the message names the value, the cause and the remedy.

    ``train.py`` prints the message alone, without a traceback, and exits with code 1.
    """


class Pruned(Exception):
    """A search gave this run up as hopeless: an end as good as any other."""


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Not an Exception, so that nothing swallows it on the way out."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


def exit_code(command: Callable[[], int]) -> int:
    """The exit code of a command: its own, 1 for a UserError, told on stderr, 130 or 143 for SIGINT or SIGTERM, 141
    where nobody reads its output any more.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be no text, and are told all the same
            stream.reconfigure(errors="backslashreplace")
    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        # Once: a second Ctrl-C, or a scheduler's SIGTERM after it, must not cut the first one's tidying short. Not
        # by SIG_IGN, for Lightning puts the handlers back that it found.
        nonlocal stopped
        if not stopped:
            stopped = True
            raise Stopped(signum)

    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        code = command()
        if sys.stdout is not None:  # as it is where the shell has closed it
            sys.stdout.flush()
        return code
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own last flush would complain
        if error.errno == errno.EPIPE:  # who read the output has seen enough, as `head` does
            return 141  # as of SIGPIPE
        print("error: the output cannot be written: no space is left.", file=sys.stderr)
        return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as error:
        print(f"stopped by {error}", file=sys.stderr)
        return error.exit_code
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


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
