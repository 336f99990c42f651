"""Chat templates as models bring them: what they render, and what they may not do."""

import re
import sys
from datetime import datetime

import pytest

from yupana.graphlib.errors import FileFormatError, SettingError
from yupana.models.chat_template import CHATML, ChatTemplate

HELLO = [{"role": "user", "content": "Hello"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    *HELLO,
    {"role": "assistant", "content": " Hi! "},
    {"role": "user", "content": "Bye"},
]
WORDS = {"bos_token": "<s>", "eos_token": "</s>"}

LLAMA_2 = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}
    {%- set rest = messages[1:] %}
{%- else %}
    {%- set system, rest = '', messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate user/assistant') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- bos_token + '[INST] ' + (system if loop.first else '') + message['content'].strip() }}
        {{- ' [/INST]' }}
    {%- else %}
        {{- ' ' + message['content'].strip() + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
""".strip()


def test_chatml():
    assert ChatTemplate(CHATML).render(TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n Hi! <|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert not ChatTemplate(CHATML).render(TALK, False).endswith("assistant\n")


def test_a_template_in_the_style_of_llama_2():
    template = ChatTemplate(LLAMA_2, WORDS)
    assert template.render(TALK) == (
        "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHello [/INST] Hi! </s><s>[INST] Bye [/INST]"
    )
    with pytest.raises(SettingError, match=r"refuses .* \['user', 'user'\], .*must alternate"):
        template.render(HELLO * 2)


def test_blocks_take_their_lines_with_them():
    source = (
        "{% for m in messages %}\n    {% if true %}\n{{ m.content }}\n    {% endif %}\n{% endfor %}"
    )
    assert ChatTemplate(source).render(HELLO) == "Hello\n"


def test_the_surroundings_are_those_of_transformers():
    def render(source, **words):
        return ChatTemplate(source, words).render([{"role": "user", "content": "ñ<&'"}])

    assert render("{{ messages[0] | tojson }}") == '{"role": "user", "content": "ñ<&\'"}'
    assert render("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}") == '{\n "b": 1,\n "a": 2\n}'
    year = datetime.now().year
    assert render("{{ strftime_now('%Y') }}") in (str(year), str(year + 1))
    loop = "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
    assert render(loop) == "01"
    assert render("a{% generation %}b{% endgeneration %}c") == "abc"
    assert render("{% if tools %}x{% endif %}{{ eos_token }}", eos_token="</s>") == "</s>"
    namespace = "{% set n = namespace(x=1) %}{% set n.x = 2 %}{{ n.x }}"
    assert render(namespace) == "2"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{% for i in range(10**9) %}{% endfor %}",
        "{{ messages[5].content.x }}",
        "{{ 1 / 0 }}",
        "{% include 'other' %}",
    ],
)
def test_what_leaves_the_sandbox_or_fails_is_one_clear_error(source):
    with pytest.raises(SettingError, match=r"^chat template: it fails: got \w+: .*[^.]\. Pass"):
        ChatTemplate(source).render(HELLO)


def test_what_is_no_template_is_refused_with_its_line():
    with pytest.raises(FileFormatError, match=r"line 2: got .*Expected an expression"):
        ChatTemplate("fine\n{% if %}")


def test_without_jinja_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SettingError, match=re.escape("Run `pip install jinja2`, or chat without")):
        ChatTemplate("x")
