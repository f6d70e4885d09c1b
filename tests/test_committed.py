"""Forged results in a pull request: of the files alone, on a processor with the same bits and on another one."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.common.evaluation.metrics import OF_LABELS
from stages.common.evaluation.predictions import OF
from stages.common.evaluation.summary import label_scores, summary
from stages.common.runtime import paths
from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / ".ci"))
import committed

Texts = dict[Path, str]
Change = Callable[[Any], Any]


def results(seed: int, md5: str) -> Texts:
    """All result files of a model, of whose mistakes `seed` depend on the processor, as the stages write them."""
    generator = np.random.default_rng(0)
    truth = np.repeat(["a", "b", "c"], 40)
    predicted = np.where(generator.random(120) < 0.7, truth, "a")
    predicted[-seed:] = "a"
    names = [f"{number:03d}.jpg" for number in range(120)]
    table = pd.DataFrame({"image": names, "video": [str(number // 4) for number in range(120)], "label": truth})
    table["prediction"], table["probability"] = predicted, generator.uniform(0.4, 1, 120).round(6)
    table[[OF + label for label in "abcdef"]] = np.random.default_rng(1).random((120, 6)).round(6)
    curves = pd.DataFrame({"epoch": [1, 2, 3], "validation_macro_f1": [0.5, 0.71 + seed / 1000, 0.7]})
    training = {
        "seconds": float(seed),
        "epochs": 3,
        "parameters": 10,
        "device": f"CPU {seed}",
        "validation_macro_f1": float(curves["validation_macro_f1"].max()),
        "best_epoch": 2,
    }
    out = {"path": str(paths.predictions("scratch")), "md5": md5}
    scores = summary(table)
    copies = {"test_images_with_near_copies": 0, "macro_f1_without_near_copies": scores["macro_f1"]}
    return {
        paths.EVALUATION: json.dumps({"model": "scratch", "test_images": len(table), **scores, **copies}),
        paths.TRAINING: json.dumps(training),
        paths.LABEL_SCORES: label_scores(table, ["a", "b", "c"]).to_csv(index=False),
        paths.CONFUSION: table[["label", "prediction"]].to_csv(index=False),
        paths.LEARNING_CURVES: curves.to_csv(index=False),
        paths.curves("scratch"): curves.to_csv(index=False),
        **dict.fromkeys(committed.EXACT, '{"images": 120}'),
        **{lock: json.dumps({"stages": {}}) for lock in paths.LOCKS[:2]},
        paths.MODELS_LOCK: json.dumps({"stages": {"infer-scratch": {"outs": [out]}}}),
    }


def wrong(mine: Texts, here: Texts, solved: bool = False) -> list[str]:
    return committed.check(mine.__getitem__, here.__getitem__, "scratch", solved).wrong


def in_json(path: Path, **changes: Any) -> Callable[[Texts], Texts]:
    return lambda texts: texts | {path: json.dumps(json.loads(texts[path]) | changes)}


def in_text(path: Path, change: Callable[[str], str]) -> Callable[[Texts], Texts]:
    return lambda texts: texts | {path: change(texts[path])}


FORGERIES: dict[str, Callable[[Texts], Texts]] = {
    "accuracy": in_json(paths.EVALUATION, accuracy=0.99),
    "macro F1 a little": in_json(paths.EVALUATION, macro_f1=0.75),
    "an interval": in_json(paths.EVALUATION, macro_f1_interval=[0.9, 0.95]),
    "the calibration error": in_json(paths.EVALUATION, expected_calibration_error=0.001),
    "average precision": in_json(paths.EVALUATION, mean_average_precision=0.97),
    "one test image more": in_json(paths.EVALUATION, test_images=121),
    "the score without near-copies": in_json(paths.EVALUATION, macro_f1_without_near_copies=0.72),
    "no test image without a near-copy": in_json(paths.EVALUATION, macro_f1_without_near_copies=None),
    "the near-copies": in_json(paths.AUDIT_METRICS, images=121),
    "a negative score": in_json(paths.EVALUATION, accuracy=-0.7),
    "another model": in_json(paths.EVALUATION, model="vgg16"),
    "another figure": in_json(paths.EVALUATION, top_5=1.0),
    "the validation score": in_json(paths.TRAINING, validation_macro_f1=0.98),
    "the number of parameters": in_json(paths.TRAINING, parameters=9),
    "the learning curves": lambda texts: (
        texts
        | dict.fromkeys(
            (paths.LEARNING_CURVES, paths.curves("scratch")),
            texts[paths.LEARNING_CURVES].replace("0.5", "0.9").replace("0.7\n", "0.99\n"),
        )
    ),
    "the learning curves of the model alone": in_text(paths.curves("scratch"), lambda text: text.replace("0.5", "0.6")),
    "the number of epochs": in_json(paths.TRAINING, epochs=1),
    "the best epoch": in_json(paths.TRAINING, best_epoch=1),
    "the split": in_json(committed.EXACT[1], images=121),
    "a row of labels.csv": in_text(paths.LABEL_SCORES, lambda text: text.replace("a,", "a,0.99,", 1)),
    "a label less": in_text(paths.LABEL_SCORES, lambda text: "\n".join(text.splitlines()[:-1]) + "\n"),
    "a row of confusion.csv": in_text(paths.CONFUSION, lambda text: text.replace("b,a", "b,b", 1)),
    "a true label in confusion.csv": in_text(paths.CONFUSION, lambda text: text.replace("b,a", "a,a", 1)),
}


@pytest.mark.parametrize("processor", ["the same", "another"])
def test_honest_results_pass_on_any_processor(processor: str) -> None:
    mine = results(1, "aa")
    here = in_json(paths.TRAINING, seconds=99.0, device="GPU")(mine) if processor == "the same" else results(2, "bb")
    assert mine != here
    assert committed.check(mine.__getitem__, here.__getitem__, "scratch", False) == ([], processor == "the same")


@pytest.mark.parametrize("processor", ["the same", "another"])
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_file_is_found_on_any_processor(forgery: str, processor: str) -> None:
    honest = results(1, "aa")
    here = honest if processor == "the same" else results(2, "bb")
    forged = FORGERIES[forgery](honest)
    assert forged != honest
    assert wrong(forged, here)


@pytest.mark.parametrize("seconds", ["-5", "NaN", "1e99", "null"])
def test_time_is_a_number_and_the_files_are_mappings(seconds: str) -> None:
    honest = results(1, "aa")
    forged = in_text(paths.TRAINING, lambda text: text.replace('"seconds": 1.0', f'"seconds": {seconds}'))(honest)
    with pytest.raises((ValueError, TypeError)):
        wrong(forged, honest)
    for text in ("[]", "null", "1"):
        with pytest.raises(ValueError, match="is not a mapping"):
            wrong(honest | {paths.EVALUATION: text}, honest)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", "-1e999", '"0.7"', "null", "true"])
@pytest.mark.parametrize("name", ["macro_f1", "expected_calibration_error"])
def test_a_figure_that_is_not_a_finite_number_is_an_error(name: str, value: str) -> None:
    honest = results(1, "aa")
    number = json.dumps(json.loads(honest[paths.EVALUATION])[name])
    forged = in_text(paths.EVALUATION, lambda text: text.replace(f'"{name}": {number}', f'"{name}": {value}'))(honest)
    assert forged != honest
    for here in (honest, results(2, "bb")):
        with pytest.raises(ValueError, match=f"{name} is .*; expected a finite number"):
            wrong(forged, here)


@pytest.mark.parametrize("name", list(OF_LABELS))
def test_a_stale_score_is_found_where_rounding_differs(name: str) -> None:
    """All files agree with each other, as those of an older commit do."""
    mine, here = results(12, "aa"), results(1, "bb")
    difference = json.loads(mine[paths.EVALUATION])[name] - json.loads(here[paths.EVALUATION])[name]
    assert 0.03 < abs(difference) < 0.1
    assert any(f"`{name}`" in each for each in wrong(mine, here))


def test_the_scores_of_a_solved_head_must_be_equal_on_any_processor() -> None:
    mine = results(1, "aa")
    other = in_json(paths.TRAINING, seconds=9.0, validation_macro_f1=0.7110004)(
        mine | {paths.MODELS_LOCK: results(1, "bb")[paths.MODELS_LOCK]}
    )
    assert not wrong(mine, other, solved=True)
    assert wrong(mine, results(2, "bb"), solved=True)


def test_minus_zero_and_another_rounding_are_found_where_bits_are_the_same() -> None:
    honest = results(1, "aa")
    forged = in_text(paths.EVALUATION, lambda text: text.replace('_error": 0', '_error": -0', 1))(honest)
    assert wrong(forged, honest)
    assert wrong(in_text(paths.CONFUSION, lambda text: text + "\n")(honest), honest)
