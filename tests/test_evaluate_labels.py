"""``evaluate --labels``: a truth whose labels are other words for the network's classes than the output's."""

import json
from pathlib import Path

import pytest

from schemas.errors import UsageError
from tests.scoring import LABELS, example, figure_of, scores_of_job

CODES = [f"n0{index}" for index in range(len(LABELS))]
MAPPING = "".join(f"{code} {label} fish, Piscis {label}\n" for code, label in zip(CODES, LABELS, strict=True))
OBJECTS = {
    "a": [("n01", 35, 35, 55, 55)],
    "b": [("n02", 0, 0, 50, 100), ("n99", 0, 0, 9, 9)],
    "d": [("n05", 15, 15, 85, 85)],
}


def xml_folder(folder: Path, objects: dict[str, list[tuple[str, int, int, int, int]]]) -> str:
    """Write an ILSVRC truth, an XML file an image, and return its folder."""
    (folder / "xml").mkdir()
    for image, items in objects.items():
        parts = []
        for name, *corners in items:
            edges = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
            box = "".join(f"<{edge}>{value}</{edge}>" for edge, value in edges)
            parts.append(f"<object><name>{name}</name><bndbox>{box}</bndbox></object>")
        text = f"<annotation><filename>{image}.jpg</filename>{''.join(parts)}</annotation>"
        (folder / "xml" / f"{image}.xml").write_text(text)
    return str(folder / "xml")


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_ilsvrc_xml_is_scored_against_a_network_with_other_words(tmp_path: Path) -> None:
    example().write(str(tmp_path / "out"))
    truth = xml_folder(tmp_path, OBJECTS)
    with pytest.raises(UsageError, match=r"like 'n01', is one of the output's, like 'cat'; give class ids .* --labels"):
        scores_of_job(tmp_path, truth)
    document = scores_of_job(tmp_path, truth, labels=write(tmp_path, "mapping.txt", MAPPING))
    by_id = "a.jpg,1,35,35,55,55\nb.jpg,2,0,0,50,100\nd.jpg,5,15,15,85,85\n"
    same = write(tmp_path, "ids.csv", "file,class_id,xmin,ymin,xmax,ymax\n" + by_id)
    assert document["figures"] == scores_of_job(tmp_path, same)["figures"]
    assert figure_of(document, "gt_known")["value"] == pytest.approx(2 / 3)
    assert [each["class_name"] for each in document["classes"]] == ["n01", "n02", "n05"]
    assert (
        "1 objects of the truth have no class id, or a label that --labels lacks, like 'n99', and don't count."
        in (document["notes"])
    )


def test_class_ids_that_the_network_has_not_are_an_error(tmp_path: Path) -> None:
    example().write(str(tmp_path / "out"))
    text = "file,class_id,xmin,ymin,xmax,ymax\na.jpg,1,35,35,55,55\nb.jpg,5000,0,0,50,100\n"
    with pytest.raises(
        UsageError, match=r"^the truth has class_id 5000; allowed: 0 to 9, the classes of \S+, or labels"
    ):
        scores_of_job(tmp_path, write(tmp_path, "ids.csv", text))
    elsewhere = text.replace("b.jpg", "elsewhere.jpg")
    assert scores_of_job(tmp_path, write(tmp_path, "ids.csv", elsewhere))["pairs"] == 1


def test_a_plain_list_of_names(tmp_path: Path) -> None:
    output = example()
    output.write(str(tmp_path / "out"))
    truth = write(tmp_path, "t.csv", "file,label,xmin,ymin,xmax,ymax\na.jpg,sea ring,35,35,55,55\n")
    names = [f"sea {label}" for label in LABELS]
    document = scores_of_job(tmp_path, truth, labels=write(tmp_path, "names.txt", "\n".join(names)))
    assert figure_of(document, "top1_localization")["value"] == 1


def test_lists_that_can_not_be_meant(tmp_path: Path) -> None:
    example().write(str(tmp_path / "out"))
    truth = xml_folder(tmp_path, OBJECTS)
    short = write(tmp_path, "short.txt", "".join(MAPPING.splitlines(keepends=True)[:-1]))
    with pytest.raises(UsageError, match=r"^--labels \S+short.txt: 9 names; allowed: one for each .* 10 classes$"):
        scores_of_job(tmp_path, truth, labels=short)
    plain = write(tmp_path, "plain.txt", "\n".join(LABELS))
    with pytest.raises(UsageError, match=r"^truth \S+: --labels has none of its labels, like 'n01'$"):
        scores_of_job(tmp_path, truth, labels=plain)


def test_classes_that_the_network_lacks_count_only_where_nobody_knows(tmp_path: Path) -> None:
    example().write(str(tmp_path / "out"))
    notes = [{"image_id": 1, "category_id": kind, "bbox": [35, 35, 20, 20]} for kind in (1, 2)]
    document = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "ring"}],
        "annotations": notes,
    }
    truth = write(tmp_path, "coco.json", json.dumps(document))
    unsure = scores_of_job(tmp_path, truth)
    assert (unsure["pairs"], figure_of(unsure, "gt_known")["value"]) == (2, 0.5)
    assert any(
        note.startswith("1 of these pairs have a label that no row of the output has, like 'person'.")
        for note in unsure["notes"]
    )
    sure = scores_of_job(tmp_path, truth, labels=write(tmp_path, "names.txt", "\n".join(LABELS)))
    assert (sure["pairs"], figure_of(sure, "gt_known")["value"]) == (1, 1)
    assert any("lacks, like 'person', and don't count" in note for note in sure["notes"])
    assert not any("of these pairs" in note for note in sure["notes"])
