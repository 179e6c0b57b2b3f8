"""A vision-language model on the device: pictures and a question in, an answer out, in the agent's process. PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgewatt.harness.api import Facts, Runner, UsageError
from edgewatt.workloads.foreign import shown
from edgewatt.workloads.vlm import extra

try:
    import torch
    from torch import Tensor

    from edgewatt.workloads.engines.engine import threads_used
    from edgewatt.workloads.engines.torch_engine import torch_device
    from edgewatt.workloads.vlm import (
        answers,
        bandwidth,
        checkpoint,
        cost,
        load,
        memory,
        network,
        pictures,
        prompts,
        subject,
        synthetic,
    )
    from edgewatt.workloads.vlm import tokenizer as tokenizers
    from edgewatt.workloads.vlm.architecture import IMAGE_TOKEN
    from edgewatt.workloads.vlm.attention import KvCache
    from edgewatt.workloads.vlm.generate import Generated, Moment, Options, generate
    from edgewatt.workloads.vlm.network import Vlm
except ImportError as error:
    raise extra.missing(error) from error

# What a phase begins with is kept for as many questions as fit, to be looped alone; the others take turns with these.
_KEPT_BYTES = 64 << 20


@dataclass
class Begun:
    """What the phases of one item began with."""

    pixels: Tensor | None
    ids: list[int]
    images: Tensor | None = None

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (self.pixels, self.images) if t is not None)


class VisionLanguageRunner(Runner):
    """One model and the questions it is asked, one at a time.

    Params: `system`, `variant`, `weights` (a folder, or "synthetic"), `vision_tower` (a folder, or None), `precision`,
    `exact`, `template`, `image_mode`, `size`, `items` (`id`, `question`, `pictures`: paths), `max_new_tokens`,
    `ignore_eos`, `temperature`, `top_p`, `top_k`, `provider`, `threads`, `seed`, and what is passed on with the
    answers: `benchmark` and `warnings`.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params
        self._items = params["items"]
        self._pictures_each = {len(i["pictures"]) for i in self._items}
        self._warnings = list(params["warnings"])
        self._begun: dict[int, Begun] = {}
        self._begun_bytes = 0
        self.loaded = 0.0  # share of the weights, for whoever waits

    def load(self) -> Facts:
        p = self._params
        threads = threads_used(p["threads"])
        torch.set_num_threads(threads)
        self._device = device = torch_device(p["provider"])
        self._chosen = chosen = subject.chosen(p["system"], p["variant"], p["weights"], p["size"], p["vision_tower"])
        self._architecture = what = chosen.architecture
        self._template = prompts.template_name(p["template"] or what.template)
        self._image_mode = p["image_mode"] or what.image_mode
        if chosen.folder is None:
            self._tokenizer: tokenizers.Tokenizer = tokenizers.synthetic(what.text.vocab)
        else:
            self._tokenizer = tokenizers.open(chosen.folder, what.system)
        self._options = Options(
            max_new_tokens=p["max_new_tokens"],
            temperature=p["temperature"],
            top_p=p["top_p"],
            top_k=p["top_k"],
            seed=p["seed"],
            ignore_eos=p["ignore_eos"],
            eos_ids=what.eos_ids,
            stop_strings=(prompts.STOPS[self._template],),
            context=what.text.positions,
        )
        # What can be told of the questions is told before gigabytes are read.
        lengths = [self._prompt_tokens(self._ids(item)) for item in self._items]
        longest = max(lengths)
        if longest > what.prompt_limit:
            which = self._items[lengths.index(longest)]["id"]
            raise UsageError(
                f"question {shown(which)}: its prompt has {longest} tokens with its pictures, and the network takes "
                f"{what.prompt_limit}; shorten it, or show fewer pictures"
            )
        most = longest + p["max_new_tokens"]
        self._net, facts = loaded(chosen, p, device, most, self._tell)
        if why := facts.get("read_bandwidth_missing"):
            self._warnings.append(f"no bandwidth_utilisation: {why}")
        return {
            "engine": "torch",
            "version": torch.__version__,
            "threads": threads,
            "provider_asked": p["provider"],
            "provider_used": device.type,
            "variant": chosen.variant,
            "template": self._template,
            "image_mode": self._image_mode,
            "image_px": what.vision.image_px,
            "image_tokens": what.image_tokens,
            "tokenizer": self._tokenizer.name,
            "costs": self._costs(),
            "uneven": self._uneven(),
            **facts,
        }

    def run(self, index: int, mark: Any) -> dict[str, Any]:
        item = self._items[index]
        mark("preprocess")
        begun = Begun(self._pixels(item), self._ids(item))
        if max(self._pictures_each) > 0:
            mark("vision")
        begun.images = self._encoded(begun.pixels)
        mark("prefill", self._prompt_tokens(begun.ids))
        embeds = self._net.spliced(begun.ids, begun.images)

        def moment(now: Moment) -> None:
            if now == "decode":
                mark("decode", 1)

        self._latest = Watched(self._net, self._options.max_new_tokens)
        found = generate(self._latest, embeds, self._tokenizer, self._options, moment, item["id"])
        if len(found.ids) == 1:
            mark("decode")  # the prompt's pass gave all there is
        self._latest.ids = found.ids
        self._keep(index, begun)
        return _answer(item, found)

    def run_phase(self, phase: str, index: int) -> int | None:
        kept = index if index in self._begun else list(self._begun)[index % len(self._begun)]
        begun = self._begun[kept]
        if phase == "preprocess":
            self._pixels(self._items[kept])
            self._ids(self._items[kept])
        elif phase == "vision":
            self._encoded(begun.pixels)
        elif phase == "prefill":
            logits, _ = self._net.prefill(self._net.spliced(begun.ids, begun.images), room=1)
            int(logits.argmax())  # waits for what a GPU still has to do
            return self._prompt_tokens(begun.ids)
        elif phase == "decode":
            return self._latest.again()  # the latest answer, whichever item is asked for: its cache is the one there is
        else:
            super().run_phase(phase, index)
        return None

    def save(self, outputs: Mapping[int, dict[str, Any]], folder: Path) -> None:
        p, chosen = self._params, self._chosen
        model = f"{chosen.architecture.system} {chosen.variant}".strip()
        answers.write(folder, outputs, model, len(self._items), p["benchmark"], self._warnings)

    def _costs(self) -> dict[str, Any]:
        """What a step costs; the tower's only where all questions have as many pictures."""
        precision = self._params["precision"]
        kv_bytes = 4 if precision == "fp32" else 2
        costs = cost.costs(self._architecture, precision, kv_bytes, max(self._pictures_each))
        return {k: v for k, v in costs.items() if k not in self._uneven()}

    def _uneven(self) -> dict[str, str]:
        """Phases in which questions differ in kind, and how: one time or cost of them all would be of none."""
        if len(self._pictures_each) == 1:
            return {}
        return {"vision": f"questions have {' or '.join(map(str, sorted(self._pictures_each)))} pictures"}

    def _tell(self, came: int, whole: int) -> None:
        self.loaded = came / whole

    # -- the phases

    def _pixels(self, item: Mapping[str, Any]) -> Tensor | None:
        """The pictures (n, 3, side, side); None if there are none."""
        vision = self._architecture.vision
        found = [pictures.tensor(path, vision.image_px, self._image_mode, vision.kind) for path in item["pictures"]]
        return torch.from_numpy(np.stack(found)) if found else None

    def _ids(self, item: Mapping[str, Any]) -> list[int]:
        """The prompt's ids with a place for each picture."""
        prompt = prompts.prompt(self._template, item["question"], len(item["pictures"]))
        return tokenizers.ids_with_images(self._tokenizer, prompt)

    def _prompt_tokens(self, ids: list[int]) -> int:
        return len(ids) + ids.count(IMAGE_TOKEN) * (self._architecture.image_tokens - 1)

    def _encoded(self, pixels: Tensor | None) -> Tensor | None:
        if pixels is None:
            return None
        images = self._net.encode(pixels.to(self._device))
        if self._device.type == "cuda":
            torch.cuda.synchronize()  # a stamp taken after this has all of the work behind it
        return images

    def _keep(self, index: int, begun: Begun) -> None:
        if index not in self._begun and (not self._begun or self._begun_bytes + begun.bytes <= _KEPT_BYTES):
            self._begun[index] = begun
            self._begun_bytes += begun.bytes


class Watched:
    """The network while it answers one question: it keeps the cache, so that the answer can be decoded again."""

    def __init__(self, net: Vlm, room: int) -> None:
        self._net, self._room = net, room
        self._cache: KvCache | None = None
        self._prompt = 0
        self.ids: tuple[int, ...] = ()  # of the answer, once it is there

    def prefill(self, embeds: Tensor) -> tuple[Tensor, KvCache]:
        logits, self._cache = self._net.prefill(embeds, self._room)
        self._prompt = self._cache.length
        return logits, self._cache

    def decode(self, token: int, cache: KvCache) -> Tensor:
        return self._net.decode(token, cache)

    def again(self) -> int:
        """Decodes the answer's tokens once more, over those in the cache: how many steps that took."""
        assert self._cache is not None
        self._cache.length = self._prompt
        tokens = self.ids[:-1] or self.ids  # the last one was never read, unless it is the only one
        tokens = tokens[: self._net.architecture.text.positions - self._prompt]  # none, where the prompt fills them all
        for token in tokens:
            int(self._net.decode(token, self._cache).argmax())
        return len(tokens)


def loaded(
    chosen: subject.Subject,
    params: Mapping[str, Any],
    device: torch.device,
    tokens: int,
    progress: Callable[[int, int], None],
) -> tuple[Vlm, dict[str, Any]]:
    """The network with its weights, and what is to be told of them; UsageError before anything is read that is too big.

    `tokens`: the longest prompt and answer together.
    """
    what, precision = chosen.architecture, params["precision"]
    opened = None
    if chosen.folder is not None:
        tower = params["vision_tower"]
        opened = checkpoint.open(chosen.folder, what.system, None if tower is None else Path(tower))
    pictures_each = max(len(i["pictures"]) for i in params["items"])
    on_cpu = device.type == "cpu"
    stored_bytes = {"F64": 8, "F32": 4}.get(opened.dtype, 2) if opened is not None else 2
    fast, left = on_cpu and not params["exact"], None if on_cpu else _left_on_gpu(device)
    needed = memory.check(memory.Asked(what, precision, tokens, pictures_each, stored_bytes, fast), left)
    # Before loading: its buffer is gone when the memory is needed. A GPU reads a memory of its own.
    read = _read_bandwidth() if on_cpu else {}
    net = network.empty(what)
    wanted = net.official_keys()
    if opened is None:
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        run = {k: s for k, s in wanted.items() if net.module_for(k) is not None}  # what is never run needs no numbers
        about: dict[str, Any] = {"checkpoint": f"synthetic, seed {params['seed']}"}
        tensors = synthetic.tensors(run, params["seed"], dtype)
    else:
        tensors, about = opened.tensors(wanted), opened.facts()
    facts = load.load(net, tensors, precision, device=str(device), exact=params["exact"], progress=progress)
    if not on_cpu:
        net.to(device)
    return net, facts | net.facts() | about | {"memory_needed_bytes": needed.peak} | read


def _read_bandwidth() -> dict[str, Any]:
    """How fast memory is read, as facts; where it holds no buffer for that, why."""
    try:
        read, error = bandwidth.read_bandwidth(torch.get_num_threads())
    except bandwidth.NoRoomError as no_room:
        return {"read_bandwidth_missing": str(no_room)}
    return {"read_bandwidth_bytes_per_s": read, "read_bandwidth_error_bytes_per_s": error}


def _left_on_gpu(device: torch.device) -> int | None:
    """Bytes that can be taken of a GPU's own memory; None: it has none (a Jetson's), so that the machine's counts.

    What files were read into is free for the machine there, and not for the GPU's driver.
    """
    if torch.cuda.get_device_properties(device).is_integrated:
        return None
    return int(torch.cuda.mem_get_info(device)[0])


def _answer(item: Mapping[str, Any], found: Generated) -> dict[str, Any]:
    return {
        "id": item["id"],
        "question": item["question"],
        "text": found.text,
        "ids": list(found.ids),
        "prompt_tokens": found.n_prompt,
        "stopped_by": found.stopped_by,
    }
