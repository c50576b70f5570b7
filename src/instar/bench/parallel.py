"""One model trained by several processes: copies that average their gradients (DDP), or shards of one model (FSDP2).

    torchrun --nproc-per-node 2 train.py        # whose fit(…, parallel="fsdp") is this

Every process takes its own micro-batches; the loss curve is that of one process which takes all of them (with so much more
`accumulate`). A checkpoint holds whole tensors, whoever wrote it: one process, copies and shards go on from each other's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn

from instar.errors import ShapeError
from instar.models.refitting import Refits

Parallel = Literal["none", "ddp", "fsdp"]
BUCKET = 25 * 2**20
"""Bytes of gradients that are sent together."""


class Group:
    """The processes that train together; of one process without them, it does nothing.

    Raises ShapeError for an unknown way, and where no processes were started.
    """

    def __init__(self, way: Parallel) -> None:
        if way not in get_args(Parallel):
            raise ShapeError(f"parallel expects {', '.join(get_args(Parallel))}; received '{way}'.")
        self.way = way
        if way == "none":
            self.rank, self.world = 0, 1
            return
        if not dist.is_initialized():
            if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
                raise ShapeError(
                    f"parallel='{way}' needs processes: torchrun --nproc-per-node N script.py, or init_process_group."
                )
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        self.rank, self.world = dist.get_rank(), dist.get_world_size()

    def prepare(self, model: nn.Module) -> None:
        """Make the processes' models one, that of rank 0: equal copies, or shards. Before the optimiser is made.

        Raises ShapeError for modules that fit themselves to their own inputs, which differ by process.
        """
        if self.way == "none":
            return
        if any(isinstance(module, Refits) for module in model.modules()):
            raise ShapeError("This model has modules that are fitted to their inputs (hash functions); train it in one process.")
        with torch.no_grad():
            for tensor in model.state_dict().values():
                dist.broadcast(tensor, 0)
        if self.way == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(next(model.parameters()).device.type, (self.world,))
            for module in model.modules():
                if isinstance(module, nn.ModuleList):
                    for block in module:
                        fully_shard(block, mesh=mesh)
            fully_shard(model, mesh=mesh)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Of copies: the mean over processes, in buckets. Shards have theirs already."""
        if self.way != "ddp":
            return
        waiting: list[tuple[Any, Tensor, list[Tensor]]] = []
        bucket: list[Tensor] = []

        def send() -> None:
            if bucket:
                flat = torch.cat([grad.reshape(-1) for grad in bucket])
                waiting.append((dist.all_reduce(flat, async_op=True), flat, list(bucket)))
                bucket.clear()

        for parameter in parameters:
            if not parameter.requires_grad:
                continue
            if parameter.grad is None:  # another process may have one
                parameter.grad = torch.zeros_like(parameter)
            if bucket and (bucket[0].dtype != parameter.grad.dtype or sum(g.nbytes for g in bucket) > BUCKET):
                send()
            bucket.append(parameter.grad)
        send()
        for work, flat, grads in waiting:
            work.wait()
            for grad, part in zip(grads, flat.div_(self.world).split([g.numel() for g in grads]), strict=True):
                grad.copy_(part.view_as(grad))

    def mean(self, value: float, device: torch.device) -> float:
        """Over processes."""
        if self.world == 1:
            return value
        found = torch.tensor(value, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        dist.all_reduce(found)
        return float(found) / self.world

    def agreed(self, value: bool, device: torch.device) -> bool:
        """What rank 0 says."""
        if self.world == 1:
            return value
        found = torch.tensor(float(value), device=device)
        dist.broadcast(found, 0)
        return bool(found)

    def whole(self, tree: Any) -> Any:
        """A tree with whole tensors in the place of shards. Every process must call it."""
        if isinstance(tree, dict):
            return {key: self.whole(value) for key, value in tree.items()}
        if isinstance(tree, (list, tuple)):
            return type(tree)(self.whole(value) for value in tree)
        return tree.full_tensor() if self.way == "fsdp" and hasattr(tree, "full_tensor") else tree

    def part(self, whole: Tensor, like: Tensor) -> Tensor:
        """This process's shard of a whole tensor, laid out as another; the tensor itself where that is no shard."""
        if self.way != "fsdp" or not hasattr(like, "full_tensor") or whole.dim() == 0:
            return whole
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)  # type: ignore[attr-defined]

    def clear(self) -> None:
        """Wait until all have come here."""
        if self.world > 1:
            dist.barrier()
