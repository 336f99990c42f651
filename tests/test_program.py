"""Programs: threads, outputs of several programs, interruption, what a second process compiles."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.errors import GraphError, NonFiniteError, ShapeError
from yupana.graphlib.kernels import compiler
from yupana.graphlib.kernels.run import ABORT, take
from yupana.graphlib.pool import Pool
from yupana.graphlib.profile import profile
from yupana.models.llama import Llama, LlamaConfig

ROOT = Path(__file__).parents[1]


def llama_step(n_head_kv: int = 2, checkpoints: str | None = None):
    config = LlamaConfig(
        n_vocab=33, n_ctx=48, n_embd=64, n_layer=2, n_head=4, n_head_kv=n_head_kv, n_mult=8
    )
    model = Llama(config).init(seed=5)
    random = np.random.default_rng(0)
    ids = random.integers(0, 33, (2, 3, 48))
    tokens, targets = (model.context.tensor(part) for part in ids)
    loss = model.loss(tokens, targets)
    grads = yp.gradients(loss, checkpoints)  # type: ignore[arg-type]
    return [loss, *grads.values()]


def bits(outputs, **options) -> list[bytes]:
    program = yp.Graph(outputs).compile(**options)
    program.run()
    return [program.value(output).tobytes() for output in outputs]


def test_a_training_graph_gives_the_same_bits_however_it_is_run() -> None:
    outputs = llama_step()
    want = bits(outputs, threads=1)
    for options in ({"threads": 2}, {"threads": 3}, {"threads": 1, "reuse": False}):
        assert bits(outputs, **options) == want, options
    assert bits(llama_step(checkpoints="sqrt"), threads=2) == want


def test_products_in_bf16_change_a_training_graph_little_and_alike_on_any_threads() -> None:
    outputs = llama_step()
    exact = yp.Graph(outputs).compile(threads=1)
    exact.run()
    want = [exact.value(output) for output in outputs]
    rounded = bits(outputs, threads=1, matmul="bf16")
    assert bits(outputs, threads=3, matmul="bf16") == rounded
    for one, other in zip(want, rounded, strict=True):
        off = np.frombuffer(other, np.float32).reshape(one.shape) - one
        assert 0 < np.linalg.norm(off) < 0.02 * np.linalg.norm(one)
    with pytest.raises(GraphError, match="matmul: got 'f16', want 'f32' or 'bf16'"):
        yp.Graph(outputs).compile(matmul="f16")  # type: ignore[arg-type]


def test_fused_and_plain_agree_within_rounding() -> None:
    outputs = llama_step()
    fused, plain = yp.Graph(outputs).compile(threads=1), yp.Graph(outputs).compile(1, fuse=False)
    assert len(fused.tasks) < len(plain.tasks) - 15
    fused.run()
    got = [fused.value(o) for o in outputs]
    plain.run()
    for a, o in zip(got, outputs, strict=True):
        b = plain.value(o)
        assert np.abs(a - b).max() <= 2e-6 * max(np.abs(b).max(), 1e-3)


def test_every_thread_count_repeats_itself_forty_times() -> None:
    outputs = llama_step()
    for threads in (2, 3):
        program = yp.Graph(outputs).compile(threads)
        program.run()
        want = [program.value(o).tobytes() for o in outputs]
        for _ in range(40):
            program.run()
        assert [program.value(o).tobytes() for o in outputs] == want


def test_two_programs_may_share_outputs() -> None:
    x = yp.tensor([1.0, 2.0])
    y = x * 2.0
    z = y + x
    first, second = yp.Graph(y).compile(), yp.Graph([y, z]).compile()
    first.run()
    assert y.numpy().tolist() == [2.0, 4.0]
    x.set([10.0, 20.0])
    second.run()
    assert y.numpy().tolist() == [20.0, 40.0]
    assert first.value(y).tolist() == [2.0, 4.0]
    x.set([100.0, 200.0])
    first.run()
    assert y.numpy().tolist() == [200.0, 400.0]
    assert z.numpy().tolist() == [30.0, 60.0]


def test_numpy_of_something_not_compiled_computes_it_from_the_leaves_of_now() -> None:
    x = yp.tensor([1.0, 2.0])
    y = (x * 3.0).exp()
    assert np.allclose(y.numpy(), np.exp([3.0, 6.0]))
    x.set([0.0, 0.0])
    assert y.numpy().tolist() == [1.0, 1.0]


def test_empty_and_leaf_outputs() -> None:
    x = yp.tensor(np.zeros((0, 3)))
    y = x * 2.0 + 1.0
    leaf = yp.tensor([7.0])
    program = yp.Graph([y, leaf, leaf[0:1]]).compile(threads=2)
    program.run()
    assert program.value(y).shape == (0, 3)
    assert program.value(leaf).tolist() == [7.0]


def test_programs_say_what_is_wrong() -> None:
    x = yp.tensor([1.0])
    graph = yp.Graph(x * 2.0)
    with pytest.raises(GraphError, match="threads 0, want at least 1"):
        graph.compile(threads=0)
    with pytest.raises(GraphError, match="no output of this program"):
        graph.compile().value(x * 3.0)
    with pytest.raises(ShapeError, match=r"\(3,\), want \(1,\)"):
        x.set([1.0, 2.0, 3.0])


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_stops_a_long_run_between_kernels(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("yupana.graphlib.program._ASIDE_S", 0.0)  # every run counts as long
    x = yp.tensor(np.full((256, 256), 1 / 256))
    powers = [x]
    for _ in range(8):
        powers.append(x @ powers[-1])
    program = yp.Graph(powers[1:]).compile(threads)
    program.run()
    want = program.value(powers[-1]).tobytes()
    x.set(np.zeros((256, 256)))
    calls: list[int] = []

    def interrupted(record: int, begin: int, end: int, scratch: int) -> None:
        """A kernel in the middle, in which Ctrl-C is pressed, and which lasts until it is seen."""
        calls.append(begin)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        latest = time.monotonic() + 60
        while not program._sync[ABORT // 8] and time.monotonic() < latest:
            time.sleep(0.001)

    kernels = program._tables[0]
    middle = len(kernels) // 2
    assert threads == 1 or max(program.meetings) > middle  # where they look whether to go on
    usual, kernel = kernels[middle], compiler.function_type(4)(interrupted)
    kernels[middle] = ctypes.cast(kernel, ctypes.c_void_p).value
    with pytest.raises(KeyboardInterrupt):
        program.run()
    assert calls
    assert not program.value(powers[1]).any()
    assert program.value(powers[-1]).tobytes() == want  # the last product was not reached
    kernels[middle] = usual
    program.run()  # and can be run again
    assert not program.value(powers[-1]).any()


def test_what_stopped_a_run_does_not_stop_the_next_one() -> None:
    x = yp.tensor(np.full((64, 64), 0.5))
    y = x @ x @ x
    program = yp.Graph(y).compile(threads=1)
    program.run()
    want = program.value(y).tobytes()
    program.abort()  # as where Ctrl-C came again, while the first was seen to
    program._arena[:] = 0
    program.run()
    assert program.value(y).tobytes() == want


def test_threads_that_run_one_program_wait_for_each_other() -> None:
    random = np.random.default_rng(0)
    w, x = (yp.tensor(random.standard_normal((96, 96)) / 10) for _ in range(2))
    y = w @ (w @ (w @ (w @ x)))
    program = yp.Graph(y).compile(threads=2)
    program.run()
    want = program.value(y).tobytes()

    def work(k: int) -> None:
        for _ in range(50):
            if k == 0:
                program._last_s = 1.0  # as after a long run: the next one is handed out aside
            program.run()

    workers = [threading.Thread(target=work, args=(k,), daemon=True) for k in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert not worker.is_alive()
    assert program.value(y).tobytes() == want


def test_ctrl_c_while_threads_begin_waits_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, stopped = Pool(), threading.Event()
    provide, through = pool._provide, []

    def interrupted(n_threads: int) -> None:
        provide(n_threads)
        signal.raise_signal(signal.SIGINT)

    def job(k: int) -> None:
        stopped.wait(60)
        through.append(k)

    monkeypatch.setattr(pool, "_provide", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.run_aside(job, 3, stopped.set)
    assert sorted(through) == [0, 1, 2]


def test_ctrl_c_waits_for_the_kernel_that_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    def one(record: int, begin: int, end: int, scratch: int) -> None:
        return

    def interrupted(*args: object, **kwargs: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        reached.append(True)  # where Python would have raised
        return cfunc(*args, **kwargs)

    reached: list[bool] = []
    cfunc = compiler.cfunc
    monkeypatch.setattr(compiler, "cfunc", interrupted)
    kernel = compiler.Kernel(one)
    with pytest.raises(KeyboardInterrupt):
        _ = kernel.address
    assert reached
    assert kernel.address  # was compiled, and not in vain
    assert len(reached) == 1


def test_a_forked_child_gets_threads_of_its_own() -> None:
    code = """
import os, numpy as np, yupana as yp
x = yp.tensor(np.ones((256, 256)))
p = yp.Graph(x @ x).compile(threads=2)
p.run()
pid = os.fork()
if not pid:
    p.run()
    os._exit(0 if p.value(p.outputs[0])[0, 0] == 256 else 3)
raise SystemExit(os.waitpid(pid, 0)[1] >> 8)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0


def test_a_program_that_is_dropped_gives_its_memory_back() -> None:
    import gc
    import weakref

    program = yp.Graph(yp.tensor(np.ones((300, 300))) @ yp.tensor(np.ones((300, 300)))).compile(2)
    program.run()
    seen = weakref.ref(program)
    del program
    deadline = time.perf_counter() + 10
    while seen() is not None and time.perf_counter() < deadline:
        time.sleep(0.01)  # the parked thread lets go of its last job when it gets a core
        gc.collect()
    assert seen() is None


def test_profile_times_every_task() -> None:
    program = yp.Graph(llama_step()).compile(threads=1)
    timings = profile(program, runs=3)
    assert [t.task for t in timings] == program.tasks
    assert sum(t.ns for t in timings) > 10_000
    assert "mul_mat" in str(timings)


STEP = """
import yupana as yp
from yupana.graphlib.kernels.compiler import counts
x = yp.Context().param((3, 8)).set([[0.5 * k + 1 for k in range(8)]] * 3)
y = x.exp() * x
loss = y.sum()
graph = yp.Graph(loss)
graph.backward(loss)
graph.compile(threads=2).run()
print(counts["compiled"], counts["loaded"], loss.item())
"""


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    environment = {**os.environ, "YUPANA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    runs = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", STEP],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=True,
        )
        runs.append(done)
    compiled, loaded, loss = runs[0].stdout.split()
    assert int(compiled) > 0, "and others by a second process meanwhile"
    assert "(first run only)" in runs[0].stderr
    files = {path.name for path in tmp_path.rglob("*.nb*")}
    again = runs[1].stdout.split()
    assert again == ["0", str(int(compiled) + int(loaded)), loss]
    assert runs[1].stderr == ""
    assert files == {path.name for path in tmp_path.rglob("*.nb*")}


def test_debug_levels_print_times_and_name_the_first_value_that_is_not_finite(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    x = yp.tensor([1.0, -4.0])
    y = (x.sqrt() * 2.0).sum()
    program = yp.Graph(y).compile(threads=1)
    capsys.readouterr()  # what compiling has to say
    monkeypatch.setattr(yp.config, "debug", 2)
    program.run()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[-1] for line in lines] == ["sqrt", "scale", "sum"]
    monkeypatch.setattr(yp.config, "debug", 4)
    with pytest.raises(NonFiniteError, match=r"sqrt: .* got 1 NaN and 0 infinities in sqrt \(2,\)"):
        program.run()
    (line,) = capsys.readouterr().err.splitlines()  # and nothing after it
    assert "first value that is not finite" in line
    assert "test_program.py" in line


def test_masked_scores_do_not_stop_a_run_that_is_looked_at(monkeypatch, capsys):
    x = yp.tensor(np.ones((2, 2)))
    masked = yp.ops.diag_mask_inf(x)
    program = yp.Graph(masked.soft_max()).compile(threads=1, fuse=False)
    monkeypatch.setattr(yp.config, "debug", 4)
    program.run()
    lines = [line for line in capsys.readouterr().err.splitlines() if "us  " in line]
    assert ["first value" in line for line in lines] == [True, False]
    wrong = yp.Graph(masked - masked).compile(threads=1, fuse=False)
    with pytest.raises(NonFiniteError, match=r"sub: .*first not to be finite was diag_mask_inf"):
        wrong.run()


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("chunks", [1, 2, 7, 40])
def test_a_thread_takes_its_own_share_first_and_no_chunk_twice(threads, chunks):
    counters = np.zeros((threads, 5), np.int64)
    of_step = (counters.ctypes.data + 8, counters.strides[0])
    laps, taken = [0] * threads, [[] for _ in range(threads)]
    for thread in [*range(threads), *[0] * chunks, *range(threads)]:  # thread 0 is far ahead
        begin, end, laps[thread] = take(of_step, chunks, 2, thread, threads, laps[thread])
        taken[thread] += range(begin, end)
    assert laps == [threads] * threads
    assert sorted(itertools.chain(*taken)) == list(range(chunks))
    for thread, mine in enumerate(taken):
        assert chunks < threads or mine[0] == chunks * thread // threads
    assert not counters[:, [0, 2, 3, 4]].any()
