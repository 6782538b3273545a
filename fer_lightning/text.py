"""Text for the terminal: tables, numbers and names with unprintable characters. Imports nothing heavy."""

from collections.abc import Sequence


def printable(text: str) -> str:
    r"""Return the text on one line, with unprintable characters escaped, e.g. as \n or \x1b."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def percent(value: float | None) -> str:
    """Format a fraction as a percentage with two decimals; None as "-"."""
    return "-" if value is None else f"{value:.2%}"


def decimal(value: float | None) -> str:
    """Format a number with four decimals; None as "-"."""
    return "-" if value is None else f"{value:.4f}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format rows of cells as a table with a header: first column left-aligned, the others right-aligned."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (header, ["-" * width for width in widths], *rows)
    ]
    return "\n".join(lines)
