"""Which group of images goes to which part: random orders, of which the one closest to the fractions is kept."""

from collections import Counter, defaultdict

import numpy as np

ATTEMPTS = 20
MAX_ASSIGNED = 200_000  # groups in all attempts together: of many groups, few orders are as good

Groups = list[Counter[str]]


def assign(groups: Groups, fractions: tuple[float, ...], seed: int) -> tuple[list[int], list[str]]:
    """Assign each group to a part so that each label's images are divided as `fractions` says.

    Several random orders are tried and the one closest to the fractions is kept. A label with too few groups for all
    parts goes to the first one with all of them.

    Args:
        groups: images by label, one counter a group.
        fractions: of the parts; the first one is train.
        seed: of the random orders.

    Returns:
        The part of each group (an index into `fractions`), and the labels that are in train alone, sorted.
    """
    generator = np.random.default_rng(seed)
    totals: Counter[str] = Counter()
    for group in groups:
        totals.update(group)
    few = _too_few(groups, set(), len(fractions))
    while True:
        best: tuple[float, list[int]] | None = None
        failures: Counter[str] = Counter()
        for _ in range(max(2, min(ATTEMPTS, MAX_ASSIGNED // len(groups)))):
            parts = _attempt(groups, fractions, totals, few, generator)
            absent = _absent(groups, parts, len(fractions)) - few
            failures.update(absent)
            cost = _cost(groups, parts, fractions, totals)
            if not absent and (best is None or cost < best[0]):
                best = cost, parts
        if best is not None:
            return best[1], sorted(few)
        few = _too_few(groups, few | {max(sorted(failures), key=failures.__getitem__)}, len(fractions))


def _too_few(groups: Groups, few: set[str], parts: int) -> set[str]:
    """`few`, and every label that can't be in all parts: too few groups, or too few that no label of `few` keeps in train."""
    while True:
        everywhere = Counter(label for group in groups for label in group)
        free = Counter(label for group in groups if not few & group.keys() for label in group)
        more = {label for label in everywhere if everywhere[label] < parts or free[label] < parts - 1} | few
        if more == few:
            return few
        few = more


def _attempt(
    groups: Groups, fractions: tuple[float, ...], totals: Counter[str], few: set[str], generator: np.random.Generator
) -> list[int]:
    parts = [0 if few & group.keys() else -1 for group in groups]
    missing = {label: [fraction * totals[label] for fraction in fractions] for label in totals}
    members: dict[str, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        if parts[number] == 0:
            _put(group, 0, missing)
        for label in group:
            members[label].append(number)
    order = [int(number) for number in generator.permutation(len(groups))]
    rank = {number: position for position, number in enumerate(order)}
    # First one group in each part for the labels with the fewest groups, then the others where most is missing.
    for label in sorted(members, key=lambda label: (len(members[label]), label)):
        if label in few:
            continue
        for part in reversed(range(len(fractions))):
            if any(parts[number] == part for number in members[label]):
                continue
            if open_groups := [number for number in members[label] if parts[number] < 0]:
                number = min(open_groups, key=rank.__getitem__)
                parts[number] = part
                _put(groups[number], part, missing)
    for number in order:
        if parts[number] < 0:
            group = groups[number]
            parts[number] = max(
                range(len(fractions)),
                key=lambda part: sum(n * missing[label][part] / totals[label] ** 2 for label, n in group.items()),
            )
            _put(group, parts[number], missing)
    return parts


def _put(group: Counter[str], part: int, missing: dict[str, list[float]]) -> None:
    for label, images in group.items():
        missing[label][part] -= images


def _absent(groups: Groups, parts: list[int], count: int) -> set[str]:
    """The labels that are not in all `count` parts."""
    present: dict[str, set[int]] = defaultdict(set)
    for group, part in zip(groups, parts, strict=True):
        for label in group:
            present[label].add(part)
    return {label for label, found in present.items() if len(found) < count}


def _cost(groups: Groups, parts: list[int], fractions: tuple[float, ...], totals: Counter[str]) -> float:
    missing = {label: [fraction * totals[label] for fraction in fractions] for label in totals}
    for group, part in zip(groups, parts, strict=True):
        _put(group, part, missing)
    return sum((images / totals[label]) ** 2 for label, left in missing.items() for images in left)
