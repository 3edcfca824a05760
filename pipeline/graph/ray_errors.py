"""The first cause of a failure inside Ray, which wraps exceptions several times and hands some on as text alone."""

import re

from ray.data.exceptions import SystemException

from schemas import errors
from schemas.errors import CamlakeError


def in_one_line(error: Exception) -> CamlakeError:
    """Return the first cause of a failure inside Ray, which wraps it several times."""
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None) or cause.__cause__) and not isinstance(inner, SystemException):
        cause = inner
    if isinstance(cause, CamlakeError):
        return cause
    # Of what a stage raised Ray Data hands on the text alone.
    told = re.findall(r"^schemas\.errors\.(\w+): (.+)$", str(error), re.MULTILINE)
    if told:
        kind, message = told[-1]
        raised: CamlakeError = getattr(errors, kind)(message)
        return raised
    text = str(cause).strip().splitlines()
    return CamlakeError(f"{type(cause).__name__}: {text[0] if text else 'no message'} (--debug shows where)")
