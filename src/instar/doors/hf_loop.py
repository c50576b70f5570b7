"""A slice of the decoder layers of a `transformers` model applied several times, without touching the model's weights or names.

    with hf_loop.loop(model, first=2, last=4, loops=3):
        logits = model(**inputs, use_cache=False).logits

Nothing here imports `transformers`: layers are found by `instar.anatomy`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from instar.anatomy import anatomy
from instar.errors import ModelError, ShapeError
from instar.inference.descent import share, spread


class LoopedLayers:
    """Layers `first` … `last` of a model run `loops` times; change `loops` and `tolerance` whenever you like.

    Made by `loop`. `taken`: int64 [B], loops of each row in the latest forward pass.
    """

    def __init__(self, layers: list[nn.Module], loops: int, tolerance: float, inject: float) -> None:
        self.layers, self.loops, self.tolerance, self.inject = layers, loops, tolerance, inject
        self.taken: Tensor | None = None
        # Of each layer, as masks and rotary positions differ where a model mixes windows with full attention.
        self._given: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        self._handles = [layer.register_forward_pre_hook(self._before, with_kwargs=True) for layer in layers]
        self._handles.append(layers[-1].register_forward_hook(self._after))

    def remove(self) -> None:
        """The model is as it was."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> LoopedLayers:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.loops < 1 or self.tolerance < 0:
            raise ShapeError(f"Layers run once or more, with tolerance ≥ 0; received {self.loops} and {self.tolerance}.")
        if self.loops > 1 and any(hasattr(one, "get_seq_length") for one in (*args, *kwargs.values())):
            raise ModelError(
                "A looped layer would write keys and values of every loop into one place of the cache. Call the model, or "
                "generate, with use_cache=False."
            )
        self._given[module] = (args, kwargs)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        given, kwargs = self._given[self.layers[0]]
        start = given[0] if given else kwargs["hidden_states"]
        before, z = start, _states(output)
        self.taken = torch.ones(len(z), dtype=torch.int64, device=z.device)
        going = torch.ones(len(z), dtype=torch.bool, device=z.device)
        for _ in range(self.loops - 1):
            if self.tolerance > 0:
                moved = share((z - before).detach().flatten(1).norm(dim=1), before.detach().flatten(1).norm(dim=1))
                going = going & (moved >= self.tolerance)
                if not bool(going.any()):
                    break
            before, after = z, z + self.inject * start if self.inject else z
            for layer in self.layers:
                after = _states(_call(layer, after, *self._given[layer]))
            z = torch.where(spread(going, z), after, z)
            self.taken += going
        self._given.clear()
        return (z, *output[1:]) if isinstance(output, tuple) else z


def loop(model: nn.Module, *, first: int, last: int, loops: int = 2, tolerance: float = 0.0, inject: float = 0.0) -> LoopedLayers:
    """Run layers first … last (counted from 0, both included) `loops` times in every forward pass, until `remove()`.

    tolerance: a row stops looping when ‖z′ − z‖ / ‖z‖ falls below it; 0 never. inject: the slice's input times this is added
    before every loop but the first. Gradients pass through all loops. loops = 1 is the model itself. A pretrained model was never
    trained so: measure before you believe in it, and fine-tune where the loss rises.
    Raises ModelError for models whose layers are not found and for calls with a cache, ShapeError for layers that do not exist.
    """
    blocks = anatomy(model).blocks
    if not 0 <= first <= last < len(blocks):
        raise ShapeError(f"Layers are 0 … {len(blocks) - 1}, first not behind last; received {first} … {last}.")
    if loops < 1 or tolerance < 0:
        raise ShapeError(f"Layers run once or more, with tolerance ≥ 0; received {loops} and {tolerance}.")
    return LoopedLayers([block.module for block in blocks[first : last + 1]], loops, tolerance, inject)


def _call(layer: nn.Module, z: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """As the model called this layer; hooks of layers are for the model's own pass alone."""
    if args:
        return layer.forward(z, *args[1:], **kwargs)
    return layer.forward(**{**kwargs, "hidden_states": z})


def _states(output: Any) -> Tensor:
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found
