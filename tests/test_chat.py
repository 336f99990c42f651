"""`yupana generate` and `yupana chat` on a small model: flags, turns, Ctrl-C, prompt caches."""

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import yupana as yp
from tests.command_line import call
from yupana.models.formats import GgufFile, write_gguf
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.vocabulary import Vocabulary
from yupana.models.writer import Writer

ROOT = Path(__file__).parents[1]
CHAIN = "the lamps."  # what the model says for ever


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A model of bytes that follows each letter of CHAIN by the next, in a circle."""
    vocabulary = Vocabulary.from_bytes()
    config = LlamaConfig(n_vocab=257, n_ctx=64, n_embd=16, n_layer=1, n_head=2, n_ff=16)
    llama = Llama(config).init(seed=1)
    codes, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 16)))
    embedding, output = np.zeros((257, 16)), np.zeros((257, 16))
    embedding[:] = codes[15]
    for code, letter, following in zip(codes, CHAIN, CHAIN[1:] + CHAIN[0], strict=False):
        embedding[ord(letter)] = output[ord(following)] = code
    llama.weights["token_embd.weight"].set(embedding)
    llama.weights["output.weight"].set(output)
    for name in ("attn_output", "ffn_down"):
        llama.weights[f"blk.0.{name}.weight"].set(0.0)
    path = tmp_path_factory.mktemp("chat") / "model.gguf"
    save_llama(path, llama, vocabulary)
    return str(path)


def with_template(model: str, folder: Path, template: str) -> str:
    with GgufFile(model) as file:
        tensors = {name: info.data.copy() for name, info in file.tensors.items()}
        metadata = dict(file.metadata) | {"tokenizer.chat_template": template}
        write_gguf(folder / "chat.gguf", metadata, tensors)
    return str(folder / "chat.gguf")


@pytest.fixture
def talk(capsys, monkeypatch):
    """Call `yupana chat` with lines typed."""

    def talk(typed: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        return call(capsys, "chat", *arguments, "--temp=0", "-t=1")

    return talk


def greedy(capsys, model: str, *arguments: str) -> tuple[int, str, str]:
    return call(capsys, "generate", model, "--temp=0", "-t=1", *arguments)


def test_generate_streams_and_says_where_the_time_went(capsys, model):
    code, out, err = greedy(capsys, model, "-p", "the ", "-n", "6")
    assert code == 0
    assert out == "the lamps.\n"
    names = re.findall(r"^ *([a-z ]+ time) = +[\d.]+ ms", err, re.M)
    assert names == ["load time", "sample time", "prompt eval time", "eval time", "total time"]
    assert re.search(r"prompt eval time = .* 4 tokens", err)
    assert re.search(r" eval time = .* 5 runs", err)
    assert greedy(capsys, model, "-p", "the ", "-n", "6", "--no-perf")[2] == ""
    assert greedy(capsys, model, "-p", "the ", "-n", "0")[1] == "the \n"
    assert greedy(capsys, model, "-p", "the ", "-n", "6", "--no-display-prompt")[1] == out[4:]


def test_an_error_begins_a_line_even_within_the_text(capsys, model, tmp_path):
    cache = tmp_path / "nowhere" / "cache"
    code, out, err = greedy(capsys, model, "-p", "the ", "--prompt-cache", str(cache), "--no-perf")
    assert (code, out) == (1, "the \n")
    assert f"yupana: {cache}: No such file or directory." in err  # not the temporary file's name


@pytest.mark.parametrize("program", ["generate", "chat"])
def test_flags_have_the_names_of_llama_cpp(capsys, program):
    out = call(capsys, program, "--help")[1]
    names = """
        prompt file n-predict ctx-size batch-size threads keep seed temp dynatemp-range dynatemp-exp
        top-k top-p min-p tfs typical top-nsigma xtc-probability xtc-threshold repeat-last-n
        repeat-penalty frequency-penalty presence-penalty no-penalize-nl dry-multiplier dry-base
        dry-allowed-length dry-penalty-last-n dry-sequence-breaker mirostat mirostat-lr mirostat-ent
        samplers logit-bias ignore-eos reverse-prompt escape prompt-cache prompt-cache-all
        prompt-cache-ro no-display-prompt verbose-prompt special color no-perf no-context-shift
        lora lora-scaled no-mmap mlock check-tensors
    """
    if program == "chat":
        names += """
            system-prompt no-conversation chat-template chat-template-file single-turn instruct
            interactive-first in-prefix in-prefix-bos in-suffix multiline-input
        """
    assert [name for name in names.split() if not re.search(rf"--{name}\b", out)] == []


def test_an_empty_prompt_is_a_line_end(capsys, model):
    code, out, _ = greedy(capsys, model, "-n", "3")
    assert code == 0
    assert len(out) >= 3


def test_a_prompt_may_come_from_a_file(capsys, model, tmp_path):
    (tmp_path / "prompt.txt").write_text("the \n", encoding="utf-8")
    from_file = greedy(capsys, model, "-f", str(tmp_path / "prompt.txt"), "-n", "6", "--no-perf")
    assert from_file == greedy(capsys, model, "-p", "the ", "-n", "6", "--no-perf")


def test_flags_reach_the_sampler(capsys, model):
    plain = greedy(capsys, model, "-p", "the ", "-n", "20")[1]
    first = plain[4]
    biased = greedy(capsys, model, "-p", "the ", "-n", "20", "-l", f"{ord(first)}-inf")[1]
    assert first not in biased[4:]
    forced = greedy(capsys, model, "-p", "the ", "-n", "4", "--logit-bias", f"{ord('Z')}+1e3")[1]
    assert forced == "the ZZZZ\n"
    ended = greedy(capsys, model, "-p", "the ", "-n", "4", "-l", "256+1e3")[1]
    assert ended == "the \n"
    ignored = greedy(capsys, model, "-p", "the ", "-n", "4", "-l", "256+1e3", "--ignore-eos")[1]
    assert len(ignored) == 9
    penalised = greedy(capsys, model, "-p", "the ", "-n", "20", "--presence-penalty", "1e6")[1]
    assert len(set(penalised[4:24])) == 20


def test_a_reverse_prompt_ends_the_text(capsys, model):
    out = greedy(capsys, model, "-p", "the ", "-n", "60", "-r", "never", "-r", r"amps.\x74he")[1]
    assert out == "the lamps.the\n"


def test_the_context_shifts_or_the_text_ends(capsys, model):
    long = greedy(capsys, model, "-p", "the ", "-n", "196", "--keep", "4")[1]
    assert long == CHAIN * 20 + "\n"
    for flags in (["-n", "-2"], ["-n", "200", "--no-context-shift"]):
        assert len(greedy(capsys, model, "-p", "the ", *flags)[1]) == 64 + 1 + 1
    assert len(greedy(capsys, model, "-p", "the ", "-n", "-2", "-c", "16")[1]) == 16 + 1 + 1


def test_seeds_and_random_seeds(capsys, model):
    ask = ["generate", model, "-p", "the ", "-n", "30", "--samplers", "top_k", "--no-perf"]
    same = [call(capsys, *ask, "-s", "5")[1] for _ in range(2)]
    assert same[0] == same[1] != call(capsys, *ask, "-s", "6")[1]
    assert call(capsys, *ask, "-s", "-1")[1] != call(capsys, *ask, "-s", "-1")[1]


def test_a_prompt_cache_is_written_used_and_refused(capsys, model, tmp_path):
    path, other = tmp_path / "cache", tmp_path / "other.gguf"
    ask = ["-p", "the llama", "-n", "6", "--prompt-cache", str(path)]
    first = greedy(capsys, model, *ask, "--prompt-cache-ro")
    assert not path.exists()
    path.touch()  # as mktemp leaves a file
    assert greedy(capsys, model, *ask)[:2] == first[:2]
    written = path.read_bytes()
    second = greedy(capsys, model, *ask)
    assert second[:2] == first[:2]
    assert "prompt cache: 8 of 9 tokens need not be read again" in second[2]
    assert path.read_bytes() == written
    more = greedy(capsys, model, *ask, "--prompt-cache-all")
    assert more[:2] == first[:2]
    assert len(path.read_bytes()) > len(written)
    code, out, err = greedy(capsys, model, "-n", "3", "--prompt-cache", str(path))
    assert code == 0
    assert out.startswith(first[1][:-1])  # goes on where the text ended
    assert len(out) == len(first[1]) + 3
    assert "14 of 15 tokens" in err
    config = LlamaConfig(n_vocab=257, n_ctx=64, n_embd=16, n_layer=1, n_head=2)
    save_llama(other, Llama(config).init(seed=2), Vocabulary.from_bytes())
    code, _, err = greedy(capsys, str(other), *ask)
    assert code == 2
    assert "belongs to another model" in err
    code, _, err = greedy(capsys, model, "--prompt-cache-all")
    assert code == 2
    assert "prompt_cache: got none with prompt_cache_all" in err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--top-p", "3"], "top_p: got 3.0"),
        (["-p", "a", "-f", "x"], "prompt: got one and the file x"),
        (["-f", "missing.txt"], "missing.txt: No such file"),
        (["-p", "a" * 64], "prompt: it is too long: got 64 tokens, want at most 63"),
        (["-l", "5"], "logit_bias: got '5'"),
        (["-l", "999+1"], "logit_bias: got token 999, want at most 256"),
        (["--threads", "-3"], "threads: got -3"),
        (["-c", "-3"], "ctx_size: got -3"),
        (["-b", "0"], "n_batch: got 0"),
        (["--cache-type", "f8"], "cache: got 'f8'"),
        (["--lora", "missing.gguf"], "missing.gguf: No such file"),
        (["--seed", "-2"], "seed is negative"),
    ],
)
def test_mistakes_get_one_clear_message(capsys, model, flags, words):
    code, out, err = greedy(capsys, model, "--no-perf", *flags)
    assert code in (1, 2)
    assert out.strip("a\n") == ""
    assert err.startswith("yupana: ")
    assert words in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("program", ["generate", "chat"])
@pytest.mark.parametrize(
    "flags",
    [
        ["-l", "5"], ["-c", "-3"], ["-p", "a" * 64], ["-p", "a", "-f", "x"], ["--prompt-cache-ro"],
        ["--grammar", "a", "-j", "{}"], ["-j", "{"], ["--override-kv", "a"], ["-b", "0"],
    ],
)  # fmt: skip
def test_messages_about_shared_flags_name_no_program(capsys, model, program, flags):
    code, _, err = call(capsys, program, model, "--no-perf", *flags)
    assert code in (1, 2)
    assert re.match(r"yupana: (?!generate|chat)[a-z_]+: .*(got|want)", err)


def test_characters_without_tokens_are_refused(capsys, talk, tmp_path):
    vocabulary = Vocabulary.from_characters("the lamps.ñ")
    config = LlamaConfig(n_vocab=len(vocabulary), n_ctx=16, n_embd=16, n_layer=1, n_head=2)
    path = str(tmp_path / "characters.gguf")
    save_llama(path, Llama(config).init(seed=1), vocabulary)
    assert greedy(capsys, path, "-p", "ñ", "-n", "3")[0] == 0
    code, out, err = greedy(capsys, path, "-p", "the €X€", "--no-perf")
    assert (code, out) == (1, "")
    assert "no tokens for some characters: got '€X'" in err
    assert greedy(capsys, path, "-n", "3")[0] == 0  # has no line end to begin with
    code, out, err = talk("€\nthe\n", path, "-n", "3", "--no-perf")
    assert code == 0
    assert "yupana: encode: the model has no tokens for some characters: got '€'" in err


def test_chat_takes_turns_at_the_reverse_prompt(talk, model):
    flags = ["-p", "the ", "-r", "ps.", "--in-prefix", " ", "--in-suffix", "!t"]
    code, out, err = talk("x\ny\n", model, *flags)
    assert code == 0
    # What is typed comes from a file here, so that no terminal shows it.
    assert out == "the lamps. !the lamps. !the lamps. \n"
    assert "Ctrl-C takes the word from the model" in err
    assert "total time" in err


def test_chat_limits_answers_and_asks_first_without_a_prompt(talk, model):
    code, out, _ = talk("t\nl\n", model, "-n", "5", "--no-perf", "--in-prefix", "> ")
    assert code == 0
    assert out == "> he la\n> amps.\n> \n"


def test_an_empty_line_lets_the_model_go_on(talk, model):
    apart = talk("t\n\n", model, "-n", "5", "--no-perf")[1]
    whole = talk("t\n", model, "-n", "10", "--no-perf")[1]
    assert apart.replace("\n", "") == whole.replace("\n", "") == "he lamps.t"


def test_chat_fills_in_the_models_template(talk, model, tmp_path):
    template = "{% for m in messages %}{{ m.role[0] }}{{ m.content }};{% endfor %}"
    chat = with_template(model, tmp_path, template)
    code, out, err = talk("t\n", chat, "-n", "5", "--verbose-prompt", "-sys", "l")
    assert code == 0
    assert out.startswith("> ")
    spelled = "".join(re.findall(r"^ *\d+ -> '(.)'$", err, re.M))
    assert spelled == "sl;"
    assert "prompt eval time" in err
    assert talk("", chat, "-p", "t", "-st", "-n", "5", "--no-perf")[1].count(">") == 0
    raw = talk("t\n", chat, "-n", "5", "--no-perf", "--no-conversation")
    assert raw[1] == talk("t\n", model, "-n", "5", "--no-perf")[1]


def test_chat_goes_on_with_a_template_that_changes_the_past(talk, model, tmp_path):
    last = "{% for m in messages %}{{ loop.index if loop.last else 0 }}{{ m.content }}{% endfor %}"
    chat = with_template(model, tmp_path, last)
    code, out, _ = talk("the\nlamp\n", chat, "-n", "6", "--no-perf")
    assert (code, out) == (0, ">  lamps\n> s.the \n> \n")


def test_what_is_typed_may_be_longer_than_the_context(talk, model):
    code, out, _ = talk(CHAIN * 20 + "the\n", model, "-n", "7", "--no-perf", "-b", "16")
    assert (code, out) == (0, " lamps.\n\n")


def test_chat_templates_may_be_given(talk, model, tmp_path):
    (tmp_path / "template").write_text("{{ messages[0].content }}")
    for flags in (
        ["--chat-template", "chatml"],
        ["--chat-template", "{{ messages[0].content }}"],
        ["--chat-template-file", str(tmp_path / "template")],
        ["--instruct"],
    ):
        code, out, _ = talk("t\n", model, "-n", "5", "--no-perf", *flags)
        assert code == 0
        assert out.lstrip("\n").startswith("> ")
    code, _, err = talk("t\n", model, "--instruct", "--chat-template", "chatml")
    assert code == 2
    assert "a chat template and a way to talk without" in err
    code, _, err = talk("t\n", model, "--chat-template", "{% if %}")
    assert code == 1
    assert err.startswith("yupana: chat template: line 1")
    both = ["--chat-template", "chatml", "--chat-template-file", str(tmp_path / "template")]
    for flags, words in (
        (["--chat-template", "chatlm"], "chat_template: got 'chatlm', want chatml or a template"),
        (both, "chat_template: got it and the chat_template_file"),
    ):
        code, _, err = talk("t\n", model, *flags)
        assert code == 2
        assert words in err


def test_ctrl_c_takes_the_word_and_then_ends(talk, model, monkeypatch, tmp_path):
    cache = tmp_path / "cache"
    drawn = []
    draw = Writer.draw

    def interrupted(writer):
        drawn.append(draw(writer))
        if len(drawn) == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return drawn[-1]

    asked = []

    def ask(prompt):
        asked.append(prompt)
        raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "draw", interrupted)
    monkeypatch.setattr("builtins.input", ask)
    flags = ["--in-prefix", "# ", "--prompt-cache", str(cache), "--prompt-cache-all"]
    code, out, err = talk("", model, "-p", "the ", *flags)
    assert code == 130
    assert len(drawn) == 7
    assert asked == ["# "]
    assert out.startswith("the ")
    assert len(out.rstrip("\n")) == 4 + 7
    assert "total time" in err
    assert cache.stat().st_size > 0


def test_ctrl_c_in_generate_ends_the_text_with_its_timings(model):
    command = [sys.executable, "-m", "yupana.cli", "generate", model, "-n", "-1", "-p", "the "]
    running = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    running.stdout.read(30)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert running.returncode == 130
    assert out.endswith("\n")
    assert "total time" in err
    assert "Traceback" not in err


def test_a_grammar_leads_the_text(capsys, model, tmp_path):
    rules = 'root ::= "to" [a-z]* " " "lamps"'
    (tmp_path / "rules.gbnf").write_text(rules + "\n")
    given = [("--grammar", rules), ("--grammar-file", str(tmp_path / "rules.gbnf"))]
    texts = [greedy(capsys, model, "-p", "the ", "-n", "16", *flags)[1] for flags in given]
    assert texts[0] == texts[1]
    assert re.match("the to[a-z]*( lamps)?", texts[0])
    code, _, err = greedy(capsys, model, "-p", "the ", "--grammar", "root ::= x")
    assert code == 1
    assert "'x', which is not" in err
    code, _, err = greedy(capsys, model, "-p", "the ", *given[0], *given[1])
    assert code
    assert "want one" in err


def test_metadata_can_be_given_in_place_of_the_files(capsys, model):
    given = {"llama.rope.freq_base": 5.0, "tokenizer.ggml.add_bos_token": True, "llama.more": 3}
    loaded = yp.load(model, overrides=given)
    assert loaded.model.config.rope_base == 5.0
    assert loaded.metadata["llama.more"] == 3
    assert len(loaded.metadata) == len([*loaded.metadata]) > 10
    assert yp.load(model).model.config.rope_base == 10000.0
    flags = ["-p", "the ", "-n", "1", "--override-kv"]
    code, _, err = greedy(capsys, model, *flags, "llama.context_length=int:3")
    assert code
    assert "prompt: it is too long: got 4 tokens, want at most 2" in err
    for wrong in ("llama.context_length", "a=int:x", "a=bool:1", "a=list:1"):
        code, _, err = greedy(capsys, model, *flags, wrong)
        assert code
        assert f"got {wrong!r}, want KEY=TYPE:VALUE" in err
