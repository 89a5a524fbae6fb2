"""What kernels are compiled for: the target of a backend on a device, and the device's name."""

from __future__ import annotations

import functools
import importlib.util
import os

import torch

from attndsl.diagnostics import ArgumentError

OLDEST_CUDA = (8, 0)  # compute capability: Ampere


def target_of(backend: str, device: torch.device) -> str:
    """What the kernels are compiled for; ArgumentError where the backend cannot run there."""
    if backend == "triton":
        if is_interpreting():
            return "interpreter"
        if device.type != "cuda":
            raise ArgumentError(
                f'backend="triton" cannot run on {device.type} tensors; use backend="torch", or '
                "set TRITON_INTERPRET=1 before Triton is imported to run in its interpreter"
            )
        if not torch.version.hip and torch.cuda.get_device_capability(device) < OLDEST_CUDA:
            raise ArgumentError(
                "the Triton kernels need a GPU of compute capability 8.0 or newer; "
                'compile with backend="torch"'
            )
    return architecture(device) if device.type == "cuda" else "cpu"


@functools.cache
def architecture(device: torch.device) -> str:
    """Such as sm_90 or gfx942."""
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return str(properties.gcnArchName).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"


@functools.cache
def name_of(device: torch.device) -> str:
    """The model of a device, by which measured sizes are kept; "cpu" of the interpreter's."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@functools.cache
def is_interpreting() -> bool:
    """Whether Triton runs in its interpreter; its own functions decide when they are imported."""
    if importlib.util.find_spec("triton") is None:
        raise ArgumentError(
            'backend="triton" needs Triton, which is not installed; use backend="torch"'
        )
    if os.environ.get("TRITON_INTERPRET") != "1":
        return False
    import triton.language
    from triton.runtime.jit import JITFunction

    return not isinstance(triton.language.cdiv, JITFunction)
