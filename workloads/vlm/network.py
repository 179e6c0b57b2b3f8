"""A whole vision-language network in torch: tower, projector, splice, language model. Needs the extra `vlm`.

The language models are the classes of `transformers`; they carry the official keys as they are. Weights come one
tensor at a time, under their official keys: until then the network has shapes only and takes no memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, cast

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from edgewatt.harness.api import UsageError
from edgewatt.workloads.vlm import attention, layouts
from edgewatt.workloads.vlm.architecture import IMAGE_TOKEN, Architecture, Text
from edgewatt.workloads.vlm.attention import KvCache
from edgewatt.workloads.vlm.projectors import projector
from edgewatt.workloads.vlm.splice import spliced_row
from edgewatt.workloads.vlm.towers import Tower

ROOM = 256  # tokens after the prompt that the cache holds without being moved, unless said otherwise


def empty(architecture: Architecture) -> Vlm:
    """The network with shapes and no weights (torch's meta device): `place` fills it."""
    with torch.device("meta"):
        network = Vlm(architecture)
    network.materialise_buffers()
    return network.eval()


class Vlm(nn.Module):
    """Pictures and token ids in, logits out: `encode`, `spliced`, `prefill`, then `decode` for every further token."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.tower = Tower(architecture.vision)
        self.projector = projector(architecture)
        self.text = _language_model(architecture.text)
        self.requires_grad_(False)
        self._shapes = layouts.official_keys(architecture)
        self._wanted = {k for k in self._shapes if layouts.is_run(architecture, k)}
        takes = inspect.signature(self.text.model.forward).parameters
        self._cache_name = "cache" if "cache" in takes else "past_key_values"  # renamed in transformers 5

    def facts(self) -> dict[str, str]:
        """What computes: recorded beside every result."""
        return {
            "attention": "torch scaled_dot_product_attention, scores in float32",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    # -----------------------------------------------------------------------------------------------------------------
    # Weights

    def official_keys(self) -> dict[str, tuple[int, ...]]:
        """Key -> shape of a whole checkpoint in layout A, with the parts that are never run."""
        return dict(self._shapes)

    def missing(self) -> list[str]:
        """The official keys that still wait for their tensor."""
        return [k for k in self._shapes if k in self._wanted]

    def path_of(self, key: str) -> str | None:
        """Where the tensor of an official key lies in this module; None for those that are never run.

        Raises:
            KeyError: this network has no such key.
        """
        if key not in self._shapes:
            raise KeyError(key)
        if not layouts.is_run(self.architecture, key):
            return None
        for prefix, part in ((layouts.TOWER, "tower."), (layouts.PROJECTOR, "projector.")):
            if key.startswith(prefix):
                return part + key.removeprefix(prefix)
        return "text." + key

    def module_for(self, key: str) -> tuple[nn.Module, str] | None:
        """The module that holds the tensor of an official key, and its name there; None for those never run."""
        path = self.path_of(key)
        if path is None:
            return None
        owner, _, name = path.rpartition(".")
        return self.get_submodule(owner), name

    def place(self, key: str, tensor: Tensor) -> None:
        """Puts a tensor, as it is, where an official key belongs; one that is never run is dropped.

        Raises:
            UsageError: no such key, or another shape.
        """
        shape = self._shapes.get(key)
        if shape is None:
            raise UsageError(f"the checkpoint holds {key}, which this network has not; is it another model's?")
        if tuple(tensor.shape) != shape:
            raise UsageError(f"the checkpoint's {key} is {list(tensor.shape)}, wanted {list(shape)}; is it whole?")
        found = self.module_for(key)
        if found is not None:
            owner, name = found
            setattr(owner, name, nn.Parameter(tensor, requires_grad=False))
            self._wanted.discard(key)

    def replace(self, key: str, module: nn.Module) -> None:
        """Puts another module in place of the one that holds an official key, whose tensor then counts as placed.

        For quantised layers: the module is called as the Linear or Embedding it stands for. A bias may still be placed.
        """
        path = self.path_of(key)
        if path is None:
            raise KeyError(key)
        self.set_submodule(path.rpartition(".")[0], module)
        self._wanted.discard(key)

    def materialise_buffers(self, device: str | torch.device = "cpu") -> None:
        """Makes real what is computed and in no checkpoint: the rotary frequencies (float32) and position numbers.

        `empty` does so on the CPU; for weights that are placed elsewhere it is to be done there too.
        """
        rotary = self.text.model.rotary_emb
        with torch.device(device):
            self.text.model.rotary_emb = type(rotary)(self.text.config)
        self.tower.materialise_buffers(device)

    # -----------------------------------------------------------------------------------------------------------------
    # Running

    @property
    def dtype(self) -> torch.dtype:
        """Of activations and the cache: what the norms are kept in, which are never quantised."""
        return self._norm.dtype

    @property
    def _norm(self) -> Tensor:
        name = "final_layernorm" if self.architecture.text.kind == "phi" else "norm"
        return cast(Tensor, getattr(self.text.model, name).weight)

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """Pictures (n, 3, side, side) to what the tower sees in them (n, patches, vision width)."""
        side = self.architecture.vision.image_px
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, side, side):
            raise UsageError(f"pictures of shape {list(pixels.shape)}; this network takes [n, 3, {side}, {side}]")
        return cast(Tensor, self.tower(pixels.to(self._norm)))

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures (n, 3, side, side) to embeddings (n, image tokens, text width)."""
        return cast(Tensor, self.projector(self.features(pixels)))

    @torch.inference_mode()
    def embedded(self, ids: Tensor) -> Tensor:
        """Token ids (n,) to their rows of the embedding table (n, text width)."""
        return cast(Tensor, self.text.model.embed_tokens(ids))

    @torch.inference_mode()
    def spliced(self, ids: Sequence[int], images: Tensor | None = None) -> Tensor:
        """The prompt's embeddings (1, tokens, text width): every -200 is replaced by the next picture's embeddings.

        Raises:
            UsageError: not as many pictures as places, an id outside the table, or a prompt that is too long.
        """
        places, given = sum(i == IMAGE_TOKEN for i in ids), 0 if images is None else len(images)
        if places != given:
            raise UsageError(f"the prompt has {places} places for pictures, and {given} were given; give one for each")
        self._check_ids([i for i in ids if i != IMAGE_TOKEN])
        limit, length = self.architecture.prompt_limit, len(ids) + places * (self.architecture.image_tokens - 1)
        if not 0 < length <= limit:
            raise UsageError(f"the prompt has {length} tokens with its pictures, from 1 to {limit} fit; shorten it")
        pictures = iter(images) if images is not None and places else None
        return spliced_row(self._tensor(ids), pictures, self.embedded)[0][None]

    @torch.inference_mode()
    def prefill(self, embeds: Tensor, room: int = ROOM) -> tuple[Tensor, KvCache]:
        """Reads the prompt (1, tokens, width) in one pass: logits (vocabulary,) after its last token, and the cache.

        `room`: how many tokens are to follow; with more, the cache is moved once or twice.
        """
        cache = KvCache(self.architecture.text.layers, embeds.shape[1] + room)
        return self._logits(self._hidden(embeds, cache)[:, -1])[0], cache

    @torch.inference_mode()
    def decode(self, token: int, cache: KvCache) -> Tensor:
        """Reads one more token: logits (vocabulary,) after it. The cache grows by it.

        Raises:
            UsageError: the network is not made for that many tokens.
        """
        if cache.length >= self.architecture.text.positions:
            raise UsageError(
                f"the context of {self.architecture.text.positions} tokens is full; ask for fewer new tokens"
            )
        self._check_ids([token])
        return self._logits(self._hidden(self.embedded(self._tensor([token]))[None], cache)[:, -1])[0]

    @torch.inference_mode()
    def all_logits(self, embeds: Tensor) -> tuple[Tensor, Tensor]:
        """After every token of (1, tokens, width): logits (tokens, vocabulary) and hidden states (tokens, width).

        Hidden states are after the final norm. For comparison with reference outputs; a run needs neither.
        """
        hidden = self._hidden(embeds, None)[0]
        return self._logits(hidden), hidden

    def _hidden(self, embeds: Tensor, cache: KvCache | None) -> Tensor:
        past = cache.length if cache is not None else 0
        positions = torch.arange(past, past + embeds.shape[1], device=embeds.device)[None]
        output = self.text.model(
            inputs_embeds=embeds, position_ids=positions, use_cache=False, **{self._cache_name: cache}
        )
        if cache is not None:
            cache.length += embeds.shape[1]
        return cast(Tensor, output.last_hidden_state)

    def _logits(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.text.lm_head(hidden))

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor(ids, dtype=torch.long, device=self._norm.device)

    def _check_ids(self, ids: Sequence[int]) -> None:
        vocab = self.architecture.text.vocab
        if any(not 0 <= i < vocab for i in ids):
            wrong = next(i for i in ids if not 0 <= i < vocab)
            raise UsageError(f"token id {wrong} is outside the table of {vocab}; is the tokenizer this checkpoint's?")


_CLASSES = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "phi": (PhiConfig, PhiForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "phi3": (Phi3Config, Phi3ForCausalLM),
}


def _language_model(text: Text) -> Any:
    config, model = _CLASSES[text.kind]
    rope = {"rope_type": "default", "rope_theta": text.rope_theta}
    own: dict[str, Any] = {"rms_norm_eps": text.eps}
    if text.kind == "phi":
        own = {"layer_norm_eps": text.eps, "hidden_act": "gelu_new"}
    if text.kind in ("phi", "phi3"):
        rope["partial_rotary_factor"] = text.rotary_share
    if text.kind == "phi3":
        own["sliding_window"] = text.sliding_window
    return model(
        config(
            vocab_size=text.vocab,
            hidden_size=text.hidden,
            intermediate_size=text.mlp,
            num_hidden_layers=text.layers,
            num_attention_heads=text.heads,
            num_key_value_heads=text.kv_heads,
            max_position_embeddings=text.positions,
            rope_parameters=rope,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
            attn_implementation=attention.NAME,
            **own,
        )
    )
