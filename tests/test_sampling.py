"""Drawing tokens: the chain in its order, what it remembers, and the same draws for a seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import yupana as yp
from yupana.graphlib.errors import NonFiniteError, SettingError
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.sampling import RandomStream, Sampler, Sampling
from yupana.models.sampling_adaptive import AdaptiveP
from yupana.models.sampling_penalties import find_breakers
from yupana.models.tokenizer import read_tokenizer
from yupana.models.vocabulary import Vocabulary

PROBABILITIES = np.array([0.05, 0.5, 0.15, 0.3])
LOGITS = np.log(PROBABILITIES) + 3.0  # soft_max takes the shift away
PLAIN = {"temp": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def probabilities(logits=LOGITS, **settings) -> dict[int, float]:
    sampler = Sampler(Sampling(**(PLAIN | settings)))
    ids, chances = sampler.probabilities(logits, RandomStream(0))
    return dict(zip(ids.tolist(), chances.tolist(), strict=True))


def draws(sampler: Sampler, n: int, logits=LOGITS, seed: int = 0) -> list[int]:
    stream = RandomStream(seed)
    tokens = []
    for _ in range(n):
        tokens.append(sampler.pick(logits, stream))
        sampler.accept(tokens[-1])
    return tokens


def toy_tokenizer():
    tokens = [*"abcdĠĊ", "ab", "bĊ", "Ċa"]
    entries = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["a b", "b Ċ", "Ċ a"]}
    return read_tokenizer({f"tokenizer.ggml.{k}": v for k, v in entries.items()})


def test_everything_kept_gives_the_models_probabilities():
    got = probabilities()
    np.testing.assert_allclose([got[k] for k in range(4)], PROBABILITIES)


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"top_k": 2, "top_p": 0.7}, {1, 3}),  # of the two kept, the first alone has 0.625
        ({"top_k": 2, "top_p": 0.6}, {1}),
        ({"top_k": 2, "top_p": 0.6, "samplers": "top_p;top_k"}, {1, 3}),
        ({"top_p": 1e-9}, {1}),
        ({"top_p": 1e-9, "min_keep": 3}, {1, 2, 3}),
        ({"min_p": 0.5}, {1, 3}),
        ({"tfs": 0.2}, {1}),
        ({"typical": 0.2}, {3}),  # entropy 1.14, surprise of 0.3: 1.20
        ({"top_nsigma": 1.0}, {1, 3}),
        ({"xtc_probability": 1.0}, {0, 2}),  # 0.15 is above the threshold of 0.1
        ({"xtc_probability": 1.0, "top_k": 2}, {3}),
        ({"xtc_probability": 1.0, "samplers": "top_k"}, {0, 1, 2, 3}),
        ({"top_k": 1, "samplers": ""}, {0, 1, 2, 3}),
    ],
)
def test_samplers_choose_in_their_order(settings, kept):
    got = probabilities(**settings)
    assert set(got) == kept
    total = sum(PROBABILITIES[k] for k in got)
    for token, chance in got.items():
        assert chance == pytest.approx(PROBABILITIES[token] / total)


def test_the_temperature_comes_after_the_choice_unless_told():
    squares = {1: 25 / 34, 3: 9 / 34}
    assert probabilities(temp=0.5, top_p=0.8) == pytest.approx(squares)
    first = probabilities(temp=0.5, top_p=0.8, samplers="temperature;top_p")
    assert set(first) == {1, 3}
    assert set(probabilities(temp=0.5, top_p=0.6, samplers="temperature;top_p")) == {1}
    assert probabilities(temp=0.5, samplers="top_k") == pytest.approx(probabilities())


def test_temperature_zero_takes_the_first_of_the_best():
    assert probabilities(temp=0) == {1: 1.0}
    assert Sampler(Sampling(temp=0)).pick(np.zeros(5), RandomStream(0)) == 0
    assert probabilities(temp=0, mirostat=2) == {1: 1.0}
    assert probabilities(temp=0, typical=0.2) == {3: 1.0}
    assert probabilities(temp=0, xtc_probability=1) == {2: 1.0}
    assert len(probabilities(temp=0, samplers="top_k")) == 4


def test_draws_have_the_probabilities():
    counts = np.bincount(draws(Sampler(Sampling(**PLAIN)), 4000, seed=5), minlength=4)
    expected = 4000 * PROBABILITIES
    assert ((counts - expected) ** 2 / expected).sum() < 16.3  # once in a thousand


def test_xtc_acts_with_its_probability():
    sampler = Sampler(Sampling(**PLAIN, xtc_probability=0.25))
    counts = np.bincount(draws(sampler, 4000, seed=2), minlength=4)
    expected = 4000 * (0.75 * PROBABILITIES + 0.25 * np.array([0.25, 0, 0.75, 0]))
    assert ((counts - expected) ** 2 / expected).sum() < 16.3


def test_a_seed_gives_the_same_draws_everywhere():
    # Philox-4x64-10 with key 7 and counter 1, shifted to 53 bits.
    first = np.random.Philox(key=7).random_raw()
    assert RandomStream(7).uniform() == (int(first) >> 11) / 2**53
    a, b = RandomStream(1), RandomStream(1)
    assert [a.uniform() for _ in range(5)] == [b.uniform() for _ in range(5)]
    assert RandomStream(1).uniform() != RandomStream(2).uniform()
    logits = np.arange(300) ** 2 * 37 % 101 / 10
    sampler = Sampler(Sampling(repeat_penalty=1.1, dry_multiplier=0.8, xtc_probability=0.5))
    assert draws(sampler, 12, logits, seed=9) == GOLDEN


def test_a_bias_is_added_to_the_score():
    sampler = Sampler(Sampling(**PLAIN), logit_bias={1: -np.inf, 0: np.log(6)})
    ids, chances = sampler.probabilities(LOGITS, RandomStream(0))
    got = dict(zip(ids.tolist(), chances.tolist(), strict=True))
    assert got == pytest.approx({0: 0.4, 1: 0.0, 2: 0.2, 3: 0.4})
    assert 1 not in draws(sampler, 200)
    with pytest.raises(SettingError, match="got token 4, want at most 3"):
        Sampler(logit_bias={4: 1.0}).pick(LOGITS, RandomStream(0))
    with pytest.raises(SettingError, match="logit_bias: got"):
        Sampler(logit_bias={4: np.inf})
    with pytest.raises(SettingError, match="logit_bias: got"):
        Sampler(logit_bias={-1: 1.0})


def test_a_bias_for_no_token_is_refused_before_the_text_begins(tmp_path):
    model = tiny_model(tmp_path)
    with pytest.raises(SettingError, match="logit_bias: got token 257, want at most 256, the last"):
        model.generate("abc", logit_bias={257: 1.0})
    for token in (65, 66):
        bias = dict.fromkeys(range(257), -np.inf) | {token: 0.0}
        assert "".join(model.generate("abc", 3, logit_bias=bias)) == chr(token) * 3


def tiny_model(folder):
    vocabulary = Vocabulary.from_bytes()
    sizes = LlamaConfig(len(vocabulary), n_ctx=16, n_embd=8, n_layer=1, n_head=2)
    save_llama(folder / "m.gguf", Llama(sizes).init(seed=1), vocabulary)
    model = yp.load(folder / "m.gguf")
    assert model.tokenizer.tokens[65] == "A"
    return model


def test_names_that_llama_cpp_understands_as_well():
    names = Sampling(samplers="top-k;nucleus;typical;min-p;temp").names
    assert names == ["top_k", "top_p", "typ_p", "min_p", "temperature"]
    assert draws(Sampler(Sampling(samplers="temp", temp=0)), 3) == [1, 1, 1]


@pytest.mark.parametrize("off", [{"top_k": 0}, {"top_k": -1}])
def test_no_limit_keeps_all(off):
    ids, _ = Sampler(Sampling(**PLAIN | off)).probabilities(LOGITS, RandomStream(0))
    assert len(ids) == len(LOGITS)


def test_a_share_of_nothing_leaves_the_best():
    ids, _ = Sampler(Sampling(**PLAIN | {"top_p": 0})).probabilities(LOGITS, RandomStream(0))
    assert ids.tolist() == [1]


def test_adaptive_p_draws_tokens_of_the_wanted_probability():
    logits = np.log([0.4, 0.25, 0.15, 0.1, 0.06, 0.04])
    chances = np.exp(logits)
    for target in (0.1, 0.3):
        sampler = Sampler(Sampling(**PLAIN, adaptive_target=target, adaptive_decay=0.9))
        mean = chances[draws(sampler, 3000, logits)].mean()
        assert mean == pytest.approx(target, abs=0.02)
    # The first draw, written out: the target has not moved.
    distance = abs(chances - 0.3) / 0.3
    weights = np.exp(5 - 10 * distance**2 / (1 + distance))
    sampler.reset()
    ids, got = sampler.probabilities(logits, RandomStream(0))
    np.testing.assert_allclose(got[np.argsort(ids)], weights / weights.sum(), rtol=1e-12)
    off = Sampler(Sampling(**PLAIN, adaptive_target=0.3, samplers="temperature"))
    assert draws(off, 50, logits, seed=4) == draws(Sampler(Sampling(**PLAIN)), 50, logits, seed=4)


def test_adaptive_p_counts_no_draw_that_the_grammar_refuses(monkeypatch):
    class Only3:
        """A grammar that allows token 3 alone."""

        def allows(self, token):
            return token == 3

        def allowed(self):
            return np.arange(4) == 3

        def accept(self, token):
            pass

    counted = []
    monkeypatch.setattr(AdaptiveP, "drawn", lambda self, place: counted.append(place))
    sampler = Sampler(Sampling(**PLAIN, adaptive_target=0.3))
    sampler._filter = Only3()
    assert [sampler.pick(LOGITS, RandomStream(seed)) for seed in range(8)] == [3] * 8
    assert len(counted) == 8


def test_penalties_look_back_as_far_as_told():
    sampler = Sampler(Sampling(temp=0, presence_penalty=100, repeat_last_n=2))
    assert draws(sampler, 7) == [1, 3, 2, 1, 3, 2, 1]
    assert draws(Sampler(Sampling(temp=0, presence_penalty=100, repeat_last_n=-1)), 4) == [
        1,
        3,
        2,
        0,
    ]
    assert draws(Sampler(Sampling(temp=0, presence_penalty=100, repeat_last_n=0)), 3) == [1, 1, 1]
    sampler.reset()
    assert draws(sampler, 2) == [1, 3]


def test_line_ends_may_be_spared():
    tokenizer = toy_tokenizer()
    newline = tokenizer.encode("\n")[0]
    logits = np.zeros(len(tokenizer))
    logits[newline] = 1.0
    logits[0] = 0.5
    for penalize, expected in ((True, 0), (False, newline)):
        sampler = Sampler(Sampling(temp=0, repeat_penalty=9, penalize_nl=penalize), tokenizer)
        sampler.accept(newline)
        assert sampler.pick(logits, RandomStream(0)) == expected


def test_dry_stops_a_loop_but_not_across_a_line_end():
    tokenizer = toy_tokenizer()
    a, b, nl = (tokenizer.encode(x)[0] for x in ("a", "b", "\n"))
    logits = np.zeros(len(tokenizer))
    logits[b] = 1.0
    sampler = Sampler(Sampling(temp=0, dry_multiplier=5.0, dry_allowed_length=1), tokenizer)
    for token in (a, b, a):
        sampler.accept(token)
    assert sampler.pick(logits, RandomStream(0)) != b
    sampler.reset()
    for token in (a, b, a, nl):
        sampler.accept(token)
    assert sampler.pick(logits, RandomStream(0)) == b


def test_breakers_are_the_tokens_that_hold_or_begin_them():
    tokenizer = toy_tokenizer()
    ids = {token: k for k, token in enumerate(tokenizer.tokens)}
    newline = {ids["Ċ"]: [()], ids["bĊ"]: [()], ids["Ċa"]: [()]}
    assert find_breakers(["\n"], tokenizer) == newline
    pair = {ids["b"]: [(ids["c"],)], ids["ab"]: [(ids["c"],)]}
    assert find_breakers(["bc"], tokenizer) == pair


@pytest.mark.parametrize("version", [1, 2])
def test_mirostat_reaches_its_surprise(version):
    logits = -1.2 * np.log(np.arange(1, 2001))
    sampler = Sampler(Sampling(temp=1.0, mirostat=version, mirostat_ent=3.0))
    chances = np.exp(logits) / np.exp(logits).sum()
    tokens = draws(sampler, 600, logits, seed=4)
    # Mirostat controls the surprise after the cut, which is below that of the whole.
    assert max(tokens[50:]) < 400
    surprise = -np.log2(chances[tokens[100:]] / chances[: max(tokens[100:])].sum())
    assert surprise.mean() == pytest.approx(3.0, abs=0.5)
    sampler.reset()
    assert draws(sampler, 5, logits, seed=4) == tokens[:5]


@given(
    logits=st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=9),
    temp=st.sampled_from([-1.0, 0.0, 0.01, 1.0, 50.0]),
    top_k=st.integers(0, 10),
    top_p=st.floats(0.001, 1.0),
    more=st.sampled_from(
        [
            {},
            {"mirostat": 1},
            {"mirostat": 2, "mirostat_ent": 0.0},
            {"tfs": 0.5, "typical": 0.5, "min_p": 0.2, "top_nsigma": 1.0},
            {"dynatemp_range": 1.0, "dynatemp_exp": 0.5},
            {"repeat_penalty": 1.3, "frequency_penalty": 0.5, "dry_multiplier": 1.0},
        ]
    ),
    seed=st.integers(0, 99),
)
def test_any_scores_give_a_token_that_was_kept(logits, temp, top_k, top_p, more, seed):
    sampler = Sampler(Sampling(temp=temp, top_k=top_k, top_p=top_p, **more))
    for token in range(len(logits)):
        sampler.accept(token)
    ids, chances = sampler.probabilities(logits, RandomStream(seed))
    assert 1 <= len(ids) <= len(logits)
    assert len(ids) <= top_k or top_k == 0 or "mirostat" in more
    np.testing.assert_allclose(chances.sum(), 1.0)
    assert sampler.pick(logits, RandomStream(seed)) in ids


def test_scores_that_are_no_numbers_are_refused():
    for wrong in ([1.0, np.nan], [np.inf, 0.0], [-np.inf, -np.inf]):
        with pytest.raises(NonFiniteError, match="scores are not finite"):
            Sampler().pick(wrong, RandomStream(0))
    assert Sampler().pick([-np.inf, 0.0], RandomStream(0)) == 1


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"temp": float("nan")}, "temp: got nan"),
        ({"top_k": -2}, "top_k: got -2"),
        ({"top_p": -0.5}, "top_p: got -0.5"),
        ({"top_p": 1.5}, "top_p: got 1.5, want 0 to 1"),
        ({"adaptive_target": 1.5}, "adaptive_target: got 1.5"),
        ({"adaptive_decay": 1.0}, "adaptive_decay: got 1.0, want 0 to 0.99"),
        ({"min_p": -0.1}, "min_p: got -0.1"),
        ({"mirostat": 3}, "mirostat: got 3, want 0, 1 or 2"),
        ({"repeat_penalty": 0}, "repeat_penalty: got 0"),
        ({"dry_base": 0.5}, "dry_base: got 0.5"),
        ({"dry_sequence_breaker": ("",)}, "texts that are not empty"),
        ({"samplers": "top_k;topp"}, "got 'top_k;topp', want some of penalties;dry;"),
    ],
)
def test_settings_are_checked(wrong, words):
    with pytest.raises(SettingError, match=words):
        Sampling(**wrong)


def test_a_negative_seed_is_refused():
    with pytest.raises(SettingError, match="seed is negative: got -1"):
        RandomStream(-1)


GOLDEN = [235, 88, 134, 185, 139, 68, 38, 286, 4, 108, 126, 25]


def test_a_sampler_that_is_named_twice_works_twice():
    logits, stream = np.float32([0.0, 1.0, 2.0]), RandomStream(0)
    twice = Sampler(Sampling(samplers="temperature;temperature", temp=0.5))
    once = Sampler(Sampling(samplers="temperature", temp=0.25))
    got, want = (s.probabilities(logits, stream)[1].tolist() for s in (twice, once))
    assert got == want
