"""The updates of Muon are orthogonal regardless of the scale of the gradients, and it minimizes a loss."""

from __future__ import annotations

import pytest
import torch

from nano.muon import Muon, orthogonalize


def test_updates_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(3, 24, 60) * torch.logspace(-0.5, 0.5, 24)[None, :, None]
    values = torch.linalg.svdvals(orthogonalize(gradients))
    assert values.min() > 0.3
    assert values.max() < 1.4


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16)])
def test_matrices_of_any_shape_are_fitted(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    target, matrix = torch.randn(shape), torch.nn.Parameter(torch.zeros(shape))
    other = torch.nn.Parameter(torch.zeros(7, 7))  # It has no gradient and must not change.
    optimizer = Muon([matrix, other], lr=0.1)
    for number in range(200):
        for group in optimizer.param_groups:
            group["lr"] = 0.2 * (1 - number / 200)
        loss = (matrix - target).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert loss < 0.05
    assert not other.any()
