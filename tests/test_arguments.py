"""Options against signatures: what fits, and how a mismatch is told."""

import typing
from collections.abc import Sequence

import pytest

from fer_lightning.arguments import call, fits
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
        ("a", typing.Literal["b"], True),  # a library checks its own
        ({"a": 1}, dict[str, int], True),
        (3, typing.Any, True),
    ],
)
def test_what_fits_an_annotation(value, hint, right):
    assert fits(value, hint) == right


def function(a: int, *, b: str = "x", size_px: int = 48) -> tuple[int, str]:
    return a, b


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"a": 1, "size_pxx": 3}, "f does not take 'size_pxx'. Did you mean size_px? It takes: a, b, size_px."),
        ({"b": "y"}, "f: missing a required argument: 'a'."),
        ({"a": "y"}, "f: a=y is of the wrong type, expected int."),
    ],
)
def test_a_mismatch_is_told(options, said):
    with pytest.raises(UserError) as caught:
        call(function, "f", options)
    assert str(caught.value) == said


def test_a_call_goes_through():
    assert call(function, "f", {"b": "y"}, 3) == (3, "y")
    assert call(dict, "dict", {"a": 1}) == {"a": 1}  # whose signature is not known
