"""Where photos come from: folders, lists, Hugging Face data sets, WebDataset shards."""

import importlib.util
import io
from pathlib import Path

import fsspec
import pytest
from tiny_preparation import (
    CONFIG,
    contents,
    jpeg,
    photo,
    run_silently,
    write_photos,
)

from facesnap_diffusers.data.sources import Columns, Item, count, open_source
from facesnap_diffusers.errors import InputError, MissingDependencyError


pytestmark = pytest.mark.slow


class TestSources:
    def test_folder(self, tmp_path):
        write_photos(tmp_path, 4, people=2)
        (tmp_path / ".hidden").write_text("")
        items = list(open_source(str(tmp_path)))
        assert [(item.source, item.identity) for item in items] == [
            ("person0/000.png", "person0"), ("person0/002.png", "person0"),
            ("person1/001.png", "person1"), ("person1/003.png", "person1"),
        ]  # fmt: skip
        assert count(str(tmp_path)) == 4

    def test_what_else_is_in_a_folder(self, tmp_path):
        """Captions beside `UP.JPG`, notes, tables, archives, thumbnails; a file without a suffix may be a photo."""
        write_photos(tmp_path / "anna", 1)
        (tmp_path / "anna/000.png").rename(tmp_path / "anna/UP.JPG")
        (tmp_path / "anna/UP.txt").write_text("looking up\n")
        (tmp_path / "anna/000123").write_bytes((tmp_path / "anna/UP.JPG").read_bytes())
        for name in ("README.md", "README", "LICENSE", "notes.txt", "labels.csv", "Thumbs.db", "video.MP4", "a.json"):
            (tmp_path / "anna" / name).write_text("text")
        write_photos(tmp_path / "anna/thumbnails", 2)
        write_photos(tmp_path / "@eaDir", 1)
        items = {item.source: item.caption for item in open_source(str(tmp_path))}
        assert items == {"anna/UP.JPG": "looking up", "anna/000123": None}
        assert count(str(tmp_path)) == 2

    def test_a_thumbnail_does_not_take_the_place_of_its_photo(self, tmp_path):
        photo(1, (60, 40)).save(tmp_path / "a_thumb.png")
        photo(1, (600, 400)).save(tmp_path / "b.png")
        records = run_silently(open_source(str(tmp_path)), tmp_path / "out", CONFIG)
        assert [(record.source, record.reason) for record in records] == [
            ("a_thumb.png", "small photo"),
            ("b.png", "kept"),
        ]

    def test_a_table_of_excel(self, tmp_path):
        """Which puts a mark at the beginning of its UTF-8."""
        for name, text in {"a.csv": "identity,image\nÅsa,a.jpg\n", "a.txt": "a.jpg\n"}.items():
            (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert [item.identity for item in open_source(str(tmp_path / "a.csv"))] == ["Åsa"]
        assert [item.photo for item in open_source(str(tmp_path / "a.txt"))] == [str(tmp_path / "a.jpg")]

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            (Columns(identity="persn"), "no column 'persn', it has person, image; .* --identity-column"),
            (Columns(caption="text"), "no column 'text', it has person, image; .* --caption-column"),
        ],
    )
    def test_a_named_column_must_be_there(self, tmp_path, columns, message):
        (tmp_path / "a.csv").write_text("person,image\nanna,a.jpg\n")
        (tmp_path / "a.jsonl").write_text('{"person": "anna", "image": "a.jpg"}\n')
        for name in ("a.csv", "a.jsonl"):
            with pytest.raises(InputError, match=message):
                list(open_source(str(tmp_path / name), columns))
            (item,) = open_source(str(tmp_path / name), Columns(identity="person"))
            assert (item.identity, item.caption) == ("anna", None)

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
    def test_lists(self, tmp_path, kind):
        write_photos(tmp_path, 2)
        path = tmp_path / f"list.{kind}"
        lines = {
            "csv": 'file,identity,caption\n000.png,7,"a, b"\n001.png,,\n',
            "jsonl": '{"file": "000.png", "identity": 7, "caption": "a, b"}\n{"file": "001.png"}\n',
            "txt": "000.png\n001.png\n",
        }
        path.write_text(lines[kind])
        columns = Columns(image="file")
        items = list(open_source(str(path), columns))
        assert [Path(item.photo).name for item in items] == ["000.png", "001.png"]
        assert all(Path(item.photo).is_file() for item in items) and count(str(path)) == 2
        if kind != "txt":
            assert (items[0].identity, items[0].caption) == ("7", "a, b")
            assert (items[1].identity, items[1].caption) == (None, None)
            with pytest.raises(InputError, match="--image-column"):
                list(open_source(str(path)))

    def test_web_data_set(self, tmp_path):
        webdataset = pytest.importorskip("webdataset")
        for shard in range(2):
            with webdataset.TarWriter(str(tmp_path / f"in-{shard:03d}.tar")) as writer:
                for index in range(2):
                    data = jpeg(photo(10 * shard + index))
                    info = {"identity": f"p{shard}", "caption": "c"}
                    writer.write({"__key__": f"{index}", "jpg": data, "json": info})
        items = list(open_source(str(tmp_path / "in-{000..001}.tar")))
        assert [item.source for item in items] == ["in-000.tar:0", "in-000.tar:1", "in-001.tar:0", "in-001.tar:1"]
        assert [item.identity for item in items] == ["p0", "p0", "p1", "p1"] and items[0].caption == "c"
        records = run_silently(items, tmp_path / "out", CONFIG)
        assert [record.reason for record in records] == ["kept"] * 4

    def test_web_data_sets_of_one_name_in_two_folders(self, tmp_path):
        webdataset = pytest.importorskip("webdataset")
        for folder in ("one", "two"):
            (tmp_path / folder).mkdir()
            with webdataset.TarWriter(str(tmp_path / folder / "000.tar")) as writer:
                writer.write({"__key__": "0", "jpg": jpeg(photo(0))})
        items = list(open_source(f"{tmp_path}/{{one,two}}/000.tar"))
        assert [item.source for item in items] == ["one/000.tar:0", "two/000.tar:0"]

    @pytest.mark.parametrize(
        ("name", "content", "said"),
        [
            ("list.jsonl", b'{"image": "a.jpg"}\n{"image": \n', "JSONDecodeError"),
            ("list.jsonl", b'"a.jpg"\n', "row 1 is no object"),
            ("list.csv", "image\nJosé.jpg\n".encode("latin-1"), "UnicodeDecodeError"),
            ("list.csv", b'image,caption\na.jpg,"open\nb.jpg,two\n', "unexpected end of data"),
            ("photos.tar", b"no tar at all" * 100, "ReadError"),
        ],
    )
    def test_damaged_lists_and_shards(self, tmp_path, name, content, said):
        pytest.importorskip("webdataset")
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name}.*{said}.*; (mend the file|correct it)"):
            list(open_source(str(tmp_path / name)))

    def test_data_set(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        good, bad = jpeg(photo(1)), b"nonsense"
        features = datasets.Features(
            {
                "image": datasets.Image(),
                "identity": datasets.ClassLabel(names=["x", "y"]),
                "text": datasets.Value("string"),
            }
        )
        rows = {
            "image": [{"bytes": good, "path": None}, {"bytes": bad, "path": None}, None],
            "identity": [1, 0, 0],
            "text": ["c", None, ""],
        }
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
        items = list(open_source(str(tmp_path / "set"), Columns(caption="text")))
        assert [(item.identity, item.caption) for item in items] == [("y", "c"), ("x", None), ("x", None)]
        records = run_silently(items, tmp_path / "out", CONFIG)
        assert [record.reason for record in records] == ["kept", "unreadable", "unreadable"]

    def test_data_set_that_is_streamed(self, tmp_path):
        """As from the Hub: `hf:` with a repo's files in a folder."""
        datasets = pytest.importorskip("datasets")
        good, bad = jpeg(photo(1)), b"nonsense"
        features = datasets.Features(
            {
                "picture": datasets.Image(),
                "identity": datasets.ClassLabel(names=["x", "y"]),
                "text": datasets.Value("string"),
            }
        )
        rows = {
            "picture": [{"bytes": good, "path": None}, {"bytes": bad, "path": None}],
            "identity": [1, 0],
            "text": ["c", ""],
        }
        (tmp_path / "set").mkdir()
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set/train-00000-of-00001.parquet")
        name = f"hf:{tmp_path / 'set'}"
        items = list(open_source(name, Columns("picture", caption="text")))
        assert [(item.photo, item.identity, item.caption) for item in items] == [(good, "y", "c"), (bad, "x", None)]
        records = run_silently(items, tmp_path / "out", CONFIG)
        assert [record.reason for record in records] == ["kept", "unreadable"]
        assert count(name) is None
        with pytest.raises(
            InputError, match=r"has no column 'image', it has picture, identity, text; .* --image-column"
        ):
            next(open_source(name))

    def test_data_set_that_is_streamed_without_saying_its_columns(self, tmp_path):
        """A CSV file says them in its first line only, and names photos."""
        pytest.importorskip("datasets")
        (tmp_path / "set").mkdir()
        photo(1).save(tmp_path / "a.png")
        (tmp_path / "set/train.csv").write_text(f"image,identity,caption\n{tmp_path / 'a.png'},7,c\n,8,\n")
        name = f"hf:{tmp_path / 'set'}"
        items = list(open_source(name))
        assert [(item.photo, item.identity, item.caption) for item in items] == [
            (str(tmp_path / "a.png"), "7", "c"),
            (None, "8", None),
        ]
        records = run_silently(items, tmp_path / "out", CONFIG)
        assert [record.reason for record in records] == ["kept", "unreadable"]
        with pytest.raises(
            InputError, match=r"has no column 'photo', it has image, identity, caption; .* --image-column"
        ):
            next(open_source(name, Columns("photo")))

    def test_errors(self, tmp_path):
        with pytest.raises(InputError, match="is not a folder, list"):
            open_source(str(tmp_path / "none"))
        with pytest.raises(InputError, match="is not a file"):
            list(open_source(str(tmp_path / "none-{0..1}.tar")))


class TestAddresses:
    """fsspec's `memory://` stands for `s3://` and all others."""

    @pytest.fixture
    def memory(self):
        file_system = fsspec.filesystem("memory")
        yield file_system
        file_system.store.clear()
        file_system.pseudo_dirs[:] = [""]

    def test_a_folder_gives_what_it_gives_on_disk(self, tmp_path, memory):
        write_photos(tmp_path / "in", 4, people=2)
        (tmp_path / "in/person0/002.txt").write_text("looking up\n")
        (tmp_path / "in/person1/README.md").write_text("text")
        (tmp_path / "in/person1/.hidden").write_text("")
        write_photos(tmp_path / "in/person0/thumbnails", 1)
        write_photos(tmp_path / "in/.cache", 1)
        photo(9).save(tmp_path / "in/no-suffix", "PNG")
        memory.put(str(tmp_path / "in"), "/photos", recursive=True)
        here, there = (list(open_source(name)) for name in (str(tmp_path / "in"), "memory://photos"))
        assert [(item.source, item.identity, item.caption) for item in there] == [
            (item.source, item.identity, item.caption) for item in here
        ]
        assert len(there) == 5 and there[2].caption == "looking up"
        run_silently(here, tmp_path / "here", CONFIG)
        run_silently(there, tmp_path / "there", CONFIG)
        assert contents(tmp_path / "here") == contents(tmp_path / "there")

    @pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
    def test_a_list_names_photos_beside_it_and_elsewhere(self, tmp_path, memory, kind):
        memory.pipe({"/lists/a.jpg": jpeg(photo(1)), "/else/b.jpg": jpeg(photo(2))})
        lines = {
            "csv": 'image,identity,caption\na.jpg,7,"a, b"\nmemory://else/b.jpg,,\n',
            "jsonl": '{"image": "a.jpg", "identity": 7, "caption": "a, b"}\n{"image": "memory://else/b.jpg"}\n',
            "txt": "a.jpg\nmemory://else/b.jpg\n",
        }
        memory.pipe(f"/lists/list.{kind}", lines[kind].encode())
        items = list(open_source(f"memory://lists/list.{kind}"))
        assert [item.source for item in items] == ["0:a.jpg", "1:memory://else/b.jpg"]
        if kind != "txt":
            assert (items[0].identity, items[0].caption) == ("7", "a, b")
        records = run_silently(items, tmp_path / "out", CONFIG)
        assert [record.reason for record in records] == ["kept", "kept"]
        # a list on disk may name addresses too
        (tmp_path / "list.txt").write_text("memory://else/b.jpg\n")
        assert [item.photo for item in open_source(str(tmp_path / "list.txt"))] == ["memory://else/b.jpg"]

    def test_shards(self, tmp_path, memory):
        webdataset = pytest.importorskip("webdataset")
        for shard in range(2):
            buffer = io.BytesIO()
            with webdataset.TarWriter(buffer) as writer:
                for index in range(2):
                    info = {"identity": f"p{shard}", "caption": "c"}
                    writer.write({"__key__": f"{index}", "jpg": jpeg(photo(10 * shard + index)), "json": info})
            memory.pipe(f"/shards/in-{shard:03d}.tar", buffer.getvalue())
            (tmp_path / f"in-{shard:03d}.tar").write_bytes(buffer.getvalue())
        there = list(open_source("memory://shards/in-{000..001}.tar"))
        assert there == list(open_source(str(tmp_path / "in-{000..001}.tar"))) and len(there) == 4

    def test_a_photo_that_is_not_there(self, tmp_path, memory):
        memory.pipe("/else/b.jpg", jpeg(photo(2)))
        items = [Item("a", "memory://else/a.jpg"), Item("b", "memory://else/b.jpg"), Item("c", "gone://else/c.jpg")]
        records = run_silently(items, tmp_path / "out", CONFIG)
        assert [record.reason for record in records] == ["unreadable", "kept", "failed"]
        assert "does not exist" in records[0].detail and "Protocol not known" in records[2].detail

    def test_errors(self, memory):
        with pytest.raises(InputError, match="is not a folder, list"):
            open_source("memory://none")
        with pytest.raises(InputError, match="is not a file"):
            list(open_source("memory://none-{0..1}.tar"))
        with pytest.raises(InputError, match="'gone://photos' cannot be read .*Protocol not known"):
            open_source("gone://photos")
        memory.pipe("/list.jsonl", b"{nonsense")
        with pytest.raises(InputError, match="'memory://list.jsonl' cannot be read"):
            list(open_source("memory://list.jsonl"))

    def test_what_reads_an_address_is_not_installed(self):
        if importlib.util.find_spec("s3fs"):
            pytest.skip("s3fs is installed")
        with pytest.raises(MissingDependencyError, match="s3fs"):
            open_source("s3://bucket/photos")
