"""Networks of timm and of the user's own code are trained on scenes, and their weights annotate by every method."""

from importlib.metadata import version

import pytest

pytest.importorskip("timm")

from pipeline.outputs import reader as camlake
from tests.jobs_on import run_annotate
from tests.training import LABELS, Output, train, write_scenes

pytestmark = pytest.mark.slow

TIMM, OWN = "timm/test_resnet", "tests.their_networks:plain"
FACTS = {TIMM: {"timm": version("timm"), "timm_name": "test_resnet"}, OWN: {}}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module", params=[TIMM, OWN])
def trained(request, ray_session, scenes, tmp_path_factory):
    """The name of a network and the output of its training."""
    out = str(tmp_path_factory.mktemp("trained") / "out")
    train(scenes, out, model=request.param, width=1.0, epochs=1, image_size=32)
    return request.param, Output(out)


def test_the_card_says_which_network_of_which_version(trained):
    name, out = trained
    card = out.weights("best").card
    assert (card.architecture.name, card.labels, card.preprocessing.image_size) == (name, LABELS, 32)
    assert {key: card.facts[key] for key in card.facts if key.startswith("timm")} == FACTS[name]
    assert len(out.curve("train_loss")) == 1


@pytest.mark.parametrize("method", ["cam", "gradcam", "layercam", "backprop"])
def test_the_trained_network_annotates(method, trained, scenes, tmp_path):
    name, out = trained
    options = {"weights": f"{out.url}/best.safetensors", "method": method}
    options |= {"model": name} if name == OWN else {"model": None}  # The card names timm's; your code is named by you.
    manifest = run_annotate(scenes / LABELS[0], tmp_path / "out", **options)
    assert (manifest.lineage.model, manifest.counts.annotated) == (name, 8)
    assert manifest.lineage.packages.get("timm") == FACTS[name].get("timm")
    with camlake.open(str(tmp_path / "out")) as lake:
        assert lake.sql("SELECT count(*) FROM heatmaps").fetchall() == [(2 * 8,)]
        assert {label for (label,) in lake.sql("SELECT label FROM boxes").fetchall()} <= set(LABELS)
