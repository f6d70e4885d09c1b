"""Near-copies by content: recompressed, resized, mirrored, brighter and slightly cropped versions of one photograph.

A short descriptor of each image finds candidates among all pairs; longer ones, aligned over the positions and scales of a
crop, decide. All are gradients of a small grey image, compared by the cosine, so that brightness and contrast do not count.
docs/data.md has what was measured on planted copies.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from stages.common.runtime.workers import available_cores

SIDE = 32  # of the small grey images, in pixels

# Candidates: each whole image against the centre crop of every other, as a copy may be cropped.
SHORT = 6  # side of the image behind the descriptor
CROP = 0.08
MIN_SIMILARITY = 0.62
MAX_CANDIDATES = 20  # of an image: those most alike

# Grey levels from which a gradient counts as strong, whatever its size: else two images with one horizon each are alike.
MIN_GRADIENT = 10

BLOCK = 128  # images at once


class Step(NamedTuple):
    """A longer descriptor of one image against those of many crops of the other."""

    side: int  # of the image behind the descriptor
    scales: tuple[float, ...]  # of the crops
    positions: int  # of a crop of each scale, in width and in height
    similarity: float  # smallest one that passes


# The first one is cheap and leaves a twentieth of the candidates; the second one decides.
STEPS = (Step(8, (0.95, 0.9), 3, 0.75), Step(12, (0.97, 0.94, 0.91, 0.88, 0.85), 4, 0.9))


def thumbnails(
    read: Callable[[list[str]], np.ndarray], names: list[str], advance: Callable[[int], object]
) -> np.ndarray:
    """Small grey versions of images.

    Args:
        read: returns the pixels of images by their names, (n, size, size, 3) uint8.
        names: of the images.
        advance: is told how many more are done.

    Returns:
        (names, SIDE, SIDE) uint8.
    """
    small = np.empty((len(names), SIDE, SIDE), np.uint8)

    def fill(start: int) -> int:
        part = names[start : start + 64]
        for row, pixels in zip(small[start:], read(part), strict=False):
            # With the gap, first by whole factors: two thirds of the time.
            image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=1.0)
            row[:] = np.asarray(image.convert("L"))
        return len(part)

    with ThreadPoolExecutor(available_cores()) as pool:  # more threads only wait for each other
        for count in pool.map(fill, range(0, len(names), 64)):
            advance(count)
    return small


def find(small: np.ndarray, advance: Callable[[int], object]) -> pd.DataFrame:
    """The pairs of near-copies.

    Images with the same pixels are one in the search: each of them is paired with the first one alone, so that a thousand
    equal images are 999 pairs.

    Args:
        small: (images, SIDE, SIDE) uint8.
        advance: is told how many more images are compared.

    Returns:
        first, second (rows of `small`, first < second), similarity (float, of at most 1) and mirrored (bool), in order.
    """
    _, first, same = np.unique(small.reshape(len(small), -1), axis=0, return_index=True, return_inverse=True)
    equal = [(int(first[group]), row, 1.0, False) for row, group in enumerate(same) if first[group] != row]
    advance(len(equal))
    kept = np.sort(first)
    near = _near(small[kept], advance)
    near[["first", "second"]] = kept[near[["first", "second"]]]
    table = pd.concat([near, pd.DataFrame(equal, columns=near.columns).astype(near.dtypes)])
    # A symmetric image is also its own mirror image: the pair is named once, as that which is more alike.
    table = table.sort_values(["first", "second", "similarity", "mirrored"], ascending=[True, True, False, True])
    return table.drop_duplicates(["first", "second"]).reset_index(drop=True)


def _near(images: np.ndarray, advance: Callable[[int], object]) -> pd.DataFrame:
    """The pairs that pass all steps: first, second, similarity, mirrored."""
    candidates = _candidates(images, advance)
    found = []
    for mirrored, pairs in candidates.items():
        similarity = np.zeros(len(pairs))
        for step in STEPS:
            whole = _of_all(images, 0.0, step.side, mirrored)
            one, two = pairs.T
            similarity = np.maximum(_aligned(images, whole, one, two, step), _aligned(images, whole, two, one, step))
            pairs, similarity = pairs[similarity >= step.similarity], similarity[similarity >= step.similarity]
        columns = {"first": pairs[:, 0], "second": pairs[:, 1], "similarity": similarity, "mirrored": mirrored}
        found.append(pd.DataFrame(columns))
    return pd.concat(found)


def _candidates(images: np.ndarray, advance: Callable[[int], object]) -> dict[bool, np.ndarray]:
    """Pairs that may be near-copies, without and with mirroring: rows of `images`, the smaller one first, (pairs, 2) int."""
    inner = _of_all(images, CROP, SHORT, mirrored=False).T
    whole = {mirrored: _of_all(images, 0.0, SHORT, mirrored) for mirrored in (False, True)}
    found: dict[bool, list[np.ndarray]] = {mirrored: [np.zeros((0, 2), int)] for mirrored in whole}
    for start in range(0, len(images), BLOCK):
        for mirrored, descriptors in whole.items():
            similar = descriptors[start : start + BLOCK] @ inner
            np.fill_diagonal(similar[:, start:], 0)  # an image and itself
            places = np.flatnonzero(similar > MIN_SIMILARITY)
            if len(places) > MAX_CANDIDATES:
                places = _most_alike(similar, places)
            rows, columns = np.divmod(places, len(images))
            found[mirrored].append(np.sort(np.stack([rows + start, columns], 1), 1))
        advance(len(similar))
    return {mirrored: np.unique(np.concatenate(pairs), axis=0) for mirrored, pairs in found.items()}


def _most_alike(similar: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of `places` in the flat matrix `similar` at most `MAX_CANDIDATES` of each row, those most alike."""
    rows = places // similar.shape[1]
    many = np.flatnonzero(np.bincount(rows, minlength=len(similar)) > MAX_CANDIDATES)
    if not len(many):
        return places
    best = np.argpartition(similar[many], -MAX_CANDIDATES, axis=1)[:, -MAX_CANDIDATES:]
    others = places[~np.isin(rows, many)]
    return np.sort(np.concatenate([others, (many[:, None] * similar.shape[1] + best).ravel()]))


def _aligned(images: np.ndarray, whole: np.ndarray, rows: np.ndarray, others: np.ndarray, step: Step) -> np.ndarray:
    """For each pair the largest similarity of a crop of `rows` to the whole of `others`, (pairs,)."""
    similarity = np.zeros(len(rows))
    order = np.argsort(rows, kind="stable")
    having, starts = np.unique(rows[order], return_index=True)
    places = np.split(order, starts[1:])
    for first in range(0, len(having), 64):
        crops = _crops(images[having[first : first + 64]], step)
        for place, of_image in zip(places[first:], crops, strict=False):
            similarity[place] = (whole[others[place]] @ of_image.T).max(1)
    return similarity


def _of_all(images: np.ndarray, crop: float, side: int, mirrored: bool) -> np.ndarray:
    """The descriptor of each image without its edges, (images, values)."""
    edge = SIDE * crop / 2
    blocks = (images[start : start + BLOCK] for start in range(0, len(images), BLOCK))
    found = [_descriptors(block[:, :, ::-1] if mirrored else block, [(edge, SIDE - edge)], side) for block in blocks]
    return np.concatenate([np.zeros((0, 1, 2 * side * (side - 1)), np.float32), *found])[:, 0]


def _crops(images: np.ndarray, step: Step) -> np.ndarray:
    """Descriptors of the whole image and of its crops, (images, crops, values)."""
    found = [_descriptors(images, [(0.0, SIDE)], step.side)]
    for scale in step.scales:
        side = SIDE * scale
        edges = [(edge, edge + side) for edge in np.linspace(0, SIDE - side, step.positions)]
        found.append(_descriptors(images, edges, step.side))
    return np.concatenate(found, 1)


def _descriptors(images: np.ndarray, edges: list[tuple[float, float]], side: int) -> np.ndarray:
    """Of each crop, all of `edges` in height and in width, the differences of neighbours among `side` x `side` mean greys.

    Of length 1, so that their product is the similarity: (images, crops, values) float32.
    """
    weights = np.concatenate([_averages(low, high, side) for low, high in edges])
    count, places = len(images), len(edges)
    # Two large products of matrices: many small ones take ten times as long.
    pixels = images.astype(np.float32).transpose(1, 0, 2).reshape(SIDE, -1)
    rows = (weights @ pixels).reshape(-1, SIDE)
    fields = (rows @ weights.T).reshape(places, side, count, places, side).transpose(2, 0, 3, 1, 4)
    across, down = np.diff(fields, axis=-1), np.diff(fields, axis=-2)
    values: np.ndarray = np.concatenate([part.reshape(count, places**2, -1) for part in (across, down)], -1)
    values /= np.abs(values) + MIN_GRADIENT
    # A plain surface has no gradients, and is like nothing.
    values /= np.maximum(np.linalg.norm(values, axis=-1, keepdims=True), 0.1)
    return values


def _averages(low: float, high: float, side: int) -> np.ndarray:
    """The share of each of SIDE pixels in each of `side` equal parts of [low, high), (side, SIDE) float32."""
    edges = np.linspace(low, high, side + 1)
    pixels = np.arange(SIDE)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    shares: np.ndarray = np.maximum(overlap, 0).astype(np.float32)
    shares /= shares.sum(1, keepdims=True)
    return shares
