"""One spelling for each address, so that one article is one article."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_TRACKING = re.compile(
    r"utm_.*|(fb|g|dc|ms|tw|yc)clid|gclsrc|mc_[ce]id|_ga|igshid|ncid|cmpid|cmp|guccounter|guce_.*|soc_(src|trk)|srnd|mod|ref(src)?|rss|src",
    re.IGNORECASE,
)
_PORTS = {"http": 80, "https": 443}
_SAFE = "!$&'()*+,;=:@~"


def canonical(url: str) -> str:
    """The address without what does not name the page. Raises ValueError for what is no address of the web.

    Scheme https, host in lower case and as IDNA, no default port, no user, no fragment, percent-encoding only where it is
    needed (`%3A` and `:` are one), dots in the path resolved, no slash at its end, parameters sorted and without those of
    tracking.
    """
    try:
        parts = urlsplit(url.strip())
        scheme, host, port = parts.scheme.lower(), parts.hostname or "", parts.port
    except ValueError as error:
        raise ValueError(f"'{url[:80]}' is no address: {error}") from error
    if scheme not in _PORTS or not host or re.search(r"[\s<>\"]", host):
        raise ValueError(f"'{url[:80]}' is no address of the web (http or https, and a host)")
    try:
        host = host.rstrip(".").encode("idna").decode().lower()
    except UnicodeError as error:
        raise ValueError(f"'{url[:80]}' has a host that cannot be: {error}") from error
    shown = host if port in (None, *_PORTS.values()) else f"{host}:{port}"
    kept = sorted((key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if not _TRACKING.fullmatch(key))
    query = f"?{urlencode(kept)}" if kept else ""
    return f"https://{shown}{_path(parts.path)}{query}"


def _path(path: str) -> str:
    found: list[str] = []
    for part in path.split("/"):
        text = unquote(part, errors="replace")
        if text == "..":
            found = found[:-1]
        elif text not in ("", "."):
            found.append(quote(text, safe=_SAFE))  # a slash inside a part stays encoded: it is another page
    return "".join(f"/{part}" for part in found)
