"""The machine: its device and precision, and what config.json says of both."""

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

from common import UserError

import torch

ROOT = Path(__file__).resolve().parent.parent


def choose_device(name):
    """torch.device for `--device`; `UserError` where it is absent."""
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next((kind for kind in present if present[kind]), "cpu")
    if not present.get(name, name == "cpu"):
        raise UserError(f"no {name} device on this machine: leave --device out")
    return torch.device(name)


def choose_precision(name, device):
    """'fp32' or 'bf16' for `--precision`. auto: bf16 on an x86 CPU that multiplies it, else fp32.
    A GPU takes fp32: these networks are so small that it waits for the next kernel to be launched,
    and bf16 launches more of them."""
    if name != "auto":
        return name
    features = getattr(torch.cpu, "get_capabilities", dict)() if device.type == "cpu" else {}
    return "bf16" if features.get("avx512_bf16") or features.get("amx_tile") else "fp32"


def no_memory(error):
    """Whether an exception says that no memory is left, a processor's or a GPU's."""
    words = "allocate memory|not enough memory|out of memory|ALLOC_FAILED"
    kinds = MemoryError, torch.OutOfMemoryError
    return isinstance(error, kinds) or bool(re.search(words, str(error)))


def keep_memory():
    """Let the process keep the memory that it frees. Linux takes large blocks back and hands them
    out again as empty pages in each step, which can cost bigan.py a fifth of its time."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a C library other than glibc has no mallopt
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing goes back
            mallopt(-4, 0)  # M_MMAP_MAX: no block gets pages of its own


def get_rng(device):
    """States of torch's generators, from which all random numbers here come."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = getattr(torch, device.type).get_rng_state()
    return states


def set_rng(states, device):
    """Go on with the random numbers where `get_rng` was called."""
    torch.set_rng_state(states["cpu"].cpu())
    if device.type in states and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(states[device.type].cpu())


def describe(device):
    """What config.json says of the machine and the code."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions["scikit-learn"] = importlib.metadata.version("scikit-learn")
    return {
        "device": device.type,
        "hardware": hardware(device),
        "commit": commit(),
        "versions": versions,
    }


def hardware(device):
    """The GPU's name, or the processor: 'NAME, AVX2, 2 threads', with its vector instructions in
    use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    if device.type == "mps":
        return f"{name}, GPU"
    vectors = torch.backends.cpu.get_cpu_capability()
    return f"{name}, {vectors}, {torch.get_num_threads()} threads"


def commit():
    """Short hash of the last commit that changed code or data; a '+' follows where they differ."""
    git, code = ["git", "-C", str(ROOT)], ["--", "*.py", "data"]
    here = {**os.environ, "GIT_CEILING_DIRECTORIES": str(ROOT.parent)}  # not of a folder around it
    try:
        last = [*git, "rev-list", "-1", "--abbrev-commit", "HEAD", *code]
        head = subprocess.run(last, capture_output=True, text=True, env=here)
        status = [*git, "status", "--porcelain", "-uno", *code]
        changed = subprocess.run(status, capture_output=True, text=True, env=here).stdout.strip()
    except OSError:
        return "unknown"
    return head.stdout.strip() + ("+" if changed else "") if head.returncode == 0 else "unknown"
