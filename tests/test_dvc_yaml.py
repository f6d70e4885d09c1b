"""The dvc.yaml files say what the stages do: code, parameters, paths and order."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common.runtime import paths
from stages.common.runtime.parameters import MODELS, PRETRAINED, Pretrain, Resize
from tests.conftest import ROOT, TINY, Clone, make_clone
from tests.forks import Forks
from tests.test_hub import preset


def stages() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in paths.PIPELINES:
        found |= yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["stages"]
    return found


STAGES = stages()

# Writes which files of the project a process of a stage has loaded. Runs in its workers as they start.
RECORD = """
import atexit, json, os, pathlib, sys
def record():
    root = pathlib.Path(os.environ["DVC_ROOT"])
    files = [pathlib.Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)]
    loaded = sorted({str(f.relative_to(root)) for f in files if f.is_relative_to(root / "stages")})
    name = os.environ["DVC_STAGE"]
    pathlib.Path(os.environ["LOADED"], f"{name}.{os.getpid()}.json").write_text(json.dumps(loaded))
if "DVC_STAGE" in os.environ:
    atexit.register(record)
"""
# Runs a stage; its arguments are those of the stage after its name.
RUN = """
import os, sys
from importlib import import_module
from sitecustomize import record
os.environ["DVC_STAGE"], *sys.argv = sys.argv[1:]
import_module("stages.common.runtime.errors").run(import_module(sys.argv[0]).main)
record()
"""


def outputs(stage: dict[str, Any]) -> set[str]:
    listed = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return {out if isinstance(out, str) else next(iter(out)) for out in listed}


FIRST = ["params", "sample", "annotate", "split", "chunked-resize"]
LAST = ["audit", "evaluate", "explain", "report"]
OF_BACKBONE = ["features-backbone", "train-backbone", "infer-backbone"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, set[str]]:
    """The project's files that each stage loads, for the sample, scratch and a pretrained model."""
    folder = tmp_path_factory.mktemp("loaded")
    (folder / "hook").mkdir()
    (folder / "hook/sitecustomize.py").write_text(RECORD)
    clone = make_clone(folder / "clone")
    preset(clone.path / "preset", "vit")
    clone.set(cross_validation__folds=2, pretrain__epochs=1, scratch__epochs=1, selfsupervised__epochs=1)
    clone.set(backbone__epochs=1, backbone__refit=False)
    log = folder / "log.txt"
    # Of each kind that loads other code: a network of each source with files of its own, a head of each kind.
    rows = (
        ("scratch", "mobilenet", "softmax", [*FIRST, "train-scratch", "infer-scratch"]),
        (
            *("selfsupervised", "mobilenet", "softmax"),
            [
                *("chunked-resize-unlabelled", "pretrain-selfsupervised", "train-selfsupervised"),
                *("infer-selfsupervised", "cross-validate"),
            ],
        ),
        ("backbone", "efficientnet_lite0", "softmax", ["features-backbone"]),
        ("backbone", "mobilenet", "conv", OF_BACKBONE),
        ("backbone", "hub:preset", "softmax", [*OF_BACKBONE, "cross-validate", *LAST]),
    )
    with Forks(PYTHONPATH=str(folder / "hook"), DVC_ROOT=str(clone.path), LOADED=str(folder)) as forks:
        for model, name, head, stages in rows:
            size = "auto" if name.startswith("hub:") else TINY["backbone.input_size"]
            clone.set(model=model, backbone__name=name, backbone__head=head, backbone__input_size=size)
            for stage in stages:
                fork = forks.start(RUN, [stage, *STAGES[stage]["cmd"].split()[2:]], clone.path, log)
                assert fork.wait() == 0, log.read_text()
    found: dict[str, set[str]] = {}
    for path in folder.glob("*.json"):
        found.setdefault(path.name.split(".")[0], set()).update(json.loads(path.read_text()))
    return found


def code_files(deps: list[str]) -> Iterator[str]:
    """The Python files among `deps`, and those in its folders."""
    for dep in deps:
        if dep.startswith("stages/"):
            path = ROOT / dep
            files = path.glob("*.py") if path.is_dir() else [path]
            yield from (
                str(file.relative_to(ROOT)) for file in files if file.suffix == ".py" and file.name != "__init__.py"
            )


@pytest.mark.slow
def test_a_stage_lists_exactly_the_code_that_it_loads(loaded: dict[str, set[str]]) -> None:
    others = {f"{step}-{model}" for step in ("features", "train", "infer") for model in ("vgg16", "xception")}
    assert loaded.keys() == STAGES.keys() - others - {"mpii"}
    for name, files in loaded.items():
        needed = {file for file in files if not file.startswith("stages/common/runtime/")}
        needed = {file for file in needed if not file.endswith("__init__.py")}
        assert set(code_files(STAGES[name]["deps"])) == needed, name


@pytest.mark.parametrize(
    ("name", "template"), [("report", "page"), ("audit", "data"), ("cross-validate", "suspicious")]
)
def test_a_stage_lists_the_templates_that_it_fills_in(name: str, template: str) -> None:
    listed = {Path(dep).stem for dep in STAGES[name]["deps"] if dep.endswith(".html")}
    text = (ROOT / f"stages/common/report/{template}.html").read_text(encoding="utf-8")
    assert listed == {template, *re.findall(r'"(\w+)\.html"', text)}


@pytest.mark.parametrize("model", PRETRAINED)
@pytest.mark.parametrize("step", ["features", "train", "infer"])
def test_the_blocks_of_pretrained_models_differ_in_the_name_alone(step: str, model: str) -> None:
    expected = yaml.safe_load(yaml.safe_dump(STAGES[f"{step}-vgg16"]).replace("vgg16", model))
    if (step, model) == ("features", "backbone"):  # any network, by name
        expected["params"].append("backbone.name")
        files = [dep for dep in expected["deps"] if dep.startswith("stages/common/backbones/")]
        expected["deps"] = [dep for dep in expected["deps"] if dep not in files] + ["stages/common/backbones"]
    found = STAGES[f"{step}-{model}"]
    assert {key: sorted(value) if key in ("deps", "params") else value for key, value in found.items()} == {
        key: sorted(value) if key in ("deps", "params") else value for key, value in expected.items()
    }


def test_new_code_does_not_download_mpii_again() -> None:
    assert list(code_files(STAGES["mpii"]["deps"])) == []


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_stage_is_one_file_of_the_same_name(name: str) -> None:
    module = STAGES[name]["cmd"].split()[2]
    assert name.replace("-", "_").startswith(module.removeprefix("stages."))


def test_paths_are_those_of_the_code() -> None:
    named = {str(value) for name, value in vars(paths).items() if name.isupper()}
    for model in (*MODELS, "${model}"):
        of_model = (
            paths.features,
            paths.model_file,
            paths.predictions,
            paths.heat_maps,
            paths.out_of_fold,
            paths.suspicious_labels,
            paths.validation,
            paths.timing,
            paths.curves,
        )
        named |= {str(path(model)) for path in of_model}
        named |= {str(paths.timing(model) / f"{step}.json") for step in ("train", "features", "pretrain")}
    for name, stage in STAGES.items():
        used = outputs(stage) | {dep for dep in stage["deps"] if not dep.startswith("stages/")}
        assert used - {"${data}", "${pretrain.extra}"} <= named, name


def attributes(tree: ast.AST, name: str) -> set[str]:
    """What the code reads of the variable `name`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }


# What the properties of the parameters are made of.
# MPII's download depends on its addresses alone, whatever `data` was before.
READ_BY = {
    "uses_sample": {"data"},
    "uses_mpii": set(),
    "initial_weights": {"data", "weights"},
    "chosen": set(),
    "features": {"head"},
    "solved": {"head", "fine_tune_epochs"},
    "pixels": {"input_size"},
}


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"params"}))
def test_a_stage_lists_exactly_the_parameters_that_it_reads(name: str) -> None:
    stage = STAGES[name]
    _, _, module, *model = stage["cmd"].split()
    tree = ast.parse((ROOT / (module.replace(".", "/") + ".py")).read_text(encoding="utf-8"))
    attrs = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("values", "parameters.load()")
    }
    read = {key for attr in attrs for key in READ_BY.get(attr, {attr})}
    if "resize" in read:
        read = read - {"resize"} | {f"resize.{key}" for key in Resize.model_fields}
    if name in ("report", "cross-validate"):
        read |= {"${model}"}  # the chosen model's section, whole
    if name.startswith("train-"):
        read |= {*model}
    if name.startswith("chunked-resize"):  # only that of the images without labels reads it
        read = read - {"pretrain"} | ({"pretrain.extra"} if model else set())
    if name == "cross-validate":
        read -= {"pretrain"}  # it is in the model file
    if name == "pretrain-selfsupervised":
        read = read - {"pretrain"} | {f"pretrain.{key}" for key in Pretrain.model_fields if key != "extra"}
        read = read - {"selfsupervised"} | {f"selfsupervised.{key}" for key in attributes(tree, "section")}
    if name.startswith(("features-", "infer-")) and model[0] in PRETRAINED:  # scratch's is read for its type alone
        of_section = attributes(tree, "section")
        read |= {f"{model[0]}.{key}" for attr in of_section for key in READ_BY.get(attr, {attr})}
    if name == "features-backbone":  # the others have one network
        read |= {"backbone.name"}
    assert set(stage.get("params", [])) == read


def keys(values: Any) -> set[str]:
    """The keys of a mapping and of those in it."""
    return set(values) | {key for each in values.values() for key in keys(each)} if isinstance(values, dict) else set()


@pytest.mark.parametrize("name", sorted(STAGES))
def test_no_parameter_is_omitted_from_the_key_of_the_run_cache(name: str) -> None:
    """DVC omits `size` and `nfiles` at any depth, but not in a dotted name. What has `persist` is not in the run cache."""
    values = yaml.safe_load((ROOT / paths.PARAMETERS).read_text(encoding="utf-8"))
    stage = STAGES[name]
    if all(isinstance(out, dict) and next(iter(out.values())).get("persist") for out in stage.get("outs", [])):
        return
    for listed in stage.get("params", []):
        assert isinstance(listed, str)
        assert not keys(values.get(listed)) & {"size", "nfiles"}, listed


def waits(name: str) -> bool:
    """By paths without `${...}`: those exist whatever the parameters say."""
    deps = set(STAGES[name]["deps"])
    makers = {other for other, stage in STAGES.items() if other != name and outputs(stage) & deps}
    return "params" in makers or any(waits(maker) for maker in makers)


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"params"}))
def test_every_stage_waits_for_the_check_of_the_parameters(name: str) -> None:
    assert waits(name)


def test_every_output_is_ignored_by_git_or_small_enough_for_it(clone: Clone) -> None:
    for name, stage in STAGES.items():
        for out in stage.get("outs", []):
            path = out if isinstance(out, str) else next(iter(out))
            assert path in clone.run("git", "check-ignore", path), name
        for kind in ("metrics", "plots"):
            for out in stage.get(kind, []):
                ((path, options),) = out.items()
                assert options["cache"] is False
                assert Path(path).parent.name == kind


@pytest.mark.parametrize(
    "module", ["params", "sample", "mpii", "annotate", "split", "chunked_resize", "evaluate", "report"]
)
def test_stages_that_need_no_network_library_import_none(module: str) -> None:
    absent = ["tensorflow", "keras", "jax"] + ["sklearn"] * (module != "evaluate")
    code = f"import sys, stages.{module}; print([m for m in {absent} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_a_clone_that_converts_line_ends_has_the_same_bytes(clone: Clone) -> None:
    folder = clone.path.parent / "converted"
    clone.run("git", "clone", "-q", "-c", "core.autocrlf=true", ".", str(folder))
    for name in clone.run("git", "ls-files").splitlines():
        assert (folder / name).read_bytes() == (clone.path / name).read_bytes(), name
