"""Parse the settings of the command line. Paths and names that Hydra's grammar would refuse are quoted first.

In this grammar ``=``, brackets and commas have a meaning, numbers lose their spelling (1.10 becomes 1.1), and ``~``
and letters beyond ASCII do not exist, but a quoted string may contain anything.
"""

import os
import re
import shlex
from typing import Any

from hydra.errors import HydraException

from fer_lightning.config.compat import IntervalSweep, Override, Quote, QuotedString, parse_override, sweep_values
from fer_lightning.config.schema import PATHS, full_key, shown
from fer_lightning.errors import UserError

# The start of a quoted string, list, mapping or function: a mistake in its syntax must not turn it into a string.
_SYNTAX = re.compile(r"""['"\[{]|(int|float|str|bool|choice|range|interval|tag|sort|shuffle|glob)\(""")


def parse(text: str) -> Override:
    """Parse one setting in Hydra's grammar.

    Raises:
        UserError: the text is not NAME=value.
    """
    try:
        override = parse_override(text)
        if not override.key_or_group:
            raise HydraException("no name")
        return override
    except HydraException as error:
        name, equals, value = text.partition("=")
        hint = _hint(name, value) if name and equals and _parse_or_none(f"{name}=") else ""
        raise UserError(f"cannot parse {text!r}: expected NAME=value, e.g. trainer.max_epochs=20.{hint}") from error


def parse_typed(text: str) -> Override:
    """Parse one setting as typed on the command line, where paths and names need no quotes for Hydra.

    Raises:
        UserError: the text is not NAME=value, or it cannot be recorded as UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{text!r} is not valid UTF-8. Rename the file, or give a link to it.") from error
    name, equals, value = text.partition("=")
    return parse(f"{name}{equals}{_quote_where_needed(value, full_key(name.lstrip('+~')))}")


def quoted(text: str) -> str:
    """Return the quoted string of Hydra's grammar that stands for this text."""
    return QuotedString(text, Quote.double).with_quotes()


def quoting_hint(override: Override) -> str:
    """Return a sentence that shows how to type a list or sweep that is meant as one path, "" for other settings."""
    if full_key(override.key_or_group) not in PATHS:
        return ""
    text = override.get_value_string()
    if '"' in text:  # quoted here, not by the user
        text = ",".join(map(shown, values_of(override)))
    return _hint(override.get_key_element(), text)


def _hint(name: str, text: str) -> str:
    return f" If the value is one string, quote it: {shlex.quote(f'{name}={quoted(text)}')}"


def _quote_where_needed(value: str, key: str) -> str:
    """Return a typed value in Hydra's grammar, with the paths and names in it quoted.

    A path that exists is taken literally, also as an element of a list or sweep. Any other value that Hydra accepts
    keeps the meaning that it has in Hydra, except that a path is never a number.

    Raises:
        UserError: an existing path contains an interpolation.
    """
    is_path = key in (*PATHS, "name")
    if is_path and _exists(value):
        return _as_string(value)
    is_list, elements = _split(value)
    parsed = _parse_or_none(f"key={value}")
    if parsed and not (is_path and all(map(_exists, elements))):
        content = parsed.value()
        is_misread = isinstance(content, int | float) and not (key == "name" and str(content) == value)
        return _as_string(value) if is_path and is_misread else value
    if any(map(_SYNTAX.match, elements)):
        return value
    if not is_list and len(elements) == 1:
        return _as_string(value)
    text = ",".join(_quote_where_needed(element, key) for element in elements)
    return f"[{text}]" if is_list else text


def _split(value: str) -> tuple[bool, list[str]]:
    """Return whether a value is a list, and its elements or those of a sweep; the value itself if it is neither."""
    is_list = value[:1] == "[" and value[-1:] == "]"
    return is_list, [element.strip() for element in (value[1:-1] if is_list else value).split(",")]


def _exists(path: str) -> bool:
    if path.lower() == "null" or not os.path.lexists(os.path.expanduser(path)):
        return False
    if "${" in path:
        raise UserError(f"{path}: Hydra would replace ${{...}}. Rename the file, or give a link to it.")
    return True


def _as_string(text: str) -> str:
    """Return text with ~ expanded, quoted unless Hydra reads the same text without quotes."""
    path = os.path.expanduser(text)
    parsed = _parse_or_none(f"key={path}")
    # A backslash at the end would escape the comma after it.
    return path if parsed and parsed.value() == path and not path.endswith("\\") else quoted(path)


def _parse_or_none(text: str) -> Override | None:
    try:
        return parse_override(text)
    except HydraException:
        return None


def values_of(override: Override) -> list[Any]:
    """Return every value that an override gives: several for a sweep, both ends for an interval.

    Raises:
        UserError: a shuffled sweep, or one whose values cannot be listed.
    """
    if override.is_sweep_override() and override.is_discrete_sweep():
        if getattr(override.value(), "shuffle", False):
            raise UserError(
                f"{override.input_line}: resuming a sweep relies on the order of its runs. Leave out shuffle."
            )
        try:
            return sweep_values(override)
        except HydraException as error:
            raise UserError(f"{override.input_line}: list the choices instead, separated by commas.") from error
        except ValueError as error:  # a range with step 0
            raise UserError(f"{override.input_line}: {error}.") from error
    value = override.value()
    return [value.start, value.end] if isinstance(value, IntervalSweep) else [value]
