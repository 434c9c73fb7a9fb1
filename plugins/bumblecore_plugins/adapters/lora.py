"""The adapter `lora`: PEFT's layers, with checks before and PEFT's own files after."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bumblecore_core import ConfigError, ModelError, one
from bumblecore_core.toolkit.adapters import (
    ADAPTER_WEIGHTS,
    attached,
    is_adapter,
    load_weights,
    put_weights,
    quietly,
    read_adapter_config,
    read_weights,
)
from bumblecore_core.toolkit.scorers import score_of
from bumblecore_core.toolkit.tokenizers import resolve_model_dir
from bumblecore_plugins.adapters import LoraOptions, changes_base
from bumblecore_plugins.adapters.targets import check_rank, check_targets, saved_modules

if TYPE_CHECKING:
    from peft import LoraConfig

NAME = "default"
A, B = "lora_A", "lora_B"


class Lora:
    """See `bumblecore_core.protocols.Adapter`.

    With `init: pissa` or `olora`, A and B are taken out of the base weights, which while training are W − s·B₀A₀. Files
    never depend on that: they hold an adapter of twice the rank for the untouched base, [A; A₀] and [B, −B₀], which
    says the same and which PEFT loads like any other.
    """

    def __init__(self, options: LoraOptions) -> None:
        self._options = options
        self._warnings: list[str] = []
        self._initial: dict[str, torch.Tensor] = {}  # A₀ and B₀ by the parameter's name
        self._base = Path()

    def wrap(self, *, model: torch.nn.Module, base: Path, checkpoint: Path | None) -> torch.nn.Module:
        self._base = base.absolute()
        if self._options.path is not None:
            return self._going_on(model, self._options.path, checkpoint)
        wrapped = self._fresh(model)
        if changes_base(self._options.init):
            self._take_out_of_base(wrapped, checkpoint)
        elif checkpoint is not None:
            load_weights(wrapped, checkpoint)
        return wrapped

    def describe(self, *, model: torch.nn.Module) -> tuple[str, Sequence[str]]:
        config = _config(model)
        words = [f"rank {config.r}, alpha {config.lora_alpha:g}, {len(_lora_layers(model))} modules"]
        words += [f"dropout {config.lora_dropout:g}"] if config.lora_dropout else []
        words += ["scaled by alpha ÷ √rank"] if config.use_rslora else []
        words += ["DoRA"] if config.use_dora else []
        words += [f"init {self._options.init}"] if self._options.init != "default" else []
        words += [f"B at {self._options.lr_ratio:g} × the learning rate"] if self._options.lr_ratio != 1 else []
        words += ["in full: " + ", ".join(config.modules_to_save)] if config.modules_to_save else []
        words += [f"from {self._options.path}"] if self._options.path is not None else []
        return "; ".join(words), self._warnings

    def lr_scale(self, *, name: str) -> float:
        return self._options.lr_ratio if ".lora_B." in name or ".lora_embedding_B." in name else 1.0

    def saves(self, *, name: str) -> bool:
        return ".lora_" in name or ".modules_to_save." in name

    def base_policy(self, *, model: torch.nn.Module) -> AbstractContextManager[None]:
        if self._initial:
            return self._as_at_first(model)
        disabled: AbstractContextManager[None] = model.disable_adapter()  # type: ignore[operator]
        return disabled

    def save(self, *, model: torch.nn.Module, state: Mapping[str, torch.Tensor], directory: Path) -> None:
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        tensors = get_peft_model_state_dict(model, state_dict=dict(state), save_embedding_layers=False)
        config = copy.deepcopy(_config(model))
        if self._initial:
            first = get_peft_model_state_dict(model, state_dict=dict(self._initial), save_embedding_layers=False)
            tensors = {name: _doubled(name, tensor, first[name].to(tensor)) for name, tensor in tensors.items()}
            config.r *= 2
            config.lora_alpha *= math.sqrt(2) if config.use_rslora else 2
            config.init_lora_weights = True
        for key, value in vars(config).items():
            if isinstance(value, set):  # whose order differs from process to process
                setattr(config, key, sorted(value))
        config.inference_mode = True
        config.save_pretrained(directory)
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    def merge(self, *, model: torch.nn.Module) -> torch.nn.Module:
        merged: torch.nn.Module = model.merge_and_unload()  # type: ignore[operator]
        return merged

    def _fresh(self, model: Any) -> Any:
        from peft import LoraConfig, TaskType, get_peft_model

        options = self._options
        scores = score_of(model) is not None
        if scores and changes_base(options.init):
            problem = f"init {options.init} takes no module in full, and a reward model's score is trained so"
            raise one(ConfigError, "BC039", problem, "Set init to default", field="adapter.init")
        check_rank(model, options.rank)
        saved, unmatched = saved_modules(model, options.modules_to_save)
        self._warnings += [*check_targets(model, options.target_modules), *unmatched]
        plain = options.init == "default" or changes_base(options.init)
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha if options.alpha is not None else 2 * options.rank,
            lora_dropout=options.dropout,
            target_modules=options.target_modules,
            modules_to_save=saved or None,
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            init_lora_weights=True if plain else options.init,
            task_type=TaskType.SEQ_CLS if scores else TaskType.CAUSAL_LM,
        )
        try:
            with quietly():
                return self._named(get_peft_model(model, config))
        except ValueError as error:
            fix = "Change adapter.target_modules"
            raise one(ModelError, "BC031", f"PEFT: {error}", fix, field="adapter.target_modules") from error

    def _going_on(self, model: Any, path: str, checkpoint: Path | None) -> Any:
        """The adapter of `path`, or of the checkpoint of a run that began with that."""
        field = "adapter.path" if checkpoint is None else "checkpoint.resume"
        directory = checkpoint or resolve_model_dir(path, field=field)
        if not is_adapter(directory):
            problem, fix = "this is a model, not an adapter", "Name it in model.path"
            raise one(ModelError, "BC064", problem, fix, place=str(directory), field=field)
        config = read_adapter_config(directory, field=field)
        init = str(config.init_lora_weights) if config.peft_type == "LORA" else ""
        if config.peft_type != "LORA" or changes_base(init):
            what = f"LoRA with init {init} that was not converted" if init else str(config.peft_type.value)
            problem, fix = f"an adapter of this kind ({what}) cannot be trained further", "Start a new one"
            raise one(ConfigError, "BC039", problem, fix, place=str(directory), field=field)
        config.inference_mode = False
        config.lora_dropout = self._options.dropout or config.lora_dropout
        wrapped = attached(model, config, directory, field=field)
        load_weights(wrapped, directory, field=field)
        return self._named(wrapped)

    def _named(self, model: Any) -> Any:
        """The wrapped model, whose config names the base's directory."""
        config = _config(model)
        config.base_model_name_or_path = str(self._base)
        if config.task_type == "SEQ_CLS":  # to which PEFT adds each name that a score has in some model
            names = [name for name in config.modules_to_save if name != "classifier"]
            config.modules_to_save = list(dict.fromkeys(names))
        return model

    @torch.no_grad()
    def _take_out_of_base(self, model: Any, checkpoint: Path | None) -> None:
        """Makes A and B from each base weight (or takes A₀ and B₀ from a checkpoint, so that not a bit depends on doing
        the decomposition again), and takes s·B₀A₀ out of it."""
        layers = _lora_layers(model)
        odd = [name for name, layer in layers.items() if type(layer.get_base_layer()) is not torch.nn.Linear]
        if odd:
            problem = f"init {self._options.init} is for linear layers, and {odd[0]} is none"
            raise one(ConfigError, "BC039", problem, "Set init to default", field="adapter.init")
        saved = _halves(read_weights(checkpoint)) if checkpoint is not None else None
        if saved is not None:
            put_weights(model, saved[1], checkpoint)
        for name, layer in layers.items():
            weight = layer.get_base_layer().weight
            if saved is None:
                original = weight.data.clone()
                layer.olora_init(NAME) if self._options.init == "olora" else layer.pissa_init(NAME, self._options.init)
                weight.data = original
                for part in (layer.lora_A, layer.lora_B):
                    part[NAME].weight.data = _exact_in_any_dtype(part[NAME].weight.data)
            taken = layer.get_delta_weight(NAME)
            weight.data = (weight.data.float() - taken.float()).to(weight.dtype)
            for side in (A, B):
                kept = getattr(layer, side)[NAME].weight.detach().clone()
                self._initial[f"{name}.{side}.{NAME}.weight"] = kept
        if saved is not None:
            put_weights(model, saved[0], checkpoint)

    @contextmanager
    def _as_at_first(self, model: Any) -> Iterator[None]:
        """With A₀ and B₀ in place, the model computes what the base does."""
        trained = {name: parameter.data for name, parameter in model.named_parameters() if name in self._initial}
        parameters = dict(model.named_parameters())
        try:
            for name, data in trained.items():
                self._initial[name] = self._initial[name].to(data.device)
                parameters[name].data = self._initial[name].to(data.dtype)
            yield
        finally:
            for name, data in trained.items():
                parameters[name].data = data


def _config(model: Any) -> LoraConfig:
    return model.peft_config[NAME]


def _lora_layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _exact_in_any_dtype(tensor: torch.Tensor) -> torch.Tensor:
    """Rounded so that bf16, fp16 and float32 hold it alike: what is saved is then what was used."""
    return tensor.to(torch.bfloat16).to(torch.float16).float().contiguous()


def _doubled(name: str, tensor: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
    if f".{A}." in name:
        return torch.cat([tensor, first], dim=0)
    return torch.cat([tensor, -first], dim=1)


def _halves(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(A and B, A₀ and B₀) of what `_doubled` made."""
    now, first = {}, {}
    for name, tensor in tensors.items():
        if f".{A}." in name:
            now[name], first[name] = tensor.chunk(2, dim=0)
        else:
            now[name], other = tensor.chunk(2, dim=1)
            first[name] = -other
    return now, first
