"""Steps of finetune and pretrain beside eager PyTorch, in turn, and the memory of each.

    python benchmarks/finetune.py [ROUNDS]

Vocabulary 32000, width 256, 8 heads, 4 layers, feed-forward 768, context 128, batch 8, AdamW.
The adapter has rank 4 beside every matrix; its base is Q8_0 here and float32 in PyTorch, which
computes W x + s B (A x) as PEFT does. Peak memory is that of a process of its own for each side.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from measure import in_turn, report

from yupana.graphlib.budget import Checkpoints
from yupana.graphlib.context import Context
from yupana.graphlib.op import Matmul
from yupana.models.llama import Llama, LlamaConfig, weight_shapes
from yupana.train.lora import TrainedAdapter
from yupana.train.lora_settings import LoraSettings
from yupana.train.optimiser import AdamWSettings
from yupana.train.run import record_step
from yupana.train.settings import auto

CONFIG = LlamaConfig(n_vocab=32000, n_ctx=128, n_embd=256, n_layer=4, n_head=8, n_ff=768)
BATCH = np.random.default_rng(0).integers(0, 32000, (2, 8, 128)).astype(np.int32)
LORA = LoraSettings(lora_r=4)


def base_model() -> Llama:
    """Frozen, in Q8_0; norms in float32."""
    context, random = Context(), np.random.default_rng(1)
    weights = {}
    for name, shape in weight_shapes(CONFIG).items():
        weights[name] = context.leaf(shape, "Q8_0" if len(shape) == 2 else "f32", name)
        values = random.standard_normal(shape, np.float32) * np.float32(0.02)
        weights[name].set(values if len(shape) == 2 else np.ones(shape, np.float32))
    return Llama(CONFIG, context, weights)


def our_step(
    is_finetune: bool, checkpoints: Checkpoints, matmul: Matmul = "f32"
) -> Callable[[], float]:
    """One update, ready to be run again and again; gives the loss."""
    adapter = None
    if is_finetune:
        model = base_model()
        adapter = TrainedAdapter(model.weights, LORA)
        model.attach_part("trained", adapter)
    else:
        model = Llama(CONFIG).init()
    step = record_step(model, 8, AdamWSettings(), checkpoints, adapter=adapter, matmul=matmul)
    step.compile(1)
    return lambda: step.run(list(BATCH), 0).loss


def torch_step(is_finetune: bool, matmul: Matmul = "f32") -> Callable[[], float]:
    """The same in PyTorch; with bf16 under its autocast."""
    import torch
    from torch_llama import TorchLlama

    torch.set_num_threads(1)
    model = base_model() if is_finetune else Llama(CONFIG).init()
    other = TorchLlama(model)
    trained = [*other.weights.values()]
    if is_finetune:
        adapter = TrainedAdapter(model.weights, LORA)
        trained = other.adapt(adapter)
        del model, adapter
    optimiser = torch.optim.AdamW(trained, lr=1e-3, fused=True)
    tokens, targets = (torch.from_numpy(part).long() for part in BATCH)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=matmul == "bf16"):
            loss = other.loss(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        return loss.item()

    return step


SIDES: dict[str, Callable[[bool], Callable[[], float]]] = {
    "yupana": lambda is_finetune: our_step(is_finetune, auto()),
    "yupana, all kept": lambda is_finetune: our_step(is_finetune, None),
    "yupana, sqrt": lambda is_finetune: our_step(is_finetune, "sqrt"),
    "yupana, bf16": lambda is_finetune: our_step(is_finetune, auto(), "bf16"),
    "torch": torch_step,
    "torch, bf16": lambda is_finetune: torch_step(is_finetune, "bf16"),
}


def peak_mib(side: str, program: str) -> float:
    """Peak resident memory of a process that makes three steps."""
    command = [sys.executable, __file__, "--peak", side, program]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def own_peak_mib() -> float:
    """Of this process; getrusage would count the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    for program in ("finetune", "pretrain"):
        is_finetune = program == "finetune"
        sides = {name: make(is_finetune) for name, make in SIDES.items()}
        report(f"{program}, 1 thread", in_turn(sides, rounds))
        del sides
        peaks = {name: peak_mib(name, program) for name in SIDES}
        print("peak MiB: " + "  ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()))


if __name__ == "__main__":
    if "--peak" in sys.argv:
        step = SIDES[sys.argv[-2]](sys.argv[-1] == "finetune")
        for _ in range(3):
            step()
        print(own_peak_mib())
    else:
        main()
