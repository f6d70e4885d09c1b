"""annotate and split, start-up included, on the annotation file of a folder; empty files take the place of its images."""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import yaml

from stages.common.annotations import matlab
from stages.common.images import layout
from stages.common.runtime import paths
from stages.common.runtime.plain_yaml import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"annotate": "<= 12 s on 24,987 rows", "split": "<= 3 s on 24,987 rows"}
REPETITIONS = 5

NOTES = """
Each stage as a process, medians of 5. Nearly all of annotate's time is the reading of MPII's annotation file: SciPy's loadmat
makes some millions of small objects.
"""


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """Seconds of each of the two stages as a process."""
    source = layout.annotation_file(photographs)
    listed = matlab.read(source)
    folder = work / "photographs"
    (folder / paths.MPII_IMAGES).mkdir(parents=True)
    shutil.copy(source, folder)
    for name in listed["image"]:
        (folder / paths.MPII_IMAGES / name).touch()
    target = "category" if listed.loc[listed["labelled"], "category"].nunique() > 1 else "activity"
    values = parse_yaml((ROOT / paths.PARAMETERS).read_text(encoding="utf-8"))
    values |= {"data": folder.name, "target": target}
    (work / paths.PARAMETERS).write_text(yaml.safe_dump(values), encoding="utf-8")
    rows = [
        {"what": f"{stage}, {len(listed)} rows", "seconds": _seconds(stage, work), "target": wanted}
        for stage, wanted in TARGETS.items()
    ]
    return pd.DataFrame(rows)


def _seconds(stage: str, work: Path) -> float:
    measured = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", f"stages.{stage}"],
            cwd=work,
            env={"PYTHONPATH": str(ROOT)},
            check=True,
            stdout=subprocess.DEVNULL,
        )
        measured.append(time.perf_counter() - start)
    return statistics.median(measured)
