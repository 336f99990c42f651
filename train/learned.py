"""What fine-tuning learns, as files hold it: an adapter, a model with all of it in, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from yupana.graphlib.tensor import Tensor
from yupana.models.adapter_save import save_as_named
from yupana.models.formats import GgufFile
from yupana.models.llama import Llama
from yupana.models.llama_gguf import llama_metadata, read_config
from yupana.models.lora import Adapter
from yupana.models.merge import merge_adapters
from yupana.train.adapted import OF_MODEL
from yupana.train.conversation import template_entries
from yupana.train.lora import TrainedAdapter
from yupana.train.settings import FinetuneSettings

# Entries of a model file behind its architecture, by the setting they follow; the last one is an
# older name.
_KEYS = {
    "norm_rms_eps": ("attention.layer_norm_rms_epsilon",),
    "rope_freq_base": ("rope.freq_base",),
    "rope_freq_scale": ("rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"),
}


@dataclass(frozen=True)
class Learned:
    """What a run trains, and what it takes to write that.

    Attributes:
        model: with the adapter attached.
        adapter: the pairs; it may have none.
        whole: weights that are trained as a whole, by name.
    """

    settings: FinetuneSettings
    model: Llama
    adapter: TrainedAdapter
    whole: dict[str, Tensor]

    @property
    def what(self) -> str:
        """What it is: "adapter", or, where nothing but whole weights are trained, "model"."""
        return "adapter" if self.adapter.pairs else "model"

    @property
    def out(self) -> Path:
        """Where it goes."""
        settings = self.settings
        if self.adapter.pairs:
            return settings.lora_out
        assert settings.model_out is not None  # see `check_outputs`
        return settings.model_out

    def save(self, path: Path) -> None:
        """Write the adapter, in the format of the name; without one, the model."""
        if self.adapter.pairs:
            learned, base = self._adapter(path.stem), str(self.settings.model_base)
            save_as_named(path, learned, self.model.config, base)
        else:
            self.merge(path)

    def merge(self, path: Path) -> None:
        """Write the model with what was learned in it."""
        learned = [(self._adapter("trained"), 1.0)] if self.adapter.pairs else []
        merge_adapters(
            self.settings.model_base,
            learned,
            path,
            self.settings.model_out_type,
            whole={n: w.numpy().astype(np.float32, copy=False) for n, w in self.whole.items()},
            entries=self._changed_entries(),
        )

    def _adapter(self, name: str) -> Adapter:
        return replace(self.adapter.adapter(name), architecture=self.model.architecture)

    @property
    def overridden(self) -> dict[str, float]:
        """Settings that changed what the base says of itself, and their values."""
        with GgufFile(self.settings.model_base) as file:
            own, now = read_config(file), self.model.config
        pairs = {name: (getattr(own, f), getattr(now, f)) for name, f in OF_MODEL.items()}
        return {name: value for name, (before, value) in pairs.items() if value != before}

    def _changed_entries(self) -> dict[str, Any]:
        """What the model's file says in place of the base's words."""
        said, kind = llama_metadata(self.model.config), self.model.architecture
        keys = [f"{kind}.{key}" for name in self.overridden for key in _KEYS[name]]
        changed = {key: said.get(key) for key in keys}
        return changed | template_entries(self.settings.chat_template)
