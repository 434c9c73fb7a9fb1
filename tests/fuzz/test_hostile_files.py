"""Model, adapter, tokenizer and DeepSpeed files with seeded damage: errors with codes or success, within limits.

A failure names its target and seed; `Target(...)` and `random.Random(f"{name}-{seed}")` give the same file again.
"""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from file_mutations import ANY, JSON, SAFETENSORS, Mutation

from bumblecore_core.cli import main
from bumblecore_core.errors import printable
from workbench import make_chat, make_model_config, make_text, make_tokenizer, sft_settings, write_config

TRAINED = 5
CPU_SECONDS = 60  # a case takes one or two
BYTES = 4 << 30  # of address space beyond what the process has; the models take 200 KB
LINE = re.compile(r"BC\d{3} \S.*[.!?]|… and \d+ more\.")
DEEPSPEED = {
    "train_batch_size": "auto",
    "gradient_clipping": 1.0,
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False, "loss_scale": 0, "initial_scale_power": 16, "hysteresis": 2},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
    "zero_optimization": {
        "stage": 2,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "allgather_bucket_size": 5e8,
        "offload_optimizer": {"device": "cpu", "pin_memory": False},
    },
    "aio": {"block_size": 1048576, "queue_depth": 8},
    "comms_logger": {"enabled": False},
    "wall_clock_breakdown": False,
}
NOTE = "BC026 "  # of a command that succeeds: no pad token
PROMPT = ("--prompt", "the cat", "--max-new-tokens", "2")


@dataclass(frozen=True)
class Target:
    """A file to damage, and commands that read it; those in `training`, which take longer, after every fifth damage of
    the exhaustive test."""

    file: str
    mutations: Sequence[Mutation]
    commands: Sequence[Sequence[str]]
    training: Sequence[Sequence[str]] = ()


GENERATE, CHAT = ("generate", "{bench}/model", *PROMPT), ("generate", "{bench}/model", "--chat", *PROMPT)
PLAN, SFT, PRETRAIN = (
    (command, f"{{bench}}/{name}.yaml") for command, name in (("plan", "sft"), ("run", "sft"), ("run", "pretrain"))
)
TARGETS = {
    "config": Target("model/config.json", JSON, (PLAN, GENERATE), (SFT, PRETRAIN)),
    "generation_config": Target("model/generation_config.json", JSON, (GENERATE,), (SFT,)),
    "tokenizer": Target("model/tokenizer.json", JSON, (PLAN, CHAT)),
    "tokenizer_config": Target("model/tokenizer_config.json", JSON, (PLAN, CHAT), (SFT,)),
    "chat_template": Target("model/chat_template.jinja", ANY, (PLAN, CHAT)),
    "weights": Target("model/model.safetensors", SAFETENSORS, (GENERATE,), (SFT,)),
    "index": Target("sharded/model.safetensors.index.json", JSON, (("generate", "{bench}/sharded", *PROMPT),)),
    "pickled": Target("pickled/pytorch_model.bin", ANY, (("generate", "{bench}/pickled", *PROMPT),)),
    "adapter_config": Target(
        "adapter/adapter_config.json",
        JSON,
        (("plan", "{bench}/lora.yaml"), ("generate", "{bench}/adapter", *PROMPT)),
        (("plan", "{bench}/merged.yaml"), ("run", "{bench}/lora.yaml")),
    ),
    "adapter_weights": Target(
        "adapter/adapter_model.safetensors",
        SAFETENSORS,
        (("generate", "{bench}/adapter", *PROMPT),),
        (("run", "{bench}/lora.yaml"),),
    ),
    "deepspeed": Target("deepspeed.json", JSON, (("plan", "{bench}/zero.yaml"),)),
}


class TimeUp(BaseException):
    """Not an `Exception`, so that nothing turns it into an error of its own."""


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """A model in three forms, an adapter on it, a DeepSpeed file, and configs that name them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    bench = tmp_path_factory.mktemp("fuzz")
    make_text(bench / "text.jsonl", rows=8)
    make_chat(bench / "chat.json", rows=8)
    for name in ("model", "sharded", "pickled"):
        make_model_config(bench / name)
        make_tokenizer(bench / name)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(bench / "model"))
    model.save_pretrained(bench / "model")
    model.save_pretrained(bench / "sharded", max_shard_size="50KB")
    torch.save(model.state_dict(), bench / "pickled" / "pytorch_model.bin")
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    adapted.peft_config["default"].base_model_name_or_path = str(bench / "model")
    adapted.save_pretrained(bench / "adapter")
    (bench / "deepspeed.json").write_text(json.dumps(DEEPSPEED))
    settings = sft_settings(bench, bench / "model", max_steps=1, micro_batch_size=2)
    settings |= {"loggers": [], "engine": {"name": "torch", "device": "cpu"}}
    text = {**settings, "stage": "pretrain", "data": {**settings["data"], "path": str(bench / "text.jsonl")}}
    on_adapter = {**settings, "model": {"path": str(bench / "adapter"), "dtype": "fp32"}}
    zero = {"name": "deepspeed", "device": "cpu", "config_file": str(bench / "deepspeed.json")}
    write_config(bench / "sft.yaml", **settings)
    write_config(bench / "pretrain.yaml", **text)
    write_config(bench / "lora.yaml", **{**settings, "adapter": {"name": "lora", "path": str(bench / "adapter")}})
    write_config(bench / "merged.yaml", **on_adapter)
    write_config(bench / "zero.yaml", **{**settings, "engine": zero})
    return bench


@pytest.fixture
def call(bench, capfd, monkeypatch):
    """What is wrong with the end of `bumble ARGUMENTS`; empty where it ends as it may."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # a driver maps more memory than the limit

    def call(command: Sequence[str]) -> str:
        arguments = [part.format(bench=bench) for part in command] + ["--overwrite"] * (command[0] == "run")
        capfd.readouterr()
        try:
            with limits():
                main(arguments)
        except SystemExit as ended:
            code = ended.code or 0
        except BaseException as error:
            return "".join(traceback.format_exception(error))[-1500:]
        lines = capfd.readouterr().err.splitlines()
        told = [line for line in lines if line.startswith(("BC", "…")) and not line.startswith(NOTE)]
        if code not in (0, 2) or (code == 2) != bool(told):
            return f"exit code {code}: {lines[-5:]}"
        wrong = [line for line in told if not LINE.fullmatch(line) or " BC060 " in f" {line}" or "weights_only" in line]
        wrong += [line for line in lines if printable(line, keep="\t") != line or "Traceback" in line]
        return "; ".join(wrong)

    return call


@contextmanager
def limits() -> Iterator[None]:
    """A limit on CPU time, which a busy machine does not use up, and on further memory."""

    def stop(number, frame):
        raise TimeUp

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGPROF, stop)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + BYTES, hard))
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)


def failures(bench, call, name: str, seeds: range, *, trained: bool = False) -> list[str]:
    """A text for each command that ended as it must not, for files of these seeds."""
    target = TARGETS[name]
    file = bench / target.file
    whole = file.read_bytes()
    sound = [*target.commands, *(target.training if trained else ())]
    assert [wrong for command in sound if (wrong := call(command))] == []  # nothing is wrong with the file itself
    found = []
    for seed in seeds:
        dice = random.Random(f"{name}-{seed}")
        mutation = dice.choice(target.mutations)
        file.write_bytes(mutation(whole, dice))
        for command in [*target.commands, *(target.training if seed % TRAINED == 0 and trained else ())]:
            if wrong := call(command):
                found.append(f"{name} seed {seed} ({mutation.__name__}) {command[0]}: {wrong}")
    file.write_bytes(whole)
    return found


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process's size")
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files(bench, call, name):
    assert failures(bench, call, name, range(4)) == []


@pytest.mark.slow
@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell a process's size")
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_files_by_the_thousand(bench, call, name):
    assert failures(bench, call, name, range(4, 304), trained=True) == []
