"""What dvc costs over a pipeline that does nothing, and where the first `dvc repro` on the synthetic sample spends its time."""

import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from stages.common.runtime import paths
from stages.common.runtime.plain_yaml import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
REPETITIONS = 7

NOTES = """
*dvc's own time*: the same dvc.yaml files with commands that only make empty outputs, in a repository of its own; measured in
turn, medians of 7. *The first `dvc repro`*: seconds between dvc's lines that name the stages; importing is measured by itself, as
`python -c "import stages.NAME"` (median of 3); what dvc does between two stages counts for the first of them.
"""


def measure(_: Path, work: Path) -> pd.DataFrame:
    """The first run by stage, and runs with nothing to do against an empty pipeline; all on the synthetic sample."""
    clone = fresh_clone(work / "clone")
    stages, total = _first_run(clone)
    imports = {name: _import_seconds(clone, name) for name in stages}
    rows = [
        {"what": f"first repro: {name}", "seconds": seconds, "of which importing": imports[name]}
        for name, seconds in stages.items()
    ]
    rows.append({"what": "first repro, all", "seconds": total, "of which importing": sum(imports.values())})
    rows.append({"what": "the same, share of importing", "share": sum(imports.values()) / total, "target": "< 0.25"})
    empty = empty_copy(clone, work / "empty")
    for command in (["repro"], ["exp", "run", "-S", "model=backbone"]):
        for folder in (clone, empty):  # once, to fill the cache
            _run(folder, "dvc", *command)
        ours, theirs = _in_turn(clone, empty, command)
        name = " ".join(["dvc", *command])
        rows.append({"what": f"{name}, nothing to do", "seconds": ours, "empty pipeline": theirs})
        rows.append({"what": "the same, ratio", "share": ours / theirs, "target": "<= 1.1"})
    return pd.DataFrame(rows)


def _run(folder: Path, *command: str) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    return time.perf_counter() - start


def fresh_clone(path: Path) -> Path:
    """A clone without results."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(path)], check=True)
    for file in paths.PIPELINES:
        (path / file).with_name("dvc.lock").unlink(missing_ok=True)
    commit(path, "Nothing is done")
    return path


def commit(path: Path, message: str) -> None:
    who = ["-c", "user.name=Benchmark", "-c", "user.email=benchmark@example.org"]
    subprocess.run(["git", "add", "-A"], cwd=path, check=True)
    subprocess.run(["git", *who, "commit", "-qm", message, "--allow-empty"], cwd=path, check=True)


def _first_run(clone: Path) -> tuple[dict[str, float], float]:
    """Seconds of each stage, in order, and of all."""
    start = time.perf_counter()
    with subprocess.Popen(["dvc", "repro"], cwd=clone, stdout=subprocess.PIPE, text=True) as process:
        lines = ((line, time.perf_counter()) for line in process.stdout or ())
        began = [(match[1], now) for line, now in lines if (match := re.match(r"Running stage '(?:.*:)?(.*?)'", line))]
    end = time.perf_counter()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "dvc repro")
    moments = [moment for _, moment in began[1:]] + [end]
    stages = {name: moment - before for (name, before), moment in zip(began, moments, strict=True)}
    return {"dvc, before the first stage": began[0][1] - start} | stages, end - start


def _import_seconds(clone: Path, stage: str) -> float:
    module = stage.replace("-", "_")
    while module and not (clone / f"stages/{module}.py").exists():
        module = module.rpartition("_")[0]
    if not module:
        return 0.0
    return statistics.median(_run(clone, sys.executable, "-c", f"import stages.{module}") for _ in range(3))


def empty_copy(clone: Path, path: Path) -> Path:
    """A pipeline of the same shape: the same files, parameters and names, and commands that make empty outputs."""
    shutil.copytree(clone, path, ignore=shutil.ignore_patterns("cache", "tmp", "data", "models", "metrics", "plots"))
    for file in paths.PIPELINES:
        content: dict[str, Any] = parse_yaml((ROOT / file).read_text(encoding="utf-8"))
        for stage in content["stages"].values():
            stage["cmd"] = "; ".join(_made(out) for kind in ("outs", "metrics", "plots") for out in stage.get(kind, []))
        (path / file).parent.mkdir(exist_ok=True)
        (path / file).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        (path / file).with_name("dvc.lock").unlink(missing_ok=True)
    commit(path, "The same shape, and nothing in it")
    return path


def _made(out: str | dict[str, Any]) -> str:
    name = out if isinstance(out, str) else next(iter(out))
    parent = Path(name).parent
    content = "{}" if name.endswith(".json") else "epoch,validation_macro_f1,label,prediction,f1"
    if "." in Path(name).name:
        return f"mkdir -p {parent} && echo '{content}' > {name}"
    return f"mkdir -p {name} && touch {name}/nothing"


def _in_turn(ours: Path, theirs: Path, command: list[str]) -> tuple[float, float]:
    seconds: dict[Path, list[float]] = {ours: [], theirs: []}
    for _ in range(REPETITIONS):
        for folder, measured in seconds.items():
            measured.append(_run(folder, "dvc", *command))
    return statistics.median(seconds[ours]), statistics.median(seconds[theirs])
