"""One training step of a 0.8 M parameter LLaMA: yupana beside eager PyTorch.

    python benchmarks/train_step.py [ROUNDS]

Loss, every gradient and AdamW; vocabulary 65, width 128, 4 heads, 4 layers, feed-forward 344,
context 64, batch 8. PyTorch gets its fused attention, fused norms and fused AdamW.
"""

import sys

import numpy as np
import torch
from measure import in_turn, report
from torch_llama import TorchLlama

from yupana.graphlib.autograd import gradients
from yupana.graphlib.graph import Graph
from yupana.graphlib.ops import opt_step_adamw
from yupana.models.llama import Llama, LlamaConfig

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 60
SETTINGS = {"lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def main() -> None:
    config = LlamaConfig(n_vocab=65, n_ctx=64, n_embd=128, n_layer=4, n_head=4, n_mult=8)
    random = np.random.default_rng(0)
    batch = random.integers(0, config.n_vocab, (2, 8, config.n_ctx)).astype(np.int32)
    print(f"{config}\nbatch {batch.shape[1:]}, {ROUNDS} rounds, medians")
    for threads in (1, 2):
        model = Llama(config).init()
        context = model.context
        tokens, targets = (context.input(batch.shape[1:], "i32") for _ in range(2))
        tokens.set(batch[0])
        targets.set(batch[1])
        loss = model.loss(tokens, targets)
        numbers = context.tensor([1e-3, 0.9, 0.99, 1e-8, 0.1, 10.0, 100.0])
        updates = [
            opt_step_adamw(w, g, context.leaf(w.shape), context.leaf(w.shape), numbers)
            for w, g in gradients(loss).items()
        ]
        program = Graph([loss, *updates]).compile(threads)

        torch.set_num_threads(threads)
        other = TorchLlama(model)
        optimiser = torch.optim.AdamW(other.weights.values(), fused=True, **SETTINGS)
        x, y = (torch.from_numpy(part) for part in batch)

        def torch_step(other=other, optimiser=optimiser, x=x, y=y) -> None:
            optimiser.zero_grad(set_to_none=True)
            other.loss(x, y).backward()
            optimiser.step()

        program.run()
        before = loss.item(), other.loss(x, y).item()
        assert abs(before[0] - before[1]) < 1e-4, before
        seconds = in_turn({"yupana": program.run, "torch": torch_step}, ROUNDS)
        report(f"training step, {threads} thread(s)", seconds)


if __name__ == "__main__":
    main()
