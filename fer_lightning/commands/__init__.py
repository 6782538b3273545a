"""Subcommands of ``fer-lightning``, one module each.

A module's docstring is the command's help, its first line the summary. ``configure`` adds the arguments to a parser
and ``run`` does the work; all that is slow to import is imported in ``run``.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fer_lightning.errors import UserError

if TYPE_CHECKING:
    from fer_lightning.inference.classifier import Classifier


def add_network_arguments(parser: argparse.ArgumentParser, positional: bool = False, device: bool = True) -> None:
    """Which network a command works with: a shipped one or a checkpoint, and where it runs.

    With `positional` the checkpoint can also stand alone: ``COMMAND CKPT`` is ``COMMAND --ckpt CKPT``. Without
    `device` it is always the CPU.
    """
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", default="best", metavar="NAME", help="a network that ships; default %(default)s")
    source.add_argument("--ckpt", metavar="PATH", help="a run's checkpoints/best.ckpt instead")
    if positional:
        # Without SUPPRESS its absence would overwrite what --ckpt has set.
        parser.add_argument(
            "ckpt",
            nargs="?",
            default=argparse.SUPPRESS,
            action=_Checkpoint,
            metavar="CKPT",
            help="the same as --ckpt",
        )
    if not device:
        parser.set_defaults(device="cpu")
        return
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1 or mps; by default the GPU if any",
    )


class _Checkpoint(argparse.Action):
    """CKPT without its option: argparse lets nothing that may stand among options exclude one of them."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if namespace.ckpt is not None or namespace.model != parser.get_default("model"):
            parser.error("argument CKPT: not allowed with --ckpt or --model")
        namespace.ckpt = values


def load_network(args: argparse.Namespace) -> "Classifier":
    """The classifier that `add_network_arguments`' options name.

    Raises:
        UserError: no such network, checkpoint or device.
    """
    import fer_lightning
    from fer_lightning.inference.classifier import checkpoint_path

    if args.ckpt is not None:
        return fer_lightning.load_checkpoint(checkpoint_path(args.ckpt), args.device)
    return fer_lightning.load_pretrained(args.model, args.device)


def untaken(stem: str, taken: set[str]) -> str:
    """The stem, numbered from the second file of that name on; taken from now on."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def add_tta_argument(parser: argparse.ArgumentParser) -> None:
    """Which views of a face are averaged."""
    parser.add_argument(
        "--tta",
        default="none",
        metavar="NAME",
        help="test-time augmentation: none, mirror, shifts or ten_crop; default %(default)s",
    )


def tell(line: str) -> None:
    """How far a command is, on stderr, so that stdout holds only its result."""
    print(line, file=sys.stderr, flush=True)


def write_file(path: Path, write: Callable[[Path, Any], None], content: Any) -> None:
    """Writes a file that was asked for, by one of the functions of files.py, and says so.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    print(f"written: {path}")
