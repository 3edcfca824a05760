"""The reason codes of ``quarantine``, each with its stage and whether the rejection is permanent."""

from enum import StrEnum


class Stage(StrEnum):
    """The stage of the job at which an image was rejected."""

    LIST = "list"
    FETCH = "fetch"
    DECODE = "decode"
    LIMITS = "limits"
    MODEL = "model"


class Reason(StrEnum):
    """A reason code: the string in the column ``reason_code``.

    Each code belongs to one ``stage``. A ``permanent`` rejection holds until the image changes; after any other
    rejection the next run tries the image again. ``meaning`` explains the code to the user.
    """

    stage: Stage
    permanent: bool
    meaning: str

    def __new__(cls, code: str, stage: Stage, permanent: bool, meaning: str) -> "Reason":
        """Attach stage, permanence and meaning to the code."""
        reason = str.__new__(cls, code)
        reason._value_ = code
        reason.stage, reason.permanent, reason.meaning = stage, permanent, meaning
        return reason

    @classmethod
    def of(cls, code: str) -> "Reason":
        """Return the reason of a stored ``reason_code``; raises KeyError for an unknown one."""
        return cls[code.upper()]

    MISSING_URI = "missing_uri", Stage.LIST, True, "the manifest's row has no uri"
    BAD_NAME = "bad_name", Stage.LIST, True, "the file's name is not UTF-8 text"
    UNREADABLE_CONTAINER = "unreadable_container", Stage.LIST, True, "the shard or Parquet file can't be read"
    DELETED = "deleted", Stage.LIST, False, "annotated before, but INPUT no longer has it (--on-deleted hide)"
    RESTORED = "restored", Stage.LIST, False, "INPUT has the deleted image again; its old rows count (all_quarantine)"

    NOT_FOUND = "not_found", Stage.FETCH, False, "no object has this uri"
    ACCESS_DENIED = "access_denied", Stage.FETCH, False, "the store refused to hand the object out"
    CHANGED = "changed", Stage.FETCH, False, "the store has another version of the object than was listed"
    FETCH_FAILED = "fetch_failed", Stage.FETCH, False, "the store failed while the object was read"

    EMPTY = "empty", Stage.DECODE, True, "the object has no bytes"
    NOT_AN_IMAGE = "not_an_image", Stage.DECODE, True, "the bytes are of no known image format"
    UNSUPPORTED = "unsupported", Stage.DECODE, True, "an image format or variant that no decoder here reads"
    TRUNCATED = "truncated", Stage.DECODE, True, "the file ends before the image does"
    CORRUPT = "corrupt", Stage.DECODE, True, "the image's data contradicts itself"

    CRASHED = "crashed", Stage.DECODE, True, "every process that worked on the image died"

    TOO_MANY_BYTES = "too_many_bytes", Stage.LIMITS, True, "the object is larger than max_bytes"
    TOO_MANY_PIXELS = "too_many_pixels", Stage.LIMITS, True, "width x height is larger than max_pixels"
    DECODE_TIMEOUT = "decode_timeout", Stage.LIMITS, False, "decoding took longer than decode_timeout_s"

    NON_FINITE = "non_finite", Stage.MODEL, False, "the network's outputs have NaN or infinity"
