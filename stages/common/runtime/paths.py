"""The path of every file that stages and commands read or write, relative to the repository's root.

dvc.yaml, data/dvc.yaml and models/dvc.yaml name the same paths; a test compares them.
"""

from pathlib import Path

PARAMETERS = Path("params.yaml")
# The main line, the data sets, the models.
PIPELINES = ("dvc.yaml", "data/dvc.yaml", "models/dvc.yaml")
LOCKS = MAIN_LOCK, DATA_LOCK, MODELS_LOCK = tuple(Path(path).with_suffix(".lock") for path in PIPELINES)
PARAMETERS_CHECKED = Path("data/params.checked")

# Data sets, as the parameter `data` names them.
SAMPLE = "data/raw/sample"
MPII = "data/raw/mpii"
# MPII's layout: these two, directly in the data set's folder or anywhere below it.
MPII_ANNOTATIONS = "mpii_human_pose_v1_u12_1.mat"
MPII_IMAGES = "images"

ANNOTATIONS = Path("data/annotations.csv")
SPLIT = Path("data/split.csv")
IMAGE_LIST = Path("data/images.txt")
RESIZED = Path("data/resized")
# Images without labels, for the model selfsupervised.
UNLABELLED_LIST = Path("data/unlabelled.txt")
PRETRAINING_LIST = Path("data/pretraining.txt")
UNLABELLED = Path("data/unlabelled")
EXTRA = Path("data/extra")
ENCODER = Path("models/selfsupervised/encoder.keras")
PRETRAINING_CURVES = Path("plots/pretrain-selfsupervised.csv")

NEAR_COPIES = Path("data/near_copies.csv")
COPY_GROUPS = Path("data/groups.csv")

ANNOTATE_METRICS = Path("metrics/annotate.json")
SPLIT_METRICS = Path("metrics/split.json")
RESIZE_METRICS = Path("metrics/chunked-resize.json")
UNLABELLED_METRICS = Path("metrics/chunked-resize-unlabelled.json")
AUDIT_METRICS = Path("metrics/audit.json")
DATA_PAGE = Path("plots/data.html")

# The chosen model's, at the same path for each model: dvc compares by path.
EVALUATION = Path("metrics/evaluation.json")
TRAINING = Path("metrics/training.json")
LABEL_SCORES = Path("plots/labels.csv")
CROSS_VALIDATION = Path("metrics/cross_validation.json")
CONFUSION = Path("plots/confusion.csv")
SUSPICIOUS_LABELS = Path("plots/suspicious_labels.csv")
LEARNING_CURVES = Path("plots/learning_curves.csv")
REPORT = Path("plots/report.html")
SUSPICIOUS_PAGE = Path("plots/suspicious_labels.html")

LIVE_CURVES = Path("dvclive")

CITATION = Path("CITATION.bib")
# The name of a model's file, wherever its folder is.
MODEL_FILE = "model.keras"


def same(data: str, folder: str) -> bool:
    """Whether two spellings of a path, such as ./data/raw/sample, are of the same folder."""
    return Path(data).resolve() == Path(folder).resolve()


def lock(stage: str) -> Path:
    return Path(f"data/.{stage}.lock")


def features(model: str) -> Path:
    return Path(f"data/features/{model}")


def backbone(model: str) -> Path:
    return features(model) / "backbone.keras"


def model_file(model: str) -> Path:
    return Path(f"models/{model}") / MODEL_FILE


def predictions(model: str) -> Path:
    return Path(f"models/{model}/predictions.csv")


def heat_maps(model: str) -> Path:
    return Path(f"models/{model}/heat_maps.h5")


def out_of_fold(model: str) -> Path:
    return Path(f"models/{model}/out_of_fold.csv")


def suspicious_labels(model: str) -> Path:
    """Those of all labelled images, from cross-validation."""
    return Path(f"models/{model}/suspicious_labels.csv")


def validation(model: str) -> Path:
    return Path(f"models/{model}/validation.json")


def timing(model: str) -> Path:
    """The folder of the measurements of stages: those below, which depend on the machine."""
    return Path(f"models/{model}/timing")


def train_timing(model: str) -> Path:
    return timing(model) / "train.json"


def features_timing(model: str) -> Path:
    """Only pretrained models have it."""
    return timing(model) / "features.json"


def pretrain_timing(model: str) -> Path:
    """Only selfsupervised has it."""
    return timing(model) / "pretrain.json"


def curves(model: str) -> Path:
    return Path(f"plots/train-{model}.csv")
