"""The three rules of docs/architecture.md, and that each fact is in one place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.common.runtime.parameters import MODELS, PRETRAINED
from tests.conftest import ROOT, Clone, make_clone
from tests.test_dvc_yaml import STAGES, outputs

CODE = sorted(path.relative_to(ROOT) for folder in ("stages", "commands") for path in (ROOT / folder).rglob("*.py"))
COMMON = Path("stages/common")


def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[Path]:
    """The modules and packages of the project that a file imports, as paths without suffix."""
    for node in ast.walk(tree(path)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] in ("stages", "commands", "benchmarks", "tests"):
                whole = Path(*name.split("."))
                yield whole if (ROOT / whole).with_suffix(".py").exists() or (ROOT / whole).is_dir() else whole.parent


@pytest.mark.parametrize("path", CODE, ids=str)
def test_1_stages_and_commands_import_from_common_alone_and_common_imports_neither(path: Path) -> None:
    for module in imports(path):
        assert module.is_relative_to(COMMON), f"{path} imports {module}"


@pytest.mark.parametrize("path", [path for path in CODE if path.is_relative_to(COMMON / "runtime")], ids=str)
def test_2_runtime_depends_on_no_other_group(path: Path) -> None:
    for module in imports(path):
        assert module.is_relative_to(COMMON / "runtime"), f"{path} imports {module}"


@pytest.mark.parametrize("name", sorted(STAGES))
def test_2_no_stage_depends_on_runtime(name: str) -> None:
    for dep in STAGES[name]["deps"]:
        assert not Path(dep).is_relative_to(COMMON / "runtime")
        assert not (COMMON / "runtime").is_relative_to(dep)


@pytest.fixture(scope="module")
def pretended(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which every stage counts as done: its outputs are empty, and committed to dvc."""
    clone = make_clone(tmp_path_factory.mktemp("done") / "clone")
    for path in {path for stage in STAGES.values() for path in outputs(stage)}:
        file = clone.path / path.replace("${model}", "scratch")
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix and not file.is_dir():
            file.write_text("a\n1\n")
        else:
            file.mkdir(exist_ok=True)
            (file / "0").touch()
    clone.run("dvc", "commit", "--force", "--quiet")
    assert stale(clone) == set()
    return clone


def stale(clone: Clone) -> set[str]:
    """The stages of which a dependency has changed."""
    with Repo(clone.path) as repo:
        return {name.split(":")[-1] for name in repo.status()}


# A linear probe of the encoder is a head, too.
HEADS = {"cross-validate", "train-selfsupervised", *(f"train-{model}" for model in PRETRAINED)}
CONVOLUTIONS = {"train-scratch", "train-selfsupervised"}
RESIZING = {"chunked-resize", "chunked-resize-unlabelled"}
EVERY_TRAINING = {"cross-validate", *(f"train-{model}" for model in MODELS)}
EVERY_INFERENCE = {f"infer-{model}" for model in MODELS}
PRETRAINING = {"cross-validate", "pretrain-selfsupervised", "train-selfsupervised"}
BACKBONES = {f"features-{model}" for model in PRETRAINED}
EDITS: dict[str, set[str]] = {
    "stages/common/runtime/errors.py": set(),
    "stages/common/runtime/lock.py": set(),
    "stages/common/runtime/progress.py": set(),
    "stages/common/runtime/parameters.py": set(),
    "stages/common/comparison/text.py": set(),
    "stages/common/images/download.py": set(),
    "stages/common/training/__pycache__/losses.cpython-311.pyc": set(),
    "commands/predict.py": set(),
    "stages/common/demo/app.py": set(),
    "stages/common/report/demo.html": set(),
    "stages/common/sample/tables.py": {"sample"},
    "stages/common/annotations/folders.py": {"annotate"},
    "stages/common/audit/near_copies.py": {"audit", *PRETRAINING},
    "stages/common/audit/leak.py": {"audit", "evaluate", "report", *PRETRAINING},
    "stages/common/images/decoding.py": {"audit", *RESIZING},
    "stages/common/images/layout.py": {"annotate", "audit", *RESIZING},
    "stages/common/networks/heads.py": HEADS,
    "stages/common/networks/scratch.py": {"cross-validate", "pretrain-selfsupervised", *CONVOLUTIONS},
    "stages/common/pretraining/vicreg.py": PRETRAINING,
    "stages/common/backbones/backbone.py": BACKBONES,
    "stages/common/backbones/batch_norm.py": BACKBONES,
    "stages/common/backbones/efficientnet_lite.py": {"features-backbone"},
    "stages/common/backbones/hub.py": {"features-backbone"},
    "stages/common/recipes/linear.py": HEADS,
    "stages/common/recipes/scratch.py": {"cross-validate", *CONVOLUTIONS},
    "stages/common/recipes/selfsupervised.py": {"cross-validate", "train-selfsupervised"},
    "stages/common/recipes/pretrained.py": HEADS - {"train-selfsupervised"},
    "stages/common/training/losses.py": EVERY_TRAINING,
    "stages/common/evaluation/predictions.py": {"cross-validate", "evaluate", "explain", "report", *EVERY_INFERENCE},
    "stages/common/explanation/heat_maps.py": {"explain"},
    "stages/common/explanation/overlay.py": {"report"},
    "stages/common/evaluation/bootstrap.py": {"cross-validate", "evaluate", "report"},
    "stages/common/report/page.html": {"report"},
    "stages/common/report/data.html": {"audit"},
    "stages/common/report/base.html": {"audit", "cross-validate", "report"},
    "stages/common/report/charts.py": {"report"},
    "stages/split.py": {"split"},
}


@pytest.mark.slow
@pytest.mark.parametrize("path", EDITS)
def test_3_an_edit_reruns_only_what_it_must(pretended: Clone, path: str) -> None:
    file = pretended.path / path
    before = file.read_bytes() if file.exists() else None
    file.parent.mkdir(exist_ok=True)
    file.write_bytes((before or b"") + b"# an edit\n")
    try:
        assert stale(pretended) == EDITS[path]
    finally:
        file.unlink() if before is None else file.write_bytes(before)


def literals(path: Path) -> Iterator[str]:
    """The strings of a file, docstrings apart."""
    module = tree(path)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.parametrize("path", [path for path in CODE if path.name != "paths.py"], ids=str)
def test_paths_are_written_in_one_module(path: Path) -> None:
    pattern = r"\b(data|models|metrics|plots)/[\w.{-]*\w|model\.keras|mpii_human_pose|params\.yaml$"
    found = [text for text in literals(path) if re.search(pattern, text)]
    assert found == []


@pytest.mark.parametrize("path", [path for path in CODE if path.name == "__init__.py"], ids=str)
def test_a_package_says_what_it_is_and_does_nothing_else(path: Path) -> None:
    assert [type(node) for node in tree(path).body] == [ast.Expr]


# A SavedModel is run by TensorFlow, whatever Keras runs on. Processes meet by JAX: Keras has no function to compare values.
ENGINES = {
    COMMON / "export/formats.py": {"tensorflow"},
    COMMON / "training/distribution.py": {"jax", "jax.experimental.multihost_utils"},
}


def imported_by_name(path: Path) -> set[str]:
    """The modules that a file imports by `import_module` of a text."""
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call) and node.args]
    texts = [call.args[0] for call in calls if ast.unparse(call.func).endswith(("import_module", "__import__"))]
    return {str(text.value) for text in texts if isinstance(text, ast.Constant)}


def test_no_tensorflow_in_the_code() -> None:
    for path in CODE:
        names = {alias.name for node in ast.walk(tree(path)) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree(path)) if isinstance(node, ast.ImportFrom)}
        names |= imported_by_name(path) - ENGINES.get(path, set())
        assert not {name for name in names if name.split(".")[0] in ("tensorflow", "jax", "torch")}, path
    for path, engines in ENGINES.items():
        assert imported_by_name(path) == engines


def test_the_architecture_lists_every_file_and_no_other() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed: list[Path] = []
    folder = Path()
    for line in text[text.index("## The files") : text.index("## To change X")].splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if len(cells) != 2:
            continue
        names = re.findall(r"`([\w]+\.py)`", cells[0])
        listed += [folder / name for name in names]
        if found := re.fullmatch(r"(?:\*\*)?([\w/]+)/(?:\*\*)?", cells[0]):
            folder = Path(found[1]) if found[1].startswith(("stages", "commands")) else COMMON / found[1]
    assert sorted(listed) == [path for path in CODE if path.name != "__init__.py"]
