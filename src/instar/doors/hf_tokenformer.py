"""TokenFormer as a causal language model of `transformers`: `generate`, `Trainer`, the Auto classes.

    hf_tokenformer.register()
    model = TokenFormerForCausalLM.from_decoder(TokenFormer(257, 96, 3))

Importing this module imports `transformers`.
"""

from __future__ import annotations

from typing import Any

from instar.doors.hf_causal_lm import InstarForCausalLM
from instar.doors.hf_causal_lm_config import InstarConfig, transformers
from instar.growth.tokenformer_decoder import TokenFormer

MODEL_TYPE = "instar_tokenformer"


class TokenFormerConfig(InstarConfig):
    """What a `TokenFormerForCausalLM` is.

    Args:
        layers: for each block the pairs of each kind by growth, {"query": [96, 96], …}; None for as many as the width in
            attention and four times as many in the feed-forward layer. mode, rope_base: as of `TokenFormer`. The others: as of
            `InstarConfig`, of which mixer, mixer_arguments and intermediate_size have no meaning here.
    """

    model_type = MODEL_TYPE

    def __init__(
        self, *args: Any, layers: list[Any] | None = None, mode: str = "l2_norm_gelu", rope_base: float = 10000.0, **kwargs: Any
    ) -> None:
        self.layers, self.mode, self.rope_base = layers, mode, rope_base
        super().__init__(*args, **kwargs)


class TokenFormerForCausalLM(InstarForCausalLM):
    """A `TokenFormer` behind the interface of `transformers`; all else as of `InstarForCausalLM`.

    The TokenFormer is `model.decoder`: `instar.growth.grow(model.decoder, optimiser, plan)` grows it in place, also with a filled
    cache, and `save_pretrained` writes what it then is.
    """

    config_class = TokenFormerConfig
    _no_split_modules = ("TokenFormerBlock",)

    def _built(self) -> TokenFormer:
        config = self.config
        return TokenFormer(
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            heads=config.num_attention_heads,
            mode=config.mode,
            tied=config.tie_word_embeddings,
            rope_base=config.rope_base,
            layers=config.layers,
        )

    @classmethod
    def from_decoder(cls, decoder: TokenFormer, **settings: Any) -> TokenFormerForCausalLM:  # type: ignore[override]
        """The TokenFormer itself, not a copy; `settings` are those of the configuration that it does not know."""
        said = decoder.config or {}
        config = TokenFormerConfig(
            vocab_size=said["vocabulary"],
            hidden_size=said["width"],
            num_hidden_layers=said["depth"],
            num_attention_heads=said["heads"],
            tie_word_embeddings=said["tied"],
            layers=said["layers"],
            mode=said["mode"],
            rope_base=said["rope_base"],
            dtype=decoder.embedding.weight.dtype,
            **settings,
        )
        return cls(config, decoder).train(decoder.training)

    def save_pretrained(self, *args: Any, **given: Any) -> Any:
        """As every model of `transformers`, with the pairs that the layers have now."""
        assert isinstance(self.decoder, TokenFormer)
        self.decoder.describe()
        self.config.layers = (self.decoder.config or {})["layers"]
        return super().save_pretrained(*args, **given)


def register() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know TokenFormers, so that their folders load by name."""
    transformers.AutoConfig.register(MODEL_TYPE, TokenFormerConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(TokenFormerConfig, TokenFormerForCausalLM, exist_ok=True)
