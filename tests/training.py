"""Small trainings for the tests: scenes of three classes, a network that learns in seconds, and a reader of OUT."""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from jobs.terminal.console import Screen
from pipeline.graph.train.checkpoints import Progress
from pipeline.graph.train.training import labelled_images, train_network
from pipeline.images.synthetic.drawings import CLASSES
from pipeline.images.synthetic.scenes import render_scene
from pipeline.models.weights.checkpoint import WeightsFile, read_checkpoint
from pipeline.storage.filesystems import read_url
from schemas.options.config import StorageConfig
from schemas.options.train import TrainConfig

SMALL = {"model": "alexnet_gap", "weights": "none", "width": 0.125, "image_size": 64, "precision": "fp32"}
LABELS = ("bicycle", "butterfly", "fish")
N_SCENES = 24


def write_scenes(folder: Path) -> Path:
    """Write ``N_SCENES`` scenes into one folder for each of three classes, and a file that is no picture."""
    for index in range(N_SCENES):
        scene = render_scene(np.random.default_rng((0, index)), index % 3, (56, 72))
        path = folder / CLASSES[scene.label] / f"{index:03d}.png"
        path.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(path), cv2.cvtColor(scene.pixels, cv2.COLOR_RGB2BGR))
    (folder / CLASSES[0] / "broken.jpg").write_bytes(b"no picture")
    return folder


def config(input_, out, **options) -> TrainConfig:
    """Return the configuration of a small training."""
    defaults = {"epochs": 2, "batch_size": 8, "lr": 1e-3, "max_rejected": 1.0, **SMALL}
    return TrainConfig.resolve({"input": str(input_), "out": str(out), **defaults, **options})


def train(input_, out, **options) -> Progress:
    """Train in this process's Ray, or continue a stopped training, and return the progress."""
    resolved = config(input_, out, **options)
    return train_network(resolved, *labelled_images(resolved, Screen()), Screen())


@dataclass(frozen=True)
class Output:
    """The files of a training's output, read as a user would read them."""

    url: str
    storage: StorageConfig = field(default_factory=StorageConfig)

    def read(self, name: str) -> bytes:
        """Return a file's bytes."""
        return read_url(f"{self.url}/{name}", self.storage)

    def weights(self, name: str = "last") -> WeightsFile:
        """Return the weights file ``best`` or ``last`` with its card."""
        return read_checkpoint(f"{self.url}/{name}.safetensors", functools.partial(read_url, storage=self.storage))

    def curve(self, name: str) -> list[float]:
        """Return the value of the figure ``name`` for each epoch."""
        return [json.loads(line)[name] for line in self.read("metrics.jsonl").decode().splitlines()]
