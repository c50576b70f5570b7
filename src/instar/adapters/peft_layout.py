"""What `peft` calls things: types, settings and tensors of the methods that both know. It need not be installed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instar.errors import AdapterError

PREFIX = "base_model.model."
_HARMLESS = {
    # Facts about where an adapter came from, and settings that matter only before training.
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "init_weights", "init_ia3_weights"),
    *("peft_version", "revision", "task_type", "peft_type", "target_modules", "modules_to_save", "fan_in_fan_out"),
    *(
        "runtime_config",
        "eva_config",
        "megatron_core",
        "ephemeral_gpu_offload",
        "qalora_group_size",
    ),
}


@dataclass(frozen=True)
class Form:
    """How settings of one method are written, and read."""

    peft_type: str
    write: Callable[[Mapping[str, Any], Sequence[str]], dict[str, Any]]
    """Arguments and the layers whose input is scaled -> settings."""
    read: Callable[[Mapping[str, Any]], dict[str, Any]]
    """Settings -> arguments."""
    known: frozenset[str]
    """Settings that `read` reads."""


def _ranked(peft_type: str, names: Mapping[str, str], fixed: Mapping[str, Any]) -> Form:
    def write(arguments: Mapping[str, Any], _: Sequence[str]) -> dict[str, Any]:
        told = {theirs: arguments[ours] for ours, theirs in names.items()}
        return {**told, "rank_pattern": dict(arguments["rank_pattern"] or {}), **fixed}

    def read(settings: Mapping[str, Any]) -> dict[str, Any]:
        found = {ours: settings[theirs] for ours, theirs in names.items() if theirs in settings}
        return {**found, "rank_pattern": settings.get("rank_pattern") or None}

    return Form(peft_type, write, read, frozenset({*names.values(), "rank_pattern", *fixed}))


_LORA = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout"}
FORMS: dict[str, Form] = {
    "lora": _ranked("LORA", _LORA, {"bias": "none", "use_dora": False}),
    "dora": _ranked("LORA", _LORA, {"bias": "none", "use_dora": True}),
    "hira": _ranked("HIRA", {"r": "r", "dropout": "hira_dropout"}, {}),
    "ia3": Form(
        "IA3",
        lambda arguments, ends: {"feedforward_modules": list(ends)},
        lambda settings: {"feedforward": settings.get("feedforward_modules") or []},
        frozenset({"feedforward_modules"}),
    ),
}
"""By slug. Methods that are not here are written under their own name, which `peft` refuses."""


def read(settings: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any], list[str], list[str]]:
    """Slug, arguments, patterns of layers and modules trained whole, of a configuration that `peft` wrote.

    Raises AdapterError for a method or a setting that is not known here: an adapter is loaded as it was trained, or not at all.
    """
    kind = settings.get("peft_type")
    slug = next((s for s, form in FORMS.items() if form.peft_type == kind and s != "dora"), None)
    if slug == "lora" and settings.get("use_dora"):
        slug = "dora"
    if slug is None:
        raise AdapterError(
            f"{where} holds an adapter of type {kind!r}; known are {', '.join(f.peft_type for f in FORMS.values())}."
        )
    form = FORMS[slug]
    odd = {k: v for k, v in settings.items() if v not in (None, False, "none", [], {}) and k not in form.known | _HARMLESS}
    # Other starts than these change the base as well, and what was learnt stands beside that base.
    if settings.get("init_lora_weights", True) in (True, "gaussian", "eva", "orthogonal"):
        odd.pop("init_lora_weights", None)
    if settings.get("bias", "none") != "none":
        odd["bias"] = settings["bias"]
    if odd:
        raise AdapterError(
            f"{where} uses settings of peft that are not known here: {', '.join(sorted(odd))}. Nothing was loaded."
        )
    layers = settings.get("target_modules")
    saved = settings.get("modules_to_save") or []
    patterns = [layers] if isinstance(layers, str) else layers
    if not isinstance(patterns, list) or not isinstance(saved, list) or not all(isinstance(n, str) for n in [*patterns, *saved]):
        raise AdapterError(f"{where} does not say which layers it adapts: target_modules is {layers!r}.")
    return slug, form.read(settings), sorted(patterns), sorted(saved)
