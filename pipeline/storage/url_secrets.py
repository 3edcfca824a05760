"""What counts as a secret in a URL or in an error's text, and how it is taken out."""

import re

_SECRET_NAME = (
    r"x-(?:amz|goog|ms)-[\w-]+|(?:amz-)?signature|sig|se|sp|sv|sr|spr|st|awsaccesskeyid|googleaccessid|expires|key-pair-id"
    r"|policy|(?:\w+[-_])?token|(?:\w+[-_])?secret|password|passwd|pwd|api[-_]?key|access[-_]?key|auth\w*|credentials?|jwt"
)
_SECRET_PARAMETER = re.compile(rf"(?i)(?<=[?&])(?:{_SECRET_NAME})=[^&#\s'\")]*&?")
_SECRET_USER = re.compile(r"(?<=://)[^/\s@:]*:[^/\s@]*@")


def public_query(query: str) -> str:
    """Return a URL's query without its signatures, tokens and keys."""
    return _SECRET_PARAMETER.sub("", "?" + query)[1:].rstrip("&")


def without_secrets(text: str) -> str:
    """Return a text without the ``user:password@`` and the signatures of the URLs in it."""
    return _SECRET_USER.sub("", _SECRET_PARAMETER.sub("", text))
