"""Secrets in URLs, options, manifests and the environment reach no message, no log and no file that stays."""

import json
import pickle
import time

import pytest

from jobs.terminal.console import Screen
from pipeline.storage.filesystems import connect
from pipeline.storage.inputs.listing import list_inputs
from pipeline.storage.lake.run import shown_config
from schemas import errors
from schemas.errors import CamlakeError, RejectedImage, UsageError
from schemas.options.annotate import AnnotateConfig
from schemas.options.config import StorageConfig
from schemas.options.reading import EvaluateConfig, ReportConfig, VerifyConfig
from schemas.options.rebox import ReboxConfig
from schemas.options.train import TrainConfig
from schemas.reasons import Reason
from schemas.url_secrets import safe_url, shown_value, without_secrets
from tests.listings import LOCAL
from tests.planted import FIRST_LETTERS, SECRET

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


def test_long_texts_are_cleaned_in_no_time():
    started = time.monotonic()
    for text in ("a://" * 20_000, "?" * 50_000, "&a=" * 20_000, "x:" * 30_000 + "@", "https://" + "a@" * 20_000):
        without_secrets(text)
        safe_url(text)
    assert time.monotonic() - started < 5
