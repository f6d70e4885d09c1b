"""What experiments were made of, and whether they differ in their seeds alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stages.common.runtime import paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.parameters import MODELS, flatten
from stages.common.runtime.plain_yaml import parse_yaml
from stages.common.runtime.revisions import Reader

SEEDS = ("seed", "split.seed")
SELF_SUPERVISED = "selfsupervised"


@dataclass(frozen=True)
class Experiment:
    """Its name, its parameters by dotted keys, figures of its results, and the md5 of its code and raw data by path."""

    name: str
    parameters: dict[str, Any]
    figures: dict[str, float] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def seeds(self) -> tuple[Any, ...]:
        return tuple(self.parameters.get(key) for key in SEEDS)

    @property
    def rest(self) -> dict[str, Any]:
        """Everything else that its results depend on: not the sections of other models and data sets."""
        others = _others(str(self.parameters.get("model")))
        others |= _other_data(str(self.parameters.get("data")))
        used = {key: value for key, value in self.parameters.items() if key.split(".")[0] not in others}
        return {key: value for key, value in used.items() if key not in SEEDS} | self.inputs


def read_experiment(name: str, read: Reader) -> Experiment:
    """What one revision was made of.

    Raises:
        UserError: it has no parameters or lock, or they are not as this project writes them.
    """
    try:
        parameters = flatten(parse_yaml(read(paths.PARAMETERS)))
        inputs = _inputs(read, str(parameters["model"]), str(parameters["data"]))
        return Experiment(name, parameters, inputs=inputs)
    except FileNotFoundError as error:
        raise UserError(f"{name} has no {error.filename}; expected an experiment of this project") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{name}: its parameters or locks are not as dvc repro writes them: {error!r}") from error


def refuse_other_differences(experiments: Sequence[Experiment]) -> None:
    """Raise a `UserError` unless the experiments differ in the parameter `seed`, and in nothing else."""
    first, *others = experiments
    seeds = [experiment.seeds for experiment in experiments]
    if twice := [each.name for each in experiments if seeds.count(each.seeds) > 1]:
        raise UserError(f"{' and '.join(twice)} have the same seed; expected a group that differs in seed alone")
    for other in others:
        ours, theirs = ({**each.rest, "split.seed": each.parameters.get("split.seed")} for each in (first, other))
        if different := sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)):
            shown = ", ".join(f"{key} ({ours.get(key)} and {theirs.get(key)})" for key in different[:5])
            raise UserError(
                f"{first.name} and {other.name} differ in {shown}; expected a group that differs in seed alone"
            )


def _others(model: str) -> set[str]:
    """The sections of other models, and what only selfsupervised uses."""
    return {*MODELS, "pretrain", "unlabelled"} - (
        {model, "pretrain", "unlabelled"} if model == SELF_SUPERVISED else {model}
    )


def _other_data(data: str) -> set[str]:
    """The data sets of stages that `data` is not; their sections and stages have the names of their folders."""
    return {Path(folder).name for folder in (paths.SAMPLE, paths.MPII) if not paths.same(data, folder)}


def _inputs(read: Reader, model: str, data: str) -> dict[str, str]:
    """The shortened md5 of each file that the model's stages depend on and that no stage makes: code and raw data."""
    deps: dict[str, str] = {}
    made: set[str] = set()
    # Lock entries of other models and data sets, left by earlier runs, and of cross-validate do not count.
    others = {"cross-validate", *(f"-{other}" for other in _others(model))}
    others |= _other_data(data)
    for lock in paths.LOCKS:
        try:
            stages = parse_yaml(read(lock))["stages"]
        except FileNotFoundError:  # photographs of one's own need no stage of data/dvc.yaml
            if lock == paths.MAIN_LOCK:
                raise
            continue
        for name, stage in stages.items():
            made |= {out["path"] for out in stage.get("outs", [])}
            if not name.endswith(tuple(others)):
                deps |= {dep["path"]: str(dep.get("md5"))[:7] for dep in stage.get("deps", [])}
    # A stage may depend on a folder of which others write the files.
    made |= {str(folder) for path in made for folder in Path(path).parents}
    return {path: md5 for path, md5 in deps.items() if path not in made}
