"""`bumble generate MODEL --prompt …`: samples from a model directory or a run's output directory."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from bumblecore_core import DataError, ModelError, RowError, one
from bumblecore_core.toolkit.terminal import echo, to_json
from bumblecore_plugins.commands.decoding import Sampling, continuations

SURROGATE = re.compile("[\ud800-\udfff]")
"""What stands for a byte of an argument that is not UTF-8, and can be escaped in JSON; no tokenizer takes it."""


@click.command()
@click.argument("model")
@click.option("--prompt", "prompts", multiple=True, help="A prompt; may be given several times.")
@click.option(
    "--prompts-file", type=click.Path(path_type=Path), help="One prompt a line, or .jsonl with 'prompt' keys."
)
@click.option("--chat", is_flag=True, help="The prompt is a user's message: apply the chat template.")
@click.option("--system", help="A system message for --chat.")
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Longest reply.")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option(
    "--top-p", type=click.FloatRange(min=0, max=1, min_open=True), default=1.0, show_default=True, help="Nucleus."
)
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True, help="Of the sampling.")
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True, help="Prompts at a time.")
@click.option("--trust-remote-code", is_flag=True, help="Run model code that lies in the model's directory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per prompt.")
def generate(
    model: str,
    prompts: tuple[str, ...],
    prompts_file: Path | None,
    chat: bool,
    system: str | None,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    batch_size: int,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Continue prompts with MODEL: a model or adapter directory, or the output directory of a run.

    With --chat, each prompt is a user's message and the model answers it.
    """
    if system is not None and not chat:
        raise click.UsageError("--system needs --chat.")
    texts = [*prompts, *(read_prompts(prompts_file) if prompts_file else ())]
    if not texts:
        raise click.UsageError("Give at least one --prompt, or a --prompts-file.")

    import torch

    from bumblecore_core.toolkit.adapters import tokenizer_source
    from bumblecore_core.toolkit.tokenizers import load_tokenizer, resolve_model_dir

    directory = resolve_model_dir(model)
    tokenizer = load_tokenizer(tokenizer_source(directory), trust_remote_code=trust_remote_code)
    encoded = encode_prompts(tokenizer, texts, chat=chat, system=system)
    lm = load_model(directory, trust_remote_code)
    stop = stop_ids(tokenizer, lm, chat=chat)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = stop[0] if stop else 0
        token = tokenizer.convert_ids_to_tokens(pad)
        echo(
            f"BC026 the tokenizer has no pad token: {token!r} fills up shorter prompts; attention does not see it",
            err=True,
        )
    show = echo if sys.stdout.isatty() else click.echo  # a pipe gets each reply unchanged
    torch.manual_seed(seed)
    note = partial(echo, err=True)
    sampling = Sampling(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, stop=tuple(stop), pad=pad)
    for text, ids in zip(texts, continuations(lm, encoded, sampling, batch_size, note), strict=True):
        finished = bool(ids) and ids[-1] in stop
        answer = tokenizer.decode(ids[:-1] if finished else ids, skip_special_tokens=True)
        if as_json:
            finish = "stop" if finished else "length"
            line = {"prompt": text, "text": answer, "tokens": len(ids), "finish": finish}
            echo(to_json(line))
        elif len(texts) == 1:
            show(answer)
        else:
            show(f"> {text}\n{answer}\n")


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: lines, or in a .jsonl the strings, or the values of the key `prompt`.

    Raises `DataError` BC061, BC003 (not UTF-8), BC001 (not JSON) or BC007 (no prompt in a line).
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = f"the prompts cannot be read: {error.strerror}"
        raise one(DataError, "BC061", problem, "correct the path", place=str(path), field="--prompts-file") from error
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 at byte {error.start}"
        raise one(DataError, "BC003", problem, "save it as UTF-8", place=str(path), field="--prompts-file") from error
    lines = [(number, line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line.rstrip("\r") for _, line in lines]
    return [_json_prompt(line, f"{path}:{number}") for number, line in lines]


def _json_prompt(line: str, place: str) -> str:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise one(DataError, "BC001", "not valid JSON", "write one JSON object a line", place=place) from error
    prompt = row.get("prompt") if isinstance(row, dict) else row
    if not isinstance(prompt, str):
        raise one(DataError, "BC007", "no prompt here", 'write {"prompt": "…"}', place=place, field="prompt")
    return prompt


def encode_prompts(tokenizer: Any, texts: Sequence[str], *, chat: bool, system: str | None) -> list[list[int]]:
    """Token ids of each prompt, as such text is trained. Raises `ModelError` BC022, or `DataError` BC020 (not UTF-8) or
    BC023."""
    from bumblecore_core.toolkit.templates import ChatTemplate
    from bumblecore_core.toolkit.tokenizers import wants_bos

    if any(not text.isascii() and SURROGATE.search(text) for text in (*texts, system or "")):
        raise one(DataError, "BC020", "a prompt that is not UTF-8", "write it in UTF-8", field="--prompt")
    if chat:
        template = ChatTemplate(tokenizer)
        before = [] if system is None else [{"role": "system", "content": system}]
        try:
            rendered = [template.render([*before, {"role": "user", "content": text}], prompt=True) for text in texts]
        except RowError as error:
            raise DataError([error.at("--prompt")]) from error
        encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in rendered]
    else:
        bos = [tokenizer.bos_token_id] if wants_bos(tokenizer) else []
        encoded = [bos + tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    if not all(encoded):
        raise one(DataError, "BC007", "an empty prompt", "write at least one token to continue", field="--prompt")
    return encoded


def load_model(directory: Path, trust_remote_code: bool) -> Any:
    """The causal language model of a directory (of an adapter's: its base with the adapter folded in) in its saved
    dtype, on the GPU where there is one, ready to sample. Raises `ModelError` BC064, also for a reward model."""
    import torch

    from bumblecore_core.toolkit import adapters
    from bumblecore_core.toolkit.scorers import refuse_scorer
    from bumblecore_core.toolkit.vision_language import language_model

    chain = adapters.adapter_chain(directory)
    refuse_scorer(*chain, fix="Name the language model that it was trained from", field="MODEL")
    model = adapters.load_model(directory, trust_remote_code=trust_remote_code)
    text = language_model(model)
    text.generation_config = model.generation_config
    return text.to("cuda" if torch.cuda.is_available() else "cpu")


def stop_ids(tokenizer: Any, model: Any, *, chat: bool) -> list[int]:
    """Ids that end a continuation: eos, what the model's own generation config names, and the chat's end of turn.

    Raises `ModelError` BC064 where the generation config names something else than ids. Ids that the model cannot
    produce, such as -1, are left out.
    """
    from bumblecore_core.toolkit.templates import ChatTemplate

    own = model.generation_config.eos_token_id
    named = own if isinstance(own, list) else [] if own is None else [own]
    if not all(isinstance(token, int) for token in named):
        problem, fix = "the eos_token_id of its generation config is not a token id", "Correct generation_config.json"
        raise one(ModelError, "BC064", problem, fix, place=str(model.name_or_path), field="MODEL")
    rows = model.get_input_embeddings().weight.shape[0]
    ids = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    ids += [token for token in named if 0 <= token < rows]
    ids += ChatTemplate(tokenizer).end_of_turn_ids() if chat else []
    return list(dict.fromkeys(ids))
