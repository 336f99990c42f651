"""Sessions: a model, a cache of what it has read, and the compiled programs that go on from there.

A program is compiled once for each number of tokens it reads. Which tokens, at which positions
of which sequence, is data, so that nothing is recorded or compiled for a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from yupana.graphlib.arguments import check_kinds
from yupana.graphlib.errors import SettingError
from yupana.models.decoder import Decoder
from yupana.models.formats.gguf_cursor import shown
from yupana.models.kv_cache import KvCache
from yupana.models.passes import Floats, Ints, Mover, Pass, pass_size


class Session:
    """Reads tokens and scores what follows, keeping what it has read.

    Args:
        model: its weights are read at each run, and adapters attached or detached meanwhile are
            noticed; what was read before keeps its place in the cache as it was.
        n_ctx: positions of each sequence; None: as many as the model was trained on.
        n_batch: tokens of a prompt that are read at once, at most.
        n_seq: sequences that are kept apart.
        cache: type of keys and values, f16, f32, bf16, q8_0, q5_1, q5_0, q4_1 or q4_0.
        threads: as for `Graph.compile`.
    Raises:
        SettingError: a setting out of range.

    `SessionSettings` has the names and types of all but the model.

    >>> from yupana.models.llama import Llama, LlamaConfig
    >>> model = Llama(LlamaConfig(n_vocab=9, n_ctx=8, n_embd=8, n_layer=1, n_head=2)).init(seed=1)
    >>> session = Session(model)
    >>> session.eval([1, 2, 3]).shape, session.length()
    ((9,), 3)
    """

    def __init__(
        self,
        model: Decoder,
        n_ctx: int | None = None,
        n_batch: int = 512,
        n_seq: int = 1,
        cache: str = "f16",
        threads: int | None = None,
    ) -> None:
        given = {"n_ctx": n_ctx, "n_batch": n_batch, "n_seq": n_seq, "cache": cache}
        check_kinds("session", Session.__init__.__annotations__, given | {"threads": threads})
        if n_batch < 1:
            raise SettingError(f"session: n_batch: got {n_batch}, want at least 1.")
        self.model = model
        self.n_ctx = model.sizes.n_ctx if n_ctx is None else n_ctx
        if model.reach is not None and self.n_ctx > model.reach:
            raise SettingError(
                f"session: n_ctx: got {self.n_ctx}, want at most {model.reach}: the model has "
                "learned no position beyond."
            )
        self.n_batch = min(n_batch, self.n_ctx)
        self.n_seq = n_seq
        self.threads = threads
        self.cache = KvCache(model.sizes, self.n_ctx, n_seq, cache, model.rounds)
        self._lengths = [0] * n_seq
        self._passes: dict[tuple[int, bool], Pass] = {}
        self._revision = model.revision

    def length(self, seq: int = 0) -> int:
        """Tokens of a sequence in the cache."""
        return self._lengths[self._checked(seq)]

    def prepare(self, n: int) -> None:
        """Compile what `eval` of `n` tokens takes, and of one, so that it does not wait later."""
        for size in {1, min(n, self.n_batch), n % self.n_batch} - {0}:
            self._pass(size, only_last=True)

    def eval(self, ids: Sequence[int], seq: int = 0) -> Floats:
        """Read tokens at the end of a sequence; the scores of what follows the last, (V,).

        Raises:
            SettingError: no ids, one outside the vocabulary, or more than there is room for.
        """
        scores: Floats = self._read(ids, seq, only_last=True)[-1][-1]
        return scores

    def eval_all(self, ids: Sequence[int], seq: int = 0) -> Floats:
        """Read tokens at the end of a sequence; the scores of what follows each, (n, V).

        Raises:
            SettingError: as `eval`.
        """
        return np.concatenate(self._read(ids, seq, only_last=False))

    def eval_batch(self, tokens: Sequence[tuple[int, int]]) -> Floats:
        """Read one token at the end of each of several sequences in one run.

        Args:
            tokens: (sequence, id), no sequence twice.
        Returns:
            (n, V), the scores of what follows each.
        Raises:
            SettingError: as `eval`, or a sequence twice.
        """
        seqs = [self._checked(seq) for seq, _ in tokens]
        if len(set(seqs)) != len(seqs):
            raise SettingError(f"session: got sequences {seqs}, want each once.")
        ids = self._ids([token for _, token in tokens])
        for seq in seqs:
            self._check_room(seq, 1)
        found = []
        for start in range(0, len(seqs), self.n_batch):
            some = slice(start, start + self.n_batch)
            positions = np.array([self._lengths[seq] for seq in seqs[some]], np.int32)
            firsts = np.array(seqs[some], np.int32) * self.n_ctx
            found.append(
                self._pass(len(ids[some]), False).run(ids[some], positions, firsts + positions)
            )
        for seq in seqs:
            self._lengths[seq] += 1
        return np.concatenate(found)

    def truncate(self, n: int, seq: int = 0) -> None:
        """Forget all but the first `n` tokens of a sequence.

        Raises:
            SettingError: there are fewer.
        """
        length = self.length(seq)
        if not 0 <= n <= length:
            raise SettingError(f"session: truncate: got {n}, want 0 to the length {length}.")
        self._lengths[seq] = n

    def copy(self, src: int, dst: int) -> None:
        """Let sequence `dst` hold what `src` holds."""
        n = self.length(src)
        self._checked(dst)
        arrays = zip(self.cache.arrays(src, 0, n), self.cache.arrays(dst, 0, n), strict=True)
        for old, new in arrays:
            new[...] = old
        self._lengths[dst] = n

    def shift(self, keep: int, discard: int, seq: int = 0) -> None:
        """Drop positions [keep, keep + discard); later ones move down, their keys turned back.

        Raises:
            SettingError: there are no such positions, or the model learned its positions.
        """
        length = self.length(seq)
        if keep < 0 or discard < 0 or keep + discard > length:
            raise SettingError(
                f"session: shift: got keep {keep} and discard {discard}, want at most the length "
                f"{length} together."
            )
        if discard == 0:
            return
        mover = Mover(self.model, self.cache, self.n_batch)
        for start in range(keep + discard, length, self.n_batch):  # in order: none is overwritten
            cells = np.arange(start, min(start + self.n_batch, length), dtype=np.int32)
            mover.run(seq * self.n_ctx + cells, -discard)
        for values in self.cache.values:
            data = values.data[seq]
            data[keep : length - discard] = data[keep + discard : length].copy()
        self._lengths[seq] = length - discard

    def state(self, seq: int = 0) -> dict[str, NDArray[Any]]:
        """What a sequence holds, to be saved: stored keys and values (layers, n, …)."""
        arrays = self.cache.arrays(seq, 0, self.length(seq))
        half = len(arrays) // 2
        return {"keys": np.stack(arrays[:half]), "values": np.stack(arrays[half:])}

    def restore(self, state: Mapping[str, NDArray[Any]], seq: int = 0) -> None:
        """Let a sequence hold what `state` gave, of a session with this model and cache type.

        Raises:
            SettingError: the arrays are of another model or cache type, or there is no room.
        """
        n = state["keys"].shape[1] if state["keys"].ndim > 1 else 0
        self._checked(seq)
        if n > self.n_ctx:
            raise SettingError(f"session: restore: got {n} tokens, want at most {self.n_ctx}.")
        places = self.cache.arrays(seq, 0, n)
        half = len(places) // 2
        for name, parts in (("keys", places[:half]), ("values", places[half:])):
            shape, kind = (half, *parts[0].shape), parts[0].dtype
            if state[name].shape != shape or state[name].dtype != kind:
                raise SettingError(
                    f"session: restore: {name}: got {state[name].dtype} {state[name].shape}, want "
                    f"{kind} {shape}. The state belongs to another model or cache type."
                )
        for parts, name in ((places[:half], "keys"), (places[half:], "values")):
            for place, part in zip(parts, state[name], strict=True):
                place[...] = part
        self._lengths[seq] = n

    def _read(self, ids: Sequence[int], seq: int, only_last: bool) -> list[Floats]:
        """Scores of each run that reading `ids` takes."""
        tokens = self._ids(ids)
        length = self.length(seq)
        self._check_room(seq, len(tokens))
        found = []
        for start in range(0, len(tokens), self.n_batch):
            some = tokens[start : start + self.n_batch]
            first = length + start
            positions = np.arange(first, first + len(some), dtype=np.int32)
            which = self._pass(len(some), only_last)
            found.append(which.run(some, positions, seq * self.n_ctx + positions))
        self._lengths[seq] = length + len(tokens)
        return found

    def _pass(self, n: int, only_last: bool) -> Pass:
        if self._revision != self.model.revision:
            self._passes.clear()
            self._revision = self.model.revision
        key = pass_size(n, self.n_batch), only_last and n > 1
        if key not in self._passes:
            self._passes[key] = Pass(self.model, self.cache, *key, self.threads)
        return self._passes[key]

    def _checked(self, seq: int) -> int:
        if not 0 <= seq < self.n_seq:
            raise SettingError(
                f"session: no such sequence: got {seq}, want 0 to {self.n_seq - 1}. Pass a larger "
                "n_seq when the session is made."
            )
        return seq

    def _check_room(self, seq: int, n: int) -> None:
        length = self._lengths[seq]
        if length + n > self.n_ctx:
            raise SettingError(
                f"session: no room: got {n} tokens behind {length}, want at most {self.n_ctx} "
                "together. Call `shift` or `truncate`, or pass a larger n_ctx."
            )

    def _ids(self, ids: Sequence[int]) -> Ints:
        try:
            tokens = np.asarray(ids)
        except ValueError:  # rows of several lengths
            tokens = np.zeros(0)
        n_vocab = self.model.sizes.n_vocab
        is_right = tokens.ndim == 1 and tokens.size > 0 and tokens.dtype.kind in "iu"
        # NumPy would take longer for the one of most calls.
        some = tokens.tolist() if tokens.size < 8 else [tokens.min(), tokens.max()]
        if not is_right or not all(0 <= token < n_vocab for token in some):
            got = tokens.tolist()[:8] if tokens.ndim and tokens.size else shown(ids)
            raise SettingError(
                f"session: got ids {got}, want at least one, each from 0 to {n_vocab - 1}."
            )
        return tokens.astype(np.int32)
