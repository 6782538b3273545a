"""Calls that a configuration asks for: its mistakes become one line, and bugs keep their traceback."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from traceback import walk_tb
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fer_lightning.errors import UserError, did_you_mean

Built = TypeVar("Built")

# Packages that check the values they are given: what they refuse is a mistake in the configuration, not a bug.
LIBRARIES = ("torch", "torchvision", "torchmetrics", "lightning", "tensorboard")


def call(function: Callable[..., Built], name: str, options: Mapping[str, Any], *arguments: Any) -> Built:
    """Call a function or class with the options that a configuration gives it.

    Args:
        function: what to call.
        name: what the user knows it by, for messages.
        options: keyword arguments from the configuration.
        arguments: positional arguments, which come from the program itself.

    Raises:
        UserError: an option that `function` does not take, a missing one, or one of the wrong type; a value that a
            library refuses; or what `function` raises as a UserError itself. Every other exception is a bug in
            `function` and passes unchanged.
    """
    check_options(function, name, options, *arguments)
    try:
        return function(*arguments, **options)
    except Exception as error:
        if not raised_within(error, *LIBRARIES):
            raise
        given = ", ".join(f"{key}={value}" for key, value in options.items())
        raise UserError(f"{name} cannot be built with {given}: {first_line(error)}") from error


def check_options(function: Callable[..., Any], name: str, options: Mapping[str, Any], *arguments: Any) -> None:
    """Compare options with the signature of a function or class, without calling it.

    Values are compared with annotations of plain types: bool, int, float, str, None, sequences and unions of these.

    Raises:
        UserError: an option that `function` does not take, a missing one, or one of the wrong type.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # some built-in functions have none; they check for themselves
    parameters = signature.parameters.values()
    names = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ][len(arguments) :]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for option in options:
            if option not in names:
                takes = f" It takes: {', '.join(names)}." if names else ""
                raise UserError(f"{name} does not take {option!r}.{did_you_mean(option, names)}{takes}")
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise UserError(f"{name}: {error}.") from error
    hints = _hints(function)
    for option, value in options.items():
        if option in hints and not fits(value, hints[option]):
            raise UserError(f"{name}: {option}={value} is of the wrong type, expected {_shown(hints[option])}.")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError, AttributeError):  # a name imported for type checkers only, or no Python function
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is of an annotated type, or the annotation is none that is compared here."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin in (list, tuple, Sequence) and not inner:
        return isinstance(value, list | tuple)
    if origin is tuple and Ellipsis not in inner:
        same_length = isinstance(value, list | tuple) and len(value) == len(inner)
        return same_length and all(map(fits, value, inner))
    if origin in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(one, inner[0]) for one in value)
    if isinstance(value, bool):
        return hint not in (int, float, str, NoneType)
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, hint) if hint in (bool, int, str, NoneType) else True


def _shown(hint: Any) -> str:
    return hint.__name__ if inspect.isclass(hint) and not get_args(hint) else str(hint).replace("typing.", "")


def raised_within(error: BaseException, *modules: str) -> bool:
    """Return whether all the code that ran between the caller and the raise is in these modules or packages."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return all(any(name == one or name.startswith(f"{one}.") for one in modules) for name in frames[1:])


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
