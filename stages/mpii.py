"""Download MPII: two archives, resumed after a break, checked, and extracted to MPII's layout."""

from pathlib import Path

from stages.common.images import layout
from stages.common.images.archives import check_md5, extract_annotations, extract_images
from stages.common.images.download import download, require_space
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import new_folder
from stages.common.runtime.lock import lock
from stages.common.runtime.resuming import resumable


def fetch(section: parameters.Mpii, out: Path) -> None:
    """Download, check and extract both archives: `out` then contains images/ and the annotation file.

    Raises:
        UserError: the server, the disk or an archive is not as expected.
    """
    # Depends on the addresses alone: a corrected checksum or a new line of code must not download 12.9 GB again.
    with resumable(out, section.images_url, section.annotations_url) as downloads:
        images, annotations = downloads / "images.tar.gz", downloads / "annotations.zip"
        download(section.annotations_url, annotations, "mpii")
        download(section.images_url, images, "mpii")
        check_md5(images, section.images_md5, "mpii.images_md5")
        with new_folder(out) as folder:
            require_space(folder, images.stat().st_size, f"to extract {images.name}")
            extract_annotations(annotations, folder)
            extract_images(images, folder, "mpii")
            layout.annotation_file(folder), layout.images_folder(folder)


@lock("mpii")
def main() -> None:
    values, out = parameters.load(), Path(paths.MPII)
    if not values.uses_mpii:  # `dvc repro -R .` would download 12.9 GB that nobody asked for
        raise UserError(f"MPII is not needed, as data is another data set; to download it, set data to {paths.MPII}")
    fetch(values.mpii, out)
    print(f"mpii: {sum(path.is_file() for path in out.rglob('*'))} files in {out}")


if __name__ == "__main__":
    errors.run(main)
