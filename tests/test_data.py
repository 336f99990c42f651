"""Rows of a corpus, packing, shuffling, batches, and what is kept for validation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from yupana.graphlib.errors import DataError, SettingError
from yupana.models.vocabulary import Vocabulary
from yupana.train.corpus import Codec, make_corpus
from yupana.train.data import Batches, even_batch, make_batch, prepare_data
from yupana.train.rows import PackedRows, SampleRows, WindowRows, pack
from yupana.train.samples import DataRules, text_corpus
from yupana.train.shuffle import Permutation, key_of, mixed

BOS = 999


def ids(n):
    return np.arange(n, dtype=np.int32)


def corpus_of(sizes, n_ctx=8, has_bos=False):
    """Samples whose ids tell which sample they are of: 100 · number + place."""
    parts = [(100 * k + np.arange(size), True) for k, size in enumerate(sizes)]
    return make_corpus(parts, n_ctx, has_bos)


def sample_rows(sizes, n_ctx=8, bos=None, key=None):
    return SampleRows(corpus_of(sizes, n_ctx), np.arange(len(sizes)), n_ctx, bos, key)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_a_permutation_has_every_number_once(n, key):
    permutation = Permutation(n, key)
    order = permutation(np.arange(n))
    assert sorted(order.tolist()) == list(range(n))
    assert int(permutation(n // 2)) == order[n // 2]


def test_orders_are_the_same_everywhere():
    """Integers alone go in, so these numbers must come out on any machine and for ever."""
    assert Permutation(10**12, key_of(7))(np.arange(3)).tolist() == [
        502562912500,
        607284747462,
        565234232196,
    ]
    assert [key_of(1), key_of(1, 2), key_of(-1), key_of(2**64)] == [
        10905525725756348110,
        2554043094958247610,
        16294208416658607535,
        9716232063330790915,
    ]


def test_orders_of_few_are_all_as_likely():
    counts = dict.fromkeys(itertools.permutations(range(3)), 0)
    for epoch in range(600):
        counts[tuple(Permutation(3, key_of(3, epoch))(np.arange(3)).tolist())] += 1
    # Chi-square with 5 degrees of freedom is above 20.5 once in a thousand.
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 20.5


def test_mixed_numbers_differ_in_half_their_bits():
    a, b = mixed(np.arange(1000)), mixed(np.arange(1000) ^ 1)
    bits = np.unpackbits((a ^ b).view(np.uint8)).reshape(1000, 64)
    assert abs(bits.mean() - 0.5) < 0.01


@given(st.lists(st.integers(0, 20), max_size=60))
def test_packing_loses_nothing_and_overfills_nothing(sizes):
    members, starts = pack(sizes, 20)
    assert sorted(members.tolist()) == list(range(len(sizes)))
    bins = [members[a:b] for a, b in itertools.pairwise(starts)]
    rooms = [sum(sizes[k] for k in members) for members in bins]
    assert all(room <= 20 for room in rooms)
    assert all(len(members) for members in bins)
    # Two of any bins would not fit into one, or packing would have done it.
    assert all(a + b > 20 for a, b in itertools.combinations(rooms, 2))


def test_packing_wastes_little():
    sizes = np.random.default_rng(1).integers(1, 128, 3000)
    _, starts = pack(sizes, 128)
    assert sizes.sum() > 0.99 * 128 * (len(starts) - 2)


@given(st.data())
def test_windows_are_all_parts_of_the_text(data):
    n_ctx = data.draw(st.integers(1, 20))
    bos = data.draw(st.sampled_from([None, BOS]))
    rows = WindowRows(ids(data.draw(st.integers(n_ctx + 1, 60))) + 5, n_ctx, bos)
    seen = np.concatenate([rows.segments(k)[0] for k in range(len(rows))])
    assert set(seen) - {BOS} == set(rows.ids)
    for k in range(len(rows)):
        (row,) = rows.segments(k)
        assert len(row) == n_ctx + 1
        row = row if bos is None else row[1:]
        np.testing.assert_array_equal(row, np.arange(len(row)) + k + 5)


def test_windows_longer_than_the_text_are_refused():
    with pytest.raises(DataError, match="got 8 tokens for a context of 8, want at least 9"):
        WindowRows(ids(8), 8)
    assert len(WindowRows(ids(8), 8, BOS)) == 1


def test_samples_are_cut_off_and_begin_with_bos_once():
    rows = sample_rows([3, 20], n_ctx=4)
    assert [r.tolist() for k in (0, 1) for r in rows.segments(k)] == [
        [0, 1, 2],
        [100, 101, 102, 103, 104],
    ]
    rows = sample_rows([3, 20], n_ctx=4, bos=BOS)
    assert rows.segments(1)[0].tolist() == [BOS, 100, 101, 102, 103]
    rows = sample_rows([3], n_ctx=4, bos=0)  # the sample has it already
    assert rows.segments(0)[0].tolist() == [0, 1, 2]


def test_random_offsets_differ_from_epoch_to_epoch_and_stay_inside():
    rows = sample_rows([30], n_ctx=4, bos=BOS, key=key_of(5))
    starts = [int(rows.segments(0, epoch)[0][1]) for epoch in range(600)]
    assert starts == [int(rows.segments(0, epoch)[0][1]) for epoch in range(600)]
    assert set(starts) == set(range(30))  # the last token too, alone
    assert rows.segments(0, starts.index(28))[0].tolist() == [BOS, 28, 29]


@pytest.mark.parametrize("between", [True, False])
def test_packed_rows_hold_whole_samples(between):
    rows = PackedRows(sample_rows([3, 5, 2, 12, 4], bos=BOS), between)
    found = [rows.segments(k) for k in range(len(rows))]
    every = [segment[segment != BOS].tolist() for row in found for segment in row]
    assert sorted(every) == sorted(
        (100 * k + np.arange(min(size, 8))).tolist() for k, size in enumerate([3, 5, 2, 12, 4])
    )
    assert all(sum(len(s) - 1 for s in row) <= 8 for row in found)
    assert len(found) == 3
    assert all(row[0][0] == BOS for row in found)
    assert all((segment[0] == BOS) == between for row in found for segment in row[1:])


def test_a_packed_batch_restarts_positions_and_numbers_segments():
    rows = [[np.array([5, 6, 7]), np.array([~8, ~9, 10, 11])], [np.array([1, 2])]]
    batch = make_batch(rows, 7, is_packed=True)
    assert batch.tokens.tolist() == [[5, 6, 8, 9, 10, 0, 0], [1, 0, 0, 0, 0, 0, 0]]
    assert batch.targets.tolist() == [[6, 7, -1, 10, 11, -1, -1], [2, -1, -1, -1, -1, -1, -1]]
    assert batch.positions.tolist() == [[0, 1, 0, 1, 2, 0, 0], [0] * 7]
    assert batch.segments.tolist() == [[1, 1, 2, 2, 2, 0, 0], [1, 0, 0, 0, 0, 0, 0]]
    alone = make_batch(rows[1:], 7, is_packed=False)
    assert alone.positions is None
    assert alone.segments is None


def test_every_row_comes_once_before_any_comes_again():
    rows = sample_rows([4] * 7, n_ctx=3)
    batches = Batches(rows, n_batch=3, seed=2)
    firsts = np.concatenate([batches.at(step).tokens[:, 0] for step in range(14)]) // 100
    rounds = firsts.reshape(6, 7)
    assert all(sorted(round_.tolist()) == list(range(7)) for round_ in rounds)
    assert len({tuple(round_) for round_ in rounds.tolist()}) > 3


def test_a_step_depends_on_seed_and_number_alone():
    rows = WindowRows(ids(1000), 8)
    in_order = [Batches(rows, 4, seed=3).at(step).tokens for step in range(5)]
    np.testing.assert_array_equal(Batches(rows, 4, seed=3).at(4).tokens, in_order[4])
    assert not np.array_equal(in_order[0], in_order[1])
    assert not np.array_equal(in_order[0], Batches(rows, 4, seed=4).at(0).tokens)


def test_epochs_and_steps_belong_together():
    text = Batches(WindowRows(ids(1000), 8), 5)
    assert text.steps(1) == 25  # every token once, not every window
    assert text.epochs(25) == 1
    samples = Batches(sample_rows([4] * 10), 4)
    assert (samples.steps(1), samples.steps(2), samples.epochs(5)) == (3, 5, 2.0)


def test_even_rows_cover_the_data_from_end_to_end():
    batch = even_batch(WindowRows(ids(101), 10), 10)
    assert batch.tokens.shape == batch.targets.shape == (10, 10)
    assert batch.tokens[0, 0] == 0
    assert batch.targets[-1, -1] == 100
    np.testing.assert_array_equal(batch.tokens[:, 0], np.arange(10) * 10)
    assert len(even_batch(WindowRows(ids(12), 10), 10).tokens) == 2


CODEC = Codec.of(Vocabulary.from_bytes())


def prepared(text, n_ctx, **rules):
    made = DataRules(**rules)
    return prepare_data(text_corpus([text], CODEC, made, n_ctx), CODEC, made, n_ctx, seed=1)


@given(n=st.integers(20, 500), n_ctx=st.integers(1, 9), share=st.sampled_from([0, 0.01, 0.1, 0.5]))
def test_a_text_is_split_at_one_place(n, n_ctx, share):
    text = "".join(map(chr, np.random.default_rng(n).integers(97, 123, n)))
    data = prepared(text, n_ctx, validation=share)
    parts = [data.training.ids]
    if share:
        assert len(data.validation.ids) > n_ctx
        parts.append(data.validation.ids)
    else:
        assert data.validation is None
    np.testing.assert_array_equal(np.concatenate(parts), [*text.encode()])


def test_a_text_too_short_for_both_parts_is_refused():
    with pytest.raises(DataError, match=r"validation data: .*got 8 tokens for a context of 8"):
        prepared("x" * 17, 8, validation=0.1)
    with pytest.raises(DataError, match=r"training data: .*want at least 9"):
        prepared("x" * 18, 8, validation=0.9)


@pytest.mark.parametrize("packed", [False, True])
def test_samples_are_split_evenly_over_the_data(packed):
    text = "".join(f"#sample{k:02}" for k in range(40))
    rules = {"sample_start": "#", "validation": 0.25, "fill_with_next_samples": packed}
    data = prepared(text, 16, **rules)
    rows = [r.samples if packed else r for r in (data.training, data.validation)]
    kept = rows[1].chosen.tolist()
    assert kept == list(range(3, 40, 4))
    assert sorted([*kept, *rows[0].chosen.tolist()]) == list(range(40))
    assert data.training.is_packed == packed
    assert len(prepared("#ab#cd", 4, **rules).training) == 1  # one of each at least
    assert prepared("#ab", 4, **rules).validation is None


def test_the_hash_of_data_covers_the_rules():
    text = "#one#two#three"
    hashes = [
        prepared(text, 8, sample_start="#").hash,
        prepared(text, 8, sample_start="#", validation=0.5).hash,
        prepared(text, 4, sample_start="#").hash,
        prepared(text, 8, sample_start="#", fill_with_next_samples=True).hash,
        prepared(text + "!", 8, sample_start="#").hash,
    ]
    assert len(set(hashes)) == 5
    assert prepared(text, 8, sample_start="#").hash == hashes[0]


def test_settings_are_checked():
    rows = WindowRows(ids(9), 2)
    for name, value in (("n_batch", 0), ("seed", -1)):
        with pytest.raises(SettingError, match=f"{name} is out of range: got {value}"):
            Batches(rows, **{"n_batch": 2, "seed": 0, name: value})
    with pytest.raises(SettingError, match="step is out of range: got -1"):
        Batches(rows, 2).at(-1)
    with pytest.raises(SettingError, match="rows"):
        even_batch(rows, 0)
