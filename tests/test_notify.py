"""A webhook hears how a run ended, never a secret, and can't make a run fail; lines for machines name the run."""

import json
from http.server import HTTPServer

import numpy as np
import pytest
from pydantic import SecretStr

from jobs.terminal import notify
from jobs.terminal.console import Screen
from jobs.terminal.notify import notifying
from jobs.terminal.program import main
from pipeline.storage.filesystems import connect
from pipeline.storage.lake.integrity.repair import repair
from pipeline.storage.lake.integrity.verify import verify
from pipeline.storage.lake.records import load_runs
from schemas.errors import HeldError, InputError, RejectedShareError, Stopped, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.url_secrets import origin_of
from tests.pictures import encoded
from tests.planted import FIRST_LETTERS, SECRET
from tests.serving import QuietHandler, serving

N_IMAGES, STATUS_OK = 5, 204


class Webhook(QuietHandler):
    """Keeps what is posted; answers ``status``."""

    posts: list
    status: int

    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.posts.append((self.path, self.headers.get("Authorization"), json.loads(body)))
        self.answer(b"", self.status)


@pytest.fixture
def webhook():
    """Yield the URL of a webhook, whose path is its secret, and the list of the documents that were posted."""
    kind = type("Own", (Webhook,), {"posts": [], "status": STATUS_OK})
    with serving(HTTPServer(("127.0.0.1", 0), kind)) as host:
        yield f"{host}/services/{SECRET}", kind


def camlake(capsys, monkeypatch, *words):
    """Run the program in this process; returns status, standard output and standard error."""
    monkeypatch.setattr("sys.argv", ["camlake", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    return ended.value.code, captured.out, captured.err


def test_a_run_is_told_to_machines_and_to_the_webhook(tmp_path, webhook, capsys, monkeypatch):
    url, kind = webhook
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for number in range(N_IMAGES):
        (folder / f"{number}.png").write_bytes(encoded(np.full((24, 32, 3), 40 * number, np.uint8)))
    (folder / "broken.png").write_bytes(b"no picture")
    words = ["annotate", folder, "--out", out, "--model", "camlake_demo", "--actors", 1, "--engine", "local"]
    words += ["--notify", url, "--log-format", "json", "--max-rejected", 1, "--precision", "fp32"]
    words += ["--metrics", tmp_path / "camlake.prom"]
    status, printed, said = camlake(capsys, monkeypatch, *words)
    assert status == 0, said
    fs, root = connect(str(out), StorageConfig())
    (run,) = load_runs(fs, root)
    lines = [json.loads(line) for line in (said + printed).splitlines()]
    first = next(number for number, line in enumerate(lines) if line.get("run_id"))
    assert [line["text"].split()[0] for line in lines[:first]] == ["model"]
    assert {line["run_id"] for line in lines[first:]} == {run.run_id}
    result = next(line for line in lines if line["event"] == "result")
    assert (result["annotated"], result["rejected_by_reason"]) == (N_IMAGES, {"not_an_image": 1})
    texts = [line["text"] for line in lines]
    assert "rejected: 1 not_an_image" in texts
    assert run.summary.sentence in texts

    figures = (tmp_path / "camlake.prom").read_text().splitlines()
    assert f'camlake_images_total{{output="{out}"}} {N_IMAGES}.0' in figures
    assert f'camlake_read_bytes_total{{output="{out}"}} {float(run.summary.bytes_in)}' in figures
    assert f'camlake_run_succeeded{{output="{out}"}} 1.0' in figures

    read = sum(path.stat().st_size for path in folder.iterdir())
    written = sum(path.stat().st_size for path in out.rglob("part-*.parquet") if "_runs" not in path.parts)
    assert (run.summary.bytes_in, run.summary.bytes_out, run.summary.retries) == (read, written, 0)
    assert set(run.summary.stage_images_per_s) == {"decode", "network"}
    assert 0 < run.summary.networks_busy <= 1
    assert run.summary.images_per_s == pytest.approx((N_IMAGES + 1) / run.summary.seconds, rel=0.01)

    ((path, user, document),) = kind.posts
    assert (path, user) == (f"/services/{SECRET}", None)
    assert (document["event"], document["exit_status"], document["out"]) == ("finished", 0, str(out))
    assert document["counts"]["annotated"] == N_IMAGES
    assert document["summary"] == run.summary.model_dump()
    assert document["text"] == f"camlake annotate into {out}: {result['text']}"
    stored = "".join(file.read_text() for file in out.rglob("*.json"))
    assert FIRST_LETTERS not in stored + said + printed + str(kind.posts[0][2])
    assert verify(fs, root).problems == ()
    assert repair(fs, root) == []
    assert load_runs(fs, root) == [run]


@pytest.mark.parametrize("begun", [False, True], ids=["before the run", "in the run"])
def test_a_failure_is_told(tmp_path, webhook, capsys, monkeypatch, begun):
    url, kind = webhook
    place = tmp_path / ("none.csv" if begun else "none")
    if begun:
        place.write_text("uri\n")
    words = ["annotate", place, "--out", tmp_path / "out", "--model", "camlake_demo", "--notify", url]
    status, _, said = camlake(capsys, monkeypatch, *words, "--log-format", "json")
    last = json.loads(said.splitlines()[-1])
    assert (status, last["event"], last["kind"], last["exit_status"]) == (1, "error", "InputError", 1)
    assert str(place) in last["text"]
    ((_, _, document),) = kind.posts
    assert (document["event"], document["exit_status"], document["error"]) == ("failed", 1, last["text"])
    assert document["run_id"] == last.get("run_id")
    assert bool(document["run_id"]) == begun


@pytest.mark.parametrize(
    ("error", "event", "status"),
    [
        (RejectedShareError("too many"), "rejected", 3),
        (Stopped(), "stopped", 4),
        (KeyboardInterrupt(), "stopped", 4),
        (InputError(f"https://u:{SECRET}@h/x"), "failed", 1),
        (ZeroDivisionError("x / 0"), "failed", 1),
        (HeldError("another run"), None, 5),
    ],
)
def test_each_ending_has_its_event(webhook, error, event, status):
    url, kind = webhook
    screen = Screen()
    screen.say("run x", run_id="x")
    with pytest.raises(type(error)), notifying(SecretStr(url), "labels", screen):
        raise error
    assert [(post["event"], post["exit_status"], post["run_id"]) for _, _, post in kind.posts] == (
        [(event, status, "x")] if event else []
    )
    assert FIRST_LETTERS not in str([post for _, _, post in kind.posts])


def test_nobody_asked_for_it():
    with notifying(None, "labels", Screen()):
        pass
    with pytest.raises(ZeroDivisionError), notifying(None, "labels", Screen()):
        raise ZeroDivisionError


def test_a_webhook_that_refuses_or_is_not_there_is_a_warning(webhook, capsys):
    url, kind = webhook
    kind.status = 500
    with notifying(SecretStr(url), "labels", Screen()):
        pass
    host = origin_of(url)
    assert capsys.readouterr().err == f"warning: --notify {host}/…: the webhook answered 500; the run is not affected\n"
    for nowhere in (f"http://127.0.0.1:9/{SECRET}", f"http://127.0.0.1:port/{SECRET}"):
        with notifying(SecretStr(nowhere), "labels", Screen()):
            pass
        said = capsys.readouterr().err
        assert "the webhook does not answer (" in said
        assert FIRST_LETTERS not in said


def test_a_webhook_that_moved_is_a_warning_and_its_password_stays(webhook, capsys):
    url, kind = webhook
    heard = []

    class Moved(QuietHandler):
        def do_POST(self):  # noqa: N802
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(302)
            self.send_header("Location", url)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(HTTPServer(("127.0.0.1", 0), Moved)) as host:
        with notifying(SecretStr(host.replace("://", f"://me:{SECRET}@")), "labels", Screen()):
            pass
        heard.append(capsys.readouterr().err)
    assert "the webhook answered 302; the run is not affected" in heard[0]
    assert kind.posts == []


def test_a_webhook_that_never_answers_is_given_up(monkeypatch, capsys):
    monkeypatch.setattr(notify, "TIMEOUT_S", 0.2)
    silent = HTTPServer(("127.0.0.1", 0), QuietHandler)  # It listens, and nobody serves.
    with notifying(SecretStr(f"http://127.0.0.1:{silent.server_port}/x"), "labels", Screen()):
        pass
    silent.server_close()
    assert "does not answer (TimeoutError)" in capsys.readouterr().err


def test_user_and_password_go_into_a_header(webhook):
    url, kind = webhook
    with notifying(SecretStr(url.replace("://", "://me:p%40ss@")), "labels", Screen()):
        pass
    assert kind.posts[0][1] == "Basic bWU6cEBzcw=="


@pytest.mark.parametrize(
    "url",
    [
        f"hooks.example/{SECRET}",
        f"ftp://h/{SECRET}",
        f"file:///{SECRET}",
        "x",
        "http://",
        f"http://[{SECRET}",
        f"https://h:{SECRET}/",
    ],
)
def test_what_is_no_webhook_is_refused_and_not_shown(url):
    with pytest.raises(UsageError) as caught:
        AnnotateConfig.resolve({"input": "i", "out": "o", "notify": url})
    assert str(caught.value) == f"--notify ({len(url)} characters): allowed: an http:// or https:// URL"


def test_the_url_is_nowhere_in_the_configuration():
    config = AnnotateConfig.resolve({"input": "i", "out": "o", "notify": f"https://h/{SECRET}"})
    assert SECRET not in f"{config} {config.model_dump()} {config.model_dump(mode='json')}"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://me:pw@h.example:8443/a?b#c", "https://h.example:8443"),
        ("http://h?token=x", "http://h"),
        ("no url", "…"),
    ],
)
def test_what_may_be_shown_of_a_webhook(url, origin):
    assert origin_of(url) == origin


def test_a_wrong_option_is_a_line_of_json_too(capsys, monkeypatch):
    for option in (["--log-format", "json"], ["--log-format=json"]):
        status, _, said = camlake(capsys, monkeypatch, "annotate", "in", "--out", "o", "--treshold", "1", *option)
        (line,) = map(json.loads, said.splitlines())
        assert (status, line["event"], line["kind"], line["exit_status"]) == (2, "error", "UsageError", 2)
        assert "--treshold" in line["text"]
