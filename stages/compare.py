"""Two results side by side: how sure the difference is, which labels and which images changed."""

import argparse
import io
import json
import unicodedata
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from tabulate import tabulate

from stages.common import bootstrap, problem
from stages.common.predictions import COLUMNS, PREDICTIONS, read_predictions
from stages.common.problem import Problem
from stages.common.revisions import WORKSPACE, Reader, reader, repository

EVALUATION = "metrics/evaluation.json"
TRAINING = "metrics/training.json"
LABELS = "plots/labels.csv"

SHOWN_LABELS = 5
SHOWN_IMAGES = 20
# Columns of words; all others are numbers.
LEFT = ("", "label", "image", "A says", "B says")

Table = tuple[list[str], list[list[str]]]


@dataclass(frozen=True)
class Result:
    """What one revision holds."""

    name: str
    evaluation: dict[str, Any]
    training: dict[str, Any]
    labels: pd.DataFrame  # label, f1, support
    predictions: pd.DataFrame | None  # image, video, label, prediction, probability
    missing: str = ""  # why there are no predictions


@dataclass
class Comparison:
    """What there is to say: sentences and tables, in order; a table has a title."""

    parts: list[str | tuple[str, Table]] = field(default_factory=list)


def result(name: str, read: Reader) -> Result:
    """One revision's result.

    Args:
        name: how the user calls the revision.
        read: gives the text of its files.

    Raises:
        Problem: the revision holds no scores, not what this project writes, or predictions of other scores.
    """
    try:
        evaluation, training = json.loads(read(EVALUATION)), json.loads(read(TRAINING))
        training = {
            key: kind(training[key]) for key, kind in (("seconds", float), ("parameters", int)) if key in training
        }
        labels = pd.read_csv(io.StringIO(read(LABELS)), keep_default_na=False, dtype={"label": str})[
            ["label", "f1", "support"]
        ]
        known = [float(evaluation[metric]) for metric in bootstrap.METRICS]
        path = PREDICTIONS.format(evaluation["model"])
    except FileNotFoundError as error:
        raise Problem(
            f"{name} has no {error.filename or error}; expected a revision with the results of dvc repro"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Problem(f"{name}: its metrics or {LABELS} are not as dvc repro writes them: {error!r}") from None
    try:
        predictions = read_predictions(io.StringIO(read(path)))[COLUMNS]
    except FileNotFoundError as error:
        return Result(name, evaluation, training, labels, None, f"{path}: {error.strerror or 'no such file'}")
    except (ValueError, KeyError) as error:
        raise Problem(f"{name}: {path} is not as dvc repro writes it: {error!r}") from None
    counts = bootstrap.tally(predictions, sorted({*predictions["label"], *predictions["prediction"]})).sum(axis=0)
    if abs(bootstrap.scores(counts) - known).max() > 1e-5:
        raise Problem(f"{name}: {EVALUATION} is not of {path}; run dvc repro there first")
    return Result(name, evaluation, training, labels, predictions)


def compare(a: Result, b: Result, *, every: bool = False) -> Comparison:
    """B against A.

    Args:
        a: the older one.
        b: the newer one.
        every: list all images on which they disagree, not the first ones alone.
    """
    out = Comparison()
    paired = _about_test_parts(a, b, out)
    out.parts.append(("", _scores(a, b, paired)))
    if paired and not _same(a, b):
        out.parts.append(_verdict(paired["macro_f1"]))
    _about_labels(a, b, out)
    if a.predictions is not None and b.predictions is not None:
        _about_images(a.predictions, b.predictions, every, out)
    return out


def _same(a: Result, b: Result) -> bool:
    """Whether both predict the same of the same images."""
    columns = ["image", "label", "prediction"]
    tables = [each.predictions for each in (a, b) if each.predictions is not None]
    return len(tables) == 2 and len(tables[0].merge(tables[1], on=columns)) == len(tables[0]) == len(tables[1])


def _about_test_parts(a: Result, b: Result, out: Comparison) -> dict[str, bootstrap.Difference]:
    """Say what the scores are of; the paired differences, empty where there are none to be had."""
    out.parts.append(f"A is {a.name} ({a.evaluation['model']}), B is {b.name} ({b.evaluation['model']}).")
    missing = [each for each in (a, b) if each.predictions is None]
    for each in missing:
        out.parts.append(f"No interval and no p-value, as the predictions of {each.name} can't be had: {each.missing}.")
    if missing or a.predictions is None or b.predictions is None:
        return {}
    try:
        paired = bootstrap.differences(a.predictions, b.predictions)
    except ValueError:
        same = len(a.predictions.merge(b.predictions, on=["image", "label", "video"]))
        out.parts.append(
            f"No interval and no p-value: the test parts differ ({len(a.predictions)} images in A, {len(b.predictions)} in "
            f"B, {same} of them the same with the same label). Part of the difference below is that of the images; for "
            "more compare revisions with the same data, target and split."
        )
        return {}
    videos = len(bootstrap.tally(a.predictions, sorted({*a.predictions["label"], *a.predictions["prediction"]})))
    out.parts.append(f"Both on the same {len(a.predictions)} test images of {videos} videos.")
    return paired


def _scores(a: Result, b: Result, paired: dict[str, bootstrap.Difference]) -> Table:
    rows = []
    for metric, text in bootstrap.METRICS.items():
        ours, theirs = a.evaluation[metric], b.evaluation[metric]
        row = [text, f"{ours:.3f}", f"{theirs:.3f}", f"{theirs - ours:+.3f}"]
        if paired:
            found = paired[metric]
            row += [f"{found.low:+.3f} to {found.high:+.3f}", _p(found)]
        rows.append(row)
    for key, text, form in (("seconds", "training seconds", ",.1f"), ("parameters", "parameters", ",d")):
        if key in a.training and key in b.training:
            ours, theirs = a.training[key], b.training[key]
            rows.append([text, f"{ours:{form}}", f"{theirs:{form}}", f"{theirs - ours:+{form}}"])
            rows[-1] += ["", ""] if paired else []
    return ["", "A", "B", "B - A", *(["95 % interval", "p"] if paired else [])], rows


def _p(found: bootstrap.Difference) -> str:
    return "< 0.001" if found.p < 0.001 else f"{found.p:.3f}"


def _verdict(found: bootstrap.Difference) -> str:
    interval = f"95 % interval {found.low:+.3f} to {found.high:+.3f}, p {_p(found)}"
    if found.p >= bootstrap.ALPHA:
        return f"Macro F1 changed by {found.difference:+.3f}, which the choice of test videos may explain ({interval})."
    return (
        f"Macro F1 is {'better' if found.difference > 0 else 'worse'} by more than the choice of test videos explains "
        f"({interval}). What another seed would change is not in that: python -m stages.seeds."
    )


def _about_labels(a: Result, b: Result, out: Comparison) -> None:
    both = a.labels.merge(b.labels, on="label", suffixes=("_a", "_b"))
    for one, other, name in ((a, b, "A"), (b, a, "B")):
        if alone := sorted(set(one.labels["label"]) - set(other.labels["label"])):
            out.parts.append(f"Labels of {name} alone: {', '.join(alone)}.")
    both = both[(both["support_a"] > 0) & (both["support_b"] > 0)]
    both["change"] = both["f1_b"] - both["f1_a"]
    both = both.sort_values(["change", "label"], ascending=[False, True])
    for title, chosen in (
        ("Labels that gained most", both[both["change"] > 0].head(SHOWN_LABELS)),
        ("Labels that lost most", both[both["change"] < 0].iloc[::-1].head(SHOWN_LABELS)),
    ):
        rows = [
            [
                row["label"],
                str(row["support_a"])
                if row["support_a"] == row["support_b"]
                else f"{row['support_a']}, {row['support_b']}",
                f"{row['f1_a']:.3f}",
                f"{row['f1_b']:.3f}",
                f"{row['change']:+.3f}",
            ]
            for row in chosen.to_dict("records")
        ]
        if rows:
            out.parts.append((title, (["label", "images", "F1 of A", "F1 of B", "B - A"], rows)))


def _about_images(a: pd.DataFrame, b: pd.DataFrame, every: bool, out: Comparison) -> None:
    both = a.merge(b, on=["image", "label", "video"], suffixes=("_a", "_b"))
    if both.empty:
        return
    right_a, right_b = both["prediction_a"] == both["label"], both["prediction_b"] == both["label"]
    out.parts.append(
        f"Of {len(both)} images that both have: {(right_a & right_b).sum()} right in both, {(right_a & ~right_b).sum()} in A alone, "
        f"{(right_b & ~right_a).sum()} in B alone, {(~right_a & ~right_b).sum()} in neither."
    )
    changed = both[both["prediction_a"] != both["prediction_b"]]
    if changed.empty:
        out.parts.append("Both predict the same of every one.")
        return
    changed = changed.sort_values(["probability_b", "image"], ascending=[False, True])
    shown = changed if every else changed.head(SHOWN_IMAGES)
    title = f"The {len(changed)} images on which they disagree, B's surest first"
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
    out.parts.append((title, (["image", "label", "A says", "B says"], rows)))


def text(comparison: Comparison, *, markdown: bool = False) -> str:
    """The comparison for a terminal, or as GitHub's Markdown."""
    parts = []
    shown = _escaped if markdown else _printable
    for part in comparison.parts:
        if isinstance(part, str):
            parts.append(shown(part))
            continue
        title, (head, rows) = part
        rows = [[shown(cell) for cell in row] for row in rows]
        table = tabulate(
            rows,
            head,
            tablefmt="github" if markdown else "simple",
            disable_numparse=True,  # as they were formatted: 0.500, not 0.5
            colalign=["left" if name in LEFT else "right" for name in head],
        )
        if not title:
            parts.append(table)
        elif markdown:
            parts.append(f"<details><summary>{title}</summary>\n\n{table}\n\n</details>")
        else:
            parts.append(f"{title}\n{table}")
    return "\n\n".join(parts)


def _printable(words: str) -> str:
    """Names of labels and images are data: they must not steer a terminal or break a row."""
    return "".join("\ufffd" if unicodedata.category(sign) in ("Cc", "Zl", "Zp") else sign for sign in words)


def _escaped(words: str) -> str:
    """Nor become tables, links, HTML, or mentions of people and issues."""
    words = _printable(words).replace("&", "&amp;")
    for sign in "\\`*_{}[]<>#|~":
        words = words.replace(sign, f"\\{sign}")
    for sign in ("@", "#", "://", "GH-", "www."):
        words = words.replace(sign, f"{sign}\u200b")
    return words


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.compare", description="Compare two results.")
    parser.add_argument("a", nargs="?", default="HEAD", metavar="A", help="git revision or experiment (default: HEAD)")
    parser.add_argument(
        "b", nargs="?", default=WORKSPACE, metavar="B", help="git revision or experiment (default: the workspace)"
    )
    parser.add_argument("--md", action="store_true", help="Markdown, for a pull request")
    parser.add_argument("--all", action="store_true", help="list every image on which they disagree")
    arguments = parser.parse_args()
    with repository() as repo:
        a, b = (result(name, reader(repo, name)) for name in (arguments.a, arguments.b))
    print(text(compare(a, b, every=arguments.all), markdown=arguments.md))


if __name__ == "__main__":
    problem.run(main)
