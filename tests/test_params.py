"""params.yaml: what is accepted, and the one line for what is not."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from stages import params
from stages.common.dataset import chunks
from stages.common.runtime import parameters, paths
from stages.common.runtime.errors import UserError
from stages.common.runtime.plain_yaml import parse_yaml
from tests.conftest import ROOT, Clone, Finished, set_parameters

COMMITTED = (ROOT / "params.yaml").read_text(encoding="utf-8")


def written(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_committed_values_are_valid_and_frozen(tmp_path: Path) -> None:
    values = parameters.load(written(tmp_path, COMMITTED))
    assert values.model == "backbone"
    assert values.uses_sample
    assert values.chosen is values.backbone
    with pytest.raises(ValueError, match="frozen"):
        values.seed = 2


def test_every_model_has_a_section_and_nothing_else_is_a_model() -> None:
    assert parameters.MODELS == ("scratch", "selfsupervised", "vgg16", "xception", "backbone")


@pytest.mark.parametrize(
    ("key", "value", "allowed"),
    [
        ("model", "resnet", "scratch, selfsupervised, vgg16, xception, backbone"),
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
        ("split.labels_per_class", 0, "all or an integer of at least 1"),
        ("pretrain.batch_size", 1, "greater than or equal to 2"),
        ("pretrain.min_area", 0.0, "greater than 0"),
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
        ("backbone.input_size", 8, "auto or an integer from 32 to 1024"),
        ("backbone.l2", -1.0, "greater than or equal to 0"),
        ("backbone.refit", "yes", "boolean"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_key_value_and_what_is_allowed(
    tmp_path: Path, key: str, value: Any, allowed: str
) -> None:
    path = written(tmp_path, COMMITTED)
    set_parameters(path, {key: value})
    with pytest.raises(UserError) as caught:
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
    with pytest.raises(UserError, match=rf"{key} is 7; there is no such key; allowed here are .*\w+, "):
        parameters.load(written(tmp_path, yaml.safe_dump(values)))


def test_a_misspelt_key_is_reported_rather_than_the_missing_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scratch.epohcs is \d+"):
        parameters.load(written(tmp_path, COMMITTED.replace("  epochs: ", "  epohcs: ", 1)))


@pytest.mark.parametrize(
    "text", ["", "[]", "a: [", "a: *b", "model: !!python/name:os.system x", "seed: 1\nseed: 2", "\0", "a: 1\n---\nb: 2"]
)
def test_what_is_not_a_mapping_of_plain_values_is_one_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match="params.yaml"):
        parameters.load(written(tmp_path, text))


def test_a_file_that_is_absent_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="params.yaml: No such file or directory; run from the repository's root"):
        parameters.load(tmp_path / "params.yaml")


def test_a_repeated_key_is_one_line_that_names_it(tmp_path: Path) -> None:
    written(tmp_path, COMMITTED + "seed: 2\n")
    command = [sys.executable, "-m", "stages.params"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: params.yaml: not plain YAML: ")
    assert 'duplicate key "seed"' in line
    assert not (tmp_path / "data/params.checked").exists()


def test_aliases_that_explode_are_refused_at_once(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    with pytest.raises(UserError, match="aliases .* are not allowed"):
        parameters.load(written(tmp_path, COMMITTED + "\n".join(lines)))


def test_one_alias_is_refused(tmp_path: Path) -> None:
    text = COMMITTED.replace("\nseed: 1", "\nseed: &seed 1").replace("  seed: 1", "  seed: *seed")
    assert "*seed" in text
    with pytest.raises(UserError, match="aliases .* are not allowed"):
        parameters.load(written(tmp_path, text))


@pytest.mark.parametrize("text", ["1e-05", "1E-5", "1.0e-05", "0.00001", "0.1e-4"])
def test_floats_are_read_as_dvc_writes_them(tmp_path: Path, text: str) -> None:
    changed = re.sub("learning_rate: .*", f"learning_rate: {text}", COMMITTED, count=1)
    assert parameters.load(written(tmp_path, changed)).scratch.learning_rate == 1e-05


@pytest.mark.parametrize("text", ["yes", "no", "on", "off", "y"])
def test_yes_is_a_string_as_yaml_1_2_says_and_so_refused_where_a_bool_is_expected(tmp_path: Path, text: str) -> None:
    assert parse_yaml(f"a: {text}") == {"a": text}
    changed = COMMITTED.replace("  augment: true", f"  augment: {text}")
    with pytest.raises(UserError, match=rf"scratch.augment is '{text}'; it should be a valid boolean"):
        parameters.load(written(tmp_path, changed))


@pytest.mark.parametrize(
    ("text", "expected"), [("010", 10), ("0o10", 8), ("1:30", "1:30"), ("true", True), ("~", None)]
)
def test_other_values_are_read_as_yaml_1_2_says(text: str, expected: Any) -> None:
    value = parse_yaml(f"a: {text}")["a"]
    assert value == expected
    assert type(value) is type(expected)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the committed params.yaml, and one with photographs, as the current one."""
    written(tmp_path, COMMITTED)
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "spelling",
    [
        "data/raw/sample",
        "./data/raw/sample",
        "data/raw/sample/",
        "data//raw/./sample",
        "data/raw/mpii/../sample",
        "{root}/data/raw/sample",
        "{root}/data/raw/sample/",
    ],
)
def test_the_sample_is_recognised_however_its_path_is_spelled(root: Path, spelling: str) -> None:
    set_parameters(Path("params.yaml"), {"data": spelling.format(root=root)})
    values = parameters.load()
    assert values.uses_sample
    assert values.initial_weights("vgg16") == "random"
    assert values.initial_weights("backbone") == "imagenet"  # they come with a package


@pytest.mark.parametrize("data", ["data/raw/mpii", "./data/raw/mpii/", "photos", "{root}/photos"])
def test_auto_is_imagenet_for_other_data(root: Path, data: str) -> None:
    set_parameters(Path("params.yaml"), {"data": data.format(root=root)})
    values = parameters.load()
    assert not values.uses_sample
    assert values.initial_weights("vgg16") == "imagenet"


@pytest.mark.parametrize("data", ["data/raw/sample", "photos"])
@pytest.mark.parametrize("weights", ["imagenet", "random", "mine.weights.h5"])
def test_weights_that_are_named_stay_whatever_the_data(root: Path, data: str, weights: str) -> None:
    (root / "mine.weights.h5").touch()
    set_parameters(Path("params.yaml"), {"data": data, "weights": weights})
    assert parameters.load().initial_weights("backbone") == weights


@pytest.mark.parametrize("data", [".", "data", "data/raw", "./data/raw/", "{root}"])
def test_a_folder_that_contains_several_data_sets_is_refused(root: Path, data: str) -> None:
    (root / "data/raw").mkdir(parents=True)
    set_parameters(Path("params.yaml"), {"data": data.format(root=root)})
    with pytest.raises(UserError, match="which contains several data sets; choose one, e.g. data/raw/sample"):
        parameters.load()


@pytest.mark.parametrize("model", parameters.MODELS)
def test_the_chosen_section_is_that_of_the_model(root: Path, model: str) -> None:
    set_parameters(Path("params.yaml"), {"model": model, f"{model}.patience": 77})
    values = parameters.load()
    assert values.chosen is getattr(values, model)
    assert values.chosen.patience == 77


@pytest.mark.parametrize(("head", "features"), [("softmax", "pooled"), ("conv", "maps")])
def test_the_features_follow_from_the_head(root: Path, head: str, features: str) -> None:
    set_parameters(Path("params.yaml"), {"vgg16.head": head})
    assert parameters.load().vgg16.features == features


def test_parameters_are_flattened_to_dotted_keys() -> None:
    assert parameters.flatten({"a": 1, "b": {"c": [2], "d": {"e": None}}}) == {"a": 1, "b.c": [2], "b.d.e": None}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("xception.input_size", 64, "xception.input_size is 64; it should be auto, or 71 or more for Xception"),
        ("backbone.name", "resnet51", "backbone.name is 'resnet51'; allowed are efficientnet_lite0, .*hub:PRESET"),
        ("backbone.name", "hub:", "backbone.name is 'hub:'; allowed are"),
        ("backbone.name", "hub:vit", r"backbone.name is 'hub:vit', .* pip install -r requirements-hub.txt"),
        ("vgg16.l2", 0, "vgg16.l2 is 0; head softmax needs more than 0"),
        (
            "backbone.imbalance",
            "focal",
            "backbone.imbalance is 'focal'; head softmax, which is solved, allows none and",
        ),
        (
            "vgg16.imbalance",
            "logit_adjustment",
            "vgg16.imbalance is 'logit_adjustment'; head softmax, which is solved,",
        ),
    ],
)
def test_what_a_network_or_a_head_cannot_do_is_refused_before_any_work(
    root: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: Any, expected: str
) -> None:
    (root / "data").mkdir()
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    set_parameters(Path("params.yaml"), {key: value})
    with pytest.raises(UserError, match=expected):
        params.main()


@pytest.mark.slow
def test_another_size_is_resized_and_a_wrong_one_refused(finished: Finished, tmp_path: Path) -> None:
    """Also by an experiment after the first run, which DVC could take from its cache."""
    clone = finished.copy(tmp_path / "clone")
    clone.run("dvc", "exp", "run", "-S", "resize.size=64", "chunked-resize")
    assert chunks.Rows(clone.path / paths.RESIZED, "pixels").shape == (64, 64, 3)
    assert "resize.size is -5" in clone.run("dvc", "exp", "run", "-S", "resize.size=-5", "chunked-resize", ok=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("scratch.epochs=many", "scratch.epochs is 'many'"),
        ("model=resnet", "model is 'resnet'; allowed are scratch"),
        ("+scratch.epohcs=3", "scratch.epohcs is 3; there is no such key"),
    ],
)
def test_a_wrong_override_stops_before_any_work(clone: Clone, override: str, named: str) -> None:
    shown = clone.run("dvc", "exp", "run", "-S", override, ok=False)
    assert named in shown
    assert "Traceback" not in shown
    assert "stages.sample" not in shown
    assert not list(clone.path.glob("data/raw/*"))
