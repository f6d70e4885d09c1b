"""The drawn sample: MPII's layout, always the same."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages import sample
from stages.common.annotations import matlab
from stages.common.images import layout
from stages.common.sample.tables import LOOKS


def test_layout_categories_and_numbers(drawn: Path) -> None:
    table = matlab.read(layout.annotation_file(drawn))
    assert len(table) == 160
    assert sorted(table["image"]) == sorted(path.name for path in layout.images_folder(drawn).iterdir())
    labelled = table[table["labelled"]]
    assert set(labelled["category"]) == set(LOOKS)
    assert (labelled.groupby("category").size() >= 6).all()
    assert (labelled.groupby("category")["video"].nunique() >= 3).all()
    assert len(table) - len(labelled) == 40
    assert table.loc[~table["labelled"], "video"].eq("").all()


def test_pictures_have_several_sizes_and_are_pictures(drawn: Path) -> None:
    sizes: Counter[tuple[int, int]] = Counter()
    for path in (drawn / "images").iterdir():
        with Image.open(path) as image:
            sizes[image.size] += 1
            assert np.asarray(image).std() > 10
    assert len(sizes) >= 3


def test_the_same_bytes_each_time(drawn: Path, tmp_path: Path) -> None:
    sample.draw(160, tmp_path)
    for path in sorted(drawn.rglob("*")):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / path.relative_to(drawn)).read_bytes(), path


@pytest.mark.parametrize("images", [160, 400, 1200, 5000])
def test_the_plan_has_all_images_and_keeps_mpiis_imbalance(images: int) -> None:
    videos = sample.plan(images, np.random.default_rng(0))
    assert sum(video.frames for video in videos) == images
    assert sorted(video.number for video in videos) == list(range(len(videos)))
    counts: Counter[str] = Counter()
    for video in videos:
        assert video.frames >= 1
        counts[video.category] += video.frames if video.activity >= 0 else 0
    assert min(counts.values()) >= 6
    if images > 1000:
        assert counts.most_common(1)[0][0] == "sports"
        assert counts["sports"] > 5 * counts["volunteer activities"]  # MPII: 78, too few for a test part
