"""How a file gets into memory: shared, advised, locked, read, checked, cancelled, cut short."""

import ctypes
import gc
import mmap
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from yupana.cli import main
from yupana.graphlib.errors import FileFormatError, Interrupted, SettingError
from yupana.models import language_model
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.formats.gguf_blocks import check_finite
from yupana.models.formats.gguf_types import TENSOR_TYPE_BY_NAME, TENSOR_TYPES
from yupana.models.formats.mapping import FileMemory
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.vocabulary import Vocabulary

PAGE = mmap.PAGESIZE
ROOT = Path(__file__).parents[1]


def weights_file(path, n_tensors=3, n_bytes=16 * PAGE):
    rng = np.random.default_rng(2)
    weights = {f"w{k}": rng.normal(size=n_bytes // 4).astype(np.float32) for k in range(n_tensors)}
    write_gguf(path, {"general.name": "weights"}, weights)
    return weights


def run(code, *args):
    """Output of a program of its own; what it prints last is what is compared."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


SHARING = """
import sys
from pathlib import Path
from yupana.models.formats import GgufFile
file = GgufFile(sys.argv[1])
total = sum(int(info.raw.sum()) for info in file.tensors.values())
print(total)
print(Path("/proc/self/smaps").read_text().split(sys.argv[1])[1].split("VmFlags")[0])
"""


def test_two_processes_share_the_pages(tmp_path):
    if not Path("/proc/self/smaps").exists():
        pytest.skip("the system does not tell how pages are shared")
    path = tmp_path / "m.gguf"
    weights_file(path, n_bytes=256 * PAGE)
    file = GgufFile(path)
    total = sum(int(info.raw.sum()) for info in file.tensors.values())
    out = run(SHARING, path)
    assert out.startswith(f"{total}\n")
    counts = {k: int(v) * 1024 for k, v in re.findall(r"^(\w+): +(\d+) kB$", out, re.MULTILINE)}
    assert counts["Rss"] >= 3 * 256 * PAGE
    assert counts["Pss"] <= counts["Rss"] * 0.6  # two processes, half of each page for each
    assert counts["Anonymous"] == counts["Private_Dirty"] == 0


libc = ctypes.CDLL(None, use_errno=True)


def resident(path):
    """Which pages of a file are in memory, asked through a map of its own."""
    size = path.stat().st_size
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)  # writable, as ctypes wants
    flags = (ctypes.c_ubyte * -(-size // PAGE))()
    place = ctypes.c_char.from_buffer(mapped)
    assert libc.mincore(ctypes.c_void_p(ctypes.addressof(place)), ctypes.c_size_t(size), flags) == 0
    del place
    return np.array(flags) & 1


def dropped(path):
    """Let the system forget a file's pages."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path).any():
        pytest.skip("files of this system do not leave memory")


def test_prefetch_loads_all_pages_and_random_access_only_those_touched(tmp_path):
    path = tmp_path / "m.gguf"
    weights_file(path, n_tensors=1, n_bytes=2000 * PAGE)
    dropped(path)
    file = GgufFile(path, random_access=True)
    assert file.tensors["w0"].raw[1000 * PAGE] in range(256)
    assert resident(path).sum() <= 3  # header and one page: nothing was read ahead
    file.close()
    dropped(path)
    file = GgufFile(path, prefetch=True)
    end = time.monotonic() + 10
    while not resident(path).all() and time.monotonic() < end:
        time.sleep(0.01)
    assert resident(path).all()
    file.close()


def test_advice_that_contradicts_itself_is_refused(tmp_path):
    weights_file(tmp_path / "m.gguf")
    with pytest.raises(SettingError, match="contradict each other: got both, want at most one"):
        GgufFile(tmp_path / "m.gguf", prefetch=True, random_access=True)
    for advice in ("prefetch", "random_access"):
        with pytest.raises(SettingError, match=f"{advice} is advice about a map"):
            GgufFile(tmp_path / "m.gguf", mmap=False, **{advice: True})


def locked_bytes():
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        pytest.skip("the system does not tell what is locked")
    return int(re.search(r"VmLck:\s+(\d+) kB", status)[1]) * 1024


@pytest.mark.parametrize("mapped", [True, False])
def test_locks_grow_with_use_and_end_with_the_map(tmp_path, mapped):
    weights_file(tmp_path / "m.gguf", n_bytes=2 * PAGE)  # small: systems allow 16 pages and more
    gc.collect()
    before = locked_bytes()
    file = GgufFile(tmp_path / "m.gguf", mlock=True, mmap=mapped)
    assert locked_bytes() == before
    context = yp.Context()
    for k in range(3):
        file.tensor(context, f"w{k}")
        grown = locked_bytes() - before
        assert 2 * PAGE * (k + 1) <= grown <= 3 * PAGE * (k + 1)
    file.close()
    assert locked_bytes() - before == grown
    del file, context
    gc.collect()
    assert locked_bytes() == before


REFUSAL = """
import os, resource, sys, warnings
import numpy as np, yupana as yp
from yupana.models.formats import GgufFile
file, context = GgufFile(sys.argv[1], mlock=True), yp.Context()
limit = 24 * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
if os.geteuid() == 0:
    os.setuid(65534)  # the limit is not for root
warnings.simplefilter("always")
with warnings.catch_warnings(record=True) as caught:
    total = sum(float(file.tensor(context, name).numpy().sum()) for name in file.tensors)
print(total)
print(*(w.message for w in caught), sep="|")
"""


def test_a_limit_that_is_too_low_warns_once_and_loading_goes_on(tmp_path):
    path = tmp_path / "m.gguf"
    weights = weights_file(path)
    total, message = run(REFUSAL, path).splitlines()
    assert float(total) == pytest.approx(sum(float(w.sum()) for w in weights.values()))
    assert message.startswith(f"{path}: mlock: cannot keep more in memory: got ")
    assert f"at {16 * PAGE} bytes after {16 * PAGE}, want all that is used" in message
    assert f"RLIMIT_MEMLOCK) is {24 * PAGE} bytes; raise it with `ulimit -l unlimited`" in message
    assert "|" not in message


def test_without_a_map_tensors_are_the_callers_own(tmp_path):
    weights = weights_file(tmp_path / "m.gguf")
    file = GgufFile(tmp_path / "m.gguf", mmap=False)
    w = file.tensor(yp.Context(), "w1")
    np.testing.assert_array_equal(w.numpy(), weights["w1"])
    w.set(1.0)
    assert (w.numpy() == 1).all()
    np.testing.assert_array_equal(file.tensors["w1"].data, weights["w1"])
    np.testing.assert_array_equal(GgufFile(tmp_path / "m.gguf").tensors["w1"].data, weights["w1"])


@pytest.mark.parametrize("mapped", [True, False])
def test_a_file_cut_short_while_open_is_an_error(tmp_path, mapped):
    path = tmp_path / "m.gguf"
    weights_file(path)
    file = GgufFile(path, mmap=mapped)
    size = path.stat().st_size
    os.truncate(path, size - PAGE)
    words = f"m.gguf: cut short while open: got {size - PAGE} bytes, want the {size} there were"
    for use in (
        lambda: file.tensor(yp.Context(), "w0"),
        lambda: file.tensors["w2"].data,
        lambda: file.tensors["w2"].raw,
        lambda: file.metadata["general.name"],
    ):
        with pytest.raises(FileFormatError, match=words):
            use()


def test_reading_stops_at_the_end_of_the_file(tmp_path):
    path = tmp_path / "m.gguf"
    weights_file(path)
    size = path.stat().st_size
    with pytest.raises(FileFormatError, match=f"got the end at byte {size}, want 7 bytes more"):
        FileMemory(path, mmap=False).take(size - 3, 10)


def test_progress_tells_the_part_that_is_taken_and_can_cancel(tmp_path):
    weights_file(tmp_path / "m.gguf", n_tensors=4)
    parts = []
    file = GgufFile(tmp_path / "m.gguf", progress=parts.append)
    assert parts == []
    for name in ("w2", "w0", "w2", "w3", "w1"):
        file.tensor(yp.Context(), name)
    assert parts == [0.25, 0.5, 0.5, 0.75, 1.0]
    context = yp.Context()
    file = GgufFile(tmp_path / "m.gguf", progress=lambda part: part < 0.5)
    file.tensor(context, "w0")
    with pytest.raises(Interrupted, match=r"m.gguf: loading was cancelled at tensor 'w1'"):
        file.tensor(context, "w1")
    assert [leaf.name for leaf in context] == ["w0"]


@pytest.fixture
def model_file(tmp_path):
    vocabulary = Vocabulary.from_bytes()
    sizes = LlamaConfig(len(vocabulary), n_ctx=16, n_embd=8, n_layer=1, n_head=2)
    save_llama(tmp_path / "m.gguf", Llama(sizes).init(seed=1), vocabulary)
    return tmp_path / "m.gguf"


def test_models_are_loaded_with_the_same_options(model_file):
    n_tensors, parts = len(GgufFile(model_file).tensors), []
    model = yp.load(model_file, mlock=True, prefetch=True, progress=parts.append)
    assert len(parts) == n_tensors
    assert parts == sorted(parts)
    assert parts[-1] == 1
    read = yp.load(model_file, mmap=False).model.weights
    for name, w in model.model.weights.items():
        assert read[name].data.flags.writeable
        assert not w.data.flags.writeable
    with pytest.raises(Interrupted, match="loading was cancelled at tensor"):
        yp.load(model_file, progress=lambda part: part < 0.5)
    raw = bytearray(model_file.read_bytes())
    raw[-4:] = np.float32(np.nan).tobytes()
    model_file.write_bytes(raw)
    yp.load(model_file)
    with pytest.raises(FileFormatError, match="got an infinite value or no number"):
        yp.load(model_file, validate=True)
    with pytest.raises(TypeError, match="'n_context'"):  # at once, not with the first text
        yp.load(model_file, n_context=8)


@pytest.mark.parametrize(
    ("flag", "option"),
    [
        ("--no-mmap", {"mmap": False}),
        ("--prefetch", {"prefetch": True}),
        ("--random-access", {"random_access": True}),
        ("--mlock", {"mlock": True}),
        ("--check-tensors", {"validate": True}),
    ],
)
def test_flags_say_how_the_model_is_loaded(model_file, monkeypatch, capsys, flag, option):
    opened = []

    def open_file(path, **options):
        opened.append(options)
        return GgufFile(path, **options)

    monkeypatch.setattr(language_model, "GgufFile", open_file)
    assert main(["generate", str(model_file), "-p", "a", "-n", "1", flag]) == 0
    usual = {"mmap": True, "validate": False, "progress": None, "overrides": {}}
    usual |= dict.fromkeys(("prefetch", "random_access", "mlock"), False)
    assert opened == [usual | option]


@pytest.mark.parametrize("kind", TENSOR_TYPES.values(), ids=lambda kind: kind.name)
def test_numbers_that_are_not_finite_are_found_in_every_type(kind):
    """What the gguf package computes from random blocks is finite where our check says so."""
    gguf = pytest.importorskip("gguf")
    raw = np.random.default_rng(5).integers(0, 256, (400, kind.size), np.uint8)
    if kind.block > 1:
        raw[::3] |= 0x70  # more exponents of all ones
    if kind.name == "MXFP4":
        raw = raw[(raw[:, 0] < 253) | (raw[:, 0] == 255)]  # the rest overflow only if multiplied
    try:
        with np.errstate(all="ignore"):
            values = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[kind.name])
    except (NotImplementedError, KeyError):
        values = plain_numbers(raw, kind.name)
    finite = np.isfinite(values).all(axis=1)
    if kind.name not in FINITE:
        assert 0 < finite.sum() < len(raw)
    for block, is_finite in zip(raw, finite, strict=True):
        if is_finite:
            check_finite(Path("m.gguf"), "w", block, kind, "<", 0)
        else:
            with pytest.raises(FileFormatError, match=f"'w' \\({kind.name}\\) at byte"):
                check_finite(Path("m.gguf"), "w", block, kind, "<", 0)


FINITE = {"I8", "I16", "I32", "I64", "NVFP4"}  # types without a value that is not finite


def plain_numbers(raw, name):
    """The numbers that decide in types that the gguf package does not compute."""
    dtype, end = {"F64": ("f8", 8), "Q8_1": ("f2", 4), "Q8_K": ("f4", 4), "Q1_0": ("f2", 2)}.get(
        name, ("u1", 1)
    )
    return raw[:, :end].copy().view(dtype)


@pytest.mark.parametrize(
    ("kind", "damage", "words"),
    [
        ("F32", (4 * 70, "<f4", np.inf), "element 70 of tensor 'blk.0.w' (F32) at byte {0}: got"),
        ("F16", (2 * 70, "<f2", np.nan), "element 70 of tensor 'blk.0.w' (F16) at byte {0}: got"),
        (
            "Q8_0",
            (34 * 3, "<f2", np.inf),
            "scale of block 3 of tensor 'blk.0.w' (Q8_0) at byte {0}",
        ),
        ("Q6_K", (208, "<f2", -np.inf), "scale of block 0 of tensor 'blk.0.w' (Q6_K) at byte {0}"),
    ],
)
@pytest.mark.parametrize("mapped", [True, False])
def test_the_check_names_tensor_and_byte(tmp_path, kind, damage, words, mapped):
    path = tmp_path / "m.gguf"
    w = yp.Context().leaf((2, 256), kind if kind.startswith("Q") else kind.lower())
    w.set(np.linspace(-1, 1, 512).reshape(2, 256))
    write_gguf(path, {}, {"other": np.ones(3), "blk.0.w": (kind, w.shape, w.data)})
    GgufFile(path, validate=True, mmap=mapped).tensor(yp.Context(), "blk.0.w")
    at, dtype, value = damage
    at += GgufFile(path).tensors["blk.0.w"].offset
    raw = bytearray(path.read_bytes())
    raw[at : at + np.dtype(dtype).itemsize] = np.array(value, dtype).tobytes()
    path.write_bytes(raw)
    GgufFile(path, mmap=mapped).tensor(yp.Context(), "blk.0.w")
    file = GgufFile(path, validate=True, mmap=mapped)
    file.tensor(yp.Context(), "other")
    with pytest.raises(FileFormatError, match=re.escape(f"m.gguf: {words.format(at)}")):
        file.tensor(yp.Context(), "blk.0.w")


def test_large_tensors_are_checked_to_the_end():
    x = np.zeros((1 << 21) + 5, np.float32)
    x[-1] = np.nan
    with pytest.raises(FileFormatError, match=f"element {len(x) - 1} of"):
        check_finite(Path("m"), "w", x.view(np.uint8), TENSOR_TYPE_BY_NAME["F32"], "<", 0)
