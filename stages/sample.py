"""Draw a small data set in MPII's own layout, so that the whole pipeline runs without a download.

The pictures are made up; names, imbalance, file layout and oddities are MPII's. A category shows in the scene, the pose
and the thing at hand, none of which is certain: videos differ in light, colour and framing, some play in another
category's scene, and in some the thing is out of the picture.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.io
from PIL import Image, ImageDraw

from stages.common import parameters, problem
from stages.common.files import lock, new_folder

OUT = Path(parameters.SAMPLE)
SEED = 20140624
SIZES = ((320, 240), (384, 288), (426, 240), (240, 320), (288, 288))
UNLABELLED = 0.25
LEAST_IMAGES = 6
LEAST_VIDEOS = 3
FRAMES = 4
ELSEWHERE = 0.1
OUT_OF_PICTURE = 0.15


class Look(NamedTuple):
    """What the pictures of one category have in common."""

    images: int
    activities: tuple[str, ...]
    scenes: tuple[str, ...]
    pose: tuple[int, ...]
    thing: str


# name: images in MPII, activities, scenes, pose (lean, upper arms, forearms, thighs, shins; degrees from hanging down), thing
LOOKS = {
    "sports": Look(3593, ("basketball, game", "soccer", "tennis, hitting balls"), ("field", "hall"), (5, 120, -40, 160, -60, 35, -30, 10, -60), "ball"),
    "occupation": Look(2370, ("carpentry, general", "police, directing traffic"), ("street", "hall"), (15, 50, 30, 90, 70, 5, -5, 0, 0), "box"),
    "conditioning exercise": Look(1688, ("rope skipping", "push-ups, vigorous"), ("hall", "room"), (0, 90, -90, 175, -175, 60, -60, -10, 10), "barbell"),
    "home activities": Look(1382, ("cooking, standing", "ironing"), ("room",), (10, 40, 20, 80, 60, 2, -2, 0, 0), "table"),
    "lawn and garden": Look(1096, ("mowing lawn, walk", "raking lawn"), ("garden", "field"), (35, 60, 30, 50, 20, 25, -15, 0, -30), "rake"),
    "home repair": Look(1068, ("painting, outside home", "roofing"), ("room", "street"), (0, 170, 20, 175, 10, 10, -10, 0, 0), "ladder"),
    "water activities": Look(1018, ("canoeing, rowing", "swimming, laps"), ("water",), (50, 110, 70, 110, 70, 85, 80, 10, 10), "boat"),
    "miscellaneous": Look(753, ("standing, talking", "sitting, playing cards"), ("room", "street", "field"), (0, 15, -15, 30, -30, 5, -5, 0, 0), "none"),
    "winter activities": Look(742, ("skiing, downhill", "snow shoveling"), ("snow",), (30, 60, -20, 20, -50, 40, 30, -35, -40), "skis"),
    "fishing and hunting": Look(712, ("fishing from river bank", "hunting, birds"), ("water", "forest"), (0, 70, 60, 90, 85, 5, -5, 0, 0), "rod"),
    "dancing": Look(697, ("ballet, modern", "general dancing"), ("stage", "hall"), (-10, 150, -150, 170, -170, 10, -80, 0, -90), "none"),
    "walking": Look(583, ("walking, general", "hiking"), ("street", "forest"), (5, 25, -25, 35, -15, 25, -25, 10, -35), "none"),
    "music playing": Look(540, ("guitar, standing", "drums, sitting"), ("stage", "room"), (0, 40, -30, 100, 60, 8, -8, 0, 0), "guitar"),
    "bicycling": Look(518, ("bicycling, mountain", "unicycling"), ("street", "forest"), (45, 70, 65, 60, 55, 70, 20, -10, -50), "bicycle"),
    "running": Look(293, ("jogging", "running"), ("street", "field"), (15, 50, -60, 130, 10, 60, -40, -20, -100), "none"),
    "inactivity quiet/light": Look(187, ("lying quietly", "sitting quietly"), ("room",), (85, 80, 85, 85, 90, 88, 84, 85, 88), "bed"),
    "religious activities": Look(120, ("kneeling in church",), ("stage",), (5, 60, 60, 140, 140, 10, 10, -85, -85), "cross"),
    "self care": Look(89, ("grooming, washing hands", "hairstyling"), ("room",), (5, 60, 130, 60, 170, 3, -3, 0, 0), "mirror"),
    "transportation": Look(88, ("driving automobile", "riding in a bus"), ("street",), (-10, 60, 55, 80, 80, 85, 80, 10, 5), "bus"),
    "volunteer activities": Look(46, ("packing boxes", "walking with a child"), ("hall", "street"), (20, 45, 35, 70, 60, 12, -8, 0, -5), "box"),
}  # fmt: skip

# name: upper colour, lower colour, height of the horizon
SCENES = {
    "field": ((150, 195, 235), (80, 150, 60), 0.45),
    "hall": ((205, 190, 160), (165, 115, 65), 0.6),
    "street": ((185, 190, 200), (105, 105, 110), 0.55),
    "room": ((220, 205, 190), (135, 100, 85), 0.7),
    "garden": ((120, 165, 120), (95, 140, 55), 0.35),
    "water": ((165, 205, 230), (45, 105, 150), 0.5),
    "snow": ((175, 200, 230), (235, 238, 245), 0.4),
    "forest": ((70, 105, 65), (105, 85, 55), 0.6),
    "stage": ((60, 40, 70), (115, 65, 55), 0.7),
}


class Video(NamedTuple):
    """A run of frames: one place, one person, one camera. `activity` is the index among its category's, -1 if unlabelled."""

    number: int
    category: str
    activity: int
    frames: int


def plan(images: int, generator: np.random.Generator) -> list[Video]:
    """Share `images` out to videos: a quarter unlabelled, the rest over the categories as in MPII, each in 3 videos or more."""
    labelled = images - round(images * UNLABELLED)
    shares = np.array([look.images for look in LOOKS.values()], dtype=float)
    extra = labelled - LEAST_IMAGES * len(LOOKS)
    exact = shares / shares.sum() * labelled
    wanted = np.maximum(exact - LEAST_IMAGES, 0)
    ideal = wanted / max(wanted.sum(), 1e-9) * extra
    counts = np.floor(ideal).astype(int)
    counts[np.argsort(counts - ideal, kind="stable")[: extra - counts.sum()]] += 1
    videos: list[Video] = []
    for (name, look), count in zip(LOOKS.items(), counts + LEAST_IMAGES, strict=True):
        for number, frames in enumerate(_shared(int(count), max(LEAST_VIDEOS, round(count / FRAMES)))):
            videos.append(Video(len(videos), name, number % len(look.activities), frames))
    names = generator.choice(list(LOOKS), size=max(1, (images - labelled) // FRAMES), p=shares / shares.sum())
    for name, frames in zip(names, _shared(images - labelled, len(names)), strict=True):
        videos.append(Video(len(videos), str(name), -1, frames))
    generator.shuffle(videos)
    return videos


def _shared(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


class Drawing:
    """One video's look, from which its frames are drawn; everything random follows from the video's index."""

    def __init__(self, video: Video) -> None:
        self.random = np.random.default_rng((SEED, video.number))
        self.look = LOOKS[video.category]
        self.size = SIZES[self.random.integers(len(SIZES))]
        places = list(SCENES) if self.random.random() < ELSEWHERE else list(self.look.scenes)
        self.scene = places[self.random.integers(len(places))]
        self.thing = "none" if self.random.random() < OUT_OF_PICTURE else self.look.thing
        self.light = self.random.uniform(0.8, 1.15)
        self.tint = self.random.normal(0, 8, size=3)
        self.skin = np.array([214, 170, 140]) * self.random.uniform(0.45, 1.1)
        self.shirt, self.trousers = self.random.uniform(20, 240, size=(2, 3))
        self.paint = np.array(PAINTS[self.thing]) + self.random.normal(0, 15, size=3)
        self.height = self.random.uniform(0.55, 0.8)
        self.place = self.random.uniform(0.3, 0.7)
        self.mirrored = self.random.random() < 0.5
        # The activity moves the arms: a finer label that shows less than the category does.
        self.pose = np.array(self.look.pose) + self.random.normal(0, 9, size=9)
        self.pose[1:5] += (video.activity if video.activity >= 0 else self.random.integers(3)) * 25
        self.clutter = [
            (self.random.random(4), self.random.uniform(0, 255, size=3)) for _ in range(self.random.integers(2, 7))
        ]

    def frame(self) -> Image.Image:
        """The next frame: the same video, a moment later. RGB, one of `SIZES`."""
        width, height = self.size
        image = Image.new("RGB", self.size)
        canvas = ImageDraw.Draw(image)
        upper, lower, horizon = SCENES[self.scene]
        edge = int(height * (horizon + self.random.normal(0, 0.015)))
        canvas.rectangle((0, 0, width, edge), fill=self._lit(upper))
        canvas.rectangle((0, edge, width, height), fill=self._lit(lower))
        for box, colour in self.clutter:
            x, y, w, h = box[0] * width, box[1] * height, box[2] * width * 0.25, box[3] * height * 0.25
            canvas.rectangle((x, y, x + w, y + h), fill=self._lit(0.5 * colour + 0.5 * np.array(upper)))
        unit = self.height * height / 8
        hip = np.array(
            [width * (self.place + self.random.normal(0, 0.02)), height * 0.62 + unit * self.random.normal(0, 0.1)]
        )
        self._thing(canvas, hip, unit)
        self._person(canvas, hip, unit)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        grain = self.random.normal(0, 9, size=(height, width, 1))
        return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))

    def _lit(self, colour: Any) -> tuple[int, int, int]:
        red, green, blue = (int(v) for v in np.clip(np.asarray(colour) * self.light + self.tint, 0, 255))
        return red, green, blue

    def _person(self, canvas: ImageDraw.ImageDraw, hip: np.ndarray, unit: float) -> None:
        lean, *limbs = self.pose + self.random.normal(0, 5, size=9)
        shoulder = _end(hip, lean + 180, 2.6 * unit)
        thick = max(2, int(unit * 0.7))
        skin, shirt, trousers = self._lit(self.skin), self._lit(self.shirt), self._lit(self.trousers)
        for upper_angle, lower_angle, start, long, colour in (
            (limbs[4], limbs[6], hip, 1.9, trousers),
            (limbs[5], limbs[7], hip, 1.9, trousers),
            (limbs[0], limbs[2], shoulder, 1.3, skin),
            (limbs[1], limbs[3], shoulder, 1.3, skin),
        ):
            joint = _end(start, upper_angle, long * unit)
            end = _end(joint, lower_angle, long * unit)
            canvas.line([*start, *joint, *end], fill=colour, width=thick, joint="curve")
        canvas.line([*hip, *shoulder], fill=shirt, width=int(thick * 1.8))
        x, y = _end(shoulder, lean + 180, 0.9 * unit)
        canvas.ellipse((x - 0.6 * unit, y - 0.7 * unit, x + 0.6 * unit, y + 0.7 * unit), fill=skin)

    def _thing(self, canvas: ImageDraw.ImageDraw, hip: np.ndarray, unit: float) -> None:
        paint = self._lit(self.paint)
        for kind, *numbers in THINGS[self.thing]:
            points = [
                (float(hip[0] + x * unit), float(hip[1] + y * unit))
                for x, y in zip(numbers[::2], numbers[1::2], strict=True)
            ]
            if kind == "line":
                canvas.line(points, fill=paint, width=max(2, int(unit * 0.3)))
            elif kind == "ring":
                canvas.ellipse(points, outline=paint, width=max(2, int(unit * 0.25)))
            elif kind == "disc":
                canvas.ellipse(points, fill=paint)
            else:
                canvas.rectangle(points, fill=paint)


PAINTS = {
    "none": (0, 0, 0),
    "ball": (235, 110, 30),
    "box": (150, 100, 50),
    "barbell": (40, 40, 45),
    "table": (200, 160, 100),
    "rake": (215, 60, 40),
    "ladder": (225, 200, 60),
    "boat": (215, 40, 60),
    "skis": (40, 70, 215),
    "rod": (30, 30, 30),
    "guitar": (175, 85, 35),
    "bicycle": (20, 140, 140),
    "bed": (240, 235, 250),
    "cross": (250, 215, 110),
    "mirror": (185, 220, 240),
    "bus": (245, 190, 20),
}

# Shapes, in heads (an eighth of the person's height) from the hip: x to the right, y down.
THINGS: dict[str, tuple[tuple[Any, ...], ...]] = {
    "none": (),
    "ball": (("disc", 2.2, -5.5, 3.6, -4.1),),
    "box": (("area", 1.2, -1.6, 3.4, 0.4),),
    "barbell": (("line", -3.2, -5.2, 3.2, -5.2), ("disc", -3.8, -6.2, -2.8, -4.2), ("disc", 2.8, -6.2, 3.8, -4.2)),
    "table": (("area", -1, -0.3, 5, 0.3), ("line", -0.6, 0, -0.6, 3.6), ("line", 4.6, 0, 4.6, 3.6)),
    "rake": (("line", 1, -2, 4, 3.6), ("line", 3.2, 3.9, 4.9, 3.2)),
    "ladder": (
        ("line", 1.6, -7, 1.6, 4),
        ("line", 3, -7, 3, 4),
        *(("line", 1.6, y, 3, y) for y in (-6, -4.4, -2.8, -1.2, 0.4, 2)),
    ),
    "boat": (("disc", -4.5, 0.2, 6, 2.2), ("line", 1, -2, 5.5, 3)),
    "skis": (("line", -3, 4.2, 4, 3.2), ("line", -3, 3.6, 4, 2.6)),
    "rod": (("line", 1.5, -1.5, 6.5, -6), ("line", 6.5, -6, 6.5, 2)),
    "guitar": (("disc", -0.4, -1.6, 1.8, 0.6), ("line", 1, -0.8, 4, -2.6)),
    "bicycle": (("ring", -3.4, 1, -0.4, 4), ("ring", 2, 1, 5, 4), ("line", -1.9, 2.5, 0.5, 0.3, 3.5, 2.5, 2.6, -0.6)),
    "bed": (("area", -5, 0.6, 4.5, 2.2), ("area", -5.4, -1, -4.8, 3.4)),
    "cross": (("area", 4, -7, 4.7, -1), ("area", 2.8, -5.6, 5.9, -4.9)),
    "mirror": (("area", 2.4, -5.4, 4.6, -1.6), ("line", 3.5, -1.6, 3.5, 3.8)),
    "bus": (("area", -5, -4.6, 6, 2.6), ("disc", -4, 1.8, -2, 3.8), ("disc", 3, 1.8, 5, 3.8)),
}


def _end(start: np.ndarray, angle: float, length: float) -> np.ndarray:
    """The point `length` pixels from `start`, at `angle` degrees from straight down, positive to the right."""
    return start + length * np.array([math.sin(math.radians(angle)), math.cos(math.radians(angle))])


def draw(images: int, folder: Path) -> None:
    """Write `images` pictures and their annotation file into `folder`: the same bytes for the same number."""
    generator = np.random.default_rng(SEED)
    videos = plan(images, generator)
    names = [f"{number:09d}.jpg" for number in np.sort(generator.choice(10**8, size=images, replace=False))]
    (folder / "images").mkdir(parents=True)
    entries: list[tuple[str, Video, int]] = []
    for video, frame, image in _frames(videos):
        image.save(folder / "images" / names[len(entries)], quality=88)
        entries.append((names[len(entries)], video, frame))
    annotations = folder / "mpii_human_pose_v1_u12_1.mat"
    scipy.io.savemat(annotations, {"RELEASE": release(entries, generator)}, do_compression=True, oned_as="row")
    with annotations.open("r+b") as file:  # scipy writes the date into the header's free text
        file.write(b"MATLAB 5.0 MAT-file, drawn sample in MPII's layout".ljust(116))


def _frames(videos: list[Video]) -> Iterator[tuple[Video, int, Image.Image]]:
    for video in videos:
        drawing = Drawing(video)
        for frame in range(video.frames):
            yield video, frame, drawing.frame()


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


@lock("sample")
def main() -> None:
    images = parameters.load().sample.images
    with new_folder(OUT) as folder:
        draw(images, folder)
    print(f"sample: drew {images} images in MPII's layout into {OUT}")


if __name__ == "__main__":
    problem.run(main)
