"""Read fer2013.csv and its variants: one CSV with a Usage column, or one for each split."""

import csv
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations, zip_longest

import numpy as np

from fer_lightning.data.archives import DAMAGED_MEMBER
from fer_lightning.data.classes import LEFT_OUT, ClassSet, label_name
from fer_lightning.data.faces import FER2013_SPLITS, SIZE, UNNAMED
from fer_lightning.data.gathering import MAX_LISTED, Gathered, RowError
from fer_lightning.data.splits import name_claims, path_claims, usage_claim, usages
from fer_lightning.data.stores import Store, abbreviate, leaf, refuse_repeated
from fer_lightning.errors import UserError

PIXELS = SIZE * SIZE
_MAX_CSV_ROW = 2**20  # characters; a row of FER-2013 has at most 9,300
_COLUMNS = {"emotion", "pixels", "usage"}
_SPLIT_COLUMNS = {"usage", "split", "set", "subset", "partition"}
_MAX_LABELS = 2**16  # distinct ones; more are no labels, and would only fill the memory
_DELIMITERS = ",;\t"  # spreadsheets use semicolons where the comma is the decimal separator


@dataclass
class Table:
    """The columns of a CSV, and what is known about its rows.

    Attributes:
        path: its path inside the store.
        columns: names in lower case.
        split_at: positions of the columns that name splits: Usage, others of such a name, and those whose first
            value is a split's word.
        root: folders above the first that names a split, so those of the whole dataset.
        names: what its folders and its own name call its rows; see splits.
        claims: what its columns have called rows so far.
        official: whether its columns have used a word of FER-2013's own.
    """

    path: str
    columns: list[str]
    split_at: list[int]
    root: str
    names: frozenset[str]
    claims: set[str] = field(default_factory=set)
    official: bool = False

    @property
    def has_labels(self) -> bool:
        """Whether the CSV has an emotion for each row."""
        return "emotion" in self.columns

    @property
    def has_pixels(self) -> bool:
        """Whether the CSV holds images."""
        return "pixels" in self.columns


def read_csvs(
    store: Store, paths: Sequence[str], classes: ClassSet, into: Gathered
) -> tuple[bool, set[str], list[str]]:
    """Read the CSVs that form one dataset.

    Args:
        store: the folder or archive.
        paths: one CSV, or several with the same columns: one for each split, or with Usage columns that differ.
        classes: the classes that labels may mean.
        into: receives the rows and the faults.

    Returns:
        Whether the splits are FER-2013's official ones, the labels that occur, and notes.

    Raises:
        UserError: a CSV cannot be read or lacks columns, the CSVs are not parts of one dataset, or a name of a CSV
            contradicts its Usage column.
    """
    refuse_repeated(store, paths)
    tables = [_read_columns(store, path) for path in paths]
    labelled = [table for table in tables if table.has_pixels and table.has_labels]
    if not labelled:
        _check_columns(tables[0])
    unlabelled = [leaf(table.path) for table in tables if table not in labelled]
    notes = [f"{name} has no labels (no emotion column) and was not used." for name in unlabelled]
    _check_parts(store, labelled)
    short = len({leaf(table.path) for table in labelled}) == len(labelled)
    labels: dict[str, str | None] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # see _parse_pixels
        for table in labelled:
            _read_rows(store, table, leaf(table.path) if short else table.path, classes, labels, into)
    for one, other in combinations(labelled, 2):
        if both := usages(one.claims) & usages(other.claims):
            names = " and ".join(FER2013_SPLITS[usage] for usage in sorted(both))
            _refuse(store, [one, other], f"both contain {names}")
    return _is_official(labelled), set(map(label_name, labels)), notes


def _is_official(tables: Sequence[Table]) -> bool:
    """Return whether the words for splits are FER-2013's own."""
    claims = set().union(*(table.claims for table in tables))
    return any(table.official for table in tables) and not claims & {"validation", "test"}


def peek(store: Store, path: str) -> Table | None:
    """Return the columns of a CSV; None if it cannot be read."""
    try:
        return _read_columns(store, path)
    except UserError:
        return None


@contextmanager
def _opened(store: Store, path: str) -> Iterator[tuple[str, "_Lines", int]]:
    """Yield a CSV's delimiter, its lines, and the number of lines before its header."""
    try:
        with store.open(path) as binary:
            # Keep bytes that are not UTF-8: they become a fault of their row instead of ending the pass.
            text = io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="")
            lines = _Lines(text)
            first, skipped = next(lines, ""), 0
            while first and not first.strip():
                lines.begin_row()
                first, skipped = next(lines, ""), skipped + 1
            if sep := re.fullmatch(r"sep=([^\r\n\"])\r?\n?", first, re.IGNORECASE):  # written by spreadsheets
                lines.begin_row()
                skipped, delimiter, first = skipped + 1, sep[1], next(lines, "")
            else:
                delimiter = max(_DELIMITERS, key=lambda char: len(_COLUMNS.intersection(_names(first.split(char)))))
            lines.push(first)
            yield delimiter, lines, skipped
    except DAMAGED_MEMBER as error:
        raise UserError(f"{path} in {store.path} cannot be read ({error}). Download it again.") from error


def _names(header: Sequence[str]) -> list[str]:
    return [column.strip(' \t\r\n"').lower() for column in header]


def _read_columns(store: Store, path: str) -> Table:
    if store.sizes[path] == 0:
        raise UserError(f"{path} in {store.path} is empty (0 bytes). Download it again.")
    with _opened(store, path) as (delimiter, lines, skipped):
        name = leaf(path)
        rows = csv.reader(lines, delimiter=delimiter)
        try:
            columns = _names(next(rows, []))
        except csv.Error as error:
            raise UserError(
                f"{name}, line {skipped + 1}: {error}. Expected the columns emotion, pixels, Usage."
            ) from error
        try:
            row = next((row for row in rows if any(map(str.strip, row))), [])
        except csv.Error:  # reported when the rows are read
            row = []
    if any(char == "\0" or "\ud800" <= char <= "\udfff" for column in columns for char in column):
        raise UserError(f"{name} is not UTF-8 text. Save it as CSV in UTF-8, or download it again.")
    if doubled := sorted(column for column in _COLUMNS if columns.count(column) > 1):
        raise UserError(f"{name} has several columns {' and '.join(doubled)}: keep one of each.")
    folders = path.split("/")[:-1]
    top = next((at for at, folder in enumerate(folders) if name_claims(folder)), len(folders))
    return Table(path, columns, _split_columns(columns, row), "/".join(folders[:top]), path_claims(path))


def _split_columns(columns: Sequence[str], first: Sequence[str]) -> list[int]:
    """Return the positions of the columns that name splits, by their names or their first values."""
    return [
        at
        for at, (column, text) in enumerate(zip_longest(columns, first[: len(columns)], fillvalue=""))
        if column in _SPLIT_COLUMNS
        or (column not in _COLUMNS and text.lower() not in ("public", "private") and usage_claim(text) is not None)
    ]


def _check_columns(table: Table) -> None:
    missing = [column for column in ("emotion", "pixels") if column not in table.columns]
    if missing:
        hint = " The challenge's test.csv has no labels: give train.csv or fer2013.csv." if table.has_pixels else ""
        raise UserError(
            f"{leaf(table.path)} has no column {' or '.join(missing)}: its first line starts with "
            f"{', '.join(map(repr, table.columns[:MAX_LISTED]))[:300]}.{hint}"
        )


def _check_parts(store: Store, tables: Sequence[Table]) -> None:
    """Raise UserError if CSVs are not parts of one dataset, as far as their names and columns tell."""
    for table in tables:
        if len(usages(table.names)) > 1:
            _refuse(store, [table], f"is called {' and '.join(sorted(table.names))} by its name and its folders")
    if len(tables) < 2:
        return
    if len({table.root for table in tables}) > 1:
        _refuse(store, tables, "are in different folders, so they are not parts of one dataset")
    if len({bool(table.split_at) for table in tables}) > 1:
        _refuse(store, tables, "do not all have a Usage column")
    if not tables[0].split_at:
        named = [usages(table.names) for table in tables]
        if not all(named):
            _refuse(store, tables, "have no Usage column, and not all are called train, val or test")
        if len(set().union(*named)) < len(tables):
            _refuse(store, tables, "have no Usage column, and some are called the same")


def _refuse(store: Store, tables: Sequence[Table], why: str) -> None:
    names = abbreviate((table.path for table in tables), 10)
    raise UserError(f"{names} in {store.path} {why}. Nothing was guessed: give the path of one CSV.")


class _Lines:
    """Lines for csv.reader, limited in length so that neither a line nor a row of many lines fills the memory."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text = text
        self._of_row = 0
        self._pushed: list[str] = []

    def push(self, line: str) -> None:
        """Put back a line, to be read next."""
        self._pushed.append(line)
        self._of_row -= len(line)

    def begin_row(self) -> None:
        self._of_row = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._pushed.pop() if self._pushed else self._text.readline(_MAX_CSV_ROW)
        if not line:
            raise StopIteration
        self._of_row += len(line)
        if self._of_row > _MAX_CSV_ROW:
            raise csv.Error("row longer than 2^20 characters")
        return line


def _read_rows(
    store: Store, table: Table, name: str, classes: ClassSet, labels: dict[str, str | None], into: Gathered
) -> None:
    """Gather the rows of a CSV; `name` is for messages and ids, `labels` receives the class of each label."""
    emotion_at, pixels_at = table.columns.index("emotion"), table.columns.index("pixels")
    default = next(iter(usages(table.names)), UNNAMED)
    known: dict[tuple[str, ...], int] = {(): default}  # Usage -> split
    with _opened(store, table.path) as (delimiter, lines, skipped):
        rows = csv.reader(lines, delimiter=delimiter)
        next(rows)
        while True:
            try:
                lines.begin_row()
                row = next(rows)
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                line = rows.line_num + skipped
                if len(row) != len(table.columns):
                    raise RowError("malformed row", f"expected {len(table.columns)} columns, got {len(row)}")
                label = _parse_label(row[emotion_at].strip(), classes, labels, into)
                words = tuple(row[at] for at in table.split_at)
                if words not in known:
                    known[words] = _parse_usage(words, table, f"{name}, line {line}")
                if label == LEFT_OUT:
                    into.left_out += 1
                else:
                    into.add(f"{name}:{line}", label, known[words], _parse_pixels(row[pixels_at]))
            except StopIteration:
                return
            except csv.Error as error:
                into.reject("malformed row", f"{name}, line {rows.line_num + skipped}", str(error))
            except RowError as error:
                into.reject(error.kind, f"{name}, line {line}", str(error))


def _parse_label(text: str, classes: ClassSet, known: dict[str, str | None], into: Gathered) -> str:
    """Return the class that a label means, and remember it in `known`; raise RowError if it means none."""
    if text not in known and len(known) < _MAX_LABELS:
        known[text] = classes.meaning_of_label(text)
    if (label := known.get(text)) is None:
        into.unknown.append(text[:40])
        into.of_unknown += 1
        raise RowError("unknown emotion", f"expected {classes.describe_labels()}, got {text[:40]!r}")
    return label


def _parse_usage(words: Sequence[str], table: Table, where: str) -> int:
    """Return the split that the values of a row's Usage column, and of others that name splits, mean.

    Raises:
        RowError: one of them means none.
        UserError: they contradict each other or the name of the CSV.
    """
    claims = set()
    for at, word in zip(table.split_at, words, strict=True):
        claim = usage_claim(word)
        if claim is None:
            column = "Usage" if table.columns[at] == "usage" else table.columns[at]
            expected = f"{', '.join(FER2013_SPLITS[:-1])} or {FER2013_SPLITS[-1]}"
            raise RowError(f"unknown {column}", f"expected {column} {expected}, got {word[:40]!r}")
        claims.add(claim)
        table.official |= claim.endswith(" test") or word.strip().lower() == "training"
    agreed = usages(claims | table.names)
    if len(agreed) > 1:
        said = f", but the path {table.path} says {' and '.join(sorted(table.names))}" if table.names else ""
        raise UserError(
            f"{where}: the row says {' and '.join(repr(word.strip()) for word in words)}{said}. "
            "Nothing was guessed: rename the file, or correct the column."
        )
    table.claims |= claims
    return agreed.pop()


def _parse_pixels(text: str) -> bytes:
    """Return the 48x48 grey values in "70 80 82 ..."; raise RowError if they are not valid."""
    try:
        # Seven times as fast as int() on each value; for invalid text numpy 1.26 only warns.
        values = np.fromstring(text, np.int64, sep=" ")
    except (ValueError, DeprecationWarning):
        wrong = next((word for word in text.split() if not re.fullmatch(r"\d+", word, re.ASCII)), text)
        raise RowError("bad pixel", f"expected integers as pixels, got {wrong[:40]!r}") from None
    if len(values) != PIXELS:
        raise RowError("wrong number of pixels", f"expected 48x48 = {PIXELS} pixels, got {len(values)}")
    if values.min() < 0 or values.max() > 255:
        wrong_value = values[(values < 0) | (values > 255)][0]
        raise RowError("bad pixel", f"expected pixels from 0 to 255, got {wrong_value}")
    return values.astype(np.uint8).tobytes()
