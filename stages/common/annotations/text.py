"""CSV files as people and spreadsheets write them: UTF-8 with or without a mark; commas, semicolons or tabs."""

import csv
from pathlib import Path

import pandas as pd

from stages.common.images import layout
from stages.common.runtime.errors import UserError

ENCODING = "utf-8-sig"  # UTF-8; a byte order mark, if there is one, is skipped
SEPARATORS = (",", ";", "\t")


def header(path: Path) -> list[str]:
    """The names of a file's columns, in small letters; of a file that is no text, something else.

    Raises:
        UserError: it can't be read.
    """
    try:
        with path.open(encoding=ENCODING, errors="replace", newline="") as file:
            line = file.readline(10_000)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a CSV file") from error
    return _names(next(csv.reader([line], delimiter=_separator(line)), []))


def _separator(line: str) -> str:
    return max(SEPARATORS, key=line.count)


def _names(cells: list[str]) -> list[str]:
    return [cell.strip().lower() for cell in cells]


def read_csv(path: Path) -> pd.DataFrame:
    """All cells as str, by column, whose names are in small letters. The index has the number of each row's last line.

    Raises:
        UserError: not a file, not UTF-8, a row with more or fewer cells than columns, a column twice, or control characters.
    """
    if not path.is_file():
        raise UserError(f"{path}: not a file; expected a CSV file")
    columns = header(path)
    if len(set(columns)) < len(columns):
        raise UserError(f"{path}: the columns are {', '.join(columns)}; expected each name once")
    rows: dict[int, list[str]] = {}
    try:
        with path.open(encoding=ENCODING, newline="") as file:
            separator = _separator(file.readline())
            file.seek(0)
            reader = csv.reader(file, delimiter=separator, strict=True)
            for cells in reader:
                if cells and len(cells) != len(columns):
                    raise UserError(
                        f"{path}: line {reader.line_num} has {len(cells)} cells; expected {len(columns)}: {', '.join(columns)}"
                    )
                if cells and reader.line_num > 1:
                    rows[reader.line_num] = cells
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); save it again as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; save it again as CSV") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a CSV file") from error
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=str)
    for column in table:
        if bad := [text for text in table[column].unique() if layout.has_control_characters(text)]:
            raise UserError(f"{path}: column {column} has {bad[0]!r}; expected text without control characters")
    return table
