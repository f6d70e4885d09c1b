"""What the pipeline must know of a pretrained network before it builds it. Without Keras: the check of parameters reads it."""

from typing import Any, NamedTuple


class Network(NamedTuple):
    """A pretrained network.

    Attributes:
        source: applications (keras.applications), efficientnet_lite (built here) or hub (KerasHub).
        name: its name there.
        input_size: pixels per side of the images that it was trained with; None: only its preset says.
        scaling: keras.applications' name for the preprocessing (caffe, tf, torch), or included: the network does it.
        min_input: the smallest side that its layers can process.
        options: further arguments of its constructor.
    """

    source: str
    name: str
    input_size: int | None
    scaling: str = "included"
    min_input: int = 32
    options: dict[str, Any] = {}  # noqa: RUF012  (never changed)


# The networks of the models of the same names.
FIXED = {
    "vgg16": Network("applications", "VGG16", 224, "caffe"),
    # Its layers without padding use up smaller images.
    "xception": Network("applications", "Xception", 299, "tf", min_input=71),
}
