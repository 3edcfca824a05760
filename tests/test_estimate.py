"""What a dry run says: the model on made-up times, price and cluster files, and its word against a real run."""

import json

import pytest

from jobs.terminal.console import Screen
from jobs.terminal.dry_run import print_estimate
from pipeline.annotate.resources import Machine, plan_compute
from pipeline.graph.annotate.driver import annotate
from pipeline.graph.tuning import autotune
from pipeline.graph.tuning.bench_actor import RunTiming, SizeModel, StageTiming
from pipeline.graph.tuning.estimate import plan_run, read_offer
from pipeline.graph.tuning.prediction import RAY_CORES, RAY_START_S, predict
from pipeline.images.synthetic.scenes import write_corpus
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from tests.jobs_on import ROOT, run_command

LAPTOP = Machine(cpus=4, gpus=0, cores=2)
GPU_SERVER = Machine(cpus=16, gpus=1, cores=16)


def config(**options):
    return AnnotateConfig.resolve({"input": "in", "out": "out", **options})


def pace(wall_ms, cpu_ms=0.0):
    return StageTiming(1000, wall_ms, cpu_ms)


def timed(**stages):
    given = {
        "device": "cpu",
        "fetch": pace(5, 0.5),
        "decode": pace(2, 2),
        "network": pace(8, 8),
        "encode": pace(1, 0.5),
        "sizes": {"images": SizeModel(1000, 100), "boxes": SizeModel(0, 50)},
        "actors": 2,
        "decoders": 2,
        "cores": 2,
        "cpus": 4.0,
    }
    return RunTiming(images=128, rejected=0, start_s=4, **given | stages)


def predicted(compute, machine, times, planned=10_000):
    return predict(compute, machine, times, planned, per_slice=100, per_commit=1000)


class TestModel:
    def test_on_cpu_all_stages_share_the_cores(self):
        found = predicted(plan_compute(config(), LAPTOP), LAPTOP, timed())
        assert {stage.name: round(stage.images_per_s, 1) for stage in found.stages} == {
            "fetching": 1600,
            "encoding the output": 8000,
            "decoding": 1000,
            "network, maps, boxes": 250,
            "decoding, then the network": 200,
            "all of it on the CPUs": round((2 - RAY_CORES) / 0.011, 1),
        }
        assert found.limit.name == "all of it on the CPUs"
        assert found.images_per_s == pytest.approx((2 - RAY_CORES) / 0.011)

    def test_duration_has_start_and_end(self):
        found = predicted(plan_compute(config(), LAPTOP), LAPTOP, timed())
        assert found.start_s == 4 + RAY_START_S
        assert found.drain_s == pytest.approx(50 * 0.010 + 1000 * 0.001)
        assert found.duration_s == pytest.approx(found.start_s + 10_000 / found.images_per_s + found.drain_s)

    def test_bytes_are_those_of_the_rows_and_of_each_commits_file(self):
        found = predicted(plan_compute(config(), LAPTOP), LAPTOP, timed())
        assert found.sizes == {"images": 10 * 1000 + 10_000 * 100, "boxes": 10_000 * 50}
        assert found.output_bytes == 1_510_000

    def test_one_actor_leaves_a_core_to_the_other_stages(self):
        compute = plan_compute(config(actors=1), LAPTOP)
        found = predicted(compute, LAPTOP, timed(actors=1, decoders=1, network=pace(5), decode=pace(2)))
        # Its network has both cores for 5 ms, its decoding one for 2 ms: fetching and encoding go into the gap.
        assert found.limit.name == "decoding, then the network"
        assert found.images_per_s == pytest.approx(1 / 0.007)

    def test_more_actors_than_cores_wait_for_each_other(self):
        compute = plan_compute(config(actors=4), LAPTOP)
        found = predicted(compute, LAPTOP, timed(actors=4, decoders=4, network=pace(16), decode=pace(4)))
        assert found.images_per_s == pytest.approx((2 - RAY_CORES) / 0.011)

    def test_a_gpu_waits_for_decoding(self):
        compute = plan_compute(config(), GPU_SERVER)
        times = timed(device="cuda", network=pace(0.1, 0.05), actors=1, decoders=11, cores=16, cpus=16.0)
        found = predicted(compute, GPU_SERVER, times)
        assert (found.gpus, found.cores) == (1, 16)
        assert found.limit.name == "all of it on the CPUs"
        assert found.images_per_s == pytest.approx((16 - RAY_CORES) / (0.0005 + 0.002 + 0.00005 + 0.0005))

    def test_a_large_network_is_the_gpus_limit(self):
        compute = plan_compute(config(), GPU_SERVER)
        times = timed(device="cuda", network=pace(2, 0.1), actors=1, decoders=11, cores=16, cpus=16.0)
        assert predicted(compute, GPU_SERVER, times).images_per_s == 500
        assert predicted(compute, GPU_SERVER, times).limit.name == "network, maps, boxes"

    @pytest.mark.parametrize(("place", "images_per_s"), [("local", 500), ("gpu", 400)])
    def test_threads_decode_beside_the_gpu_and_nvjpeg_takes_its_time(self, place, images_per_s):
        compute = plan_compute(config(decode=place), GPU_SERVER)
        times = timed(
            device="cuda", network=pace(2, 0.1), decode=pace(0.5, 0.1), actors=1, decoders=1, cores=16, cpus=16.0
        )
        assert predicted(compute, GPU_SERVER, times).images_per_s == pytest.approx(images_per_s)

    def test_a_cpu_does_not_tell_a_gpus_speed(self):
        found = predicted(plan_compute(config(), GPU_SERVER), GPU_SERVER, timed())
        assert not found.whole
        assert not [stage for stage in found.stages if "network" in stage.name]

    def test_nor_does_it_tell_nvjpegs(self):
        compute = plan_compute(config(decode="gpu"), GPU_SERVER)
        slow, fast = (predicted(compute, GPU_SERVER, timed(decode=pace(ms))) for ms in (400, 4))
        assert not [stage for stage in slow.stages if "decoding" in stage.name]
        assert slow.images_per_s == fast.images_per_s

    def test_ray_may_hand_out_more_cpus_than_there_are(self):
        cluster = Machine(cpus=64, gpus=0, cores=None)
        assert predicted(plan_compute(config(), cluster), cluster, timed()).cores == 32


class TestOffers:
    @staticmethod
    def written(tmp_path, text, name="prices.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    def test_a_cluster_price(self, tmp_path):
        offer = read_offer(config(dry_run=True, prices=self.written(tmp_path, '{"per_hour": 3.2, "currency": "EUR"}')))
        assert offer == (None, 3.2, "EUR")

    def test_prices_by_instance_type_for_the_projects_own_cluster(self, tmp_path):
        prices = self.written(tmp_path, "per_hour: {m7i.xlarge: 0.2, g6.8xlarge: 2, c7i.8xlarge: 1.5}")
        offer = read_offer(config(dry_run=True, prices=prices, cluster=str(ROOT / "cluster.yaml")))
        assert offer.machine == Machine(cpus=12 * 32, gpus=8, cores=None)
        assert offer.per_hour == pytest.approx(0.2 + 8 * 2 + 4 * 1.5)

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("per_hour: -1", r"per_hour -1; allowed: per_hour, a number from 0 on"),
            ("per_hour: cheap", "per_hour 'cheap'; allowed"),
            ("per_hour: .inf", "per_hour inf; allowed"),
            ("per_hour: {g6.8xlarge: -1}", r"per_hour \(a mapping of 1\); allowed"),
            ("currency: EUR", "per_hour is missing; allowed"),
            ("{per_hour: 1, price: 2}", "unknown key 'price'; allowed"),
            ("3.2", "3.2 is no mapping; allowed"),
            ("per_hour: {g6.8xlarge: 2}", "per_hour by instance type; allowed with --cluster FILE"),
            ("per_hour: [", "neither YAML nor JSON"),
        ],
    )
    def test_a_bad_price_file_is_one_line(self, tmp_path, text, problem):
        prices = self.written(tmp_path, text)
        with pytest.raises(UsageError, match=rf"--prices '{prices}': {problem}") as error:
            read_offer(config(dry_run=True, prices=prices))
        assert "\n" not in str(error.value)

    def test_a_missing_file_is_named(self, tmp_path):
        with pytest.raises(UsageError, match=r"--prices '.*none.yaml': can't be read"):
            read_offer(config(dry_run=True, prices=str(tmp_path / "none.yaml")))

    def test_a_missing_price_is_named(self, tmp_path):
        prices = self.written(tmp_path, "per_hour: {m7i.xlarge: 0.2, g6.8xlarge: 2}")
        with pytest.raises(UsageError, match=r"no price for c7i\.8xlarge"):
            read_offer(config(dry_run=True, prices=prices, cluster=str(ROOT / "cluster.yaml")))

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("head_node_type: head", "available_node_types is missing"),
            ("{head_node_type: head, available_node_types: {worker: {resources: {CPU: 4}}}}", "'head' is no node type"),
            ("{head_node_type: a, available_node_types: {a: {}}}", "available_node_types.a.resources is missing"),
            (
                "{head_node_type: a, max_workers: 1, available_node_types: {a: {resources: {CPU: 4}, max_workers: 2}}}",
                "add up to 2, which can't all be up; allowed: up to the cluster's own max_workers, 1",
            ),
        ],
    )
    def test_a_bad_cluster_file_is_one_line(self, tmp_path, text, problem):
        with pytest.raises(UsageError, match=rf"--cluster '.*cluster.yaml': .*{problem}"):
            read_offer(config(dry_run=True, cluster=self.written(tmp_path, text, "cluster.yaml")))

    @pytest.mark.parametrize("options", [{}, {"dry_run": True, "address": "auto"}])
    def test_a_cluster_file_is_for_dry_runs_here(self, options):
        with pytest.raises(UsageError, match=r"--cluster 'c\.yaml': allowed: with --dry-run, and without --address"):
            config(cluster="c.yaml", **options)

    def test_the_command_says_it_in_one_line(self, tmp_path):
        prices = self.written(tmp_path, "per_hour: -1")
        done = run_command("annotate", tmp_path, "--out", tmp_path / "out", "--dry-run", "--prices", prices)
        assert done.returncode == 2
        assert done.stderr.startswith(f"camlake: --prices '{prices}': per_hour -1; allowed: ")
        assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, 38, seed=3, size_hw=(96, 128), broken=2)
    return folder / "images"


@pytest.mark.usefixtures("ray_session")
class TestDryRun:
    def tables(self, capsys):
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        tables = {line["title"].partition(",")[0]: line["rows"] for line in lines if line["event"] == "table"}
        return tables, [line["text"] for line in lines if line["event"] == "result"]

    def test_it_measures_predicts_and_writes_nothing(self, corpus, tmp_path, capsys):
        prices = TestOffers.written(tmp_path, "{per_hour: 3600, currency: EUR}")
        options = {"input": str(corpus), "out": str(tmp_path / "out"), "model": "camlake_demo", "actors": 1}
        print_estimate(config(**options, prices=prices, dry_run=True, batch_size=20), Screen("json"))
        tables, results = self.tables(capsys)
        plan = {row["fact"]: row["value"] for row in tables["Plan"]}
        assert (plan["listed"], plan["to do"]) == (40, 40)
        stages = {row["stage"]: row for row in tables["Stages"]}
        limit = next(row for row in stages.values() if row[""])
        assert stages["network, maps, boxes"]["ms an image"] > 0
        prediction = {row["fact"]: row["value"] for row in tables["Prediction"]}
        assert prediction["images/s"] == pytest.approx(limit["images/s of all"], abs=0.6)
        assert prediction["cost (EUR)"] == pytest.approx(prediction["duration with the start (s)"], abs=0.06)
        assert results[0].startswith("1 actor ")
        assert "batches of 20" in results[0]
        assert not (tmp_path / "out").exists()

    def test_for_a_gpu_cluster_it_gives_bounds_and_says_why(self, corpus, tmp_path, capsys):
        options = {"input": str(corpus), "out": str(tmp_path / "out"), "model": "camlake_demo", "dry_run": True}
        print_estimate(config(**options, cluster=str(ROOT / "cluster.yaml")), Screen("json"))
        tables, results = self.tables(capsys)
        assert any("a CPU does not tell a GPU's speed" in text for text in results)
        assert any("other hardware has another one" in text for text in results)
        prediction = {row["fact"] for row in tables["Prediction"]}
        assert {"at most images/s", "at least duration with the start (s)"} <= prediction
        assert not [row for row in tables["Stages"] if "network" in row["stage"]]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_a_tuned_run_says_what_it_chose_and_does_it(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(autotune, "CPU_BATCHES", (64,))  # One block for two actors; a warning of Ray's is an error.
    options = {"input": str(corpus), "out": str(tmp_path / "out"), "model": "camlake_demo", "max_rejected": 1.0}
    manifest = annotate(config(**options, engine="ray"), Screen(), tune_from=10)
    assert (manifest.counts.annotated, manifest.counts.rejected) == (38, 2)
    resolved = manifest.config["resolved"]
    assert resolved["why"].startswith("measured, images/s of the networks alone: ")
    assert f"batch {resolved['runtime']['batch_size']} " in resolved["why"]
    assert resolved["runtime"]["batch_size"] == 64
    assert print_estimate(config(**options, retry_rejected=False, dry_run=True), Screen()) is None  # all is done


def test_a_dry_run_takes_the_figure_ground_direction_of_the_run(tmp_path):
    write_corpus(tmp_path, 4, seed=5, size_hw=(96, 128), broken=0)
    run = {"input": str(tmp_path / "images"), "out": str(tmp_path / "out"), "model": "camlake_demo"}
    planned = plan_run(config(**run))
    assert planned.model.foreground is not None
    assert "foreground" in planned.config.outputs
    annotate(config(**run), Screen())
    again = plan_run(config(**run))
    assert again.model.foreground.digest == planned.model.foreground.digest
    assert again.plan.counts.already_done == 4
