"""The intervals contain the truth as often as they say."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.common.evaluation import bootstrap
from stages.common.evaluation.metrics import OF_LABELS, scores, tally
from stages.common.evaluation.predictions import occurring_labels


def draw(
    videos: int, labels: int, generator: np.random.Generator, accuracies: tuple[float, ...], huge: float = 0.0
) -> list[pd.DataFrame]:
    """Predictions of several models on the same frames: each video has one label, its own number of frames and its own
    difficulty, so that frames of one video are correct or wrong together; rare labels are rare. `huge` is the fraction of
    videos with some forty frames.
    """
    weights = 1 / np.arange(1, labels + 1) ** 0.8
    weights /= weights.sum()
    label = generator.choice(labels, videos, p=weights)
    frames = generator.integers(1, 9, videos)
    frames = np.where(generator.random(videos) < huge, generator.integers(30, 61, videos), frames)
    video = np.repeat(np.arange(videos), frames)
    truth = label[video]
    ease = generator.normal(0, 0.25, videos)[video] + 0.2 * np.cos(2 * truth)
    tables = []
    for accuracy in accuracies:
        wrong = (truth + 1 + generator.choice(labels, videos, p=weights)[video]) % labels
        right = generator.random(len(video)) < np.clip(accuracy + ease, 0.02, 0.98)
        table = pd.DataFrame({"video": video.astype(str), "label": truth, "prediction": np.where(right, truth, wrong)})
        table[["label", "prediction"]] = table[["label", "prediction"]].astype(str)
        table.insert(0, "image", table.index.astype(str))
        tables.append(table)
    return tables


def score(table: pd.DataFrame) -> np.ndarray:
    return scores(tally(table, occurring_labels(table)).sum(axis=0))


class Population:
    """So many videos that their scores are those to expect of any test part."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.scores = score(table)
        labels = sorted(set(table["label"]))
        right, images, predicted = tally(table, labels).sum(axis=0)
        self.f1 = dict(zip(labels, 2 * right / (images + predicted), strict=True))
        self.recall = dict(zip(labels, right / images, strict=True))

    def expected(self, table: pd.DataFrame) -> np.ndarray:
        """The expected scores of a test part; means over labels are those over the labels that occur in it."""
        occurring = set(table["label"])
        macro = [np.mean([values[label] for label in occurring]) for values in (self.f1, self.recall)]
        return np.array([macro[0], *self.scores[1:3], macro[1]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("videos", "labels", "huge"),
    [(25, 4, 0.0), (40, 12, 0.0), (400, 20, 0.0), (100, 20, 0.05)],
)
def test_intervals_contain_the_truth_about_95_times_of_100(
    videos: int, labels: int, huge: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    generator = np.random.default_rng(1)
    population = Population(*draw(60_000, labels, generator, (0.55,), huge))
    trials = 200
    contained = np.zeros(len(OF_LABELS))
    for _ in range(trials):
        (table,) = draw(videos, labels, generator, (0.55,), huge)
        truth = population.expected(table)
        ends = np.array(list(bootstrap.intervals(table).values()))
        contained += (ends[:, 1] <= truth) & (truth <= ends[:, 2])
    # 200 trials of 0.95 are within 0.90 and 0.99 nearly always
    assert (contained / trials > 0.89).all(), contained / trials
    assert (contained / trials <= 0.995).all(), contained / trials


@pytest.mark.slow
@pytest.mark.parametrize(("videos", "labels"), [(40, 12), (150, 20)])
def test_equal_models_differ_significantly_about_5_times_of_100_and_a_better_one_more_often(
    videos: int, labels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "RESAMPLES", 1000)
    generator = np.random.default_rng(2)
    trials = 100
    found = {accuracy: np.zeros(len(OF_LABELS)) for accuracy in (0.5, 0.7)}
    for _ in range(trials):
        a, equal, better = draw(videos, labels, generator, (0.5, 0.5, 0.7))
        for accuracy, b in ((0.5, equal), (0.7, better)):
            result = bootstrap.differences(a, b).values()
            found[accuracy] += [values.p < bootstrap.ALPHA for values in result]
            for values in result:
                assert (values.p < bootstrap.ALPHA) == (values.low > 0 or values.high < 0) or abs(
                    values.p - bootstrap.ALPHA
                ) < 0.01
    assert (found[0.5] / trials < 0.12).all(), found
    # Rare labels count most in balanced accuracy.
    assert (found[0.7] / trials > (0.35, 0.5, 0.5, 0.3)).all(), found


def test_frames_of_one_video_count_as_one() -> None:
    """Twenty frames a video that are all correct or all wrong tell no more than one frame a video."""
    generator = np.random.default_rng(4)
    right = generator.random(50) < 0.6
    label = np.where(np.arange(50) % 2, "a", "b")
    one = pd.DataFrame(
        {"image": np.arange(50).astype(str), "video": np.arange(50).astype(str), "label": label, "prediction": "c"}
    )
    one.loc[right, "prediction"] = one.loc[right, "label"]
    many = pd.concat([one.assign(image=one["image"] + f"_{frame}") for frame in range(20)])
    apart = bootstrap.intervals(many.assign(video=many["image"]))
    together = bootstrap.intervals(many)
    for name, score in bootstrap.intervals(one).items():
        assert together[name] == pytest.approx(score)
        assert apart[name].high - apart[name].low < (score.high - score.low) / 3


def test_the_same_predictions_have_the_same_interval_in_any_order() -> None:
    a, b = draw(30, 8, np.random.default_rng(5), (0.4, 0.6))
    shuffled = b.sample(frac=1, random_state=1)
    assert bootstrap.intervals(shuffled) == bootstrap.intervals(b)
    assert bootstrap.differences(a, shuffled) == bootstrap.differences(a, b)
    there, back = bootstrap.differences(a, b), bootstrap.differences(b, a)
    for name in OF_LABELS:
        assert there[name].difference == pytest.approx(-back[name].difference)
        assert (there[name].low, there[name].high) == pytest.approx((-back[name].high, -back[name].low))
        assert there[name].p == pytest.approx(back[name].p)


@pytest.mark.parametrize(
    "rows",
    [
        [("1", "v", "a", "a")],
        [("1", "v", "a", "a"), ("2", "v", "b", "a")],
        [("1", "", "a", "a"), ("2", "", "b", "a")],
        [("1", "v", "a", "x"), ("2", "w", "b", "y")],
        [("1", "v", "a", "a"), ("2", "w", "b", "b")],
    ],
)
def test_the_smallest_test_parts_have_an_interval_within_0_and_1(rows: list[tuple[str, ...]]) -> None:
    table = pd.DataFrame(rows, columns=["image", "video", "label", "prediction"])
    observed = score(table)
    for (found, low, high), value in zip(bootstrap.intervals(table).values(), observed, strict=True):
        assert found == pytest.approx(value)
        assert 0 <= low <= value <= high <= 1
    for values in bootstrap.differences(table, table).values():
        assert values.difference == 0
        assert values.p == 1
        assert values.low <= 0 <= values.high


@pytest.mark.parametrize("videos", range(1, 12))
@pytest.mark.parametrize("right", [True, False])
def test_all_correct_or_all_wrong_is_not_certain(videos: int, right: bool) -> None:
    names = [str(number) for number in range(videos)]
    table = pd.DataFrame({"image": names, "video": names, "label": "a", "prediction": "a" if right else "b"})
    for _, low, high in bootstrap.intervals(table).values():
        if videos < bootstrap.MIN_VIDEOS:
            assert (low, high) == (0, 1)
        else:
            end = 0.025 ** (1 / videos)
            assert (low, high) == (pytest.approx((end, 1)) if right else pytest.approx((0, 1 - end)))
    for found in bootstrap.differences(table.assign(prediction="b"), table.assign(prediction="a")).values():
        assert -1 <= found.low <= found.difference <= found.high <= 1
        assert (found.p < bootstrap.ALPHA) == (found.low > 0)


def test_each_image_without_a_video_is_a_video_of_its_own() -> None:
    (table,) = draw(20, 4, np.random.default_rng(6), (0.5,))
    assert len(tally(table.assign(video=""), occurring_labels(table))) == len(table)


@pytest.mark.parametrize("change", [{"label": "other"}, {"video": "other"}, {"image": "other.jpg"}])
def test_different_test_parts_are_refused(change: dict[str, Any]) -> None:
    a, b = draw(10, 4, np.random.default_rng(7), (0.5, 0.5))
    with pytest.raises(ValueError, match="predictions of different images"):
        bootstrap.differences(a, b.assign(**change))


def test_repeats_are_averaged_and_the_interval_is_that_of_the_videos() -> None:
    repeats = draw(200, 4, np.random.default_rng(8), (0.5, 0.5, 0.5))
    pooled = bootstrap.intervals(repeats)["macro_f1"]
    single = [bootstrap.intervals(table)["macro_f1"] for table in repeats]
    assert pooled.value == pytest.approx(np.mean([score.value for score in single]))
    (base,) = draw(200, 4, np.random.default_rng(8), (0.3,))
    found = bootstrap.differences(base, repeats)["macro_f1"]
    assert found.difference == pytest.approx(pooled.value - bootstrap.intervals(base)["macro_f1"].value)
    assert bootstrap.differences(base, [repeats[0]] * 3)["macro_f1"] == pytest.approx(
        bootstrap.differences(base, repeats[0])["macro_f1"]
    )


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "repeats", "most"), [(2, 1, 0.1), (3, 2, 0.1)])
def test_groups_of_seeds_of_one_recipe_differ_significantly_in_about_5_of_100_cases(
    seeds: int, repeats: int, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds differ by 0.06 of accuracy, much more than the choice of videos: only an interval that knows them is right."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 500)
    generator = np.random.default_rng(9)
    trials, significant = 100, 0
    for _ in range(trials):
        accuracies = np.repeat(generator.normal(0.6, 0.06, 2 * seeds), repeats).clip(0.1, 0.9)
        tables = draw(60, 3, generator, tuple(accuracies))
        groups = [tables[start : start + repeats] for start in range(0, len(tables), repeats)]
        found = bootstrap.differences_of_seeds(groups[:seeds], groups[seeds:])["macro_f1"]
        significant += found.p < bootstrap.ALPHA
    assert significant / trials < most


def test_seeds_that_agree_add_nothing() -> None:
    base, other = draw(100, 4, np.random.default_rng(8), (0.3, 0.6))
    alike = bootstrap.differences_of_seeds([base, base], [other, other])["macro_f1"]
    assert alike == pytest.approx(bootstrap.differences(base, other)["macro_f1"])
