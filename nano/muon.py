"""Muon, an optimizer for the hidden matrices of a network: momentum with orthogonalized updates.

Source: Keller Jordan, "Muon: An optimizer for hidden layers in neural networks" (2024).

torch has an implementation, but it processes matrices one at a time and always computes in bf16. CPUs without bf16
instructions emulate these at a quarter of their speed, so that it took half of each training step. This implementation
processes all matrices of the same shape together, in bf16 on devices where that is faster (GPUs and the latest CPUs)
and in fp32 elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

A, B, C = 3.4445, -4.7750, 2.0315
"""Coefficients of the quintic polynomial that moves singular values towards 1."""
ITERATIONS = 5
"""Number of Newton-Schulz iterations."""


class Muon(torch.optim.Optimizer):
    """The optimizer. It accepts only matrices.

    Args:
        parameters: the matrices to optimize.
        lr: learning rate of a square matrix. It is multiplied by √(rows / columns) for tall ones.
        momentum: decay of the moving average of gradients. The update is Nesterov's.
        weight_decay: decoupled weight decay, as in AdamW.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[torch.Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(sorted(parameter.shape)), []).append(parameter)
            for parameters in by_shape.values():
                self._step(parameters, group["lr"], group["momentum"], group["weight_decay"])

    def _step(self, parameters: list[torch.Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        wide = []
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["velocity"] = torch.zeros_like(parameter)
            state["velocity"].lerp_(parameter.grad, 1 - momentum)
            nesterov = parameter.grad.lerp(state["velocity"], momentum)
            wide.append(nesterov if nesterov.shape[0] <= nesterov.shape[1] else nesterov.T)
        for parameter, update in zip(parameters, orthogonalize(torch.stack(wide)), strict=True):
            transposed = parameter.shape[0] > parameter.shape[1]
            scale = max(1.0, parameter.shape[0] / parameter.shape[1]) ** 0.5
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(update.T if transposed else update, alpha=-lr * scale)


def orthogonalize(x: torch.Tensor) -> torch.Tensor:
    """Return nearly orthogonal matrices with the singular vectors of `x`, by Newton-Schulz iteration.

    Args:
        x: [B, m, n] with m ≤ n.

    Returns:
        [B, m, n] in the dtype of `x`, with singular values close to 1.
    """
    dtype = x.dtype
    x = x.to(torch.bfloat16 if multiplies_bf16(x.device) else torch.float32)
    x = x / x.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=B, alpha=C), x, beta=A)
    return x.to(dtype)


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether the device multiplies bf16 matrices faster than fp32 ones. GPUs do, and CPUs with AMX.

    On a CPU that only has the bf16 instructions of AVX-512, a training step took one and a half times as long as in
    fp32.
    """
    return device.type == "cuda" or bool(torch.cpu.get_capabilities().get("amx_bf16", False))
