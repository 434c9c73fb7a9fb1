"""The figures that every run reports, and what each of them means: shared by loggers, plots and tables."""

from __future__ import annotations

from collections.abc import Mapping

FIGURES: Mapping[str, str] = {
    "loss": "loss per counted position (or pair): sums over micro-batches and ranks, divided by their count",
    "learning_rate": "of the first parameter group, as the reported step used it",
    "learning_rate/GROUP": "of each parameter group, where groups differ",
    "grad_norm": "L2 norm of the gradient over all ranks, before clipping",
    "tokens": "tokens trained on since the beginning of the run, over all ranks",
    "tokens_per_second": "tokens of all ranks",
    "supervised_tokens_per_second": "positions (or pairs) that the loss counts, of all ranks",
    "steps_per_second": "optimizer steps, without evaluation and saving",
    "mfu": "model FLOPs utilization: FLOPs that the model needs ÷ FLOPs that the devices could do (0 to 1)",
    "peak_memory_gb": "highest of any rank so far, in 10⁹ bytes: the process's on a CPU, the allocator's on a GPU",
    "data_wait": "share of the time that a step waited for its data (0 to 1)",
    "skipped_steps": "steps so far whose gradient was not finite, so that nothing was updated",
    "perplexity": "exponential of the evaluation loss",
}
"""Name → meaning. Whatever else an event holds comes from the routers, the stage or the loss."""

ROUTER_FIGURES: Mapping[str, str] = {
    "task_loss": "loss without the routers' auxiliary loss",
    "router_aux_loss": "the routers' auxiliary loss before the coefficient: mean over micro-batches by their count",
    "expert_load/min": "smallest share of a layer's tokens × top-k assignments that an expert has, over all layers",
    "expert_load/max": "largest such share; an even load is 1 ÷ number of experts",
}
"""The same for models with routers, plotted like the stage's; the first two only with the auxiliary loss on."""

_OF_THE_MACHINE = ("tokens_per_second", "steps_per_second", "seconds")


def is_core(name: str) -> bool:
    """Whether the core reports a figure; if not, the stage or the loss does."""
    return name in FIGURES or name.startswith("learning_rate/")


def depends_on_the_machine(name: str) -> bool:
    """Whether a figure is a timing or a memory figure, which no two runs share."""
    return name.endswith(_OF_THE_MACHINE) or name.startswith(("peak_memory", "mfu", "data_wait"))
