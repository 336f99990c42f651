"""Gradient evaluation of ggml's baby-llama (its defaults) on one thread, beside eager PyTorch.

    python benchmarks/baby_llama.py [ROUNDS]

Forward and backward of sum((targets - logits)²) for a batch of 8; no optimiser on either side.
"""

import sys

import torch
from measure import in_turn, report
from torch_llama import TorchLlama

from yupana.graphlib.graph import Graph
from yupana.models.baby_llama import BabyLlama, baby_config, example

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 100


def main() -> None:
    config = baby_config()
    model = BabyLlama(config).init()
    inputs, wanted = example(0, config)
    tokens = model.context.tensor(inputs)
    targets = model.context.tensor(wanted)
    loss = model.squared_error(tokens, targets)
    graph = Graph(loss)
    graph.backward(loss)
    program = graph.compile(threads=1)

    torch.set_num_threads(1)
    other = TorchLlama(model)
    x, t = torch.from_numpy(inputs), torch.from_numpy(wanted)

    def torch_gradients() -> float:
        for weight in other.weights.values():
            weight.grad = None
        error = (t - other.logits(x)).square().sum()
        error.backward()
        return error.item()

    program.run()
    before = loss.item(), torch_gradients()
    assert abs(before[0] - before[1]) < 1e-4 * before[1], before
    print(f"{config}\n{len(program.tasks)} tasks, {ROUNDS} rounds of 20, medians")
    report(
        "baby-llama gradient",
        in_turn({"yupana": program.run, "torch": torch_gradients}, ROUNDS, 20),
    )


if __name__ == "__main__":
    main()
