"""A chat template is tried, not searched: what writes anything but ChatML is refused with the difference."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinytorch.pretrained.chat_template import PROBE, chatml, default_system, render

pytestmark = pytest.mark.llm  # jinja2 comes with the extra

TOKENS = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
PLAIN = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}"
    "{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_chatml_is_accepted_and_its_default_system_found():
    assert default_system(PLAIN, TOKENS) == ""
    assert default_system(SMOLLM2, TOKENS) == (
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: "{{ bos_token }}" + t, "'<s>"),
        (lambda t: t.replace("message['content']", "message['content'] | trim"), "a system"),
        (lambda t: t.replace("message['content']", "message['content'].split('</think>')[-1]"), "<think>"),
        (lambda t: t.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif"), "<think>"),
        (lambda t: t.replace("'<|im_end|>' + '\n'", "'<|im_end|>'"), "an answer|a question|im_start"),
        (lambda t: t.replace("message['role']", "'user'"), "user"),
        (lambda t: "<|im_start|><|im_end|>", "ChatML has"),
        (lambda t: "", "ChatML has"),
        (lambda t: "{{ raise_exception('no system message') }}", "no system message"),
        (lambda t: "{% for", "cannot be read"),
        (lambda t: "{{ ''.__class__.__mro__ }}", "cannot be read"),
        (lambda t: "{{ range(10**9) | list }}", "cannot be read"),
        (lambda t: t + " " * 100_000, "100,"),
    ],
)
def test_what_a_template_does_besides_is_refused(change, words):
    template = change(SMOLLM2)
    assert template != SMOLLM2
    with pytest.raises(ValueError, match=words):
        default_system(template, TOKENS)


@given(
    texts=st.lists(st.text(max_size=12), min_size=1, max_size=5), system=st.booleans(), answer=st.booleans()
)
@settings(max_examples=15, deadline=None)
def test_what_is_accepted_writes_the_same_for_any_conversation(texts, system, answer):
    roles = ["system"] * system + ["user", "assistant"] * 3
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    assert render(PLAIN, messages, answer, TOKENS) == chatml(messages, answer)
    if system:
        assert render(SMOLLM2, messages, answer, TOKENS) == chatml(messages, answer)
    assert PROBE[0]["role"] == "system"
