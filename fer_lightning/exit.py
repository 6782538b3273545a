"""Turn how a command ends into an exit code and, for a user mistake, one line on stderr."""

import errno
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from fer_lightning import environment
from fer_lightning.errors import Stopped, UserError

# Setting it to 1 has the effect of --traceback. Child processes inherit it.
TRACEBACK_VARIABLE = "FER_LIGHTNING_TRACEBACK"


def exit_code(command: Callable[[list[str]], int], arguments: Sequence[str]) -> int:
    """Run a command and return its exit code.

    Args:
        command: called with the arguments; returns the exit code.
        arguments: the command line without the program's name. ``--traceback``, anywhere before "--", is removed;
            it makes a UserError print its traceback too.

    Returns:
        The command's own code; 1 for a UserError, which is printed on stderr; 130 or 143 for SIGINT or SIGTERM;
        141 if the reader of stdout has closed the pipe. Any other exception is a bug and propagates.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may contain undecodable bytes
            stream.reconfigure(errors="backslashreplace")
    stopped = False

    def stop(signum: int, frame: FrameType | None) -> None:
        # Only the first signal raises: a second Ctrl-C, or a scheduler's SIGTERM after it, must not cut the cleanup
        # short. SIG_IGN would not work, because Lightning restores the handlers that it found.
        nonlocal stopped
        if not stopped:
            stopped = True
            raise Stopped(signum)

    environment.choose_backend(os.environ)
    before = {signum: signal.signal(signum, stop) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        with _without_flag(arguments) as rest:
            return _run(command, rest)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _run(command: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        code = command(arguments)
        if sys.stdout is not None:  # None if the shell closed it
            sys.stdout.flush()
        return code
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.ENOSPC) or error.filename:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python's final flush would fail otherwise
        if error.errno == errno.EPIPE:  # the reader stopped early, as `head` does
            return 141  # the shell's code for SIGPIPE
        print("error: cannot write the output: no space left on device.", file=sys.stderr)
        return 1
    except UserError as error:
        print_error(error)
        return 1
    except Stopped as error:
        print(f"stopped by {error}", file=sys.stderr)
        return error.exit_code


@contextmanager
def _without_flag(arguments: Sequence[str]) -> Iterator[list[str]]:
    """Yield the arguments without --traceback, with the environment variable set in its place until the end."""
    arguments = list(arguments)
    end = arguments.index("--") if "--" in arguments else len(arguments)
    if "--traceback" not in arguments[:end]:
        yield arguments
        return
    before = os.environ.get(TRACEBACK_VARIABLE)
    os.environ[TRACEBACK_VARIABLE] = "1"
    try:
        yield [argument for argument in arguments[:end] if argument != "--traceback"] + arguments[end:]
    finally:
        if before is None:
            del os.environ[TRACEBACK_VARIABLE]
        else:
            os.environ[TRACEBACK_VARIABLE] = before


def print_error(error: UserError) -> None:
    """Print a user mistake on stderr, preceded by its traceback if requested."""
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)
