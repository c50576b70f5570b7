"""What a model is, written down by other means than a receipt's: the witness of its contract."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from instar.errors import ContractError
from instar.receipts import bits

Content = tuple[Tensor, str, bytes]
"""A tensor object, its type, shape and device, and its bytes."""

_PLAIN = (bool, int, float, str, type(None))


class Interrupt(TorchDispatchMode):
    """Raises KeyboardInterrupt once, at the given operation; counts them."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.seen = at, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        if self.seen == self.at + 1:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


def flip(model: nn.Module, name: str) -> None:
    """Change the last bit of a tensor's last number."""
    words = bits.bits(bits.parts(tensors(model)[name])[0])
    words[(-1,) * words.dim()].bitwise_xor_(1)


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every name that leads to a tensor."""
    return dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])


def contents(model: nn.Module) -> dict[str, Content]:
    """Object, kind and bytes of every tensor by every name."""
    return {name: (tensor, _kind(tensor), _bytes(tensor)) for name, tensor in tensors(model).items()}


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device}"


def _bytes(tensor: Tensor) -> bytes:
    if hasattr(tensor, "__tensor_flatten__"):
        return b"".join(_bytes(getattr(tensor, name)) for name in tensor.__tensor_flatten__()[0])
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def same(a: Content | None, b: Content | None) -> bool:
    return a is not None and b is not None and a[1:] == b[1:]


def first_names(state: dict[str, Content]) -> dict[str, str]:
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, (tensor, *_) in state.items()}


def picture(model: nn.Module) -> list[tuple[str, Any]]:
    """Everything that undo has to bring back: objects are compared by identity, bits by value."""
    seen: list[tuple[str, Any]] = []
    for path, module in model.named_modules(remove_duplicate=False):
        seen += [(f"module {path}", module), (f"class of {path}", type(module))]
        for name, value in sorted(vars(module).items()):
            if isinstance(value, _PLAIN):
                seen.append((f"attribute {path}.{name}", value))
            elif name.endswith("_hooks"):
                seen += [(f"hook of {path}", hook) for hook in value.values()]
    for name, (tensor, kind, content) in contents(model).items():
        seen += [(f"tensor {name}", tensor), (f"type of {name}", kind), (f"bits of {name}", content)]
        seen.append((f"requires_grad of {name}", tensor.requires_grad))
    return seen


def require(model: nn.Module, expected: list[tuple[str, Any]], when: str) -> None:
    found = picture(model)
    for (name, was), (other, now) in zip(expected, found, strict=False):
        if name != other or not (was is now or (isinstance(was, (*_PLAIN, bytes)) and type(was) is type(now) and was == now)):
            raise ContractError(f"{when}, the model is not what it was: {name} differs.")
    if len(expected) != len(found):
        raise ContractError(f"{when}, the model has {len(found)} modules, tensors and attributes instead of {len(expected)}.")
