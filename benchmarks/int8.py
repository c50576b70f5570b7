"""Encoding a corpus with MiniLM in 8 bits: ours against torch in float32, its dynamic int8, torchao, ONNX Runtime and OpenVINO.

    python benchmarks/int8.py [--quick] [--threads N] [--out FILE]

Peers come with `pip install onnx onnxscript onnxruntime openvino nncf torchao`; one that is missing is left out with the reason.
Goals: twice the speed of torch float32 at a mean cosine of 0.998, 1.5 times that of either peer's int8.

Two corpora (sentences of CLINC150; documents of SQuAD, cut at 256 tokens) in batches of 1 and 32, sorted by length, tokenised
beforehand. All take turns in one process; minimum and median of the rounds. Every engine pools and normalises in numpy. ONNX
Runtime's int8 is `quantize_dynamic` with a scale for each channel; OpenVINO's is NNCF's quantisation for transformers, calibrated
on 128 other sentences.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from instar.bench import environment
from instar.compression import quantize_
from instar.compression.int8 import Int8
from instar.data import pretrained
from instar.data.collecting import open_collection
from instar.data.intents import clinc150_cases

RESULT = Path(__file__).parent / "results" / "int8.json"
MODEL = "all-MiniLM-L6-v2"
LONGEST = 256
Batch = dict[str, Any]
Encode = Callable[[Batch], np.ndarray]
"""Token ids and mask, numpy [B, T] -> hidden states [B, T, D]."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    warnings.filterwarnings("ignore")
    _, tokenizer = pretrained.load(MODEL)
    count, rounds = (32, 2) if asked.quick else (512, 7)
    sentences = clinc150_cases("test", per_class=4, examples_per_class=0).inputs[:count]
    documents = list(open_collection("squad:test", sample=200).texts or ())[: count // 4]
    made, missing = engines(tokenizer, asked.threads)
    rows = []
    for corpus, texts in (("sentences", sentences), ("documents", documents)):
        for size in (32, 1):
            chosen = texts if size > 1 else texts[: max(8, len(texts) // 8)]
            batches = list(batched(tokenizer, chosen, size))
            rows += measure(made, batches, rounds, {"corpus": corpus, "batch": size, "texts": len(chosen)})
    for row in rows:
        each = 1e3 * row["seconds"] / row["texts"]
        print(
            f"{row['corpus']:<10} batch {row['batch']:<3} {row['engine']:<22} {each:8.3f} ms/text  "
            f"{row['speed']:5.2f} x torch_fp32  cosine {row['cosine']:.5f} (least {row['least']:.5f})"
        )
    for name, reason in missing.items():
        print(f"left out: {name}: {reason}")
    facts = {"command": "python benchmarks/int8.py", "environment": environment.describe(), "load": environment.load()}
    found = {**facts, "threads": asked.threads, "rounds": rounds, "missing": missing, "rows": rows}
    asked.out.write_text(json.dumps(found, indent=1) + "\n")


def batched(tokenizer: Any, texts: list[str], size: int) -> Any:
    """Batches of token ids, texts of like length together."""
    order = sorted(texts, key=len)
    for first in range(0, len(order), size):
        rows = tokenizer(order[first : first + size], padding=True, truncation=True, max_length=LONGEST, return_tensors="np")
        yield {name: rows[name].astype(np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}


def vectors(encode: Encode, batches: list[Batch]) -> np.ndarray:
    """Unit vectors of all texts, mean-pooled over real tokens."""
    found = []
    for batch in batches:
        mask = batch["attention_mask"][..., None]
        pooled = (encode(batch) * mask).sum(1) / mask.sum(1)
        found.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
    return np.concatenate(found)


def measure(made: dict[str, Encode], batches: list[Batch], rounds: int, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Seconds of each engine, in turn, and how far its vectors are from float32."""
    plain = vectors(made["torch_fp32"], batches)
    cosines = {name: (vectors(encode, batches) * plain).sum(1) for name, encode in made.items()}  # warms up as well
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, encode in made.items():
            begin = time.perf_counter()
            vectors(encode, batches)
            seconds[name].append(time.perf_counter() - begin)
    base = min(seconds["torch_fp32"])
    return [
        {
            **facts,
            "engine": name,
            "seconds": min(took),
            "median": statistics.median(took),
            "speed": base / min(took),
            "cosine": float(cosines[name].mean()),
            "least": float(cosines[name].min()),
        }
        for name, took in seconds.items()
    ]


def engines(tokenizer: Any, threads: int) -> tuple[dict[str, Encode], dict[str, str]]:
    """What can be built here, and why the others cannot."""
    made: dict[str, Encode] = {"torch_fp32": of_torch(plain())}
    for name, setting in (("instar_int8", Int8()), ("instar_int8_outliers_1", Int8(outliers=1))):
        ours = plain()
        quantize_(ours, setting, lambda module, name: not name.startswith("pooler"))
        made[name] = of_torch(ours)
    missing: dict[str, str] = {}
    builders: dict[str, Callable[[], dict[str, Encode]]] = {
        "torch_dynamic_int8": lambda: {"torch_dynamic_int8": of_torch(torch_dynamic())},
        "torchao": lambda: {"torchao_int8": of_torch(of_torchao())},
        "onnxruntime": lambda: onnxruntime_engines(threads),
        "openvino": lambda: openvino_engines(tokenizer, threads),
    }
    for name, build in builders.items():
        try:
            made |= build()
        except Exception as error:  # a peer that cannot be built here is left out, whatever it raises
            missing[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return made, missing


def plain() -> Any:
    return pretrained.load(MODEL)[0]


def of_torch(model: Any) -> Encode:
    @torch.no_grad()
    def encode(batch: Batch) -> np.ndarray:
        return model(**{name: torch.from_numpy(part) for name, part in batch.items()}).last_hidden_state.numpy()

    return encode


def torch_dynamic() -> Any:
    return torch.ao.quantization.quantize_dynamic(plain(), {torch.nn.Linear}, dtype=torch.qint8)


def of_torchao() -> Any:
    """A scale for each output of a weight and, while it runs, for each token: eager, as is ours."""
    from torchao import quantization

    model = plain()
    quantization.quantize_(model, quantization.Int8DynamicActivationInt8WeightConfig())
    return model


class States(torch.nn.Module):
    """Hidden states alone, of positional arguments: what exporters take."""

    def __init__(self) -> None:
        super().__init__()
        self.model = plain()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor) -> torch.Tensor:
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
        return found.last_hidden_state


NAMES = ("input_ids", "attention_mask", "token_type_ids")


def example() -> tuple[torch.Tensor, ...]:
    mask = torch.ones(2, 16, dtype=torch.int64)
    mask[1, 9:] = 0
    return torch.randint(1000, 20_000, (2, 16)), mask, torch.zeros_like(mask)


def exported(path: Path) -> Path:
    """The model as an ONNX file whose batch and length are free."""
    axes = {name: {0: torch.export.Dim("batch", max=512), 1: torch.export.Dim("tokens", max=512)} for name in NAMES}
    names = {"input_names": list(NAMES), "output_names": ["states"]}
    torch.onnx.export(
        States().eval(), example(), str(path), dynamic_shapes=axes, dynamo=True, external_data=False, verbose=False, **names
    )
    return path


def onnxruntime_engines(threads: int) -> dict[str, Encode]:
    import onnxruntime
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.shape_inference import quant_pre_process

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1

    def session(path: Path) -> Encode:
        run = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda batch: run.run(None, {name: batch[name] for name in NAMES})[0]

    with tempfile.TemporaryDirectory() as folder:
        path, whole, small = (Path(folder) / name for name in ("model.onnx", "whole.onnx", "int8.onnx"))
        exported(path)
        quant_pre_process(str(path), str(whole), skip_symbolic_shape=True)
        quantize_dynamic(str(whole), str(small), per_channel=True, weight_type=QuantType.QInt8)
        return {"onnxruntime_fp32": session(path), "onnxruntime_int8": session(small)}


def openvino_engines(tokenizer: Any, threads: int) -> dict[str, Encode]:
    import nncf
    import openvino

    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
    with tempfile.TemporaryDirectory() as folder:
        model = core.read_model(str(exported(Path(folder) / "model.onnx")))
    texts = clinc150_cases("train", per_class=1, examples_per_class=0).inputs[:128]
    calibration = nncf.Dataset(list(batched(tokenizer, texts, 1)))
    small = nncf.quantize(model, calibration, model_type=nncf.ModelType.TRANSFORMER, subset_size=128)

    def compiled(graph: Any, **settings: str) -> Encode:
        run = core.compile_model(graph, "CPU", {"PERFORMANCE_HINT": "LATENCY", **settings}).create_infer_request()
        return lambda batch: run.infer({name: batch[name] for name in NAMES})[run.model_outputs[0]]

    exact = compiled(model, INFERENCE_PRECISION_HINT="f32")
    return {"openvino_fp32": exact, "openvino_int8": compiled(small, INFERENCE_PRECISION_HINT="f32")}


if __name__ == "__main__":
    main()
