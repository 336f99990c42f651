"""Settings of the sampling chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from yupana.graphlib.arguments import check_kinds
from yupana.graphlib.errors import SettingError

ORDER: Final = (  # llama.cpp's
    "penalties;dry;top_n_sigma;top_k;tfs_z;typ_p;top_p;min_p;xtc;temperature;adaptive_p"
)
# What llama.cpp understands as well.
_OTHER_NAMES: Final = {
    "top-n-sigma": "top_n_sigma", "top-k": "top_k", "tfs-z": "tfs_z", "tfs": "tfs_z",
    "typical-p": "typ_p", "typical": "typ_p", "typ-p": "typ_p", "typ": "typ_p",
    "top-p": "top_p", "nucleus": "top_p", "min-p": "min_p", "temp": "temperature",
    "adaptive-p": "adaptive_p",
}  # fmt: skip
BREAKERS: Final = ("\n", ":", '"', "*")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are drawn: the settings of llama.cpp under the names of its flags.

    The defaults are those of llama.cpp since 2024. Of the generation before, which had tail-free
    sampling and no DRY, XTC or top-n-sigma, only one differs: repeat_penalty was 1.10. Its order
    was penalties, top_k, tfs_z, typ_p, top_p, min_p, temperature, as `samplers` has it; with
    mirostat it applied the penalties, too. The very latest looks back 64 tokens for DRY. There
    adaptive-p acts only where `samplers` names it; here a target is enough.

    Raises:
        SettingError: a setting outside its range.

    >>> Sampling(temp=0.7, samplers="top_k;temperature").names
    ['top_k', 'temperature']
    """

    # Divides the scores: below 1 bolder, above 1 more varied; 0 takes the best token always.
    temp: float = 0.8
    # The temperature moves by up to this with the entropy of the scores, up and down.
    dynatemp_range: float = 0.0
    # Power of the entropy's share in that.
    dynatemp_exp: float = 1.0
    # Tokens kept, the best first; 0 or -1 keeps all.
    top_k: int = 40
    # The fewest tokens whose probabilities add up to this; 1 keeps all.
    top_p: float = 0.95
    # Tokens at least so many times as probable as the best one; 0 keeps all.
    min_p: float = 0.05
    # Tail-free sampling: where the curve of probabilities runs flat; 1 keeps all.
    tfs: float = 1.0
    # Locally typical sampling: the probability of the tokens kept; 1 keeps all.
    typical: float = 1.0
    # Scores at most so many standard deviations below the best one; 0 or less keeps all.
    top_nsigma: float = -1.0
    # Chance with which XTC leaves out all probable tokens but the least probable of them.
    xtc_probability: float = 0.0
    # Probability from which a token counts as probable; XTC does nothing above 0.5.
    xtc_threshold: float = 0.1
    # Fewest tokens that the samplers leave.
    min_keep: int = 0
    # Tokens looked back for penalties; 0: none, -1: all.
    repeat_last_n: int = 64
    # Divides the score of a token that occurred; 1: no penalty.
    repeat_penalty: float = 1.0
    # Taken off a token's score for each time that it occurred.
    frequency_penalty: float = 0.0
    # Taken off the score of a token that occurred.
    presence_penalty: float = 0.0
    # Penalise line ends, too.
    penalize_nl: bool = True
    # DRY: penalty of a token that prolongs a repeated sequence; 0: none.
    dry_multiplier: float = 0.0
    # DRY: factor for each further token of the sequence.
    dry_base: float = 1.75
    # DRY: longest sequence that may be repeated.
    dry_allowed_length: int = 2
    # DRY: tokens looked back; 0: none, -1: all.
    dry_penalty_last_n: int = -1
    # DRY: texts across which no sequence reaches; none given: line end, colon, quote, asterisk.
    dry_sequence_breaker: tuple[str, ...] = BREAKERS
    # Mirostat 1 or 2 in place of all samplers but the temperature; 0: none.
    mirostat: int = 0
    # Mirostat: speed of adaptation, eta.
    mirostat_lr: float = 0.1
    # Mirostat: surprise per token that is aimed at, tau, in bits.
    mirostat_ent: float = 5.0
    # Adaptive-p: probability of the tokens that are drawn, in the mean; -1: not aimed at.
    adaptive_target: float = -1.0
    # Adaptive-p: what is left of a token's weight in that mean after each further one.
    adaptive_decay: float = 0.9
    # Samplers in order, separated by semicolons; adaptive-p is the last always.
    samplers: str = ORDER

    def __post_init__(self) -> None:
        check_kinds("sampling", Sampling.__annotations__, vars(self))
        rules = (
            ("temp", abs(self.temp) < np.inf, "a finite number"),
            ("dynatemp_range", 0 <= self.dynatemp_range < np.inf, "0 or more"),
            ("dynatemp_exp", 0 <= self.dynatemp_exp < np.inf, "0 or more"),
            ("top_k", self.top_k >= -1, "0 or -1 (all) or more"),
            ("top_p", 0 <= self.top_p <= 1, "0 to 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("tfs", 0 < self.tfs <= 1, "0 < tfs <= 1"),
            ("typical", 0 < self.typical <= 1, "0 < typical <= 1"),
            ("top_nsigma", self.top_nsigma < np.inf, "a finite number"),
            ("xtc_probability", 0 <= self.xtc_probability <= 1, "0 to 1"),
            ("xtc_threshold", 0 <= self.xtc_threshold <= 1, "0 to 1"),
            ("min_keep", self.min_keep >= 0, "0 or more"),
            ("repeat_last_n", self.repeat_last_n >= -1, "-1 (all) or more"),
            ("repeat_penalty", 0 < self.repeat_penalty < np.inf, "above 0"),
            ("frequency_penalty", abs(self.frequency_penalty) < np.inf, "a finite number"),
            ("presence_penalty", abs(self.presence_penalty) < np.inf, "a finite number"),
            ("dry_multiplier", 0 <= self.dry_multiplier < np.inf, "0 (no penalty) or more"),
            ("dry_base", 1 <= self.dry_base < np.inf, "1 or more"),
            ("dry_allowed_length", self.dry_allowed_length >= 0, "0 or more"),
            ("dry_penalty_last_n", self.dry_penalty_last_n >= -1, "-1 (all) or more"),
            ("dry_sequence_breaker", all(self.dry_sequence_breaker), "texts that are not empty"),
            ("mirostat", self.mirostat in (0, 1, 2), "0, 1 or 2"),
            ("mirostat_lr", 0 <= self.mirostat_lr < np.inf, "0 or more"),
            ("mirostat_ent", 0 <= self.mirostat_ent < np.inf, "0 or more"),
            ("adaptive_target", self.adaptive_target <= 1, "0 to 1, or less than 0"),
            ("adaptive_decay", 0 <= self.adaptive_decay <= 0.99, "0 to 0.99"),
            ("samplers", set(self.names) <= set(ORDER.split(";")), f"some of {ORDER}"),
        )
        for name, is_right, rule in rules:
            if not is_right:
                value = getattr(self, name)
                raise SettingError(f"sampling: {name}: got {value!r}, want {rule}.")

    @property
    def names(self) -> list[str]:
        """The samplers in order."""
        return [_OTHER_NAMES.get(name, name) for name in self.samplers.split(";") if name]
