"""Imports torchvision without torch._dynamo, the compiler's front, whose import takes three of the four seconds.

torchvision 0.29 imports one function of torch._dynamo when it is itself imported: ``torchvision.ops.roi_align`` asks
``is_compile_supported`` before it compiles a fallback of RoI align, which camlake never calls. While torchvision is
imported, a stand-in has this function; when it is called, it asks the real one. Packages whose modules import
torchvision import this module first. Where torchvision no longer needs it, tests/test_private_parts.py says so.
"""

import sys
from types import ModuleType

_NAME = "torch._dynamo.utils"


def _is_compile_supported(device_type: str) -> bool:
    """Return what torch._dynamo's function of this name does."""
    from torch._dynamo.utils import is_compile_supported  # noqa: PLC0415 - what this module avoids

    supported: bool = is_compile_supported(device_type)
    return supported


if _NAME not in sys.modules and "torchvision" not in sys.modules:
    _stand_in = ModuleType(_NAME)
    _stand_in.__dict__["is_compile_supported"] = _is_compile_supported
    sys.modules[_NAME] = _stand_in
    try:
        import torchvision  # noqa: F401 - so that every later import finds it
    finally:
        if sys.modules.get(_NAME) is _stand_in:
            del sys.modules[_NAME]
