"""Plans, manifests and whole runs keep no secret."""

import json
import os
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.storage.filesystems import canonical_url, connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.commit import remove_leftovers
from pipeline.storage.lake.plan.planning import make_plan, read_plan_slice
from pipeline.storage.names import plain_name
from schemas.errors import InputError
from tests.jobs_on import run_command
from tests.listings import LOCAL, listed
from tests.pictures import encoded
from tests.planted import FIRST_LETTERS, SECRET
from tests.serving import QuietHandler, serving

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


def test_a_run_leaves_no_secret(tmp_path):
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
    assert not [path for path in out.glob("_runs/secrets/**/*") if path.is_file()]
    assert FIRST_LETTERS not in everything_in(tmp_path)
    uris_kept = pq.read_table(out / "images", columns=["uri"])["uri"].to_pylist()
    assert sorted(set(uris_kept)) == [f"{host}/1.jpg", f"{host}/2.jpg"]
