"""Downloads that resume where they broke off."""

import shutil
import time
from pathlib import Path

import requests

from stages.common.runtime.errors import UserError
from stages.common.runtime.files import write_error
from stages.common.runtime.progress import progress

# At most this much is lost when a connection breaks.
BLOCK = 1 << 16
TIMEOUT = 60
MAX_FAILURES = 5


def download(url: str, path: Path, stage: str, pause: float = 2.0) -> None:
    """Fetch `url` into `path`, resuming a partial download; a broken connection is retried.

    Args:
        url: http or https.
        path: grows under the name `path` with .part appended, and gets its own name when it is complete.
        stage: for the progress bar.
        pause: seconds before the first retry, doubled before each further one.

    Raises:
        UserError: the server refuses, breaks off `MAX_FAILURES` times in a row without a byte, or the disk is too small.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch(url, part, stage)
        except requests.RequestException as error:
            failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= MAX_FAILURES or not _is_worth_a_retry(error):
                raise UserError(f"{url}: {_reason(error)}; the part received is kept: run again to resume") from error
            time.sleep(pause * 2 ** (failures - 1))
        except ValueError as error:  # urllib3 and the codec of host names have types of their own
            raise UserError(f"{url}: not an address ({error}); expected http:// or https:// and a host") from error
        except OSError as error:
            raise write_error(part, error) from error
        else:
            part.replace(path)
            return


def _fetch(url: str, part: Path, stage: str) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(have):
                return
            part.unlink()
            raise requests.ConnectionError(f"the server's file has {total or 'other'} bytes, {have} were here")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0  # a server without ranges sends everything again
        length = response.headers.get("Content-Length")
        total_bytes = have + int(length) if length else None
        if length:
            require_space(part.parent, int(length), f"to download {url}")
        with (
            part.open("ab" if have else "wb") as file,
            progress(total_bytes, f"{stage} {part.stem}", "B", initial=have, unit_scale=True) as bar,
        ):
            for block in response.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))
    if total_bytes is not None and part.stat().st_size != total_bytes:
        raise requests.ConnectionError(f"broke off at {part.stat().st_size} of {total_bytes} bytes")


def _is_worth_a_retry(error: requests.RequestException) -> bool:
    status = error.response.status_code if error.response is not None else None
    return (status is None or status >= 500) and not isinstance(error, requests.exceptions.InvalidURL)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.InvalidURL):
        return f"not an address ({error})"
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    return f"no answer or a broken connection ({type(error).__name__})"


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise a `UserError` unless the disk of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed {purpose}; free disk space, then run again"
        )
