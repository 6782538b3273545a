"""Subcommands of ``fer-lightning``, one module each.

A module's docstring is the command's help, its first line the summary. ``configure`` adds the arguments to a parser
and ``run`` does the work; all that is slow to import is imported in ``run``.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fer_lightning.classifier import Classifier


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Which network a command works with: a shipped one or a checkpoint, and where it runs."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--model", default="best", metavar="NAME", help="a network that ships: best or tiny; default %(default)s"
    )
    source.add_argument("--ckpt", metavar="PATH", help="a run's checkpoints/best.ckpt instead")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda, cuda:1 or mps; by default the GPU if any",
    )


def load_network(args: argparse.Namespace) -> "Classifier":
    """The classifier that `add_network_arguments`' options name.

    Raises:
        UserError: no such network, checkpoint or device.
    """
    import fer_lightning

    if args.ckpt is not None:
        return fer_lightning.load_checkpoint(args.ckpt, args.device)
    return fer_lightning.load_pretrained(args.model, args.device)
