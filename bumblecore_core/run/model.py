"""Building a model from local files alone: random weights from a config.json, or the trained ones beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bumblecore_core.errors import BumbleError, ConfigError, ModelError, Problem, one
from bumblecore_core.run.compute_dtypes import prepare_cast
from bumblecore_core.run.skeleton import without_memory
from bumblecore_core.run.weights import stored_dtype
from bumblecore_core.toolkit.adapters import adapter_chain, fold_in
from bumblecore_core.toolkit.library_errors import library_message
from bumblecore_core.toolkit.loaded_weights import check_loaded_weights
from bumblecore_core.toolkit.model_config import read_model_config, refuse_encoder
from bumblecore_core.toolkit.new_tokens import resize_embeddings, vocabulary_size
from bumblecore_core.toolkit.packages import MODEL_LIBRARIES, require_supported
from bumblecore_core.toolkit.quiet import quiet_transformers
from bumblecore_core.toolkit.scorers import SCORE_WEIGHT, make_scorer_config, names_scorer, refuse_scorer, score_of
from bumblecore_core.toolkit.seeds import derive_seed
from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_core.toolkit.tying import correct_tying
from bumblecore_core.toolkit.vision_language import auto_class, prepare_for_text
from bumblecore_core.values import ModelHead

SHOWN_KEYS = 5
LANGUAGE_MODEL_HEADS = {"lm_head.weight", "lm_head.bias", "embed_out.weight"}


def load_config(directory: Path, *, trust_remote_code: bool = False, warnings: list[str] | None = None) -> Any:
    """The transformers config of `directory`, or of the base of the adapter in it. `warnings`: what was corrected in it
    is appended (see `tying.correct_tying`). Raises `ModelError` BC064, such as for an unknown model type or an encoder,
    and BC061 for an adapter whose base is not there; `RunError` BC094 for an unsupported version of a library that
    loads models."""
    require_supported(*MODEL_LIBRARIES)
    from transformers import AutoConfig

    directory, _ = adapter_chain(directory)
    read_model_config(directory, "model.path")
    with _reported(directory / "config.json"):
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=trust_remote_code)
    refuse_encoder(config, directory, "model.path")
    if (warning := correct_tying(config, directory)) is not None and warnings is not None:
        warnings.append(warning)
    return config


def build_model(
    *,
    directory: Path,
    from_config: bool,
    attention: str,
    seed: int,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    dtype: torch.dtype | None = None,
    compute_dtype: torch.dtype | None = None,
    head: ModelHead = "language_model",
    pad_token_id: int | None = None,
    skeleton: bool = False,
    rows: int | None = None,
) -> Any:
    """A causal language model on the CPU, in evaluation mode when loaded; the engine moves and casts it.

    `head="score"`: a reward model (see `toolkit.scorers`), whose batches are filled up with `pad_token_id`. Loaded from
    a language model's directory it loses that head and gets a score of random weights, from the stream of `seed` too.

    `from_config`: random float32 weights from a stream of `seed`, which leaves the global generator as it was; else the
    directory's own weights, in `dtype` or in one that loses nothing (`weights.stored_dtype`). Where `directory` holds
    an adapter, its base is loaded and the adapter folded in, which wants float32. `compute_dtype`: what weights
    will be cast to (see `compute_dtypes.prepare_cast`). `attention` is a name that transformers knows (see
    `attention.select_attention`); it is not written to a saved config.json. `skeleton`: the same model without weights:
    parameters have shape and dtype and no memory. `rows`: the embeddings get as many rows where they have fewer (see
    `new_tokens.resize_embeddings`).

    Raises `ModelError`: BC029 (a weight file is missing), BC030 (missing, unexpected, misshapen or wrongly loaded
    weights), BC064 (anything else that keeps the model from loading), and `ConfigError` BC039 where the model has no
    gradient checkpointing.
    """
    config = load_config(directory, trust_remote_code=trust_remote_code)
    base, adapters = adapter_chain(directory)
    if head == "score":
        fresh_score = not names_scorer(config.architectures)
        make_scorer_config(config, pad_token_id)
    else:
        fresh_score = False
        refuse_scorer(base, adapters, fix="Start this stage from a language model", field="model.path")
    options: dict[str, Any] = {"attn_implementation": attention, "trust_remote_code": trust_remote_code}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        if skeleton:
            _set_rows(config, rows)
            dtype = dtype or torch.float32
            model = without_memory(lambda: _from_config(config, directory, head, dtype=dtype, **options))
        elif from_config:
            _set_rows(config, rows)
            model = _from_config(config, directory, head, **options)
        else:
            dtype = dtype or stored_dtype(directory)
            model = _from_weights(config, base, head, fresh_score=fresh_score, dtype=dtype, **options)
        if compute_dtype is not None:
            prepare_cast(
                model,
                loaded_in=torch.float32 if from_config else dtype,
                compute_dtype=compute_dtype,
                without_weights=lambda dtype: without_memory(
                    lambda: _from_config(config, directory, head, dtype=dtype, **options)
                ),
            )
    if not from_config and not skeleton:
        for adapter in adapters:
            model = fold_in(model, adapter)
        resize_embeddings(model, rows)
    prepare_for_text(model)
    if gradient_checkpointing:
        _enable_checkpointing(model)
    return model


def meta_model(
    directory: Path,
    *,
    trust_remote_code: bool = False,
    head: ModelHead = "language_model",
    rows: int | None = None,
) -> Any:
    """The model without memory for its weights (meta device): for counting, planning, and finding modules by name.
    `rows`: see `build_model`."""
    config = load_config(directory, trust_remote_code=trust_remote_code)
    _set_rows(config, rows)
    if head == "score":
        make_scorer_config(config, None)
    with torch.device("meta"):
        model = _from_config(config, directory, head, attn_implementation="eager", trust_remote_code=trust_remote_code)
    prepare_for_text(model)
    return model


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Numbers of parameters, each tied one counted once. `embedding`: in the input embedding."""

    total: int
    trainable: int
    embedding: int


def parameter_counts(model: Any) -> ParameterCounts:
    """Counts of a model on any device, the meta device included."""
    parameters = list(model.parameters())
    return ParameterCounts(
        total=sum(whole_shape(parameter).numel() for parameter in parameters),
        trainable=sum(whole_shape(parameter).numel() for parameter in parameters if parameter.requires_grad),
        embedding=sum(whole_shape(parameter).numel() for parameter in model.get_input_embeddings().parameters()),
    )


def check_positions(config: Any, longest: int) -> tuple[str, ...]:
    """A warning where the longest example has more tokens than the model was made for. Raises `ConfigError` BC039 where
    the model has no positions beyond (rotary ones can be computed for any length, a learned table ends)."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int) or longest <= positions:
        return ()
    problem = f"the longest example has {longest:,} tokens, the model's config.json says {positions:,} positions"
    if getattr(text, "rope_parameters", None) or getattr(text, "rope_theta", None):
        return (problem,)
    raise one(ConfigError, "BC039", problem, f"Set it to {positions} or less", field="data.max_length")


def _set_rows(config: Any, rows: int | None) -> None:
    """Has a config describe embeddings of `rows` rows, where it describes fewer."""
    if rows is not None and rows > (vocabulary_size(config) or 0):
        config.get_text_config().vocab_size = rows


def _from_config(
    config: Any, directory: Path, head: ModelHead, *, dtype: torch.dtype | None = torch.float32, **options: Any
) -> Any:
    with _reported(directory / "config.json"):
        model = auto_class(config, head).from_config(config, dtype=dtype, **options)
    _require_score(model, head, directory)
    return model


def _from_weights(config: Any, directory: Path, head: ModelHead, *, fresh_score: bool, **options: Any) -> Any:
    with _reported(directory):
        model, info = auto_class(config, head).from_pretrained(
            directory,
            config=config,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, with all the others
            **options,
        )
    _require_score(model, head, directory)
    _check_loaded(info, directory, fresh_score=fresh_score)
    check_loaded_weights(model, directory, fresh=[SCORE_WEIGHT] if fresh_score else [])
    return model


def _require_score(model: Any, head: ModelHead, directory: Path) -> None:
    if head == "score" and score_of(model) is None:
        problem = f"{type(model).__name__} has no module 'score' that could make it a reward model"
        fix = "Use a decoder model such as llama or qwen3"
        raise one(ModelError, "BC064", problem, fix, place=str(directory), field="model.path")


def _check_loaded(info: dict[str, Any], directory: Path, *, fresh_score: bool) -> None:
    """Tied weights that are absent on purpose are not in transformers' list of missing ones. `fresh_score`: the score
    takes the place of the language model's head."""
    wrong = {
        "missing": sorted(set(info["missing_keys"]) - ({SCORE_WEIGHT} if fresh_score else set())),
        "unexpected": sorted(set(info["unexpected_keys"]) - (LANGUAGE_MODEL_HEADS if fresh_score else set())),
        "misshapen": [f"{name} {tuple(file)} for {tuple(own)}" for name, file, own in sorted(info["mismatched_keys"])],
    }
    problems = [
        Problem(
            code="BC030",
            problem=f"{len(keys)} {kind} weights: {', '.join(keys[:SHOWN_KEYS])}" + " …" * (len(keys) > SHOWN_KEYS),
            fix="The files do not belong to this config.json: check model.path, or copy the model again",
            place=str(directory),
            field="model.path",
        )
        for kind, keys in wrong.items()
        if keys
    ]
    if problems:
        raise ModelError(problems)


def _enable_checkpointing(model: Any) -> None:
    if not getattr(model, "supports_gradient_checkpointing", False):
        problem = f"{type(model).__name__} has no gradient checkpointing"
        raise one(ConfigError, "BC039", problem, "Set it to false", field="model.gradient_checkpointing")
    # Reentrant checkpointing would lose gradients of models whose inputs need none (frozen embeddings).
    if hasattr(model, "activation_checkpointing_enable"):  # the name in newer versions of transformers
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


@contextmanager
def _reported(place: Path) -> Iterator[None]:
    """Quiets transformers (its load report is ours to give) and turns whatever it raises into a `ModelError` BC064."""
    with quiet_transformers():
        try:
            yield
        except BumbleError:
            raise
        except Exception as error:
            raise _unloadable(error, place) from error


def _unloadable(error: Exception, place: Path) -> BumbleError:
    text = str(error).strip()
    if "trust_remote_code" in text or "contains custom code" in text:
        problem = "the model brings its own code, which is not run unless you say so"
        fix = "Read that code, then set model.trust_remote_code to true"
        return one(ModelError, "BC064", problem, fix, place=str(place), field="model.trust_remote_code")
    if "Unrecognized configuration class" in text:
        what = "sequence classification" if "SequenceClassification" in text else "causal language model"
        problem, fix = f"this model type has no {what}", "Use a decoder model such as llama or qwen3"
    else:
        problem = library_message(error)
        fix = "Check the model's files, and that your version of transformers knows this model type"
    return one(ModelError, "BC064", problem, fix, place=str(place), field="model.path")
