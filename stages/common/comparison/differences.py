"""Two results side by side: how certain the difference is, which labels and which images changed."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pandas as pd

from stages.common.comparison.results import Result
from stages.common.evaluation import bootstrap
from stages.common.evaluation.predictions import occurring_labels

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


def compare(a: Result, b: Result, *, every: bool = False) -> Comparison:
    """B against A.

    Args:
        a: the older one.
        b: the newer one.
        every: list all images on which they disagree, not only the first ones.
    """
    out = Comparison()
    paired = _add_test_parts(a, b, out)
    out.parts.append(_scores(a, b, paired))
    if paired and not _are_same(a, b):
        out.parts.append(_verdict(paired["macro_f1"]))
    _add_labels(a, b, out)
    if a.predictions is not None and b.predictions is not None:
        _add_images(a.predictions, b.predictions, every, out)
    return out


def _are_same(a: Result, b: Result) -> bool:
    """Whether both have the same predictions for the same images."""
    columns = ["image", "label", "prediction"]
    tables = [each.predictions for each in (a, b) if each.predictions is not None]
    return len(tables) == 2 and len(tables[0].merge(tables[1], on=columns)) == len(tables[0]) == len(tables[1])


def _add_test_parts(a: Result, b: Result, out: Comparison) -> dict[str, bootstrap.Difference]:
    """Say what is compared. Returns the paired differences, empty if there can't be any."""
    out.parts.append(f"A is {a.name} ({a.evaluation['model']}), B is {b.name} ({b.evaluation['model']}).")
    for each in (a, b):
        if each.predictions is None:
            out.parts.append(f"No interval and no p-value: the predictions of {each.name} are missing: {each.missing}.")
    if a.predictions is None or b.predictions is None:
        return {}
    try:
        paired = bootstrap.differences(a.predictions, b.predictions)
    except ValueError:
        same = len(a.predictions.merge(b.predictions, on=["image", "label", "video"]))
        out.parts.append(
            f"No interval and no p-value: the test parts differ ({len(a.predictions)} images in A, {len(b.predictions)} in "
            f"B, {same} of them the same with the same label). The difference below is partly that of the images. "
            "Compare revisions with the same data, target and split."
        )
        return {}
    videos = len(bootstrap.tally(a.predictions, occurring_labels(a.predictions)))
    out.parts.append(f"Both on the same {len(a.predictions)} test images of {videos} videos.")
    return paired


def _scores(a: Result, b: Result, paired: dict[str, bootstrap.Difference]) -> Table:
    rows = []
    for metric, text in bootstrap.METRICS.items():
        of_a, of_b = a.evaluation[metric], b.evaluation[metric]
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


def _verdict(found: bootstrap.Difference) -> str:
    interval = f"95 % interval {found.low:+.3f} to {found.high:+.3f}, p {_p(found)}"
    if found.p >= bootstrap.ALPHA:
        return f"Macro F1 changed by {found.difference:+.3f}, which the choice of test videos may explain ({interval})."
    return (
        f"Macro F1 is {'better' if found.difference > 0 else 'worse'} by more than the choice of test videos explains "
        f"({interval}). The effect of another seed is not included: python -m commands.seeds."
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
    counts = {str(row["support_a"]): None, str(row["support_b"]): None}
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
