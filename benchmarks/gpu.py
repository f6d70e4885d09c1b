"""How much of a GPU the pipeline uses, on images as many and as large as MPII's.

    KERAS_BACKEND=jax python -m benchmarks.gpu [--images 25000] [--models vgg16 xception backbone]

Images, labels and weights are random: none of them changes the speed. Each model is measured at the images' own size and at its
`input_size`, in float32 (which JAX may multiply as TF32) and in bfloat16, with the pipeline's own functions. What the card
itself can do is measured as well: a product of matrices, and the backbone alone, as the stage runs it, on images in its memory.
Needs 5 GB in the temporary folder ($TMPDIR). Without a GPU everything is small: a dry run.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

try:
    import jax
except ImportError:
    sys.exit(
        "error: JAX is not installed; pip install -r requirements-test.txt (with a GPU: pip install 'jax[cuda13]')"
    )
import numpy as np
import pandas as pd

from benchmarks import gpu_speeds
from benchmarks.gpu_speeds import LABELS
from stages.common.backbones.backbone import backbone
from stages.common.backbones.batch_norm import fold_batch_norm
from stages.common.backbones.catalog import find
from stages.common.backbones.network import Network
from stages.common.dataset import chunks
from stages.common.networks.serialization import save
from stages.common.runtime import errors, parameters, paths
from stages.common.runtime.backend import device, keras
from stages.common.runtime.errors import UserError
from stages.common.runtime.parameters import PRETRAINED, Backbone, Pretrained
from stages.common.training.batches import Part

MIN_IMAGES = 32  # four a file, so that there are files to count between the first and the last
CELLS = 16  # of one colour, a side of an image
EXAMPLES = 8  # images from which the random weights take their batch normalisation statistics


class Scale(NamedTuple):
    """How large everything is.

    Attributes:
        side: of an image, in pixels.
        matrix: its rows and columns.
        batches: sizes that are tried.
        calls: that are timed as one, so that starting them costs nothing.
        tuned: images to fine-tune on.
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


def drawn_split(names: list[str]) -> pd.DataFrame:
    """A table as the stage split writes it, with random labels and parts of params.yaml's default sizes."""
    generator = np.random.default_rng(0)
    parts = generator.choice(["train", "validation", "test"], len(names), p=[0.7, 0.15, 0.15])
    labels = [f"{label:02d}" for label in generator.integers(0, LABELS, len(names))]
    return pd.DataFrame({"image": names, "part": parts, "label": labels, "video": ""})


def first(split: pd.DataFrame, images: int) -> Part:
    """The first images of a drawn split, with the numbers of their labels."""
    return Part(list(split["image"][:images]), split["label"][:images].astype(int).to_numpy())


def network_of(name: str, section: Pretrained) -> Network:
    """The network of a model: its own, or that which model `backbone` names."""
    return find(section.name if isinstance(section, Backbone) else name)


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
    head, network = 0.0, network_of(name, section)
    for input_size in dict.fromkeys((scale.side, section.pixels or network.input_size)):
        for precision in ("float32", "bfloat16"):
            # A folder of its own for each: `chunks` keeps files open by their paths.
            with tempfile.TemporaryDirectory(dir=source.parent, prefix=f"{name}-{input_size}-{precision}-") as folder:
                work = Path(folder)
                keras.backend.clear_session()
                model = backbone(network, scale.side, input_size, "random", examples, precision)
                rate, batch = gpu_speeds.best_forward(fold_batch_norm(model), scale.batches, scale.calls)
                speed = rate * gpu_speeds.flop(model)
                seconds, extracted = gpu_speeds.extraction(model, source, work / paths.features(name))
                save(model, work / paths.backbone(name), [])
                # Once a model: neither the input's size nor the precision changes the shape of what the head takes. And the
                # recipe's paths are relative, so the same in the next folder.
                head = head or gpu_speeds.head_seconds(name, section, split, work)
                tuned = gpu_speeds.tuning_rate(name, section, part, source, work)
            lines.append(
                {
                    "model": network.name,
                    "input": str(input_size),
                    "precision": precision,
                    "forward alone, images/s (batch)": f"{rate:,.0f} ({batch})",
                    "TFLOP/s": f"{speed / 1e12:.3g}",
                    "of the matrix rate": f"{speed / matrix:.0%}",
                    "reading / forward": f"{reading / rate:.2g}",
                    "features, images/s": f"{extracted:,.0f}",
                    "of forward": f"{extracted / rate:.0%}",
                    "features, s": f"{seconds:.1f}",
                    "head, s": f"{head:.1f}",
                    "both, s": f"{seconds + head:.1f}",
                    "fine-tuning, images/s": f"{tuned:,.0f}",
                }
            )
            print(markdown(lines).splitlines()[-1], file=sys.stderr, flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=25_000, metavar="N")
    parser.add_argument("--models", nargs="+", choices=PRETRAINED, default=["vgg16", "xception", "backbone"])
    arguments = parser.parse_args()
    if keras.backend.backend() != "jax":
        raise UserError(
            f"this measures with JAX, but Keras runs on {keras.backend.backend()}; run KERAS_BACKEND=jax python -m benchmarks.gpu"
        )
    if arguments.images < MIN_IMAGES:
        raise UserError(f"--images is {arguments.images}; expected {MIN_IMAGES} or more")
    values = parameters.load()
    sections: dict[str, Pretrained] = {name: getattr(values, name) for name in arguments.models}
    scale = Scale(values.resize.size, 8192, (32, 64, 128, 256, 512), 10, 4096)
    if jax.default_backend() == "cpu":
        side = max(network_of(name, section).min_input for name, section in sections.items())
        scale = Scale(side, 512, (2,), 1, 16)
        sections = {name: section.model_copy(update={"input_size": side}) for name, section in sections.items()}
    chunk = min(values.resize.chunk, arguments.images // 8)
    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / "resized"
        split = drawn_split(draw(source, arguments.images, scale.side, chunk))
        matrix, reading = gpu_speeds.matrix_rate(scale.matrix, scale.calls), gpu_speeds.reading_rate(source)
        lines: list[dict[str, str]] = []
        with Path(os.devnull).open("w") as nothing, redirect_stdout(nothing):
            for name, section in sections.items():
                lines += measure(name, section, scale, source, split, matrix, reading)
        batches = gpu_speeds.batches_rate(source, first(split, scale.tuned), sections[arguments.models[0]].batch_size)
    print(header(scale, arguments.images, chunk))
    print(
        f"Matrix rate, bfloat16, {scale.matrix}^3: {matrix / 1e12:.3g} TFLOP/s. "
        f"Reading the files, just written, alone: {reading:,.0f} images/s; row by row and augmented, for fine-tuning: "
        f"{batches:,.0f} images/s.\n\n{markdown(lines)}"
    )


if __name__ == "__main__":
    errors.run(main)
