"""The command-line tools: ``fer-lightning COMMAND``, or ``python -m fer_lightning COMMAND``."""

import argparse
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from fer_lightning.commands import audit, benchmark, demo, evaluate, explain, export, predict, runs, train
from fer_lightning.errors import UserError, did_you_mean
from fer_lightning.exit import exit_code
from fer_lightning.files import expand_home

COMMANDS = {
    "train": train,
    "predict": predict,
    "demo": demo,
    "explain": explain,
    "evaluate": evaluate,
    "audit": audit,
    "export": export,
    "runs": runs,
    "benchmark": benchmark,
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See {self.prog} --help.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the command line without the program's name; sys.argv's by default.

    Returns:
        The exit code: 0 for success, 1 for a user mistake or bad input data, 130 or 143 if interrupted.
    """
    return exit_code(_run, sys.argv[1:] if arguments is None else arguments)


def _run(arguments: list[str]) -> int:
    parser = _Parser(
        "fer-lightning",
        description="Train a network on FER-2013 and use it.",
        epilog="--traceback or FER_LIGHTNING_TRACEBACK=1 shows the traceback of an error.",
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, module in COMMANDS.items():
        description = module.__doc__ or ""
        parsers[name] = subparsers.add_parser(
            name,
            help=description.splitlines()[0],
            description=description,
            allow_abbrev=False,  # adding an option could change what an abbreviation means
        )
        if module is not train:
            module.configure(parsers[name])

    arguments = list(map(expand_home, arguments))
    name = arguments[0] if arguments else ""
    if name == "train":  # Hydra parses its settings
        return train.main(arguments[1:])
    if name in ("", "-h", "--help"):
        parser.parse_args(arguments[:1])
    if name not in COMMANDS:
        near = did_you_mean(name, COMMANDS)
        raise UserError(f"unknown command {name!r}.{near} Choose from {', '.join(COMMANDS)}.")
    chosen = parsers[name]
    # Options may appear between paths. Before Python 3.13, parse_known_intermixed_args does not support "--".
    parse = chosen.parse_known_args if "--" in arguments else chosen.parse_known_intermixed_args
    parsed, unknown = parse(arguments[1:])
    if unknown:
        near = did_you_mean(unknown[0].partition("=")[0], re.findall(r"--?[a-z][a-z-]*", chosen.format_help()))
        raise UserError(f"{chosen.prog}: unknown argument {unknown[0]!r}.{near} See {chosen.prog} --help.")
    code: int = COMMANDS[name].run(parsed)
    return code


if __name__ == "__main__":
    sys.exit(main())
