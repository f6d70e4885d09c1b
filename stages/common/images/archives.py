"""Archives, checked and extracted without trust in what they contain."""

import errno
import gzip
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from stages.common.images import layout
from stages.common.runtime.errors import UserError, short
from stages.common.runtime.paths import MPII_ANNOTATIONS
from stages.common.runtime.progress import progress
from stages.common.runtime.tracked import md5

# Photographs and MATLAB files are compressed already; an archive that grows more than this contains something else.
MAX_GROWTH = 20
# Errors of the disk. Others, such as a file in place of a folder, are caused by the archive's content.
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}


def check_md5(path: Path, expected: str, parameter: str) -> None:
    """Raise a `UserError`, which names the parameter, and delete `path`, unless its md5 is `expected`."""
    found = md5(path)
    if found != expected:
        path.unlink()
        raise UserError(
            f"{path.name}: md5 {found}, expected {expected} ({parameter}); it is deleted: run again to download it anew"
        )


def extract_images(archive: Path, folder: Path, stage: str) -> None:
    """Extract the files of a .tar.gz below `folder`.

    Raises:
        UserError: broken, or with a member that is not a file or folder inside `folder`, or that expands too much.
    """
    limit = _limit(archive)
    size = 0
    with (
        _checked(archive, ".tar.gz"),
        _LimitedGzip(archive, limit) as content,
        tarfile.open(fileobj=content, mode="r|") as tar,
        progress(None, f"{stage} extract", "file") as bar,
    ):
        for member in tar:
            if member.isdir() and not PurePosixPath(member.name).parts:
                continue  # the folder itself, ./
            if not (member.isfile() or member.isdir()) or not layout.is_inside(member.name):
                raise UserError(
                    f"{archive.name}: member {member.name!r} is a link, a device or leaves the folder; refused"
                )
            size += member.size  # of a sparse file more than the archive contains
            _check_growth(archive, size, limit)
            tar.extract(member, folder, filter="data")
            bar.update()


class _LimitedGzip(gzip.GzipFile):
    """A .gz file that can't be read further than `limit` bytes: names and headers can be bombs as well as files."""

    def __init__(self, archive: Path, limit: int) -> None:
        super().__init__(archive, "rb")
        self.archive, self.limit, self.bytes_read = archive, limit, 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.bytes_read += len(content)
        _check_growth(self.archive, self.bytes_read, self.limit)
        return content


def extract_annotations(archive: Path, folder: Path) -> None:
    """Extract MPII's annotation file from a .zip into `folder`, below the folders that it has in the archive.

    Raises:
        UserError: broken, without that file, with an unsafe name, or that expands too much.
    """
    with _checked(archive, ".zip"), zipfile.ZipFile(archive) as source:
        members = [member for member in source.infolist() if not member.is_dir()]
        for member in members:
            if not layout.is_inside(member.filename) or (member.external_attr >> 16) & 0o170000 == 0o120000:
                raise UserError(f"{archive.name}: member {member.filename!r} is a link or leaves the folder; refused")
        _check_growth(archive, sum(member.file_size for member in members), _limit(archive))
        found = [member for member in members if PurePosixPath(member.filename).name == MPII_ANNOTATIONS]
        if len(found) != 1:
            raise UserError(f"{archive.name}: contains {len(found)} files {MPII_ANNOTATIONS}; expected one")
        source.extract(found[0], folder)


@contextmanager
def _checked(archive: Path, kind: str) -> Iterator[None]:
    """Turn what a broken or contradictory archive raises into a `UserError`; not what a full disk raises."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or (isinstance(error, OSError) and error.errno in DISK_ERRORS):
            raise
        raise UserError(
            f"{archive.name}: not a complete {kind} ({short(error)}); delete {archive} and run again"
        ) from error


def _limit(archive: Path) -> int:
    return archive.stat().st_size * MAX_GROWTH + (1 << 20)


def _check_growth(archive: Path, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(f"{archive.name}: expands to more than {MAX_GROWTH} times its size; refused")
