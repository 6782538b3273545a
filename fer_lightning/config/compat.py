"""Hydra internals that have no public name. tests/config/test_hydra_compat.py reports what an upgrade breaks."""

import argparse

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

__all__ = ["IntervalSweep", "Override", "flag_parser", "parse_override"]


def flag_parser() -> argparse.ArgumentParser:
    """Return the parser of Hydra's own flags (-m, --cfg, ...), to check them before Hydra runs."""
    return get_args_parser()


def parse_override(text: str) -> Override:
    """Parse a setting of the command line with Hydra's grammar.

    Raises:
        HydraException: the text is not a valid override.
    """
    return OverridesParser.create().parse_override(text)
