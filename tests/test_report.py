"""`yupana report`: what a run says of itself, found again, and the page made of it."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests import small_runs
from tests.browser import browser
from tests.small_runs import TEXT
from yupana.cli import main
from yupana.graphlib.errors import DataError
from yupana.models.llama import Llama, LlamaConfig
from yupana.models.llama_gguf import save_llama
from yupana.models.vocabulary import Vocabulary
from yupana.train.finetune import finetune
from yupana.train.pretrain import prepare
from yupana.train.report import find_log, make_report, read_log
from yupana.train.settings import FinetuneSettings, RunSettings

HOSTILE = "</p><script>alert(1)</script><img src=http://x.test/a.png onerror=alert(2)>\x07"
NAME = 'a&b <i>"m".gguf'  # a file may be called so


def settings(folder, **changes) -> RunSettings:
    usual = {"layer": 3, "generate_every": 2, "generate_tokens": 5}
    return small_runs.settings(folder, **{**usual, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a run with everything that a run can leave, and a text that means harm."""
    folder = tmp_path_factory.mktemp("run")
    files = {"model_out": folder / NAME, "checkpoint_out": folder / "c-ITERATION.gguf"}
    prepare(TEXT, settings(folder, **files)).train()
    (log,) = folder.glob("*.jsonl")
    with log.open("a") as file:
        file.write(json.dumps({"step": 6, "prompt": "<b>", "text": HOSTILE}) + "\n")
    return folder


@pytest.fixture(scope="module")
def page(run, tmp_path_factory) -> Path:
    return make_report(run, tmp_path_factory.mktemp("page") / "report.html")


class Outline(HTMLParser):
    """Tags, attributes and headings of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(page.read_text("utf-8"))
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        if data.strip():
            self.texts.append(" ".join(data.split()))


def test_the_page_has_everything_and_needs_nothing(page):
    outline = Outline(page)
    text = " ".join(outline.texts)
    for part in (
        "Curves", "What it writes", "The bill", "Memory plan", "Graph of a step",
        "Where the time goes", "Settings", "training loss", "best validation", "Learning rate",
        "--adam-iter", "activations", "GFLOP/s", "multiply-adds, f32", "of what is possible",
    ):  # fmt: skip
        assert part in text, part
    assert "script" not in outline.tags
    references = [a for a in outline.attributes if a[1] in ("src", "href", "xlink:href", "action")]
    assert references == [("link", "href", "data:,")]
    assert "url(" not in page.read_text("utf-8")
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]


def test_what_is_told_is_what_the_run_did(run, page):
    log = read_log(find_log(run))
    text = page.read_text("utf-8")
    assert log.record["program"] == "pretrain"
    assert log.record["n_parameters"] == log.record["n_trained"] > 1000
    assert log.step == log.record["steps"] == 6
    assert [t.step for t in log.texts] == [0, 2, 4, 6]
    last, best = log.curves["loss"][-1][1], min(v for _, v in log.curves["validation"])
    assert f"training {last:.3f}" in text
    assert f"<b>{best:.3f}</b>" in text
    assert "was killed" not in text  # no notes about a run that is whole
    assert "ended after step 6 of 6: adam_iter 6" in text
    assert "Made again here" not in text  # the plan of the report is the plan of the run


def test_texts_and_names_cannot_change_the_page(run, page):
    text = page.read_text("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;img src=http" in text
    assert "\x07" not in text
    assert "a&amp;b &lt;i&gt;&#34;m&#34;.gguf" in text
    assert "<i>&" not in text


@pytest.mark.parametrize(
    "name", [NAME, NAME.replace(".gguf", "-best.gguf"), "c-LATEST.gguf", "c-6.gguf", "."]
)
def test_a_run_is_found_by_any_of_its_files(run, name):
    assert find_log(run / name) == run / NAME.replace(".gguf", ".jsonl")


def test_of_two_runs_in_a_folder_the_one_is_found_that_wrote_the_file(tmp_path):
    for name in ("a", "b"):
        prepare(TEXT, settings(tmp_path, adam_iter=1, generate_every=0,
                               model_out=tmp_path / f"{name}.gguf")).train()  # fmt: skip
    (tmp_path / "data.jsonl").write_text('{"text": "no log"}\n')
    assert find_log(tmp_path / "b-best.gguf") == tmp_path / "b.jsonl"
    with pytest.raises(DataError, match=r"several runs, a\.jsonl, b\.jsonl; want one"):
        find_log(tmp_path)


def test_what_is_no_run_is_refused_with_what_to_do(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    files = {
        "data.jsonl": '{"text": "a"}\n{"text": "b"}\n',
        "none.jsonl": "",
        "old.jsonl": '{"step": 1, "loss": 2.5}\n',
        "bytes.jsonl": "\x00\xff\n[1]\n{}\n" + "[" * 5000,
        "broken.jsonl": '{"step": 0, "run": {"program": "pretrain"}}\n',
        "m.gguf": "GGUF",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    wanted = {
        "data.jsonl": "got 2 lines of something else",
        "none.jsonl": "got an empty file",
        "old.jsonl": "says nothing of its run: got steps without settings",
        "bytes.jsonl": "lines of something else",
        "broken.jsonl": "got 1 line of something else",
        "m.gguf": "the log of its run is not beside it",
        "empty": "no run in this folder",
        "nothing": "no such file or folder",
    }
    for name, message in wanted.items():
        assert main(["report", str(tmp_path / name)]) == 1, name
        err = capsys.readouterr().err
        assert err.startswith("yupana: report: "), name
        assert message in err, name
        assert "Traceback" not in err
    assert not [*tmp_path.rglob("*.html")]


def copied(run: Path, folder: Path, change=lambda lines: lines) -> Path:
    """A run's log elsewhere, its lines changed."""
    lines = find_log(run).read_text().splitlines(keepends=True)
    log = folder / "m.jsonl"
    log.write_text("".join(change(lines)))
    return log


def test_a_log_that_was_cut_off_is_told_as_far_as_it_goes(run, tmp_path):
    log = copied(run, tmp_path, lambda lines: [*lines[:6], '{"step": 4, "lo'])
    assert read_log(log).n_broken == 1
    text = make_report(log, is_measured=False).read_text("utf-8")
    assert "The log ends at step 3 of 6: the run was killed, or is not over yet" in text
    assert "ended after" not in text
    assert "1 line of the log cannot be read" in text
    assert "Nothing was measured." in text


def test_a_run_without_steps_has_a_report_too(run, tmp_path):
    log = copied(run, tmp_path, lambda lines: lines[:1])
    text = make_report(log, is_measured=False).read_text("utf-8")
    assert "No step was finished" in text
    assert "The run wrote no texts" in text
    assert "no step made" in text


def test_a_run_that_was_gone_on_with_shows_each_step_once(tmp_path):
    first = settings(tmp_path, adam_iter=4, checkpoint_out=tmp_path / "c.gguf")
    prepare(TEXT, first).train()
    again = settings(tmp_path, adam_iter=6, checkpoint_in=tmp_path / "c.gguf")
    prepare(TEXT, again).train()
    log = read_log(find_log(tmp_path))
    assert log.resumed == [4]
    assert [step for step, _ in log.curves["loss"]] == [1, 2, 3, 4, 5, 6]
    assert [t.step for t in log.texts] == [0, 2, 4, 6]
    text = make_report(tmp_path, is_measured=False).read_text("utf-8")
    assert "gone on with, after step 4" in text


def test_texts_do_not_change_what_is_learned(tmp_path):
    for name, every in (("a", 0), ("b", 1)):
        prepare(TEXT, settings(tmp_path / name, generate_every=every)).train()
    assert (tmp_path / "a/m.gguf").read_bytes() == (tmp_path / "b/m.gguf").read_bytes()
    logs = [read_log(find_log(tmp_path / name)) for name in "ab"]
    assert logs[0].curves["loss"] == logs[1].curves["loss"]
    assert [len(log.texts) for log in logs] == [0, 7]
    assert all(0 < len(t.text) <= 5 for t in logs[1].texts)


def test_a_plan_that_differs_from_the_run_is_told(run, tmp_path):
    def smaller(lines):
        entry = json.loads(lines[0])
        entry["run"]["bill"]["peak"] //= 2
        return [json.dumps(entry) + "\n", *lines[1:]]

    text = make_report(copied(run, tmp_path, smaller), is_measured=False).read_text("utf-8")
    assert "Made again here, the step needs" in text


def test_a_record_of_another_version_still_gives_a_page(run, tmp_path):
    def changed(lines):
        entry = json.loads(lines[0])
        entry["run"]["settings"]["optimizer"] = "muon"
        entry["run"]["settings"]["not_known"] = 3
        del entry["run"]["model"]["n_vocab"]
        entry["run"]["model"]["n_vocab"] = 0
        return [json.dumps(entry) + "\n", *lines[1:]]

    text = make_report(copied(run, tmp_path, changed)).read_text("utf-8")
    assert "The step of the run could not be made again: llama: n_vocab" in text
    assert "--not-known" in text


def test_without_dot_the_rest_is_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    text = make_report(run, tmp_path / "r.html", is_measured=False).read_text("utf-8")
    assert "apt install graphviz" in text
    assert "Memory of a training step" in text
    assert "backward" not in text


@pytest.mark.skipif(shutil.which("dot") is None, reason="the program dot is not installed")
def test_the_graph_is_folded(page):
    text = page.read_text("utf-8")
    assert "layer × 3" in text or "layer &#215; 3" in text
    drawn = re.findall(r"<text [^>]*>([^<]*)</text>", text)
    assert any("blk.*.attn_q.weight" in word for word in drawn)
    assert not any("blk.1.attn_q.weight" in word for word in drawn)


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finetuned")
    vocabulary = Vocabulary.train(TEXT, 288)
    config = LlamaConfig(
        n_vocab=len(vocabulary), n_ctx=32, n_embd=32, n_layer=2, n_head=4, n_mult=32
    )
    save_llama(folder / "base.gguf", Llama(config).init(seed=3), vocabulary)
    lines = [{"prompt": f"llama {k}?", "completion": " eats grass"} for k in range(12)]
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, lines)))
    finetune(
        FinetuneSettings(
            model_base=folder / "base.gguf", train_data=folder / "d.jsonl", ctx=24, batch=2,
            lora_out=folder / "run" / "adapter", adam_iter=3, lora_dropout=0.1, generate_tokens=4,
            threads=1,
        )
    ).train()  # fmt: skip
    return folder


def test_an_adapter_has_a_report(finetuned, tmp_path):
    peft = finetuned / "run" / "adapter"
    log = read_log(find_log(peft))
    assert log.record["program"] == "finetune"
    assert log.record["n_trained"] < log.record["n_parameters"]
    assert [t.step for t in log.texts] == [0, 3]
    assert re.fullmatch(r"llama \d+\?", log.texts[0].prompt)  # what stands before the answer
    text = make_report(peft, tmp_path / "r.html").read_text("utf-8")
    assert "--lora-dropout" in text
    assert "lora_a" in text
    assert "could not be made again" not in text


def test_a_base_that_changed_or_is_gone_leaves_its_parts_out(finetuned, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(finetuned, folder)  # paths are counted from the log
    log = find_log(folder / "run")
    base = folder / "base.gguf"
    assert "could not be made" not in make_report(log, is_measured=False).read_text("utf-8")
    with base.open("ab") as file:
        file.write(b"\0")
    text = make_report(log).read_text("utf-8")
    assert text.count("has changed since") == 3  # plan, graph, times
    assert "Loss" in text
    base.unlink()
    assert "is not there any more" in make_report(log).read_text("utf-8")


def test_the_command_says_where_the_page_is(run, tmp_path, capsys):
    assert main(["report", str(run), "--no-measure", "-o", str(tmp_path / "r.html")]) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / 'r.html'}\n"
    assert "drawing" in err
    assert main(["report", str(run), "--no-measure"]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert main(["report", str(run), "--no-measure", "-o", str(tmp_path / "no" / "r.html")]) == 1
    assert "No such file" in capsys.readouterr().err


WIDTHS, SCHEMES = (1280, 390), ("light", "dark")
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_the_page_looks_right_in_a_browser(page):
    colours = {}
    with browser() as chromium:
        for width in WIDTHS:
            for scheme in SCHEMES:
                chromium.open(page, width, scheme)
                assert chromium.run("innerWidth") == width
                assert chromium.run(OVERFLOW) <= 0, (width, scheme)
                chromium.run("document.querySelectorAll('details').forEach(d => d.open = true)")
                chromium.run("document.querySelectorAll('.zoom input').forEach(i => i.click())")
                assert chromium.run(OVERFLOW) <= 0, (width, scheme, "full size")
                colours[scheme] = chromium.run("getComputedStyle(document.body).backgroundColor")
                small = chromium.run(
                    "[...document.querySelectorAll('body :not(svg *)')].filter(e => e.innerText"
                    " && parseFloat(getComputedStyle(e).fontSize) < 10).length"
                )
                assert small == 0
                assert chromium.requests() == []
                assert chromium.said() == []
    assert colours["light"] != colours["dark"]


def test_the_browser_notices_what_is_wrong(tmp_path):
    bad = tmp_path / "bad.html"
    bad.write_text("<div style='width: 2000px'>wide</div><img src='none.png'>")
    with browser() as chromium:
        chromium.open(bad, 390, "light")
        assert chromium.run(OVERFLOW) > 1000
        assert any("none.png" in line for line in chromium.said())
