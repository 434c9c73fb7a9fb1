"""Tokenizers and model directories: loading from local files, fingerprints, and encoding with exact offsets."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bumblecore_core.errors import BumbleError, ModelError, did_you_mean, one
from bumblecore_core.toolkit.adapters import is_adapter
from bumblecore_core.toolkit.json_files import read_json_object
from bumblecore_core.toolkit.library_errors import library_message
from bumblecore_core.toolkit.limits import Exceeded, piece
from bumblecore_core.toolkit.regular_files import require_readable_directory

TEMPLATE_KEY = "model.chat_template"


def resolve_model_dir(path: str | Path, *, field: str = "model.path") -> Path:
    """The directory of a model or of an adapter: `path` itself where its config.json or adapter_config.json lies, or
    `final/` of a run's output directory.

    A path to a config.json stands for its directory. Raises `ModelError` BC061 (no such path, with the nearest name
    beside it; a file that is not a regular one) or BC064 (a directory without a model). `field`: the config key that
    holds the path.
    """
    directory = Path(os.path.expanduser(path))
    if directory.name == "config.json" and os.path.isfile(directory):
        directory = directory.parent
    if not os.path.isdir(directory):  # unlike Path.is_dir, false for a name that is too long
        raise _missing(directory, field, "a directory")
    for candidate in (directory, directory / "final"):
        if (candidate / "config.json").is_file() or is_adapter(candidate):
            require_readable_directory(candidate, field)
            return candidate
    if (directory / "run.yaml").exists():
        problem, fix = "this run has saved no final model", "let the run finish, with checkpoint.save_last: true"
    else:
        problem, fix = "no config.json here, nor in final/", "name a model directory or a finished run's output_dir"
    raise one(ModelError, "BC064", problem, fix, place=str(directory), field=field)


def load_tokenizer(path: str | Path, *, chat_template: str | None = None, trust_remote_code: bool = False) -> Any:
    """The fast tokenizer in directory `path` (or in its `final/`), read from local files only.

    `chat_template`: a .jinja file that replaces the tokenizer's own. Raises `ModelError` BC061 (missing path or file),
    BC064 (not a tokenizer, or one without a fast implementation), BC023 (the template is not valid Jinja), BC092
    (compiling it takes too much time or memory).
    """
    directory = Path(os.path.expanduser(path))
    if not os.path.isdir(directory):  # unlike Path.is_dir, false for a name that is too long
        raise _missing(directory, "model.tokenizer", "a directory")
    if not (directory / "tokenizer_config.json").exists() and (directory / "final" / "tokenizer_config.json").exists():
        directory = directory / "final"
    if not any((directory / name).exists() for name in ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")):
        problem = "this directory holds no tokenizer (tokenizer.json, tokenizer_config.json or tokenizer.model)"
        raise one(
            ModelError,
            "BC064",
            problem,
            "set model.tokenizer to one that does",
            place=str(directory),
            field="model.tokenizer",
        )
    require_readable_directory(directory, "model.tokenizer")
    from transformers import AutoTokenizer

    for name in ("tokenizer_config.json", "tokenizer.json"):
        if (directory / name).exists():
            read_json_object(directory / name, "model.tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(directory), local_files_only=True, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        problem = f"the tokenizer cannot be loaded: {library_message(error)}"
        fix = "check that its files are whole; model.trust_remote_code: true if it ships its own code"
        raise one(ModelError, "BC064", problem, fix, place=str(directory), field="model.tokenizer") from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise one(
            ModelError,
            "BC064",
            "this tokenizer has no fast implementation, so it cannot say which characters a token covers",
            "convert it to a tokenizer.json",
            place=str(directory),
            field="model.tokenizer",
        )
    _try_out(tokenizer, directory)
    legacy = directory / "chat_template.json"  # of a processor, where older multimodal checkpoints have the template
    if not tokenizer.chat_template and legacy.is_file():
        template = read_json_object(legacy, "model.tokenizer").get("chat_template")
        tokenizer.chat_template = template if isinstance(template, str) else None
    if chat_template is not None:
        tokenizer.chat_template = _read_template(Path(os.path.expanduser(chat_template)))
    return tokenizer


def _try_out(tokenizer: Any, directory: Path) -> None:
    """Encodes and decodes a word: the files of a tokenizer that loads may still hold values of the wrong type, which
    fail where they are used. Raises `ModelError` BC064."""
    try:
        ids = tokenizer("a", add_special_tokens=False).input_ids
        tokenizer.decode(tokenizer("a").input_ids, skip_special_tokens=True)
        tokenizer.convert_ids_to_tokens(ids)
        exact_encoder(tokenizer).encode("a", add_special_tokens=False)
        tokenizer_fingerprint(tokenizer)
    except Exception as error:
        problem = f"the tokenizer loads but cannot be used: {library_message(error)}"
        fix = "check the values in tokenizer_config.json and tokenizer.json"
        raise one(ModelError, "BC064", problem, fix, place=str(directory), field="model.tokenizer") from error
    if tokenizer.chat_template is not None and not isinstance(tokenizer.chat_template, str | dict):
        problem, fix = "the tokenizer's chat template is not a text", "check chat_template in tokenizer_config.json"
        raise one(ModelError, "BC064", problem, fix, place=str(directory), field="model.tokenizer")


def require_chat_template(tokenizer: Any) -> None:
    """Raises `ModelError` BC022, naming the config key, where the tokenizer has no chat template."""
    if not tokenizer.chat_template:
        raise one(
            ModelError,
            "BC022",
            "the tokenizer has no chat template",
            f"set {TEMPLATE_KEY} to a .jinja file, or use the tokenizer of a chat model",
            field=TEMPLATE_KEY,
        )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """SHA-256 (hex) over all that decides the ids: the serialized fast tokenizer, special tokens, chat template.

    Padding and truncation are left out: calls change them in passing, and no token store depends on them.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["padding"] = state["truncation"] = None
    parts = (state, tokenizer.special_tokens_map, special_tokens(tokenizer), tokenizer.chat_template)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(json.dumps(part, sort_keys=True, ensure_ascii=True).encode())
    return digest.hexdigest()


def exact_encoder(tokenizer: Any) -> Tokenizer:
    """A copy of the fast tokenizer whose offsets cover each token's characters without a gap.

    Its post-processor is gone: that only adds special tokens, which templates write themselves, and trims white space
    from the offsets of byte-level tokens, which would hide a token that reaches across a span's boundary. Padding and
    truncation, which are state of the original, are off.
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["post_processor"] = state["padding"] = state["truncation"] = None
    return Tokenizer.from_str(json.dumps(state))


def text_encoder(tokenizer: Any) -> Tokenizer:
    """The same, but the texts of special tokens are tokenized as any other text."""
    encoder = exact_encoder(tokenizer)
    encoder.encode_special_tokens = True
    return encoder


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Text -> id of every special token: the named ones (eos, bos, …) and those added with the mark `special`."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | {text: tokenizer.convert_tokens_to_ids(text) for text in tokenizer.all_special_tokens}


def wants_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its BOS token before a text."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a").input_ids[:1] == [bos]


def _read_template(path: Path) -> str:
    if not os.path.isfile(path):
        raise _missing(path, TEMPLATE_KEY, "a file")
    try:
        template = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise one(
            ModelError,
            "BC003",
            f"not UTF-8 at byte {error.start}",
            "save the template as UTF-8",
            place=str(path),
            field=TEMPLATE_KEY,
        ) from error
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        with piece():
            render_jinja_template([], chat_template=template)  # nothing to render: compiles it
    except Exceeded as error:
        raise over_limit(f"compiling the chat template took {error}", place=str(path)) from None
    except Exception as error:
        place = f"{path}:{line}" if (line := getattr(error, "lineno", None)) else str(path)
        raise one(
            ModelError,
            "BC023",
            f"the chat template is not valid Jinja: {library_message(error)}",
            "correct the template",
            place=place,
            field=TEMPLATE_KEY,
        ) from error
    return template


def over_limit(problem: str, *, place: str = "") -> BumbleError:
    """BC092 for a chat template."""
    fix = f"Correct the template (does every loop in it end?), or set {TEMPLATE_KEY} to another one"
    return one(ModelError, "BC092", problem, fix, place=place, field=TEMPLATE_KEY)


def _missing(path: Path, key: str, what: str) -> BumbleError:
    if os.path.exists(path):
        return one(ModelError, "BC061", f"this is not {what}", f"name {what}", place=str(path), field=key)
    parent = path.parent
    exists = os.path.isdir(parent)
    names = os.listdir(parent) if exists and os.access(parent, os.R_OK) else []
    fix = did_you_mean(path.name, names) if exists else f"{parent} does not exist either"
    return one(
        ModelError,
        "BC061",
        f"no such path ({what} is needed; nothing is looked up on the network)",
        fix,
        place=str(path),
        field=key,
    )
