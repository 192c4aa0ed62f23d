import http.server
import io
import threading
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from facesnap_diffusers.errors import PhotoError
from facesnap_diffusers.faces import photo as photo_module
from facesnap_diffusers.faces.photo import MAX_SIDE, load_photo


def gradient(height=48, width=64):
    """An image whose every pixel differs: any flip, turn or swap of channels shows."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), (x + 2 * y) % 256], axis=-1).astype(np.uint8)


def png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class TestForms:
    image = gradient()

    @pytest.mark.parametrize(
        "form",
        {
            "pil": PIL.Image.fromarray,
            "uint8": lambda image: image,
            "batch of one": lambda image: image[None],
            "uint16": lambda image: image.astype(np.uint16) * 257,
            "float32": lambda image: image.astype(np.float32) / 255,
            "float16": lambda image: (image / 255).astype(np.float16),
            "opaque rgba": lambda image: np.dstack([image, np.full(image.shape[:2], 255, np.uint8)]),
            "flipped view": lambda image: image[:, ::-1].copy()[:, ::-1],
            "tensor chw": lambda image: torch.from_numpy(image).permute(2, 0, 1),
            "tensor bchw": lambda image: torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255,
            "tensor hwc": lambda image: torch.from_numpy(image),
            "tensor with grad": lambda image: (torch.from_numpy(image).permute(2, 0, 1) / 255).requires_grad_(),
        }.items(),
        ids=lambda form: form[0],
    )
    def test_same_pixels(self, form):
        loaded = load_photo(form[1](self.image))
        assert loaded.dtype == np.uint8 and loaded.shape == self.image.shape
        assert np.array_equal(loaded, self.image)

    def test_bfloat16(self):
        loaded = load_photo(torch.from_numpy(self.image).permute(2, 0, 1).to(torch.bfloat16) / 255)
        assert np.abs(loaded.astype(int) - self.image).max() <= 1

    @pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
    def test_file(self, suffix, tmp_path):
        path = tmp_path / f"photo.{suffix}"
        PIL.Image.fromarray(self.image).save(path, **({"lossless": True} if suffix == "webp" else {}))
        assert np.array_equal(load_photo(path), self.image)
        assert np.array_equal(load_photo(str(path)), self.image)

    def test_result_is_a_copy(self):
        image = self.image.copy()
        loaded = load_photo(image)
        image[:] = 0
        assert np.array_equal(loaded, self.image)

    def test_callers_image_is_unchanged(self):
        image = PIL.Image.new("RGB", (3000, 100))
        load_photo(image)
        assert image.size == (3000, 100)

    @pytest.mark.parametrize("form", ["L", "array", "array with channel", "tensor"])
    def test_grey(self, form):
        grey = self.image[..., 0]
        photo = {
            "L": PIL.Image.fromarray(grey),
            "array": grey,
            "array with channel": grey[..., None],
            "tensor": torch.from_numpy(grey)[None],
        }[form]
        assert np.array_equal(load_photo(photo), np.repeat(grey[..., None], 3, axis=-1))

    def test_bilevel(self):
        mask = self.image[..., 0] > 100
        assert np.array_equal(load_photo(PIL.Image.fromarray(mask))[..., 1], mask * np.uint8(255))


class TestConversions:
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_exif_orientation(self, orientation, tmp_path):
        upright = gradient()
        # How a camera stores an upright scene for each value of the tag (EXIF 2.32, 4.6.4 A).
        stored = {
            1: upright,
            2: upright[:, ::-1],
            3: upright[::-1, ::-1],
            4: upright[::-1],
            5: upright.transpose(1, 0, 2),
            6: np.rot90(upright, 1),
            7: upright.transpose(1, 0, 2)[::-1, ::-1],
            8: np.rot90(upright, -1),
        }[orientation]
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        path = tmp_path / "photo.png"
        PIL.Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif)
        assert np.array_equal(load_photo(path), upright)

    def test_alpha_over_white(self):
        rgba = np.zeros((32, 32, 4), np.uint8)
        rgba[..., 0] = 200
        rgba[:16, :, 3] = 255
        rgba[16:, :, 3] = 51  # a fifth
        for photo in (rgba, PIL.Image.fromarray(rgba), torch.from_numpy(rgba).permute(2, 0, 1), rgba / 255.0):
            loaded = load_photo(photo)
            assert loaded[0, 0].tolist() == [200, 0, 0]
            assert loaded[-1, 0].tolist() == [244, 204, 204]  # 0.2 · colour + 0.8 · 255

    def test_grey_alpha_over_white(self):
        loaded = load_photo(PIL.Image.new("LA", (32, 32), (100, 0)))
        assert (loaded == 255).all()

    def test_palette_with_transparency(self, tmp_path):
        image = PIL.Image.new("P", (32, 32), 1)
        image.putpalette([255, 0, 0, 0, 0, 255])
        image.paste(0, (0, 0, 16, 32))
        image.save(tmp_path / "a.gif", transparency=0)
        loaded = load_photo(tmp_path / "a.gif")
        assert loaded[0, 0].tolist() == [255, 255, 255] and loaded[0, -1].tolist() == [0, 0, 255]

    def test_cmyk(self, tmp_path):
        PIL.Image.new("CMYK", (32, 32), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
        assert np.abs(load_photo(tmp_path / "a.jpg")[5, 5].astype(int) - [255, 0, 0]).max() <= 3

    @pytest.mark.parametrize("suffix", ["png", "tiff"])
    def test_16_bit_grey(self, suffix, tmp_path):
        levels = np.linspace(0, 65535, 32 * 64).astype(np.uint16).reshape(32, 64)
        PIL.Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
        expected = np.round(levels / 65535 * 255)
        assert np.array_equal(load_photo(tmp_path / f"a.{suffix}")[..., 2], expected)

    def test_float_tiff(self, tmp_path):
        PIL.Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(tmp_path / "a.tiff")
        assert (load_photo(tmp_path / "a.tiff") == 128).all()

    def test_animation_gives_its_first_frame(self, tmp_path):
        frames = [PIL.Image.new("RGB", (32, 32), color) for color in ("red", "green", "blue")]
        frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
        assert load_photo(tmp_path / "a.gif")[5, 5].tolist() == [255, 0, 0]

    @pytest.mark.parametrize("form", ["jpeg", "png", "array"])
    def test_huge_is_scaled_down(self, form, tmp_path):
        image = PIL.Image.fromarray(gradient(40, 60)).resize((4200, 2800))
        if form == "array":
            photo = np.asarray(image)
        else:
            photo = tmp_path / f"a.{form}"
            image.save(photo)
        loaded = load_photo(photo)
        assert loaded.shape == (1365, MAX_SIDE, 3)
        assert (
            np.abs(loaded[::64, ::64].astype(int) - np.asarray(image.resize((MAX_SIDE, 1365)))[::64, ::64]).mean() < 2
        )

    def test_float_overshoot_is_clipped(self):
        assert (load_photo(np.full((32, 32, 3), 1.004)) == 255).all()


class Handler(http.server.BaseHTTPRequestHandler):
    photo = png(PIL.Image.fromarray(gradient()))

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/photo")
            self.end_headers()
        elif path == "/loop":
            self.send_response(302)
            self.send_header("Location", "/loop")
            self.end_headers()
        elif path == "/slow":
            time.sleep(1.0)
        elif path == "/drip":
            self.send_response(200)
            self.end_headers()
            for _ in range(20):
                self.wfile.write(b"x" * 2**16)
                time.sleep(0.1)
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

    def log_message(self, *args):
        pass

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # The client hangs up, as it should.
            pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("path", ["/photo", "/moved", "/photo?key=1"])
def test_url(server, path):
    assert np.array_equal(load_photo(server + path), gradient())


# What it is, how to make it from (tmp_path, server), and a word of the error.
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def written(tmp_path: Path, content: bytes, name: str = "photo.png") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def unopened(path: Path) -> PIL.Image.Image:
    return PIL.Image.open(path)


BAD_PHOTOS = {
    "none": (lambda t, s: None, "NoneType"),
    "number": (lambda t, s: 3, "int"),
    "list of photos": (lambda t, s: [PIL.Image.new("RGB", (64, 64))], "list"),
    "bytes": (lambda t, s: png(PIL.Image.new("RGB", (64, 64))), "bytes"),
    "dict": (lambda t, s: {"image": 1}, "dict"),
    "open file": (lambda t, s: io.BytesIO(b"abc"), "BytesIO"),
    "numpy scalar": (lambda t, s: np.float32(1), "float32"),
    "torch module": (lambda t, s: torch.nn.Identity(), "Identity"),
    "0-d array": (lambda t, s: np.array(1.0), "shape"),
    "1-d array": (lambda t, s: np.zeros(100, np.uint8), "shape"),
    "two channels": (lambda t, s: np.zeros((64, 64, 2), np.uint8), "shape"),
    "five channels": (lambda t, s: np.zeros((64, 64, 5), np.uint8), "shape"),
    "channels first array": (lambda t, s: np.zeros((3, 64, 64), np.uint8), "shape"),
    "batch of two": (lambda t, s: np.zeros((2, 64, 64, 3), np.uint8), "shape"),
    "5-d array": (lambda t, s: np.zeros((1, 1, 64, 64, 3), np.uint8), "shape"),
    "empty array": (lambda t, s: np.zeros((0, 64, 3), np.uint8), "empty"),
    "one pixel": (lambda t, s: np.zeros((1, 1, 3), np.uint8), "1×1"),
    "a line": (lambda t, s: np.zeros((1, 500, 3), np.uint8), "500×1"),
    "a line once scaled": (lambda t, s: np.zeros((20, 40000, 3), np.uint8), "2048×1"),
    "int64": (lambda t, s: NOISE.astype(np.int64), "int64"),
    "int8": (lambda t, s: NOISE.astype(np.int8), "int8"),
    "bool": (lambda t, s: NOISE > 100, "bool"),
    "complex": (lambda t, s: NOISE.astype(complex), "complex"),
    "objects": (lambda t, s: NOISE.astype(object), "object"),
    "strings": (lambda t, s: np.full((64, 64, 3), "a"), "<U1"),
    "float to 255": (lambda t, s: NOISE.astype(np.float32), "255"),
    "float from -1": (lambda t, s: NOISE / 127.5 - 1, "-1"),
    "nan": (lambda t, s: np.full((64, 64, 3), np.nan), "NaN"),
    "one infinite value": (lambda t, s: np.where(np.arange(64)[:, None] == 5, np.inf, np.ones((64, 64))), "infinite"),
    "tensor batch of two": (lambda t, s: torch.zeros(2, 3, 64, 64), "shape"),
    "tensor of latents": (lambda t, s: torch.zeros(1, 16, 64, 64), "shape"),
    "tensor from -1": (lambda t, s: torch.full((3, 64, 64), -1.0), "-1"),
    "tensor nan": (lambda t, s: torch.full((3, 64, 64), torch.nan), "NaN"),
    "tensor int64": (lambda t, s: torch.zeros(3, 64, 64, dtype=torch.int64), "int64"),
    "tensor meta": (lambda t, s: torch.zeros(3, 64, 64, device="meta"), "tensor"),
    "tensor sparse": (lambda t, s: torch.zeros(64, 64).to_sparse(), "tensor"),
    "tensor empty": (lambda t, s: torch.zeros(3, 0, 64), "empty"),
    "pil empty": (lambda t, s: PIL.Image.new("RGB", (0, 64)), "empty"),
    "pil one pixel": (lambda t, s: PIL.Image.new("RGB", (1, 1)), "1×1"),
    "pil 32-bit": (lambda t, s: PIL.Image.new("I", (64, 64), 10**6), "1000000"),
    "pil negative": (lambda t, s: PIL.Image.new("I", (64, 64), -5), "-5"),
    "pil float to 255": (lambda t, s: PIL.Image.new("F", (64, 64), 255.0), "255"),
    "pil of truncated file": (lambda t, s: unopened(written(t, png(PIL.Image.fromarray(NOISE))[:900])), "decoded"),
    "missing file": (lambda t, s: t / "missing.png", "does not exist"),
    "no path at all": (lambda t, s: "a portrait of a woman", "does not exist"),
    "empty string": (lambda t, s: "", "directory"),
    "null byte": (lambda t, s: "a\0b.png", "pass an image file"),
    "name too long": (lambda t, s: "x" * 5000, "pass an image file"),
    "line breaks": (lambda t, s: "a\nb\nc", "does not exist"),
    "unknown home": (lambda t, s: "~nobody_of_that_name/a.png", "cannot be opened"),
    "other scheme": (lambda t, s: "ftp://example.com/a.png", "does not exist"),
    "directory": (lambda t, s: t, "directory"),
    "empty file": (lambda t, s: written(t, b""), "no image"),
    "text file": (lambda t, s: written(t, b"hello"), "no image"),
    "heic": (lambda t, s: written(t, b"\0\0\0\x18ftypheic", "a.HEIC"), "pillow-heif"),
    "truncated png": (lambda t, s: written(t, png(PIL.Image.fromarray(NOISE))[:900]), "decoded"),
    "only a header": (lambda t, s: written(t, png(PIL.Image.fromarray(NOISE))[:20]), "photo.png"),
    "damaged png": (lambda t, s: written(t, png(PIL.Image.fromarray(NOISE)).replace(b"IDAT", b"IDAX")), "photo.png"),
    "url not found": (lambda t, s: s + "/missing", "404"),
    "url of html": (lambda t, s: s + "/html", "no image"),
    "url of nothing": (lambda t, s: s + "/empty", "no image"),
    "url too slow": (lambda t, s: s + "/slow", "ReadTimeout"),
    "url dripping": (lambda t, s: s + "/drip", "too long"),
    "url too large": (lambda t, s: s + "/large", "MiB"),
    "url cut short": (lambda t, s: s + "/cut", "downloaded"),
    "url redirecting for ever": (lambda t, s: s + "/loop", "TooManyRedirects"),
    "url refused": (lambda t, s: "http://127.0.0.1:9/a.png", "ConnectionError"),
    "url malformed": (lambda t, s: "http://", "InvalidURL"),
    "url malformed host": (lambda t, s: "http://[::1/a.png", "InvalidURL"),
}


@pytest.mark.parametrize("kind", BAD_PHOTOS)
def test_bad_photo(kind, tmp_path, server, monkeypatch):
    monkeypatch.setattr(photo_module, "URL_TIMEOUT", 0.3)
    monkeypatch.setattr(photo_module, "URL_MAX_BYTES", 2 * 2**20)
    make, word = BAD_PHOTOS[kind]
    photo = make(tmp_path, server)
    with pytest.raises(PhotoError) as caught:
        load_photo(photo, "face_image[1]")
    message = str(caught.value)
    assert message.startswith("face_image[1]") and word in message
    assert "\n" not in message and len(message) < 500


def test_pixel_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PhotoError, match="too many pixels"):
        load_photo(written(tmp_path, png(PIL.Image.fromarray(NOISE))))


def test_errors_do_not_show_secrets(server):
    host = server.removeprefix("http://")
    with pytest.raises(PhotoError) as caught:
        load_photo(f"http://user:password@{host}/missing?token=secret")
    assert "secret" not in str(caught.value) and "password" not in str(caught.value)
