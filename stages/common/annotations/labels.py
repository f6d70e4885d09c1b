"""What all layouts ask of labels and parts."""

import unicodedata
from collections.abc import Iterable
from pathlib import PurePosixPath

from stages.common.runtime.errors import UserError

# The part that a folder's or a cell's text stands for, in small letters.
PARTS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
    "testing": "test",
}


def label(text: str) -> str:
    """A label without surrounding or repeated spaces, in Unicode's composed form: macOS stores names decomposed."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def image_name(text: str) -> str:
    """An image's name as a table has it, in one spelling: a relative path."""
    return str(PurePosixPath(text.strip())) if text.strip() else ""


def check_spelling(where: str, texts: Iterable[str], what: str = "labels") -> None:
    """Raise a `UserError` if two labels or groups differ in nothing but case, spaces or Unicode's form."""
    seen: dict[str, str] = {}
    for text in sorted(texts):
        if (other := seen.setdefault(label(text).casefold(), text)) != text:
            raise UserError(
                f"{where}: the {what} {other!r} and {text!r} differ in spelling only (case, spaces); expected one spelling: "
                "rename one"
            )
