"""A network small enough to calculate by hand, and the annotate stage around it."""

import numpy as np
import pyarrow as pa
import torch
from torch import nn

from pipeline.annotate.annotate_stage import AnnotateSpec, AnnotateStage
from pipeline.annotate.decode_stage import DECODED
from pipeline.images.resize import ResizePlan
from pipeline.models.localize.box_rules import BoxRule
from pipeline.models.localize.localizer import CamRule
from pipeline.models.localize.runtime import Runtime
from pipeline.models.networks.heads import LinearHead
from pipeline.models.networks.network import CamNetwork, Preprocessing

RUNTIME = Runtime("cpu", "fp32", compile=False, threads=1, batch_size=8)
RULE = CamRule(topk=2, boxes=BoxRule("paper", (0.5,), 0.0))


class Blocks(nn.Module):
    """A trunk that averages blocks of 2×2 pixels, so that the three feature maps are the three colours."""

    def forward(self, images):
        return nn.functional.avg_pool2d(images, 2)


def by_hand(weight, bias=None):
    """Return a network with the three colours in [0, 1] as features and ``weight`` (C, 3) as its linear layer."""
    linear = nn.Linear(3, len(weight))
    linear.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
    linear.bias = nn.Parameter(torch.tensor(bias or [0.0] * len(weight)))
    network = CamNetwork("by hand", Blocks(), LinearHead(linear), Preprocessing(8, (0.0,) * 3, (1.0,) * 3))
    return network.requires_grad_(False)


def stage_by_hand(calibration=None, runtime=RUNTIME, feature_map_bits=None):
    """Return the stage of a network with the classes red and green, for pictures of 8×8 that `fit` has padded."""
    network = by_hand([[1, 0, 0], [0, 1, 0]])
    spec = AnnotateSpec(
        load=lambda state: network,
        labels=("red", "green"),
        image_size=8,
        rule=RULE,
        runtime=runtime,
        outputs=("boxes", "heatmaps", "features"),
        feature_type="float32",
        resize=ResizePlan("fit", 8, (4, 4)),
        multi_label=False,
        calibration=calibration,
        feature_map_bits=feature_map_bits,
    )
    return AnnotateStage(spec, {})


def decoded_table(pixels, reasons=(None, None, None)):
    """Return DECODED rows of pictures that were 40, 80 and 20 pixels wide in turn, and 80 pixels high."""
    n = len(reasons)
    names = [f"{row}" for row in range(n)]
    columns = {"image_id": names, "uri": names, "etag": [""] * n, "size_bytes": [1] * n}
    columns |= {"modified_at": [0] * n, "classes": [None] * n, "reason_code": reasons, "detail": reasons}
    columns |= {"width_px": np.resize([40, 80, 20], n), "height_px": [80] * n, "format": ["PNG"] * n, "pixels": pixels}
    return pa.table(columns, schema=DECODED)


def answers(rows):
    """Return the rows without the time at which they were made."""
    return rows.drop_columns(["decided_at"]).to_pylist()
