"""Which process of a launch this one is, from the environment variables that launchers set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bumblecore_core.errors import BumbleError, RunError, one

TORCHRUN_KEYS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
ADDRESS_KEYS = ("MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process's place in a launch."""

    rank: int = 0
    """Index among the processes of all machines."""
    world_size: int = 1
    """Number of processes on all machines."""
    local_rank: int = 0
    """Index among the processes on this machine, and so its GPU."""


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """A launcher that does not set torchrun's variables, and the variables it sets instead."""

    name: str
    rank: str
    size: str
    local_rank: str
    command: str
    """A command that also sets MASTER_ADDR and MASTER_PORT, with `{size}` processes."""


OTHER_LAUNCHERS = (
    Launcher(
        name="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size="OMPI_COMM_WORLD_SIZE",
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        command="mpirun -np {size} -x MASTER_ADDR=HOST_OF_RANK_0 -x MASTER_PORT=29500 bumble run CONFIG",
    ),
    Launcher(
        name="Slurm",
        rank="SLURM_PROCID",
        size="SLURM_STEP_NUM_TASKS",
        local_rank="SLURM_LOCALID",
        command='MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500 '
        "srun --ntasks={size} bumble run CONFIG",
    ),
    Launcher(
        name="MPICH",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        command="mpiexec -n {size} -genv MASTER_ADDR HOST_OF_RANK_0 -genv MASTER_PORT 29500 bumble run CONFIG",
    ),
)


def read_launch(environ: Mapping[str, str]) -> Launch:
    """The place that torchrun, Open MPI, Slurm's srun or MPICH gave this process; a single process otherwise.

    torchrun's variables take precedence. MASTER_ADDR and MASTER_PORT alone mean nothing (clusters export them
    everywhere). Raises `RunError` BC067 where variables are missing, wrong, or do not fit together.
    """
    if any(key in environ for key in TORCHRUN_KEYS):
        return _torchrun(environ)
    launcher = other_launcher(environ)
    if launcher is None:
        return Launch()
    size = _size(launcher, environ)
    if any(not environ.get(key) for key in ADDRESS_KEYS):
        problem = (
            f"{launcher.name} started {size} processes ({launcher.rank}={environ[launcher.rank]}), but "
            f"{' and '.join(key for key in ADDRESS_KEYS if not environ.get(key))} are not set, so the processes "
            "cannot find one another"
        )
        fix = (
            f"Start them with `{launcher.command.format(size=size)}`; with torchrun on each machine; or, on one "
            f"machine, with `bumble run --nproc {size} CONFIG`"
        )
        raise one(RunError, "BC067", problem, fix)
    local = environ.get(launcher.local_rank) or "0"
    if launcher.name == "Slurm" and len(environ.get("CUDA_VISIBLE_DEVICES", ",").split(",")) == 1:
        local = "0"  # srun --gpus-per-task: each process sees a GPU of its own, under the number 0
    return _checked(environ[launcher.rank], str(size), local, environ["MASTER_PORT"])


def other_launcher(environ: Mapping[str, str]) -> Launcher | None:
    """The launcher without torchrun's variables that started this process as one of several; None otherwise."""
    for launcher in OTHER_LAUNCHERS:
        if launcher.rank in environ and _size(launcher, environ) > 1:
            return launcher
    return None


def _size(launcher: Launcher, environ: Mapping[str, str]) -> int:
    """The number of processes. A shell of sbatch or salloc has SLURM_NTASKS and SLURM_PROCID=0 too, though nothing but
    that shell runs: srun alone sets the number of tasks of the step."""
    found = environ.get(launcher.size, "")
    if not found and launcher.name == "Slurm" and environ[launcher.rank] != "0":
        found = environ.get("SLURM_NTASKS", "")
    return int(found) if found.isascii() and found.isdigit() else 1


def _torchrun(environ: Mapping[str, str]) -> Launch:
    keys = (*TORCHRUN_KEYS, *ADDRESS_KEYS)
    missing = [key for key in keys if not environ.get(key)]
    if missing:
        found = ", ".join(key for key in keys if environ.get(key))
        raise _wrong(f"{', '.join(missing)} not set although {found or 'others'} are")
    return _checked(*(environ[key] for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")))


def _checked(*values: str) -> Launch:
    try:
        rank, world_size, local_rank, _ = (int(value) for value in values)
    except ValueError:
        raise _wrong("RANK, WORLD_SIZE, LOCAL_RANK and MASTER_PORT must be whole numbers") from None
    if world_size < 1 or not 0 <= rank < world_size or local_rank < 0:
        raise _wrong(f"RANK={rank}, LOCAL_RANK={local_rank} and WORLD_SIZE={world_size} do not fit together")
    return Launch(rank=rank, world_size=world_size, local_rank=local_rank)


def _wrong(problem: str) -> BumbleError:
    fix = "Start it with `bumble run --nproc` or torchrun, which set all of them, or unset RANK, WORLD_SIZE, LOCAL_RANK"
    return one(RunError, "BC067", problem, fix)
