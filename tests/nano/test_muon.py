"""Muon's steps are orthogonal, whatever the gradient's sizes; and it makes a fit."""

from __future__ import annotations

import pytest
import torch

from nano.muon import Muon, orthogonal


def test_steps_have_singular_values_near_one() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(3, 24, 60) * torch.logspace(-0.5, 0.5, 24)[None, :, None]
    values = torch.linalg.svdvals(orthogonal(gradients))
    assert values.min() > 0.3
    assert values.max() < 1.4


@pytest.mark.parametrize("shape", [(16, 16), (16, 40), (40, 16)])
def test_it_fits_a_matrix_of_any_shape(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    wanted, found = torch.randn(shape), torch.nn.Parameter(torch.zeros(shape))
    other = torch.nn.Parameter(torch.zeros(7, 7))  # without a gradient it stays as it is
    stepper = Muon([found, other], lr=0.1)
    for number in range(200):
        for group in stepper.param_groups:
            group["lr"] = 0.2 * (1 - number / 200)
        loss = (found - wanted).square().mean()
        loss.backward()
        stepper.step()
        stepper.zero_grad(set_to_none=True)
    assert loss < 0.05
    assert not other.any()
