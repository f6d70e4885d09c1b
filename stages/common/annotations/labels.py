"""What all layouts ask of labels and parts."""

import unicodedata
from collections.abc import Iterable

from stages.common.runtime.errors import UserError

# The part that a folder's or a cell's text stands for, in small letters.
PARTS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "test": "test",
}


def label(text: str) -> str:
    """A label without surrounding or repeated spaces, in Unicode's composed form: macOS stores names decomposed."""
    return unicodedata.normalize("NFC", " ".join(text.split()))


def check_spelling(where: str, texts: Iterable[str]) -> None:
    """Raise a `UserError` if two labels differ in nothing but case, spaces or Unicode's form."""
    seen: dict[str, str] = {}
    for text in sorted(texts):
        if (other := seen.setdefault(label(text).casefold(), text)) != text:
            raise UserError(
                f"{where}: the labels {other!r} and {text!r} differ in spelling only (case, spaces); expected one spelling: "
                "rename one"
            )
