"""Offloaded AdamW under the Trainer of `transformers`: accumulation, clipping, a schedule, saves, and the bits of plain AdamW."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, default_data_collator

from instar.optim.adamw import AdamW
from instar.optim.offloaded_adamw import OffloadedAdamW

CONFIG = LlamaConfig(vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
ROWS = [
    {"input_ids": row, "labels": row}
    for row in torch.randint(0, 128, (32, 16), generator=torch.Generator().manual_seed(0)).tolist()
]


def trained(folder: Path, offloaded: bool, resume: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    model = LlamaForCausalLM(CONFIG)
    optimiser = OffloadedAdamW(model, ratio=0.6, subgroup=1500) if offloaded else AdamW(model)
    settings = TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=4, gradient_accumulation_steps=2, report_to="none",
        save_steps=3, disable_tqdm=True, use_cpu=True, max_grad_norm=0.5,
    )  # fmt: skip
    trainer = Trainer(model, settings, train_dataset=ROWS, data_collator=default_data_collator, optimizers=(optimiser, None))
    trainer.train(resume_from_checkpoint=str(folder / "checkpoint-3") if resume else None)
    return model


def test_the_trainer_sees_plain_adamw(tmp_path: Path) -> None:
    plain = trained(tmp_path / "plain", offloaded=False)
    ours = trained(tmp_path / "ours", offloaded=True)
    resumed = trained(tmp_path / "ours", offloaded=True, resume=True)
    for p, q, r in zip(plain.parameters(), ours.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p, r)
