"""`yp.load` and what it gives, from Python: adapters' scales, arguments of `generate`, errors."""

from typing import Unpack, get_type_hints

import numpy as np
import pytest

import yupana as yp
from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.adapter_save import save_adapter
from yupana.models.formats import write_gguf
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.lora import Adapter
from yupana.models.session_settings import SessionSettings
from yupana.models.vocabulary import Vocabulary

BEST = yp.Sampling(temp=0)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A model that writes letters after one another: n, then n + 1, …"""
    vocabulary = Vocabulary.from_bytes()
    n = len(vocabulary)
    sizes = LlamaConfig(n, n_ctx=64, n_embd=320, n_layer=1, n_head=2, n_ff=32)
    model = Llama(sizes).init(seed=1)
    weights = model.weights
    weights["token_embd.weight"].set(np.eye(n, 320))
    for name, w in weights.items():
        if w.ndim == 2 and name not in ("token_embd.weight", "output.weight"):
            w.set(np.zeros(w.shape))
    weights["output.weight"].set(np.roll(np.eye(n, 320), 1, axis=0))
    path = tmp_path_factory.mktemp("model") / "m.gguf"
    save_llama(path, model, vocabulary)
    return path


@pytest.fixture
def model(path):
    return yp.load(path)


def text(model, prompt="a", n=8, **options):
    return "".join(model.generate(prompt, n, BEST, **options))


def test_the_model_of_these_tests_counts_on(model):
    assert text(model) == "bcdefghi"


@pytest.mark.parametrize(
    ("stop", "want"),
    [("e", "bcd"), ("ef", "bcd"), (["zz", "fg", "g"], "bcde"), ("b", ""), ("ex", "bcdefghi"),
     (["hij"], "bcdefghi"), ((), "bcdefghi")],
)  # fmt: skip
def test_a_text_ends_before_the_first_of_the_texts_to_stop_at(model, stop, want):
    assert text(model, stop=stop) == want


def test_letters_that_may_begin_such_a_text_wait(model):
    pieces = [*model.generate("a", 8, BEST, stop=["defgX", "i"])]
    assert pieces == ["b", "c", "defgh"]


def test_ids_are_read_as_they_are(model):
    ids = model.tokenizer.encode("xyza")
    assert text(model, ids) == text(model, "xyza") == text(model, np.array(ids)) == "bcdefghi"


def test_end_tokens_and_others_are_forbidden(model):
    before_end = [min(model.tokenizer.ends) - 1]
    assert text(model, before_end) == ""
    assert len(text(model, before_end, ignore_eos=True)) > 0
    b = model.tokenizer.encode("b", add_special=False)[-1]
    assert not text(model, logit_bias={b: -np.inf}).startswith("b")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"prompt": None}, "prompt: got None, want a text, or token ids"),
        ({"prompt": [1.5]}, r"prompt: got \[1.5\], want a text, or token ids"),
        ({"prompt": []}, r"prompt: got \[\], want a text, or token ids"),
        ({"prompt": [[1], [1, 2]]}, "want a text, or token ids"),
        ({"prompt": [999]}, r"prompt: got \[999\], want ids from 0 to"),
        ({"prompt": [-1]}, r"prompt: got \[-1\], want ids from 0 to"),
        ({"max_tokens": "x"}, "max_tokens: got 'x', want a whole number"),
        ({"max_tokens": -1}, "max_tokens: got -1, want at least 0"),
        ({"seed": None}, "seed: got None, want a whole number"),
        ({"ignore_eos": "no"}, "ignore_eos: got 'no', want True or False"),
        ({"sampling": {"temp": 0}}, "want a yupana.Sampling"),
        ({"stop": ""}, "stop: got '', want texts that are not empty"),
        ({"stop": [1]}, r"stop: got \[1\], want texts"),
    ],
)
def test_arguments_are_checked_before_anything_is_read(model, arguments, words):
    with pytest.raises(SettingError, match=words):
        model.generate(**{"prompt": "a"} | arguments)


def test_a_scale_is_changed_while_an_adapter_is_attached(path, tmp_path):
    pairs = {"output.weight": (np.eye(2, 320, 96, dtype="f4"), np.ones((257, 2), "f4"))}
    pairs["output.weight"][1][:, 0] = np.arange(257)  # "a" leads to the last id, if it counts
    save_adapter(tmp_path / "a.gguf", Adapter("a", pairs))
    model = yp.load(path, adapters=[tmp_path / "a.gguf"])
    one = model.logits([97])
    model.set_scale(tmp_path / "a.gguf", 0.0)
    np.testing.assert_array_equal(model.logits([97]), yp.load(path).logits([97]))
    model.set_scale(str(tmp_path / "a.gguf"), 1)
    np.testing.assert_array_equal(model.logits([97]), one)
    with pytest.raises(SettingError, match=r"is attached already.*`set_scale` changes its scale"):
        model.attach(tmp_path / "a.gguf", 0.5)
    with pytest.raises(SettingError, match=r"no such adapter: got 'b\.gguf'"):
        model.set_scale("b.gguf", 1.0)
    with pytest.raises(SettingError, match="scale: got 'x', want a number"):
        model.set_scale(tmp_path / "a.gguf", "x")
    for scale in (np.inf, np.nan):
        with pytest.raises(SettingError, match=r"scale: got (inf|nan), want a finite number"):
            model.set_scale(tmp_path / "a.gguf", scale)
    model.detach(tmp_path / "a.gguf")
    with pytest.raises(SettingError, match="scale: got '2', want a finite number"):
        model.attach(tmp_path / "a.gguf", "2")


def test_adapters_are_a_list_of_paths_or_pairs(path):
    for adapters in ("a.gguf", path, ("a.gguf", 0.5), [("a.gguf", 1, 2)], {"a.gguf": 1}, None):
        with pytest.raises(SettingError, match=r"load: adapters: got .* want a list of paths"):
            yp.load(path, adapters=adapters)


@pytest.mark.parametrize("ids", [None, 3, [], [[1], [1, 2]], iter([1]), "ab", [1.5], [257]])
def test_ids_to_score_are_ids(model, ids):
    with pytest.raises(SettingError, match=r"session: got ids .* want at least one, each from 0"):
        model.logits(ids)


def test_settings_of_sessions_are_checked_when_a_model_is_loaded(path):
    with pytest.raises(TypeError, match=r"load: no such setting: got 'foo'\. Want n_ctx, .*mlock"):
        yp.load(path, foo=1)
    with pytest.raises(SettingError, match=r"load: .*'thread'\. Did you mean threads\?"):
        yp.load(path, thread=1)
    with pytest.raises(SettingError, match=r"load: .*'mlok'\. Did you mean mlock\?"):
        yp.load(path, mlok=True)
    with pytest.raises(SettingError, match=r"session: .*'n_context'\. Did you mean n_ctx\?"):
        yp.load(path).session(n_context=8)
    with pytest.raises(SettingError, match="load: n_ctx: got 'x', want a whole number, or None"):
        yp.load(path, n_ctx="x")
    with pytest.raises(SettingError, match=r"session: threads: got 1\.5, want a whole number"):
        yp.load(path).session(threads=1.5)


def test_types_of_settings_are_those_of_sessions():
    settings = get_type_hints(SessionSettings)
    assert settings == {
        name: kind
        for name, kind in get_type_hints(yp.Session.__init__).items()
        if name not in ("model", "return")
    }
    # What an editor and mypy see.
    for function in (yp.load, yp.LanguageModel.session):
        assert get_type_hints(function)["settings"] == Unpack[SessionSettings]


def test_what_is_loaded_is_of_a_known_architecture(tmp_path):
    write_gguf(tmp_path / "m.gguf", {"general.architecture": "gpt2"}, {})
    with pytest.raises(FileFormatError, match=r"got 'gpt2', want one of 'llama', .*'starcoder'"):
        yp.load(tmp_path / "m.gguf")


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"temp": "x"}, "sampling: temp: got 'x', want a number"),
     ({"top_k": 1.5}, "sampling: top_k: got 1.5, want a whole number"),
     ({"samplers": 3}, "sampling: samplers: got 3, want text"),
     ({"penalize_nl": "no"}, "sampling: penalize_nl: got 'no', want True or False"),
     ({"dry_sequence_breaker": "x"}, "dry_sequence_breaker: got 'x', want several texts")],
)  # fmt: skip
def test_settings_of_samplers_are_of_their_kind(setting, words):
    with pytest.raises(SettingError, match=words):
        yp.Sampling(**setting)
