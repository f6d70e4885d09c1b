"""What dvc.yaml says of each stage is what the stage's code does."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

# Only check, write, report: they change no output.
PLUMBING = {"backend", "files", "live", "parameters", "problem", "progress", "resuming", "workers"}


def stages() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in ("dvc.yaml", "data/dvc.yaml", "models/dvc.yaml"):
        found |= yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))["stages"]
    return found


STAGES = stages()


def imported(module: str, seen: set[str]) -> set[str]:
    """The project's modules that `module` needs, itself included."""
    path = ROOT / (module.replace(".", "/") + ".py")
    if module in seen or not path.exists():
        return seen
    seen.add(module)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("stages"):
            for name in [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]:
                imported(name, seen)
    return seen


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_stage_depends_on_exactly_the_code_that_it_runs(name: str) -> None:
    stage = STAGES[name]
    module = stage["cmd"].split()[2]
    needed = {path.replace(".", "/") + ".py" for path in imported(module, set())}
    needed -= {f"stages/common/{plumbing}.py" for plumbing in PLUMBING}
    needed |= {path.replace(".py", ".html") for path in needed if (ROOT / path).with_suffix(".html").exists()}
    if name == "params":
        needed.add("stages/common/parameters.py")
    if name == "mpii":
        needed = set()  # its md5 is a parameter: new code must not download 12.9 GB again
    listed = {path for path in stage["deps"] if path.startswith("stages/")}
    assert listed == needed


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_stage_is_one_file_of_the_same_name(name: str) -> None:
    module = STAGES[name]["cmd"].split()[2]
    assert name.replace("-", "_").startswith(module.removeprefix("stages."))


def attributes(tree: ast.AST, name: str) -> set[str]:
    """What the code reads of the variable `name`."""
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
    }


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"params"}))
def test_a_stage_lists_exactly_the_parameters_that_it_reads(name: str) -> None:
    stage = STAGES[name]
    path = ROOT / (stage["cmd"].split()[2].replace(".", "/") + ".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    read = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("values", "parameters.load()")
    }
    if "has" in read:
        read = read - {"has"} | {"data"}
    if name == "report":
        read |= {"${model}"}  # the chosen model's section, whole
    if name.startswith("train-"):
        read |= {stage["cmd"].split()[3]}
    if name.startswith(("features-", "infer-")) and name != "infer-scratch":  # scratch's is read for its type alone
        read |= {f"{stage['cmd'].split()[3]}.{key}" for key in attributes(tree, "section")}
    assert set(stage.get("params", [])) == read


@pytest.mark.parametrize(
    "module", ["params", "sample", "mpii", "annotate", "split", "chunked_resize", "evaluate", "report"]
)
def test_stages_that_need_no_network_library_import_none(module: str) -> None:
    absent = ["tensorflow", "keras", "jax"] + ["sklearn"] * (module != "evaluate")
    code = f"import sys, stages.{module}; print([m for m in {absent} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


def test_no_tensorflow_in_the_code() -> None:
    for path in (ROOT / "stages").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in names if name.split(".")[0] in ("tensorflow", "jax", "torch")}, path


def test_common_imports_no_stage_and_stages_import_no_stage() -> None:
    names = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
    for path in (ROOT / "stages").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "stages":
                assert not names & {alias.name for alias in node.names}, path
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.removeprefix("stages.") not in names, path


def test_every_output_is_ignored_by_git_or_small_enough_for_it() -> None:
    for name, stage in STAGES.items():
        for out in stage.get("outs", []):
            path = out if isinstance(out, str) else next(iter(out))
            ignored = subprocess.run(["git", "check-ignore", "-q", path], cwd=ROOT, check=False).returncode == 0
            assert ignored, (name, path)
        for kind in ("metrics", "plots"):
            for out in stage.get(kind, []):
                ((path, options),) = out.items()
                assert options["cache"] is False
                assert Path(path).parent.name == kind


def outputs(stage: dict[str, Any]) -> set[str]:
    listed = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return {out if isinstance(out, str) else next(iter(out)) for out in listed}


def waits(name: str) -> bool:
    """By paths that hold no `${...}`: those are there whatever the parameters say."""
    deps = set(STAGES[name]["deps"])
    makers = {other for other, stage in STAGES.items() if other != name and outputs(stage) & deps}
    return "params" in makers or any(waits(maker) for maker in makers)


@pytest.mark.parametrize("name", sorted(set(STAGES) - {"params"}))
def test_every_stage_waits_for_the_check_of_the_parameters(name: str) -> None:
    assert waits(name)
