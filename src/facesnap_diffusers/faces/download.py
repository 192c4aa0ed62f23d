"""Downloads what a URL names, within limits of time, size and place that hold for URLs of strangers."""

from __future__ import annotations

import ipaddress
import os
import queue
import socket
import threading
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import requests
import requests.adapters
import requests.utils
import urllib3

from ..errors import PhotoError


MAX_REDIRECTS = 5
HEADERS = {"User-Agent": "facesnap-diffusers", "Accept-Encoding": "identity"}
NAT64 = ipaddress.ip_network("64:ff9b::/96")


def download(url: str, name: str, timeout: float, max_bytes: int, allow_private_addresses: bool) -> bytes:
    """
    Downloads a file by http or https. Proxies are taken from the environment, credentials (`.netrc`) are not.

    Args:
        url (`str`): Its address.
        name (`str`): What errors call it.
        timeout (`float`): Seconds that all of it may take: name look-up, redirects, headers and content.
        max_bytes (`int`): The largest size.
        allow_private_addresses (`bool`): Whether the URL, or one that it redirects to, may lead to loopback, private,
            link-local or otherwise not public addresses. (Behind a proxy that looks up names itself, only it can tell.)

    Raises:
        PhotoError: It cannot be downloaded within these limits.
    """
    connections = _Connections()
    outcomes: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
    outcome: bytes | Exception

    def work() -> None:
        try:
            outcomes.put(_get(url, name, timeout, max_bytes, allow_private_addresses, connections))
        except Exception as error:  # handed on to the caller's thread
            outcomes.put(error)

    # Sockets limit the time between two bytes, and name look-ups none at all: only another thread can limit the whole.
    threading.Thread(target=work, name="facesnap-download", daemon=True).start()
    try:
        outcome = outcomes.get(timeout=timeout)
    except queue.Empty:
        outcome = TimeoutError()
    finally:
        connections.shut_down()
    if isinstance(outcome, PhotoError):
        raise outcome
    if isinstance(outcome, (TimeoutError, requests.Timeout)):
        raise PhotoError(f"{name}: {short_url(url)} takes longer than {timeout:g} seconds; download it first")
    if isinstance(outcome, Exception):
        raise PhotoError(
            f"{name}: {short_url(url)} cannot be downloaded ({type(outcome).__name__}); pass a reachable URL or a file"
        ) from outcome
    return outcome


def short_url(url: str) -> str:
    """A URL for messages: without user, password and query, which may hold secrets, and at most 100 characters."""
    try:
        parts = urlsplit(url)
        return repr(f"{parts.scheme}://{parts.hostname or ''}{parts.path}"[:100])
    except ValueError:
        return repr(url.partition("://")[0] + "://…")


class _Connections:
    """The open connections of a download, which another thread can end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: list[Any] = []  # connections until they have a socket for good, then sockets
        self._ended = False

    def add(self, opened: Any) -> None:
        with self._lock:
            if self._ended:
                raise TimeoutError
            self._opened.append(opened)

    def shut_down(self) -> None:
        with self._lock:
            self._ended = True
            for opened in self._opened:
                with suppress(OSError, AttributeError, ValueError):  # closed already, or not open yet
                    getattr(opened, "sock", opened).shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for it


def _get(
    url: str, name: str, timeout: float, max_bytes: int, allow_private_addresses: bool, connections: _Connections
) -> bytes:
    with requests.Session() as session:
        session.trust_env = False  # the environment's proxies and certificates below, but no .netrc
        session.proxies = dict(requests.utils.get_environ_proxies(url))
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True
        session.max_redirects = MAX_REDIRECTS
        adapter = _Adapter(connections, allow_private_addresses, f"{name}: {short_url(url)}")
        session.mount("http://", adapter)
        session.mount("https://", adapter)
        with session.get(url, stream=True, timeout=timeout, headers=HEADERS) as response:
            if response.status_code != 200:
                raise PhotoError(
                    f"{name}: {short_url(url)} answers HTTP {response.status_code}; pass the address of an image"
                )
            content = bytearray()
            for chunk in response.iter_content(2**16):
                content += chunk
                if len(content) > max_bytes:
                    raise PhotoError(
                        f"{name}: {short_url(url)} is over {max_bytes / 2**20:g} MiB; download and scale it first"
                    )
            return bytes(content)


class _Adapter(requests.adapters.HTTPAdapter):
    """Watches connections and refuses addresses that are not public, before a request is sent."""

    def __init__(self, connections: _Connections, allow_private_addresses: bool, what: str) -> None:
        self._connections, self._allow_private_addresses, self._what = connections, allow_private_addresses, what
        super().__init__()

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = self._pool_classes(check_peer=not self._allow_private_addresses)

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = self._pool_classes(check_peer=False)
        return manager

    def send(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """Called for the URL and for each redirect."""
        if not self._allow_private_addresses:
            try:
                addresses = socket.getaddrinfo(urlsplit(request.url).hostname, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):  # no such name here: connecting says so, or a proxy knows it
                addresses = []
            self._check(*(str(address[0]) for *_, address in addresses))
        return super().send(request, *args, **kwargs)

    def _check(self, *addresses: str) -> None:
        if not all(_is_public(address) for address in addresses):
            raise PhotoError(
                f"{self._what} leads to a private address; download it first, or allow private addresses by"
                " set_photo_policy"
            )

    def _pool_classes(self, check_peer: bool) -> dict[str, type]:
        adapter = self

        def watched(base: type) -> type:
            class Connection(base):  # type: ignore[misc]
                def connect(self) -> None:
                    adapter._connections.add(self)
                    super().connect()
                    adapter._connections.add(self.sock)  # connections forget theirs once a response has begun
                    # The name may have been looked up anew, with another answer.
                    if check_peer:
                        adapter._check(self.sock.getpeername()[0])

            return Connection

        class HTTPPool(urllib3.HTTPConnectionPool):
            ConnectionCls = watched(urllib3.connection.HTTPConnection)

        class HTTPSPool(urllib3.HTTPSConnectionPool):
            ConnectionCls = watched(urllib3.connection.HTTPSConnection)

        return {"http": HTTPPool, "https": HTTPSPool}


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
    return ip.is_global and not ip.is_multicast
