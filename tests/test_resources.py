"""How the work is laid out: the rules of the plan, and of the slices and commits it is cut into."""

import pytest

from pipeline.annotate.image_reader import joined_slices
from pipeline.annotate.input_plan import images_per_slice
from pipeline.annotate.resources import (
    COMMIT_BYTES,
    Machine,
    decoders,
    images_of_block,
    images_per_commit,
    plan_compute,
)
from pipeline.storage.lake.plan.planning import PlanSlice
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig

LAPTOP = Machine(cpus=4, gpus=0, cores=2)
"""Two cores, for each of which Ray hands out two CPUs."""
GPU_SERVER = Machine(cpus=32, gpus=2, cores=16)
CLUSTER = Machine(cpus=64, gpus=0, cores=None)


def config(**options):
    return AnnotateConfig.resolve({"input": "in", "out": "out", **options})


class TestOnCpu:
    def test_each_core_gets_an_actor_of_one_thread_and_a_quarter_of_the_cpus_stays_free(self):
        compute = plan_compute(config(), LAPTOP)
        assert (compute.actors, compute.actor_cpus, compute.gpus_per_actor) == ((2, 2), 1.0, 0.0)
        assert (compute.runtime.device, compute.runtime.threads, compute.runtime.batch_size) == ("cpu", 1, 32)
        assert (compute.decode, compute.decode_threads, compute.runtime.compile) == ("local", 1, False)
        assert compute.read_cpus + compute.write_cpus <= 4 - 2 * compute.actor_cpus

    def test_fewer_actors_have_more_threads(self):
        assert plan_compute(config(actors=1), LAPTOP).runtime.threads == 2

    def test_a_cluster_of_one_cpu_keeps_room_for_reading(self):
        compute = plan_compute(config(), Machine(1, 0, 1))
        assert compute.actors == (1, 1)
        assert compute.actor_cpus + compute.read_cpus + compute.write_cpus <= 1

    def test_a_cluster_gets_an_actor_for_each_cpu_that_is_not_kept_free(self):
        compute = plan_compute(config(), CLUSTER)
        assert (compute.actors, compute.runtime.threads) == ((48, 48), 1)

    def test_no_more_actors_than_tables(self):
        assert plan_compute(config(), CLUSTER, n_tables=5).actors == (5, 5)
        assert plan_compute(config(actors="2:40"), CLUSTER, n_tables=5).actors == (2, 5)

    def test_too_many_actors_are_refused(self):
        with pytest.raises(UsageError, match=r"--actors 100:100: this machine has 4 CPUs, too few for 100 actors"):
            plan_compute(config(actors=100), LAPTOP)


class TestOnGpus:
    def test_each_gpu_gets_an_actor_and_cpus_decode_for_it(self):
        compute = plan_compute(config(), GPU_SERVER)
        assert (compute.actors, compute.gpus_per_actor, compute.actor_cpus) == ((2, 2), 1.0, 1.0)
        assert (compute.runtime.device, compute.runtime.batch_size) == ("cuda", 256)
        assert (compute.decode, decoders(compute, GPU_SERVER)) == ("remote", 30)

    def test_local_decoding_takes_the_actors_share_of_the_cpus(self):
        compute = plan_compute(config(decode="local"), GPU_SERVER)
        assert (compute.decode_threads, compute.actor_cpus, decoders(compute, GPU_SERVER)) == (12, 12.0, 2)

    def test_on_a_cluster_local_decoding_asks_for_one_cpu_that_any_node_has(self):
        compute = plan_compute(config(decode="local"), Machine(64, 2, None))
        assert (compute.decode_threads, compute.actor_cpus) == (1, 1.0)

    def test_two_actors_may_share_a_gpu(self):
        assert plan_compute(config(gpus_per_actor=0.5), GPU_SERVER).actors == (4, 4)

    def test_cuda_without_a_gpu_is_refused(self):
        with pytest.raises(UsageError, match="--device cuda: this machine has no GPU"):
            plan_compute(config(device="cuda"), LAPTOP)

    @pytest.mark.parametrize(("options", "machine"), [({}, LAPTOP), ({"device": "cpu"}, GPU_SERVER)])
    def test_nvjpeg_without_a_gpu_is_refused(self, options, machine):
        with pytest.raises(UsageError, match="--decode gpu: the network runs on the CPU here; allowed there: auto, lo"):
            plan_compute(config(decode="gpu", **options), machine)

    def test_nvjpeg_has_the_threads_of_its_actor_for_what_it_refuses(self):
        compute = plan_compute(config(decode="gpu"), GPU_SERVER)
        assert (compute.decode, compute.decode_threads, compute.runtime.device) == ("gpu", 12, "cuda")

    def test_cpu_is_kept_to_where_it_is_asked_for(self):
        assert plan_compute(config(device="cpu"), GPU_SERVER).runtime.device == "cpu"


class TestSizes:
    @pytest.mark.parametrize(
        ("n_images", "slices"),
        [(10, 32), (300, 64), (1000, 128), (256_000, 128), (256_001, 160), (2_560_000, 1280)],
    )
    def test_slices_are_whole_batches_few_in_small_runs_and_never_too_many(self, n_images, slices):
        assert images_per_slice(config())(n_images) == slices

    def test_a_given_batch_size_sets_the_slice(self):
        assert images_per_slice(config(batch_size=50))(100_000) == 150

    @pytest.mark.parametrize(("n_images", "images"), [(100, 256), (32_000, 1000), (10_000_000, 32_768)])
    def test_commits_are_about_16_an_actor_within_bounds(self, n_images, images):
        assert images_per_commit(config(), n_images, actors=2, row_bytes=1000) == images

    def test_a_commit_never_holds_more_than_memory_allows(self):
        assert images_per_commit(config(), 10_000_000, 1, row_bytes=2**20) == COMMIT_BYTES // 2**20
        assert images_per_commit(config(images_per_commit=10), 10_000_000, 1, row_bytes=2**20) == 10

    def test_a_long_run_on_gpus_has_blocks_of_the_two_batches_that_an_actor_works_on(self):
        compute = plan_compute(config(device="cuda"), GPU_SERVER)
        assert images_of_block(compute, 1_000_000) == 512
        assert images_of_block(compute, 8_191) == 256, "at least eight blocks for each actor"
        assert images_of_block(compute, 100) == 256, "no less than a batch"
        assert images_of_block(plan_compute(config(), LAPTOP), 1_000_000) == 32, "so every slice stays alone"

    def test_slices_are_joined_to_their_neighbours_up_to_a_size(self):
        slices = [PlanSlice("plan", group, rows) for group, rows in enumerate((128, 128, 128, 300, 10, 20))]
        groups = joined_slices(slices, 256)
        assert [[one.row_group for one in group] for group in groups] == [[0, 1], [2], [3], [4, 5]]
        assert joined_slices([], 256) == []
