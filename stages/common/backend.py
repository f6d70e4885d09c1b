"""Keras, imported in one place: deterministic, and without the start-up chatter of the libraries below it."""

import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

# Read when TensorFlow is loaded. The same inputs give the same bits on one machine, also on a GPU.
os.environ.setdefault("TF_DETERMINISTIC_OPS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def _temporary() -> IO[bytes]:
    try:
        return tempfile.TemporaryFile()
    except OSError:  # a full disk should be reported by the stage, in terms of what it could not write
        return Path(os.devnull).open("r+b")


@contextmanager
def _held_back() -> Iterator[None]:
    """Hold back what is written to stderr, by C libraries too; show it if the block fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with _temporary() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


try:
    with _held_back():
        import keras

        DEVICES = keras.distribution.list_devices()
except (ImportError, ValueError) as error:
    sys.exit(
        f"error: KERAS_BACKEND is {os.environ.get('KERAS_BACKEND', 'not set')!r}: {error}; expected tensorflow or jax, installed"
    )

# Whatever the user's keras.json says: the networks are written for this.
keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")


def device() -> str:
    """What the models run on, for people: backend, kind and number of devices, processor."""
    kinds = sorted({name.split(":")[0].upper() for name in DEVICES})
    versions = f"Keras {keras.version()} on {keras.backend.backend()}"
    if kinds == ["CPU"]:
        return f"CPU ({_processor()}, {os.cpu_count()} cores; {versions})"
    return f"{len(DEVICES)} {' and '.join(kinds)} ({versions})"


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


__all__ = ["device", "keras"]
