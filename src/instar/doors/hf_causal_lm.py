"""Our decoder as a causal language model of `transformers`: every causal mixer in `generate`, `Trainer` and the Auto classes.

    hf_causal_lm.register()
    model = AutoModelForCausalLM.from_config(InstarConfig(vocab_size=…, mixer="gla"))

Importing this module imports `transformers`.
"""

from __future__ import annotations

from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from instar import extras
from instar.doors.hf_causal_lm_config import MODEL_TYPE, InstarConfig, build, require_causal
from instar.doors.hf_state_cache import StateCache
from instar.errors import CheckpointError, ModelError, ShapeError
from instar.models.decoder import Decoder

transformers: Any = extras.require("transformers", "models")
outputs: Any = extras.require("transformers.modeling_outputs", "models")

IGNORED = -100
"""A label that counts nothing."""
_CACHE = "cache" if "cache" in outputs.CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"  # its name changed
_SAID = {"output_attentions": "attention weights", "output_hidden_states": "hidden states"}


class InstarForCausalLM(transformers.PreTrainedModel, transformers.GenerationMixin):
    r"""A `Decoder` behind the interface of `transformers`: logits = head(blocks(embed(input_ids))).

    `generate` (greedy, sampling, beams) keeps the mixers' states in a `StateCache`; padding on either side leaves them as they
    are, and positions count real tokens. `labels` give the mean cross-entropy of the next token; −100 is ignored. The decoder
    itself is `model.decoder`: it streams, and saves in our own format. With gradient checkpointing (also that of `Trainer`)
    training keeps the inputs of blocks alone, and running statistics of batches are followed twice a step.

    Args:
        config: what it is. decoder: an existing one, which is taken and not copied (see `from_decoder`).

    Shapes: input_ids int64 [B, T] -> logits [B, T, vocab_size]. Cost as of the decoder; one token costs one step of the mixers.
    Raises UnknownNameError for a mixer that nobody has, ModelError for one that is not causal.
    Differs from the models of `transformers`: the first token after padding is not predicted, so that the loss of a padded row
    is that of the row alone; no attention weights, hidden states, `inputs_embeds` or `position_ids`.
    """

    config_class = InstarConfig
    main_input_name = "input_ids"
    _is_stateful = True
    supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)

    def __init__(self, config: InstarConfig, decoder: Decoder | None = None) -> None:
        super().__init__(config)
        require_causal(config.mixer)
        self.decoder = self._built() if decoder is None else decoder
        self._hollow = any(tensor.is_meta for tensor in self.decoder.parameters())
        self.post_init()

    def _built(self) -> Decoder:
        """A fresh decoder, as the configuration says."""
        return build(self.config)

    @classmethod
    def from_decoder(cls, decoder: Decoder, **settings: Any) -> InstarForCausalLM:
        """The decoder itself, not a copy; `settings` are those of `InstarConfig` that it does not know (`eos_token_id`, …).

        Raises CheckpointError for a decoder that was built from a callable, which no configuration can say.
        """
        said = _address(decoder)
        config = InstarConfig(
            vocab_size=said["vocabulary"],
            hidden_size=said["width"],
            num_hidden_layers=said["depth"],
            num_attention_heads=said["heads"],
            mixer=said["mixer"],
            mixer_arguments=said["mixer_arguments"],
            intermediate_size=said["hidden"],
            tie_word_embeddings=said["tied"],
            dtype=decoder.embedding.weight.dtype,
            **settings,
        )
        return cls(config, decoder).train(decoder.training)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: StateCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        past_key_values: StateCache | None = None,
        **given: Any,
    ) -> Any:
        """As every causal model of `transformers`; `past_key_values` is the former name of `cache`.

        attention_mask: [B, C], 1 where a token is real: of these T tokens, or of all that were read and these.
        cache: what an earlier call returned; it is changed to what was read now. labels: [B, T], shifted inside.
        logits_to_keep: the head is asked for the last n places only (0: all), or for those of a tensor.
        """
        cache = past_key_values if cache is None else cache
        self._refuse(input_ids, cache, given)
        assert input_ids is not None
        mask = real(attention_mask, input_ids, cache)
        x, state = self.decoder.features(input_ids, None if cache is None else cache.read(), mask=mask)
        kept = slice(-logits_to_keep or None, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.decoder.logits(x[:, kept])
        loss = None
        if labels is not None:
            if logits.shape[1] != labels.shape[1]:
                raise ShapeError(f"labels need the logits of all {labels.shape[1]} places: leave logits_to_keep out.")
            wanted = labels if mask is None else labels[:, 1:].masked_fill(~mask[:, :-1], IGNORED)
            wanted = wanted if mask is None else torch.cat([labels[:, :1], wanted], 1)
            given = {key: value for key, value in given.items() if key not in _SAID}
            loss = self.loss_function(logits=logits, labels=wanted, vocab_size=logits.shape[-1], **given)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache or cache is not None:
            cache = StateCache(self.decoder.depth) if cache is None else cache
            cache.write(state)
        found = outputs.CausalLMOutputWithPast(loss=loss, logits=logits, **{_CACHE: cache if use_cache else None})
        return found if self.config.return_dict is not False and return_dict is not False else found.to_tuple()

    def _refuse(self, input_ids: Tensor | None, cache: Any, given: dict[str, Any]) -> None:
        """Raise ModelError for what this model does not take, which would else be ignored in silence."""
        if input_ids is None:
            raise ModelError("InstarForCausalLM expects input_ids [B, T]: it embeds tokens itself and takes no inputs_embeds.")
        if cache is not None and not isinstance(cache, StateCache):
            raise ModelError(
                f"InstarForCausalLM keeps states of mixers: it expects an instar.doors.hf_state_cache.StateCache, received "
                f"{type(cache).__name__}. Leave the cache out and one is made."
            )
        for name, what in _SAID.items():
            if given.get(name) or getattr(self.config, name, False):
                raise ModelError(f"InstarForCausalLM returns no {what}; leave out {name}=True.")
        known = {*_SAID, "num_items_in_batch", "shift_labels", "cache_position"}  # the last: columns, from older `generate`
        if unknown := [name for name, value in given.items() if value is not None and name not in known]:
            raise ModelError(
                f"InstarForCausalLM does not take {', '.join(sorted(unknown))}: it counts positions from attention_mask, and "
                "takes input_ids, attention_mask, labels and cache."
            )

    def save_pretrained(self, *args: Any, **given: Any) -> Any:
        """As every model of `transformers`. Raises CheckpointError for mixers that no configuration can say."""
        _address(self.decoder)
        return super().save_pretrained(*args, **given)

    def get_input_embeddings(self) -> nn.Module:
        """The embedding, which is the head as well where they are tied."""
        return self.decoder.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Another embedding, of any number of tokens."""
        self.decoder.embedding, self.decoder.vocabulary = value, value.num_embeddings
        if self.decoder.config is not None:
            self.decoder.config = {**self.decoder.config, "vocabulary": value.num_embeddings}

    def get_output_embeddings(self) -> nn.Module | None:
        """The head; None where the embedding is the head."""
        return self.decoder.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Another head, of any number of tokens."""
        self.decoder.head = new_embeddings

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # `generate` would make a cache of keys and values

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Mixers start as they say themselves; what a file did not hold (also buffers that are no weights) starts so as well.

        `transformers` asks for each module that lacks something, after it has loaded the rest: the first time, all is given.
        """
        if not any(module is own for own in self.modules()):  # rows for more tokens
            if isinstance(module, nn.Embedding | nn.Linear):
                module.weight.normal_(std=0.02)
        elif self._hollow:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                fresh = dict(tensors(self._built()))
            for name, tensor in tensors(self.decoder):
                if not getattr(tensor, "_is_hf_initialized", False):
                    tensor.copy_(fresh[name])
            self._hollow = False


def _address(decoder: Decoder) -> dict[str, Any]:
    if decoder.config is None:
        raise CheckpointError("This decoder has no address: it was built from a callable, or its mixers were replaced.")
    return decoder.config


def real(attention_mask: Tensor | None, tokens: Tensor, cache: StateCache | None) -> Tensor | None:
    """bool [B, T], which of these tokens are real; None for all. Raises ShapeError for a mask of other tokens than were read."""
    B, T = tokens.shape
    before = None if cache is None else cache.read()
    if before is not None and before["position"].shape[0] != B:
        raise ShapeError(f"The cache holds {before['position'].shape[0]} rows and there are {B} rows of tokens.")
    if attention_mask is None:
        return None
    if attention_mask.dim() != 2 or attention_mask.shape[0] != B or attention_mask.shape[1] < T:
        raise ShapeError(
            f"attention_mask expects [{B}, {T}], or as many columns more as were read; received {tuple(attention_mask.shape)}."
        )
    mask = attention_mask.bool()
    earlier = attention_mask.shape[1] - T
    if earlier:
        read = torch.zeros(B, dtype=torch.int64, device=mask.device) if before is None else before["position"].to(mask.device)
        if not torch.equal(mask[:, :earlier].sum(1), read):
            raise ShapeError(
                f"attention_mask says that {mask[:, :earlier].sum(1).tolist()} real tokens came before these {T}, and the cache "
                f"has read {read.tolist()}. Give only tokens that it has not read, and drop columns where every row is padding."
            )
    mask = mask[:, earlier:]
    return None if bool(mask.all()) else mask


def tensors(module: nn.Module) -> Any:
    """Names and tensors, of parameters and buffers."""
    return chain(module.named_parameters(), module.named_buffers())


def register() -> None:
    """Make `AutoConfig` and `AutoModelForCausalLM` know our models, so that their folders load by name."""
    transformers.AutoConfig.register(MODEL_TYPE, InstarConfig, exist_ok=True)
    transformers.AutoModelForCausalLM.register(InstarConfig, InstarForCausalLM, exist_ok=True)
