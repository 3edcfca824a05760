"""Finds the first cause of a failure inside Ray, which wraps exceptions several times and reports some as text only.

Ray Data reports the exception of a stage as the text of a traceback, which contains only the name of its class. This
module uses private parts of Ray Data: this text, ``SystemException`` and the attribute ``cause``.
``tests/test_ray_private.py`` fails where one of them changes.
"""

import re

from ray.data.exceptions import SystemException

from schemas import errors
from schemas.errors import CamlakeError


def in_one_line(error: Exception) -> CamlakeError:
    """Return the first cause of a failure inside Ray as a CamlakeError with one line of text."""
    cause: BaseException = error
    while (inner := getattr(cause, "cause", None) or cause.__cause__) and not isinstance(inner, SystemException):
        cause = inner
    if isinstance(cause, CamlakeError):
        return cause
    names_and_messages = re.findall(r"^schemas\.errors\.(\w+): (.+)$", str(error), re.MULTILINE)
    if names_and_messages:
        name, message = names_and_messages[-1]
        raised: CamlakeError = getattr(errors, name)(message)
        return raised
    text = str(cause).strip().splitlines()
    return CamlakeError(f"{type(cause).__name__}: {text[0] if text else 'no message'} (--debug shows where)")
