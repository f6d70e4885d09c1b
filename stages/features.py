"""data/resized to data/features/MODEL: the output of a frozen backbone for each image, computed once for all heads.

One chunk file per chunk of images, with the features that the chosen head takes: pooled, (n, channels) float32, the mean over
height and width, or maps, (n, height, width, channels) float16. The backbone itself is beside them: train puts a head on it.
"""

import re
import time
from pathlib import Path

import numpy as np

from stages.common.backbones.backbone import backbone, inline
from stages.common.backbones.batch_norm import fold_batch_norm
from stages.common.backbones.network import FIXED, Network
from stages.common.dataset import chunks
from stages.common.networks.serialization import load, save
from stages.common.runtime import errors, jobs, parameters, paths
from stages.common.runtime.arguments import model_argument
from stages.common.runtime.backend import device, keras, on_cpu
from stages.common.runtime.errors import UserError
from stages.common.runtime.files import new_folder, write_json
from stages.common.runtime.lock import lock
from stages.common.runtime.parameters import PRETRAINED, Backbone, Pretrained
from stages.common.runtime.progress import progress
from stages.common.runtime.resuming import code, fingerprint, publish, resumable, unfinished

SECONDS = "seconds.txt"
# Small: on a CPU the tensors between the layers then stay in its caches, and a pass takes up to a third less time.
BATCH = 8 if on_cpu() else 32
EXAMPLES = 32

# The model that this process runs, by the backbone's file and the kind of features: a worker loads it once for all its chunks.
_running: dict[tuple[Path, str], keras.Model] = {}


def extract(model: keras.Model, file: Path, folder: Path, out: Path, dataset: str, stage: str, where: str) -> int:
    """Run `model`, images to maps or to pooled features, over all chunks of `folder` into chunk files of the same names in `out`.

    Existing chunks are kept.

    Args:
        model: the backbone.
        file: where it is saved, for the workers of a cluster.
        folder: chunk files of pixels.
        out: the folder of the chunk files of features.
        dataset: pooled or maps.
        stage: for messages.
        where: the device of every process that runs it.

    Returns:
        The number of images.

    Raises:
        UserError: a feature is not finite, a worker runs on another device, or the system refused to write.
    """
    _running[file, dataset] = _for_inference(model, dataset)
    counts = {out / path.name: len(chunks.names(path)) for path in chunks.paths(folder)}
    total, left = sum(counts.values()), unfinished(counts, stage, "chunks", lambda path: chunks.check(path, dataset))
    with progress(total, stage, "image", initial=total - sum(counts[path] for path in left)) as bar:
        last = time.perf_counter()

        def done(path: Path) -> None:
            nonlocal last
            bar.update(counts[path])
            before, last = last, time.perf_counter()
            with (out / SECONDS).open("a", encoding="utf-8") as seconds:
                seconds.write(f"{last - before:.3f}\n")

        jobs.run(
            stage,
            extract_chunk,
            {path: (file, folder / path.name, path, dataset, stage, where) for path in left},
            done,
            processes=0,
            needs=[out, file, *chunks.paths(folder)[:1]],
            dead="a worker was killed, probably for lack of memory; give each worker more, then run again to resume",
        )
    return total


def extract_chunk(file: Path, source: Path, out: Path, dataset: str, stage: str, where: str) -> None:
    """Run the backbone of `file` over one chunk file of pixels into one of features; the arguments are those of `extract`."""
    if device() != where:
        raise UserError(
            f"{stage}: a worker runs on {device()}; expected {where}, as the others: end it, then run again"
        )
    if (file, dataset) not in _running:
        _running.clear()
        _running[file, dataset] = _for_inference(load(file)[0], dataset)
    model = _running[file, dataset]
    names, pixels = chunks.read(source, "pixels")
    values = np.empty((len(names), *model.output.shape[1:]), np.float32 if dataset == "pooled" else np.float16)
    for first in range(0, len(names), BATCH):
        part = np.s_[first : first + BATCH]
        values[part] = model.predict_on_batch(pixels[part])
    if not np.isfinite(values).all():
        raise UserError(f"{stage}: the features of {out.name} are not finite; these weights do not fit the backbone")
    chunks.write(out, names, {dataset: values})


def _for_inference(model: keras.Model, dataset: str) -> keras.Model:
    model = fold_batch_norm(inline(model))
    if dataset == "maps":
        return model
    pool = keras.layers.GlobalAveragePooling2D if len(model.output.shape) == 4 else keras.layers.Identity
    return keras.Model(model.input, pool(dtype="float32")(model.output))


def main() -> None:
    name = model_argument("features", PRETRAINED)
    stage = f"features-{name}"
    with lock(stage):
        values = parameters.load()
        section = getattr(values, name)
        weights = values.initial_weights(name)
        network = _network(name, section)
        where = jobs.where(stage, device)
        print(f"{stage}: {network.name}, {weights} weights, on {where}")
        _run(stage, name, section, network, weights, where)


def _network(name: str, chosen: Pretrained) -> Network:
    if isinstance(chosen, Backbone):
        # Imported here: a new line in the table must not run VGG16 over all images again.
        from stages.common.backbones.catalog import find

        return find(chosen.name)
    return FIXED[name]


def _run(stage: str, name: str, section: Pretrained, network: Network, weights: str, where: str) -> None:
    start = time.perf_counter()
    files = [Path(weights), *sorted(Path(network.name).rglob("*"))] if network.source == "hub" else [Path(weights)]
    inputs = fingerprint([*chunks.paths(paths.RESIZED), *files])
    depends = network, section.pixels, section.precision, section.features, weights, inputs
    with resumable(paths.features(name), code(), where, *depends) as folder:
        earlier = _seconds(folder)
        rows = chunks.Rows(paths.RESIZED, "pixels")
        examples = rows.read(list(rows.places)[:EXAMPLES])
        model = backbone(network, rows.shape[0], section.pixels, weights, examples, section.precision)
        if section.features == "maps" and len(model.output.shape) != 4:
            raise UserError(
                f"{stage}: {network.name} has no feature maps, which head conv needs; set {name}.head to softmax"
            )
        file = folder / paths.backbone(name).name
        save(model, file, [])
        images = extract(model, file, paths.RESIZED, folder, section.features, stage, where)
        with new_folder(paths.features(name)) as out:
            publish([*chunks.paths(folder), file], out)
        seconds = round(earlier + time.perf_counter() - start, 1)
        write_json(paths.features_timing(name), {"seconds": seconds, "images": images})


def _seconds(folder: Path) -> float:
    """What the chunks of earlier, interrupted runs took."""
    path = folder / SECONDS
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return sum(float(line) for line in text.splitlines() if re.fullmatch(r"\d+\.\d{3}", line))


if __name__ == "__main__":
    errors.run(main)
