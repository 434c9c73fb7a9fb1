"""The adapter `lora`: PEFT's layers, with checks before and PEFT's own files after."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bumblecore_core import ConfigError, ModelError, one
from bumblecore_core.toolkit.adapter_tensors import ADAPTER_WEIGHTS, load_weights, quietly, saved_names
from bumblecore_core.toolkit.adapters import attached, is_adapter, read_adapter_config
from bumblecore_core.toolkit.scorers import score_of
from bumblecore_core.toolkit.shards import whole_shape
from bumblecore_core.toolkit.tokenizers import resolve_model_dir
from bumblecore_core.toolkit.vision_language import freeze_towers, tower_pattern
from bumblecore_plugins.adapters import LoraOptions, changes_base
from bumblecore_plugins.adapters.layers import short_name
from bumblecore_plugins.adapters.parameters import fused_experts
from bumblecore_plugins.adapters.residual import NAME, double, take_out_of_base
from bumblecore_plugins.adapters.targets import Targets, check_rank, resolve_targets, saved_modules
from bumblecore_plugins.adapters.tokens import check_token_rows, token_rows

if TYPE_CHECKING:
    from peft import LoraConfig

LEAST_LEFT_OUT = 0.01  # a share of the parameters
SHOWN_LEFT_OUT = 4


class Lora:
    """See `bumblecore_core.protocols.Adapter`. For `init: pissa` and `olora` see `residual`."""

    def __init__(self, options: LoraOptions) -> None:
        self._options = options
        self._warnings: list[str] = []
        self._saved: dict[str, str] = {}  # name in the file by name in the model's state_dict
        self._base_values: dict[str, torch.Tensor] = {}  # of parameters with which the model computes as the base does
        self._residual: dict[str, torch.Tensor] = {}  # A₀ and B₀ by the parameter's name
        self._left_out = ""
        self._base = Path()

    def wrap(
        self, *, model: torch.nn.Module, base: Path, checkpoint: Path | None, new_tokens: Sequence[int] = ()
    ) -> torch.nn.Module:
        self._base = base.absolute()
        if self._options.path is not None:
            return self._continued(model, self._options.path, checkpoint, new_tokens)
        wrapped = self._fresh(model, new_tokens)
        self._prepare_saving(wrapped)
        if changes_base(self._options.init):
            self._residual = take_out_of_base(wrapped, _lora_layers(wrapped), self._options.init, checkpoint)
            self._base_values |= self._residual
        elif checkpoint is not None:
            self._saved |= load_weights(wrapped, checkpoint)
        return wrapped

    def describe(self, *, model: torch.nn.Module) -> tuple[str, Sequence[str]]:
        from peft.tuners.lora.layer import ParamWrapper

        config = _config(model)
        layers = _lora_layers(model).values()
        wrappers = [layer for layer in layers if isinstance(layer, ParamWrapper)]
        parameters = [layer.parameter_name for layer in wrappers if layer.num_experts > 1]
        words = [f"rank {config.r}, alpha {config.lora_alpha:g}, {len(layers) - len(parameters)} modules"]
        words += [f"{len(parameters)} parameters ({', '.join(sorted(set(parameters)))})"] if parameters else []
        words += [f"dropout {config.lora_dropout:g}"] if config.lora_dropout else []
        words += ["scaled by alpha ÷ √rank"] if config.use_rslora else []
        words += ["DoRA"] if config.use_dora else []
        words += [f"init {self._options.init}"] if self._options.init != "default" else []
        words += [f"B at {self._options.lr_ratio:g} × the learning rate"] if self._options.lr_ratio != 1 else []
        words += ["in full: " + ", ".join(config.modules_to_save)] if config.modules_to_save else []
        words += [f"biases: {config.bias}"] if config.bias != "none" else []
        rows = _token_count(config.trainable_token_indices)
        words += [f"{rows} token embeddings"] if rows else []
        words += [f"from {self._options.path}"] if self._options.path is not None else []
        words += [self._left_out] if self._left_out else []
        return "; ".join(words), self._warnings

    def lr_scale(self, *, name: str) -> float:
        return self._options.lr_ratio if ".lora_B." in name or ".lora_embedding_B." in name else 1.0

    def saves(self, *, name: str) -> bool:
        return name in self._saved

    def base_policy(self, *, model: torch.nn.Module) -> AbstractContextManager[None]:
        return self._as_base(model)

    def save(self, *, model: torch.nn.Module, state: Mapping[str, torch.Tensor], directory: Path) -> None:
        from safetensors.torch import save_file

        config = copy.deepcopy(_config(model))
        tensors = {file: state[name] for name, file in self._saved.items()}
        if self._residual:
            tensors = double(config, tensors, {self._saved[name]: first for name, first in self._residual.items()})
        for key, value in vars(config).items():
            if isinstance(value, set):  # whose order differs from process to process
                setattr(config, key, sorted(value))
        config.inference_mode = True
        config.save_pretrained(directory)
        save_file(_apart(tensors), directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    def merge(self, *, model: torch.nn.Module) -> torch.nn.Module:
        merged: torch.nn.Module = model.merge_and_unload()  # type: ignore[operator]
        return merged

    def _fresh(self, model: Any, new_tokens: Sequence[int]) -> Any:
        from peft import LoraConfig, TaskType, get_peft_model

        options = self._options
        scores = score_of(model) is not None
        if scores and changes_base(options.init):
            problem = f"init {options.init} takes no module in full, and a reward model's score is trained so"
            raise one(ConfigError, "BC039", problem, "Set init to default", field="adapter.init")
        check_rank(model, options.rank)
        saved, unmatched = saved_modules(model, options.modules_to_save)
        targets = resolve_targets(model, options)
        self._warnings += [*targets.warnings, *unmatched]
        self._left_out = _left_out(model, targets)
        plain = options.init == "default" or changes_base(options.init)
        config = LoraConfig(
            r=options.rank,
            lora_alpha=options.alpha if options.alpha is not None else 2 * options.rank,
            lora_dropout=options.dropout or 0.0,
            target_modules=targets.modules,
            target_parameters=targets.parameters or None,
            modules_to_save=saved or None,
            exclude_modules=tower_pattern(model),
            trainable_token_indices=token_rows(model, new_tokens) or None,
            bias=options.bias,
            use_rslora=options.use_rslora,
            use_dora=options.use_dora,
            init_lora_weights=True if plain else options.init,
            task_type=TaskType.SEQ_CLS if scores else TaskType.CAUSAL_LM,
        )
        try:
            with quietly():
                wrapped = self._named(get_peft_model(model, config))
                freeze_towers(wrapped)  # whose biases PEFT would train
                return wrapped
        except ValueError as error:
            fix = "Change adapter.target_modules"
            raise one(ModelError, "BC031", f"PEFT: {error}", fix, field="adapter.target_modules") from error

    def _continued(self, model: Any, path: str, checkpoint: Path | None, new_tokens: Sequence[int]) -> Any:
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
        if new_tokens:
            problem = "an adapter that is trained further cannot train tokens that are new in this run"
            fix = "Merge the adapter first (bumble merge), or remove model.add_tokens"
            raise one(ConfigError, "BC039", problem, fix, place=str(directory), field="adapter.path, model.add_tokens")
        config.inference_mode = False
        if self._options.dropout is not None:
            config.lora_dropout = self._options.dropout
        wrapped = self._named(attached(model, config, directory, field=field))
        self._prepare_saving(wrapped)
        self._saved |= load_weights(wrapped, directory, field=field)
        return wrapped

    def _prepare_saving(self, wrapped: Any) -> None:
        """Notes which tensors are trained, and the values that the base has for those that replace its own."""
        self._saved = saved_names(wrapped)
        check_token_rows(wrapped)
        _require_separate(wrapped)
        for name, parameter in wrapped.named_parameters():
            if parameter.requires_grad and ".lora_" not in name and ".modules_to_save." not in name:
                self._base_values[name] = parameter.detach().clone()

    def _named(self, model: Any) -> Any:
        """The wrapped model, whose config names the base's directory."""
        config = _config(model)
        config.base_model_name_or_path = str(self._base)
        if config.task_type == "SEQ_CLS":  # to which PEFT adds each name that a score has in some model
            names = [name for name in config.modules_to_save if name != "classifier"]
            config.modules_to_save = list(dict.fromkeys(names))
        return model

    @contextmanager
    def _as_base(self, model: Any) -> Iterator[None]:
        """Without the adapter, and with the base's own values for what was trained in place. With A₀ and B₀ in place,
        an adapter that was taken out of the base computes what the base does."""
        parameters = dict(model.named_parameters())
        trained = {name: parameters[name].data for name in self._base_values}
        sharded = [name for name in trained if whole_shape(parameters[name]) != parameters[name].shape]
        if sharded:
            problem = f"the base cannot be restored under an adapter while ranks share {sharded[0]} (ZeRO-3)"
            fix = "Use a lower ZeRO stage, or a reference model of its own"
            raise one(ConfigError, "BC103", problem, fix, field="adapter")
        try:
            for name, data in trained.items():
                self._base_values[name] = self._base_values[name].to(data.device)
                parameters[name].data = self._base_values[name].to(data.dtype)
            with nullcontext() if self._residual else model.disable_adapter():
                yield
        finally:
            for name, data in trained.items():
                parameters[name].data = data


def _config(model: Any) -> LoraConfig:
    return model.peft_config[NAME]


def _lora_layers(model: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def _left_out(model: Any, targets: Targets) -> str:
    """What `all-linear` does not reach, where that is at least 1 % of the parameters."""
    total = sum(whole_shape(parameter).numel() for parameter in model.parameters())
    share = sum(targets.left_out.values()) / max(total, 1)
    if share < LEAST_LEFT_OUT:
        return ""
    names = sorted(targets.left_out, key=lambda name: -targets.left_out[name])
    shown = ", ".join(names[:SHOWN_LEFT_OUT]) + " …" * (len(names) > SHOWN_LEFT_OUT)
    experts = "; set target_parameters to all-experts" if set(names) & {*map(short_name, fused_experts(model))} else ""
    return f"does not reach {share:.0%} of the parameters ({shown}{experts})"


def _token_count(indices: Any) -> int:
    lists = indices.values() if isinstance(indices, Mapping) else [indices or ()]
    return len({index for found in lists for index in found})


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors that share no memory with one another, as the safetensors format requires."""
    seen: set[int] = set()
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return found


def _require_separate(model: Any) -> None:
    """Raises `ConfigError` BC103 where two trained parameters share memory: an optimizer would update it twice."""
    places: dict[int, str] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or parameter.is_meta or not parameter.numel():
            continue
        if parameter.data_ptr() in places:
            problem = f"{name} and {places[parameter.data_ptr()]} are two parameters in the same memory"
            fix = "Remove ensure_weight_tying, or leave the embeddings out of target_modules"
            raise one(ConfigError, "BC103", problem, fix, field="adapter.path")
        places[parameter.data_ptr()] = name
