"""Devices as recipes are told them."""

from __future__ import annotations

import torch


def usable_device(name: str = "auto") -> str:
    """The device of that name, if it can be used; "auto" is a CUDA GPU where there is one, else the CPU.

    Raises:
        ValueError: there is none of that name.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the second: a torch without CUDA
        raise ValueError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return name
