"""Reads whole objects of S3 through obstore, which takes 0.3 ms of CPU for 60 KB where s3fs takes 1.45 ms.

Credentials, region and address still come from s3fs. Objects that obstore can't read are read by s3fs, which also
raises the errors.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from fsspec import AbstractFileSystem
from fsspec.asyn import sync
from obstore.exceptions import BaseError
from obstore.store import S3Store

from pipeline.storage.fsspec_private import ObjectRead
from pipeline.storage.store_failures import is_store_failure

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

_CREDENTIALS_TTL = timedelta(minutes=5)
"""After this time botocore is asked again. botocore hands out no credentials that expire within ten minutes."""
_CLIENT: "ClientConfig" = {"allow_http": True, "connect_timeout": "10s", "read_timeout": "60s", "timeout": "1h"}
_RETRIES: "RetryConfig" = {"max_retries": 2, "retry_timeout": timedelta(seconds=60)}
"""Few tries, because s3fs tries again afterwards."""


class S3Objects:
    """Reads whole objects of any bucket; each bucket is looked up once."""

    def __init__(self) -> None:
        """Start without connections."""
        self._buckets: dict[str, S3Store | None] = {}
        self._opening = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return a state without connections, for another process."""
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start without connections in the other process."""
        self.__init__()  # type: ignore[misc]

    def get(self, fs: AbstractFileSystem, path: str, max_bytes: int) -> ObjectRead | None:
        """Return an object by one request; None where obstore can't read it and s3fs has to.

        obstore can't read an object after a few failed tries, nor a key with an empty part, ``.`` or ``..``, which it
        does not accept as a path. An object of more than ``max_bytes`` bytes is not read.
        """
        bucket, key, _ = fs.split_path(path)
        with self._opening:
            if bucket not in self._buckets:
                self._buckets[bucket] = _open_bucket(fs, bucket)
        store = self._buckets[bucket]
        if store is None or key.strip("/") != key:  # obstore would ask for the key without its outer slashes
            return None
        try:
            answer = obstore.get(store, key)
            etag, size_bytes = answer.meta["e_tag"], int(answer.meta["size"])
            data = bytes(answer.bytes()) if size_bytes <= max_bytes else None
            return ObjectRead(etag, size_bytes if data is None else len(data), data)
        except (BaseError, FileNotFoundError, ValueError):
            return None


def _open_bucket(fs: AbstractFileSystem, bucket: str) -> S3Store | None:
    """Return obstore's view of a bucket; None where s3fs has no region, no address or no way to sign requests."""
    try:
        regional = _in_region_of(fs, bucket)
        url = urlsplit(regional.url(f"{bucket}/-"))
        signing: dict[str, Any] = {"skip_signature": True} if fs.anon else {"credential_provider": _credentials(fs)}
        authority = fs.session.get_config_variable("ca_bundle")
        trust: ClientConfig = {"root_certificate": Path(authority).read_bytes()} if authority else {}
    except Exception as error:
        if not is_store_failure(error):
            raise
        return None
    return S3Store(
        bucket,
        endpoint=f"{url.scheme}://{url.netloc}{url.path.removesuffix('/-')}",
        virtual_hosted_style_request=True,  # the endpoint from botocore already contains the bucket
        region=regional.s3.meta.region_name,
        client_options={**_CLIENT, **trust},
        retry_config=_RETRIES,
        **signing,
    )


def _in_region_of(fs: AbstractFileSystem, bucket: str) -> AbstractFileSystem:
    """Return s3fs for the region of a bucket, as the store gives it; ``fs`` where it is the same or unknown."""
    try:
        answer = fs.call_s3("head_bucket", Bucket=bucket)
    except Exception as error:
        if not is_store_failure(error):
            raise
        return fs
    region = answer["ResponseMetadata"]["HTTPHeaders"].get("x-amz-bucket-region", fs.s3.meta.region_name)
    if region == fs.s3.meta.region_name:
        return fs
    return type(fs)(**fs.storage_options | {"client_kwargs": {"region_name": region}})


def _credentials(fs: AbstractFileSystem) -> Callable[[], dict[str, Any]]:
    """Return a function that hands out s3fs's own credentials, which botocore keeps fresh."""
    found = sync(fs.loop, fs.session.get_credentials)

    def provide() -> dict[str, Any]:
        frozen = sync(fs.loop, found.get_frozen_credentials)
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_TTL,
        }

    return provide
