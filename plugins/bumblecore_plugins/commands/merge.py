"""`bumble merge ADAPTER OUT`: a plain model directory with the adapter's update folded into the base's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bumblecore_core import ModelError, one
from bumblecore_core.toolkit.generation import save_model
from bumblecore_core.toolkit.outputs import MODEL_OUTPUT, check_output_directory, force_option, write_output_directory
from bumblecore_core.toolkit.terminal import echo

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
@force_option
def merge(adapter: str, out: Path, dtype: str, trust_remote_code: bool, force: bool) -> None:
    """Fold an adapter into its base model and write the result to OUT.

    ADAPTER is an adapter directory, or the output directory of a run that trained one. OUT then is a model directory as
    any other: weights, config, tokenizer and chat template. The sum is made in float32 and rounded once.
    """
    from bumblecore_core.toolkit.adapters import is_adapter, load_model, tokenizer_source
    from bumblecore_core.toolkit.processor_files import processor_files
    from bumblecore_core.toolkit.tokenizers import load_tokenizer, resolve_model_dir

    check_output_directory(out, force=force, field="OUT")
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
    write(out, model, tokenizer, processor_files(directory))
    count, what = model.num_parameters(), str(model.dtype).removeprefix("torch.")
    echo(f"wrote {out}: {count:,} parameters in {what}")


def write(out: Path, model: Any, tokenizer: Any, files: tuple[Path, ...]) -> None:
    """Writes model and tokenizer, and copies processor files. Raises `RunError` BC042 or BC045."""
    from transformers.utils import logging

    from bumblecore_core.toolkit.processor_files import copy_processor_files

    logging.disable_progress_bar()

    def save(directory: Path) -> None:
        save_model(model, directory)
        tokenizer.save_pretrained(directory)
        copy_processor_files(files, directory, tokenizer)

    write_output_directory(out, save, replaces=MODEL_OUTPUT, field="OUT")
