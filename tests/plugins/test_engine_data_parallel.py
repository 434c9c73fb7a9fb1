"""Two gloo processes against one: same losses, norms and weights, with fillers, accumulation and unused parameters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from engine_twin import batch, engine, tiny, train

from forked_ranks import run_ranks

BATCHES = [[batch(10 * step + at, tokens=8 + at) for at in range(6)] for step in range(3)]

WORKER = """
import json, sys
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from bumblecore_core import BumbleError
from bumblecore_core.run.checkpoint.streams import seed_streams
from engine_twin import batch, engine, groups, tiny, train
from test_engine_data_parallel import CASES, rank_windows, windows

result = {}
weights = {}
for name, (dtype, micro, options) in CASES.items():
    model = tiny(seed=5)
    made = engine(model, dtype=dtype, max_grad_norm=0.5, options={"bucket_megabytes": 2e-4}, **options)
    result[name] = train(
        made,
        rank_windows(made.rank, micro),
        counts=[sum(each.count for each in window) for window in windows(micro)],
    )
    weights[name] = dict(model.state_dict()) | {"sums": torch.tensor(made.sum_over_ranks([made.rank + 1, 0.1]))}
    assert bool(made.model_state()) == (made.rank == 0)
    made.barrier()
    owner = made
# NaN on one rank only: every rank skips, and the next step works.
model = tiny(seed=5)
made = engine(model)
before = model.first.weight.clone()
made.forward_backward(batch=batch(1, poison=float("nan") if made.rank else None), scale=1.0, last=True)
result["skipped"] = made.step(gradient_scale=1.0).skipped and torch.equal(before, model.first.weight)
# Different starts are made equal; no process dropped the same mask.
made = engine(model := tiny(seed=made.rank, dropout=0.5))
weights["start"] = dict(model.state_dict())
seed_streams(0, made.rank)
result["dropped"] = float(made.forward_backward(batch=batch(1), scale=1.0, last=True).loss_sum)
made.step(gradient_scale=1.0)
torch.save(weights, f"{sys.argv[2]}/{made.rank}.pt")
with open(f"{sys.argv[2]}/{made.rank}.json", "w") as file:
    json.dump(result, file)
owner.close()
made.close()
"""

CASES = {
    "fp32, one micro-batch": ("fp32", 1, {}),
    "fp32, three micro-batches": ("fp32", 3, {}),
    "bf16, three micro-batches": ("bf16", 3, {}),
    "bf16, bf16 gradients": ("bf16", 3, {"float32_gradients": False}),
    "bf16, no masters": ("bf16", 1, {"master_weights": False}),
}


def windows(micro: int) -> list[list]:
    """One process: the real batches of each window (rank 1's last is a filler where there are several)."""
    return [[each for each in _both(step, micro) if each is not None] for step in range(len(BATCHES))]


def rank_windows(rank: int, micro: int) -> list[list]:
    """Every other batch of the window for each rank, as `train` takes them, scaled by the count of both."""
    return [_both(step, micro)[rank::2] for step in range(len(BATCHES))]


def _both(step: int, micro: int) -> list:
    both = BATCHES[step][: 2 * micro]
    return both if micro == 1 else [*both[:-1], None]


def launch(code: str, directory: Path) -> tuple[list[int], str]:
    """(exit codes, output) of two ranks that run `code`."""
    (directory / "code.py").write_text(code)
    arguments = str(Path(__file__).parent), str(directory)
    done = run_ranks(directory / "code.py", *arguments, ranks=2, timeout=600, codes=directory / "codes.json")
    return json.loads((directory / "codes.json").read_text()), done.stdout + done.stderr


def test_two_processes_train_as_one(tmp_path):
    codes, said = launch(WORKER, tmp_path)
    assert codes == [0, 0], said
    results = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    weights = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]

    for name, (dtype, micro, options) in CASES.items():
        assert results[0][name] == results[1][name]
        model = tiny(seed=5)
        alone = engine(model, dtype=dtype, max_grad_norm=0.5, **options)
        alone._scales_in_step = False  # as ranks do it, so that bf16 rounds alike
        norms = train(alone, windows(micro))
        exact = dtype == "fp32"
        assert torch.allclose(torch.tensor(results[0][name]), torch.tensor(norms), rtol=1e-5 if exact else 2e-2), name
        for key, expected in model.state_dict().items():
            assert torch.equal(weights[0][name][key], weights[1][name][key]), (name, key)
            found = weights[0][name][key].float()
            # bf16: at a rounding boundary weights may land one unit (2^-8) apart, tiny ones part of a step
            rtol, atol = (1e-5, 1e-6) if exact else (2**-7, 2e-3)
            assert torch.allclose(found, expected.float(), rtol=rtol, atol=atol), (name, key)
        torch.testing.assert_close(weights[0][name]["sums"].double(), torch.tensor([3.0, 0.2]).double())

    assert results[0]["skipped"] is results[1]["skipped"] is True
    assert all(torch.equal(weights[0]["start"][key], weights[1]["start"][key]) for key in weights[0]["start"])
    assert results[0]["dropped"] != results[1]["dropped"]


LONELY = """
import sys
import torch
sys.path.insert(0, sys.argv[1])
from bumblecore_core import BumbleError
from engine_twin import batch, engine, tiny
made = engine(tiny(), options={"timeout_seconds": 5})
if made.rank == 1:
    raise SystemExit(3)
made.forward_backward(batch=batch(1), scale=1.0, last=True)
try:
    made.step(gradient_scale=1.0)
except BumbleError as error:
    print(error)
    raise SystemExit(2)
"""


def test_a_process_that_dies_ends_the_others_with_an_error(tmp_path):
    codes, said = launch(LONELY, tmp_path)
    assert codes == [2, 3], said
    assert "BC067: summing gradients over processes failed" in said
