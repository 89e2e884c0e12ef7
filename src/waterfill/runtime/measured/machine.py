"""What speed depends on beside a matrix: the processor, the libraries, the threads."""

import platform
from functools import cache
from importlib import metadata
from pathlib import Path

import torch

from waterfill.coding import native

_CPUINFO = Path("/proc/cpuinfo")


def machine(device: str = "cpu") -> dict[str, str]:
    """The machine in words, for a device. Where any of it differs, what was measured says nothing."""
    return {
        "processor": _processor(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "kernels": "compiled" if native.core is not None else "NumPy",
        "torch": torch.__version__,
        "waterfill": metadata.version("waterfill"),
        "threads": str(torch.get_num_threads()),
        "device": torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
    }


@cache
def _processor() -> str:
    """The name of the processor's model, as the system has it."""
    try:
        named = [line for line in _CPUINFO.read_text("utf-8", "replace").splitlines() if line.startswith("model name")]
    except OSError:
        named = []
    return named[0].partition(":")[2].strip() if named else platform.processor() or platform.machine()
