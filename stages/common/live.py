"""Curves to watch while a model trains: DVCLive's files, which `dvc plots show dvclive/plots/metrics/*.tsv` draws."""

from collections.abc import Callable
from typing import Any

FOLDER = "dvclive"


def live() -> Callable[[dict[str, Any]], None]:
    """What takes one row an epoch, as fitting's log has it, and shows it at once; what an earlier run showed is removed."""
    from dvclive.live import Live

    # No experiment: this runs in a stage. No plots in a dvc.yaml: dvc plots diff complains of every revision without the files.
    shown = Live(FOLDER, save_dvc_exp=False, dvcyaml=None)

    def show(row: dict[str, Any]) -> None:
        shown.step = row["epoch"]
        for name, value in row.items():
            if isinstance(value, float):
                shown.log_metric(name, value)
        shown.make_summary()  # type: ignore[no-untyped-call]

    return show
