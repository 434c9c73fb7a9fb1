"""New tokens on two ranks, under data parallelism and ZeRO-3, train and resume as on one process."""

import json

import pytest

from e2e.test_zero import check_resume, check_training
from resume_runs import run
from zero_runs import SAVED, on_ranks, written, zero_bench, zero_settings

pytestmark = pytest.mark.slow
NEW = {"add_tokens": ["<tool>", "</tool>"], "resize_embeddings": True, "resize_multiple_of": 8}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = zero_bench(tmp_path_factory.mktemp("zero-new-tokens"))
    rows = json.loads((bench / "few-chat.json").read_text())
    (bench / "few-chat.json").write_text(
        json.dumps([{**row, "output": f"<tool>{row['output']}</tool>"} for row in rows])
    )
    return bench


@pytest.mark.parametrize("kind", ["sft", "sft_untied", "sft_lora"])
def test_two_ranks(bench, kind):
    method = f"new_{kind}"

    def settings(output, ranks):
        made = zero_settings(bench, kind, output, ranks=ranks)
        made["model"] |= NEW
        return made

    alone = settings(f"torch_{method}_fp32", 1)
    alone["engine"] = "torch"
    assert run(bench, alone) == 0
    left = written(bench, settings(f"z3_{method}_fp32", 2), name="deepspeed", zero_stage=3)
    resumed = written(bench, settings(f"z3_{method}_fp32_resumed", 2), name="deepspeed", zero_stage=3)
    parallel = written(bench, settings(f"z0_{method}_fp32", 2), name="torch")
    start = str(bench / f"z3_{method}_fp32" / f"checkpoint-{SAVED}")
    runs = [["run", left], ["run", resumed, "--resume", start], ["run", parallel]]
    assert on_ranks(bench, runs) == [[0, 0, 0], [0, 0, 0]]
    for stage in (0, 3):
        check_training(bench, method, stage)
    check_resume(bench, method, 3)
    final = json.loads((bench / f"z3_{method}_fp32" / "final" / "config.json").read_text())
    assert final["vocab_size"] == 304
