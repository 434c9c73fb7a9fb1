"""Runs of a mixture of experts: against a plain loop, in each stage, on two ranks, under ZeRO, and resumed."""

import json
import math
import sys

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from bumblecore_core.cli import main
from bumblecore_core.config.resolve import load_run
from bumblecore_core.registry import PluginSwitches, load_registry
from bumblecore_core.run.assemble import prepare
from bumblecore_core.run.checkpoint.compare import checkpoint_differences, history_differences
from workbench import pretrain_settings, sentence, workbench, write_config
from zero_runs import on_ranks, written

COEFFICIENT, EXPERTS, TOP_K = 0.5, 4, 2
EPS = 1e-4
"""Of AdamW: a smaller one makes steps of the rounding errors of gradients near 0."""
FIGURES = {"task_loss", "router_aux_loss", "expert_load/min", "expert_load/max"}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A workbench with a mixture of experts in `experts/`, pairs and labelled completions."""
    bench = workbench(tmp_path_factory.mktemp("experts"))
    shared = {**json.loads((bench / "model" / "config.json").read_text()), "model_type": "mixtral"}
    config = transformers.MixtralConfig(
        **{**shared, "architectures": None, "tie_word_embeddings": False},
        num_local_experts=EXPERTS,
        num_experts_per_tok=TOP_K,
        output_router_logits=True,
        router_aux_loss_coef=COEFFICIENT,
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(bench / "experts")
    transformers.AutoTokenizer.from_pretrained(bench / "model").save_pretrained(bench / "experts")
    rows = [
        (sentence(i, 3 + i % 5), sentence(i + 1, 2 + i * 3 % 17), sentence(i + 2, 1 + i * 5 % 13)) for i in range(40)
    ]
    names = ("instruction", "chosen", "rejected")
    (bench / "dpo.json").write_text(json.dumps([{"input": "", **dict(zip(names, row, strict=True))} for row in rows]))
    labelled = [{"prompt": row[0], "completion": row[1], "label": i % 5 < 3} for i, row in enumerate(rows)]
    (bench / "kto.json").write_text(json.dumps(labelled))
    return bench


def settings_of(bench, stage, name, *, model=None, **train):
    settings = pretrain_settings(
        bench, **{"max_steps": 3, "micro_batch_size": 2, "gradient_accumulation_steps": 3, **train}
    )
    files = {"sft": "chat.json", "continue_pretrain": "text.jsonl"}
    settings["stage"] = stage
    settings["model"] = {"path": str(bench / "experts"), "dtype": "fp32", **(model or {})}
    settings["data"] |= {"path": str(bench / files.get(stage, f"{stage}.json")), "max_length": 96}
    settings["optimizer"] |= {"weight_decay": 0.0, "eps": EPS}
    settings["scheduler"] = "constant"
    settings["loggers"] = ["metrics_json"]
    settings["output_dir"] = str(bench / name)
    return settings


def run(bench, settings, *options, code=0):
    config = write_config(bench / "experts.yaml", **settings)
    with pytest.raises(SystemExit) as ended:
        main(["run", str(config), *options])
    assert (ended.value.code or 0) == code


def entries(bench, name, split="train"):
    return [entry for entry in json.loads((bench / name / "metrics.json").read_text()) if entry["split"] == split]


def naive(settings, path):
    """(losses, auxiliary losses, smallest loads, weights) of a plain loop over the run's micro-batches, a pass over
    each document."""
    registry = load_registry(PluginSwitches())
    prepared = prepare(
        load_run(write_config(path, **settings), (), registry), registry, PluginSwitches(), world_size=1, progress=False
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(settings["model"]["path"], attn_implementation="eager")
    balance = sys.modules[type(model).__module__].load_balancing_loss_func
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, eps=EPS, weight_decay=0.0)
    losses, balances, loads = [], [], []
    for window in prepared.plan.windows():
        parts, assigned = [], torch.zeros(2, EXPERTS)
        for micro in window.micro_batches[0]:
            total, logits = torch.zeros(()), []
            for example in map(prepared.store.example, micro.rows):
                tokens = torch.tensor(example["input_ids"].tolist())
                out = model(input_ids=tokens[None], output_router_logits=True)
                spans = example["spans"].reshape(-1, 2).tolist()
                kept = [at for start, end in spans for at in range(max(start, 1), end)]
                total = total + F.cross_entropy(out.logits[0, [at - 1 for at in kept]], tokens[kept], reduction="sum")
                logits.append(out.router_logits)
            layers = tuple(torch.cat(calls) for calls in zip(*logits, strict=True))
            parts.append((total, balance(layers, EXPERTS, TOP_K), micro.count))
            for layer, scores in enumerate(layers):
                assigned[layer] += torch.bincount(scores.topk(TOP_K).indices.flatten(), minlength=EXPERTS)
        count = sum(part[2] for part in parts)
        balances.append(sum(part[1] * part[2] for part in parts) / count)
        losses.append(sum(part[0] for part in parts) / count + COEFFICIENT * balances[-1])
        losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loads.append(float((assigned / assigned.sum(1, keepdim=True)).min()))
    return [x.item() for x in losses], [x.item() for x in balances], loads, model.state_dict()


@pytest.mark.parametrize(
    ("packing", "checkpointing"), [(False, False), pytest.param(True, True, marks=pytest.mark.slow)]
)
def test_a_run_trains_as_a_plain_loop_does(bench, packing, checkpointing, tmp_path):
    settings = settings_of(bench, "sft", f"sft-{packing}", model={"gradient_checkpointing": checkpointing})
    settings["data"]["packing"] = packing
    losses, balances, loads, weights = naive(settings, tmp_path / "naive.yaml")
    run(bench, settings)
    found = entries(bench, f"sft-{packing}")
    assert [entry["loss"] for entry in found] == pytest.approx(losses, rel=1e-5)
    assert [entry["router_aux_loss"] for entry in found] == pytest.approx(balances, rel=1e-5)
    assert [entry["expert_load/min"] for entry in found] == pytest.approx(loads)
    for entry in found:
        assert entry["loss"] == pytest.approx(entry["task_loss"] + COEFFICIENT * entry["router_aux_loss"])
    final = transformers.AutoModelForCausalLM.from_pretrained(bench / f"sft-{packing}" / "final").state_dict()
    for name, weight in final.items():
        torch.testing.assert_close(weight, weights[name], rtol=1e-4, atol=5e-6, msg=lambda text, n=name: f"{n}: {text}")


def test_dpo_reports_ln_2_at_step_0_without_the_auxiliary_loss(bench):
    run(bench, settings_of(bench, "dpo", "dpo", max_steps=1))
    (first,) = entries(bench, "dpo")
    assert first["task_loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert first["loss"] == pytest.approx(math.log(2) + COEFFICIENT * first["router_aux_loss"], abs=1e-6)
    assert first.keys() >= FIGURES


def test_kto_in_bf16_with_evaluation(bench):
    settings = settings_of(bench, "kto", "kto", model={"dtype": "bf16"}, max_steps=1)
    settings["data"]["eval_path"] = settings["data"]["path"]
    run(bench, settings)
    (first,), (evaluation,) = entries(bench, "kto"), entries(bench, "kto", "eval")
    assert first["task_loss"] == pytest.approx(0.5, abs=1e-6)
    assert first.keys() >= FIGURES
    assert not FIGURES & evaluation.keys()
    assert evaluation["loss"] < 0.6


def test_the_summary_names_the_coefficient_and_a_plan_refuses_one_without_routers(bench, capsys):
    config = write_config(bench / "plan.yaml", **settings_of(bench, "sft", "plan"))
    with pytest.raises(SystemExit):
        main(["plan", str(config)])
    assert "0.5 × the load-balancing loss of each micro-batch (config.json)" in capsys.readouterr().out
    dense = pretrain_settings(bench)
    dense["model"]["router_aux_loss"] = 0.01
    dense["data"]["cache_dir"] = str(bench / "untouched")
    for command in ("plan", "run"):
        with pytest.raises(SystemExit) as ended:
            main([command, str(write_config(bench / "dense.yaml", **dense))])
        assert ended.value.code == 2
        said = capsys.readouterr().err
        assert "dense.yaml:8 model.router_aux_loss: the model type 'qwen3' has no routers" in said
        assert said.startswith("BC100 ")
        assert len(said.splitlines()) == 1
    assert not (bench / "untouched").exists()  # it is said before data is tokenized


@pytest.mark.slow
def test_a_resumed_run_is_bit_identical(bench):
    runs = []
    for name, options in (("whole", ()), ("again", ("--resume", str(bench / "whole" / "checkpoint-2")))):
        settings = settings_of(bench, "sft", name, max_steps=4)
        settings["train"]["logging_steps"] = 3  # the checkpoint is between two reports
        settings["checkpoint"] = {"save_steps": 2, "save_total_limit": None}
        run(bench, settings, *options)
        runs.append(bench / name)
    assert history_differences(*(one / "metrics.json" for one in runs)) == []
    assert checkpoint_differences(*(one / "final" for one in runs)) == []


@pytest.mark.slow
def test_two_ranks_and_zero_train_as_one_process_does(bench):
    """Micro-batches of one row are the same ones however they are dealt to ranks."""
    adapter = {"name": "lora", "rank": 2, "target_modules": ["q_proj", "v_proj"], "modules_to_save": ["gate"]}
    engines = {
        "ddp": {"name": "torch"},
        **{f"z{stage}": {"name": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)},
        "z3_lora": {"name": "deepspeed", "zero_stage": 3},
    }

    def split(name, accumulation):
        settings = settings_of(bench, "sft", name, micro_batch_size=1, gradient_accumulation_steps=accumulation)
        settings["adapter"] = adapter if name.endswith("lora") else None
        return settings

    for name in ("one", "one_lora"):
        run(bench, split(name, 6))
    runs = [["run", written(bench, split(name, 3), **engine)] for name, engine in engines.items()]
    assert on_ranks(bench, runs) == [[0] * len(runs)] * 2
    for name in engines:
        one, file = ("one_lora", "adapter_model") if name.endswith("lora") else ("one", "model")
        for entry, other in zip(entries(bench, name), entries(bench, one), strict=True):
            for figure in ("loss", "grad_norm", *FIGURES):
                assert entry[figure] == pytest.approx(other[figure], rel=1e-5), (name, figure)
        weights, own = (load_file(bench / which / "final" / f"{file}.safetensors") for which in (one, name))
        assert own.keys() == weights.keys()
        for key, weight in own.items():
            torch.testing.assert_close(weight, weights[key], rtol=1e-4, atol=5e-6)
