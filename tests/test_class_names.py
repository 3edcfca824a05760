"""What the classes of a network are called: whole texts, first words where they are codes, and unreadable lists."""

from pathlib import Path

import pytest

from pipeline.storage.truth.class_names import ClassNames, read_class_names
from schemas.errors import InputError, UsageError
from schemas.options.config import StorageConfig

LOCAL = StorageConfig()


def names_in(folder: Path, text: str) -> ClassNames:
    (folder / "names.txt").write_text(text, encoding="utf-8")
    return read_class_names(str(folder / "names.txt"), LOCAL)


@pytest.mark.parametrize(
    ("label", "ids"),
    [
        ("n02119789", (0,)),
        ("n02012849", (1,)),
        ("n02119789 kit fox, Vulpes macrotis", (0,)),
        ("kit fox", ()),
        ("crane", ()),
        ("", ()),
    ],
)
def test_a_line_answers_to_its_first_word_and_to_all_of_it(tmp_path: Path, label: str, ids: tuple[int, ...]) -> None:
    names = names_in(tmp_path, "n02119789 kit fox, Vulpes macrotis\nn02012849 crane\nn03126707\tcrane\n")
    assert names.ids(label) == ids


@pytest.mark.parametrize("text", ["kit fox\nred fox\nred wolf\ncrane\ncrane\n", "horse cart\ndog\nkit fox\n"])
def test_a_plain_list_answers_to_whole_names_only(tmp_path: Path, text: str) -> None:
    names = names_in(tmp_path, "\ufeff" + text)
    for name in text.split("\n")[:-1]:
        assert names.ids(name) == tuple(i for i, line in enumerate(text.splitlines()) if line == name)
    assert [names.ids(word) for word in ("kit", "red", "horse", "fox", "cart")] == [()] * 5


def test_a_json_list(tmp_path: Path) -> None:
    assert names_in(tmp_path, '["a b", "c"]').texts == ("a b", "c")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no name; allowed: UTF-8 text, one class a line"),
        ("a\n\nb\n", "an empty name"),
        ("[1, 2]", "a name that is no text"),
        ("[", "allowed: .* or a JSON list"),
    ],
)
def test_what_names_no_classes_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=rf"^--labels \S+names\.txt: .*{problem}"):
        names_in(tmp_path, text)


def test_other_bytes_and_no_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9\n")
    with pytest.raises(UsageError, match="not UTF-8 text; allowed"):
        read_class_names(str(tmp_path / "latin"), LOCAL)
    with pytest.raises(InputError, match="not found"):
        read_class_names(str(tmp_path / "none"), LOCAL)
