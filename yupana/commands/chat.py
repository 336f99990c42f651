"""`yupana chat`: talk with a model, or write a text with it in turns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from yupana.cache_file import CacheFile
from yupana.dialogue import Dialogue, RawDialogue, TemplateDialogue
from yupana.graphlib.errors import SettingError, YupanaError
from yupana.inference import (
    WritingFlags,
    begin,
    check_characters,
    open_model,
    open_writer,
    say,
)
from yupana.models.chat_template import TEMPLATE_KEY, ChatTemplate, given_source, special_words
from yupana.models.formats import expect
from yupana.models.language_model import LanguageModel
from yupana.models.timings import Timings
from yupana.models.tokenizer import Tokenizer
from yupana.models.writer import Writer
from yupana.terminal import Screen, Watch
from yupana.train.interrupt import CtrlC

_INSTRUCTION, _RESPONSE = "\n\n### Instruction:\n\n", "\n\n### Response:\n\n"


@dataclass(frozen=True, kw_only=True)
class Settings(WritingFlags):
    """Talk with a model, or write a text with it in turns.

    A model with a chat template gets messages, the prompt being your first one; others get the
    text as it is, and take turns at the reverse prompts. Ctrl-C takes the word from the model;
    where you may type, it ends the program, as Ctrl-D does.
    """

    # Tokens of an answer at most; -1: no limit, -2: until the context is full.
    n_predict: Annotated[int, arg(aliases=["-n"])] = -1
    # Message to the model that comes before everything.
    system_prompt: Annotated[str, arg(aliases=["-sys"])] = ""
    # Use the model's chat template, if it has one.
    conversation: Annotated[bool, arg(aliases=["-cnv"])] = True
    # Chat template in place of the model's, in Jinja's language; or chatml.
    chat_template: str = ""
    # File with the chat template.
    chat_template_file: Path | None = None
    # End after one answer.
    single_turn: Annotated[bool, arg(aliases=["-st"])] = False
    # Instructions and responses as Alpaca was trained on, in place of a template.
    instruct: Annotated[bool, arg(aliases=["-ins"])] = False
    # Ask for input before the model goes on from the prompt.
    interactive_first: Annotated[bool, arg(aliases=["-if"])] = False
    # Text before what you type.
    in_prefix: str = ""
    # Begin what you type with the token that begins texts.
    in_prefix_bos: bool = False
    # Text after what you type.
    in_suffix: str = ""
    # Read lines until one ends with a backslash.
    multiline_input: Annotated[bool, arg(aliases=["-mli"])] = False


def run(settings: Settings) -> int:
    """Take turns until the user ends it; returns the exit code."""
    s, timings = settings, Timings()
    with timings.load.measured():
        prompt = s.prompt_text()
        model = open_model(s)
        writer = open_writer(s, model)
        writer.timings = timings
        cache = CacheFile(s, writer)
        check_characters(prompt, model.tokenizer)
        dialogue = make_dialogue(s, model, prompt)
        ids = dialogue.opening()
        if isinstance(dialogue, RawDialogue) and not prompt and cache.tokens:
            prompt, ids = model.tokenizer.decode(cache.tokens), cache.tokens
        begin(s, writer, model.tokenizer, ids)
        cache.resume()
        writer.session.prepare(len(writer.pending))
    introduce(s)
    chat = Chat(s, model.tokenizer, writer, dialogue)
    try:
        cache.save_prompt()
        if s.display_prompt:
            chat.screen.show(prompt, "prompt")
        chat.talk(ids)
        cache.save_all()
    except KeyboardInterrupt:
        print(flush=True)
        return 130
    finally:
        if s.perf:
            say(f"\n{timings.table()}")
    return 130 if chat.was_interrupted else 0


def make_dialogue(s: Settings, model: LanguageModel, prompt: str) -> Dialogue:
    """The way of talking that flags and model ask for."""
    tokenizer, reverse = model.tokenizer, [*map(s.text, s.reverse_prompt)]
    source = template_source(s, model)
    if source is not None:
        template = ChatTemplate(source, special_words(tokenizer))
        dialogue = TemplateDialogue(tokenizer, template, s.text(s.system_prompt), prompt)
        dialogue.reverse_prompts = reverse
        return dialogue
    if s.instruct:
        return RawDialogue(
            tokenizer,
            prompt,
            prefix=_INSTRUCTION,
            suffix=_RESPONSE,
            reverse_prompts=[*reverse, "### Instruction:\n\n"],
            user_begins=True,
            mark="\n> ",
        )
    return RawDialogue(
        tokenizer,
        "\n".join(filter(None, [s.text(s.system_prompt), prompt])),
        prefix=s.text(s.in_prefix),
        suffix=s.text(s.in_suffix),
        reverse_prompts=reverse,
        user_begins=s.interactive_first,
        has_bos=s.in_prefix_bos,
    )


def template_source(s: Settings, model: LanguageModel) -> str | None:
    """The chat template to use; None: none."""
    given = given_source(s.chat_template, s.chat_template_file)
    if s.instruct or not s.conversation:
        if given is not None:
            raise SettingError("chat: got a chat template and a way to talk without, want one.")
        return None
    own: str = expect(model.metadata, TEMPLATE_KEY, str, "")
    return given or own or None


def introduce(s: Settings) -> None:
    """Say how to take turns."""
    lines = ["Ctrl-C takes the word from the model; where you may type, it ends the program."]
    if s.multiline_input:
        lines += ["A line that ends with \\ gives the word to the model."]
    else:
        lines += ["Return gives the word to the model; after \\ another line follows."]
    say("\n".join(f" - {line}" for line in lines) + "\n")


class Chat:
    """The turns of a conversation.

    Attributes:
        was_interrupted: Ctrl-C ended it, where the user could type.
    """

    def __init__(
        self, s: Settings, tokenizer: Tokenizer, writer: Writer, dialogue: Dialogue
    ) -> None:
        self.screen = Screen(tokenizer, s.color, s.special)
        self.was_interrupted = False
        self._settings = s
        self._tokenizer = tokenizer
        self._writer = writer
        self._dialogue = dialogue
        self._watch = Watch(dialogue.reverse_prompts, tokenizer)

    def talk(self, opening: list[int]) -> None:
        """Take turns until the input ends, or the context where it cannot go on."""
        users_turn = self._watch.sees(opening) or self._dialogue.user_begins
        while True:
            if users_turn and not self._ask():
                return
            if not self._answer() or self._settings.single_turn:
                return
            users_turn = True

    def _ask(self) -> bool:
        """Read what the user says; False at the end of the input."""
        writer = self._writer
        while True:
            try:
                text = self.screen.ask(self._dialogue.mark, self._settings.multiline_input)
            except KeyboardInterrupt:
                self.was_interrupted, text = True, None
            if text is None:
                self.screen.show("\n")
                return False
            if not text and (writer.tokens or writer.pending):
                return True  # the model goes on
            if not text:
                continue
            try:
                check_characters(text, self._tokenizer)
                turn = self._dialogue.turn(text)
            except YupanaError as error:  # no tokens for it, or a template refuses it
                say(f"yupana: {error}")
                continue
            break
        self.screen.show(self._dialogue.suffix)
        writer.sampler.reset()
        if turn.starts_over:
            writer.reread(turn.ids)
        else:
            writer.read(turn.ids)
        self._watch.sees(turn.ids)
        return True

    def _answer(self) -> bool:
        """Let the model write until its turn is over; False where the context is full."""
        left, said, end, is_reversed = self._settings.n_predict, "", None, False
        with CtrlC("") as ctrl_c:
            while left != 0 and not is_reversed and not ctrl_c.asked:
                token = self._writer.draw()
                if token is None:
                    say("\nthe context is full")
                    return False
                if token in self._tokenizer.ends:
                    end = token
                    break
                said += self.screen.token(token)
                left -= 1
                is_reversed = self._watch.sees([token])
        said += self.screen.finish()
        if not said.endswith("\n") and (not is_reversed or ctrl_c.asked):
            self.screen.show("\n")
        back = self._dialogue.answered(said, end)
        self._writer.read(back)
        self.screen.show(self._tokenizer.decode(back) if back else "")
        return True
