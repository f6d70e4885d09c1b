"""YAML as dvc reads it, without what makes it dangerous, and one line for what is wrong with its values."""

from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from stages.common.runtime import paths


def parse_yaml(text: str | bytes) -> Any:
    """Plain values of a YAML 1.2 text, read as dvc reads it; repeated keys and unknown tags are errors.

    Raises:
        ValueError: it is not YAML, or has an alias. Aliases can expand without bound.
    """
    try:
        if any(isinstance(event, AliasEvent) for event in YAML(typ="safe").parse(text)):
            raise ValueError("aliases (*name) are not allowed")
        return YAML(typ="safe").load(text)
    except (YAMLError, RecursionError) as error:
        if isinstance(error, MarkedYAMLError):
            error.note = None  # ruamel's advice on how to allow repeated keys
        raise ValueError(str(error)) from error


def first_error(error: ValidationError, schema: type[BaseModel]) -> str:
    """The error to show first: which key, what was received, what was expected.

    A misspelt key is also a missing one: the user wants to see the misspelt one.
    """
    return _line(min(error.errors(), key=lambda each: each["type"] != "extra_forbidden"), schema)


def _line(error: ErrorDetails, schema: type[BaseModel]) -> str:
    key = ".".join(map(str, error["loc"])) or "the file"
    if error["type"] == "extra_forbidden":
        known = ", ".join(_keys(error["loc"][:-1], schema))
        return f"{key} is {error['input']!r}; there is no such key; allowed here are {known}"
    if error["type"] == "missing":
        return f"{key} is missing; add it (git show HEAD:{paths.PARAMETERS} shows the committed value)"
    shown = repr(error["input"])
    received = shown if len(shown) <= 80 else shown[:77] + "..."
    return f"{key} is {received}; {error['msg'].replace('Input should', 'it should')}"


def _keys(location: tuple[int | str, ...], schema: Any) -> list[str]:
    for key in location:
        schema = schema.model_fields[str(key)].annotation
    return list(schema.model_fields)
