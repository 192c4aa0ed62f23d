"""Files and folders appear whole or not at all."""

import errno
import os
import stat
import threading

import pytest

from facesnap_diffusers.files import atomic_file, atomic_folder


class Injected(Exception):
    pass


def contents(folder):
    """Every file under `folder`, hidden ones too, with its text."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def umask():
    """A umask that only this test has."""
    before = os.umask(0o027)
    yield
    os.umask(before)


class TestFile:
    def test_appears_when_the_block_ends(self, tmp_path):
        path = tmp_path / "table.json"
        with atomic_file(path) as temporary:
            temporary.write_text("new")
            assert not path.exists()
            assert temporary.parent == tmp_path
            assert temporary.suffix == ".json"
        assert contents(tmp_path) == {"table.json": "new"}

    def test_takes_the_place_of_another(self, tmp_path):
        path = tmp_path / "table.json"
        path.write_text("old")
        with atomic_file(str(path)) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert contents(tmp_path) == {"table.json": "new"}

    @pytest.mark.parametrize("error", [Injected, KeyboardInterrupt, SystemExit])
    def test_an_error_in_the_block_leaves_all_as_it_was(self, tmp_path, error):
        path = tmp_path / "table.json"
        path.write_text("old")
        with pytest.raises(error), atomic_file(path) as temporary:
            temporary.write_text("half")
            raise error
        assert contents(tmp_path) == {"table.json": "old"}

    @pytest.mark.parametrize("function", ["fsync", "replace"])
    def test_a_full_disk_leaves_all_as_it_was(self, tmp_path, monkeypatch, function):
        path = tmp_path / "table.json"
        path.write_text("old")
        monkeypatch.setattr(f"facesnap_diffusers.files.os.{function}", no_space)
        with pytest.raises(OSError, match="No space left"), atomic_file(path) as temporary:
            temporary.write_text("new")
        assert contents(tmp_path) == {"table.json": "old"}

    def test_the_temporary_may_be_replaced_by_who_writes_it(self, tmp_path):
        """As libraries do that write atomically by themselves."""
        with atomic_file(tmp_path / "table.json") as temporary:
            other = tmp_path / "other"
            other.write_text("new")
            os.replace(other, temporary)
        assert contents(tmp_path) == {"table.json": "new"}

    def test_in_a_folder_that_is_not_there(self, tmp_path):
        with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "nowhere" / "table.json"):
            pytest.fail("the block ran")

    def test_permissions_are_those_of_any_new_file(self, tmp_path, umask):
        with atomic_file(tmp_path / "table.json") as temporary:
            temporary.write_text("new")
        assert stat.S_IMODE((tmp_path / "table.json").stat().st_mode) == 0o640

    def test_many_writers_of_one_file(self, tmp_path):
        """The last one wins, and a reader never sees a mixture."""
        path = tmp_path / "table.json"
        path.write_text("0" * 1000)
        seen, errors = set(), []

        def write(digit):
            try:
                for _ in range(20):
                    with atomic_file(path) as temporary:
                        temporary.write_text(digit * 1000)
                    seen.add(path.read_text())
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(str(digit),)) for digit in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert seen <= {str(digit) * 1000 for digit in range(8)}
        assert len(contents(tmp_path)) == 1


class TestFolder:
    @staticmethod
    def fill(folder, text):
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text(text)
        (folder / "b").write_text(text)

    @pytest.fixture
    def existing(self, tmp_path):
        path = tmp_path / "adapter"
        path.mkdir()
        self.fill(path, "old")
        (path / "only_before").write_text("old")
        return path

    OLD = {"adapter/inner/a": "old", "adapter/b": "old", "adapter/only_before": "old"}
    NEW = {"adapter/inner/a": "new", "adapter/b": "new"}

    def test_appears_when_the_block_ends(self, tmp_path):
        with atomic_folder(tmp_path / "adapter") as temporary:
            self.fill(temporary, "new")
            assert not (tmp_path / "adapter").exists()
        assert contents(tmp_path) == self.NEW

    def test_takes_the_place_of_another_as_a_whole(self, tmp_path, existing):
        with atomic_folder(existing) as temporary:
            self.fill(temporary, "new")
            assert contents(existing).keys() == {"inner/a", "b", "only_before"}
        assert contents(tmp_path) == self.NEW

    @pytest.mark.parametrize("error", [Injected, KeyboardInterrupt, SystemExit])
    def test_an_error_in_the_block_leaves_all_as_it_was(self, tmp_path, existing, error):
        with pytest.raises(error), atomic_folder(existing) as temporary:
            self.fill(temporary, "half")
            raise error
        assert contents(tmp_path) == self.OLD
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

    def test_a_full_disk_leaves_all_as_it_was(self, tmp_path, existing, monkeypatch):
        monkeypatch.setattr("facesnap_diffusers.files.os.fsync", no_space)
        with pytest.raises(OSError, match="No space left"), atomic_folder(existing) as temporary:
            self.fill(temporary, "new")
        assert contents(tmp_path) == self.OLD

    @pytest.mark.parametrize("move", [1, 2])
    def test_a_move_that_fails_leaves_all_as_it_was(self, tmp_path, existing, monkeypatch, move):
        """The first moves the old folder aside, the second the new one into its place."""
        moves = []

        def replace(source, target):
            moves.append(source)
            if len(moves) == move:
                raise OSError(errno.EIO, "Input/output error")
            return os.rename(source, target)

        monkeypatch.setattr("facesnap_diffusers.files.os.replace", replace)
        with pytest.raises(OSError, match="Input/output error"), atomic_folder(existing) as temporary:
            self.fill(temporary, "new")
        assert contents(tmp_path) == self.OLD
        assert [path.name for path in tmp_path.iterdir()] == ["adapter"]

    def test_a_first_folder_that_fails_leaves_nothing(self, tmp_path, monkeypatch):
        monkeypatch.setattr("facesnap_diffusers.files.os.replace", no_space)
        with pytest.raises(OSError, match="No space left"), atomic_folder(tmp_path / "adapter") as temporary:
            self.fill(temporary, "new")
        assert list(tmp_path.iterdir()) == []

    def test_permissions_are_those_of_any_new_folder(self, tmp_path, umask):
        with atomic_folder(tmp_path / "adapter") as temporary:
            self.fill(temporary, "new")
        assert stat.S_IMODE((tmp_path / "adapter").stat().st_mode) == 0o750
