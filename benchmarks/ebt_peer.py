"""The authors' EBT for text, built with the weights of ours.

github.com/alexiglad/EBT, commit 0ad3628, is not on PyPI. Its package `model` imports lightning, torchmetrics, torchvision and
diffusers, of which its text model uses nothing but the base class of modules: those that are not installed are stood in for by
empty modules while it is imported, and records name them.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import tempfile
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from instar import catalogue
from instar.inference.ebt import Ebt

COMMIT = "0ad3628"
IMPORTED: dict[str, tuple[str, ...]] = {
    **{"pytorch_lightning": (), "torchmetrics": (), "diffusers": ()},
    "torchvision": (".transforms", ".transforms.functional", ".models", ".utils"),
}
"""Packages that it imports, and their modules."""
RECIPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "s1": ({}, {"mcmc_step_size": 500.0, "mcmc_num_steps": 2}),
    "s2": (
        {**catalogue.method("ebt").preset("s2"), "random_steps": 0, "buffer": 0},
        {
            **{"mcmc_step_size": 5.0, "mcmc_num_steps": 1, "mcmc_step_size_learnable": False, "no_mcmc_detach": True},
            **{"truncate_mcmc": True, "langevin_dynamics_noise": 3.0, "randomize_mcmc_step_size_scale": 2.0},
            **{"randomize_mcmc_num_steps": 1, "randomize_mcmc_num_steps_min": 2},  # drawn from [2, 3): two steps in each batch
        },
    ),
}
"""Arguments of ours, and options of theirs."""
OPTIONS: dict[str, Any] = {
    **{"execution_mode": "pretrain", "debug_unused_parameters": False, "model_name": "ebt", "ebt_type": "time_embed"},
    **{"ffn_dim_multiplier": 1, "weight_initialization_method": "xavier", "weight_initialization_gain": 1.0},
    **{"ebt_norm": "rms", "ebt_act_func": "silu", "dyt_alpha_init": 0.5, "num_modality_processing_mlp_layers": 1},
    **{"denoising_initial_condition": "random_noise", "gaussian_random_noise_scaling": 1.0, "mcmc_step_size_learnable": True},
    **{"normalize_initial_condition": True, "normalize_initial_condition_only_first_step": False, "no_mcmc_detach": False},
    **{"mcmc_replay_buffer": False, "randomize_mcmc_step_size_scale": 1.0, "randomize_mcmc_num_steps": 0},
    **{"randomize_mcmc_num_steps_min": 0, "randomize_mcmc_num_steps_final_landscape": False, "truncate_mcmc": False},
    **{"langevin_dynamics_noise": 0.0, "langevin_dynamics_noise_learnable": False, "vocab_to_embed_uses_prob_dist": False},
    **{"clamp_futures_grad": False, "clamp_futures_grad_max_change": 9.0, "absolute_clamp": 0.0, "clamp_max_after_warm_up": 0.0},
    **{"sharpen_predicted_distribution": 0.0, "soften_target_prob_dist": 0.0, "reconstruction_coeff": 1.0},
    **{"contrastive_loss": False, "contrastive_loss_coeff": 0.0005},
}


class Options(dict[str, Any]):
    """Options that are read as attributes too, as lightning keeps them."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Base(nn.Module):
    """What the authors' model uses of a module of lightning."""

    def __init__(self) -> None:
        super().__init__()
        self.hparams = Options()
        self.device = torch.device("cpu")


class Empty(ModuleType):
    """A module of which names are imported and never used."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def peer() -> tuple[Any, list[str]]:
    """The authors' class, None where it is not there, and the packages that were stood in for while it was imported."""
    import transformers

    assert transformers.AutoTokenizer  # imported now: it asks which packages are there
    absent = [name for name in IMPORTED if importlib.util.find_spec(name) is None]
    empty = {name + part: Empty(name + part) for name in absent for part in ("", *IMPORTED[name])}
    if "pytorch_lightning" in empty:
        empty["pytorch_lightning"].LightningModule = Base  # type: ignore[attr-defined]
    sys.modules.update(empty)
    try:
        return importlib.import_module("model.nlp.ebt").EBT_NLP, absent
    except ImportError as error:
        print(f"the authors' code is left out: {error}")
        return None, []
    finally:
        for name in empty:
            del sys.modules[name]


def tokenizer(vocabulary: int, folder: str) -> str:
    """A folder with a tokenizer of so many tokens, the last of which is padding, which their loss leaves out."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(n): n for n in range(vocabulary)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(vocabulary - 1)).save_pretrained(folder)
    return folder


def pair(theirs: Any, recipe: str, shape: dict[str, int], start: str = "noise", **options: Any) -> dict[str, Any]:
    """Both models with one set of weights, in training mode."""
    torch.manual_seed(0)
    size = {name: shape[name] for name in ("width", "depth", "heads", "vocabulary")}
    own, given = RECIPES[recipe]
    made: dict[str, Any] = {"instar": Ebt(**{**own, **size, "start": start, **({"noise": 0.0} if start == "zeros" else {})})}
    if theirs is None:
        return made
    with tempfile.TemporaryDirectory() as folder:
        made["official"] = theirs(
            {
                **{**OPTIONS, **given, "tokenizer": tokenizer(shape["vocabulary"], folder)},
                **{"embedding_dim": shape["width"], "num_transformer_blocks": shape["depth"], "context_length": shape["length"]},
                **{"multiheaded_attention_heads": shape["heads"], "batch_size_per_device": shape["batch"], **options},
            }
        )
    weights = translated(made["instar"])
    own_names = {name for name, _ in made["official"].named_parameters()}
    assert own_names - weights.keys() == {"langevin_dynamics_noise_std"}, own_names ^ weights.keys()
    made["official"].load_state_dict(weights, strict=False)
    return made


def translated(model: Ebt, of: Callable[[Tensor], Tensor | None] = lambda p: p) -> dict[str, Tensor]:
    """Parameters (or what `of` says of each) by the authors' names; they turn neighbouring channels, we turn halves."""
    found = {}
    for name, parameter in model.named_parameters():
        value = of(parameter)
        if value is None:
            continue
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            value = value.unflatten(0, (model.transformer.blocks[0].heads, 2, -1)).transpose(1, 2).flatten(0, 2)
        for ours, theirs in (
            *(("step_size.alpha", "alpha"), ("candidate.", "vocab_to_embed."), ("transformer.blocks.", "transformer.layers.")),
            *((f".{k}_proj.", f".attention.w{k}.") for k in "qkvo"),
            *((".feed.gate.", ".feed_forward.w1."), (".feed.up.", ".feed_forward.w3."), (".feed.down.", ".feed_forward.w2.")),
            *((".feed_norm.", ".ffn_norm."), (".index.", ".time_embeddings."), (".head.", ".final_layer.")),
        ):
            name = name.replace(ours, theirs)
        found["embeddings.weight" if name == "embedding.weight" else name] = value.detach()
    return found
