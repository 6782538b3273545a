"""Options are compared with signatures, and mismatches are reported."""

import typing
from collections.abc import Sequence

import pytest

from fer_lightning.arguments import call, describe_type, fits
from fer_lightning.errors import UserError


@pytest.mark.parametrize(
    ("value", "hint", "right"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        ("1", float, False),
        (None, float, False),
        (None, float | None, True),
        ([1, 2], Sequence[int], True),
        ([1, "a"], Sequence[int], False),
        ((1, 2), list[int], True),
        ([0.9, 1.1], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ([1, 2, 3], tuple[int, ...], True),
        ([1, "a"], typing.List, True),  # noqa: UP006
        ([1, "a"], typing.Optional[typing.Tuple], True),  # noqa: UP006, UP045
        ("a", typing.Sequence, False),
        ("a", str | list[str] | None, True),
        ("a", typing.Literal["b"], True),  # libraries check their own arguments
        ({"a": 1}, dict[str, int], True),
        (3, typing.Any, True),
    ],
)
def test_fits(value, hint, right):
    assert fits(value, hint) == right


@pytest.mark.parametrize(
    ("hint", "description"),
    [
        (bool, "true or false"),
        (int, "an integer"),
        (float | None, "a number or null"),
        (str | list[str] | None, "a string, a list of strings or null"),
        (list[int], "a list of integers"),
        (Sequence[float], "a list of numbers"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[int, ...], "a list of integers"),
        (tuple[int, str], "a list"),
        (list[typing.Any], "a list"),
        (list, "a list"),
        (dict[str, int], "a mapping"),
        (typing.Any, "any value"),
        (typing.Literal["a", "b", "c"], "one of a, b, c"),
        (typing.Optional[Sequence], "a list or null"),  # noqa: UP045
        (Exception, "Exception"),
    ],
)
def test_describe_type(hint, description):
    assert describe_type(hint) == description


def function(a: int, *, b: str = "x", size_px: int = 48) -> tuple[int, str]:
    return a, b


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"a": 1, "size_pxx": 3}, "f: unknown option 'size_pxx'. Did you mean size_px? Choose from a, b, size_px."),
        ({"b": "y"}, "f: missing a required argument: 'a'."),
        ({"a": "y"}, "f: a=y: expected an integer."),
    ],
)
def test_mismatched_options_are_reported(options, message):
    with pytest.raises(UserError) as caught:
        call(function, "f", options)
    assert str(caught.value) == message


def test_call_returns_the_result():
    assert call(function, "f", {"b": "y"}, 3) == (3, "y")
    assert call(dict, "dict", {"a": 1}) == {"a": 1}  # has no signature
