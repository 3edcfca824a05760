"""Find secrets in URLs and texts, and remove them before anything is shown, logged or stored."""

import hashlib
import re
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = {"file", "local"}
_HTTP = {"http", "https"}
_BUCKETS = {"s3", "s3a", "gs", "gcs"}
"""Protocols whose URLs begin with a bucket; such URLs have no user and no password."""

_SECRET = re.compile(
    r"x-(?:amz|goog|ms)-[\w-]+|x-(?:oss|tos|cos|obs|bce)-(?!process)[\w-]+|q-(?:ak|sign|key|header|url)[\w-]*"
    r"|[\w.-]*signature|sig|hmac|hdn(?:ts|ea|tl)|\w*accesskeyid|googleaccessid|expires|key-pair-id|policy"
    r"|[\w.-]*(?:token|passw(?:or)?d|passphrase)|pass|pwd|[\w.-]*secret[\w.-]*|sas|credentials?|jwt|bearer"
    r"|(?:[\w.-]*[-_.])?(?:api|access|subscription|private|account|shared|storage|master|client|auth)[-_]?key"
    r"|auth|auth[-_][\w-]+|authorization|oauth[\w-]*|session[-_]?(?:id)?|[jp]\w*sessi?d|[jp]\w*sessionid"
)
"""Names of the parameters whose values are secrets or belong to a signature, in lower case."""
_UNMISTAKABLE = re.compile(r"x-(?:amz|goog)-[\w-]+|sig|signature")
"""The names of this kind that count in an object store's key, where ``?`` is an ordinary character."""
_BESIDE_A_SIGNATURE = {
    frozenset({"sig"}): re.compile(r"s[eprstv]|srt|ss|spr|sip?|sk(?:oid|tid|t|e|s|v)|s[au]oid|scid|sdd|ses"),
    frozenset({"hm", "ex", "is"}): re.compile("hm|ex|is"),
    frozenset({"md5", "expires"}): re.compile("md5"),
}
"""For each set of names: a query that has all of them is signed, and the pattern matches the signature's names.

The sets are those of Azure's shared access signatures, of Discord and of nginx. In a query without the set, a name that
fits the pattern may distinguish one image from another.
"""
_MAY_NAME_AN_IMAGE = {"key", "code"}
"""Names of secrets in some services and of images in others; their values are replaced by digests."""
_DIGEST = re.compile(r"~[0-9a-f]{8}")
_PARAMETER = re.compile(r"(^|[&;])([^&;=]*)(=[^&;]*)?")
_PATH_PARAMETER = re.compile(r";([\w.%-]+)=[^/;]*")
_HOST = re.compile(r"(?:\[[0-9a-fA-F:.]+\]|[A-Za-z0-9][\w.-]+)(?::\d+)?")
_DOTTED_HOST = re.compile(r"localhost\b.*|\[.*|[\w-]+(?:\.[\w-]+)+(?::\d+)?|[\w.-]+:\d+")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]+[a-z0-9]")

_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?:://|(?i:%3a%2f%2f))[^\s'\"<>`]+")
_PARAMETER_IN_TEXT = re.compile(r"(?<=[?&])([\w.%-]+)=[^&#\s'\"<>)]*&?")
_SETTING_IN_TEXT = re.compile(
    r"(?i)\b([\w-]*(?:account|secret|access)[-_]?key|sharedaccesssignature|[\w-]*password|[\w-]*secret)"
    r"([\"']?\s*[=:]\s*[\"']?)[^\s;,'\"}]+"
)
_KEY_PAIR_IN_TEXT = re.compile(r"\bA[KS]IA[A-Z0-9]{8,}:[^\s'\"]*@")

MOST_CHARACTERS = 32
"""The longest wrong value that a message shows: no number and no choice is longer, but a key or a password may be."""


def safe_url(url: str) -> str:
    """Return ``url`` without user and password, and without the query's signatures, tokens and keys.

    Every URL that is shown, logged or stored passes through this function; an image's uri is the URL that it returns.
    The values of ``key`` and ``code``, which may be secrets or names of images, become digests, so that two images
    keep different URLs. In an object store's key ``?`` and ``#`` are ordinary characters, so only the values of
    unmistakable signatures become digests. A path without protocol is returned unchanged. A malformed URL raises
    nothing.
    """
    match = _SCHEME.match(url)
    scheme = match[1].lower() if match else "file"
    if match is None or scheme in _LOCAL:
        return url
    rest = _without_user(scheme, url[match.end() :])
    return match[0] + (_without_parameters(rest) if scheme in _HTTP else without_signatures(rest))


def safe_path(path: str) -> str:
    """Return a path on a file system without secrets; for HTTP a path is a URL, for an object store bucket and key."""
    if path.startswith("/"):
        return path
    return safe_url(path) if _SCHEME.match(path) else without_signatures(path)


def origin_of(url: str) -> str:
    """Return protocol, host and port of a web URL, for one whose path is a secret, as that of a webhook often is."""
    match = _SCHEME.match(url)
    if match is None:
        return "…"
    host = _without_user(match[1].lower(), url[match.end() :])
    return match[0] + re.split(r"[/?#]", host, maxsplit=1)[0]


def has_credentials(url: str) -> bool:
    """Return whether an object store's URL begins with ``key:secret@``, which no such store accepts."""
    match = _SCHEME.match(url)
    if match is None or match[1].lower() not in _BUCKETS:
        return False
    return _without_user(match[1].lower(), url[match.end() :]) != url[match.end() :]


def without_signatures(key: str) -> str:
    """Return an object's key, with digests in place of the values of unmistakable signatures."""
    if "?" not in key:
        return key
    name, query = key.split("?", 1)

    def public(found: re.Match[str]) -> str:
        return _as_digest(found) if _UNMISTAKABLE.fullmatch(_name(found)) else found[0]

    return f"{name}?{_PARAMETER.sub(public, query)}"


def without_secrets(text: str) -> str:
    """Return a text without the secrets of the URLs, the parameters and the settings in it."""

    def cleaned(found: re.Match[str]) -> str:
        return safe_url(found[0]) if "://" in found[0] else _requoted(found[0])

    text = _KEY_PAIR_IN_TEXT.sub("", _URL_IN_TEXT.sub(cleaned, text))
    drops = _drops(name[1] for name in _PARAMETER_IN_TEXT.finditer(text))
    text = _PARAMETER_IN_TEXT.sub(lambda found: "" if drops(found[1]) else found[0], text)
    return _SETTING_IN_TEXT.sub(r"\1\2…", text)


def shown_value(value: Any) -> str:
    """Return a text for an option's wrong value: a short value without its secrets, else only its type or length."""
    if isinstance(value, dict | list | tuple | set):
        return f"(a {'mapping' if isinstance(value, dict) else 'list'} of {len(value)})"
    text = without_secrets(str(value))
    if len(text) > MOST_CHARACTERS:
        return f"({len(text)} characters)"
    return repr(text if isinstance(value, str) else value)


def _without_user(scheme: str, rest: str) -> str:
    """Return ``rest``, the URL behind ``scheme://``, without ``user:password@``; the password may contain / and @.

    A user without password stays if it may be part of the address, as in ``abfs://container@account``.
    """
    host = re.split(r"[/?#]" if scheme in _HTTP else "/", rest, maxsplit=1)[0]
    sure = _BUCKET if scheme in _BUCKETS else _DOTTED_HOST
    if "@" in host:
        user, _, name = host.rpartition("@")
        if not (":" in user or "%3a" in user.lower() or scheme in _HTTP | _BUCKETS):
            return rest
        bare = rest[len(user) + 1 :]
        return bare if sure.fullmatch(name) else _behind_user(bare, sure, bare)
    user, colon, word = host.partition(":")
    if not colon or "@" not in rest or host.startswith(("[", "arn:")):
        return rest
    if word.isdecimal() or not word:  # ``word`` is a port, or the beginning of a password
        return rest if sure.fullmatch(user) else _behind_user(rest, sure, rest)
    return _behind_user(rest, _HOST, rest.rpartition("@")[2])


def _behind_user(rest: str, host: re.Pattern[str], otherwise: str) -> str:
    """Return the part of ``rest`` behind the first ``@`` before a host and a slash; ``otherwise`` without such an @."""
    for place in re.finditer("@", rest):
        name, slash, _ = rest[place.end() :].partition("/")
        if slash and host.fullmatch(name):
            return rest[place.end() :]
    return otherwise


def _without_parameters(rest: str) -> str:
    rest, _, fragment = rest.partition("#")
    path, _, query = rest.partition("?")
    path = _PATH_PARAMETER.sub(lambda found: "" if _SECRET.fullmatch(unquote(found[1]).lower()) else found[0], path)
    query, fragment = _public(query), _public(fragment) if "=" in fragment else fragment
    return path + (f"?{query}" if query else "") + (f"#{fragment}" if fragment else "")


def _public(query: str) -> str:
    """Return a query without the parameters whose values are secrets."""
    drops = _drops(found[2] for found in _PARAMETER.finditer(query))

    def kept(found: re.Match[str]) -> str:
        if drops(found[2]):
            return ""
        return _as_digest(found) if _name(found) in _MAY_NAME_AN_IMAGE else f"{found[1]}{found[2]}{_requoted(found[3])}"

    return _PARAMETER.sub(kept, query).strip("&")


def _drops(names: Iterable[str]) -> Callable[[str], bool]:
    """Return a function from a parameter's name to whether the parameter is removed; ``names`` are all in the query."""
    present = {_plain(name) for name in names}
    patterns = [_SECRET, *(beside for needed, beside in _BESIDE_A_SIGNATURE.items() if needed <= present)]
    return lambda name: any(pattern.fullmatch(_plain(name)) for pattern in patterns)


def _plain(name: str) -> str:
    return unquote_plus(name).strip().lower()


def _name(parameter: re.Match[str]) -> str:
    return _plain(parameter[2])


def _as_digest(parameter: re.Match[str]) -> str:
    value = (parameter[3] or "")[1:]
    if value and not _DIGEST.fullmatch(value):
        value = "~" + hashlib.blake2b(value.encode("utf-8", "surrogateescape"), digest_size=4).hexdigest()
    return f"{parameter[1]}{parameter[2]}={value}"


def _requoted(value: str | None) -> str:
    """Return a parameter's value; if it is a percent-encoded URL, the URL's secrets are removed."""
    value = value or ""
    plain = unquote(value)
    if "://" not in plain:
        return value
    equals, url = ("=", plain[1:]) if value.startswith("=") else ("", plain)
    safe = safe_url(url)
    return value if safe == url else equals + quote(safe, safe="" if "%3" in value else ":/")
