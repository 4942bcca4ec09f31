"""Files and folders are whole or not there."""

import pytest

from lotts.files import whole_folder, write_whole


def interrupted(target):
    with whole_folder(target) as folder:
        (folder / "b").write_text("half")
        raise KeyboardInterrupt


def test_a_folder_takes_the_place_of_another_only_when_it_is_filled(tmp_path):
    target = tmp_path / "weights"
    with whole_folder(target) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("first")
        (folder / "sub" / "a").chmod(0o600)
        assert not target.exists()
    assert (target / "sub" / "a").read_text() == "first"
    assert (target / "sub" / "a").stat().st_mode & 0o777 == 0o644
    with pytest.raises(KeyboardInterrupt):
        interrupted(target)
    assert [path.name for path in target.iterdir()] == ["sub"]
    with whole_folder(target) as folder:
        (folder / "b").write_text("second")
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]


def test_a_file_that_cannot_be_renamed_leaves_nothing(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match="a"):
        write_whole(tmp_path / "a", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_that_cannot_take_its_place_leaves_the_former_one(tmp_path, monkeypatch):
    target = tmp_path / "weights"
    target.mkdir()
    (target / "a").write_text("first")
    rename, renames = type(target).rename, []

    def fail_the_second(self, to):
        renames.append(to)
        if len(renames) == 2:
            raise KeyboardInterrupt
        return rename(self, to)

    monkeypatch.setattr(type(target), "rename", fail_the_second)
    with pytest.raises(KeyboardInterrupt), whole_folder(target) as folder:
        (folder / "b").write_text("second")
    assert (target / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
