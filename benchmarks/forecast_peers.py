"""Other forecasters on the same windows: iTransformer of Time-Series-Library and of neuralforecast, EntroPE of its authors.

Each function raises ImportError where what it needs is not there. Checkouts of repositories are read from their folders; their
packages are called `models`, `layers` and `utils`, so that no two of them stay imported under these names.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar.forecasting.entropy_model import EntropyModel

Network = Callable[[Tensor, Tensor], Tensor]
"""x [B, L, N] and marks [B, L, m] to forecasts [B, H, N], in eval mode."""
_PACKAGES = ("models", "layers", "utils", "data_provider", "exp")


@contextlib.contextmanager
def checkout(folder: Path) -> Iterator[None]:
    """The packages of a repository; on the way out their names are free again. Raises ImportError where there is no folder."""
    if not (folder / "models").is_dir():
        raise ImportError(f"{folder} is no checkout of the repository")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in _PACKAGES]:
            del sys.modules[name]


class Windows(torch.utils.data.Dataset[tuple[NDArray[Any], ...]]):
    """Rows as Time-Series-Library's own data set gives them: past, label and future, and the marks of both, in float64."""

    def __init__(self, values: NDArray[np.float64], marks: NDArray[np.float64], context: int, label: int, horizon: int) -> None:
        self.values, self.marks, self.context, self.label, self.horizon = values, marks, context, label, horizon

    def __len__(self) -> int:
        return len(self.values) - self.context - self.horizon + 1

    def __getitem__(self, index: int) -> tuple[NDArray[Any], ...]:
        end = index + self.context
        past, ahead = slice(index, end), slice(end - self.label, end + self.horizon)
        return self.values[past], self.values[ahead], self.marks[past], self.marks[ahead]


def time_series_library(
    folder: Path, values: NDArray[np.float64], marks: NDArray[np.float64], context: int, horizon: int, width: int
) -> Callable[[int, int], Network]:
    """Its model behind a `DataLoader` with shuffling, as its `exp_long_term_forecasting` trains it: (steps, seed) -> network.

    Its module of data sets asks for packages that no forecast needs; `Windows` gives the same rows.
    """
    settings = SimpleNamespace(
        task_name="long_term_forecast",
        seq_len=context,
        pred_len=horizon,
        d_model=width,
        d_ff=width,
        n_heads=8,
        e_layers=2,
        dropout=0.1,
        activation="gelu",
        embed="timeF",
        freq="h",
        factor=1,
        enc_in=values.shape[1],
    )
    with checkout(folder):
        Model: Any = importlib.import_module("models.iTransformer").Model
    label = context // 2
    given = Windows(values, marks, context, label, horizon)

    def trained(steps: int, seed: int) -> Network:
        torch.manual_seed(seed)
        model = Model(settings)
        loader = torch.utils.data.DataLoader(given, batch_size=32, shuffle=True, drop_last=True)
        optimiser, criterion = torch.optim.Adam(model.parameters(), lr=5e-4), nn.MSELoss()
        losses: list[float] = []
        for _, (x, y, x_marks, y_marks) in zip(range(steps), loader, strict=False):
            optimiser.zero_grad()
            x, y, x_marks, y_marks = x.float(), y.float(), x_marks.float(), y_marks.float()
            decoder = torch.cat([y[:, :label], torch.zeros_like(y[:, -horizon:])], dim=1)
            loss = criterion(model(x, x_marks, decoder, y_marks)[:, -horizon:], y[:, -horizon:])
            losses.append(loss.item())
            loss.backward()
            optimiser.step()
        model.eval()
        return lambda x, x_marks: model(x.clone(), x_marks, None, None)

    return trained


def neuralforecast(values: NDArray[np.float64], context: int, horizon: int, width: int) -> Callable[[int, int], Network]:
    """Its model by its own `fit`: (steps, seed) -> network. It reads no marks of time."""
    pandas: Any = importlib.import_module("pandas")
    threads = torch.get_num_threads()
    Model: Any = importlib.import_module("neuralforecast.models").iTransformer
    MSE: Any = importlib.import_module("neuralforecast.losses.pytorch").MSE
    Dataset: Any = importlib.import_module("neuralforecast.tsdataset").TimeSeriesDataset
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    rows, series = values.shape
    table = pandas.DataFrame(
        {"unique_id": np.repeat(np.arange(series), rows), "ds": np.tile(np.arange(rows), series), "y": values.T.ravel()}
    )
    dataset = Dataset.from_df(table)[0]

    def trained(steps: int, seed: int) -> Network:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = Model(
                h=horizon,
                input_size=context,
                n_series=series,
                hidden_size=width,
                d_ff=width,
                n_heads=8,
                e_layers=2,
                dropout=0.1,
                loss=MSE(),
                max_steps=steps,
                learning_rate=5e-4,
                batch_size=series,
                windows_batch_size=32,
                training_data_availability_threshold=1.0,
                random_seed=seed,
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                enable_checkpointing=False,
            )
            model.fit(dataset)
        model.eval()
        return lambda x, marks: model({"insample_y": x.clone()})

    return trained


def entrope(folder: Path, table: Path, context: int, horizon: int, batch: int, level: float, longest: int) -> nn.Module:
    """The authors' network with their entropy model for ETTh1, width 8, one layer between patches. [B, L, 7] -> [B, H, 7]."""
    settings = SimpleNamespace(
        random_seed=0,
        decomposition=0,
        individual=0,
        revin=1,
        affine=1,
        subtract_last=0,
        data="ETTh1",
        root_path=str(table.parent),
        data_path=table.name,
        model_id_name="ETTh1",
        features="M",
        target="OT",
        embed="timeF",
        freq="h",
        num_workers=0,
        batch_size=batch,
        enc_in=7,
        seq_len=context,
        label_len=context // 2,
        pred_len=horizon,
        vocab_size=256,
        entropy_model_checkpoint_dir=str(folder / "entropy_model_checkpoints"),
        local_attention_window_len=context,
        cross_attn_window_encoder=context,
        cross_attn_window_decoder=context,
        cross_attn_k=1,
        d_model=8,
        n_heads=2,
        e_layers=1,
        d_ff=32,
        activation="gelu",
        dropout=0.1,
        fc_dropout=0.0,
        head_dropout=0.0,
        max_patch_length=longest,
        patching_threshold=level,
        monotonicity=0,
        boundary_method="entropy",
        patching_device="cpu",
    )
    with checkout(folder), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            module: Any = importlib.import_module("models.EntroPE")
            model: nn.Module = module.Model(settings).float()
        finally:
            torch.set_default_dtype(torch.float32)  # loading their entropy model changes it for the whole process
    return model


def entropy_weights(theirs: nn.Module, ours: EntropyModel) -> tuple[float, float]:
    """Copies the authors' entropy model into ours; returns the ends of their quantiser."""
    backbone: Any = theirs.get_submodule("model")
    given = backbone.backbone.patcher._base_entropy_model.float().state_dict()
    names = {"wte": "embedding", "wpe": "position", "ln_f": "norm"}
    inside = {
        "ln_1": "first",
        "attn.c_attn": "enter",
        "attn.c_proj": "attention_back",
        "ln_2": "second",
        "mlp.c_fc": "rise",
        "mlp.c_proj": "feed_back",
    }
    pairs = {f"{name}.weight": given[f"transformer.{other}.weight"] for other, name in names.items()}
    for layer in range(len(ours.layers)):
        for other, name in inside.items():
            pairs[f"layers.{layer}.{name}.weight"] = given[f"transformer.h.{layer}.{other}.weight"]
    ours.load_state_dict(pairs)
    centres = backbone.tokenizer.centers.float()
    return float(centres[0]), float(centres[-1])
