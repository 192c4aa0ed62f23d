"""Photos from a URL, and what a server may do."""

import http.server
import io
import socket
import threading
import time
from contextlib import suppress

import numpy as np
import PIL.Image
import pytest

from facesnap_diffusers.errors import PhotoError
from facesnap_diffusers.faces import download as download_module
from facesnap_diffusers.faces.download import download, short_url
from facesnap_diffusers.faces.photo import PhotoPolicy, load_photo, photo_policy, set_photo_policy


IMAGE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
MAX_BYTES = 2 * 2**20


def png() -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(IMAGE).save(buffer, "PNG")
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    photo = png()
    authorizations: list = []

    def do_GET(self):
        path = self.path.partition("?")[0]
        self.authorizations.append(self.headers.get("Authorization"))
        if path in ("/moved", "/loop"):
            self.send_response(302)
            self.send_header("Location", {"/moved": "/photo", "/loop": "/loop"}[path])
            self.end_headers()
        elif path == "/elsewhere":
            self.send_response(302)
            self.send_header("Location", self.path.partition("?")[2])
            self.end_headers()
        elif path == "/slow":
            time.sleep(1.5)
        elif path == "/dripping_headers":
            self.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 10**6)
        elif path == "/dripping_content":
            self.send_response(200)
            self.end_headers()
            self.drip(b"x" * 10**6)
        elif path == "/large":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"x" * (4 * 2**20))
        elif path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", str(10**6))
            self.end_headers()
            self.wfile.write(self.photo[:100])
        elif path in ("/photo", "/html", "/empty"):
            self.send_response(200)
            self.end_headers()
            self.wfile.write({"/photo": self.photo, "/html": b"<html><body>Hello</body></html>", "/empty": b""}[path])
        else:
            self.send_error(404)

    def drip(self, content):
        for byte in content:
            self.wfile.write(bytes([byte]))
            time.sleep(0.02)

    def log_message(self, *args):
        pass

    def handle(self):
        with suppress(ConnectionError):  # the client hangs up, as it should
            super().handle()


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def loopback_allowed():
    before = set_photo_policy(PhotoPolicy(allow_private_addresses=True, timeout=1.0, max_bytes=MAX_BYTES))
    yield
    set_photo_policy(before)


@pytest.mark.parametrize("path", ["/photo", "/moved", "/photo?key=1"])
def test_url(server, loopback_allowed, path):
    assert np.array_equal(load_photo(server + path), IMAGE)
    assert np.array_equal(load_photo(server.replace("http", "HTTP", 1) + path), IMAGE)


BAD = {
    "not found": ("{}/missing", "404"),
    "html": ("{}/html", "no image"),
    "nothing": ("{}/empty", "no image"),
    "slow": ("{}/slow", "longer than 1 seconds"),
    "headers that drip": ("{}/dripping_headers", "longer than 1 seconds"),
    "content that drips": ("{}/dripping_content", "longer than 1 seconds"),
    "too large": ("{}/large", "over 2 MiB"),
    "cut short": ("{}/cut", "cannot be downloaded"),
    "redirecting for ever": ("{}/loop", "TooManyRedirects"),
    "redirecting to a file": ("{}/elsewhere?file:///etc/passwd", "InvalidSchema"),
    "refused": ("http://127.0.0.1:9/a.png", "ConnectionError"),
    "without a host": ("http://", "InvalidURL"),
    "malformed host": ("http://[::1/a.png", "cannot be downloaded"),
    "overlong label": (f"http://{'a' * 70}.example/a.png", "cannot be downloaded"),
    "port out of range": ("http://127.0.0.1:99999/a.png", "cannot be downloaded"),
    "null byte": ("http://127.0.0.1:9/\0", "cannot be downloaded"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_url(server, loopback_allowed, kind):
    url, word = BAD[kind]
    start = time.perf_counter()
    with pytest.raises(PhotoError) as caught:
        load_photo(url.format(server), "face_image[1]")
    message = str(caught.value)
    assert message.startswith("face_image[1]") and word in message
    assert "\n" not in message and len(message) < 300
    assert time.perf_counter() - start < 3  # a second is promised


@pytest.mark.parametrize("path", ["/dripping_headers", "/dripping_content", "/slow"])
def test_nothing_goes_on_after_the_time(server, path):
    with pytest.raises(PhotoError, match="longer than"):
        download(server + path, "photo", 0.3, MAX_BYTES, True)
    deadline = time.monotonic() + 10
    while any(thread.name == "facesnap-download" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the download's thread still runs"
        time.sleep(0.05)


def test_name_look_up_counts(server, monkeypatch):
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(1.5) or look_up(*args, **kwargs))
    start = time.perf_counter()
    with pytest.raises(PhotoError, match="longer than"):
        download(server + "/photo", "photo", 0.3, MAX_BYTES, False)
    assert time.perf_counter() - start < 1.4


def test_no_credentials_from_netrc(server, loopback_allowed, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    Handler.authorizations.clear()
    load_photo(server + "/moved")
    assert Handler.authorizations == [None, None]
    load_photo(server.replace("//", "//me:own@") + "/photo")  # what the caller says goes along
    assert Handler.authorizations[-1].startswith("Basic ")


def test_errors_do_not_show_secrets(server, loopback_allowed):
    for url in (f"http://user:password@{server[7:]}/missing?token=secret", f"{server}/elsewhere?http://a:password@[/"):
        with pytest.raises(PhotoError) as caught:
            load_photo(url)
        assert "secret" not in str(caught.value) and "password" not in str(caught.value)
    assert short_url("http://user:password@[broken/secret") == "'http://…'"


def look_up_as(monkeypatch, *answers):
    """Names in `.test` have these addresses, one after the other."""
    real, left = socket.getaddrinfo, list(answers)

    def getaddrinfo(host, port, *args, **kwargs):
        if isinstance(host, str) and host.endswith(".test"):
            return real(left.pop(0) if len(left) > 1 else left[0], port, *args, **kwargs)
        return real(host, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "127.1", "0.0.0.0", "10.0.0.1", "192.168.1.1", "172.16.0.1", "169.254.169.254", "[::1]",
     "[::ffff:127.0.0.1]", "[::ffff:10.0.0.1]", "[fe80::1]", "[fd00::1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
     "100.64.0.1", "224.0.0.1", "[ff02::1]", "2130706433"],
)  # fmt: skip
def test_private_addresses_are_refused(host):
    assert not photo_policy().allow_private_addresses
    with pytest.raises(PhotoError, match="leads to a private address") as caught:
        load_photo(f"http://{host}:9/photo.png")
    assert "set_photo_policy" in str(caught.value)


def test_names_of_private_addresses_are_refused(server, monkeypatch):
    port = server.rpartition(":")[2]
    look_up_as(monkeypatch, "127.0.0.1")
    with pytest.raises(PhotoError, match="leads to a private address"):
        load_photo(f"http://photos.test:{port}/photo")


def test_names_that_change_their_address_are_refused(server, monkeypatch):
    """The first look-up answers with a public address, the one of the connection with a private one."""
    port = server.rpartition(":")[2]
    look_up_as(monkeypatch, "93.184.216.34", "127.0.0.1")
    Handler.authorizations.clear()
    with pytest.raises(PhotoError, match="leads to a private address"):
        load_photo(f"http://photos.test:{port}/photo")
    assert not Handler.authorizations  # no request was sent


def test_redirects_to_private_addresses_are_refused(server, monkeypatch):
    """The server stands for a public one: only the address that it redirects to is looked at as it is."""
    real = download_module._is_public
    monkeypatch.setattr(download_module, "_is_public", lambda address: address == "127.0.0.1" or real(address))
    assert np.array_equal(load_photo(server + "/photo"), IMAGE)
    for target in ("http://169.254.169.254/latest", "http://10.0.0.1/"):
        with pytest.raises(PhotoError, match="leads to a private address"):
            load_photo(f"{server}/elsewhere?{target}")


def test_proxy_from_the_environment(server, monkeypatch):
    """A proxy may be on a private address; it gets the request, and looks the name up itself."""
    requests = []

    class Proxy(Handler):
        def do_GET(self):
            requests.append(self.path)
            self.path = "/photo"
            super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_port}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert np.array_equal(load_photo("http://photos.invalid/a.png"), IMAGE)
        assert requests == ["http://photos.invalid/a.png"]
        with pytest.raises(PhotoError, match="leads to a private address"):
            load_photo("http://10.0.0.1/a.png")
        proxy.shutdown()
