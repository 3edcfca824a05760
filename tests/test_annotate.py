"""The whole job on both engines: every input in exactly one table, done means done, the same rows by every way."""

import io
import os
import shutil
import tarfile
import time

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.annotate.annotate_stage import AnnotateStage
from pipeline.annotate.decode_stage import DecodeStage
from pipeline.annotate.image_reader import ImageReader
from pipeline.annotate.model import load_model
from pipeline.annotate.resources import Machine, plan_compute
from pipeline.annotate.spec import annotate_spec, decode_spec
from pipeline.graph.annotate import with_network
from pipeline.graph.annotate.driver import refuse_rejected_share
from pipeline.images.synthetic.scenes import CLASSES, write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.rows import split_rows
from schemas.errors import RejectedShareError, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from tests.jobs_on import run_annotate
from tests.references.equal_rows import same_rows

N_IMAGES, N_BROKEN = 24, 2


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder, N_IMAGES, seed=3, size_hw=(96, 128), broken=N_BROKEN)
    return folder


@pytest.fixture(scope="module")
def annotated(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "labels"
    manifest = run_annotate(corpus / "images", out, images_per_commit=10)
    return out, manifest


def intact(corpus):
    """The JPEG files that are not broken."""
    return sorted(path for path in (corpus / "images").glob("*.jpg") if path.name.rpartition("-")[0] in CLASSES)


def problems(out):
    return list(verify(*connect(str(out), StorageConfig())).problems)


def rows(out, table, *, without=("run_id", "annotated_at", "rejected_at", "date", "uri", "image_id")):
    with camlake.open(str(out)) as lake:
        table = lake.arrow(table)
    return table.select([name for name in table.column_names if name not in without])


class TestOneRun:
    def test_every_input_ends_in_exactly_one_table(self, annotated, corpus):
        out, manifest = annotated
        with camlake.open(str(out)) as lake:
            images = lake.arrow("images")["uri"].to_pylist()
            rejected = lake.arrow("quarantine")["uri"].to_pylist()
        assert sorted(images + rejected) == sorted(str(path) for path in (corpus / "images").iterdir())
        assert (manifest.counts.annotated, manifest.counts.rejected) == (N_IMAGES, N_BROKEN)
        assert problems(out) == []

    def test_broken_files_have_their_true_reasons(self, annotated):
        reasons = rows(annotated[0], "quarantine")["reason_code"].to_pylist()
        assert sorted(reasons) == ["not_an_image", "truncated"]

    def test_boxes_are_opencvs_on_the_stored_maps(self, annotated):
        with camlake.open(str(annotated[0])) as lake:
            joined = lake.sql(
                "SELECT * FROM boxes JOIN heatmaps USING (model, image_id, rank) JOIN images USING (model, image_id)"
            ).to_arrow_table()
        overlaps = []
        for row in joined.to_pylist():
            surface = camlake.heatmap(row, (row["height_px"], row["width_px"]))
            foreground = (surface >= row["threshold"] * surface.max()).astype(np.uint8)
            _, _, stats, _ = cv2.connectedComponentsWithStats(foreground, connectivity=8)
            x, y, width, height, _ = stats[1:][stats[1:, 4].argmax()]
            inner_w = min(row["xmax"], x + width) - max(row["xmin"], x)
            inner_h = min(row["ymax"], y + height) - max(row["ymin"], y)
            inner = max(inner_w, 0) * max(inner_h, 0)
            own = (row["xmax"] - row["xmin"]) * (row["ymax"] - row["ymin"])
            overlaps.append(inner / (own + width * height - inner))
        assert len(overlaps) == len(joined) > N_IMAGES
        assert np.mean(overlaps) > 0.97

    def test_ray_gives_the_rows_of_the_local_engine(self, annotated, corpus, ray_session, tmp_path):
        manifest = run_annotate(corpus / "images", tmp_path, images_per_commit=10, engine="ray")
        assert manifest.counts == annotated[1].counts
        assert manifest.settings == annotated[1].settings
        for table in ("images", "boxes", "heatmaps", "features", "quarantine"):
            assert same_rows(annotated[0], tmp_path, table) > 0, table
        assert problems(tmp_path) == []

    def test_the_engine_gives_what_a_plain_loop_gives(self, annotated, corpus):
        options = {"model": "camlake_demo", "topk": 2, "batch_size": 8, "precision": "fp32", "box_rule": "paper"}
        config = AnnotateConfig(input=str(corpus / "images"), out="unused", **options)
        model, compute = load_model(config), plan_compute(config, Machine(4, 0, 1))
        plan = pa.Table.from_batches(list_inputs(config.input, config).batches).sort_by("uri")
        decode = DecodeStage(decode_spec(config, model))
        annotate = AnnotateStage(annotate_spec(config, model, compute.runtime), model.weights.state)
        wide = annotate(decode(ImageReader(config, "unused", config.max_bytes).fetch(plan)))
        by_hand = split_rows(wide, "run", config.outputs)
        with camlake.open(str(annotated[0])) as lake:
            by_engine = lake.arrow("boxes").sort_by([("uri", "ascending"), ("rank", "ascending")])
        boxes = by_hand["boxes"].sort_by([("uri", "ascending"), ("rank", "ascending")])
        assert by_engine["uri"].to_pylist() == boxes["uri"].to_pylist()
        assert by_engine["class_id"].to_pylist() == boxes["class_id"].to_pylist()
        for side in ("xmin", "ymin", "xmax", "ymax"):
            assert np.allclose(by_engine[side], boxes[side], atol=0.05)

    def test_parquet_has_plain_types_zstd_and_a_page_index(self, annotated):
        for path in annotated[0].glob("*/model=*/date=*/part-*.parquet"):
            file = pq.ParquetFile(path)
            assert not [field for field in file.schema_arrow if isinstance(field.type, pa.ExtensionType)]
            column = file.metadata.row_group(0).column(0)
            assert column.compression == "ZSTD"
            assert column.has_column_index


class TestDoneMeansDone:
    def test_a_second_run_does_nothing_and_loads_no_network(self, annotated, corpus, monkeypatch):
        monkeypatch.setattr(with_network, "prepare", lambda *arguments: pytest.fail("nothing is to do"))
        counts = run_annotate(corpus / "images", annotated[0]).counts
        assert (counts.listed, counts.already_done, counts.planned) == (N_IMAGES + N_BROKEN, N_IMAGES + N_BROKEN, 0)

    def test_changed_and_new_images_alone_are_annotated(self, corpus, tmp_path):
        images, out = tmp_path / "images", tmp_path / "out"
        images.mkdir()
        sources = intact(corpus)
        for source in sources[:3]:
            shutil.copy(source, images)
        run_annotate(images, out)
        changed = images / sources[0].name
        changed.write_bytes(sources[4].read_bytes())
        os.utime(changed, (time.time() + 5, time.time() + 5))
        shutil.copy(sources[5], images)
        counts = run_annotate(images, out).counts
        assert (counts.already_done, counts.annotated) == (2, 2)
        with camlake.open(str(out)) as lake:
            assert len(lake.arrow("images")) == 4
            assert lake.sql("SELECT count(*) FROM all_images").fetchall() == [(5,)]
        assert problems(out) == []

    def test_a_mended_image_leaves_quarantine(self, corpus, tmp_path):
        images, out = tmp_path / "images", tmp_path / "out"
        images.mkdir()
        (images / "a.jpg").write_text("no picture")
        run_annotate(images, out)
        shutil.copy(intact(corpus)[0], images / "a.jpg")
        assert run_annotate(images, out).counts.annotated == 1
        with camlake.open(str(out)) as lake:
            assert (len(lake.arrow("images")), len(lake.arrow("quarantine"))) == (1, 0)

    def test_rejected_images_are_tried_again_when_asked(self, annotated, corpus, tmp_path):
        out = tmp_path / "out"
        shutil.copytree(annotated[0], out)
        counts = run_annotate(corpus / "images", out, retry_rejected=True).counts
        assert (counts.already_done, counts.rejected) == (N_IMAGES, N_BROKEN)
        assert problems(out) == []

    def test_rows_of_other_settings_are_not_mixed_in(self, annotated, corpus):
        with pytest.raises(UsageError, match=r"--topk: the rows of this model in .* were made with 2, not 3"):
            run_annotate(corpus / "images", annotated[0], topk=3)


class TestOptions:
    def test_an_output_inside_the_input_is_no_input(self, corpus, tmp_path):
        images = tmp_path / "images"
        images.mkdir()
        for source in intact(corpus)[:3]:
            shutil.copy(source, images)
        run_annotate(images, images)
        again = run_annotate(images, images).counts
        assert (again.listed, again.already_done) == (3, 3)
        by_glob = run_annotate(f"{images}/**", images).counts
        assert (by_glob.listed, by_glob.already_done) == (3, 3)

    def test_a_mistake_leaves_no_trace_of_a_run(self, corpus, tmp_path):
        (tmp_path / "classes.csv").write_text("file,class_id\nnone.jpg,1\n")
        with pytest.raises(UsageError, match="names none of the 26 images to annotate"):
            run_annotate(corpus / "images", tmp_path / "out", classes=str(tmp_path / "classes.csv"))
        assert not list(tmp_path.glob("out/_runs/*/manifest.json"))

    def test_limit_sample_and_outputs(self, corpus, tmp_path):
        counts = run_annotate(corpus / "images", tmp_path / "out", limit=5, sample=0.5, outputs="boxes").counts
        assert counts.planned == 5
        assert counts.left_out == N_IMAGES + N_BROKEN - 5
        tables = {path.name for path in (tmp_path / "out").iterdir()}
        assert tables - {"quarantine"} == {"images", "boxes", "_runs"}

    def test_named_classes_get_maps_beside_the_top(self, corpus, tmp_path):
        out = tmp_path / "out"
        run_annotate(corpus / "images", out, topk=1, classes=str(corpus / "truth.csv"), limit=6)
        with camlake.open(str(out)) as lake:
            maps = lake.arrow("heatmaps").to_pandas().merge(lake.arrow("images").to_pandas(), on="image_id")
        named = maps[maps.apply(lambda row: row["uri"].rpartition("/")[2].split("-")[0] == row["label"], axis=1)]
        assert named["image_id"].nunique() == maps["image_id"].nunique()

    def test_fit_and_remote_decoding_and_fp16_features(self, corpus, tmp_path, ray_session):
        out = tmp_path / "out"
        options = {"resize": "fit", "decode": "remote", "feature_type": "float16", "limit": 6}
        run_annotate(corpus / "images", out, engine="ray", **options)
        heat = rows(out, "heatmaps").to_pylist()[0]
        assert heat["heat_w"] > heat["heat_h"]
        assert len(heat["heat"]) == heat["heat_w"] * heat["heat_h"]
        file = next(out.glob("features/**/*.parquet"))
        assert pq.read_schema(file).field("feature").type == pa.list_(pa.float16(), 112)
        boxes = rows(out, "boxes").to_pandas()
        assert boxes["xmax"].max() <= 128
        assert boxes["ymax"].max() <= 96

    def test_too_many_rejects_end_with_status_3(self, annotated):
        manifest = annotated[1]
        config = AnnotateConfig(input="in", out="out", max_rejected=0.05)
        with pytest.raises(RejectedShareError, match=r"2 of 26 inputs were rejected \(1 not_an_image, 1 truncated\)"):
            refuse_rejected_share(manifest, config)
        refuse_rejected_share(manifest, config.model_copy(update={"max_rejected": 0.1}))


class TestKindsOfInput:
    """The same pictures, however they are stored, give the same boxes."""

    @pytest.fixture
    def pictures(self, corpus):
        return {path.name: path.read_bytes() for path in intact(corpus)[:6]}

    @pytest.fixture
    def expected(self, pictures, annotated):
        with camlake.open(str(annotated[0])) as lake:
            boxes = lake.arrow("boxes").to_pandas()
        boxes["name"] = boxes["uri"].str.rpartition("/")[2]
        return self.corners(boxes[boxes["name"].isin(pictures)])

    @staticmethod
    def corners(boxes):
        ordered = boxes.sort_values(["name", "rank"])
        return ordered[["xmin", "ymin", "xmax", "ymax"]].to_numpy()

    def check(self, input_, out, expected):
        manifest = run_annotate(input_, out)
        assert manifest.counts.annotated == 6
        with camlake.open(str(out)) as lake:
            boxes = lake.arrow("boxes").to_pandas()
        boxes["name"] = boxes["uri"].str.rpartition("/")[2].str.rpartition("#")[2]
        assert np.allclose(self.corners(boxes), expected, atol=0.05)
        assert problems(out) == []

    def test_manifest(self, pictures, corpus, tmp_path, expected):
        lines = [f'{{"uri": "{corpus / "images" / name}"}}' for name in pictures]
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
        self.check(tmp_path / "list.jsonl", tmp_path / "out", expected)

    def test_parquet_with_image_bytes(self, pictures, tmp_path, expected):
        images = [{"bytes": data, "path": name} for name, data in pictures.items()]
        pq.write_table(pa.table({"image": images}), tmp_path / "train.parquet")
        self.check(tmp_path / "train.parquet", tmp_path / "out", expected)

    def test_webdataset_shard(self, pictures, tmp_path, expected):
        with tarfile.open(tmp_path / "shard-000.tar", "w") as shard:
            for name, data in pictures.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                shard.addfile(member, io.BytesIO(data))
        self.check(tmp_path / "shard-000.tar", tmp_path / "out", expected)

    def test_glob(self, pictures, corpus, tmp_path, expected):
        folder = tmp_path / "some"
        folder.mkdir()
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
        self.check(f"{folder}/*.jpg", tmp_path / "out", expected)


def test_every_odd_file_ends_with_a_true_reason(shared, tmp_path):
    """277 unusual or damaged files: each is annotated or rejected, and the run goes on."""
    out = tmp_path / "out"
    counts = run_annotate(shared / "real" / "odd", out, batch_size=32).counts
    assert counts.listed == 277
    assert counts.annotated + counts.rejected == 277
    assert problems(out) == []
