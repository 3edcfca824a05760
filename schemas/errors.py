"""All errors that camlake raises, in one tree.

CamlakeError             any error that camlake reports; exit status 1
├── UsageError           an option, file or combination that is not allowed; exit status 2
│   └── ModelError       an unknown network, a head that has no exact CAM, weights that don't fit
├── InputError           the listing can't be made: no such folder, an unreadable manifest
├── StoreError           the output store failed, or holds something that camlake did not write
├── LeaseError           the lease of the output is lost
│   └── HeldError        another run holds the output, or took it over; exit status 5
└── RejectedShareError   the run is complete, but more inputs than allowed were rejected; exit status 3

Stopped is not part of the tree, because no ``except Exception`` may swallow it: SIGTERM or Ctrl-C; exit status 4.
RejectedImage is not part of the tree: it never fails a run. The image becomes a row of ``quarantine``.
"""

from schemas.reasons import Reason
from schemas.url_secrets import without_secrets


class CamlakeError(Exception):
    """An error whose message has one line without secrets: the problem, its place and what the user can do."""

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


class UsageError(CamlakeError):
    """Wrong use: the message names the option, its value and what is allowed."""

    exit_status = 2


class ModelError(UsageError):
    """A network or its weights can't be used; the message names a network that can be used."""


class InputError(CamlakeError):
    """The inputs can't be listed."""


class StoreError(CamlakeError):
    """The output store refused a request, or objects of the output are lost or contradict each other."""


class LeaseError(CamlakeError):
    """This run does not hold the lease of the output any more."""


class HeldError(LeaseError):
    """Another run holds the output, or took it over. A schedule may ignore it: the other run does the work."""

    exit_status = 5


class RejectedShareError(CamlakeError):
    """All work is done, and more inputs than ``max_rejected`` ended in quarantine."""

    exit_status = 3


class Stopped(KeyboardInterrupt):
    """A signal asked this process to stop. What was decided by then is committed, and the lease is released."""

    exit_status = 4


class RejectedImage(Exception):  # noqa: N818 (an ending of an image, not a failure of the run)
    """One image can't be annotated; ``reason`` and ``detail`` go to the image's row in ``quarantine``.

    Functions that read or decode one image raise it. Functions that work on many images return it in the place of the
    image.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = without_secrets(detail)
        super().__init__(f"{reason}: {self.detail}")

    def __reduce__(self) -> tuple[type["RejectedImage"], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)
