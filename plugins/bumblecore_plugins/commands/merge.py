"""`bumble merge ADAPTER OUT`: a plain model directory with the adapter's update folded into the base's weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click

from bumblecore_core import ModelError, RunError, one

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@click.command()
@click.argument("adapter")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--dtype",
    type=click.Choice(["auto", *DTYPES]),
    default="auto",
    show_default=True,
    help="Of the written weights; auto: as the base model's are stored.",
)
@click.option("--trust-remote-code", is_flag=True, help="Run model code that lies in the base model's directory.")
def merge(adapter: str, out: Path, dtype: str, trust_remote_code: bool) -> None:
    """Fold an adapter into its base model and write the result to OUT.

    ADAPTER is an adapter directory, or the output directory of a run that trained one. OUT then is a model directory as
    any other: weights, config, tokenizer and chat template. The sum is made in float32 and rounded once.
    """
    from bumblecore_core.toolkit.adapters import is_adapter, load_model, tokenizer_source
    from bumblecore_core.toolkit.tokenizers import load_tokenizer, resolve_model_dir

    if os.path.lexists(out):
        problem, fix = "there is something already", "Choose another OUT, or remove it first"
        raise one(RunError, "BC069", problem, fix, place=str(out), field="OUT")
    directory = resolve_model_dir(adapter, field="ADAPTER")
    if not is_adapter(directory):
        problem, fix = "this is a whole model, with no adapter to fold in", "Use it as it is"
        raise one(ModelError, "BC064", problem, fix, place=str(directory), field="ADAPTER")
    tokenizer = load_tokenizer(tokenizer_source(directory), trust_remote_code=trust_remote_code)
    import torch

    chosen = None if dtype == "auto" else getattr(torch, DTYPES[dtype])
    model = load_model(
        directory, dtype=chosen, trust_remote_code=trust_remote_code, pad_token_id=tokenizer.pad_token_id
    )
    write(out, model, tokenizer)
    count, what = model.num_parameters(), str(model.dtype).removeprefix("torch.")
    click.echo(f"wrote {out}: {count:,} parameters in {what}")


def write(out: Path, model: Any, tokenizer: Any) -> None:
    """Writes model and tokenizer beside `out`, syncs them, and renames. Raises `RunError` BC042."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    temporary = out.with_name(f".{out.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        temporary.rename(out)
        _sync(out.absolute().parent)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) or "(os error " in str(error):  # of libraries in Rust
            problem, fix = f"the model cannot be written: {error}", "Check the disk and the directory's permissions"
            raise one(RunError, "BC042", problem, fix, place=str(out), field="OUT") from error
        raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
