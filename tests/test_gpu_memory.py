"""Where a batch does not fit into the GPU's memory, half of it does, and the run goes on at that size."""

from itertools import chain

import numpy as np
import pytest
import torch

from pipeline.annotate.reporter import RunProgress, SaidOnce
from pipeline.models.localize.gpu_memory import FittingBatches
from schemas.errors import CamlakeError
from tests.hand_made import answers, decoded_table, stage_by_hand


class Gpu:
    """Works on at most ``most`` images at once."""

    def __init__(self, most):
        self.most, self.asked = most, []

    def __call__(self, start, end):
        self.asked.append((start, end))
        if end - start > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")
        return list(range(start, end))


def test_the_batch_halves_until_it_fits_and_stays_so():
    gpu, batches = Gpu(3), FittingBatches()
    assert [*chain(*batches.run(10, gpu))] == list(range(10))
    assert gpu.asked == [(0, 10), (0, 5), (0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
    gpu.asked.clear()
    gpu.most = 100
    assert [*chain(*batches.run(5, gpu))] == list(range(5))
    assert gpu.asked == [(0, 2), (2, 4), (4, 5)]
    assert [note.split(" at once")[0] for note in batches.take_notes()] == [
        "10 images",
        "5 images",
    ]
    assert batches.take_notes() == ()


def test_what_fits_is_one_part():
    gpu, batches = Gpu(10), FittingBatches()
    assert batches.run(10, gpu) == [list(range(10))]
    assert batches.run(0, gpu) == []
    assert batches.take_notes() == ()


def test_not_one_image_is_one_line():
    with pytest.raises(CamlakeError) as caught:
        FittingBatches().run(4, Gpu(0))
    assert str(caught.value).startswith(
        "not one image fits into the GPU's memory: CUDA out of memory. Tried to allocate 2 GiB.; allowed: a smaller"
    )
    assert "\n" not in str(caught.value)


def test_other_errors_pass():
    def broken(start, end):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        FittingBatches().run(4, broken)


def test_a_note_of_several_workers_is_said_once():
    said = []
    say = SaidOnce(said.append)
    total = RunProgress(1, notes=("a",)).plus(RunProgress(2, notes=("a", "b")))
    assert (total.images, total.notes) == (3, ("a", "b"))
    say(total.notes)
    say(total.notes)
    assert said == ["a", "b"]


@pytest.mark.parametrize("given", [False, True], ids=["pixels in the table", "pixels on the device"])
def test_the_stage_gives_the_same_rows_in_parts(given):
    """The second of five pictures is rejected, so that pixels and rows have other numbers."""
    pixels = np.random.default_rng(3).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    column = [b"" if row == 1 else one.tobytes() for row, one in enumerate(pixels)]
    decoded = decoded_table(column, (None, "empty", None, None, None))
    on_device = torch.from_numpy(pixels[[0, 2, 3, 4]]) if given else None
    whole = answers(stage_by_hand().annotate(decoded, on_device))
    stage = stage_by_hand()
    localizer, sizes = stage._localizer, []

    def small(inputs, *others):
        sizes.append(sum(map(len, inputs)))
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return localizer(inputs, *others)

    stage._localizer = small
    assert answers(stage.annotate(decoded, on_device)) == whole
    assert sizes == [4, 1, 2, 1, 1, 1]
    assert len(stage.memory.take_notes()) == 2
    with pytest.raises(torch.OutOfMemoryError):
        stage(decoded)


def test_a_stage_that_fits_one_image_at_no_time_ends_in_one_line():
    stage = stage_by_hand()

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    stage._localizer = full
    with pytest.raises(CamlakeError, match="not one image fits"):
        stage.annotate(decoded_table([bytes(192)] * 3))
