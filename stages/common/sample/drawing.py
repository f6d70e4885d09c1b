"""Draws the synthetic data set, video by video.

A category shows in the scene, the pose and the object at hand, none of which is certain: videos differ in light, colour and
framing, some are set in the scene of another category, and in some the object is outside the picture.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from stages.common.sample.tables import LOOKS, OBJECTS, PAINTS, SCENES

SEED = 20140624
SIZES = ((320, 240), (384, 288), (426, 240), (240, 320), (288, 288))
OTHER_SCENE = 0.1  # fraction of videos
OBJECT_OUTSIDE = 0.15  # fraction of videos


class Video(NamedTuple):
    """Frames of one place, one person and one camera. `activity` is an index into its category's, -1 if unlabelled."""

    number: int
    category: str
    activity: int
    frames: int


class Drawing:
    """The look of one video, from which its frames are drawn; everything random follows from the video's number."""

    def __init__(self, video: Video) -> None:
        self.random = np.random.default_rng((SEED, video.number))
        self.look = LOOKS[video.category]
        self.size = SIZES[self.random.integers(len(SIZES))]
        places = list(SCENES) if self.random.random() < OTHER_SCENE else list(self.look.scenes)
        self.scene = places[self.random.integers(len(places))]
        self.object = "none" if self.random.random() < OBJECT_OUTSIDE else self.look.object
        self.light = self.random.uniform(0.8, 1.15)
        self.tint = self.random.normal(0, 8, size=3)
        self.skin = np.array([214, 170, 140]) * self.random.uniform(0.45, 1.1)
        self.shirt, self.trousers = self.random.uniform(20, 240, size=(2, 3))
        self.paint = np.array(PAINTS[self.object]) + self.random.normal(0, 15, size=3)
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
        self._object(canvas, hip, unit)
        self._person(canvas, hip, unit)
        if self.mirrored:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        grain = (9 * self.random.standard_normal((height, width, 1), dtype=np.float32)).astype(np.int16)
        return Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255, dtype=np.int16).astype(np.uint8))

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

    def _object(self, canvas: ImageDraw.ImageDraw, hip: np.ndarray, unit: float) -> None:
        paint = self._lit(self.paint)
        for kind, *numbers in OBJECTS[self.object]:
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


def _end(start: np.ndarray, angle: float, length: float) -> np.ndarray:
    """The point `length` pixels from `start`, at `angle` degrees from straight down, positive to the right."""
    return start + length * np.array([math.sin(math.radians(angle)), math.cos(math.radians(angle))])
