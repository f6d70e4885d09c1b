"""A model to a file or folder outside the project: first beside its place, compared with Keras, then renamed."""

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stages.common.export.formats import FORMATS, Format, check, quiet
from stages.common.export.graph import exportable, in_float32, is_float32
from stages.common.export.metadata import describe
from stages.common.export.verify import MAX_DIFFERENCE, Comparison, compare, expected_of, images_to_compare
from stages.common.prediction.classifier import Classifier
from stages.common.runtime.errors import UserError, is_system_fault, short
from stages.common.runtime.files import destination, new_file, new_folder, write_error


def check_place(path: Path, suffix: str) -> None:
    """Refuse a place that is not for an export, before anything is loaded or made.

    Args:
        path: what the user named.
        suffix: that its name must have; empty: it is a folder.

    Raises:
        UserError: another suffix, a folder in place of a file or the reverse, or a folder that has something in it, which
            may be the user's.
    """
    place = Path(os.path.realpath(path))
    try:
        if suffix and (place.is_dir() or place.suffix != suffix):
            raise UserError(f"OUT is {str(path)!r}; expected the name of a file that ends in {suffix}")
        if not suffix and place.is_file():
            raise UserError(f"OUT is {str(path)!r}, a file; expected a new name for a folder")
        if not suffix and place.exists() and (found := sorted(each.name for each in place.iterdir())):
            raise UserError(
                f"OUT is {str(path)!r}, a folder with {found[0]} in it; expected a new name, or an empty folder"
            )
    except OSError as error:
        raise write_error(path, error) from error


def export(classifier: Classifier, name: str, out: Path) -> str:
    """Write a model in the format `name` to `out`, run it, and compare it with Keras.

    Args:
        classifier: the model.
        name: one of `FORMATS`.
        out: as the user named it; links are followed.

    Returns:
        What was written and how it differs, as one line.

    Raises:
        UserError: it can't be exported, or differs by more than `MAX_DIFFERENCE`; nothing is left, and what was there stays.
    """
    form = FORMATS[name]
    check(name)
    out = destination(out)
    images, what = images_to_compare(classifier.model.input_shape[1])
    own = expected_of(classifier.model, images)
    expected = own if is_float32(classifier.model) else expected_of(in_float32(classifier.model), images)
    metadata = describe(classifier)
    with _temporary(out, form) as temporary:
        with _one_line(f"{classifier.file} as {name}", out), quiet():
            form.write(exportable(classifier.model), temporary, metadata)
            found = compare(form.start(temporary), images, expected)
        if not found.difference <= MAX_DIFFERENCE:  # NaN is no difference that is small enough
            raise UserError(
                f"{classifier.file} as {name}: {_told(found, what)}; expected at most {MAX_DIFFERENCE:g}, so nothing was written"
            )
        size = _size(temporary)
    line = f"export: {out.name} ({size / 1e6:.1f} MB): {_told(found, what)}; licence: {metadata['licence']}"
    if own is not expected:
        coarse = np.abs(own - expected).max()
        line += f"\nexport: the file computes in float32, and so did Keras here; the model in bfloat16 differs by {coarse:.1e}"
    return line


def _told(found: Comparison, what: str) -> str:
    return f"{what}, largest difference of probability {found.difference:.1e}, same label for {100 * found.agreement:.4g} %"


@contextmanager
def _temporary(out: Path, form: Format) -> Iterator[Path]:
    """A path to write to, whose name has the suffix of the format; published as `out` when the block succeeds."""
    if not form.suffix:
        with new_folder(out) as folder:
            yield folder
        return
    with new_file(out) as temporary:
        named = temporary.with_suffix(form.suffix)
        try:
            yield named
            named.replace(temporary)
        finally:
            named.unlink(missing_ok=True)


# What converters' own errors say of a full disk, or of a quota.
FULL = re.compile("No space left on device|File too large|Disk quota exceeded", re.IGNORECASE)


@contextmanager
def _one_line(what: str, out: Path) -> Iterator[None]:
    """What converters and engines raise for a model that they can't take, as a `UserError`."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:
        if is_system_fault(error):
            raise
        if full := FULL.search(str(error)):
            raise UserError(
                f"could not write {out}, or a temporary file in {tempfile.gettempdir()}: {full[0]}; free disk space or set "
                "TMPDIR, then run again"
            ) from error
        raise UserError(f"{what}: can't be exported ({short(error, 300)}); DEBUG=1 shows more") from error


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())
