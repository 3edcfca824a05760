"""Secrets in URLs, options, manifests and the environment reach no message, no log and no file that stays."""

import json
import os
import pickle
import time
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.console import Screen
from pipeline.storage.filesystems import canonical_url, connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.commit import remove_leftovers
from pipeline.storage.lake.planning import make_plan, read_plan_slice
from pipeline.storage.lake.run import shown_config
from pipeline.storage.names import plain_name
from schemas import errors
from schemas.errors import CamlakeError, InputError, RejectedImage, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.options.reading import EvaluateConfig, ReportConfig, VerifyConfig
from schemas.options.rebox import ReboxConfig
from schemas.options.train import TrainConfig
from schemas.reasons import Reason
from schemas.url_secrets import safe_url, shown_value, without_secrets
from tests.jobs_on import run_command
from tests.listings import LOCAL, listed
from tests.pictures import encoded
from tests.serving import QuietHandler, serving

SECRET = "HUSHwJalrXUtnFEMIbPxRfiCYEXAMPLEKEY00HUS"
"""As long as a key of AWS; the tests look for its first four letters."""
FIRST_LETTERS = "HUSH"

URLS = {
    "https://u:HUSH@h/x.jpg?id=3&X-Amz-Signature=HUSH": "https://h/x.jpg?id=3",
    "https://HUSH@h/x": "https://h/x",
    "https://u:HUSH%40%2F@h/x": "https://h/x",
    "HTTPS://u:HUSH@H/x": "HTTPS://H/x",
    "https://u:HU/SH@host.com/x@2x.png": "https://host.com/x@2x.png",
    "https://u:HU@SH/x+y@host.com/a": "https://host.com/a",
    "https://u:HU:SH+1@h/x": "https://h/x",
    "https://u:HU?SH#@h.com/x": "https://h.com/x",
    "https://u:HUSH@cdn/x@2x.png": "https://cdn/x@2x.png",
    "https://h:8080/a@b/c.jpg": "https://h:8080/a@b/c.jpg",
    "https://u:HUSH@[::1]:80/x": "https://[::1]:80/x",
    "https://h/x?X-Amz-Credential=HUSH&X-Amz-Security-Token=HUSH&X-Amz-Date=1&w=2": "https://h/x?w=2",
    "https://h/x?X%2DAmz%2DSignature=HUSH&a=1": "https://h/x?a=1",
    "https://h/x?a=1&amp;X-Amz-Signature=HUSH": "https://h/x?a=1&amp",
    "https://h/x?X-Goog-Signature=HUSH&GoogleAccessId=HUSH&Expires=1": "https://h/x",
    "https://h/x?AWSAccessKeyId=HUSH&Signature=HUSH&Expires=1": "https://h/x",
    "https://h/x?Policy=HUSH&Signature=HUSH&Key-Pair-Id=HUSH": "https://h/x",
    "https://a.blob/x?sv=2022&ss=b&se=2026&sp=r&sr=b&spr=https&sig=HUSH%3D": "https://a.blob/x",
    "https://h/x?sp=3&se=4": "https://h/x?sp=3&se=4",
    "https://h/x?OSSAccessKeyId=HUSH&x-oss-signature=HUSH&x-oss-process=image/resize": "https://h/x?x-oss-process=image/resize",
    "https://h/x?q-ak=HUSH&q-signature=HUSH&q-sign-time=1": "https://h/x",
    "https://cdn.chat/a/b.png?ex=1&is=2&hm=HUSH": "https://cdn.chat/a/b.png",
    "https://h/x?token=HUSH&access_token=HUSH&refreshToken=HUSH&id=1": "https://h/x?id=1",
    "https://h/x?password=HUSH&pwd=HUSH&pass=HUSH&api_key=HUSH&apikey=HUSH": "https://h/x",
    "https://h/x?client_secret=HUSH&auth=HUSH&Authorization=HUSH&author=me": "https://h/x?author=me",
    "https://h/x?subscription-key=HUSH&jwt=HUSH&session_id=HUSH": "https://h/x",
    "https://h/x?url=https%3A%2F%2Fb%2Fx%3Fsig%3DHUSH%26v%3D1&w=2": "https://h/x?url=https%3A%2F%2Fb%2Fx%3Fv%3D1&w=2",
    "https://h/x#access_token=HUSH&page=2": "https://h/x#page=2",
    "https://h/x;jsessionid=HUSH?a=1": "https://h/x?a=1",
    "s3://KEY:HUSH@b/o": "s3://b/o",
    "S3://KEY:HUSH@b/o": "S3://b/o",
    "s3://KEY:HU/SH+x@bucket/o/a@2x.jpg": "s3://bucket/o/a@2x.jpg",
    "s3a://KEY:HU@S/H:x@bucket/o": "s3a://bucket/o",
    "gs://KEY%3AHUSH@bucket/o": "gs://bucket/o",
    "s3://arn:aws:s3:eu:1:accesspoint/n/a@b.jpg": "s3://arn:aws:s3:eu:1:accesspoint/n/a@b.jpg",
    "s3://bucket/a:b@c.jpg?token=1": "s3://bucket/a:b@c.jpg?token=1",
    "sftp://me:HUSH@h/x@y:z": "sftp://h/x@y:z",
    "ftp://me:HUSH@h/x": "ftp://h/x",
    "abfs://container@account/x": "abfs://container@account/x",
    "/a/b?token=1": "/a/b?token=1",
}


@pytest.mark.parametrize(("url", "safe"), URLS.items())
def test_a_url_keeps_what_names_the_object_and_nothing_else(url, safe):
    assert safe_url(url) == safe
    assert safe_url(safe) == safe
    assert FIRST_LETTERS not in without_secrets(f"--out {url!r}: can't be read")


@pytest.mark.parametrize("name", ["key", "code"])
def test_values_that_may_be_secrets_or_names_become_digests(name):
    """They keep two images apart; a key of a service is the same in each night."""
    one, other = (safe_url(f"https://h/x?{name}={value}&w=1") for value in ("HUSH1", "HUSH2"))
    assert one != other
    assert FIRST_LETTERS not in one + other
    assert safe_url(one) == one


@pytest.mark.parametrize("url", ["s3://b/x.jpg?X-Amz-Signature=", "abfs://c@a/x.jpg?sv=1&sig="])
def test_signatures_in_keys_of_object_stores_become_digests(url):
    assert FIRST_LETTERS not in safe_url(url + SECRET)
    assert safe_url(url + SECRET) != safe_url(url + "other")


TEXTS = [
    'Could not connect to the endpoint URL: "https://u:HUSH@host/b?list-type=2"',
    "404, message='Not Found', url='https://h/x?a=1&X-Amz-Signature=HUSH'",
    "GET /x.jpg?sig=HUSH&sv=1 failed",
    "CSV parse error: Expected 2 columns, got 3: https://u:HUSH@h/x.jpg,1,2",
    "https%3A%2F%2Fu%3AHUSH%40h%2Fx is no uri",
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=HUSH==;EndpointSuffix=x",
    "aws_secret_access_key = HUSH",
    "{'password': 'HUSH', 'a': 1}",
    'Invalid bucket name "AKIAIOSFODNN7EXAMPLE:HUSH/x@b": Bucket name must match',
]


@pytest.mark.parametrize("text", TEXTS)
def test_texts_of_libraries_lose_their_secrets(text):
    assert FIRST_LETTERS not in without_secrets(text)
    for kind in (one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, CamlakeError)):
        assert FIRST_LETTERS not in str(kind(text))
    rejected = pickle.loads(pickle.dumps(RejectedImage(Reason.FETCH_FAILED, text)))
    assert FIRST_LETTERS not in rejected.detail + str(rejected)


def test_texts_without_secrets_stay_as_they_are():
    for text in ("--topk 0: allowed: 1 or more", "me@host: a/b", "set AWS_SECRET_ACCESS_KEY, --profile", "10:20@x"):
        assert without_secrets(text) == text


CONFIGS = [
    (AnnotateConfig, {"input": "in", "out": "out"}),
    (TrainConfig, {"input": "in", "out": "out"}),
    (EvaluateConfig, {"out": "out", "truth": "t.csv"}),
    (ReboxConfig, {"labels": "in", "out": "out"}),
    (VerifyConfig, {"out": "out"}),
    (ReportConfig, {"out": "out"}),
]
VALUES = [
    f"https://u:{SECRET}@h/x?sig={SECRET}",
    f"s3://KEY:{SECRET[:9]}/{SECRET[9:]}@bucket/o",
    {"key": SECRET},
    [SECRET],
]


@pytest.mark.parametrize("value", VALUES, ids=["https", "s3", "mapping", "list"])
@pytest.mark.parametrize(
    ("config", "valid", "name"), [(config, valid, name) for config, valid in CONFIGS for name in config.model_fields]
)
def test_no_option_shows_a_secret(config, valid, name, value):
    try:
        shown = str(shown_config(config.resolve(valid | {name: value})))
    except UsageError as error:
        shown = str(error)
    assert FIRST_LETTERS not in shown


def test_wrong_values_are_not_echoed_whole():
    for name in ("topk", "method", "actors", "outputs", "scales"):
        with pytest.raises(UsageError) as caught:
            AnnotateConfig.resolve({"input": "in", "out": "out", name: SECRET})
        assert FIRST_LETTERS not in str(caught.value)
    assert shown_value("camm") == "'camm'"
    assert shown_value(0) == "0"


def test_the_command_line_shows_no_secret(capsys):
    for log_format in ("text", "json"):
        screen = Screen(log_format)
        screen.say("at https://u:HUSH@h/x", where="https://h/x?sig=HUSH")
        screen.result("at https://u:HUSH@h/x", page=["https://h/x?sig=HUSH"])
        screen.table("t", ("a",), [["https://u:HUSH@h/x"]])
    shown = capsys.readouterr()
    assert FIRST_LETTERS not in shown.out + shown.err
    assert all(json.loads(line) for line in shown.err.splitlines()[1:])


def test_a_bucket_takes_no_key_and_secret_in_its_url():
    with pytest.raises(UsageError, match=r"^s3://bucket/o: a key and a secret can't stand in the URL of a bucket"):
        connect("s3://KEY:HU/SH@bucket/o", LOCAL)


def test_an_endpoint_with_a_password_is_not_quoted():
    storage = StorageConfig(endpoint_url=f"http://me:{SECRET}@127.0.0.1:9", anonymous=True)
    with pytest.raises(CamlakeError) as caught:
        list_inputs("s3://bucket/x/", storage)
    assert FIRST_LETTERS not in str(caught.value)


SIGNED = [
    f"https://h.example/1.jpg?X-Amz-Date=NIGHT&X-Amz-Signature={SECRET}NIGHT",
    f"https://u:{SECRET}@h.example/2.jpg",
    f"https://h.example/3.jpg?code={SECRET}&w=2",
    f"s3://KEY:{SECRET}@bucket/4.jpg",
    f"S3://KEY:{SECRET[:9]}/{SECRET[9:]}@bucket/5.jpg",
]


def _csv(path: Path, uris: list[str]) -> Path:
    path = path.with_suffix(".csv")
    path.write_text("uri,etag\n" + "".join(f"{uri},v\n" for uri in uris))
    return path


def _jsonl(path: Path, uris: list[str]) -> Path:
    path = path.with_suffix(".jsonl")
    path.write_text("".join(json.dumps({"uri": uri, "etag": "v"}) + "\n" for uri in uris))
    return path


def _parquet(path: Path, uris: list[str]) -> Path:
    path = path.with_suffix(".parquet")
    pq.write_table(pa.table({"uri": uris, "etag": ["v"] * len(uris)}), path)
    return path


def everything_in(folder: Path) -> str:
    """Return the texts of all files below a folder; of Parquet the cells and the metadata."""
    texts = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        texts += [str(path), path.read_bytes().decode("latin-1")]
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            texts += [str(table.schema), str(table.to_pydict())]
    return "\n".join(texts)


@pytest.mark.parametrize("write", [_csv, _jsonl, _parquet])
def test_a_plan_has_the_secrets_only_while_its_run_lives(tmp_path, write):
    def planned(night: str, done=()):
        manifest = write(tmp_path / "list", [uri.replace("NIGHT", night) for uri in SIGNED])
        fs, root = connect(str(tmp_path / "out"), LOCAL)
        plan = make_plan(list_inputs(str(manifest), LOCAL), done, fs, root, "_runs/r/plan", rows_per_slice=3)
        return plan, [row for one in plan.slices for row in read_plan_slice(fs, root, one).to_pylist()]

    plan, rows = planned("1")
    assert plan.counts.planned == len(SIGNED)
    assert [row["path"] for row in rows[:3]] == [uri.replace("NIGHT", "1") for uri in SIGNED[:3]]
    assert FIRST_LETTERS not in str([(row["uri"], row["detail"]) for row in rows])
    assert FIRST_LETTERS not in str([row["path"] for row in rows[3:]])
    assert FIRST_LETTERS not in everything_in(tmp_path / "out/_runs/r")
    assert FIRST_LETTERS in everything_in(tmp_path / "out/_runs/secrets/r")
    remove_leftovers(*connect(str(tmp_path / "out"), LOCAL))
    assert FIRST_LETTERS not in everything_in(tmp_path / "out")
    assert not (tmp_path / "out/_runs/secrets").exists()
    done = pa.RecordBatch.from_pylist(
        [{name: row[name] for name in ("image_id", "etag", "size_bytes", "modified_at")} for row in rows]
    )
    assert planned("2", [done])[0].counts.already_done == len(SIGNED)


def test_a_plan_without_secrets_is_one_file(tmp_path):
    fs, root = connect(str(tmp_path / "out"), LOCAL)
    manifest = _csv(tmp_path / "list", ["https://h.example/a@b.jpg?w=1", "/a@b?token=1.jpg"])
    plan = make_plan(list_inputs(str(manifest), LOCAL), [], fs, root, "_runs/r/plan", rows_per_slice=9)
    assert not plan.slices[0].has_secrets
    assert [path.name for path in (tmp_path / "out/_runs").iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("list.csv", f"uri,etag\nhttps://u:{SECRET}@h/{'x' * 280}.jpg,1,2,3\n"),
        ("list.jsonl", f'{{"uri": "https://h/x?sig={SECRET}"\n'),
        ("list.csv", f"uri,size_bytes\na.jpg,https://h/x?sig={SECRET}\n"),
        ("list.csv", f"https://h/x?sig={SECRET},b\n1,2\n"),
    ],
)
def test_an_unsound_manifest_is_not_quoted_with_its_secrets(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        listed(tmp_path / name)
    assert FIRST_LETTERS not in str(caught.value)


def test_a_truth_may_name_images_by_signed_urls():
    assert plain_name(f"https://h/a.jpg?sig={SECRET}") == plain_name(canonical_url(f"https://u:{SECRET}@h/a.jpg"))


class Store(QuietHandler):
    """Serves two pictures and lists to those who know the secret."""

    bodies: dict[str, bytes]

    def do_GET(self) -> None:  # noqa: N802 (the name that http.server looks for)
        """Answer 403 without the secret."""
        path = self.path.partition("?")[0]
        known = SECRET in self.path or "Authorization" in self.headers
        status = (200 if path in self.bodies else 404) if known else 403
        self.answer(self.bodies.get(path, b"") if known else b"", status)

    do_HEAD = do_GET  # noqa: N815


def test_a_run_on_ray_leaves_no_secret(tmp_path):
    picture = encoded(np.full((48, 64, 3), 90, np.uint8), "JPEG")
    bodies = {"/1.jpg": picture, "/2.jpg": picture}
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Store,), {"bodies": bodies}))) as host:
        with_user = host.replace("://", f"://me:{SECRET}@")
        uris = [
            f"{host}/1.jpg?X-Amz-Signature={SECRET}",
            f"{with_user}/2.jpg",
            f"{host}/gone.jpg?code={SECRET}",
            f"s3://KEY:{SECRET}@bucket/o.jpg",
            f"gs://KEY:{SECRET}@bucket/o.jpg",
            f"https://u:{SECRET}@127.0.0.1:9/x.jpg",
        ]
        bodies["/list.csv"] = ("uri\n" + "\n".join(uris)).encode()
        bodies["/classes.csv"] = f"uri,class_id\n{uris[0]},1\n{uris[2]},1\n".encode()
        bodies["/labels.txt"] = b"cat\n"
        out = tmp_path / "out"
        environment = os.environ | {
            "AWS_ACCESS_KEY_ID": f"AKIA{FIRST_LETTERS}XXXXXXXXXXXX",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": SECRET,
            "MLFLOW_TRACKING_URI": f"https://me:{SECRET}@127.0.0.1:9",
            "MLFLOW_TRACKING_PASSWORD": SECRET,
        }
        run = partial(run_command, env=environment)
        words = ["annotate", f"{with_user}/list.csv?sig={SECRET}", "--out", out, "--model", "camlake_demo"]
        words += ["--classes", f"{host}/classes.csv?token={SECRET}", "--actors", 1, "--max-rejected", 1]
        words += ["--endpoint-url", f"http://me:{SECRET}@127.0.0.1:9"]
        first = run(*words, "--log-format", "json")
        left = out / "_runs/secrets/20260101T000000.000-abcdef/part-00000.parquet"
        left.parent.mkdir(parents=True)
        left.write_text(SECRET)
        second = run(*words)
        assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
        assert '"annotated": 2' in first.stdout
        assert '"rejected": 4' in first.stdout
        assert "2 done before" in second.stdout
        verified = run("verify", out)
        assert verified.returncode == 0, verified.stderr
        reported = run("report", out, "--page", tmp_path / "page.html", "--truth", f"{host}/t.csv?sig={SECRET}")
        wrong = run("annotate", "in", f"https://u:{SECRET}@h/x", "--out", out)
    for done in (first, second, verified, reported, wrong):
        assert FIRST_LETTERS not in done.stdout + done.stderr
    assert not (out / "_runs/secrets").exists()
    assert FIRST_LETTERS not in everything_in(tmp_path)
    uris_kept = pq.read_table(out / "images", columns=["uri"])["uri"].to_pylist()
    assert sorted(set(uris_kept)) == [f"{host}/1.jpg", f"{host}/2.jpg"]


def test_long_texts_are_cleaned_in_no_time():
    started = time.monotonic()
    for text in ("a://" * 20_000, "?" * 50_000, "&a=" * 20_000, "x:" * 30_000 + "@", "https://" + "a@" * 20_000):
        without_secrets(text)
        safe_url(text)
    assert time.monotonic() - started < 5
