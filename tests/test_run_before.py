"""A run that has nothing to do ends without the network; every run that could have work loads it."""

import shutil
import subprocess
import sys
from importlib import resources

import pytest
from safetensors.torch import load_file, save_file

from pipeline.annotate import run_before as module
from pipeline.annotate.run_before import run_before
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from tests.jobs_on import run_annotate

DEMO_WEIGHTS = resources.files("pipeline") / "models/weights/camlake_demo.safetensors"
FIRST = {"model": "camlake_demo", "topk": 2, "box_rule": "paper"}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 6, seed=4, size_hw=(48, 64), broken=1)
    return folder / "images"


@pytest.fixture(scope="module")
def out(images, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    run_annotate(images, out)
    return out


def before(images, out, **options):
    return run_before(AnnotateConfig.resolve({"input": str(images), "out": str(out), **FIRST, **options}))


def test_the_second_run_loads_neither_torch_nor_ray(images, out):
    program = (
        "import sys, camlake; "
        f"lake = camlake.annotate(input={str(images)!r}, out={str(out)!r}, model='camlake_demo', topk=2,"
        " box_rule='paper', max_rejected=1.0); "
        "counts = lake.runs[-1].counts; "
        "print(counts.already_done, counts.planned, {'torch', 'torchvision', 'ray'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7", "0", "set()"]
    with camlake.open(str(out)) as lake:
        last, first = lake.runs[-1], lake.runs[0]
    assert (last.settings, last.lineage, last.model) == (first.settings, first.lineage, first.model)
    assert {name for name in last.config if last.config[name] != first.config.get(name)} <= module._FREE


@pytest.mark.parametrize(
    "options",
    [{}, {"actors": 2}, {"limit": 3}, {"input": "elsewhere"}, {"max_bytes": 10**6}, {"retry_rejected": True}],
)
def test_options_that_leave_the_partition_alone(images, out, options):
    assert before(images, out, **options).model.startswith("camlake_demo-")


@pytest.mark.parametrize(
    "options",
    [
        {"topk": 3},
        {"box_rule": "auto"},
        {"threshold": (0.3,)},
        {"min_prob": 0.2},
        {"outputs": ("boxes", "features")},
        {"model": "resnet18"},
        {"resize": "fit"},
        {"image_size": 128},
        {"method": "layercam"},
        {"scales": (1.0, 0.5)},
        {"weights": str(DEMO_WEIGHTS)},
        {"foreground": "off"},
        {"labels": "names.txt"},
        {"classes": "truth.csv"},
        {"calibration": "elsewhere"},
    ],
)
def test_options_that_only_the_network_can_judge(images, out, options):
    assert before(images, out, **options) is None


def test_options_that_the_rows_decide(images, out):
    config = {"input": str(images), "out": str(out), "model": "camlake_demo", "topk": 2}
    assert run_before(AnnotateConfig.resolve(config)) is not None


def test_an_empty_output_and_another_version_of_the_software(images, out, tmp_path, monkeypatch):
    assert before(images, tmp_path) is None
    monkeypatch.setattr(module, "software_versions", lambda: {"camlake_version": "9.9"})
    assert before(images, out) is None


def test_other_weights_under_the_same_name(images, tmp_path):
    weights, labels = tmp_path / "w.safetensors", tmp_path / "labels"
    shutil.copy(str(DEMO_WEIGHTS), weights)
    options = {"weights": str(weights)}
    first = run_annotate(images, labels, **options)
    assert before(images, labels, **options) is not None
    assert run_annotate(images, labels, **options).counts.planned == 0
    state = load_file(weights)
    name = next(iter(state))
    save_file(state | {name: state[name] + 0.01}, weights, metadata=camlake_metadata(weights))
    assert before(images, labels, **options) is None
    again = run_annotate(images, labels, **options)
    assert again.counts.annotated == first.counts.annotated
    assert again.model != first.model


def camlake_metadata(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


def test_a_new_image_is_annotated_by_the_same_run(images, tmp_path):
    some, labels = tmp_path / "some", tmp_path / "labels"
    shutil.copytree(images, some)
    moved = sorted(some.glob("*.jpg"))[0]
    moved.rename(tmp_path / moved.name)
    run_annotate(some, labels)
    (tmp_path / moved.name).rename(moved)
    assert run_annotate(some, labels).counts.annotated == 1
    with pytest.raises(UsageError, match="--topk: the rows of this model"):
        run_annotate(some, labels, topk=3)


def test_a_network_that_turns_out_to_be_another_gets_a_partition_of_its_own(images, tmp_path, monkeypatch):
    first = run_annotate(images, tmp_path, limit=2)
    known = first.model_copy(update={"model": "camlake_demo-00000000"})
    monkeypatch.setattr("pipeline.graph.annotate.driver.run_before", lambda config: known)
    assert run_annotate(images, tmp_path).model == first.model
