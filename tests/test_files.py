import pytest

from flamingo_jax.errors import UserError
from flamingo_jax.files import write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "made" / "a.txt"
    for text in ("first", "ïäü"):
        write_text(path, text)
        assert path.read_text("utf-8") == text
    assert list(path.parent.iterdir()) == [path]


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/a\.txt cannot be written \(Not a directory\)"):
        write_text(tmp_path / "file" / "a.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"folder cannot be written \(Is a directory\)"):
        write_text(tmp_path / "folder", "text")
