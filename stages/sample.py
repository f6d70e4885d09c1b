"""Draw a small data set in MPII's own layout, so that the whole pipeline runs without a download."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.files import new_folder
from stages.common.runtime.lock import lock
from stages.common.sample.annotations import release
from stages.common.sample.drawing import SEED, Drawing, Video
from stages.common.sample.tables import LOOKS

UNLABELLED = 0.25  # fraction of images
MIN_SHARE = 0.0225  # of the labelled images, for the rarest categories: enough videos for each part of the split
MIN_IMAGES = 6  # of a category
MIN_VIDEOS = 3
FRAMES = 4 / 3  # of a video, about: many videos make results steadier than many frames


def plan(images: int, generator: np.random.Generator) -> list[Video]:
    """Divide `images` into videos: a quarter unlabelled, the rest over the categories as in MPII, but none of them rare."""
    labelled = images - round(images * UNLABELLED)
    shares = np.array([look.images for look in LOOKS.values()], dtype=float)
    fewest = max(MIN_IMAGES, round(MIN_SHARE * labelled))
    extra = labelled - fewest * len(LOOKS)
    exact = shares / shares.sum() * labelled
    wanted = np.maximum(exact - fewest, 0)
    ideal = wanted / max(wanted.sum(), 1e-9) * extra
    counts = np.floor(ideal).astype(int)
    counts[np.argsort(counts - ideal, kind="stable")[: extra - counts.sum()]] += 1
    videos: list[Video] = []
    for (name, look), count in zip(LOOKS.items(), counts + fewest, strict=True):
        for number, frames in enumerate(_divided(int(count), max(MIN_VIDEOS, round(count / FRAMES)))):
            videos.append(Video(len(videos), name, number % len(look.activities), frames))
    names = generator.choice(list(LOOKS), size=max(1, int((images - labelled) / FRAMES)), p=shares / shares.sum())
    for name, frames in zip(names, _divided(images - labelled, len(names)), strict=True):
        videos.append(Video(len(videos), str(name), -1, frames))
    generator.shuffle(videos)
    return videos


def _divided(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def draw(images: int, folder: Path) -> None:
    """Write `images` pictures and their annotation file into `folder`: the same bytes for the same number."""
    generator = np.random.default_rng(SEED)
    videos = plan(images, generator)
    names = [f"{number:09d}.jpg" for number in np.sort(generator.choice(10**8, size=images, replace=False))]
    (folder / paths.MPII_IMAGES).mkdir(parents=True)
    entries: list[tuple[str, Video, int]] = []
    for video, frame, image in _frames(videos):
        image.save(folder / paths.MPII_IMAGES / names[len(entries)], quality=88)
        entries.append((names[len(entries)], video, frame))
    annotations = folder / paths.MPII_ANNOTATIONS
    scipy.io.savemat(annotations, {"RELEASE": release(entries, generator)}, do_compression=True, oned_as="row")
    with annotations.open("r+b") as file:  # scipy writes the date into the header's free text
        file.write(b"MATLAB 5.0 MAT-file, drawn sample in MPII's layout".ljust(116))


def _frames(videos: list[Video]) -> Iterator[tuple[Video, int, Image.Image]]:
    for video in videos:
        drawing = Drawing(video)
        for frame in range(video.frames):
            yield video, frame, drawing.frame()


@lock("sample")
def main() -> None:
    images, out = parameters.load().sample.images, Path(paths.SAMPLE)
    with new_folder(out) as folder:
        draw(images, folder)
    print(f"sample: drew {images} images in MPII's layout into {out}")


if __name__ == "__main__":
    errors.run(main)
