"""The tensors of an adapter: which ones are saved under which name, and how they are read into a PEFT model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bumblecore_core.errors import BumbleError, ModelError, Problem, one
from bumblecore_core.toolkit.adapter_checks import reading
from bumblecore_core.toolkit.json_files import read_json_object
from bumblecore_core.toolkit.library_errors import library_message

if TYPE_CHECKING:
    import torch

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
BASE_KEY = "base_model_name_or_path"
SHOWN = 5


@contextmanager
def quietly() -> Iterator[None]:
    """Without PEFT's warnings: what they warn of (another base, tied weights) is checked here, with better words."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def peft_errors(directory: Path, field: str) -> Iterator[None]:
    """Without PEFT's warnings, and with what it raises as `ModelError` BC064: a config that PEFT could read may still
    hold values of any type."""
    try:
        with quietly():
            yield
    except BumbleError:
        raise
    except Exception as error:
        problem, place = f"PEFT cannot use this adapter: {library_message(error)}", str(directory / ADAPTER_CONFIG)
        raise one(ModelError, "BC064", problem, "Check that the file is whole", place=place, field=field) from error


def named_base(directory: Path, *, field: str = "model.path") -> str:
    """The base model that the adapter of `directory` names; empty where it names none. Raises `ModelError` BC064."""
    return str(read_json_object(directory / ADAPTER_CONFIG, field).get(BASE_KEY) or "")


def saved_names(model: Any) -> dict[str, str]:
    """The tensors of the PEFT `model` that training changes: name in `model.state_dict()` to name in the adapter's
    file. These are all trainable parameters, and the buffers of modules that are trained in full.

    Raises `ModelError` BC103 for a trainable parameter that PEFT's file format has no place for.
    """
    files = {name: file for file, name in _peft_names(model).items()}
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if parameter.requires_grad:
            aliases.setdefault(id(parameter), []).append(name)
    lost = [names[0] for names in aliases.values() if not any(name in files for name in names)]
    if lost:
        problem = f"PEFT's file format has no place for the trained parameter {', '.join(lost[:SHOWN])}"
        raise one(ModelError, "BC103", problem, "Leave it out of the adapter", field="adapter")
    trained = {name for names in aliases.values() for name in names}
    trained |= {name for name, _ in model.named_buffers() if ".modules_to_save." in name}
    return {name: file for name, file in files.items() if name in trained}


def token_parameters(model: Any) -> list[torch.nn.Parameter]:
    """The embeddings, and their trained rows, of a PEFT model with `trainable_token_indices`: each pass puts the rows
    into a copy of the embedding, and calls neither."""
    from peft.utils.other import TrainableTokensWrapper

    wrappers = [module for module in model.modules() if isinstance(module, TrainableTokensWrapper)]
    return list({id(p): p for wrapper in wrappers for p in wrapper.parameters()}.values())


def read_weights(directory: Path, *, field: str = "model.path") -> dict[str, torch.Tensor]:
    """The saved tensors of an adapter, on the CPU. Raises `ModelError` BC029 or BC064."""
    from safetensors.torch import load_file

    with reading(directory / ADAPTER_WEIGHTS, field):
        return dict(load_file(directory / ADAPTER_WEIGHTS))


def load_weights(model: Any, directory: Path, *, field: str = "model.path") -> dict[str, str]:
    """Puts the saved weights of `directory` into the PEFT `model`, and returns what `put_weights` does. Raises
    `ModelError` BC033, with names and shapes, where they are those of an adapter for another base model, and BC029 or
    BC064 for a missing or broken file."""
    return put_weights(model, read_weights(directory, field=field), directory, field=field)


def put_weights(
    model: Any, tensors: Mapping[str, torch.Tensor], directory: Path, *, field: str = "model.path"
) -> dict[str, str]:
    """Puts tensors under their saved names into the PEFT `model`; see `load_weights`. Trainable parameters get a dtype
    that holds the saved values: a copy of a bf16 module that was trained in float32 must not be rounded.

    Returns the frozen weights of the base that the file brings along (embeddings), as `saved_names` does: whoever saves
    this adapter again must save them too, as PEFT does.
    """
    import torch
    from peft import set_peft_model_state_dict

    with peft_errors(directory, field):
        places = {file: name for name, file in saved_names(model).items()}
        known = {**_peft_names(model), **places}
        tensors = _with_fused_experts(model, tensors)
    state = model.state_dict()
    own = {file: state[name] for file, name in known.items()} | state
    wrong = [f"{name} is missing" for name in sorted(places.keys() - tensors.keys())]
    wrong += [f"{name} has no place" for name in sorted(tensors.keys() - own.keys())]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)} and must be {tuple(own[name].shape)}"
        for name in sorted(tensors.keys() & own.keys())
        if tensors[name].shape != own[name].shape
    ]
    if wrong:
        more = f" … and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise other_base("; ".join(wrong[:SHOWN]) + more, named_base(directory), model, directory, field)
    brought = {name: name for name in sorted(tensors.keys() - known.keys())}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            for dtype in {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}:
                parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, dtype))
        if parameter.requires_grad or name in brought:
            parameter.data = parameter.data.contiguous()  # a rank that gets its weights from another has no memory yet
    with peft_errors(directory, field):
        set_peft_model_state_dict(model, dict(tensors))
    return brought


def other_base(problem: str, made_for: str, model: Any, directory: Path, field: str) -> BumbleError:
    """BC033 for an adapter that does not fit `model`."""
    here = getattr(model.config, "_name_or_path", "") or getattr(model.config, "model_type", "this model")
    return ModelError(
        [
            Problem(
                code="BC033",
                problem=f"the adapter was made for {made_for or 'an unnamed model'} and does not fit {here}: {problem}",
                fix="Use it with the model that it was made for",
                place=str(directory),
                field=field,
            )
        ]
    )


def _with_fused_experts(model: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """`tensors` with A and B of experts that were modules of their own put together, as the model has them now."""
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    config = model.peft_config["default"]
    found: dict[str, torch.Tensor] = convert_peft_adapter_state_dict_for_transformers(model, config, dict(tensors))
    return found


def _peft_names(model: Any) -> dict[str, str]:
    """Names in the file to names in `model.state_dict()`, of all that PEFT would save."""
    from peft import get_peft_model_state_dict

    # PEFT selects and renames entries without a look at their values, so that names in their place show which is which.
    names = {name: name for name in model.state_dict()}
    found: dict[str, str] = get_peft_model_state_dict(model, state_dict=names, save_embedding_layers=False)
    return found
