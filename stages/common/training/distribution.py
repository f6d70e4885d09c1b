"""Training on several devices, of one process or several: Keras on JAX shares each batch out over them.

Every process reads whole batches and computes its rows, so that a batch has the size that params.yaml says. Process 0
alone writes.
"""

import atexit
import json
import os
import re
import socket
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from stages.common.runtime import resuming
from stages.common.runtime.backend import devices, keras, several_processes
from stages.common.runtime.errors import UserError, short
from stages.common.runtime.lock import lock

# The name of the layer whose output each process has whole.
GATHERED = "gathered"
VARIABLES = "KERAS_DISTRIBUTION_JOB_ADDRESSES, KERAS_DISTRIBUTION_NUM_PROCESSES and KERAS_DISTRIBUTION_PROCESS_ID"


class _Shared(keras.distribution.DataParallel):  # type: ignore[misc]
    """Weights are on each device, and rows of a batch are divided, also if their number is no multiple of the devices'."""

    def __init__(self) -> None:
        super().__init__(auto_shard_dataset=False)
        self.whole = keras.distribution.TensorLayout([], self.device_mesh)
        self.divided = keras.distribution.TensorLayout([self.batch_dim_name], self.device_mesh)
        self.data = self.whole

    def rows(self, arrays: tuple[np.ndarray, ...]) -> list[np.ndarray]:
        """The rows that this process gives to its devices: its own ones, or all if they can't be divided evenly."""
        count = len(arrays[0])
        even = count % self.num_model_replicas == 0
        self.data = self.divided if even else self.whole
        share = count // self.num_processes if even else count
        first = self.data_shard_id * share if even else 0
        return [array[first : first + share] for array in arrays]

    def get_data_layout(self, data_shape: Any) -> Any:
        return self.data

    def get_tensor_layout(self, path: str) -> Any:
        # Divides what arrives whole: an uneven batch, and the rows of predict_on_batch.
        return self.whole if path.endswith(f"{GATHERED}/output") else self.divided


@contextmanager
def distributed(stage: str) -> Iterator[None]:
    """Share the training in this block out over all devices of this process, and of the others that the environment names.

    Process 0 holds the lock of `stage`; the others print nothing but errors.

    Raises:
        UserError: the processes do not find each other, have unequal numbers of devices, or one has ended; Keras does not
            run on JAX; or see `lock`.
    """
    with _joined(stage) if several_processes() else nullcontext():
        share_out()
        if keras.backend.backend() == "tensorflow" and len(devices()) > 1:
            print(f"{stage}: one of {len(devices())} devices is used; all with KERAS_BACKEND=jax (docs/cluster.md)")
        if not is_first():
            sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
        _agree(stage, "started")  # at once, as a first exchange waits for 30 seconds only
        with lock(stage) if is_first() else nullcontext():
            yield


@contextmanager
def _joined(stage: str) -> Iterator[None]:
    """Wait until all processes are there. If the block fails in one of them, all end at once."""
    try:
        _join()
        yield
    except BaseException as error:
        status = error.code if isinstance(error, SystemExit) else 1
        atexit.register(_end, status if isinstance(status, int) else 1)
        if isinstance(error, Exception) and re.search("gloo|nccl|grpc", str(error), re.IGNORECASE):
            raise UserError(
                f"{stage}: another process has ended ({short(error)}); see what it says, and run all of them again to resume"
            ) from error
        raise


def _end(status: int) -> None:
    # JAX would wait at exit for the others, which wait for this one.
    sys.stdout.flush()
    os._exit(status)


def _join() -> None:
    if keras.backend.backend() != "jax":
        raise UserError(
            f"the environment asks for several processes, and Keras runs on {keras.backend.backend()}; set KERAS_BACKEND=jax, "
            f"or unset {VARIABLES} and start one task"
        )
    jax = import_module("jax")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM, and the process would continue
    keras.utils.set_random_seed(0)  # else Keras lets the processes agree on one, which fails with unequal devices
    try:
        _check_port()
        keras.distribution.initialize()
    except (ValueError, RuntimeError, IndexError) as error:
        raise UserError(
            f"the processes did not find each other: {short(error)}; expected {VARIABLES} (addresses as HOST:PORT) in each, "
            "or srun: docs/cluster.md"
        ) from error
    counts = Counter(each.process_index for each in jax.devices())
    if len(set(counts.values())) > 1:
        raise UserError(
            f"the processes have {', '.join(map(str, counts.values()))} devices; expected as many in each: set "
            "CUDA_VISIBLE_DEVICES"
        )


def _check_port() -> None:
    # JAX would end with a segmentation fault.
    addresses = os.environ.get("KERAS_DISTRIBUTION_JOB_ADDRESSES")
    if not addresses or os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID") != "0":
        return
    port = int(addresses.split(",")[0].rsplit(":", 1)[1])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UserError(
            f"port {port} of KERAS_DISTRIBUTION_JOB_ADDRESSES can't be used: {error.strerror}; end the earlier process 0, or "
            "choose another port"
        ) from error


def share_out() -> None:
    """Let Keras use all devices for models that are made from now on. `keras.utils.clear_session` forgets it."""
    if keras.backend.backend() == "jax" and len(devices()) > 1:
        keras.distribution.set_distribution(_Shared())


def is_first() -> bool:
    """Whether this process writes: it is process 0, or the only one."""
    shared = keras.distribution.distribution()
    return shared is None or shared.data_shard_id == 0


def own_rows(*arrays: np.ndarray) -> list[np.ndarray]:
    """What of a batch this process gives to `train_on_batch`; all arrays have a row for each image."""
    shared = keras.distribution.distribution()
    return shared.rows(arrays) if shared else list(arrays)


@lru_cache(maxsize=1)
def gathered(model: keras.Model) -> keras.Model:
    """`model` for `predict_on_batch`, which shares the rows out and returns the output for all of them."""
    if keras.distribution.distribution() is None:
        return model
    return keras.Model(model.input, keras.layers.Identity(name=GATHERED)(model.output))


@contextmanager
def resumable(stage: str, out: Path, *depends: Any) -> Iterator[Path]:
    """As `resuming.resumable`, which process 0 runs; the others read the folder.

    Raises:
        UserError: the processes do not have the same `depends` and checkpoints; or see `resuming.resumable`.
    """
    folder = resuming.folder_of(out, *depends)
    with resuming.resumable(out, *depends) if is_first() else nullcontext(folder):
        _agree(stage, "start")  # process 0 has removed what does not belong to this run
        found = sorted((path.name, path.stat().st_size) for path in folder.iterdir()) if folder.is_dir() else None
        _agree(stage, str(folder), found)
        yield folder
        _agree(stage, "end")  # the others have read what process 0 removes


def _agree(stage: str, *values: Any) -> None:
    """Wait until all processes are here, and compare the stage and `values`, as JSON has them."""
    shared = keras.distribution.distribution()
    if shared is None or shared.num_processes == 1:
        return
    gather = import_module("jax.experimental.multihost_utils").process_allgather
    digests = gather(np.uint32(zlib.crc32(json.dumps((stage, *values)).encode()))).tolist()
    if different := [number for number, digest in enumerate(digests) if digest != digests[0]]:
        raise UserError(
            f"{stage}: process {different[0]} does not have the stage, code, parameters, data, checkpoints or processor of "
            "process 0; expected one working tree, on storage that all share, and the same kind of machine"
        )
