"""CSV files as people and spreadsheets write them: UTF-8 with or without a mark; commas, semicolons or tabs."""

import csv
from pathlib import Path

import pandas as pd

from stages.common.images import layout
from stages.common.runtime.errors import UserError

ENCODING = "utf-8-sig"  # UTF-8; a byte order mark, if there is one, is skipped
MAX_LINE = 10_000  # characters of the header: a file of another kind may have no line breaks
SEPARATORS = (",", ";", "\t")


def header(path: Path) -> tuple[list[str], int]:
    """The names of a file's columns, in small letters, and how many lines are before them: Excel may write one, as sep=;.

    Of a file that is no text, something else.

    Raises:
        UserError: it can't be read.
    """
    try:
        with path.open(encoding=ENCODING, errors="replace", newline="") as file:
            line = file.readline(MAX_LINE)
            skip = int(line.lower().startswith("sep="))
            line = file.readline(MAX_LINE) if skip else line
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a CSV file") from error
    cells = next(csv.reader([line], delimiter=_separator(line)), [])
    return [cell.strip().lower() for cell in cells], skip


def _separator(line: str) -> str:
    return max(SEPARATORS, key=line.count)


def read_csv(path: Path) -> pd.DataFrame:
    """All cells as str, by column, whose names are in small letters. The index has the number of each row's last line.

    Raises:
        UserError: not a file, not UTF-8, a row with more or fewer cells than columns, a column twice, or control characters.
    """
    if not path.is_file():
        raise UserError(f"{path}: not a file; expected a CSV file")
    columns, skip = header(path)
    if not any(columns):
        raise UserError(f"{path}: the first line is empty; expected the names of columns")
    named = [name for name in columns if name]
    if len(set(named)) < len(named):
        raise UserError(f"{path}: the columns are {', '.join(named)}; expected each name once")
    rows: dict[int, list[str]] = {}
    try:
        with path.open(encoding=ENCODING, newline="") as file:
            lines = [file.readline() for _ in range(skip + 1)]
            file.seek(0)
            reader = csv.reader(file, delimiter=_separator(lines[-1]), strict=True)
            for cells in reader:
                if reader.line_num <= skip + 1 or not any(cells):
                    continue
                if len(cells) != len(columns):
                    raise UserError(
                        f"{path}: line {reader.line_num} has {len(cells)} cells; expected {len(columns)}: {', '.join(named)}"
                    )
                rows[reader.line_num] = cells
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error}); save it again as CSV in UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}; save it again as CSV") from error
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected a CSV file") from error
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns, dtype=str)[named]
    for column in table:
        if bad := [text for text in table[column].unique() if layout.has_control_characters(text)]:
            raise UserError(f"{path}: column {column} has {bad[0]!r}; expected text without control characters")
    return table
