"""The flags of ggml's finetune, train-text-from-scratch and export-lora: here, or told why not."""

import re
from pathlib import Path

import pytest

from yupana.cli import _SWITCHES, _ours, main

PAGE = (Path(__file__).parents[1] / "docs" / "coming_from.md").read_text("utf-8")
# Flags of common/train.cpp, and those that two of the programs share.
SHARED = """
--train-data --checkpoint-in --checkpoint-out --pattern-fn-it --fn-latest --save-every -s --seed
-c --ctx -t --threads -b --batch --grad-acc --sample-start --include-sample-start --escape
--overlapping-samples --fill-with-next-samples --separate-with-eos --no-separate-with-eos
--separate-with-bos --no-separate-with-bos --sample-random-offsets --force-reshuffle --use-flash
--no-flash --use-checkpointing --no-checkpointing --warmup --cos-decay-steps --cos-decay-restart
--cos-decay-min --enable-restart --disable-restart --opt-past --opt-delta
--opt-max-no-improvement --epochs --adam-iter --adam-alpha --adam-min-alpha --adam-decay
--adam-decay-min-ndim --adam-beta1 --adam-beta2 --adam-gclip --adam-epsf -h --help
--norm-rms-eps --rope-freq-base --rope-freq-scale
"""
FINETUNE = """
--model-base --lora-out --only-write-lora --lora-alpha --lora-r --rank-att-norm --rank-ffn-norm
--rank-out-norm --rank-tok-embd --rank-out --rank-wq --rank-wk --rank-wv --rank-wo --rank-w1
--rank-w2 --rank-w3 --rank-ffn-gate --rank-ffn-down --rank-ffn-up -ngl --gpu-layers --n-gpu-layers
"""
PRETRAIN = "--vocab-model --model-out --only-write-model --embd --ff --head --layer"
EXPORT = "-m --model-base -o --model-out -l --lora -s --lora-scaled -t --threads"
FLAGS = {"finetune": SHARED + FINETUNE, "pretrain": SHARED + PRETRAIN, "export-lora": EXPORT}
OF_EXPORT = {"-t", "--threads"}  # left out of export-lora alone


@pytest.mark.parametrize("program", FLAGS)
def test_each_flag_is_there_or_documented_as_left_out(program, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    assert main([program, "--help"]) == 0
    helped = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
    said = PAGE.partition("Left out:")[2].partition("\n\n")[0]
    left_out = set(re.findall(r"`(--?[\w-]+)`", said))
    if program != "export-lora":
        left_out -= OF_EXPORT
    missing = set(FLAGS[program].split()) - helped - left_out - set(_SWITCHES)
    assert not missing
    assert not left_out & helped


def test_other_spellings_are_named_on_the_page():
    assert all(f"`{flag}`" in PAGE for flag in _SWITCHES)


def test_underscores_and_other_spellings_are_understood(capsys, tmp_path):
    (tmp_path / "t.txt").write_text("the llama eats grass; " * 40)
    arguments = f"""pretrain --train_data {tmp_path}/t.txt --model_out {tmp_path}/m.gguf --ctx 8
        --batch 2 --embd 16 --ff 24 --head 2 --layer 1 -t 1 --vocab bytes --adam_iter 1
        """
    for switches in ("--disable-restart --no-checkpointing --no-flash",
                     "--disable_restart --use_checkpointing --no_flash"):  # fmt: skip
        assert main((arguments + switches).split()) == 0
        (tmp_path / "m.gguf").unlink()


@pytest.mark.parametrize("flag", _SWITCHES)
def test_other_spellings_are_those_of_ours_however_they_are_joined(flag):
    joined = "--" + flag[2:].replace("-", "_")
    assert _ours(joined) == _ours(flag) == _SWITCHES[flag]
    assert _ours(joined[2:]) == (joined[2:],)  # a value stays as it is
