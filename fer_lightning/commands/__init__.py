"""Subcommands of ``fer-lightning``, one module each, and `clips`, the half of ``predict`` for videos.

A module's docstring is the command's help text, and its first line the summary. ``configure`` adds the arguments to
a parser; ``run`` does the work and returns the exit code. Modules that are slow to import are imported in ``run``.
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
    """Add the arguments that select a network and its device.

    Args:
        parser: parser of the command.
        positional: also accept the checkpoint without its option: ``COMMAND CKPT`` for ``COMMAND --ckpt CKPT``.
        device: add ``--device``; without it the network runs on the CPU.
    """
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--model", default="best", metavar="NAME", help="pretrained network to use (default: %(default)s)"
    )
    source.add_argument(
        "--ckpt", metavar="PATH", help="checkpoint to use instead, or the folder of a run or a sweep"
    )
    if positional:
        # Without SUPPRESS, an omitted CKPT would overwrite the value of --ckpt with its default.
        parser.add_argument(
            "ckpt",
            nargs="?",
            default=argparse.SUPPRESS,
            action=_PositionalCheckpoint,
            metavar="CKPT",
            help="same as --ckpt",
        )
    if not device:
        parser.set_defaults(device="cpu")
        return
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1 or mps (default: the GPU if there is one)",
    )


class _PositionalCheckpoint(argparse.Action):
    """The positional CKPT, exclusive with --ckpt and --model.

    argparse's mutually exclusive groups do not support positional arguments mixed with options.
    """

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
    """Load the classifier selected by the arguments of `add_network_arguments`.

    Raises:
        UserError: the network, checkpoint or device does not exist or cannot be used.
    """
    import fer_lightning

    if args.ckpt is not None:
        return load_checkpoint(args.ckpt, args.device)
    return fer_lightning.load_pretrained(args.model, args.device)


def load_checkpoint(name: str, device: str) -> "Classifier":
    """Load the classifier of a checkpoint, a shipped network, or the best run in a folder.

    Raises:
        UserError: the checkpoint or device does not exist or cannot be used.
    """
    import fer_lightning
    from fer_lightning.inference.classifier import checkpoint_path
    from fer_lightning.runs.ranking import resolve_checkpoint

    return fer_lightning.load_checkpoint(resolve_checkpoint(checkpoint_path(name)), device)


def unique_name(stem: str, taken: set[str]) -> str:
    """Return the stem, with a number appended if it is already in `taken`, and add the result to `taken`."""
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}-{number}"
    taken.add(name)
    return name


def add_tta_argument(parser: argparse.ArgumentParser, default: str | None = "none") -> None:
    """Add the argument that selects the test-time augmentation.

    With None as the default, the help says that the accuracy with the network's own is reported, too.
    """
    shown = default or "none, and the accuracy with the network's own beside it, which may take as long again"
    parser.add_argument(
        "--tta",
        default=default,
        metavar="NAME",
        help=f"test-time augmentation: none, mirror, shifts, zooms or ten_crop (default: {shown})",
    )


def add_class_arguments(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the arguments that say which labels and classes the data have; see `label_settings`.

    Args:
        parser: parser of the command.
        default: describes the classes without ``--classes``.
    """
    parser.add_argument(
        "--labels",
        default="fer2013",
        choices=("fer2013", "ferplus"),
        help="labels of FER-2013's images, as data.labels in training: its own, or those that FER+'s voters gave "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--ferplus",
        metavar="PATH",
        help="fer2013new.csv, the votes for --labels ferplus (default: beside the data, then an earlier download)",
    )
    parser.add_argument(
        "--classes",
        type=_classes,
        metavar="SET",
        help="classes of the data, as data.classes in training: fer2013, ferplus, rafdb, folders (each folder is "
        f"one) or a list such as happy,other in the order of their numbers (default: {default})",
    )
    parser.add_argument(
        "--rename",
        action="append",
        default=[],
        type=_renamed,
        metavar="OLD=NEW",
        help="class or folder that means another class, as data.rename in training; OLD= leaves its images out; "
        "may be repeated",
    )


def label_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `add_class_arguments`, but for ``--classes``, for the functions of data.fer2013."""
    return {"labels": args.labels, "ferplus": args.ferplus, "rename": dict(args.rename)}


def _classes(text: str) -> str | list[str]:
    names = [name.strip() for name in text.removeprefix("[").removesuffix("]").split(",")]
    return names if len(names) > 1 or text.startswith("[") else text


def _renamed(text: str) -> tuple[str, str | None]:
    old, equals, new = text.partition("=")
    if not equals or not old.strip():
        raise argparse.ArgumentTypeError(f"expected OLD=NEW, got {text!r}")
    return old, new.strip() or None


def log(line: str) -> None:
    """Print a progress line on stderr, because stdout is for the command's result alone."""
    print(line, file=sys.stderr, flush=True)


def write_file(path: Path, write: Callable[[Path, Any], None], content: Any) -> None:
    """Write a file that the user requested and print its path.

    Args:
        path: path of the file.
        write: function of files.py that writes `content` to `path`.
        content: content of the file.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        write(path, content)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    print(f"written: {path}")
