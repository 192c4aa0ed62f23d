"""Photos in all forms, made upright RGB."""

import base64
import io
import struct
import tempfile
import time
import zlib
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest
import torch

from facesnap_diffusers.errors import InputError, PhotoError
from facesnap_diffusers.faces.photo import MAX_SIDE, PhotoPolicy, load_photo, photo_policy, set_photo_policy


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
    def test_gray(self, form):
        gray = self.image[..., 0]
        photo = {
            "L": PIL.Image.fromarray(gray),
            "array": gray,
            "array with channel": gray[..., None],
            "tensor": torch.from_numpy(gray)[None],
        }[form]
        assert np.array_equal(load_photo(photo), np.repeat(gray[..., None], 3, axis=-1))

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
            assert loaded[-1, 0].tolist() == [244, 204, 204]  # 0.2 · color + 0.8 · 255

    def test_gray_alpha_over_white(self):
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
    def test_16_bit_gray(self, suffix, tmp_path):
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


# What it is, how to make it from tmp_path, and a word of the error.
NOISE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def written(tmp_path: Path, content: bytes, name: str = "photo.png") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def closed_file():
    file = io.BytesIO(b"abc")
    file.close()
    return file


class Upload:
    """As web frameworks hand files over: read() is a coroutine."""

    async def read(self, size=-1):
        return b""


class Failing:
    def read(self, size):
        raise RuntimeError("two\nlines")


def unopened(path: Path) -> PIL.Image.Image:
    return PIL.Image.open(path)


BAD_PHOTOS = {
    "none": (lambda t: None, "NoneType"),
    "number": (lambda t: 3, "int"),
    "list of photos": (lambda t: [PIL.Image.new("RGB", (64, 64))], "list"),
    "dict": (lambda t: {"image": 1}, "dict"),
    "bytes of nothing": (lambda t: b"", "no image"),
    "bytes of text": (lambda t: b"abc", "3 bytes"),
    "damaged bytes": (lambda t: png(PIL.Image.fromarray(NOISE))[:900], "900 bytes"),
    "file object of text": (lambda t: io.BytesIO(b"abc"), "BytesIO"),
    "file object in text mode": (lambda t: io.StringIO("abc"), "binary mode"),
    "closed file object": (lambda t: closed_file(), "cannot be read"),
    "coroutine": (lambda t: Upload(), "coroutine"),
    "failing file object": (lambda t: Failing(), "cannot be read"),
    "base64 of text": (lambda t: base64.b64encode(b"hello " * 50).decode(), "base64 text of 400 characters"),
    "damaged base64": (lambda t: "A" * 65, "damaged"),
    "base64 in quotes": (lambda t: repr(base64.b64encode(png(PIL.Image.fromarray(NOISE))).decode()), "pass an image"),
    "data URL without data": (lambda t: "data:image/png;base64", "no comma"),
    "data URL of damaged base64": (lambda t: "data:image/png;base64,%%%", "damaged"),
    "data URL of text": (lambda t: "data:text/plain,hello", "no image"),
    "long prompt": (lambda t: "a portrait of a woman with long hair, " * 20, "pass an image file"),
    "numpy scalar": (lambda t: np.float32(1), "float32"),
    "torch module": (lambda t: torch.nn.Identity(), "Identity"),
    "0-d array": (lambda t: np.array(1.0), "shape"),
    "1-d array": (lambda t: np.zeros(100, np.uint8), "shape"),
    "two channels": (lambda t: np.zeros((64, 64, 2), np.uint8), "shape"),
    "five channels": (lambda t: np.zeros((64, 64, 5), np.uint8), "shape"),
    "channels first array": (lambda t: np.zeros((3, 64, 64), np.uint8), "shape"),
    "batch of two": (lambda t: np.zeros((2, 64, 64, 3), np.uint8), "shape"),
    "5-d array": (lambda t: np.zeros((1, 1, 64, 64, 3), np.uint8), "shape"),
    "empty array": (lambda t: np.zeros((0, 64, 3), np.uint8), "empty"),
    "one pixel": (lambda t: np.zeros((1, 1, 3), np.uint8), "1×1"),
    "a line": (lambda t: np.zeros((1, 500, 3), np.uint8), "500×1"),
    "a line once scaled": (lambda t: np.zeros((20, 40000, 3), np.uint8), "2048×1"),
    "int64": (lambda t: NOISE.astype(np.int64), "int64"),
    "int8": (lambda t: NOISE.astype(np.int8), "int8"),
    "bool": (lambda t: NOISE > 100, "bool"),
    "complex": (lambda t: NOISE.astype(complex), "complex"),
    "objects": (lambda t: NOISE.astype(object), "object"),
    "strings": (lambda t: np.full((64, 64, 3), "a"), "<U1"),
    "float to 255": (lambda t: NOISE.astype(np.float32), "255"),
    "float from -1": (lambda t: NOISE / 127.5 - 1, "-1"),
    "nan": (lambda t: np.full((64, 64, 3), np.nan), "NaN"),
    "one infinite value": (lambda t: np.where(np.arange(64)[:, None] == 5, np.inf, np.ones((64, 64))), "infinite"),
    "tensor batch of two": (lambda t: torch.zeros(2, 3, 64, 64), "shape"),
    "tensor of latents": (lambda t: torch.zeros(1, 16, 64, 64), "shape"),
    "tensor from -1": (lambda t: torch.full((3, 64, 64), -1.0), "-1"),
    "tensor nan": (lambda t: torch.full((3, 64, 64), torch.nan), "NaN"),
    "tensor int64": (lambda t: torch.zeros(3, 64, 64, dtype=torch.int64), "int64"),
    "tensor meta": (lambda t: torch.zeros(3, 64, 64, device="meta"), "tensor"),
    "tensor sparse": (lambda t: torch.zeros(64, 64).to_sparse(), "tensor"),
    "tensor empty": (lambda t: torch.zeros(3, 0, 64), "empty"),
    "pil empty": (lambda t: PIL.Image.new("RGB", (0, 64)), "empty"),
    "pil one pixel": (lambda t: PIL.Image.new("RGB", (1, 1)), "1×1"),
    "pil 32-bit": (lambda t: PIL.Image.new("I", (64, 64), 10**6), "1000000"),
    "pil negative": (lambda t: PIL.Image.new("I", (64, 64), -5), "-5"),
    "pil float to 255": (lambda t: PIL.Image.new("F", (64, 64), 255.0), "255"),
    "pil of truncated file": (lambda t: unopened(written(t, png(PIL.Image.fromarray(NOISE))[:900])), "decoded"),
    "missing file": (lambda t: t / "missing.png", "does not exist"),
    "no path at all": (lambda t: "a portrait of a woman", "does not exist"),
    "empty string": (lambda t: "", "is empty; pass an image file"),
    "null byte": (lambda t: "a\0b.png", "pass an image file"),
    "name too long": (lambda t: "x." * 2500, "pass an image file"),
    "a long word": (lambda t: "x" * 5000, "no image"),
    "line breaks": (lambda t: "a\nb\nc", "does not exist"),
    "unknown home": (lambda t: "~nobody_of_that_name/a.png", "cannot be opened"),
    "other scheme": (lambda t: "ftp://example.com/a.png", "does not exist"),
    "directory": (lambda t: t, "directory"),
    "empty file": (lambda t: written(t, b""), "no image"),
    "text file": (lambda t: written(t, b"hello"), "no image"),
    "heic": (lambda t: written(t, b"\0\0\0\x18ftypheic", "a.HEIC"), "pillow-heif"),
    "truncated png": (lambda t: written(t, png(PIL.Image.fromarray(NOISE))[:900]), "decoded"),
    "only a header": (lambda t: written(t, png(PIL.Image.fromarray(NOISE))[:20]), "photo.png"),
    "damaged png": (lambda t: written(t, png(PIL.Image.fromarray(NOISE)).replace(b"IDAT", b"IDAX")), "photo.png"),
}


@pytest.mark.parametrize("kind", BAD_PHOTOS)
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_bad_photo(kind, tmp_path):
    make, word = BAD_PHOTOS[kind]
    photo = make(tmp_path)
    with pytest.raises(PhotoError) as caught:
        load_photo(photo, "face_image[1]")
    message = str(caught.value)
    assert message.startswith("face_image[1]") and word in message
    assert "\n" not in message and len(message) < 300


def test_pixel_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(PhotoError, match="too many pixels"):
        load_photo(written(tmp_path, png(PIL.Image.fromarray(NOISE))))


class TestEncoded:
    """An image file in memory, in every form that callers have it in."""

    image = gradient()
    content = png(PIL.Image.fromarray(image))
    text = base64.b64encode(content).decode()

    @pytest.mark.parametrize(
        "form",
        {
            "bytes": lambda content, text: content,
            "bytearray": lambda content, text: bytearray(content),
            "memoryview": lambda content, text: memoryview(content),
            "BytesIO": lambda content, text: io.BytesIO(content),
            "BytesIO read before": lambda content, text: at_end(io.BytesIO(content)),
            "stream": lambda content, text: Stream(content),
            "base64": lambda content, text: text,
            "base64 in lines": lambda content, text: base64.encodebytes(content).decode(),
            "base64 without padding": lambda content, text: text.rstrip("="),
            "base64 for URLs": lambda content, text: base64.urlsafe_b64encode(content).decode(),
            "data URL": lambda content, text: "data:image/png;base64," + text,
            "data URL with parameters": lambda content, text: "DATA:image/png;name=a.png;base64," + text,
            "data URL with escaped base64": lambda content, text: "data:image/png;base64," + quote(text, safe=""),
            "data URL with escaped bytes": lambda content, text: "data:image/png," + quote_from_bytes(content),
        }.items(),
        ids=lambda form: form[0],
    )
    def test_same_pixels(self, form):
        assert np.array_equal(load_photo(form[1](self.content, self.text)), self.image)

    def test_open_file(self, tmp_path):
        path = written(tmp_path, self.content)
        with path.open("rb") as file:
            assert np.array_equal(load_photo(file), self.image)
            assert np.array_equal(load_photo(file), self.image)  # a second time, as a batch of calls does
        with tempfile.TemporaryFile() as file:
            file.write(self.content)
            assert np.array_equal(load_photo(file), self.image)

    def test_path_objects(self, tmp_path):
        class Named:
            def __fspath__(self):
                return str(written(tmp_path, TestEncoded.content))

        assert np.array_equal(load_photo(Named()), self.image)

    def test_home_directory(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        written(tmp_path, self.content, "me.png")
        for path in ("~/me.png", Path("~/me.png")):
            assert np.array_equal(load_photo(path), self.image)

    def test_a_file_comes_before_base64(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        name = self.text[:100].replace("/", "_")
        written(tmp_path, self.content, name)
        assert np.array_equal(load_photo(name), self.image)

    def test_exif_in_memory(self):
        exif = PIL.Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        PIL.Image.fromarray(np.ascontiguousarray(np.rot90(self.image))).save(buffer, "PNG", exif=exif)
        assert np.array_equal(load_photo(buffer.getvalue()), self.image)

    def test_long_base64_is_read_in_linear_time(self):
        start = time.perf_counter()
        for text in ("A" * 10**6 + "!", "A" * 64 + "\n" * 10**6 + "!", "data:;base64," + "=" * 10**6):
            with pytest.raises(PhotoError):
                load_photo(text)
        assert time.perf_counter() - start < 5


def at_end(file):
    file.read()
    return file


class Stream:
    """A file object that cannot seek."""

    def __init__(self, content):
        self.read = io.BytesIO(content).read


@pytest.fixture
def policy():
    """Sets a policy and takes it back afterwards."""
    before = photo_policy()
    yield lambda **changes: set_photo_policy(PhotoPolicy(**changes))
    set_photo_policy(before)


class TestPolicy:
    content = png(PIL.Image.fromarray(NOISE))

    def test_no_local_files(self, policy, tmp_path):
        path = written(tmp_path, self.content)
        policy(allow_local_files=False)
        for photo in (path, str(path), "~/a.png", "no/such/file.png", "a\0b"):
            with pytest.raises(PhotoError, match="^pose_image is a path, which this process does not allow"):
                load_photo(photo, "pose_image")
        for photo in (self.content, io.BytesIO(self.content), base64.b64encode(self.content).decode(), NOISE):
            assert np.array_equal(load_photo(photo), NOISE)

    def test_no_urls(self, policy):
        policy(allow_urls=False)
        for photo in ("http://127.0.0.1:9/a.png", "HTTPS://example.com/a.png"):
            with pytest.raises(PhotoError, match="^face_image is a URL, which this process does not allow"):
                load_photo(photo)
        assert load_photo("data:image/png;base64," + base64.b64encode(self.content).decode()).shape == (64, 64, 3)

    def test_pixels_are_counted_before_decoding(self, policy, tmp_path, monkeypatch):
        monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
        path = written(tmp_path, self.content)
        policy(max_pixels=64 * 64 - 1)
        for photo in (path, self.content, PIL.Image.open(path), NOISE, NOISE / 255, torch.zeros(64, 64, 3)):
            with pytest.raises(PhotoError, match="too many pixels.*64×64"):
                load_photo(photo)
        with pytest.raises(PhotoError, match="too many pixels"):
            load_photo(torch.zeros(1).expand(300, 300, 3))

    @pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
    def test_a_small_file_of_many_pixels(self, monkeypatch):
        """Its 12000×12000 pixels would take 0.5 GB."""
        monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
        row = b"\0" + bytes(12000 // 8)
        packer = zlib.compressobj()
        data = b"".join(packer.compress(row) for _ in range(12000)) + packer.flush()

        def chunk(name, content):
            return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

        header = struct.pack(">IIBBBBB", 12000, 12000, 1, 0, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
        assert len(bomb) < 200_000
        with pytest.raises(PhotoError, match="too many pixels: 12000×12000"):
            load_photo(bomb)

    def test_large_jpeg_files_are_read_at_a_fraction(self, policy):
        buffer = io.BytesIO()
        PIL.Image.new("RGB", (8000, 4500), "teal").save(buffer, "JPEG")
        policy(max_pixels=4000 * 2250)
        assert load_photo(buffer.getvalue()).shape == (1152, 2048, 3)

    def test_bytes(self, policy):
        policy(max_bytes=len(self.content) - 1)
        for photo in (
            self.content,
            io.BytesIO(self.content),
            Stream(self.content),
            base64.b64encode(self.content).decode(),
        ):
            with pytest.raises(PhotoError, match="MiB"):
                load_photo(photo)
        policy(max_bytes=len(self.content))
        assert load_photo(self.content).shape == (64, 64, 3)

    def test_returns_the_one_before(self):
        before = photo_policy()
        strict = PhotoPolicy(allow_urls=False)
        assert set_photo_policy(strict) is before and photo_policy() is strict
        assert set_photo_policy(before) is strict

    @pytest.mark.parametrize(
        "values",
        [
            {"allow_urls": 1},
            {"allow_local_files": "no"},
            {"allow_private_addresses": None},
            {"timeout": 0},
            {"timeout": float("inf")},
            {"max_bytes": 0},
            {"max_pixels": 1.5},
            {"max_pixels": True},
        ],
        ids=str,
    )
    def test_bad_values(self, values):
        with pytest.raises(InputError, match=next(iter(values))):
            PhotoPolicy(**values)
        with pytest.raises(InputError, match="policy"):
            set_photo_policy(values)
