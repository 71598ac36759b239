"""Muon: momentum whose steps are made orthogonal, for the matrices inside a network.

The method of Keller Jordan's "Muon: An optimizer for hidden layers in neural networks" (2024). torch has one,
but it takes each matrix alone and computes in bf16, which a CPU without bf16 instructions emulates at a
quarter of its speed: it took half of a training step. This one takes matrices of one shape together, in
bf16 where the device is faster at it (GPUs, newest CPUs) and in fp32 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

A, B, C = 3.4445, -4.7750, 2.0315
"""The quintic polynomial that drives singular values towards 1."""
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """`parameters` are matrices; the learning rate is that of a square one."""

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            alike: dict[tuple[int, ...], list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
            for parameters in alike.values():
                self._step(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, parameters: list[torch.Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        wide = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["velocity"] = torch.zeros_like(parameter)
            state["velocity"].lerp_(parameter.grad, 1 - momentum)
            ahead = parameter.grad.lerp(state["velocity"], momentum)
            wide.append(ahead if ahead.shape[0] <= ahead.shape[1] else ahead.T)
        for parameter, update in zip(parameters, orthogonal(torch.stack(wide)), strict=True):
            turned = parameter.shape[0] > parameter.shape[1]
            size = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(update.T if turned else update, alpha=-lr * size)


def orthogonal(x: torch.Tensor) -> torch.Tensor:
    """[B, m, n], m ≤ n → nearly orthogonal matrices of the same directions (Newton and Schulz)."""
    dtype = x.dtype
    x = x.to(torch.bfloat16 if multiplies_bf16(x.device) else torch.float32)
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.to(dtype)


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 faster than fp32: GPUs, and CPUs with AMX.

    With AVX-512's instructions for it alone a step of training took one and a half times as long as in fp32.
    """
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16", False))
