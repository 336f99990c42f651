"""Settings from the environment: defaults, types, ranges, names."""

import os
import subprocess
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.graphlib import config as config_module
from yupana.graphlib.config import Config, read_environment
from yupana.graphlib.errors import SettingError, YupanaError

ROOT = Path(__file__).parents[1]


def test_nothing_set_gives_defaults():
    got = read_environment({"PATH": "/bin", "YUPANATHREADS": "7"})
    assert got == Config()
    assert got.threads >= 1
    assert (got.debug, got.verify) == (0, 0)


def test_each_variable_is_read(tmp_path):
    values = {"THREADS": "3", "CACHE_DIR": str(tmp_path), "DEBUG": "4", "VERIFY": "1"}
    got = read_environment({f"YUPANA_{name}": text for name, text in values.items()})
    assert got == Config(threads=3, cache_dir=str(tmp_path), debug=4, verify=1)
    assert len(values) == len(fields(Config)), "a new setting needs its line here"


def test_every_setting_says_what_it_means():
    assert all(f.metadata["meaning"] for f in fields(Config))


@pytest.mark.parametrize("text", ["", "  "])
@pytest.mark.parametrize("name", [f.name for f in fields(Config)])
def test_empty_variable_counts_as_not_set(name, text):
    assert read_environment({f"YUPANA_{name.upper()}": text}) == Config()


@given(st.integers(min_value=1, max_value=10**6), st.sampled_from(["{}", " {} ", "+{}", "0{}"]))
def test_thread_counts_are_read_as_written(n, form):
    assert read_environment({"YUPANA_THREADS": form.format(n)}).threads == n


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("YUPANA_THREADS", "0", "at least 1"),
        ("YUPANA_THREADS", "-2", "at least 1"),
        ("YUPANA_THREADS", "two", "a whole number"),
        ("YUPANA_THREADS", "1.5", "a whole number"),
        pytest.param("YUPANA_THREADS", "9" * 5000, "a whole number", id="5000 digits"),
        ("YUPANA_DEBUG", "5", "0 to 4"),
        ("YUPANA_DEBUG", "yes", "0 to 4"),
        ("YUPANA_VERIFY", "2", "0 to 1"),
    ],
)
def test_value_out_of_range_is_an_error_that_says_the_range(name, text, wanted):
    with pytest.raises(SettingError, match=name) as caught:
        read_environment({name: text})
    assert wanted in str(caught.value)
    assert text[:20] in str(caught.value)
    assert isinstance(caught.value, YupanaError)


def test_unknown_variable_warns_with_the_list_and_the_nearest_name():
    with pytest.warns(UserWarning, match="YUPANA_THREAD: unknown") as caught:
        got = read_environment({"YUPANA_THREAD": "3"})
    message = str(caught[0].message)
    assert got == Config()
    assert "Did you mean YUPANA_THREADS?" in message
    assert all(f"YUPANA_{f.name.upper()}" in message for f in fields(Config))


def test_assignment_is_checked_like_the_environment():
    settings = Config()
    settings.threads = np.int64(2)
    settings.verify = True
    assert (settings.threads, settings.verify) == (2, 1)
    with pytest.raises(SettingError, match=r"YUPANA_THREADS: got 0"):
        settings.threads = 0
    with pytest.raises(SettingError, match=r"no such setting: got 'thread'"):
        settings.thread = 2
    assert settings.threads == 2


def test_cache_folder_is_absolute_and_knows_the_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert Config().cache_dir == str(tmp_path / ".cache" / "yupana")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert Config().cache_dir == str(tmp_path / "xdg" / "yupana")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert Config().cache_dir == str(tmp_path / ".cache" / "yupana")
    assert Config(cache_dir="~/kernels").cache_dir == str(tmp_path / "kernels")
    monkeypatch.chdir(tmp_path)
    assert Config(cache_dir="here").cache_dir == str(tmp_path / "here")
    with pytest.raises(SettingError, match="YUPANA_CACHE_DIR"):
        Config(cache_dir="")


def test_user_without_a_home_still_gets_settings(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(config_module.Path, "home", no_home)
    with pytest.raises(OSError, match="yupana"):
        os.makedirs(Config().cache_dir)


def test_import_reads_the_environment_once():
    code = "from yupana.graphlib.config import config; print(config.threads, config.debug)"
    environ = {**os.environ, "YUPANA_THREADS": "5", "YUPANA_DEBUG": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout.split() == ["5", "1"]


def test_known_variables_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_environment({"YUPANA_VERIFY": "1"})
