"""``rebox --classes``: named classes get boxes from their stored maps, as annotate cuts them, or it is said why not."""

import json

import numpy as np
import pytest

from jobs.rebox import rebox
from jobs.terminal.console import Screen
from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.commit import finish_run, start_run
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.lease import Lease
from pipeline.storage.truth.class_names import StoredNames
from schemas.errors import UsageError
from schemas.options.config import StorageConfig
from schemas.options.rebox import ReboxConfig
from schemas.reasons import Reason
from tests.fake_lake import FakeLake, manifest_of, rows_of
from tests.jobs_on import run_annotate

KEYS = ["uri", "rank", "class_id", "label", "component"]
SIDES = ["xmin", "ymin", "xmax", "ymax"]


def boxes_of(out):
    with camlake.open(str(out)) as lake:
        return lake.pandas("boxes").sort_values(KEYS).reset_index(drop=True)


def coco(named):
    """Return COCO's JSON with an object of each named class, and one annotation that can't be used."""
    uris, labels = named["uri"].unique().tolist(), named["label"].unique().tolist()
    pairs = zip(named["uri"], named["label"], strict=True)
    of_pair = [{"image_id": uris.index(uri), "category_id": labels.index(label)} for uri, label in pairs]
    return json.dumps(
        {
            "images": [{"id": number, "file_name": uri} for number, uri in enumerate(uris)],
            "categories": [{"id": number, "name": label} for number, label in enumerate(labels)],
            "annotations": [*({**pair, "bbox": [1, 1, 5, 5]} for pair in of_pair), {**of_pair[0], "id": 77}],
        }
    )


def test_boxes_are_those_of_annotate_with_the_same_classes(tmp_path, capsys):
    write_corpus(tmp_path, 8, seed=5, size_hw=(96, 128))
    source, direct, new = (tmp_path / name for name in ("source", "direct", "new"))
    run_annotate(tmp_path / "images", source, topk=10, box_rule="auto", min_prob=0)
    with camlake.open(str(source)) as lake:
        maps = lake.sql("SELECT uri, heatmaps.rank, heatmaps.label FROM heatmaps JOIN images USING (image_id)").df()
    named = maps[maps["rank"].isin((4, 8)) & maps["uri"].isin(sorted(maps["uri"].unique())[::2])]
    (tmp_path / "classes.json").write_text(coco(named))
    # No four classes of an image have a probability of .3, so that the first three are all that this rule takes.
    options = {"classes": str(tmp_path / "classes.json"), "min_prob": 0.3}
    run_annotate(tmp_path / "images", direct, topk=3, box_rule="auto", **options)
    manifest = rebox(ReboxConfig.resolve({"labels": str(source), "out": str(new), **options}), Screen())
    assert manifest.settings["classes"] == "a file of classes"
    assert verify(*connect(str(new), StorageConfig())).problems == ()
    expected, found = boxes_of(direct), boxes_of(new)
    assert found[KEYS].equals(expected[KEYS])
    assert set(named["rank"]) <= set(found["rank"]), "classes of low probability are among them"
    assert len(found) < 8 * 3 + len(named)
    assert np.allclose(found["class_prob"], expected["class_prob"], atol=1e-5)
    assert np.allclose(found["box_score"], expected["box_score"], atol=1e-5)
    moved = np.abs(found[SIDES].to_numpy() - expected[SIDES].to_numpy()).max(axis=1)
    assert np.median(moved) < 0.2
    assert (moved < 1).mean() > 0.95, "the maps differ by their rounding only"
    said = "".join(capsys.readouterr().err.split())
    assert said.count("can'tbeusedanddoesn'tcount:annotation77:nobbox.") == 2, "annotate and rebox name it alike"


@pytest.fixture
def source(tmp_path):
    lake = FakeLake(str(tmp_path / "labels"))
    lake.run({"a": "v1", "b": "v1", "c": "v1"}, {"x": Reason.TRUNCATED}, tasks=3)
    return lake


def again(source, text, name="classes.csv", **options):
    """Cut boxes of FakeLake's maps, cat and dog of each image, both of probability .5."""
    folder = source.out.removesuffix("labels")
    with open(folder + name, "w") as file:  # noqa: PTH123
        file.write(text)
    values = {"labels": source.out, "out": folder + "new", "classes": folder + name, "min_prob": 0.6}
    rebox(ReboxConfig.resolve(values | {"box_rule": "paper"} | options), Screen())
    assert verify(*connect(folder + "new", StorageConfig())).problems == ()
    return boxes_of(folder + "new")[["uri", "label"]].to_numpy().tolist()


@pytest.mark.parametrize(
    "text", ["file,label\na,dog\n", "uri,class_id\na,8\n", "file,label\na,dog\na,cat\nother.jpg,cat\n"]
)
def test_a_named_class_has_its_box_beside_the_most_probable_one(source, text, capsys):
    assert again(source, text) == [["a", "cat"], ["a", "dog"], ["b", "cat"], ["c", "cat"]]
    assert "--classes" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file,label\na,bird\nb,fish\nx,bird\nb,dog\n", "2 classes that --classes names have no stored map"),
        ("file,class_id\na,3\nb,8\n", "1 classes that --classes names have no stored map, like 'class 3' of a;"),
    ],
)
def test_a_named_class_without_a_stored_map_is_said(source, text, said, capsys):
    assert again(source, text) == [["a", "cat"], ["b", "cat"], ["b", "dog"], ["c", "cat"]]
    lines = [
        line for line in capsys.readouterr().err.replace("\n", " ").split("; annotate") if "--classes names" in line
    ]
    assert len(lines) == 1
    assert said.rstrip(";") in lines[0]


def test_a_named_class_of_unknown_probability_is_said(tmp_path, capsys):
    lake, run_id = FakeLake(str(tmp_path / "labels")), "20261123T060000-abcdef"
    with Lease.acquire(lake.fs, lake.root, run_id) as lease:
        manifest = manifest_of(run_id, planned=2)
        start_run(lake.fs, lake.root, manifest)
        lake.write_plan(run_id, {"a": "v1", "b": "v1"})
        rows = rows_of(run_id, {"a": "v1", "b": "v1"})
        rows["boxes"] = rows["boxes"].slice(0, 0)
        lake.commit(run_id, lease.generation, "000000", rows)
        finish_run(lake.fs, lake.root, manifest, lease.generation)
    assert again(lake, "file,label\na,dog\n") == [["a", "cat"], ["b", "cat"]]
    said = " ".join(capsys.readouterr().err.split())
    assert "1 maps get no box: LABELS has none of theirs, which would tell their class_prob" in said
    assert "1 maps of classes that --classes names get no box: LABELS has none of theirs" in said
    assert "annotate with --classes, into another output" in said


def test_annotations_that_cant_be_used_are_named(source, capsys):
    good = {"id": 1, "image_id": 7, "category_id": 2, "bbox": [1, 1, 5, 5]}
    document = {
        "images": [{"id": 7, "file_name": "a"}],
        "categories": [{"id": 2, "name": "dog"}],
        "annotations": [good, {**good, "id": 2, "bbox": None}, {**good, "id": 3, "image_id": 8}],
    }
    assert again(source, json.dumps(document), "c.json") == [["a", "cat"], ["a", "dog"], ["b", "cat"], ["c", "cat"]]
    said = " ".join(capsys.readouterr().err.split())
    assert "can't be used and don't count: annotation 2: no bbox; annotation 3: no image has the id 8." in said


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("file,label\nq,dog\n", {}, r"--classes \S+: names none of the 4 images to cut boxes for; its keys are uris"),
        ("file,class_id\na,10\n", {}, r"--classes \S+: class id 10; allowed: 0 to 9"),
        ("file,kind\na,dog\n", {}, "no column class_id or"),
        ("file,label\na,dog\n", {"box_rule": "heuristic", "min_prob": 0.0}, "--classes: allowed with --box-rule auto"),
    ],
)
def test_what_can_not_be_is_refused_in_a_line(source, text, options, said):
    with pytest.raises(UsageError, match=said):
        again(source, text, **options)


def test_rows_with_and_without_named_classes_never_mix(source):
    again(source, "file,label\na,dog\n")
    with pytest.raises(
        UsageError, match=r"^--classes: the boxes in \S+ were made with a file of classes, not no class"
    ):
        again(source, "", classes=None)


def test_a_label_that_no_stored_map_has_means_a_class_without_a_map():
    names = StoredNames(["cat", None, "crane", "crane"])
    assert (names.ids("cat"), names.ids("crane"), names.ids("")) == ((0,), (2, 3), ())
    assert (names.ids("bird"), names.ids("fish"), names.ids("bird"), names.end) == ((4,), (5,), (4,), 6)
    assert [names.name(each) for each in (0, 1, 5)] == ["cat", "class 1", "fish"]


@pytest.mark.parametrize(
    ("texts", "label", "ids"),
    [
        (["n02119789 kit fox", None, "n02012849 crane"], "n02119789", (0,)),
        (["kit fox", None, "horse cart"], "horse", (3,)),
    ],
)
def test_first_words_of_some_texts_name_classes_where_they_are_codes(texts, label, ids):
    assert StoredNames(texts).ids(label) == ids
