"""Other decode attentions on CPUs, over the same caches: ONNX Runtime, llama.cpp, and our loop in numba.

Each takes q [B, H, K], keys and values [B, Hkv, C, K] and lengths [B], and returns a call that gives [B, H, K], or raises
ImportError where the package is missing and TypeError where it does not know the type.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Call = Callable[[], Tensor]


def onnxruntime(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Call:
    """The CPU operator GroupQueryAttention, caches shared in place. It appends a token itself: ours is its last one."""
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto as T
    from onnx import helper

    kinds = {torch.float32: (T.FLOAT, "float32"), torch.float16: (T.FLOAT16, "float16")}
    if q.dtype not in kinds:
        raise TypeError(f"no {q.dtype}")
    B, H, K = q.shape
    heads = keys.shape[1]
    kind, _ = kinds[q.dtype]
    inputs = {
        "query": [B, 1, H * K],
        "key": [B, 1, heads * K],
        "value": [B, 1, heads * K],
        **dict.fromkeys(("pk", "pv"), keys.shape),
    }
    made = [helper.make_tensor_value_info(name, kind, list(shape)) for name, shape in inputs.items()]
    made += [helper.make_tensor_value_info("seq", T.INT32, [B]), helper.make_tensor_value_info("total", T.INT32, [1])]
    outs = [helper.make_tensor_value_info("out", kind, inputs["query"])]
    outs += [helper.make_tensor_value_info(name, kind, list(keys.shape)) for name in ("k", "v")]
    node = helper.make_node(
        "GroupQueryAttention",
        ["query", "key", "value", "pk", "pv", "seq", "total"],
        ["out", "k", "v"],
        domain="com.microsoft",
        num_heads=H,
        kv_num_heads=heads,
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "decode", made, outs), opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    last = torch.tensor(lengths) - 1
    given = {
        "query": q.reshape(B, 1, H * K).contiguous(),
        "key": keys[torch.arange(B), :, last].reshape(B, 1, -1).contiguous(),
        "value": values[torch.arange(B), :, last].reshape(B, 1, -1).contiguous(),
        "pk": keys,
        "pv": values,
        "seq": last.int(),
        "total": torch.tensor([max(lengths)], dtype=torch.int32),
    }
    out = torch.empty(B, 1, H * K, dtype=q.dtype)
    binding = session.io_binding()
    for name, tensor in given.items():
        element = "int32" if tensor.dtype == torch.int32 else kinds[q.dtype][1]
        binding.bind_input(name, "cpu", 0, np.dtype(element), list(tensor.shape), tensor.data_ptr())
    for name, tensor in (("out", out), ("k", keys), ("v", values)):
        binding.bind_output(name, "cpu", 0, np.dtype(kinds[q.dtype][1]), list(tensor.shape), tensor.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return out.view(B, H, K)

    call.keep = given  # type: ignore[attr-defined]
    return call


class _Room(ctypes.Structure):
    _fields_ = (("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


def llamacpp(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Call:
    """ggml's flash attention on the CPU, from the library inside xllamacpp; a mask where lengths differ, whose keys it skips."""
    import xllamacpp

    kinds = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30}
    ggml = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for name, result, given in (
        ("ggml_init", pointer, [_Room]),
        ("ggml_new_tensor_4d", pointer, [pointer, ctypes.c_int, *[number] * 4]),
        ("ggml_get_data", pointer, [pointer]),
        ("ggml_flash_attn_ext", pointer, [pointer] * 5 + [ctypes.c_float] * 3),
        ("ggml_new_graph", pointer, [pointer]),
        ("ggml_build_forward_expand", None, [pointer, pointer]),
        ("ggml_graph_compute_with_ctx", ctypes.c_int, [pointer, pointer, ctypes.c_int]),
    ):
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, given
    ggml.ggml_cpu_init()
    B, H, K = q.shape
    room = sum(t.numel() * t.element_size() for t in (q.float(), q.float(), keys, values)) + B * keys.shape[2] * 2 + 2**26
    context = ggml.ggml_init(_Room(room, None, False))

    def tensor(content: Tensor, kind: int) -> Any:
        content = content.contiguous()
        made = ggml.ggml_new_tensor_4d(context, kind, *reversed(content.shape))
        ctypes.memmove(ggml.ggml_get_data(made), content.data_ptr(), content.numel() * content.element_size())
        return made

    given = tensor(q.float().unsqueeze(2), 0), tensor(keys, kinds[keys.dtype]), tensor(values, kinds[keys.dtype])
    mask = None
    if len(set(lengths)) > 1 or max(lengths) < keys.shape[2]:
        seen = torch.arange(keys.shape[2]) < torch.tensor(lengths).view(B, 1, 1, 1)
        mask = tensor(torch.where(seen, 0.0, -torch.inf).half(), 1)
    found = ggml.ggml_flash_attn_ext(context, *given, mask, K**-0.5, 0.0, 0.0)
    graph = ggml.ggml_new_graph(context)
    ggml.ggml_build_forward_expand(graph, found)
    threads, out = torch.get_num_threads(), torch.empty(B, H, K)

    def call() -> Tensor:
        ggml.ggml_graph_compute_with_ctx(context, graph, threads)
        ctypes.memmove(out.data_ptr(), ggml.ggml_get_data(found), out.numel() * 4)
        return out

    return call


def numba(q: Tensor, keys: Tensor, values: Tensor, lengths: list[int]) -> Call:
    """The same sums as plain loops, compiled by numba: tile by tile, all heads of a group, float32 only."""
    import numba as nb

    if q.dtype != torch.float32:
        raise TypeError(f"no {q.dtype}")
    kernel = nb.njit(_loops, fastmath=True)
    out, ends = torch.empty_like(q), np.array(lengths)
    given = q.numpy(), keys.numpy(), values.numpy(), ends, out.numpy()

    def call() -> Tensor:
        kernel(*given)
        return out

    return call


def _loops(q: Any, keys: Any, values: Any, lengths: Any, out: Any) -> None:
    B, H, K = q.shape
    heads = keys.shape[1]
    G, scale = H // heads, np.float32(1 / np.sqrt(K))
    for b in range(B):
        for h in range(heads):
            sums = np.zeros((G, K), np.float32)
            x = np.empty((G, 64), np.float32)
            m, total = np.full(G, -np.inf, np.float32), np.zeros(G, np.float32)
            for start in range(0, lengths[b], 64):
                stop = min(start + 64, lengths[b])
                for j in range(start, stop):
                    for g in range(G):
                        s = np.float32(0)
                        for i in range(K):
                            s += q[b, h * G + g, i] * keys[b, h, j, i]
                        x[g, j - start] = s * scale
                for g in range(G):
                    top = max(m[g], x[g, : stop - start].max())
                    fade = np.exp(m[g] - top)
                    m[g] = top
                    total[g] *= fade
                    for i in range(K):
                        sums[g, i] *= fade
                    for j in range(stop - start):
                        x[g, j] = np.exp(x[g, j] - top)
                        total[g] += x[g, j]
                for j in range(start, stop):
                    for g in range(G):
                        w = x[g, j - start]
                        for i in range(K):
                            sums[g, i] += w * values[b, h, j, i]
            for g in range(G):
                for i in range(K):
                    out[b, h * G + g, i] = sums[g, i] / total[g]
