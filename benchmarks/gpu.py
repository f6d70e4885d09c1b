"""How much of a GPU the pipeline uses, on images as many and as large as MPII's.

    KERAS_BACKEND=jax python -m benchmarks.gpu [--images 25000] [--models vgg16 xception]

Images, labels and weights are random: none of them changes the speed. Each model is measured at the images' own size and at its
`input_size`, in float32 (which JAX may multiply as TF32) and in bfloat16, by the pipeline's own functions, beside what the card
itself can do: a product of matrices, and the backbone alone, as the stage runs it, on images that it has in its memory.
Needs 5 GB in the temporary folder ($TMPDIR). Without a GPU everything is small: a dry run.
"""

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd

from stages import features, train
from stages.common import chunks, fitting, networks, parameters, problem
from stages.common.backend import device, keras
from stages.common.batches import Batches, Part, Shuffle
from stages.common.parameters import Pretrained
from stages.common.saving import load, save

try:
    import jax
    import jax.numpy as jnp
except ImportError:
    sys.exit(
        "error: JAX is not installed; pip install -r requirements-test.txt (with a GPU: pip install 'jax[cuda13]')"
    )

LEAST = 32  # images: four a file, so that there are files to count between the first and the last
LABELS = 20
EPOCHS = 30  # of the head
CELLS = 16  # of one colour, a side of an image
REPEATS = 5
EXAMPLES = 8  # images that the random weights are fitted to


class Scale(NamedTuple):
    """How large everything is.

    `side` of an image in pixels; `matrix`, its rows and columns; `batches`, sizes that are tried; `calls` that are timed as
    one, so that starting them costs nothing; `tuned`, images to fine-tune on.
    """

    side: int
    matrix: int
    batches: tuple[int, ...]
    calls: int
    tuned: int


def draw(folder: Path, images: int, side: int, chunk: int) -> list[str]:
    """Write random uint8 images, (side, side, 3), to chunk files of `chunk` each, and return their names."""
    generator = np.random.default_rng(0)
    cells = np.arange(side) * CELLS // side
    names = [f"{number:06d}.jpg" for number in range(images)]
    for start in range(0, images, chunk):
        part = names[start : start + chunk]
        colours = generator.integers(0, 256, (len(part), CELLS, CELLS, 3), np.uint8)
        chunks.write(folder / f"{start:06d}.h5", part, {"pixels": colours[:, cells][:, :, cells]})
    return names


def seconds_of(work: Callable[[], jax.Array], calls: int) -> float:
    """Seconds that one call of `work` keeps the device busy: the median of some rows of `calls`, after one that compiles."""
    work().block_until_ready()
    seen = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        for _ in range(calls):
            last = work()
        last.block_until_ready()
        seen.append((time.perf_counter() - start) / calls)
    return median(seen)


def matrix_rate(side: int, calls: int) -> float:
    """FLOP/s of the product of two square bfloat16 matrices."""
    left, right = (jax.random.normal(jax.random.key(seed), (side, side), jnp.bfloat16) for seed in (0, 1))
    multiply = jax.jit(jnp.matmul)
    return 2 * side**3 / seconds_of(lambda: multiply(left, right), calls)


def flop(model: keras.Model) -> int:
    """FLOP an image of a backbone's convolutions.

    Counted here: of what is compiled for a GPU, XLA's own count leaves out what it hands to cuDNN and cuBLAS.
    """
    return sum(
        2 * math.prod(layer.output.shape[1:3]) * math.prod(weight.shape)
        for layer in model.layers
        for weight in layer.weights
        if len(weight.shape) == 4
    )


def forward(model: keras.Model, pixels: np.ndarray, calls: int) -> float:
    """Images/s of `model` alone on uint8 images, (n, side, side, 3), that are on the device."""
    state = [
        [variable.value for variable in part] for part in (model.trainable_variables, model.non_trainable_variables)
    ]
    on_device = jnp.asarray(pixels)
    call = jax.jit(lambda state, images: model.stateless_call(*state, images, training=False)[0])
    return len(pixels) / seconds_of(lambda: call(state, on_device), calls)


def best_forward(model: keras.Model, scale: Scale) -> tuple[float, int]:
    """What `forward` says with the fastest of the batches that fit into the device's memory, and its size."""
    seen: list[tuple[float, int]] = []
    generator = np.random.default_rng(0)
    for batch in scale.batches:
        pixels = generator.integers(0, 256, (batch, *model.input.shape[1:]), np.uint8)
        try:
            seen.append((forward(model, pixels, scale.calls), batch))
        except RuntimeError as error:
            if not seen or "RESOURCE_EXHAUSTED" not in str(error):
                raise
            break
    print("forward alone: " + ", ".join(f"{rate:,.0f} images/s by {batch}" for rate, batch in seen), file=sys.stderr)
    return max(seen)


def extraction(model: keras.Model, source: Path, folder: Path) -> tuple[float, float]:
    """Seconds of features.extract from `source` to `folder`, three chunk files or more; and its images/s without compiling.

    The latter are counted from the first file to the last but one: the last may be shorter, and be compiled for anew.
    """
    start = time.perf_counter()
    features.extract(model, source, folder, "pooled", "features")
    seconds = time.perf_counter() - start
    written = chunks.paths(folder)
    images = sum(len(chunks.names(path)) for path in written[1:-1])
    return seconds, images / (written[-2].stat().st_mtime - written[0].stat().st_mtime)


def head_seconds(section: Pretrained, split: pd.DataFrame, folder: Path, done: Path) -> float:
    """Seconds of train.train_pretrained, all `EPOCHS` of a head alone, on the features in `folder`."""
    change = {"head": "softmax", "epochs": EPOCHS, "patience": EPOCHS, "fine_tune_epochs": 0, "refit": False}
    start = time.perf_counter()
    train.train_pretrained(section.model_copy(update=change), 1, split, folder, fitting.Log("head"), done)
    return time.perf_counter() - start


def tuning_rate(section: Pretrained, part: Part, source: Path, folder: Path, done: Path) -> float:
    """Images/s of fitting.fit on the images of `source`, in its second epoch: nothing is compiled any more."""
    backbone, _ = load(folder / features.BACKBONE)
    networks.unfreeze(backbone, section.fine_tune_layers)
    pooled = chunks.Rows(folder, "pooled").read(part.names)
    head = networks.head("softmax", LABELS, section.dropout, section.l2 / (2 * len(pooled)), [pooled])
    pool = keras.layers.GlobalAveragePooling2D(dtype="float32", name="pool")
    model = keras.Model(backbone.input, head(pool(backbone.output)))
    phase = fitting.Phase(
        name="fine-tuning",
        epochs=2,
        patience=2,
        rate=section.fine_tune_learning_rate,
        batch_size=section.batch_size,
        imbalance=section.imbalance,
        seed=1,
        augment=True,
    )
    epoch, seen = fitting._epoch, []

    def timed(*arguments: Any) -> dict[str, Any]:
        start = time.perf_counter()
        row = epoch(*arguments)
        seen.append(time.perf_counter() - start)
        return row

    with patch.object(fitting, "_epoch", timed):
        fitting.fit(model, chunks.Rows(source, "pixels"), (part, None), phase, fitting.Log("fine-tuning"), done)
    return len(part.names) / seen[-1]


def reading_rate(source: Path) -> float:
    """Images/s of reading all chunk files of `source`, one after the other."""
    start = time.perf_counter()
    images = sum(len(chunks.read(path, "pixels")[1]) for path in chunks.paths(source))
    return images / (time.perf_counter() - start)


def batches_rate(source: Path, part: Part, batch_size: int) -> float:
    """Images/s of making the batches of one epoch of fine-tuning: read row by row, augmented."""
    batches = Batches(chunks.Rows(source, "pixels"), part, LABELS, batch_size, Shuffle(1, 0, augment=True))
    start = time.perf_counter()
    for index in range(len(batches)):
        batches[index]
    return len(part.names) / (time.perf_counter() - start)


def drawn_split(names: list[str]) -> pd.DataFrame:
    """The table that the stage split writes, with random labels and parts of params.yaml's default sizes."""
    generator = np.random.default_rng(0)
    parts = generator.choice(["train", "validation", "test"], len(names), p=[0.7, 0.15, 0.15])
    labels = [f"{label:02d}" for label in generator.integers(0, LABELS, len(names))]
    return pd.DataFrame({"image": names, "part": parts, "label": labels, "video": ""})


def first(split: pd.DataFrame, images: int) -> Part:
    """The first images of a drawn split, with the numbers of their labels."""
    return Part(list(split["image"][:images]), split["label"][:images].astype(int).to_numpy())


def markdown(lines: list[dict[str, str]]) -> str:
    """A table whose columns are the keys of the first line."""
    rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(line.values()) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def header(scale: Scale, images: int, chunk: int) -> str:
    """What was measured, when and on what."""
    dry = "CPU: a dry run. " if jax.default_backend() == "cpu" else ""
    try:
        git = ["git", "describe", "--always", "--dirty", "--exclude=*"]
        commit = subprocess.run(git, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
    except OSError:
        commit = ""
    kind, platform_version = jax.devices()[0].device_kind, " ".join(jax.devices()[0].client.platform_version.split())
    return (
        f"{dry}{time.strftime('%-d %B %Y')}, commit {commit or 'not known'}.\n"
        f"{kind}, {device()}, {os.cpu_count()} cores; JAX {jax.__version__} ({platform_version}), "
        f"NumPy {np.__version__}, Python {platform.python_version()}.\n"
        f"{images:,} images of {scale.side}x{scale.side} in files of {chunk}, random weights."
    )


def measure(
    name: str, section: Pretrained, scale: Scale, source: Path, split: pd.DataFrame, matrix: float, reading: float
) -> list[dict[str, str]]:
    """The lines of one model: two input sizes, two precisions. `matrix` in FLOP/s, `reading` in images/s."""
    part = first(split, scale.tuned)
    examples = chunks.Rows(source, "pixels").read(part.names[:EXAMPLES])
    lines: list[dict[str, str]] = []
    head = 0.0
    for input_size in dict.fromkeys((scale.side, section.input_size)):
        for precision in ("float32", "bfloat16"):
            # Names of their own: `chunks` keeps files open by their paths.
            with tempfile.TemporaryDirectory(dir=source.parent, prefix=f"{name}-{input_size}-{precision}-") as work:
                folder = Path(work)
                keras.backend.clear_session()
                model = networks.backbone(name, scale.side, input_size, "random", examples, precision)
                rate, batch = best_forward(networks.folded(model), scale)
                speed = rate * flop(model)
                seconds, extracted = extraction(model, source, folder)
                save(model, folder / features.BACKBONE, [])
                # Once a model: neither the input's size nor the precision changes what the head sees.
                head = head or head_seconds(section, split, folder, folder)
                tuned = tuning_rate(section, part, source, folder, folder)
            lines.append(
                {
                    "model": name,
                    "input": str(input_size),
                    "precision": precision,
                    "forward alone, images/s (batch)": f"{rate:,.0f} ({batch})",
                    "TFLOP/s": f"{speed / 1e12:.3g}",
                    "of the matrix rate": f"{speed / matrix:.0%}",
                    "reading / forward": f"{reading / rate:.2g}",
                    "features, images/s": f"{extracted:,.0f}",
                    "of forward": f"{extracted / rate:.0%}",
                    "features, s": f"{seconds:.1f}",
                    f"{EPOCHS} epochs of head, s": f"{head:.1f}",
                    "both, s": f"{seconds + head:.1f}",
                    "fine-tuning, images/s": f"{tuned:,.0f}",
                }
            )
            print(markdown(lines).splitlines()[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=25_000, metavar="N")
    parser.add_argument("--models", nargs="+", choices=list(networks.BACKBONES), default=["vgg16", "xception"])
    arguments = parser.parse_args()
    if keras.backend.backend() != "jax":
        raise problem.Problem(
            f"this measures by JAX, but Keras runs on {keras.backend.backend()}; run KERAS_BACKEND=jax python -m benchmarks.gpu"
        )
    if arguments.images < LEAST:
        raise problem.Problem(f"--images is {arguments.images}; expected {LEAST} or more")
    values = parameters.load()
    sections: dict[str, Pretrained] = {name: getattr(values, name) for name in arguments.models}
    scale = Scale(values.resize.size, 8192, (32, 64, 128, 256, 512), 10, 4096)
    if jax.default_backend() == "cpu":
        scale = Scale(72, 512, (2, 4), 1, 16)
        sections = {name: section.model_copy(update={"input_size": 96}) for name, section in sections.items()}
    chunk = min(values.resize.chunk, arguments.images // 8)
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "resized"
        split = drawn_split(draw(source, arguments.images, scale.side, chunk))
        matrix, reading = matrix_rate(scale.matrix, scale.calls), reading_rate(source)
        lines: list[dict[str, str]] = []
        with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
            for name, section in sections.items():
                lines += measure(name, section, scale, source, split, matrix, reading)
        batches = batches_rate(source, first(split, scale.tuned), sections[arguments.models[0]].batch_size)
    print(header(scale, arguments.images, chunk))
    print(
        f"Matrix rate, bfloat16, {scale.matrix}^3: {matrix / 1e12:.3g} TFLOP/s. "
        f"Reading the files, just written, alone: {reading:,.0f} images/s; row by row and augmented, for fine-tuning: "
        f"{batches:,.0f} images/s.\n\n{markdown(lines)}"
    )


if __name__ == "__main__":
    problem.run(main)
