"""What a run leaves open is chosen by trials: the rules, on speeds that are made up."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest

from pipeline.annotate.resources import Machine, worth_tuning
from pipeline.graph.tuning.autotune import measure_run, tune
from pipeline.graph.tuning.bench_actor import RunTiming, Speed, StageTiming
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig

LAPTOP = Machine(cpus=4, gpus=0, cores=2)
GPU_SERVER = Machine(cpus=16, gpus=1, cores=16)
MANY = 100
"""Slices: enough for every actor."""


def config(**options):
    return AnnotateConfig.resolve({"input": "in", "out": "out", **options})


class MadeUp:
    """Trials whose speeds, in images/s, stand in a table: by actors, batch size and "compiled"."""

    def __init__(self, speeds, ready_s=10.0, compiles=True, decode_s=0.001):
        self.speeds, self.ready_s, self.compiles, self.decode_s = speeds, ready_s, compiles, decode_s
        self.tried = []

    def network(self, compute, seconds):
        key = (compute.actors[1], compute.runtime.batch_size, *(["compiled"] if compute.runtime.compile else []))
        self.tried.append(key)
        assert compute.runtime.threads == (max(1, 2 // key[0]) if compute.runtime.device == "cpu" else 16)
        speed = self.speeds[key]
        return speed if isinstance(speed, str) else Speed(speed, self.ready_s)

    def stages(self, compute, machine, seconds):
        self.tried.append(compute.decode)
        decode_s = self.decode_s / (compute.decode_threads if compute.decode == "local" else 1)
        return timed(decode=StageTiming(1, decode_s, self.decode_s), network=StageTiming(1, 0.001, 0.0005))


def timed(**stages):
    nothing = StageTiming(1, 0.0, 0.0)
    given = {"fetch": nothing, "decode": nothing, "network": nothing, "encode": nothing, **stages}
    return RunTiming(
        device="cuda", images=1, rejected=0, start_s=0, **given, sizes={}, actors=1, decoders=1, cores=16, cpus=16
    )


def chosen(trials, machine=LAPTOP, planned=1000, budget_s=60.0, **options):
    compute = tune(config(**options), machine, MANY, planned, trials, budget_s)
    return compute.actors[1], compute.runtime.batch_size, compute.runtime.compile


class TestBatchSize:
    def test_it_grows_as_long_as_that_pays_three_percent(self):
        trials = MadeUp({(2, 16): 100, (2, 32): 104, (2, 64): 106, (1, 32): 50})
        assert chosen(trials) == (2, 32, False)
        assert trials.tried == [(2, 16), (2, 32), (2, 64), (1, 32)]

    def test_a_batch_that_does_not_fit_ends_the_growth(self):
        trials = MadeUp({(1, 16): 100, (1, 32): 190, (1, 64): 350, (1, 128): "out of memory"})
        assert chosen(trials, GPU_SERVER, decode="remote") == (1, 64, False)

    def test_when_none_fits_it_says_so(self):
        with pytest.raises(UsageError, match=r"--batch-size 16: out of memory on the GPU; allowed: .*--image"):
            chosen(MadeUp({(1, 16): "out of memory"}), GPU_SERVER)

    def test_a_given_one_stays(self):
        trials = MadeUp({(2, 48): 100, (1, 48): 90})
        assert chosen(trials, batch_size=48) == (2, 48, False)
        assert trials.tried == [(2, 48), (1, 48)]

    def test_without_time_the_first_one_stays(self):
        trials = MadeUp({(2, 16): 100})
        assert chosen(trials, budget_s=0) == (2, 16, False)


class TestThreads:
    def test_fewer_actors_with_more_threads_where_they_are_faster(self):
        assert chosen(MadeUp({(2, 16): 100, (2, 32): 99, (1, 16): 110})) == (1, 16, False)

    def test_given_actors_stay(self):
        trials = MadeUp({(2, 16): 100, (2, 32): 99})
        assert chosen(trials, actors=2) == (2, 16, False)

    def test_a_cluster_that_others_may_share_has_one_thread_an_actor(self):
        trials = MadeUp({(3, 16): 100, (3, 32): 99})
        assert chosen(trials, Machine(4, 0, None)) == (3, 16, False)


COMPILED_IS_TWICE_AS_FAST = {(2, 16): 100, (2, 32): 99, (1, 16): 50, (2, 16, "compiled"): 200}
A_FAST_GPU = {(1, 16): 1000, (1, 32): 1000}


class TestCompilation:
    def test_it_must_save_three_times_its_own_time(self):
        assert chosen(MadeUp(COMPILED_IS_TWICE_AS_FAST, ready_s=49), planned=30_000) == (
            2,
            16,
            True,
        )  # 300 s become 150 s
        assert chosen(MadeUp(COMPILED_IS_TWICE_AS_FAST, ready_s=21), planned=12_000) == (2, 16, False)

    def test_it_is_not_tried_where_the_run_is_too_short(self):
        trials = MadeUp(COMPILED_IS_TWICE_AS_FAST, ready_s=1)
        assert chosen(trials, planned=11_999) == (2, 16, False)
        assert (2, 16, "compiled") not in trials.tried

    def test_it_needs_a_compiler(self):
        assert chosen(MadeUp(COMPILED_IS_TWICE_AS_FAST, ready_s=1, compiles=False), planned=10**6) == (2, 16, False)

    def test_a_network_that_cannot_be_compiled_runs_as_it_is(self):
        speeds = COMPILED_IS_TWICE_AS_FAST | {(2, 16, "compiled"): "can't be compiled here"}
        assert chosen(MadeUp(speeds), planned=10**6) == (2, 16, False)

    @pytest.mark.parametrize(("switch", "compiled"), [("on", True), ("off", False)])
    def test_a_given_one_stays(self, switch, compiled):
        trials = MadeUp(COMPILED_IS_TWICE_AS_FAST, ready_s=1)
        assert chosen(trials, planned=10**6, compile=switch) == (2, 16, compiled)
        assert trials.tried == [(2, 16), (2, 32), (1, 16)]  # To compile for each of them would take minutes.


class TestPlaceOfDecoding:
    def place(self, trials, machine=GPU_SERVER, **options):
        return tune(config(**options), machine, MANY, 1000, trials).decode

    def test_tasks_decode_where_the_gpu_would_wait(self):
        # 12 threads decode 240 images/s, 15 tasks 300.
        assert self.place(MadeUp(A_FAST_GPU, decode_s=0.05)) == "remote"

    def test_actors_decode_where_their_threads_keep_up_with_the_gpu(self):
        assert self.place(MadeUp(A_FAST_GPU, decode_s=0.01)) == "local"

    def test_a_given_place_stays(self):
        trials = MadeUp(A_FAST_GPU)
        assert self.place(trials, decode="local") == "local"
        assert "remote" not in trials.tried

    def test_on_cpu_images_are_decoded_beside_the_network(self):
        assert self.place(MadeUp({(2, 16): 100, (2, 32): 99, (1, 16): 50}), LAPTOP) == "local"


class TestWorth:
    def test_small_runs_start_at_once(self):
        assert not worth_tuning(config(), 19_999)
        assert worth_tuning(config(), 20_000)
        assert worth_tuning(config(), 10, tune_from=10)

    def test_nothing_is_measured_where_nothing_is_open(self):
        given = {"batch_size": 32, "actors": 2, "compile": "off", "decode": "local"}
        assert not worth_tuning(config(**given), 10**6)
        assert worth_tuning(config(**given | {"compile": "auto"}), 10**6)


def test_the_reason_names_every_trial():
    trials = MadeUp({(2, 16): 100, (2, 32): 99, (1, 16): 50})
    assert tune(config(), LAPTOP, MANY, 1000, trials).why == (
        "measured, images/s of the networks alone: 2 × 1 threads, batch 16 100.0, 2 × 1 threads, batch 32 99.0, "
        "1 × 2 threads, batch 16 50.0"
    )


def test_a_machine_without_a_gpu_is_timed_with_its_own_decoding_for_a_cluster_that_has_nvjpeg(monkeypatch):
    planned = []

    def stages(compute, machine, seconds):
        planned.append(compute)
        return replace(
            timed(**dict.fromkeys(("fetch", "decode", "network", "encode"), StageTiming(1, 0.1, 0.1))), device="cpu"
        )

    bench = SimpleNamespace(stages=stages)
    monkeypatch.setattr("pipeline.graph.tuning.autotune.open_bench", lambda *how: nullcontext(bench))
    resize = SimpleNamespace(map_hw=(4, 4))
    model = SimpleNamespace(network=SimpleNamespace(channels=8), resize=resize, foreground=None)
    slices, cluster = [SimpleNamespace(rows=1000)], Machine(cpus=64, gpus=2, cores=None)
    measured = measure_run(config(decode="gpu"), model, LAPTOP, slices, None, offered=cluster)
    assert [(compute.decode, compute.runtime.device) for compute in planned] == [("local", "cpu")]
    assert (measured.compute.decode, measured.compute.runtime.device) == ("gpu", "cuda")
    assert not measured.prediction.whole
