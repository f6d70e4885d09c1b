"""annotate and split, start-up included, on the annotation file of a folder; its images are stood in for by empty files."""

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from stages import annotate
from stages.common import layout

ROOT = Path(__file__).resolve().parent.parent
TARGETS = {"annotate": "<= 12 s on 24,987 rows", "split": "<= 3 s on 24,987 rows"}
REPETITIONS = 5

NOTES = """
Each stage as a process, medians of 5. Reading MPII's annotation file is nearly all of annotate: SciPy's loadmat makes some
millions of small objects.
"""


def measure(photographs: Path, work: Path) -> pd.DataFrame:
    """Seconds of each of the two stages as a process."""
    source = layout.annotation_file(photographs)
    listed = annotate.read(source)
    folder = work / "photographs"
    (folder / "images").mkdir(parents=True)
    shutil.copy(source, folder)
    for name in listed["image"]:
        (folder / "images" / name).touch()
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    target = "category" if listed.loc[listed["labelled"], "category"].nunique() > 1 else "activity"
    text = text.replace("\ndata: data/raw/sample", "\ndata: photographs")
    (work / "params.yaml").write_text(text.replace("\ntarget: category", f"\ntarget: {target}"), encoding="utf-8")
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
