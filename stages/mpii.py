"""Download MPII: two archives, resumed where a break left them, checked, and extracted to MPII's layout."""

import errno
import gzip
import hashlib
import shutil
import tarfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import requests

from stages.common import layout, parameters, problem
from stages.common.files import lock, new_folder, refused
from stages.common.problem import Problem
from stages.common.progress import progress
from stages.common.resuming import resumable

OUT = Path(parameters.MPII)
# At most this much is lost when a connection breaks.
BLOCK = 1 << 16
TIMEOUT = 60
TRIES = 5
# Photographs and MATLAB files are compressed already; an archive that grows more than this is no such thing.
MOST_GROWTH = 20
# Errors of the disk. Others, such as a file in place of a folder, come from what an archive holds.
OF_THE_SYSTEM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def download(url: str, path: Path, pause: float = 2.0) -> None:
    """Fetch `url` into `path`, going on after what is there already; a broken connection is tried again.

    Args:
        url: http or https.
        path: grows under the name `path` with .part appended, and gets its own name when it is whole.
        pause: seconds before the first new try, twice as many before each further one.

    Raises:
        Problem: the server refuses, breaks off `TRIES` times in a row without a byte, or the disk is too small.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        return
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch(url, part)
        except UnicodeError as error:
            raise Problem(f"{url}: not an address ({error}); expected http:// or https:// and a host") from error
        except requests.RequestException as error:
            failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
            if failures >= TRIES or not _worth_another_try(error):
                raise Problem(f"{url}: {_reason(error)}; what has arrived is kept: run again to go on") from error
            time.sleep(pause * 2 ** (failures - 1))
        except OSError as error:
            raise refused(part, error) from error
        else:
            part.replace(path)
            return


def _fetch(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total == str(have):
                return
            part.unlink()
            raise requests.ConnectionError(f"the file there has {total or 'another number of'} bytes, {have} were here")
        response.raise_for_status()
        if response.status_code != requests.codes.partial_content:
            have = 0  # a server without ranges sends all of it again
        length = response.headers.get("Content-Length")
        total_bytes = have + int(length) if length else None
        if length:
            require_space(part.parent, int(length), f"to download {url}")
        with (
            part.open("ab" if have else "wb") as file,
            progress(total_bytes, f"mpii {part.stem}", "B", initial=have, unit_scale=True) as bar,
        ):
            for block in response.iter_content(BLOCK):
                file.write(block)
                bar.update(len(block))
    if total_bytes is not None and part.stat().st_size != total_bytes:
        raise requests.ConnectionError(f"broke off at {part.stat().st_size} of {total_bytes} bytes")


def _worth_another_try(error: requests.RequestException) -> bool:
    status = error.response.status_code if error.response is not None else None
    return (status is None or status >= 500) and not isinstance(error, requests.exceptions.InvalidURL)


def _reason(error: requests.RequestException) -> str:
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    return f"no answer or a broken connection ({type(error).__name__})"


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise a `Problem` unless the disk of `folder` has `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise Problem(
            f"{folder}: {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB needed {purpose}; free some space, then run again"
        )


def check_md5(path: Path, expected: str) -> None:
    """Raise a `Problem`, and delete `path`, unless its md5 is `expected`."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        path.unlink()
        raise Problem(
            f"{path.name}: md5 {found}, expected {expected} (mpii.images_md5); it is deleted: run again to download it anew"
        )


def extract_images(archive: Path, folder: Path) -> None:
    """Extract the files of a .tar.gz below `folder`.

    Raises:
        Problem: broken, or with a member that is no file or folder inside `folder`, or of far more bytes than the archive.
    """
    limit = archive.stat().st_size * MOST_GROWTH + (1 << 20)
    size = 0
    with (
        _whole(archive, ".tar.gz"),
        _LimitedGzip(archive, limit) as content,
        tarfile.open(fileobj=content, mode="r|") as tar,
        progress(None, "mpii extract", "file") as bar,
    ):
        for member in tar:
            if member.isdir() and not PurePosixPath(member.name).parts:
                continue  # the folder itself, ./
            if not (member.isfile() or member.isdir()) or not layout.inside(member.name):
                raise Problem(
                    f"{archive.name}: member {member.name!r} is a link, a device or leaves the folder; refused"
                )
            size += member.size  # of a sparse file more than the archive holds
            _check_growth(archive, size, limit)
            tar.extract(member, folder, filter="data")
            bar.update()


class _LimitedGzip(gzip.GzipFile):
    """A .gz file that refuses to be read further than `limit` bytes: names and headers can be bombs as well as files."""

    def __init__(self, archive: Path, limit: int) -> None:
        super().__init__(archive, "rb")
        self.archive, self.limit, self.taken = archive, limit, 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.taken += len(content)
        _check_growth(self.archive, self.taken, self.limit)
        return content


def extract_annotations(archive: Path, folder: Path) -> None:
    """Extract MPII's annotation file from a .zip into `folder`, below the folders that it has in the archive.

    Raises:
        Problem: broken, without that file, with an unsafe name, or of far more bytes than the archive.
    """
    limit = archive.stat().st_size * MOST_GROWTH + (1 << 20)
    with _whole(archive, ".zip"), zipfile.ZipFile(archive) as source:
        members = [member for member in source.infolist() if not member.is_dir()]
        for member in members:
            if not layout.inside(member.filename) or (member.external_attr >> 16) & 0o170000 == 0o120000:
                raise Problem(f"{archive.name}: member {member.filename!r} is a link or leaves the folder; refused")
        _check_growth(archive, sum(member.file_size for member in members), limit)
        found = [member for member in members if PurePosixPath(member.filename).name == layout.ANNOTATIONS]
        if len(found) != 1:
            raise Problem(f"{archive.name}: holds {len(found)} files {layout.ANNOTATIONS}; expected one")
        source.extract(found[0], folder)


@contextmanager
def _whole(archive: Path, kind: str) -> Iterator[None]:
    """Turn what broken and contradictory archives raise into a `Problem`; not what a full disk raises."""
    try:
        yield
    except Exception as error:
        if isinstance(error, Problem) or (isinstance(error, OSError) and error.errno in OF_THE_SYSTEM):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Problem(f"{archive.name}: not a whole {kind} ({reason}); delete {archive} and run again") from error


def _check_growth(archive: Path, size: int, limit: int) -> None:
    if size > limit:
        raise Problem(f"{archive.name}: expands to more than {MOST_GROWTH} times its size; refused")


def fetch(section: parameters.Mpii, out: Path) -> None:
    """Download, check and extract both archives: `out` then holds images/ and the annotation file."""
    # Of the addresses alone: neither a corrected checksum nor a new line of code should download 12.9 GB again.
    with resumable(out, section.images_url, section.annotations_url) as downloads:
        images, annotations = downloads / "images.tar.gz", downloads / "annotations.zip"
        download(section.annotations_url, annotations)
        download(section.images_url, images)
        check_md5(images, section.images_md5)
        with new_folder(out) as folder:
            require_space(folder, images.stat().st_size, f"to extract {images.name}")
            extract_annotations(annotations, folder)
            extract_images(images, folder)
            layout.annotation_file(folder), layout.images_folder(folder)


@lock("mpii")
def main() -> None:
    fetch(parameters.load().mpii, OUT)
    print(f"mpii: {sum(1 for _ in _files(OUT))} files in {OUT}")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    problem.run(main)
