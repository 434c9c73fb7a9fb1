"""Chat templates and regular expressions that take too much time or memory are ended, and nothing else is."""

from __future__ import annotations

import itertools
import pickle
import resource
import signal

import pytest
from templates import SHAPES, tokenizer_for

from bumblecore_core import ChatSample, ModelError
from bumblecore_core.run.blame import Plugin
from bumblecore_core.run.data.encode import LengthPolicy, encode_chunks
from bumblecore_core.run.data.rows import Chunk
from bumblecore_core.toolkit import limits, templates
from bumblecore_core.toolkit.chat import ChatEncoder
from bumblecore_core.toolkit.chat_text import MOST_TURNS
from bumblecore_core.toolkit.templates import ChatTemplate
from bumblecore_core.toolkit.tokenizers import load_tokenizer
from bumblecore_plugins.stages import bumble_stages
from workbench import make_tokenizer

SFT = Plugin("stages", "sft", "bumblecore_plugins.stages")
CHATML = next(shape for shape in SHAPES if shape.name == "chatml")
SOUND = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLED = "{% set s = namespace(x='ab') %}{% for a in range(60) %}{% set s.x = s.x + s.x %}{% endfor %}"
TIME, MEMORY = "more than 0.2 seconds of CPU time", "more than 256 MiB of memory"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Smaller limits. What they change in the process is put back."""
    monkeypatch.setattr(limits, "TICK_SECONDS", 0.2)
    monkeypatch.setattr(limits, "MEMORY_BYTES", 256 << 20)
    before = state()
    yield
    assert state() == before


def state():
    return (
        signal.getsignal(signal.SIGVTALRM),
        signal.getitimer(signal.ITIMER_VIRTUAL),
        resource.getrlimit(resource.RLIMIT_AS),
    )


def chat(*contents: str) -> ChatSample:
    roles = ("user", "assistant") * len(contents)
    return ChatSample(messages=tuple({"role": r, "content": c} for r, c in zip(roles, contents, strict=False)))


@pytest.mark.parametrize(
    ("template", "limit"),
    [
        (ENDLESS, TIME),
        ("{{ 10 ** (10 ** 8) }}", TIME),  # one operation, which the compiler tries to fold
        ("{{ 10 ** (messages | length * 10 ** 8) }}", TIME),
        ("{{ 5 | round(-1000000000) }}", TIME),
        (DOUBLED, MEMORY),
        ("{{ 'a' * 10000000000 }}", MEMORY),
        ("{{ '%1000000000d' % 1 }}", MEMORY),
    ],
)
def test_a_template_that_does_not_end_or_takes_all_memory(template, limit):
    with pytest.raises(ModelError, match=f"BC092 model.chat_template: the chat template took {limit}"):
        ChatTemplate(tokenizer_for(CHATML, template=template)).render([{"role": "user", "content": "a"}])


def test_a_template_that_depends_on_the_row():
    template = SOUND + "{% if messages[0].content == 'x' %}" + ENDLESS + "{% endif %}"
    encoder = ChatEncoder(tokenizer_for(CHATML, template=template))
    assert len(encoder([chat("a", "b")] * 3)) == 3
    with pytest.raises(ModelError, match="BC092"):
        encoder([chat("a", "b"), chat("x", "b"), chat("a", "b")])


def test_a_text_that_is_too_long(monkeypatch):
    monkeypatch.setattr(templates, "LARGEST_TEXT", 1000)
    template = ChatTemplate(tokenizer_for(CHATML, template=SOUND + "{{ 'a' * 990 }}"))
    with pytest.raises(ModelError, match=r"BC092 .*gives 1,0\d\d characters"):
        template.render([{"role": "user", "content": "a"}])


def test_the_template_of_a_file_is_compiled_within_the_limits(tmp_path):
    make_tokenizer(tmp_path)
    file = tmp_path / "slow.jinja"
    file.write_text("{{ 10 ** (10 ** 8) }}")  # the compiler folds it
    with pytest.raises(ModelError) as caught:
        load_tokenizer(tmp_path, chat_template=str(file))
    assert f"BC092 {file} model.chat_template: compiling the chat template took {TIME}" in str(caught.value)


def test_many_quick_pieces_may_take_longer_than_one():
    with limits.limited():
        for _ in range(60):
            with limits.piece():
                sum(range(400_000))


@pytest.mark.parametrize(
    ("work", "limit"),
    [(lambda: [None for _ in itertools.repeat(1) if False], TIME), (lambda: bytearray(1 << 40), MEMORY)],
)
def test_limits_hold_for_a_piece_alone(work, limit):
    with pytest.raises(limits.Exceeded, match=limit), limits.piece():
        work()


def test_a_conversation_of_very_many_turns_is_refused():
    encoder = ChatEncoder(tokenizer_for(CHATML, template=SOUND))
    (entry,) = encoder([chat(*["a", "b"] * (MOST_TURNS + 1))])
    assert entry.problem.code == "BC091"
    last = ChatEncoder(tokenizer_for(CHATML, template=SOUND), train_on="last")
    assert not isinstance(last([chat(*["a", "b"] * (MOST_TURNS + 1))])[0], Exception)


class Factory:
    """Makes the stage in a worker, with this module's limits."""

    def __init__(self, template: str) -> None:
        self.template = template

    def __call__(self):
        from bumblecore_core.protocols import StageContext

        limits.TICK_SECONDS = 0.2
        record = next(record for record in bumble_stages() if record.name == "sft")
        context = StageContext(tokenizer=tokenizer_for(CHATML, template=self.template), max_length=64, strict=False)
        return record.build(options=record.options(), context=context)


@pytest.mark.slow
def test_the_limits_hold_in_processes_that_tokenize():
    factory = Factory(SOUND + "{% if messages[0].content == 'x' %}" + ENDLESS + "{% endif %}")
    chunks = [Chunk(source=0, samples=[chat(text, "b")], lines=[1], rows=1) for text in ("a", "x", "a")]
    with pytest.raises(ModelError, match="BC092") as caught:
        list(
            encode_chunks(
                chunks,
                stage=factory(),
                plugin=SFT,
                num_proc=2,
                lengths=LengthPolicy(max_length=1024),
                make_stage=factory,
            )
        )
    assert pickle.loads(pickle.dumps(caught.value)).problems[0].code == "BC092"
