"""What the programs that train have in common to be told, with ggml's names.

The command line is made from these classes: a field is a flag, the comment above it its help.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from tyro.conf import arg

from yupana.graphlib.budget import Checkpoints, MemoryBudget
from yupana.graphlib.errors import SettingError, require
from yupana.train.given import Given, as_paths
from yupana.train.lbfgs import LbfgsSettings
from yupana.train.memory import parse_size
from yupana.train.model_settings import BatchSettings
from yupana.train.optimiser import AdamWSettings, OptimiserSettings, ParamGroup, SgdSettings
from yupana.train.samples import DataRules
from yupana.train.schedule import Schedule
from yupana.train.stop import StopRules
from yupana.train.writing import WritingSettings

# Share of a step's work that goes into needing less memory where nothing asks for it: a step hardly
# takes longer, and a process of small vocabulary a third less memory.
_SPARE = 0.05
_NO_LIMIT = 1 << 62  # bytes, where the system does not say what it has


def auto(available: int | None = None) -> MemoryBudget:
    """What checkpointing is by default, where so much memory is left."""
    return MemoryBudget(available or _NO_LIMIT, _SPARE)


@dataclass(frozen=True, kw_only=True)
class TrainSettings(BatchSettings, DataRules, WritingSettings, Given):
    """How to train, whatever the model and the text."""

    # Log to write, a JSON line for each step; by default beside what is learned.
    log_out: Path | None = None
    # Picture of the loss curve to write (SVG); by default beside what is learned.
    curve_out: Path | None = None
    # Folder to write the same curves to as events for TensorBoard; by default they are not.
    tensorboard: Path | None = None
    # Checkpoint to go on from; it brings its sizes, its vocabulary, and the settings that training
    # depends on: what is not given is as it was.
    checkpoint_in: Path | None = None
    # Checkpoint to write: the model with everything needed to go on exactly where it stopped.
    checkpoint_out: Path | None = None
    # In names of what is learned and of checkpoints: stands for the number of steps.
    pattern_fn_it: str = "ITERATION"
    # Instead of that number, in the name under which the newest is there too.
    fn_latest: str = "LATEST"
    # Numbered checkpoints that are kept, the newest ones; 0: all. So many of what is learned, too,
    # where its name is numbered.
    keep_checkpoints: int = 3
    # Steps between two saves; 0: at the end only.
    save_every: int = 100
    # Steps between two looks at the validation loss; 0: at the end only.
    eval_every: int = 50
    # Batches of the data kept for validation that each look takes, spread evenly over these; 0: as
    # many as there are.
    validation_batches: int = 8
    # What of the forward pass is computed again instead of kept, to need less memory: none; all
    # between two layers; all between a few (sqrt, least memory for deep models); or auto: as much
    # as a twentieth of the work pays for, and whatever more the memory at hand asks for.
    checkpointing: Literal["auto", "none", "sqrt", "all"] = "auto"
    # With auto: let the run fit so much, as 600M or 1.5G, at the least work. Python itself and a
    # mapped model come on top.
    memory_budget: str | None = None
    # Attention in one op, without the matrix of all scores; off: as separate nodes.
    use_flash: bool = True
    # What larger matrix products multiply: float32, or that rounded to bf16 (sums stay float32),
    # which processors with AVX-512 BF16 do twice as fast, and others slower.
    matmul: Literal["f32", "bf16"] = "f32"
    # Seed of the weights and of the order of the data; -1: another one each time.
    seed: Annotated[int, arg(aliases=["-s"])] = 1337
    # Take the data in a new order when going on from a checkpoint.
    force_reshuffle: bool = False

    # adamw; sgd, which the settings called adam serve too; or lbfgs, one search on each batch.
    optimizer: Annotated[Literal["adamw", "sgd", "lbfgs"], arg(aliases=["-opt"])] = "adamw"
    # Batches whose gradients are added up for one step: the same as one batch so much larger.
    grad_acc: int = 1
    # Steps in all, those before the checkpoint included; by default as many as epochs take, or 256
    # without these.
    adam_iter: int | None = None
    # Iterations of L-BFGS on each batch.
    lbfgs_iter: int = 16
    # End after so many times the length of the data, those before the checkpoint included; -1: no
    # limit.
    epochs: int = -1
    # Compare the loss with the one so many steps ago, and end if it hardly changed; 0: never.
    opt_past: int = 0
    # Share of the loss that is hardly a change over those steps.
    opt_delta: float = 1e-5
    # End after so many steps without a lower loss; 0: never.
    opt_max_no_improvement: int = 0
    # End if the loss changes by less than this share from one step to the next; 0: never.
    adam_epsf: float = 0.0
    # End after so many looks at the validation loss without a lower one; 0: never.
    patience: int = 0
    # End after so many seconds; 0: never.
    time_limit: float = 0.0
    # Parameters with their own factor of the learning rate, and weight decay if one is given:
    # NAMES=RATE or NAMES=RATE,DECAY, as in "blk.*.attn_q*=0.1"; the first that fits counts.
    param_group: tuple[str, ...] = ()
    # Learning rate.
    adam_alpha: float = 1e-3
    # The learning rate never falls below this.
    adam_min_alpha: float = 0.0
    # Weight decay, in units of the learning rate.
    adam_decay: float = 0.1
    # Only tensors with at least so many axes decay.
    adam_decay_min_ndim: int = 2
    # Share of the mean gradient kept from step to step.
    adam_beta1: float = 0.9
    # Share of the mean squared gradient kept from step to step.
    adam_beta2: float = 0.999
    # Scale gradients down where their norm exceeds this; 0: never.
    adam_gclip: float = 1.0
    # Steps over which the learning rate rises to its full value.
    warmup: int = 100
    # How it falls then; constant: not at all.
    rate_decay: Literal["cosine", "linear", "constant"] = "cosine"
    # Steps over which it falls.
    cos_decay_steps: int = 1000
    # Share of the learning rate at the end of the fall.
    cos_decay_min: float = 0.1
    # Begin a new fall along a cosine when one has ended.
    enable_restart: bool = False
    # With restarts: each fall takes this many times as long as the one before.
    cos_decay_restart: float = 1.1

    def __post_init__(self) -> None:
        as_paths(self)

    @property
    def source(self) -> Path:
        """The file of training data.

        Raises:
            SettingError: none was given.
        """
        found: Path | None = getattr(self, "train_data", None)
        if found is None:
            raise SettingError("train: train_data: got none, want a file. Pass --train-data FILE.")
        if found.is_dir():
            raise SettingError(
                f"train: train_data: got {found}, which is a folder; want a file in it."
            )
        return found

    def check(self) -> None:
        """Check all that is known without data and model.

        Raises:
            SettingError: a setting out of range.
        """
        least = dict.fromkeys(("ctx", "batch", "grad_acc"), 1)
        least |= dict.fromkeys(("keep_checkpoints", "validation_batches"), 0)
        for name, bound in least.items():
            value = getattr(self, name)
            require("train", name, value, value >= bound, f"at least {bound}")
        if self.patience and not self.validation:
            raise SettingError(
                f"train: patience: got {self.patience} looks at the validation loss with "
                "validation 0, want a share of the data kept for it."
            )
        self.checkpoints(None)
        self.check_data()
        self.check_writing()
        require("train", "seed", self.seed, self.seed >= -1, "at least 0, or -1 for any")
        self.optimiser()
        self.schedule()
        self.stop_rules()

    def seeded(self) -> Self:
        """The settings, with a seed of their own if any will do."""
        return self if self.seed >= 0 else self.changed(seed=secrets.randbits(31))

    def optimiser(self) -> OptimiserSettings | LbfgsSettings:
        """The optimiser's settings.

        Raises:
            SettingError: a setting out of range.
        """
        if self.optimizer == "lbfgs" and self.param_group:
            raise SettingError(
                "train: param_group: got it with optimizer lbfgs, want adamw or sgd: its line "
                "search finds one length of step for all parameters."
            )
        if self.optimizer == "lbfgs":
            return LbfgsSettings(n_iter=self.lbfgs_iter)
        shared: dict[str, Any] = {
            "alpha": self.adam_alpha,
            "decay": self.adam_decay,
            "decay_min_axes": self.adam_decay_min_ndim,
            "clip": self.adam_gclip,
            "groups": tuple(map(ParamGroup.parse, self.param_group)),
        }
        if self.optimizer == "sgd":
            return SgdSettings(**shared)
        return AdamWSettings(beta1=self.adam_beta1, beta2=self.adam_beta2, **shared)

    def checkpoints(self, available: int | None) -> Checkpoints:
        """What `record_step` is told of checkpoints, where so much memory is left.

        Raises:
            SettingError: a budget that is no size, or that nothing can be chosen for.
        """
        if self.memory_budget is not None:
            if self.checkpointing != "auto":
                raise SettingError(
                    f"train: memory_budget: got it with checkpointing {self.checkpointing}, want "
                    "auto, which chooses."
                )
            return MemoryBudget(parse_size(self.memory_budget))
        if self.checkpointing == "auto":
            return auto(available)
        return None if self.checkpointing == "none" else self.checkpointing

    def stop_rules(self) -> StopRules:
        """What may end the run before its last step.

        Raises:
            SettingError: as `StopRules`.
        """
        return StopRules(
            past=self.opt_past,
            delta=self.opt_delta,
            max_no_improvement=self.opt_max_no_improvement,
            epsf=self.adam_epsf,
            patience=self.patience,
            seconds=self.time_limit,
        )

    def schedule(self) -> Schedule:
        """The schedule of the learning rate.

        Raises:
            SettingError: as `Schedule`, a least rate above the rate itself, or restarts of
                what is no cosine.
        """
        if self.enable_restart and self.rate_decay != "cosine":
            raise SettingError(
                f"train: enable_restart: got it with rate_decay {self.rate_decay}, want cosine."
            )
        is_right = 0 <= self.adam_min_alpha <= self.adam_alpha
        rule = f"0 to adam_alpha, {self.adam_alpha}"
        require("train", "adam_min_alpha", self.adam_min_alpha, is_right, rule)
        return Schedule(
            kind="cosine_restart" if self.enable_restart else self.rate_decay,
            warmup=self.warmup,
            steps=self.cos_decay_steps,
            minimum=self.cos_decay_min,
            restart=self.cos_decay_restart,
            floor=self.adam_min_alpha / self.adam_alpha if self.adam_alpha else 0.0,
        )
