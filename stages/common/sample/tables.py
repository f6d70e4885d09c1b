"""What the pictures of the synthetic data set show: names and imbalance are MPII's, the rest is invented."""

from typing import Any, NamedTuple


class Look(NamedTuple):
    """What the pictures of one category have in common."""

    images: int
    activities: tuple[str, ...]
    scenes: tuple[str, ...]
    pose: tuple[int, ...]
    object: str


# name: images in MPII, activities, scenes, pose (lean, upper arms, forearms, thighs, shins; degrees from straight down), object
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
OBJECTS: dict[str, tuple[tuple[Any, ...], ...]] = {
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
