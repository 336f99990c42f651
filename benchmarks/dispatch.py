"""What a node costs beside its arithmetic: a long chain of one-element nodes on one thread.

python benchmarks/dispatch.py
"""

from measure import in_turn

import yupana as yp

NODES = 2000


def main() -> None:
    x = yp.tensor([1.0])
    y = x
    for _ in range(NODES):
        y = y * 1.0001
    program = yp.Graph(y).compile(threads=1)
    # Many runs in a row: the first after a pause finds caches cold and the core asleep.
    seconds = in_turn({"yupana": program.run}, rounds=50, repeat=100)["yupana"]
    print(f"{NODES} nodes: {seconds / NODES * 1e9:.1f} ns per node, kernel included")


if __name__ == "__main__":
    main()
