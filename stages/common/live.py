"""Curves to watch while a model trains: DVCLive's files, which `dvc plots show dvclive/plots/metrics/*.tsv` draws."""

import os
from collections.abc import Callable
from typing import Any

FOLDER = "dvclive"


def live() -> Callable[[dict[str, Any]], None]:
    """What takes one row an epoch, as fitting's log has it, and shows it at once; what an earlier run showed is removed.

    Where the files can't be written it says so once: training goes on.
    """
    from dvclive.live import Live

    # A stage is repeated and killed: DVC Studio would be told of runs that never end.
    os.environ["DVC_STUDIO_OFFLINE"] = "true"
    shown: Live | None = None
    try:
        # No experiment: this runs in a stage. No plots in a dvc.yaml: dvc plots diff complains of every revision without the files.
        shown = Live(FOLDER, save_dvc_exp=False, dvcyaml=None)
    except OSError as error:
        _say(error)

    def show(row: dict[str, Any]) -> None:
        nonlocal shown
        if shown is None:
            return
        try:
            shown.step = row["epoch"]
            for name, value in row.items():
                if isinstance(value, float):
                    shown.log_metric(name, value)
            shown.make_summary()  # type: ignore[no-untyped-call]
        except OSError as error:
            shown = None
            _say(error)

    return show


def _say(error: OSError) -> None:
    print(f"warning: {error.filename or FOLDER}: {error.strerror or error}; curves can't be watched, training goes on")
