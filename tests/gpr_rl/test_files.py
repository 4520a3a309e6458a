"""A file is there whole or not at all."""

import pytest

from gpr_rl.files import complete_file, write_bytes, write_text


def test_a_failure_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old é")
    assert path.read_bytes() == b"old \xc3\xa9"

    def interrupted():
        with complete_file(path) as temporary:
            assert temporary.parent == tmp_path
            temporary.write_text("half")
            assert path.read_text(encoding="utf-8") == "old é"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_text(encoding="utf-8") == "old é"
    write_bytes(path, b"new")
    assert path.read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        write_text(tmp_path / "nowhere" / "a.txt", "x")
