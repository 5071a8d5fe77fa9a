"""An http(s) URL in parts that leave nothing to guess: two readers must not see two hosts.

What a message may show of a URL is `shown`: never its query, fragment or user name, which is where
signatures and passwords stand.
"""

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from vlmflow_engine.errors import MediaFetchError

MAX_URL_LENGTH = 16_384

_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_SHOWN_PATH = 80  # characters
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_AUTHORITY = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]*)(:[0-9]*)?")
_HALF_ABSOLUTE = re.compile(r"https?:(?!//)", re.IGNORECASE)  # relative to some, not to others
_HOST_NAME = re.compile(r"(?!-)[a-z0-9_-]{1,63}(\.(?!-)[a-z0-9_-]{1,63})*")
# 2130706433, 0x7f.1 and 017700000001 are all 127.0.0.1 to a resolver.
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SAFE = "!$%&'()*+,/:;=@~"


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """Where to connect and what to ask for."""

    scheme: str  # http or https
    host: str  # in ASCII and lower case: a name, or an address without brackets
    port: int
    target: str  # percent-encoded path and query

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def shown(self) -> str:
        """What a message may say of it."""
        path = re.split("[?;]", self.target, maxsplit=1)[0]
        if len(path) > _MAX_SHOWN_PATH:
            path = f"{path[: _MAX_SHOWN_PATH // 2]}...{path[-_MAX_SHOWN_PATH // 2 :]}"
        return f"{self.scheme}://{self.host_header}{path}"

    def follow(self, location: str) -> "HttpUrl":
        """Resolve a redirect's Location. Raises MediaFetchError."""
        # A header's bytes come as Latin-1; they are UTF-8 where they are not ASCII.
        location = location.encode("latin-1", "replace").decode("utf-8", "replace").strip()
        if "\\" in location or _HALF_ABSOLUTE.match(location):
            raise MediaFetchError(f"{self.shown} redirects to what is no URL")
        try:
            followed = urljoin(f"{self.scheme}://{self.host_header}{self.target}", location)
        except ValueError:
            raise MediaFetchError(f"{self.shown} redirects to what is no URL") from None
        if not followed.lower().startswith(("http://", "https://")):
            scheme = followed.partition(":")[0][:20]
            raise MediaFetchError(f"{self.shown} redirects to {scheme!r}; only http(s) is followed")
        return parse_http_url(followed)


def parse_http_url(text: str) -> HttpUrl:
    """Take a URL apart. Raises MediaFetchError if any part can be read in two ways."""
    if len(text) > MAX_URL_LENGTH:
        raise MediaFetchError(f"a URL has {len(text):,} characters, allowed {MAX_URL_LENGTH:,}")
    # urlsplit drops tabs and line ends without a word, so they are looked for first.
    if _CONTROL.search(text):
        raise MediaFetchError("a URL holds a control character")
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise MediaFetchError("a URL cannot be read: its host or port is malformed") from None
    scheme = parts.scheme
    if scheme not in _DEFAULT_PORTS:
        raise MediaFetchError(f"a URL's scheme must be http or https, got {scheme[:20]!r}")
    if "@" in parts.netloc or "\\" in parts.netloc:
        raise MediaFetchError(
            "a URL holds a user name, a password or a backslash before its host; they are not sent"
        )
    if not _AUTHORITY.fullmatch(parts.netloc):
        raise MediaFetchError("a URL cannot be read: its host or port is malformed")
    if port == 0:
        raise MediaFetchError("a URL's port must be in [1, 65535], got 0")
    target = quote(parts.path or "/", safe=_SAFE)
    if parts.query:
        target += "?" + quote(parts.query, safe=_SAFE + "?")
    return HttpUrl(scheme, normalise_host(host), port or _DEFAULT_PORTS[scheme], target)


def normalise_host(host: str) -> str:
    """Bring a host name or an address into its one form. Raises MediaFetchError."""
    if ":" in host:
        try:
            address = ipaddress.IPv6Address(host)
        except ValueError:
            raise MediaFetchError(f"{host[:80]!r} is no IPv6 address") from None
        if address.scope_id is not None:
            raise MediaFetchError(f"{host[:80]!r} names a network card of this machine")
        return str(address)
    try:
        # The dot of the root is the same host; the codec knows the dots of other scripts.
        name = host.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError:
        raise MediaFetchError(f"{host[:80]!r} is no host name") from None
    if len(name) > 253 or not _HOST_NAME.fullmatch(name):
        raise MediaFetchError(f"{host[:80]!r} is no host name")
    if _NUMBER.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError:
            raise MediaFetchError(
                f"{host[:80]!r} is no host name; an IPv4 address has four decimal numbers"
            ) from None
    return name
