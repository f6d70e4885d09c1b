"""MPII's annotation struct for the synthetic data set, with the oddities of the real one."""

from typing import Any

import numpy as np

from stages.common.sample.drawing import Video
from stages.common.sample.tables import LOOKS


def release(entries: list[tuple[str, Video, int]], generator: np.random.Generator) -> dict[str, Any]:
    """MPII's `RELEASE` struct for (image name, video, frame number) entries, as `scipy.io.savemat` takes it."""
    numbers = {(name, activity): number for number, (name, activity) in enumerate(((n, a) for n, look in LOOKS.items() for a in range(len(look.activities))), start=1)}  # fmt: skip
    empty = np.zeros((0, 0))
    annolist = np.empty(
        (1, len(entries)), dtype=[(field, object) for field in ("image", "annorect", "frame_sec", "vididx")]
    )
    act = np.empty((len(entries), 1), dtype=[(field, object) for field in ("cat_name", "act_name", "act_id")])
    single = np.empty((len(entries), 1), dtype=object)
    for row, (name, video, frame) in enumerate(entries):
        labelled = video.activity >= 0
        people = int(generator.choice([0, 1, 1, 1, 2, 3]))
        annolist[0, row] = (
            {"name": name},
            _people(people, labelled, generator),
            float(frame + 1) if labelled else empty,
            float(video.number + 1) if labelled else empty,
        )
        activity = LOOKS[video.category].activities[video.activity] if labelled else empty
        act[row, 0] = (
            video.category if labelled else empty,
            activity,
            float(numbers.get((video.category, video.activity), -1)),
        )
        single[row, 0] = np.arange(1.0, people + 1)[:, None] if labelled and people else empty
    videos = np.empty((1, max(video.number for _, video, _ in entries) + 1), dtype=object)
    videos[0] = [f"drawn{number:05d}" for number in range(videos.size)]
    return {
        "annolist": annolist,
        "img_train": np.array([[float(video.activity >= 0) for _, video, _ in entries]]),
        "version": "12",
        "single_person": single,
        "act": act,
        "video_list": videos,
    }


def _people(people: int, labelled: bool, generator: np.random.Generator) -> Any:
    """MPII's `annorect`: a struct per person, fewer fields for unlabelled images, an empty array for nobody."""
    fields = ("x1", "y1", "x2", "y2", "scale", "objpos") if labelled else ("scale", "objpos")
    if not people:
        return np.zeros((0, 0))
    rects = np.empty((1, people), dtype=[(field, object) for field in fields])
    for person in range(people):
        x, y = (float(v) for v in generator.integers(40, 200, size=2))
        box = (x - 8, y - 60, x + 8, y - 44) if labelled else ()
        rects[0, person] = (*box, 1.2, {"x": x, "y": y})
    return rects
