"""Finds why the processes of a training ended: one line for each reason, and whether another try may help."""

import re

from ray.exceptions import RayActorError, RayError, RayTaskError
from torch.distributed import DistError

from pipeline.graph.train.ray_train_private import failures_of, start_problem
from schemas.errors import CamlakeError

LINE_CHARS = 300
"""Most characters that are shown of an error that is not a CamlakeError."""


class NoRoomError(CamlakeError):
    """The cluster has no room for the processes now."""


class CodeError(CamlakeError):
    """An exception of the code, which most likely occurs again."""


class LostError(CamlakeError):
    """Processes, machines or connections were lost; another try may succeed."""

    def __init__(self, text: str, detail: str = "") -> None:
        """``detail``: Ray's description of the loss, which is shown where no other try follows."""
        super().__init__(text)
        self.detail = detail


def reason(error: Exception) -> CamlakeError:
    """Return why the processes ended; ``error`` is the error of Ray Train's ``fit`` and becomes the ``__cause__``.

    A CamlakeError comes back as it is. Where one process failed, the other processes lose their connections to it; the
    reason is then the failure of the one process.
    """
    problem = _reason(error)
    problem.__cause__ = error
    return problem


def _reason(error: Exception) -> CamlakeError:
    if isinstance(error, RayActorError):
        return LostError("the process that runs the others was lost", _detail(error))
    failures = list(failures_of(error).values())
    match start_problem(failures[0]):
        case "no room":
            return NoRoomError("no room for the processes")
        case "lost at the start":
            return LostError("a process was lost while it started", one_line(str(failures[0])))
        case "preempted":
            return LostError("a machine was taken away", one_line(str(failures[0])))
    return _at_work([_own_error(failure) for failure in failures])


def _at_work(failures: list[BaseException]) -> CamlakeError:
    """Return the reason among the failures of the processes."""
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


def _own_error(failure: BaseException) -> BaseException:
    """Return the CamlakeError that ended a task of Ray; every other failure comes back as it is."""
    cause = failure.cause if isinstance(failure, RayTaskError) else None
    return cause if isinstance(cause, CamlakeError) else failure


def _lost_a_peer(failure: BaseException) -> bool:
    """Return whether the process lost its connection to another process; a lost connection to a store does not count.

    Torch has no error class for a lost connection of Gloo, so the text decides.
    """
    if isinstance(failure, RayTaskError):
        return False
    named = isinstance(failure, RuntimeError) and re.search("gloo|nccl|connection", str(failure), re.IGNORECASE)
    return isinstance(failure, DistError) or bool(named)


def _may_pass(failure: BaseException, line: str) -> bool:
    """Return whether another try may help: after a loss inside Ray, or an error named like a lost connection.

    The failure of a task is a text, so only ``line``, its error line, can decide.
    """
    own_loss = isinstance(failure, RayError) and not isinstance(failure, RayTaskError)
    return own_loss or bool(re.match(r"[\w.]*(Connect|Timeout|BrokenPipe)\w*:", line))


def _error_line(failure: BaseException) -> str:
    """Return the name and the message of an error; in the traceback of a failed task both are in one line."""
    if isinstance(failure, RayTaskError):
        lines = [line.strip() for line in str(failure).splitlines()]
        named = [line for line in lines if re.match(r"[\w.]+(Error|Exception): ", line)]
        if named:
            return one_line(named[0])
    return one_line(f"{type(failure).__name__}: {failure}")


def _detail(error: RayActorError) -> str:
    """Return Ray's description of the death of a process, without the lines that identify the process."""
    lines = str(error).splitlines()
    return one_line(" ".join(line for line in lines[1:] if not line.startswith("\t")) or str(error))


def one_line(text: str) -> str:
    """Return the text in one line without a dot at the end; the middle of a text over ``LINE_CHARS`` is cut out."""
    line = " ".join(text.split()).rstrip(". ")
    half = (LINE_CHARS - 5) // 2
    return line if len(line) <= LINE_CHARS else f"{line[:half]} ... {line[-half:]}"
