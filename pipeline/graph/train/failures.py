"""Why the processes of a training ended: one line each, and whether another try may help."""

import re

from ray.exceptions import RayActorError, RayError, RayTaskError
from torch.distributed import DistError

from schemas.errors import CamlakeError

LINE_CHARS = 300
"""Most characters that are told of an error that is not ours."""


class NoRoomError(CamlakeError):
    """The cluster has no room for the processes now."""


class CodeError(CamlakeError):
    """An exception of the code itself, which most likely comes again."""


class LostError(CamlakeError):
    """Processes, machines or connections were lost: another try may well succeed."""

    def __init__(self, text: str, detail: str = "") -> None:
        """``detail``: what Ray knows of it, which is told where no other try follows."""
        super().__init__(text)
        self.detail = detail


def reason(error: Exception) -> CamlakeError:
    """Return why the processes ended, from what ``fit`` of Ray Train raised; its ``__cause__`` is that error.

    An error of camlake's own is handed on as it is. The cause comes first, not what it did to the other processes:
    those only lose their connections.
    """
    found = _reason(error)
    found.__cause__ = error
    return found


def _reason(error: Exception) -> CamlakeError:
    if isinstance(error, RayActorError):
        return LostError("the process that runs the others was lost", _detail(error))
    start = getattr(error, "controller_failure", error)
    workers = getattr(error, "worker_failures", None) or {0: start}
    return _at_start(start) or _at_work([_unwrapped(failure) for failure in workers.values()])


def _at_start(error: Exception) -> CamlakeError | None:
    """Return what Ray Train itself has a name for."""
    match type(error).__name__:
        case "WorkerGroupStartupTimeoutError":
            return NoRoomError("no room for the processes")
        case "WorkerGroupStartupFailedError":
            return LostError("a process was lost while it started", one_line(str(error)))
        case "PreemptionError":
            return LostError("a machine was taken away", one_line(str(error)))
        case _:
            return None


def _at_work(failures: list[BaseException]) -> CamlakeError:
    own = [failure for failure in failures if isinstance(failure, CamlakeError)]
    if own:
        return own[0]
    lost = [failure for failure in failures if isinstance(failure, RayActorError)]
    if lost:
        return LostError("a process that learns was lost", _detail(lost[0]))
    causes = [failure for failure in failures if not _lost_a_peer(failure)]
    if not causes:
        return LostError(f"a process that learns lost the connection to another one: {_error_line(failures[0])}")
    line = _error_line(causes[0])
    return LostError(line) if _may_pass(causes[0], line) else CodeError(line)


def _unwrapped(failure: BaseException) -> BaseException:
    """Return why a process is dead, or which error of camlake's a task of Ray ended with; else the failure itself."""
    failure = getattr(failure, "health_check_failure", failure)
    cause = failure.cause if isinstance(failure, RayTaskError) else None
    return cause if isinstance(cause, CamlakeError) else failure


def _lost_a_peer(failure: BaseException) -> bool:
    """Return whether the processes could not talk to each other; a store that can't be reached is something else."""
    if isinstance(failure, RayTaskError):
        return False
    named = isinstance(failure, RuntimeError) and re.search("gloo|nccl|connection", str(failure), re.IGNORECASE)
    return isinstance(failure, DistError) or bool(named)


def _may_pass(failure: BaseException, line: str) -> bool:
    """Return whether it is Ray's own loss, or by its name that of a connection: a task's error is no more than that."""
    own_loss = isinstance(failure, RayError) and not isinstance(failure, RayTaskError)
    return own_loss or bool(re.match(r"[\w.]*(Connect|Timeout|BrokenPipe)\w*:", line))


def _error_line(failure: BaseException) -> str:
    """Return the name of the error and what it says; a task's comes as the text of its traceback."""
    if isinstance(failure, RayTaskError):
        lines = [line.strip() for line in str(failure).splitlines()]
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
        if named:
            return one_line(named[0])
    return one_line(f"{type(failure).__name__}: {failure}")


def _detail(error: RayActorError) -> str:
    """Return what Ray knows of the death, without the lines that name the process."""
    lines = str(error).splitlines()
    return one_line(" ".join(line for line in lines[1:] if not line.startswith("\t")) or str(error))


def one_line(text: str) -> str:
    """Return the text in one line without a dot at its end; one of more than ``LINE_CHARS`` loses its middle."""
    line = " ".join(text.split()).rstrip(". ")
    half = (LINE_CHARS - 5) // 2
    return line if len(line) <= LINE_CHARS else f"{line[:half]} ... {line[-half:]}"
