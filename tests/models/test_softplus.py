"""Softplus over its argument, and as a new tensor where somebody still needs that."""

from __future__ import annotations

from unittest.mock import patch

import torch
from torch.nn.functional import softplus

from longspan.models.softplus import softplus_

VALUES = (-200.0, -1.0, 0.0, 1.0, 19.9, 20.1, 200.0)


def test_it_takes_its_arguments_place() -> None:
    x = torch.tensor(VALUES)
    expected = softplus(x)
    with torch.no_grad():
        assert softplus_(x) is x
    assert torch.equal(x, expected)


def test_it_does_not_where_a_gradient_may_be_asked_for() -> None:
    x = torch.tensor(VALUES, requires_grad=True)
    y = softplus_(x * 1)
    assert torch.equal(y, softplus(x))
    (found,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(found, torch.sigmoid(x))


def test_it_does_not_while_a_graph_is_exported() -> None:
    x = torch.tensor(VALUES)
    with torch.no_grad(), patch.object(torch.onnx, "is_in_onnx_export", lambda: True):
        assert softplus_(x) is not x
    assert torch.equal(x, torch.tensor(VALUES))
