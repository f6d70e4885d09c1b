"""Training on several devices and in several processes, by JAX on the CPU: the numbers of one device, and who writes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.common.training import distribution
from tests.conftest import ROOT, Finished, set_parameters

COMMAND = ["python", "-m", "stages.train", "scratch"]
DVC = ["dvc", "repro", "-sf", "models/dvc.yaml:train-scratch"]


class Processes:
    """The processes of one training, each with so many virtual devices, which meet on this machine."""

    def __init__(self, folder: Path, commands: list[list[str]], devices: list[int], **variables: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.folder, self.processes = folder, []
        for number, (command, count) in enumerate(zip(commands, devices, strict=True)):
            environment = {
                **os.environ,
                "PYTHONPATH": str(folder if (folder / "stages").exists() else ROOT),
                "PYTHONUNBUFFERED": "1",
                "KERAS_BACKEND": "jax",
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(len(commands)),
                "KERAS_DISTRIBUTION_PROCESS_ID": str(number),
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={count}",
                **variables,
            }
            with (folder / f"log{number}.txt").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )

    def log(self, number: int) -> str:
        return (self.folder / f"log{number}.txt").read_text(encoding="utf-8")

    def wait_for(self, text: str) -> None:
        """Wait until process 0 has printed `text`."""
        end = time.monotonic() + 240
        while text not in self.log(0):
            assert time.monotonic() < end, self.log(0)
            assert self.processes[0].poll() is None, self.log(0)
            time.sleep(0.02)

    def wait(self) -> list[int]:
        """The exit codes; nobody is left waiting."""
        return [process.wait(timeout=240) for process in self.processes]


# Trains without and with all devices, and says what each epoch had.
SCRIPT = """
import json
from pathlib import Path
import jax, numpy as np, pandas as pd
from stages.common.dataset import chunks
from stages.common.networks.scratch import encoder
from stages.common.networks.serialization import save
from stages.common.pretraining.pretrainer import pretrain
from stages.common.recipes import pretrained
from stages.common.runtime import paths
from stages.common.runtime.backend import keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.parameters import load
from stages.common.training import distribution
from stages.common.training.recipe import labelled_parts
from stages.common.training.trainer import Trainer, logits_of

values, split, rows = load(), pd.read_csv(paths.SPLIT, keep_default_na=False), chunks.Rows(paths.RESIZED, "pixels")
names = list(rows.places)
backbone = encoder(32, 1, [4])
save(backbone, paths.backbone("backbone"), [])
maps = backbone.predict_on_batch(rows.read(names)).astype(np.float16)
chunks.write(paths.features("backbone") / "00000.h5", names, {"maps": maps})
for devices in (1, 4):
    keras.utils.clear_session()
    if devices > 1:
        distribution.share_out()
    folder = Path(f"checkpoints{devices}")
    folder.mkdir()
    trainer = Trainer("train-backbone", folder)
    trained = pretrained.train("backbone", values.backbone, 1, split, trainer)
    _, done = pretrain(rows, names, values.selfsupervised, values.pretrain, 1, "pretrain", folder)
    found = {"epochs": trainer.epochs + done.epochs}
    found["logits"] = logits_of(trained.model, trained.rows, labelled_parts(split, rows)[2], 12).tolist()
    print("found", json.dumps(found))
model = distribution.gathered(trained.model)
state = [variable.value for variable in model.trainable_variables], [each.value for each in model.non_trainable_variables]
call = jax.jit(lambda state, pixels: model.stateless_call(*state, pixels, training=False)[0])
print("compiled", call.lower(state, rows.read(names[:12])).compile().as_text())
"""


@pytest.fixture
def ready(workspace: Path, coloured_split: "object") -> Path:
    """Small pictures, of which 27 train, in batches of 12, 12 and 3, and 11 validate."""
    split = coloured_split.copy()  # type: ignore[attr-defined]
    split["part"] = ["train"] * 27 + ["validation"] * 11 + ["test"] * 10
    split.to_csv(paths.SPLIT, index=False)
    changes = {
        "backbone.head": "conv",
        "backbone.batch_size": 12,
        "backbone.epochs": 1,
        "backbone.patience": 0,
        "backbone.fine_tune_epochs": 1,
        "backbone.refit": False,
        "pretrain.batch_size": 18,
        "selfsupervised.filters": [4],
        "selfsupervised.pool": 1,
    }
    set_parameters(workspace / "params.yaml", changes)
    return workspace


@pytest.mark.slow
def test_all_devices_of_a_process_are_used_and_have_the_numbers_of_one(ready: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
    }
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ready, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    one, four = (json.loads(line[6:]) for line in ended.stdout.splitlines() if line.startswith("found "))
    assert [row.pop("phase", "pretraining") for row in one["epochs"]] == ["head", "fine-tuning", *["pretraining"] * 2]
    for row, other in zip(one["epochs"], four["epochs"], strict=True):
        assert {key: other[key] for key in row} == pytest.approx(row, rel=1e-5, abs=1e-6)
    np.testing.assert_allclose(one["logits"], four["logits"], rtol=1e-4, atol=1e-5)
    assert one["logits"] != four["logits"]  # sums in another order
    # Each device computes 3 of 12 images.
    compiled = ended.stdout.split("compiled ")[1]
    assert "f32[3,16,16,4]" in compiled
    assert "f32[12,16,16,4]" not in compiled


@pytest.mark.slow
def test_two_processes_with_dvc_killed_and_resumed(finished: Finished, tmp_path: Path) -> None:
    clone = finished.copy(tmp_path / "clone")
    clone.set(scratch__epochs=4, scratch__filters=[4], scratch__batch_size=16)
    clone.run("dvc", "repro", "chunked-resize")
    model, curves = clone.path / paths.model_file("scratch"), clone.path / paths.curves("scratch")

    # Both by hand, and dvc is told.
    both = Processes(clone.path, [COMMAND, COMMAND], [1, 1])
    assert both.wait() == [0, 0], both.log(0) + both.log(1)
    clone.run("dvc", "commit", "-f", "models/dvc.yaml:train-scratch")
    assert "up to date" in clone.run("dvc", "status", "models/dvc.yaml:train-scratch")
    expected = model.read_bytes(), curves.read_bytes()
    assert "2 CPU in 2 processes" in clone.json("models/scratch/timing/train.json")["device"]
    assert "train-scratch" not in both.log(1)

    # dvc starts process 0; process 1 is killed.
    model.unlink()
    both = Processes(clone.path, [DVC, COMMAND], [1, 1])
    both.wait_for("epoch 2 ")
    both.processes[1].send_signal(signal.SIGKILL)
    assert both.wait()[0] != 0
    assert "train-scratch: another process has ended" in both.log(0)
    assert "Traceback" not in both.log(0)
    assert not model.exists()
    # Compiled anew: that must not make a difference either.
    both = Processes(clone.path, [DVC, COMMAND], [1, 1], JAX_ENABLE_COMPILATION_CACHE="false")
    assert both.wait() == [0, 0], both.log(0) + both.log(1)
    assert "train-scratch: resuming: " in both.log(0)
    assert (model.read_bytes(), curves.read_bytes()) == expected
    assert "up to date" in clone.run("dvc", "status", "models/dvc.yaml:train-scratch")


@pytest.mark.slow
def test_processes_that_do_not_fit_together_end_with_one_line(ready: Path) -> None:
    for commands, devices, expected in (
        ([COMMAND] * 2, [2, 1], "the processes have 2, 1 devices; expected as many in each"),
        (
            [COMMAND, [*COMMAND[:-1], "vgg16"]],
            [1, 1],
            "process 1 does not have the stage, code, parameters, data",
        ),
    ):
        both = Processes(ready, commands, devices)
        assert both.wait() == [1, 1]
        assert expected in both.log(0) + both.log(1)
        for number in (0, 1):
            last = both.log(number).splitlines()[-1]
            assert last.startswith("error: ")
            # The other one may have ended first.
            assert expected in last or "another process has ended" in last
            assert "Traceback" not in both.log(number)


@pytest.mark.parametrize(
    "message",
    [
        "[external/gloo/transport/tcp/pair.cc] Connection closed by peer",
        "Unable to initialize backend 'cpu': INTERNAL\n:UNKNOWN:Error received from peer {grpc_status:14}",
    ],
)
def test_an_error_because_another_process_has_ended_says_so(monkeypatch: pytest.MonkeyPatch, message: str) -> None:
    monkeypatch.setattr(distribution, "_join", lambda: None)
    monkeypatch.setattr("atexit.register", lambda *arguments: None)
    expected = (
        "^train-scratch: another process has ended [^\n]*; see what it says, and run all of them again to resume$"
    )
    with pytest.raises(UserError, match=expected):  # noqa: SIM117
        with distribution._joined("train-scratch"):
            raise RuntimeError(message)


WAIT = """
import time
from stages.common.runtime import errors
from stages.common.training.distribution import distributed
def main():
    with distributed("train-scratch"):
        print("waits", flush=True)
        time.sleep(300)
errors.run(main)
"""


@pytest.mark.slow
def test_processes_can_be_stopped(ready: Path) -> None:
    """By a signal that JAX would take for itself, and without waiting for the others."""
    both = Processes(ready, [[sys.executable, "-c", WAIT]] * 2, [1, 1])
    both.wait_for("waits")
    for process in both.processes:
        process.terminate()
        assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert "stopped by SIGTERM: run again to resume" in both.log(0)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "coordinator_address should be defined"),
        (
            {"KERAS_DISTRIBUTION_JOB_ADDRESSES": "host", "KERAS_DISTRIBUTION_PROCESS_ID": "0"},
            "list index out of range; expected",
        ),
    ],
)
def test_an_environment_without_a_whole_address_is_one_line(
    ready: Path, variables: dict[str, str], expected: str
) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "KERAS_BACKEND": "jax",
        "KERAS_DISTRIBUTION_NUM_PROCESSES": "2",
        **variables,
    }
    ended = subprocess.run(COMMAND, cwd=ready, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"error: the processes did not find each other: {expected}")
    assert "(addresses as HOST:PORT)" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_port_in_use_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("KERAS_DISTRIBUTION_JOB_ADDRESSES", f"localhost:{port},other:1")
        distribution._check_port()  # of another process
        monkeypatch.setenv("KERAS_DISTRIBUTION_PROCESS_ID", "0")
        with pytest.raises(UserError, match=f"port {port} of KERAS_DISTRIBUTION_JOB_ADDRESSES can't be used: Address"):
            distribution._check_port()


@pytest.mark.parametrize("variable", ["KERAS_DISTRIBUTION_NUM_PROCESSES", "SLURM_STEP_NUM_TASKS"])
def test_several_processes_need_jax(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "2")
    monkeypatch.setattr("atexit.register", lambda *arguments: None)
    with pytest.raises(UserError, match="Keras runs on tensorflow; set KERAS_BACKEND=jax"):  # noqa: SIM117
        with distribution.distributed("train-scratch"):
            pass


@pytest.mark.usefixtures("workspace")
def test_tensorflow_with_several_devices_says_that_it_uses_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with distribution.distributed("train-scratch"):
        assert capsys.readouterr().out == ""
    monkeypatch.setattr(distribution, "devices", lambda: ["gpu:0", "gpu:1"])
    with distribution.distributed("train-scratch"):
        assert capsys.readouterr().out == (
            "train-scratch: one of 2 devices is used; all with KERAS_BACKEND=jax (docs/cluster.md)\n"
        )
    assert keras.distribution.distribution() is None
