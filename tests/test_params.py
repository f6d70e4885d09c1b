"""params.yaml: what is accepted, and the one line for what is not."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages.common import parameters
from stages.common.problem import Problem
from tests.conftest import ROOT, Clone, set_parameters

COMMITTED = (ROOT / "params.yaml").read_text(encoding="utf-8")


def written(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_committed_values_are_valid_and_frozen(tmp_path: Path) -> None:
    values = parameters.load(written(tmp_path, COMMITTED))
    assert values.model == "scratch"
    assert values.has("data/raw/sample")
    with pytest.raises(ValueError, match="frozen"):
        values.seed = 2


def test_every_model_has_a_section_and_nothing_else_is_a_model() -> None:
    assert parameters.MODELS == ("scratch", "vgg16", "xception", "mobilenetv2")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("model", "resnet", "scratch, vgg16, xception, mobilenetv2"),
        ("model", None, "string"),
        ("target", "label", "'category' or 'activity'"),
        ("seed", "one", "integer"),
        ("seed", True, "integer"),
        ("seed", -1, "greater than or equal to 0"),
        ("weights", "imagenette", "auto, imagenet, random or an existing weights file"),
        ("data", "nowhere", "data/raw/sample, data/raw/mpii or a folder"),
        ("data", "data", "choose one"),
        ("split.test", 0.9, "less than or equal to 0.45"),
        ("split.group", "person", "'video' or 'image'"),
        ("resize.size", 0, "greater than or equal to 32"),
        ("resize.max_bad", 2, "less than or equal to 1"),
        ("sample.images", 10, "greater than or equal to 160"),
        ("mpii.images_md5", "x", "match"),
        ("mpii.images_url", "ftp://example.org/x", "match"),
        ("scratch.filters", [], "at least 1 item"),
        ("scratch.filters", [1.5], "integer"),
        ("scratch.dropout", 1.0, "less than 1"),
        ("scratch.dropout", float("nan"), "finite"),
        ("vgg16.imbalance", "smote", "'none', 'class_weight', 'focal' or 'logit_adjustment'"),
        ("xception.head", "dense", "'softmax' or 'conv'"),
        ("mobilenetv2.input_size", 8, "greater than or equal to 32"),
        ("mobilenetv2.l2", -1.0, "greater than or equal to 0"),
        ("mobilenetv2.refit", "yes", "boolean"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_key_value_and_what_is_allowed(
    tmp_path: Path, key: str, value: Any, allowed: str
) -> None:
    path = written(tmp_path, COMMITTED)
    set_parameters(path, {key: value})
    with pytest.raises(Problem) as caught:
        parameters.load(path)
    line = str(caught.value)
    assert "\n" not in line
    assert key in line.replace(".0", "")
    assert allowed in line
    assert repr(value[0] if isinstance(value, list) and value else value) in line


@pytest.mark.parametrize(("section", "key"), [(None, "modle"), ("scratch", "epohcs"), ("split", "valid")])
def test_an_unknown_key_is_named_with_its_value_and_the_known_ones(
    tmp_path: Path, section: str | None, key: str
) -> None:
    values = yaml.safe_load(COMMITTED)
    (values[section] if section else values)[key] = 7
    with pytest.raises(Problem, match=rf"{key} is 7; no such key is known; allowed here are .*\w+, "):
        parameters.load(written(tmp_path, yaml.safe_dump(values)))


def test_a_misspelt_key_is_reported_rather_than_the_missing_one(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"scratch.epohcs is \d+"):
        parameters.load(written(tmp_path, COMMITTED.replace("  epochs: ", "  epohcs: ", 1)))


@pytest.mark.parametrize(
    "text", ["", "[]", "a: [", "a: *b", "model: !!python/name:os.system x", "seed: 1\nseed: 2", "\0"]
)
def test_what_is_no_mapping_of_plain_values_is_one_problem(tmp_path: Path, text: str) -> None:
    with pytest.raises(Problem, match="params.yaml"):
        parameters.load(written(tmp_path, text))


def test_aliases_that_explode_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    with pytest.raises(Problem, match="aliases .* are not allowed"):
        parameters.load(written(tmp_path, COMMITTED + "\n".join(lines)))


def test_floats_as_dvc_writes_them(tmp_path: Path) -> None:
    values = parameters.load(written(tmp_path, re.sub("learning_rate: .*", "learning_rate: 1e-05", COMMITTED, count=1)))
    assert values.scratch.learning_rate == 1e-05


def test_xception_refuses_images_that_its_layers_use_up(tmp_path: Path) -> None:
    path = written(tmp_path, COMMITTED)
    set_parameters(path, {"xception.input_size": 64})
    with pytest.raises(Problem, match="xception.input_size is 64; it should be 71 or more"):
        parameters.load(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("scratch.epochs=many", "scratch.epochs is 'many'"),
        ("model=resnet", "model is 'resnet'; allowed are scratch"),
        ("+scratch.epohcs=3", "scratch.epohcs is 3; no such key"),
    ],
)
def test_a_wrong_override_stops_before_any_work(clone: Clone, override: str, named: str) -> None:
    shown = clone.run("dvc", "exp", "run", "-S", override, ok=False)
    assert named in shown
    assert "Traceback" not in shown
    assert "stages.sample" not in shown
    assert not list(clone.path.glob("data/raw/*"))
