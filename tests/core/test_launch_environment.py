"""Which process of a launch this one is: torchrun's variables, and those of Slurm, Open MPI and MPICH."""

import pytest

from bumblecore_core.errors import RunError
from bumblecore_core.toolkit.launch_environment import Launch, other_launcher, read_launch

ADDRESS = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1"}
MPIRUN = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1"}
MPICH = {"PMI_RANK": "1", "PMI_SIZE": "2"}
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **ADDRESS}


@pytest.mark.parametrize(
    ("environ", "place"),
    [
        (SRUN, (3, 4, 1)),
        (SRUN | {"CUDA_VISIBLE_DEVICES": "2"}, (3, 4, 0)),  # --gpus-per-task: its own GPU has the number 0
        (SRUN | {"CUDA_VISIBLE_DEVICES": "0,1"}, (3, 4, 1)),
        (MPIRUN, (1, 2, 1)),
        (MPICH, (1, 2, 0)),
        (SRUN | MPICH, (3, 4, 1)),  # srun --mpi=pmi2
        (SRUN | TORCHRUN, (0, 2, 0)),  # torchrun under srun
    ],
)
def test_other_launchers_place_is_used_where_rank_0_has_an_address(environ, place):
    rank, world_size, local_rank = place
    assert read_launch(environ | ADDRESS) == Launch(rank=rank, world_size=world_size, local_rank=local_rank)


@pytest.mark.parametrize(
    "environ",
    [
        {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7"},  # salloc
        {"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"},
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # the shell of sbatch -n 8
        {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"},  # salloc with an interactive step
        {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"},
        {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "?"},
    ],
)
def test_a_single_process_in_a_job_is_just_a_process(environ):
    assert read_launch(environ) == read_launch(environ | ADDRESS) == Launch()
    assert other_launcher(environ) is None


@pytest.mark.parametrize(
    ("environ", "command"),
    [(SRUN, "srun --ntasks=4 bumble run"), (MPIRUN, "mpirun -np 2 -x MASTER_ADDR="), (MPICH, "mpiexec -n 2 -genv")],
)
def test_without_an_address_the_error_shows_the_command(environ, command):
    with pytest.raises(RunError, match=r"BC067: .* cannot find one another") as caught:
        read_launch(environ)
    assert command in str(caught.value)
    assert "MASTER_ADDR and MASTER_PORT are not set" in str(caught.value)
    with pytest.raises(RunError, match="but MASTER_PORT are not set"):
        read_launch(environ | {"MASTER_ADDR": "node1"})


def test_an_older_srun_is_known_by_a_rank_above_0():
    environ = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", **ADDRESS}
    assert read_launch(environ) == Launch(rank=1, world_size=2)
