"""Prepare the environment variables that a launcher, a notebook or an earlier job may have set."""

import sys
from collections.abc import Mapping, MutableMapping

from fer_lightning.errors import UserError

# For a run on several devices (trainer=ddp), Lightning starts this program again for each further process, which
# reads here which run it belongs to ("PARENT_PID:FOLDER") and ignores the command line, because a sweep or a folder
# named by the time would give it a different run.
RUN_OF = "FER_LIGHTNING_RUN_OF"
# The number of processes that torchrun was asked for, which a run has to use. Child processes inherit it.
TORCHRUN_PROCESSES = "FER_LIGHTNING_TORCHRUN_PROCESSES"

# A run starts its other processes itself. From these, which an earlier job or the launcher of this one process may
# have left, Lightning would conclude that the others are running already, or that this one must not write.
_RANKS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("SLURM_PROCID", "JSM_NAMESPACE_RANK"),
)

# Launchers that bind each process to its own cores or GPU, and the variable with the number of processes.
_BINDING_LAUNCHERS = {
    "srun": "SLURM_STEP_NUM_TASKS",
    "mpirun": "OMPI_COMM_WORLD_SIZE",
    "mpiexec": "PMI_SIZE",
    "jsrun": "JSM_NAMESPACE_SIZE",
}


def choose_backend(variables: MutableMapping[str, str]) -> None:
    """Let Matplotlib draw without a window, as no command opens one.

    It could not even be imported if the backend that a notebook sets for its child processes is not installed. The
    notebook's own process keeps its backend.
    """
    if "ipykernel" not in sys.modules:
        variables["MPLBACKEND"] = "agg"


def joins_run(variables: Mapping[str, str]) -> bool:
    """Return whether Lightning started this process for a run that another process began."""
    return RUN_OF in variables and variables.get("LOCAL_RANK", "0") != "0"


def prepare_training(variables: MutableMapping[str, str]) -> bool:
    """Remove what would mislead Lightning, and return whether this process is to train.

    It is not if torchrun started it beside the first process of a run, which starts the others itself.

    Args:
        variables: the process's environment variables, which are changed.

    Raises:
        UserError: a launcher started several processes that cannot be the processes of a run.
    """
    if joins_run(variables):
        return True
    world_size = _number(variables, "WORLD_SIZE")
    if world_size and "TORCHELASTIC_RUN_ID" in variables:
        if (rank := _number(variables, "LOCAL_RANK")) > 0:
            print(f"note:     process {rank} of torchrun ends here: process 0 starts the others of the run itself")
            return False
        if world_size != (here := _number(variables, "LOCAL_WORLD_SIZE")):
            raise UserError(
                f"torchrun started {world_size} processes, {here} of them on this machine, but a run uses one "
                "machine. Set --nnodes=1."
            )
        variables[TORCHRUN_PROCESSES] = str(world_size)
    else:
        _refuse_several(variables, world_size)
    for name in [name for name in variables if name in _RANKS or name.startswith("TORCHELASTIC_")]:
        del variables[name]
    return True


def _refuse_several(variables: MutableMapping[str, str], world_size: int) -> None:
    """Raise UserError if this process is one of several that a launcher other than torchrun started."""
    # An interactive shell (srun --pty) inherits the number of tasks of its job, and is the first of them.
    is_shell = "SLURM_PTY_PORT" in variables and not _number(variables, "SLURM_PROCID")
    for launcher, variable in _BINDING_LAUNCHERS.items():
        if (n := _number(variables, variable)) > 1 and not (is_shell and launcher == "srun"):
            raise UserError(
                f"{variable}={n}: {launcher} started {n} processes, but a run starts its processes itself. Let "
                f"{launcher} start one process with all cores and GPUs of the run, and set trainer=ddp "
                f"trainer.devices={n}. If {launcher} did not start this process, unset {variable}."
            )
    rank = _number(variables, "RANK") or _number(variables, "LOCAL_RANK")
    if world_size > 1 and rank > 0:
        raise UserError(
            f"WORLD_SIZE={world_size} and RANK or LOCAL_RANK={rank}: this would be one of several processes, but a "
            "run starts its processes itself. Unset these variables, and start one process with trainer=ddp "
            f"trainer.devices={world_size}."
        )


def _number(variables: MutableMapping[str, str], name: str) -> int:
    """Return the value of a variable; 0 if it is missing or not a number."""
    value = variables.get(name, "")
    return int(value) if value.isdecimal() else 0
