"""Keras, imported in one place: deterministic, and without the start-up messages of the libraries below it."""

import gc
import logging
import os
import platform
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import FrameType

import numpy as np

from stages.common.runtime.errors import fail
from stages.common.runtime.workers import available_cores

# Read when TensorFlow is loaded. The same inputs give the same bits on one machine, also on a GPU.
os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
# One operation at a time, each on all cores: with two at once the gradient of the pretraining's first convolution, on large
# batches, differed in its last digits from run to run. No slower.
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


# Imported by Keras and TensorFlow, if they are installed, for wrappers, pictures, a converter and types that nothing here uses:
# a third of the time to start, or half. A backend only if it is known to be the other one.
OTHER_BACKEND = {"tensorflow": ["jax"], "jax": ["tensorflow"]}
UNUSED = ["matplotlib", "sklearn", *OTHER_BACKEND.get(os.environ.get("KERAS_BACKEND", ""), [])]


@contextmanager
def _not_installed(names: list[str]) -> Iterator[None]:
    """Let imports of packages fail that are not imported yet, as if they were not installed."""
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None is Python's own mark for it
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Imports leave next to no garbage; looking for it again and again takes a third of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Hold back what is written to stderr, by C libraries too; show it if the block fails. Ctrl-C ends the process."""
    sys.stderr.flush()
    stderr = os.dup(2)

    def stop(number: int, frame: FrameType | None) -> None:
        os.write(stderr, b"\nstopped by SIGINT: run again to resume\n")
        os._exit(128 + number)

    # Not by an exception, which libraries may catch while they are imported. Nothing is half written yet.
    # On a worker of a cluster it is loaded by another thread, which receives no signals and can't set their handlers.
    main_thread = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, stop) if main_thread else None
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            if main_thread:
                signal.signal(signal.SIGINT, before)
            os.dup2(stderr, 2)
            os.close(stderr)


def several_processes() -> bool:
    """Whether the environment asks for a training by several processes: Keras's own variables, or srun with several tasks."""
    asked = any(name.startswith("KERAS_DISTRIBUTION_") for name in os.environ)
    return asked or int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


try:
    with _stderr_held_back(), _not_installed(UNUSED), _no_garbage_collection():
        import keras

        if keras.backend.backend() not in ("tensorflow", "jax"):
            raise ValueError(f"the backend {keras.backend.backend()} of keras.json or KERAS_BACKEND can't train")
        # Keras keeps its first answer to whether TensorFlow is there: ask now, while it is hidden.
        keras.saving.serialize_keras_object(keras.initializers.Zeros())
        # Here, while stderr is held back. JAX must not list them before the processes of a training have joined.
        if not several_processes():
            keras.distribution.list_devices()
except (ImportError, ValueError) as error:
    fail(
        f"KERAS_BACKEND is {os.environ.get('KERAS_BACKEND', 'not set')!r}: {error}; expected tensorflow or jax, installed"
    )

except (OSError, SystemError, MemoryError) as error:
    fail(
        f"Keras can't be imported: {error}; free disk space, set TMPDIR to a folder that can be written, or raise the "
        "memory limit (ulimit -v)"
    )

# TensorFlow warns of calls with batches of several sizes, which are meant.
logging.getLogger("tensorflow").setLevel(logging.ERROR)

# The networks are written for these, whatever the user's keras.json says.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")


# Layers, or a function that calls some, from one tensor to another.
Layers = Callable[[keras.KerasTensor], keras.KerasTensor]


@contextmanager
def weights_not_drawn() -> Iterator[None]:
    """Layers built in this block get zeros where `VarianceScaling` or a subclass of it would draw: all weights are set next.

    JAX compiles the drawing for each shape. This is for one thread at a time.
    """
    kind = keras.initializers.VarianceScaling  # almost all kernels of convolutions and dense layers
    draw = kind.__call__
    kind.__call__ = lambda self, shape, dtype=None: keras.ops.convert_to_tensor(np.zeros(shape, np.float32), dtype)
    try:
        yield
    finally:
        kind.__call__ = draw


@cache
def devices() -> list[str]:
    """The devices of all processes, as KIND:NUMBER."""
    return list(keras.distribution.list_devices())


def device() -> str:
    """What the models run on, for people: kind and number of devices, processes, processor, Keras and its backend."""
    kinds = sorted({name.split(":")[0].upper() for name in devices()})
    versions = f"Keras {keras.version()} on {keras.backend.backend()}"
    shared = keras.distribution.distribution()
    processes = f" in {shared.num_processes} processes" if shared and shared.num_processes > 1 else ""
    if kinds == ["CPU"]:
        count = f"{len(devices())} " if len(devices()) > 1 else ""
        return f"{count}CPU{processes} ({_processor()}, {available_cores()} cores; {versions})"
    return f"{len(devices())} {' and '.join(kinds)}{processes} ({versions})"


def on_cpu() -> bool:
    """Whether the models run on a CPU alone."""
    return all(name.split(":")[0] == "cpu" for name in devices())


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


__all__ = ["Layers", "device", "devices", "keras", "on_cpu", "several_processes", "weights_not_drawn"]
