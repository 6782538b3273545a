"""Text for the terminal: tables, numbers, and names that may hold anything. Imports nothing heavy."""

from collections.abc import Sequence


def printable(text: str) -> str:
    r"""The text in one line: what would steer the terminal, or is no text, as its escape, such as \n or \x1b."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def percent(value: float | None) -> str:
    """A fraction as a table has it, "-" for none."""
    return "-" if value is None else f"{value:.2%}"


def decimal(value: float | None) -> str:
    """A number to four places, "-" for none."""
    return "-" if value is None else f"{value:.4f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their names: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)
