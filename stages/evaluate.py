"""The chosen model's predictions of the test part to scores, by label and over all."""

from stages.common.evaluation.predictions import probabilities_of, read_predictions
from stages.common.evaluation.summary import headline, label_scores, summary
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.files import write_csv, write_json
from stages.common.runtime.lock import lock


@lock("evaluate")
def main() -> None:
    model = parameters.load().model
    predictions = read_predictions(paths.predictions(model))
    labels, _ = probabilities_of(predictions)
    scores = {"model": model, "test_images": len(predictions), **summary(predictions)}
    write_csv(paths.LABEL_SCORES, label_scores(predictions, labels))
    write_csv(paths.CONFUSION, predictions[["label", "prediction"]])
    write_json(paths.EVALUATION, scores)
    print(f"evaluate: {model}: {headline(scores)} on {len(predictions)} test images, with 95 % intervals")


if __name__ == "__main__":
    errors.run(main)
