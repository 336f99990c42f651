"""Logs and TensorBoard's event files, the latter read by a decoder of their own."""

import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.train.log import Log
from yupana.train.loop import read_history
from yupana.train.tensorboard import EventFile, masked_checksum


def crc32c(data: bytes) -> int:
    """Bit by bit, from the definition: remainder modulo x^32 + x^28 + … with bits reversed."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % (1 << 32)


def records(data: bytes) -> list[bytes]:
    """The records of a file; their checksums have to be right."""
    found, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        content = data[at + 12 : at + 12 + size]
        assert struct.unpack_from("<I", data, at + 8)[0] == masked(data[at : at + 8])
        assert struct.unpack_from("<I", data, at + 12 + size)[0] == masked(content)
        found.append(content)
        at += 16 + size
    assert at == len(data)
    return found


def message(data: bytes) -> list[tuple[int, object]]:
    """Fields of a protocol buffer, in their order."""

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    found: list[tuple[int, object]] = []
    at = 0
    while at < len(data):
        key = varint()
        kind = key & 7
        if kind == 0:
            value: object = varint()
        elif kind == 2:
            size = varint()
            value, at = data[at : at + size], at + size
        else:
            layout, size = {1: ("<d", 8), 5: ("<f", 4)}[kind]
            (value,) = struct.unpack_from(layout, data, at)
            at += size
        found.append((key >> 3, value))
    return found


def events(folder: Path) -> list[tuple[int, dict[int, object]]]:
    """(step, fields) of all events in a folder, files in the order of their names."""
    data = b"".join(path.read_bytes() for path in sorted(folder.iterdir()))
    found = [dict(message(record)) for record in records(data)]
    assert all(event[1] > 1.6e9 for event in found)  # seconds since 1970
    return [(event[2], event) for event in found]


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    points = []
    for step, event in events(folder):
        for _, value in message(event.get(5, b"")):
            fields = dict(message(value))
            if fields[1] == name.encode():
                points.append((step, fields[2]))
    return points


@given(st.binary(max_size=40))
def test_checksums_are_right(data):
    assert masked_checksum(data) == masked(data)
    assert crc32c(b"123456789") == 0xE3069283  # the check value of CRC-32C


def test_curves_are_in_the_event_file(tmp_path):
    log = Log(tmp_path / "log.jsonl", events=EventFile(tmp_path / "new" / "events"))
    log.write(1, loss=2.5, norm=1.0, rate=1e-3, tokens_per_s=500.0, seconds=0.5, peak_bytes=1 << 40)
    log.write(300, loss=2.0, norm=1.5, rate=2e-3, tokens_per_s=600.0, seconds=0.5, peak_bytes=1)
    log.write(300, validation=2.25)
    folder = tmp_path / "new" / "events"
    assert [path.name[:20] for path in folder.iterdir()] == ["events.out.tfevents."]
    assert curve(folder, "loss") == [(1, 2.5), (300, 2.0)]
    assert curve(folder, "validation") == [(300, 2.25)]
    assert curve(folder, "norm") == [(1, 1.0), (300, 1.5)]
    assert [round(rate, 6) for _, rate in curve(folder, "rate")] == [0.001, 0.002]
    assert curve(folder, "tokens_per_s") == [(1, 500.0), (300, 600.0)]
    assert curve(folder, "peak_bytes") == []
    first, start, *_ = events(folder)
    assert first == (0, {**first[1], 3: b"brain.Event:2"})
    assert start[0] == 1


def test_a_resumed_run_says_from_where_its_events_count(tmp_path):
    for first in (1, 4):
        log = EventFile(tmp_path)
        for step in range(first, first + 5):
            log.write(step, {"loss": step + first / 10})
    starts = [step for step, event in events(tmp_path) if message(event.get(7, b"")) == [(1, 1)]]
    assert starts == [1, 4]
    assert len([*tmp_path.iterdir()]) == 2


def test_values_that_are_not_finite_are_written_as_they_are(tmp_path):
    EventFile(tmp_path).write(1, {"loss": float("inf")})
    assert curve(tmp_path, "loss") == [(1, float("inf"))]


def test_each_line_is_there_at_once_and_a_resumed_run_appends(tmp_path):
    path = tmp_path / "log.jsonl"
    log = Log(path)
    log.write(1, loss=3.0)
    assert json.loads(path.read_text()) == {"step": 1, "loss": 3.0}
    with path.open("a") as file:
        file.write('{"step": 2, "lo')  # killed here
    log = Log(path, append=True)
    log.write(2, loss=2.0)
    log.write(3, loss=1.0)
    assert path.read_text().splitlines()[1:] == [
        '{"step": 2, "lo',
        '{"step": 2, "loss": 2.0}',
        '{"step": 3, "loss": 1.0}',
    ]
    assert read_history(path, 9, 1.0).losses == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]


@pytest.mark.parametrize("resumes", [(), (2,), (4, 1, 3)])
def test_steps_made_again_count_once(tmp_path, resumes):
    path = tmp_path / "log.jsonl"
    for run, first in enumerate((0, *resumes)):
        log = Log(path, append=run > 0)
        for step in range(first + 1, 7):
            log.write(step, loss=step + run / 10)
            if step % 3 == 0:
                log.write(step, validation=step + run / 10)
    history = read_history(path, 5, 1.0)
    assert [step for step, _ in history.losses] == [1, 2, 3, 4, 5]
    assert history.losses[-1] == (5.0, 5 + len(resumes) / 10)
    assert [step for step, _ in history.validation] == [3]
