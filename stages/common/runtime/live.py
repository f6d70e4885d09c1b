"""Curves to watch while a model trains: DVCLive's files, which `dvc plots show dvclive/plots/metrics/*.tsv` draws."""

import os
from collections.abc import Callable
from typing import Any

from stages.common.runtime.paths import LIVE_CURVES


def live_curves() -> Callable[[dict[str, Any]], None]:
    """A function that takes one row per epoch and adds its floats to the curves; curves of an earlier run are removed.

    If the files can't be written, it prints one warning and training continues.
    """
    from dvclive.live import Live

    # A stage is repeated and killed: DVC Studio would be told of runs that never end.
    os.environ["DVC_STUDIO_OFFLINE"] = "true"
    curves: Live | None = None
    try:
        # No experiment: this runs in a stage. No dvc.yaml: dvc plots diff would warn about each revision without the files.
        curves = Live(str(LIVE_CURVES), save_dvc_exp=False, dvcyaml=None)
    except OSError as error:
        _warn(error)

    def show(row: dict[str, Any]) -> None:
        nonlocal curves
        if curves is None:
            return
        try:
            curves.step = row["epoch"]
            for name, value in row.items():
                if isinstance(value, float):
                    curves.log_metric(name, value)
            curves.make_summary()  # type: ignore[no-untyped-call]
        except OSError as error:
            curves = None
            _warn(error)

    return show


def _warn(error: OSError) -> None:
    reason = f"{error.filename or LIVE_CURVES}: {error.strerror or error}"
    print(f"warning: {reason}; no live curves, training continues")
