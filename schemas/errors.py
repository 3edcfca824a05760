"""All errors that camlake raises, in one tree.

CamlakeError             anything camlake itself reports; exit status 1
├── UsageError           an option, file or combination that can't be meant; exit status 2
│   └── ModelError       an unknown network, a head that has no exact CAM, weights that don't fit
├── InputError           the listing can't be made: no such folder, an unreadable manifest
├── StoreError           the output store failed or holds something camlake did not write
├── LeaseError           another run holds this output, or took it over
└── RejectedShareError   the run is complete, but more inputs than allowed were rejected; exit status 3

RejectedImage is not part of the tree: it never fails a run. The image becomes a row of ``quarantine``.
"""

from schemas.reasons import Reason
from schemas.url_secrets import without_secrets


class CamlakeError(Exception):
    """An error whose message says in one line what was wrong, where, and what to do, without secrets."""

    exit_status = 1

    def __init__(self, message: str = "") -> None:
        super().__init__(without_secrets(message))


class UsageError(CamlakeError):
    """Wrong use: the message names the option, its value and what is allowed."""

    exit_status = 2


class ModelError(UsageError):
    """A network or its weights can't be used; the message names one that can."""


class InputError(CamlakeError):
    """The inputs can't be listed."""


class StoreError(CamlakeError):
    """The output store refused, lost or contradicts something."""


class LeaseError(CamlakeError):
    """The output belongs to another run."""


class RejectedShareError(CamlakeError):
    """All work is done, and more inputs than ``max_rejected`` ended in quarantine."""

    exit_status = 3


class RejectedImage(Exception):  # noqa: N818 (an ending of an image, not a failure of the run)
    """One image can't be annotated. ``reason`` and ``detail`` are what its row of quarantine shows.

    It is raised where an image is read or decoded, and returned in the place of that image by whoever works on many.
    """

    def __init__(self, reason: Reason, detail: str) -> None:
        self.reason = reason
        self.detail = without_secrets(detail)
        super().__init__(f"{reason}: {self.detail}")

    def __reduce__(self) -> tuple[type["RejectedImage"], tuple[Reason, str]]:
        return type(self), (self.reason, self.detail)
