"""Products by oneDNN equal torch's own."""

import pytest
import torch
from conftest import tiny_config
from torch import nn
from transformers import BertModel

from dense_retrieval import matmul


@pytest.fixture(autouse=True)
def slow_mkl(monkeypatch):
    """As on a CPU that MKL does not know, whatever this one is."""
    monkeypatch.setattr(matmul, "_mkl_is_slow", lambda: True)


@pytest.mark.parametrize("shape", [(7,), (1,), (3, 5), (2, 0)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_and_its_gradients(shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(12, 9, bias=bias)
    found = []
    for context in (matmul.fastest_matmul(), torch.enable_grad()):
        layer.zero_grad()
        x = torch.randn(*shape, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with context:
            y = layer(x)
        y.square().sum().backward()
        found.append([y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_only_float32_on_a_cpu_outside_autocast_is_changed():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    with matmul.fastest_matmul():
        assert type(layer(x).grad_fn).__name__ == "_LinearBackward"
        assert type(layer.double()(x.double()).grad_fn).__name__ == "AddmmBackward0"
        with torch.autocast("cpu", torch.bfloat16):
            assert layer.float()(x).dtype == torch.bfloat16
    assert type(layer(x).grad_fn).__name__ == "AddmmBackward0"


def test_a_frozen_layer_gets_no_gradient():
    layer = nn.Linear(4, 3).requires_grad_(False)
    x = torch.randn(5, 4, requires_grad=True)
    with matmul.fastest_matmul():
        layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(5, 4))
    assert layer.weight.grad is None and layer.bias.grad is None


def test_a_transformer_s_gradients():
    torch.manual_seed(0)
    model = BertModel(tiny_config(), add_pooling_layer=False).eval()
    ids, mask = torch.randint(4, 20, (3, 9)), torch.ones(3, 9, dtype=torch.long)
    mask[1, 5:] = 0
    found = []
    for context in (matmul.fastest_matmul(), torch.enable_grad()):
        model.zero_grad()
        with context:
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        (hidden.square() * mask[..., None]).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert (found[0] - found[1]).norm() < 1e-5 * found[1].norm()


def test_no_mode_where_mkl_is_fast(monkeypatch):
    monkeypatch.setattr(matmul, "_mkl_is_slow", lambda: False)
    with matmul.fastest_matmul():
        assert type(nn.Linear(4, 3)(torch.randn(5, 4)).grad_fn).__name__ == "AddmmBackward0"
