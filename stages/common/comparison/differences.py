"""Two results side by side: how certain the difference is, which labels and which images changed."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from stages.common.comparison.results import Result
from stages.common.evaluation import bootstrap
from stages.common.evaluation.metrics import METRICS, Scorer

SHOWN_LABELS = 5
SHOWN_IMAGES = 20


class Table(NamedTuple):
    """Names of columns, rows of text, and a title, which may be empty."""

    head: list[str]
    rows: list[list[str]]
    title: str = ""


@dataclass
class Comparison:
    """Sentences and tables, in the order in which they are shown."""

    parts: list[str | Table] = field(default_factory=list)


def compare(a: Result, b: Result, *, every: bool = False, out_of_fold: bool = False) -> Comparison:
    """B against A.

    Args:
        a: the older one.
        b: the newer one.
        every: list all images on which they disagree, not only the first ones.
        out_of_fold: whether these are predictions by cross-validation; else they are those of the test part.
    """
    out = Comparison()
    paired = _add_images_compared(a, b, "labelled" if out_of_fold else "test", out)
    out.parts.append(_scores(a, b, paired))
    if paired and not _are_same(a, b):
        out.parts.append(_verdict(paired["macro_f1"], a, b, out_of_fold))
    _add_labels(a, b, out)
    if len(a.tables) == len(b.tables) == 1:
        _add_images(a.tables[0], b.tables[0], every, out)
    return out


def _are_same(a: Result, b: Result) -> bool:
    """Whether both have the same predictions for the same images."""
    columns = ["image", "label", "prediction"]
    return len(a.tables) == len(b.tables) and all(
        len(x.merge(y, on=columns)) == len(x) == len(y) for x, y in zip(a.tables, b.tables, strict=True)
    )


def _add_images_compared(a: Result, b: Result, kind: str, out: Comparison) -> dict[str, bootstrap.Difference]:
    """Say what is compared. Returns the paired differences, empty if there can't be any."""
    described = [
        f"{name} is {f'the mean of {len(each.seeds)} seeds: ' if len(each.seeds) > 1 else ''}{each.name} ({each.model})"
        for name, each in (("A", a), ("B", b))
    ]
    out.parts.append(f"{', '.join(described)}.")
    for each in (a, b):
        if not each.seeds:
            out.parts.append(f"No interval and no p-value: the predictions of {each.name} are missing: {each.missing}.")
    if not (a.seeds and b.seeds):
        return {}
    of_a, of_b = a.tables[0], b.tables[0]
    try:
        paired = bootstrap.differences_of_seeds(a.seeds, b.seeds)
    except bootstrap.DifferentImagesError:
        same = len(of_a.merge(of_b, on=["image", "label", "video"]))
        out.parts.append(
            f"No interval and no p-value: the {kind} images differ ({len(of_a)} images in A, {len(of_b)} in B, {same} of them "
            "the same with the same label). The difference below is partly that of the images. Compare revisions with the "
            "same data, target and split."
        )
        return {}
    how = ", predicted out of fold" if kind == "labelled" else ""
    videos = f" of {Scorer(of_a).videos} videos" if _has_videos(of_a) else ""
    out.parts.append(f"Both on the same {len(of_a)} {kind} images{videos}{how}.")
    return paired


def _has_videos(table: pd.DataFrame) -> bool:
    return bool((table["video"] != "").any())


def _scores(a: Result, b: Result, paired: dict[str, bootstrap.Difference]) -> Table:
    rows = []
    for metric, text in METRICS.items():
        if metric not in a.scores or metric not in b.scores:  # of an older revision
            continue
        of_a, of_b = a.scores[metric], b.scores[metric]
        row = [text, f"{of_a:.3f}", f"{of_b:.3f}", f"{of_b - of_a:+.3f}"]
        if paired:
            found = paired[metric]
            row += [f"{found.low:+.3f} to {found.high:+.3f}", _p(found)]
        rows.append(row)
    for key, text, form in (("seconds", "training seconds", ",.1f"), ("parameters", "parameters", ",d")):
        if key in a.training and key in b.training:
            of_a, of_b = a.training[key], b.training[key]
            rows.append([text, f"{of_a:{form}}", f"{of_b:{form}}", f"{of_b - of_a:+{form}}"])
            rows[-1] += ["", ""] if paired else []
    return Table(["", "A", "B", "B - A", *(["95 % interval", "p"] if paired else [])], rows)


def _p(found: bootstrap.Difference) -> str:
    return "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _verdict(found: bootstrap.Difference, a: Result, b: Result, out_of_fold: bool) -> str:
    interval = f"95 % interval {found.low:+.3f} to {found.high:+.3f}, p {_p(found)}"
    unit = "videos" if _has_videos(a.tables[0]) else "images"
    videos = f"the {unit}" if out_of_fold else f"test {unit}"
    single = [name for name, each in (("A", a), ("B", b)) if len(each.seeds) == 1]
    choice = f"the choice of {videos}" if single else f"the choice of {videos} and of the seeds"
    if found.p >= bootstrap.ALPHA:
        return f"Macro F1 changed by {found.difference:+.3f}, which {choice} may explain ({interval})."
    verdict = (
        f"Macro F1 is {'better' if found.difference > 0 else 'worse'} by more than {choice} explains ({interval})."
    )
    if not single:
        return verdict
    return (
        f"{verdict} The effect of another seed of {' and '.join(single)} is not included: compare groups of seeds, A1,A2,A3 "
        "B1,B2,B3."
    )


def _add_labels(a: Result, b: Result, out: Comparison) -> None:
    both = a.labels.merge(b.labels, on="label", suffixes=("_a", "_b"))
    for one, other, name in ((a, b, "A"), (b, a, "B")):
        if only := sorted(set(one.labels["label"]) - set(other.labels["label"])):
            out.parts.append(f"Labels only in {name}: {', '.join(only)}.")
    both = both[(both["support_a"] > 0) & (both["support_b"] > 0)]
    both["change"] = both["f1_b"] - both["f1_a"]
    both = both.sort_values(["change", "label"], ascending=[False, True])
    gained, lost = both[both["change"] > 0], both[both["change"] < 0].iloc[::-1]
    for title, chosen in (("Labels with the largest gain", gained), ("Labels with the largest loss", lost)):
        if len(chosen):
            rows = [_label_row(row) for row in chosen.head(SHOWN_LABELS).to_dict("records")]
            out.parts.append(Table(["label", "images", "F1 of A", "F1 of B", "B - A"], rows, title))


def _label_row(row: dict[Hashable, Any]) -> list[str]:
    counts = {f"{row[side]:g}": None for side in ("support_a", "support_b")}
    return [str(row["label"]), ", ".join(counts), f"{row['f1_a']:.3f}", f"{row['f1_b']:.3f}", f"{row['change']:+.3f}"]


def _add_images(a: pd.DataFrame, b: pd.DataFrame, every: bool, out: Comparison) -> None:
    both = a.merge(b, on=["image", "label", "video"], suffixes=("_a", "_b"))
    if both.empty:
        return
    in_a, in_b = both["prediction_a"] == both["label"], both["prediction_b"] == both["label"]
    out.parts.append(
        f"Of {len(both)} images in both: {(in_a & in_b).sum()} correct in both, {(in_a & ~in_b).sum()} only in A, "
        f"{(in_b & ~in_a).sum()} only in B, {(~in_a & ~in_b).sum()} in neither."
    )
    changed = both[both["prediction_a"] != both["prediction_b"]]
    if changed.empty:
        out.parts.append("Both predict the same label for every image.")
        return
    changed = changed.sort_values(["probability_b", "image"], ascending=[False, True])
    shown = changed if every else changed.head(SHOWN_IMAGES)
    title = f"The {len(changed)} images on which they disagree, most confident in B first"
    if len(shown) < len(changed):
        title = f"{len(shown)} of {title[0].lower()}{title[1:]} (--all lists every one)"
    rows = [
        [
            row["image"],
            row["label"],
            f"{row['prediction_a']} {row['probability_a']:.2f}",
            f"{row['prediction_b']} {row['probability_b']:.2f}",
        ]
        for row in shown.to_dict("records")
    ]
    out.parts.append(Table(["image", "label", "A predicts", "B predicts"], rows, title))
