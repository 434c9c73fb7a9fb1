"""The fused head beside the naive one: seconds per forward and backward pass, peak memory, and distance from float64.

    python benchmarks/head.py --tokens 512 --hidden 384 --vocabulary 152000 --dtype bf16

Each loss runs in a process of its own (peak memory is the process's high-water mark above its inputs, gradients
included); the runs alternate, and the fastest of each counts. `floor` is the time of the three matrix products alone,
at the speed measured beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time

DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--vocabulary", type=int, default=152_000)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repeats", type=int, default=5, help="passes in one process")
    parser.add_argument("--rounds", type=int, default=2, help="processes of each loss, in alternation")
    parser.add_argument("--loss", choices=["causal_lm", "causal_lm_naive"], help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One loss in this process."""
    import torch

    from bumblecore_core.toolkit.policy import Head
    from bumblecore_plugins.losses import bumble_losses

    torch.set_num_threads(args.threads)
    record = {record.name: record for record in bumble_losses()}[args.loss]
    loss = record.build(options=record.options())
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, DTYPES[args.dtype])

    def leaf(*shape: int) -> torch.Tensor:
        values = torch.empty(*shape, dtype=dtype).normal_(generator=generator)
        return values.to(args.device).requires_grad_()

    hidden, weight = leaf(args.tokens, args.hidden), leaf(args.vocabulary, args.hidden)
    with torch.no_grad():
        weight.mul_(0.05)
    targets = torch.randint(0, args.vocabulary, (args.tokens,), generator=generator).to(args.device)
    before = peak_bytes(args.device)
    seconds = []
    for _ in range(1 + args.repeats):
        hidden.grad = weight.grad = None
        start = time.perf_counter()
        out = loss(hidden=hidden, head=Head(weight=weight), targets=targets)
        out.loss_sum.backward()
        value = out.loss_sum.item()
        seconds.append(time.perf_counter() - start)
    memory = peak_bytes(args.device) - before
    products = []
    logits = torch.empty(args.tokens, args.vocabulary, dtype=dtype, device=args.device)
    with torch.no_grad():
        for _ in range(1 + args.repeats):
            start = time.perf_counter()
            torch.mm(hidden, weight.t(), out=logits)
            logits.t() @ hidden
            (logits @ weight).sum().item()
            products.append(time.perf_counter() - start)
    return {"seconds": min(seconds[1:]), "mib": memory / 2**20, "floor": min(products[1:]), "loss": value / args.tokens}


def peak_bytes(device: str) -> int:
    """The high-water mark of this process, or of the CUDA allocator."""
    if device != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    args = parse()
    if args.loss:
        print(json.dumps(measure(args)))
        return
    shape = f"{args.tokens} tokens, hidden {args.hidden}, vocabulary {args.vocabulary}"
    print(f"{shape}, {args.dtype}, {args.device}, {args.threads} threads")
    results: dict[str, list[dict[str, float]]] = {"causal_lm": [], "causal_lm_naive": []}
    for _ in range(args.rounds):
        for name, runs in results.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--loss", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'loss':<16} {'seconds':>8} {'floor':>8} {'MiB':>8} {'mean loss':>12}")
    for name, runs in results.items():
        best = min(runs, key=lambda run: run["seconds"])
        floor = min(run["floor"] for run in runs)
        print(f"{name:<16} {best['seconds']:>8.3f} {floor:>8.3f} {best['mib']:>8.0f} {best['loss']:>12.6f}")


if __name__ == "__main__":
    main()
