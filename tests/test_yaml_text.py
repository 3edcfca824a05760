"""YAML as users mean it, in job files and in other options' files."""

import math

import pytest
import yaml

from jobs.terminal.console import read_config
from schemas.errors import UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.yaml_text import parse_yaml


def test_values_are_those_of_yaml_1_2():
    text = "a: 1:2\nb: 1:30.5\nc: 12\nd: 1.5\ne: [1, -2]\nf: {g: 0.5}\nh: on\ni: true\nj: No\n"
    text += "k: 010\nl: 1e-3\nm: 2026-12-01\nn:\no: -.inf\np: 0x10\n"
    assert parse_yaml(text) == {
        "a": "1:2",
        "b": "1:30.5",
        "c": 12,
        "d": 1.5,
        "e": [1, -2],
        "f": {"g": 0.5},
        "h": "on",
        "i": True,
        "j": "No",
        "k": 10,
        "l": 0.001,
        "m": "2026-12-01",
        "n": None,
        "o": -math.inf,
        "p": 16,
    }


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3\n", '{"x": {"a": 1, "a": 1}}', "a: 1\n'a': 2"])
def test_a_key_that_stands_twice_is_an_error(text):
    with pytest.raises(yaml.YAMLError, match="'a' stands twice"):
        parse_yaml(text)


def test_keys_that_look_alike_are_two():
    assert parse_yaml("1: number\n'1': text\n") == {1: "number", "1": "text"}
    assert parse_yaml("base: &b {x: 1}\nown: {<<: *b, x: 2}") == {"base": {"x": 1}, "own": {"x": 2}}
    nested = "base: &b {x: 1}\nouter: {mid: &m {<<: *b, x: 2}}\ntop: {<<: *m}"
    assert parse_yaml(nested) == yaml.safe_load(nested)


@pytest.mark.parametrize("text", ["input: {{ bucket }}", "? [a, b]\n: c", "a: !!map x"])
def test_a_key_that_is_no_text_is_no_yaml(tmp_path, text):
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"^--config '\S+': not YAML: "):
        read_config(str(tmp_path / "job.yaml"))


def test_a_job_file(tmp_path):
    file = tmp_path / "job.yaml"
    file.write_text("input: p\nout: o\nactors: 1:2\ncompile: on\nforeground: off\nretry_rejected: yes\n")
    config = AnnotateConfig.resolve(read_config(str(file)))
    assert (config.actors, config.compile, config.foreground, config.retry_rejected) == ((1, 2), "on", "off", True)
    file.write_text("box-rule: paper\nbox_rule: auto\n")
    with pytest.raises(UsageError, match=r"^--config '\S+/job.yaml': an option stands twice, once with - and"):
        read_config(str(file))
    file.write_text("input: p\ntopk: 5\ntopk: 3\n")
    with pytest.raises(UsageError, match=r"^--config '\S+/job.yaml': not YAML: 'topk' stands twice in .*line 3"):
        read_config(str(file))
