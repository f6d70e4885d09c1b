"""Sentences and tables as text for a terminal, or as GitHub's Markdown."""

from tabulate import tabulate

from stages.common.comparison.differences import Comparison, Table
from stages.common.runtime.errors import printable

# Columns of words; all others are numbers.
LEFT = ("", "label", "image", "A predicts", "B predicts")


def to_text(comparison: Comparison, *, markdown: bool = False) -> str:
    """The comparison for a terminal, or as GitHub's Markdown."""
    return "\n\n".join(_part(part, markdown) for part in comparison.parts)


def _part(part: str | Table, markdown: bool) -> str:
    shown = _escaped if markdown else printable
    if isinstance(part, str):
        return shown(part)
    table: str = tabulate(
        [[shown(cell) for cell in row] for row in part.rows],
        part.head,
        tablefmt="github" if markdown else "simple",
        disable_numparse=True,  # as they were formatted: 0.500, not 0.5
        colalign=["left" if name in LEFT else "right" for name in part.head],
    )
    if not part.title:
        return table
    if markdown:
        return f"<details><summary>{part.title}</summary>\n\n{table}\n\n</details>"
    return f"{part.title}\n{table}"


def _escaped(words: str) -> str:
    """Names of labels and images are data: they must not become tables, links, HTML, or mentions of people and issues."""
    words = printable(words).replace("&", "&amp;")
    for sign in "\\`*_{}[]<>#|~":
        words = words.replace(sign, f"\\{sign}")
    for sign in ("@", "#", "://", "GH-", "www."):
        words = words.replace(sign, f"{sign}\u200b")
    return words
