"""What a job says where: results on standard output, all else, Ray's own words too, on standard error."""

import pytest

from jobs.terminal.console import Screen
from pipeline.graph.cluster import ray_cluster


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_what_ray_prints_is_no_result(log_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(log_format)
    with ray_cluster(None):
        print("(raylet) a worker died")
        screen.result("the result", n=1)
        screen.say("a step")
    screen.result("the end")
    said = capsys.readouterr()
    assert ("the result" in said.out, "the end" in said.out, "died" in said.out) == (True, True, False)
    assert said.err.splitlines()[0] == "(raylet) a worker died"
    assert "a step" in said.err
