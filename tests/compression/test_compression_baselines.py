"""Baselines: GGUF formats are those of the gguf package, pruning keeps the largest, per-channel equals the fast layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from instar.checks import find
from instar.checks.transform import check_refusals
from instar.checks.transform_models import encoder
from instar.compression import gguf_file
from instar.compression.blockwise import Blockwise
from instar.compression.gguf_blocks import GgufBlocks, GgufFormat, Type
from instar.compression.int8 import Int8
from instar.compression.magnitude_pruning import MagnitudePruning, Sparse
from instar.compression.per_channel_int8 import PerChannelInt8
from instar.compression.per_tensor_int import PerTensorInt
from instar.errors import ContractError, ShapeError, TransformError, UnknownNameError
from instar.receipt import Receipt, updating

TYPES: list[Type] = ["Q8_0", "Q4_0", "Q4_1"]


def weights(rows: int = 24, columns: int = 96) -> Tensor:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * torch.rand(rows, 1)
    x[3] = 0
    x[4, 5], x[4, 6] = 2, -2  # of equals the first decides
    x[5] = torch.arange(columns) / 254 - 0.2
    return x


@pytest.mark.parametrize("kind", TYPES)
def test_bytes_and_values_are_those_of_the_gguf_package(kind: Type) -> None:
    gguf = pytest.importorskip("gguf")
    x, fmt = weights(), GgufFormat(kind)
    parts = fmt.encode(x)
    theirs = gguf.quantize(x.numpy(), getattr(gguf.GGMLQuantizationType, kind))
    assert np.array_equal(parts["codes"].numpy(), theirs)
    found = fmt.decode(parts, (24, 96))
    assert np.array_equal(found.numpy(), gguf.dequantize(theirs, getattr(gguf.GGMLQuantizationType, kind)))
    ids = torch.tensor([4, 0, 4])
    assert torch.equal(fmt.lookup(parts, (24, 96), ids), found[ids])


def test_gguf_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TransformError, match="multiple of 32"):
        GgufFormat("Q4_0").encode(torch.zeros(2, 40))
    with pytest.raises(TransformError, match="float16"):
        GgufFormat("Q4_0").encode(torch.full((1, 32), 1e9))
    with pytest.raises(UnknownNameError, match="Q4_0"):
        GgufBlocks(type="Q4_O")  # type: ignore[arg-type]
    model = nn.Sequential(nn.Linear(40, 64), nn.Linear(64, 8))
    GgufBlocks().apply(model)
    assert isinstance(model[0], nn.Linear)  # 40 inputs are no whole blocks


@pytest.mark.parametrize(
    ("method", "kind"),
    [(GgufBlocks(type="Q4_1"), "Q4_1"), (Blockwise(bits=8, rows=1, block=32), "Q8_0"), (Blockwise(bits=4, block=32), "F32")],
)
def test_a_gguf_file_reads_back_as_the_model(method: GgufBlocks | Blockwise, kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = encoder()
    method.apply(model)
    path = gguf_file.write(model, tmp_path / "model.gguf")
    found = {t.name: t for t in gguf.GGUFReader(path).tensors}
    assert found["up.weight"].tensor_type.name == kind
    for name in ("embedding", "up", "down", "head"):
        tensor = found[f"{name}.weight"]
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.array_equal(values, model.get_submodule(name).weight.numpy())
    assert np.array_equal(found["up.bias"].data, model.up.bias.detach().numpy())
    assert np.array_equal(found["norm.weight"].data, model.norm.weight.detach().numpy())


def test_per_channel_is_the_fast_layer_in_float() -> None:
    slow, fast = nn.Sequential(nn.Linear(64, 32)), nn.Sequential(nn.Linear(64, 32))
    fast.load_state_dict(slow.state_dict())
    PerChannelInt8().apply(slow)
    Int8(outliers=0).apply(fast)
    x = torch.randn(9, 64)
    with torch.no_grad():
        assert torch.allclose(slow(x), fast(x), rtol=1e-5, atol=1e-5)


def test_one_large_value_ruins_a_whole_tensor_and_one_block() -> None:
    plain = nn.Sequential(nn.Linear(256, 64, bias=False))
    with torch.no_grad():
        plain[0].weight[3, 7] = 30
    weight = plain[0].weight.detach().clone()
    errors = {}
    for name, method in (("tensor", PerTensorInt(bits=4)), ("blocks", Blockwise(bits=4, block=32))):
        with method.apply(plain):
            errors[name] = (plain[0].weight - weight)[4:].norm()
    assert errors["blocks"] < errors["tensor"] / 3


class GoesThroughTwice(Blockwise):
    """A second run does nothing, and says nothing."""

    def apply(self, model: nn.Module, data: Any = None, **given: Any) -> Receipt:
        try:
            return super().apply(model, data, **given)
        except TransformError:
            if not model.state_dict() or not all(bool(p.isfinite().all()) for p in model.parameters()):
                raise
            with updating(model, method="blockwise", changes=[]) as update:
                pass
            return update.receipt


def test_the_contract_of_transforms_asks_for_a_word_at_a_second_run() -> None:
    check_refusals(find(Blockwise))
    with pytest.raises(ContractError, match=r"A second run on layers of torch\.nn\.Linear must"):
        check_refusals(find(GoesThroughTwice))


def test_pruning_keeps_the_largest_and_nothing_else() -> None:
    x = torch.randn(7, 11, generator=torch.Generator().manual_seed(1))
    x[0, :5] = 0.25  # ties go to the first
    for density in (0.01, 0.3, 0.5, 1.0):
        fmt = Sparse(density)
        found = fmt.decode(fmt.encode(x), (7, 11))
        kept = found != 0
        assert int(kept.sum()) == int(density * 77)
        assert torch.equal(found[kept], x[kept])
        if 0 < int(kept.sum()) < 77:
            assert x[kept].abs().min() >= x[~kept].abs().max()
    with pytest.raises(ShapeError, match="density"):
        MagnitudePruning(density=0)
