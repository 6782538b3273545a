"""Call what a configuration names: arguments that do not fit become one-line errors, bugs keep their traceback."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from traceback import walk_tb
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fer_lightning.errors import UserError, did_you_mean

Built = TypeVar("Built")

# Packages that validate their arguments: an error raised inside them is a configuration mistake, not a bug.
LIBRARIES = ("torch", "torchvision", "torchmetrics", "lightning", "tensorboard")

# How messages call the types that `fits` checks: one value, and the elements of a list.
_TYPE_NAMES: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "booleans"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
    dict: ("a mapping", "mappings"),
    NoneType: ("null", "nulls"),
    Any: ("any value", ""),
}
_SEQUENCES = (list, tuple, Sequence)


def call(function: Callable[..., Built], name: str, options: Mapping[str, Any], *arguments: Any) -> Built:
    """Call a function or class with options from a configuration.

    Args:
        function: what to call.
        name: the name that the user knows it by, for messages.
        options: keyword arguments from the configuration.
        arguments: positional arguments from the program itself.

    Returns:
        What `function` returns.

    Raises:
        UserError: an unknown option, a missing one, one of the wrong type, or a value that a library refuses; also
            any UserError of `function` itself. Every other exception is a bug in `function` and propagates.
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

    Values are checked against annotations of plain types: bool, int, float, str, None, sequences, unions of these.

    Raises:
        UserError: an unknown option, a missing one, or one of the wrong type.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # some built-in functions have no signature; they check their own arguments
    parameters = signature.parameters.values()
    names = [
        parameter.name
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ][len(arguments) :]
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for option in options:
            if option not in names:
                choices = f" Choose from {', '.join(names)}." if names else ""
                raise UserError(f"{name}: unknown option {option!r}.{did_you_mean(option, names)}{choices}")
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise UserError(f"{name}: {error}.") from error
    hints = _hints(function)
    for option, value in options.items():
        if option in hints and not fits(value, hints[option]):
            raise UserError(f"{name}: {option}={value}: expected {describe_type(hints[option])}.")


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except (NameError, TypeError, AttributeError):  # a name for type checkers only, or not a Python function
        return {}


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value matches a type annotation. Annotations that are not of plain types match any value."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, member) for member in inner)
    if origin in _SEQUENCES and not inner:
        return isinstance(value, list | tuple)
    if origin is tuple and Ellipsis not in inner:
        same_length = isinstance(value, list | tuple) and len(value) == len(inner)
        return same_length and all(map(fits, value, inner))
    if origin in _SEQUENCES:
        return isinstance(value, list | tuple) and all(fits(element, inner[0]) for element in value)
    if isinstance(value, bool):
        return hint not in (int, float, str, NoneType)
    if hint is float:
        return isinstance(value, int | float)
    return isinstance(value, hint) if hint in (bool, int, str, NoneType) else True


def describe_type(hint: Any) -> str:
    """Return in words which values a type annotation accepts, e.g. "a string or null" or "a list of integers"."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    if origin in (Union, UnionType):
        *others, last = dict.fromkeys(map(describe_type, inner))
        return f"{', '.join(others)} or {last}" if others else last
    if origin in _SEQUENCES or hint in _SEQUENCES:
        return _describe_list(inner, is_fixed_length=origin is tuple and Ellipsis not in inner)
    if (origin or hint) in _TYPE_NAMES:
        return _TYPE_NAMES[origin or hint][0]
    return hint.__name__ if inspect.isclass(hint) else str(hint).replace("typing.", "")


def _describe_list(inner: Sequence[Any], is_fixed_length: bool) -> str:
    kinds = {kind for kind in inner if kind is not Ellipsis}
    elements = _TYPE_NAMES[kinds.pop()][1] if len(kinds) == 1 and kinds <= _TYPE_NAMES.keys() else ""
    count = f"{len(inner)} " if is_fixed_length else ""
    return f"a list of {count}{elements}" if elements else "a list"


def raised_within(error: BaseException, *modules: str) -> bool:
    """Return whether all the code that ran between the caller and the raise is in these modules or packages."""
    frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return all(any(name == module or name.startswith(f"{module}.") for module in modules) for name in frames[1:])


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
