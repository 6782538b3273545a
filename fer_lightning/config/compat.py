"""What Hydra has no public name for. tests/config/test_hydra_compat.py names what an upgrade broke."""

import argparse

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

__all__ = ["IntervalSweep", "Override", "flag_parser", "parse_override"]


def flag_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's own flags, -m, --cfg and the like, to check them before Hydra runs."""
    return get_args_parser()


def parse_override(text: str) -> Override:
    """Return a setting of the command line as Hydra's grammar reads it.

    Raises:
        HydraException: it cannot be read.
    """
    return OverridesParser.create().parse_override(text)
