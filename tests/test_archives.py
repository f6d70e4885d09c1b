"""Archives: complete ones are extracted, hostile and broken ones are refused and write nothing outside their folder."""

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from stages.common.images.archives import check_md5, extract_annotations, extract_images
from stages.common.runtime import paths
from stages.common.runtime.errors import UserError


def tar(*members: tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"\0" * member.size))
    return content.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def zipped(*names: str, content: str = "x", mode: int = 0o100644) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            archive.writestr(info, content)
    return file.getvalue()


def saved(folder: Path, name: str, content: bytes) -> tuple[Path, Path]:
    """An archive, and the folder to extract it to."""
    archive, out = folder / "deep/er" / name, folder / "deep/er/out"
    out.mkdir(parents=True)
    archive.write_bytes(content)
    return archive, out


def outside(folder: Path, out: Path) -> set[str]:
    """What is not in the folder to extract to."""
    return {path.name for path in folder.rglob("*") if not path.is_relative_to(out)}


def test_files_and_folders_are_extracted_without_their_permissions(tmp_path: Path) -> None:
    setuid = member("images/a.jpg", size=3)
    setuid.mode = 0o4777
    members = member("./", tarfile.DIRTYPE), member("images", tarfile.DIRTYPE), setuid, member("images/below/b.jpg")
    archive, out = saved(tmp_path, "images.tar.gz", tar(*members))
    extract_images(archive, out, "test")
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        "images/a.jpg",
        "images/below/b.jpg",
    }
    assert (out / "images/a.jpg").read_bytes() == b"\0\0\0"
    assert not (out / "images/a.jpg").stat().st_mode & 0o7022


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tar(member("../outside.jpg")), "leaves the folder"),
        (tar(member("/tmp/outside.jpg")), "leaves the folder"),  # noqa: S108
        (tar(member("images/link.jpg", tarfile.SYMTYPE, "/etc/passwd")), "is a link"),
        (tar(member("images/hard.jpg", tarfile.LNKTYPE, "../../outside")), "is a link"),
        (tar(member("images/device", tarfile.CHRTYPE)), "a device"),
        (tar(member("images/pipe", tarfile.FIFOTYPE)), "a device"),
        (tar(member("images/\n.jpg")), "leaves the folder"),
        (tar(member("images/bomb.jpg", size=5_000_000)), "expands to more than 20 times its size"),
        (tar(member("./" + "x" * 5_000_000)), "expands to more than"),
        (tar(*(member(f"images/{number}.jpg") for number in range(20_000))), "expands to more than"),
        (b"\x1f\x8b broken", "not a complete .tar.gz"),
        (tar(member("images/a.jpg", size=9))[:-20], "not a complete .tar.gz"),
        (tar(member("images/a"), member("images/a/b")), "not a complete .tar.gz .*Not a directory"),
        (tar(member("images/" + "x" * 300)), "not a complete .tar.gz .*name too long"),
    ],
    # The bytes contain the time of their making; tests need the same names in all processes.
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_an_unsafe_or_broken_tar_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    archive, out = saved(tmp_path, "images.tar.gz", content)
    with pytest.raises(UserError, match=f"images.tar.gz: .*{message}"):
        extract_images(archive, out, "test")
    assert outside(tmp_path, out) == {"deep", "er", "images.tar.gz"}
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in out.rglob("*") if not path.is_dir())


def test_the_annotation_file_is_extracted_with_its_folders_and_nothing_else(tmp_path: Path) -> None:
    names = [f"mpii/{paths.MPII_ANNOTATIONS}", "mpii/README.md"]
    archive, out = saved(tmp_path, "annotations.zip", zipped(*names, content="text"))
    extract_annotations(archive, out)
    (found,) = (path for path in out.rglob("*") if path.is_file())
    assert found == out / names[0]
    assert found.read_text() == "text"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped("../a.mat"), "leaves the folder"),
        (zipped("../" + paths.MPII_ANNOTATIONS), "leaves the folder"),
        (zipped("/tmp/" + paths.MPII_ANNOTATIONS), "leaves the folder"),  # noqa: S108
        (zipped(paths.MPII_ANNOTATIONS, content="/etc/passwd", mode=0o120777), "is a link"),
        (zipped("readme"), "contains 0 files"),
        (zipped("a/" + paths.MPII_ANNOTATIONS, "b/" + paths.MPII_ANNOTATIONS), "contains 2 files"),
        (zipped(paths.MPII_ANNOTATIONS, content="x" * 5_000_000), "expands to more than 20 times its size"),
        (b"PK broken", "not a complete .zip"),
        (zipped(paths.MPII_ANNOTATIONS)[:-20], "not a complete .zip"),
    ],
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_an_unsafe_or_broken_zip_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    archive, out = saved(tmp_path, "annotations.zip", content)
    with pytest.raises(UserError, match=f"annotations.zip: .*{message}"):
        extract_annotations(archive, out)
    assert outside(tmp_path, out) == {"deep", "er", "annotations.zip"}
    assert not list(out.rglob("*"))


def test_a_wrong_md5_names_the_parameter_and_deletes_the_file(tmp_path: Path) -> None:
    path = tmp_path / "images.tar.gz"
    path.write_bytes(b"content")
    found = hashlib.md5(b"content", usedforsecurity=False).hexdigest()
    check_md5(path, found, "mpii.images_md5")
    assert path.read_bytes() == b"content"
    with pytest.raises(UserError, match=rf"images.tar.gz: md5 {found}, expected 0+ \(mpii.images_md5\)"):
        check_md5(path, "0" * 32, "mpii.images_md5")
    assert not path.exists()
