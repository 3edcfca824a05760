"""What the study's page says of its conditions, held against the networks themselves."""

from pathlib import Path

from torch import nn

from tests.benchmarks.study.learning import make_network
from tests.benchmarks.study.page import COLUMNS, Study, markdown
from tests.benchmarks.study.study_config import StudyConfig
from tests.benchmarks.study.study_networks import chosen_networks


def test_the_page_says_of_alexnets_padding_what_its_layers_have() -> None:
    config = StudyConfig()
    _, network = make_network(config, chosen_networks("alexnet_gap")[0])
    layers = list(network.trunk.modules())
    assert all(min(layer.padding) > 0 for layer in layers if isinstance(layer, nn.Conv2d))
    assert [layer.padding for layer in layers if isinstance(layer, nn.MaxPool2d)] == [0, 0]
    page = markdown(Study(config, COLUMNS, [], [], [], {"networks": []}))
    assert "its convolutions are padded, its poolings are not" in page
    committed = Path(__file__).with_name("benchmarks") / "results/study/study.md"
    assert page.partition("## Conditions")[2] == committed.read_text().partition("## Conditions")[2]


def test_alexnets_outer_cells_lie_farther_inside_than_the_box_code_has_them() -> None:
    _, network = make_network(StudyConfig(), chosen_networks("alexnet_gap")[0])
    side = network.preprocessing.image_size
    cells, _ = network.map_size(side)
    centre, pitch = 0.5, 1.0  # Of the first cell, in pixels from the border, and between two.
    for layer in network.trunk.modules():
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            kernel, stride, padding = (
                value[0] if isinstance(value, tuple) else value
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            centre += pitch * ((kernel - 1) / 2 - padding)
            pitch *= stride
    far = side - (centre + (cells - 1) * pitch)
    assumed = side / cells / 2
    assert min(centre, far) > 1.5 * assumed
