"""Both sides of a comparison in turn, in one process, so that a busy machine slows both."""

import time
from collections.abc import Callable
from statistics import median

# OpenMP keeps torch's idle workers spinning for some 7 ms, on cores that the other side then
# shares; each turn begins when they sleep.
_PAUSE_S = 0.02


def in_turn(
    sides: dict[str, Callable[[], object]],
    rounds: int,
    repeat: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    pause_s: float = _PAUSE_S,
) -> dict[str, float]:
    """Median seconds per call of each side, over `rounds` rounds of `repeat` calls each.

    `pause_s` is what idle threads of the side before may need to give back their cores.
    """
    for run in sides.values():
        for _ in range(3):
            run()
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, run in sides.items():
            time.sleep(pause_s)
            start = clock()
            for _ in range(repeat):
                run()
            times[name].append((clock() - start) / repeat)
    return {name: median(t) for name, t in times.items()}


def report(title: str, seconds: dict[str, float], ours: str = "yupana") -> None:
    """One line: each side's median, and how many times faster ours is."""
    parts = [f"{name} {s * 1e3:9.3f} ms" for name, s in seconds.items()]
    ratios = [f"{s / seconds[ours]:.2f}x" for name, s in seconds.items() if name != ours]
    print(f"{title:48} {'  '.join(parts)}  {' '.join(ratios)}", flush=True)
