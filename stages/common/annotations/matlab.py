"""MPII's annotation file, a MATLAB struct."""

import gc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
import scipy.io

from stages.common.images import layout
from stages.common.runtime import paths, workers
from stages.common.runtime.errors import UserError
from stages.common.runtime.memory import memory_limit, user_limit

# Reading MPII's file takes 0.4 GB; a small hostile file can take everything.
MAX_MEMORY = 4 << 30


def read(path: Path) -> pd.DataFrame:
    """Read an annotation file.

    Returns:
        One row per image in the file's order: image, category, activity, video (str, empty where there is none), people
        (int), labelled (bool: a category or an activity is given, `act_id` is not -1), part (empty).

    Raises:
        UserError: not a complete MATLAB 5 file, or without MPII's RELEASE struct.
    """
    limit = user_limit()
    limited = f", or raise this shell's memory limit of {limit >> 20} MiB (ulimit -v)" if limit else ""
    # In a process of its own: scipy does not raise but crashes on some damaged files.
    with (
        workers.dead_worker(f"{path}: so broken that the reader crashes; download it again{limited}"),
        ProcessPoolExecutor(1, initializer=workers.prepare) as pool,
    ):
        try:
            with workers.starting():
                table = pool.submit(_read, path)
            return table.result()
        except MemoryError as error:
            allowed = min(MAX_MEMORY, limit or MAX_MEMORY) >> 20
            raise UserError(
                f"{path}: reading it needs more than {allowed} MiB of memory; download it again{limited}"
            ) from error


def _read(path: Path) -> pd.DataFrame:
    with memory_limit(MAX_MEMORY):
        release = _load(path)
    annolist, acts = (np.atleast_1d(_field(release, field, path)) for field in ("annolist", "act"))
    if len(annolist) != len(acts):
        raise UserError(
            f"{path}: RELEASE has {len(annolist)} images in annolist and {len(acts)} in act; expected the same number"
        )
    rows = [_row(image, act, path) for image, act in zip(annolist, acts, strict=True)]
    return pd.DataFrame(rows, columns=list(layout.COLUMNS)).astype({"people": int, "labelled": bool})


def _load(path: Path) -> Any:
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file; expected MPII's annotation file")
    try:
        with path.open("rb") as file:
            header = file.read(128)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; expected MPII's annotation file") from error
    # The version, in the byte order that the last two bytes give; the header's text is free.
    if header[124:128] in (b"\x00\x02IM", b"\x02\x00MI"):
        raise UserError(f"{path}: a MATLAB 7.3 file; expected MATLAB 5, as MPII's is: save it again in MATLAB with -v7")
    if header[124:128] not in (b"\x00\x01IM", b"\x01\x00MI"):
        raise UserError(f"{path}: not a MATLAB 5 file; expected MPII's {paths.MPII_ANNOTATIONS}: download it again")
    # Millions of small objects, none of them garbage: collection takes a fifth of the time.
    gc.disable()
    try:
        return scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True, variable_names=["RELEASE"])
    except MemoryError:
        raise
    except Exception as error:  # scipy raises a dozen types for a broken file
        raise UserError(f"{path}: broken or truncated ({type(error).__name__}: {error}); download it again") from error
    finally:
        gc.enable()


def _field(content: dict[str, Any], field: str, path: Path) -> Any:
    release = content.get("RELEASE")
    if not hasattr(release, field):
        names = ", ".join(name for name in content if not name.startswith("__")) or "nothing"
        got = f"a RELEASE without {field}" if "RELEASE" in content else names
        raise UserError(f"{path}: expected MPII's struct RELEASE with annolist and act, found {got}")
    return getattr(release, field)


def _row(image: Any, act: Any, path: Path) -> tuple[str, str, str, str, int, bool, str]:
    name = getattr(getattr(image, "image", None), "name", "")
    name = str(PurePosixPath(name)) if isinstance(name, str) and name else ""
    if not layout.is_inside(name):
        raise UserError(
            f"{path}: image name {name!r} is empty, leaves the images' folder or has control characters; expected a name "
            "like 000000001.jpg"
        )
    category, activity = (_text(getattr(act, field, ""), field, name, path) for field in ("cat_name", "act_name"))
    labelled = bool(category or activity) and _number(getattr(act, "act_id", None), "act_id", name, path) != -1
    # squeeze_me makes a lone struct of a 1x1 array, and an empty array of an empty one.
    people = np.atleast_1d(getattr(image, "annorect", np.empty(0))).size
    video = _number(getattr(image, "vididx", None), "vididx", name, path)
    return name, category, activity, "" if video is None else str(video), people, labelled, ""


def _text(value: Any, field: str, name: str, path: Path) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if layout.has_control_characters(text):
        raise UserError(f"{path}: {field} of image {name} is {text!r}; expected text without control characters")
    return text


def _number(value: Any, field: str, name: str, path: Path) -> int | None:
    """A whole number; None for an empty array, NaN or an absent field. Anything else is an error: a lost video would leak."""
    value = np.asarray(np.nan if value is None else value)
    if value.size == 0 or (value.ndim == 0 and value.dtype.kind == "f" and np.isnan(value)):
        return None
    if value.ndim or value.dtype.kind not in "iuf" or not abs(float(value)) < 2**53 or float(value) != int(value):
        raise UserError(f"{path}: {field} of image {name} is {value.tolist()!r}; expected a whole number or nothing")
    return int(value)
