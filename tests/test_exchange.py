"""A folder takes another's place: the name always leads to one of the two."""

import threading
from pathlib import Path

import pytest

from yupana.train import exchange
from yupana.train.exchange import put_folder


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


def test_a_folder_takes_a_free_name(tmp_path):
    assert put_folder(folder(tmp_path / "a", "new"), tmp_path / "b") is None
    assert (tmp_path / "b" / "file").read_text() == "new"


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_takes_anothers_name(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(exchange, "_exchanged", lambda a, b: False)
    old = put_folder(folder(tmp_path / "a", "new"), folder(tmp_path / "b", "old"))
    assert (tmp_path / "b" / "file").read_text() == "new"
    assert (old / "file").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"b", old.name}


def test_a_failed_move_leaves_all_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(exchange, "_exchanged", lambda a, b: False)
    folder(tmp_path / "b", "old")
    with pytest.raises(FileNotFoundError):
        put_folder(tmp_path / "missing", tmp_path / "b")
    assert (tmp_path / "b" / "file").read_text() == "old"


def test_the_name_never_leads_nowhere(tmp_path):
    if not exchange._exchanged(folder(tmp_path / "x", "1"), folder(tmp_path / "y", "2")):
        pytest.skip("this file system cannot exchange names")
    target, missing, done = folder(tmp_path / "b", "0"), [], threading.Event()

    def look() -> None:
        while not done.is_set():
            try:
                (target / "file").read_text()
            except FileNotFoundError as error:
                missing.append(error)

    watcher = threading.Thread(target=look)
    watcher.start()
    for k in range(300):
        put_folder(folder(tmp_path / f"new{k}", str(k)), target)
    done.set()
    watcher.join()
    # A file that is opened while its folder is moved is found in either.
    assert not missing
