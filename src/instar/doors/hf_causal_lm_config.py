"""What an `InstarForCausalLM` is, and the decoder that it describes. Importing this module imports `transformers`."""

from __future__ import annotations

from typing import Any

from instar import catalogue, extras
from instar.errors import ModelError
from instar.models.decoder import Decoder

transformers: Any = extras.require("transformers", "models")

MODEL_TYPE = "instar"


class InstarConfig(transformers.PretrainedConfig):
    """What an `InstarForCausalLM` is.

    Args:
        vocab_size, hidden_size, num_hidden_layers, num_attention_heads: of the `Decoder` vocabulary, width, depth and heads.
        mixer: an address of the catalogue, such as "gla" or "gla:no_gate". mixer_arguments: further arguments of the mixer.
        intermediate_size: of the SwiGLU; 0 means 8/3 of hidden_size rounded up to a multiple of 64.
        tie_word_embeddings: whether the head is the embedding. use_cache: whether states are returned.
        pad_token_id, bos_token_id, eos_token_id: as everywhere in `transformers`.
    """

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 257,
        hidden_size: int = 128,
        num_hidden_layers: int = 2,
        num_attention_heads: int = 4,
        mixer: str = "softmax",
        mixer_arguments: dict[str, Any] | None = None,
        intermediate_size: int = 0,
        tie_word_embeddings: bool = True,
        use_cache: bool = True,
        pad_token_id: int | None = None,
        bos_token_id: int | None = None,
        eos_token_id: int | list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.mixer, self.mixer_arguments = mixer, dict(mixer_arguments or {})
        self.intermediate_size, self.use_cache, self.tie_word_embeddings = intermediate_size, use_cache, tie_word_embeddings
        self.pad_token_id, self.bos_token_id, self.eos_token_id = pad_token_id, bos_token_id, eos_token_id
        super().__init__(tie_word_embeddings=tie_word_embeddings, **kwargs)


def build(config: InstarConfig) -> Decoder:
    """The decoder that a configuration describes."""
    return Decoder(
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.mixer,
        heads=config.num_attention_heads,
        mixer_arguments=config.mixer_arguments,
        hidden=config.intermediate_size,
        tied=config.tie_word_embeddings,
    )


def require_causal(mixer: str) -> None:
    """Raise ModelError for a mixer that looks ahead, by its card; UnknownNameError for none."""
    card = catalogue.parse(mixer).card
    if card.interface != "Mixer":
        raise ModelError(f"'{mixer}' is no mixer; `instar list --family mixers` names them.")
    if not card.capability("causal") or card.capability("lookahead"):
        known = [slug for slug, one in catalogue.methods().items() if one.interface == "Mixer" and one.capability("causal")]
        raise ModelError(
            f"'{mixer}' is not causal: its outputs depend on later tokens, which a language model must not see. "
            f"Causal mixers: {', '.join(known)}."
        )
