"""params.yaml as typed, frozen values, checked whole before any work."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from stages.common.problem import Problem

FILE = Path("params.yaml")
SAMPLE = "data/raw/sample"
MPII = "data/raw/mpii"
XCEPTION_LEAST = 71  # its layers without padding use up the rest

Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f]+$")]
Url = Annotated[str, Field(pattern=r"^https?://[^/]+/.*[^/]$")]
Imbalance = Literal["none", "class_weight", "focal", "logit_adjustment"]


class Section(BaseModel):
    """A mapping of params.yaml: no other keys, no conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Sample(Section):
    images: Annotated[int, Field(ge=160, le=100_000)]


class Mpii(Section):
    images_url: Url
    images_md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    annotations_url: Url


class Split(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    group: Literal["video", "image"]
    validation: Annotated[float, Field(ge=0.01, le=0.45)]
    test: Annotated[float, Field(ge=0.01, le=0.45)]


class Resize(Section):
    size: Annotated[int, Field(ge=32, le=1024)]
    chunk: Annotated[int, Field(ge=1, le=10_000)]
    max_bad: Annotated[float, Field(ge=0, le=1)]


class Training(Section):
    """What every model's section has."""

    dropout: Fraction
    batch_size: Annotated[int, Field(ge=1, le=4096)]
    learning_rate: Rate
    epochs: Count
    patience: Count
    imbalance: Imbalance


class Scratch(Training):
    filters: Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(min_length=1, max_length=8)]
    pool: Annotated[int, Field(ge=1, le=16)]
    augment: bool


class Pretrained(Training):
    input_size: Annotated[int, Field(ge=32, le=1024)]
    precision: Literal["float32", "bfloat16"]
    head: Literal["softmax", "conv"]
    l2: Annotated[float, Field(ge=0)]
    refit: bool
    fine_tune_epochs: Annotated[int, Field(ge=0)]
    fine_tune_layers: Count
    fine_tune_learning_rate: Rate


class Parameters(Section):
    """The whole of params.yaml. A field of type `Scratch` or `Pretrained` is a model that `model` can choose."""

    data: Text
    target: Literal["category", "activity"]
    model: Text
    weights: Text
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    sample: Sample
    mpii: Mpii
    split: Split
    resize: Resize
    scratch: Scratch
    vgg16: Pretrained
    xception: Pretrained
    mobilenetv2: Pretrained

    def has(self, folder: str) -> bool:
        """Whether `data` is `folder`, however the path is written."""
        return Path(self.data).resolve() == Path(folder).resolve()


MODELS = tuple(name for name, field in Parameters.model_fields.items() if field.annotation in (Scratch, Pretrained))


class _Loader(yaml.SafeLoader):
    """Plain YAML: floats as YAML 1.2 writes them, as dvc writes `1e-05`, and no aliases."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if repeated := [key for key in keys if keys.count(key) > 1]:
            raise yaml.MarkedYAMLError(problem=f"key {repeated[0]!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load(path: Path = FILE) -> Parameters:
    """Read and check params.yaml.

    Raises:
        Problem: the file can't be read, or a key is unknown, missing, of a wrong type or out of range.
    """
    try:
        values = yaml.load(path.read_bytes(), Loader=_Loader)  # noqa: S506, a subclass of SafeLoader
    except OSError as error:
        raise Problem(f"{path}: {error.strerror}; run from the repository's root") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Problem(f"{path}: not plain YAML: {error}") from error
    try:
        parameters = Parameters.model_validate(values)
    except ValidationError as error:
        raise Problem(f"{path}: {_line(_first(error.errors()))}") from error
    _check_across(parameters, path)
    return parameters


def _check_across(parameters: Parameters, path: Path) -> None:
    if parameters.model not in MODELS:
        raise Problem(f"{path}: model is {parameters.model!r}; allowed are {', '.join(MODELS)}")
    if parameters.xception.input_size < XCEPTION_LEAST:
        raise Problem(
            f"{path}: xception.input_size is {parameters.xception.input_size}; it should be {XCEPTION_LEAST} or more"
        )
    weights = parameters.weights
    if weights not in ("auto", "imagenet", "random") and not Path(weights).is_file():
        raise Problem(f"{path}: weights is {weights!r}; allowed are auto, imagenet, random or an existing weights file")
    data = Path(parameters.data).resolve()
    if any(data in Path(folder).resolve().parents for folder in (SAMPLE, MPII)):
        raise Problem(
            f"{path}: data is {parameters.data!r}, which holds the folders of several data sets; choose one, e.g. {SAMPLE}"
        )
    if not parameters.has(SAMPLE) and not parameters.has(MPII) and not Path(parameters.data).is_dir():
        raise Problem(
            f"{path}: data is {parameters.data!r}, which is no folder; allowed are {SAMPLE}, {MPII} or a folder that "
            "holds images/ and mpii_human_pose_v1_u12_1.mat"
        )


def _first(errors: list[ErrorDetails]) -> ErrorDetails:
    """A misspelt key is also a missing one: the misspelt one is what the user wants to see."""
    return min(errors, key=lambda error: error["type"] != "extra_forbidden")


def _line(error: ErrorDetails) -> str:
    key = ".".join(map(str, error["loc"])) or "the file"
    if error["type"] == "extra_forbidden":
        return (
            f"{key} is {error['input']!r}; no such key is known; allowed here are {', '.join(_keys(error['loc'][:-1]))}"
        )
    if error["type"] == "missing":
        return f"{key} is missing; add it (git show HEAD:params.yaml shows the committed value)"
    shown = repr(error["input"])
    received = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"{key} is {received}; {error['msg'].replace('Input should', 'it should')}"


def _keys(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Parameters
    for key in location:
        section = section.model_fields[str(key)].annotation
    return list(section.model_fields)


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested parameters by dotted keys."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found
