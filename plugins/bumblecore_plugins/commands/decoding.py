"""Continuing prompts with transformers' `generate`, in the way that the model is seen to compute correctly.

Not every model may be given padded prompts (linear attention reads the padding, counted positions shift), and not every
cache gives what the complete forward pass gives. So both are tried on the prompts at hand before anything is decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bumblecore_core import ModelError, one
from bumblecore_core.toolkit.library_errors import library_message

if TYPE_CHECKING:
    import torch

TRIED = 3
"""New tokens of a trial: the second and third come from the cache that the first has left."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 5e-2
"""Largest difference of logits that counts as rounding, as a share of their largest distance from their mean: in
float32, in half precision."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to continue a prompt. `temperature` 0 is greedy; `stop`: ids that end a reply; `pad`: id that fills up."""

    max_new_tokens: int
    temperature: float
    top_p: float
    stop: tuple[int, ...]
    pad: int


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How prompts are decoded. `use_cache`: keep keys, values or states between tokens; `batch_size`: prompts at a
    time."""

    use_cache: bool
    batch_size: int


def continuations(
    model: Any,
    prompts: Sequence[list[int]],
    sampling: Sampling,
    batch_size: int,
    note: Callable[[str], None] = lambda line: None,
) -> Iterator[list[int]]:
    """New token ids for each prompt, in order, up to and including the id that ended it. `note` is passed a line where
    the model cannot be used with a cache or in batches. Raises `ModelError` BC064 where it cannot generate at all."""
    from transformers import GenerationConfig

    decoding = choose_decoding(model, prompts, batch_size=batch_size, pad=sampling.pad, note=note)
    greedy = sampling.temperature == 0
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens,
        do_sample=not greedy,
        temperature=None if greedy else sampling.temperature,
        top_p=None if greedy else sampling.top_p,
        top_k=None if greedy else 0,
        eos_token_id=list(sampling.stop) or None,
        pad_token_id=sampling.pad,
        use_cache=decoding.use_cache,
    )
    for start in range(0, len(prompts), decoding.batch_size):
        batch = prompts[start : start + decoding.batch_size]
        output = _generate(model, batch, settings, sampling.pad)
        for new in output.sequences[:, max(map(len, batch)) :].tolist():
            end = next((at + 1 for at, token in enumerate(new) if token in sampling.stop), len(new))
            yield new[:end]


def choose_decoding(
    model: Any, prompts: Sequence[list[int]], *, batch_size: int, pad: int, note: Callable[[str], None]
) -> Decoding:
    """The fastest decoding of `prompts` whose logits are those of complete forward passes over single prompts."""
    shortest, longest = min(prompts, key=len), max(prompts, key=len)
    use_cache = _computes_correctly(model, [longest], pad, use_cache=True)
    if not use_cache:
        note("decoding without a cache: with it, this model computes other logits")
    padded = batch_size > 1 and len(shortest) < len(longest)
    if padded and not _computes_correctly(model, [shortest, longest], pad, use_cache=use_cache):
        note("decoding one prompt at a time: padding changes this model's logits")
        batch_size = 1
    return Decoding(use_cache=use_cache, batch_size=batch_size)


def _computes_correctly(model: Any, batch: Sequence[list[int]], pad: int, *, use_cache: bool) -> bool:
    """Whether a few greedy steps over `batch` have, for its first prompt, the logits of one forward pass without
    padding and cache. False also where they raise: the other way of decoding may not."""
    import torch
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=TRIED,
        do_sample=False,
        pad_token_id=pad,
        use_cache=use_cache,
        output_logits=True,
        return_dict_in_generate=True,
    )
    try:
        output = _generate(model, batch, settings, pad)
    except (ModelError, torch.OutOfMemoryError):
        return False
    found = torch.stack([logits[0] for logits in output.logits]).float()
    ids = torch.tensor([batch[0]], device=model.device)
    ids = torch.cat([ids, output.sequences[:1, -len(found) : -1].to(ids)], dim=1)
    with torch.no_grad():
        expected = model(input_ids=ids, use_cache=False).logits[0, -len(found) :].float()
    spread = (expected - expected.mean(dim=-1, keepdim=True)).abs().max()
    tolerance = TOLERANCE if model.dtype in (torch.float32, torch.float64) else HALF_TOLERANCE
    return bool((found.to(expected) - expected).abs().max() <= tolerance * spread)


def _generate(model: Any, batch: Sequence[list[int]], settings: Any, pad: int) -> Any:
    """The output of `model.generate` with these settings and no others. Raises `ModelError` BC064."""
    import torch

    ids, mask = _left_padded(batch, pad)
    settings.return_dict_in_generate = True
    before = model.generation_config
    try:
        model.generation_config = settings  # one that is passed takes what it lacks from the model's own
        return model.generate(input_ids=ids.to(model.device), attention_mask=mask.to(model.device))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        problem = f"transformers cannot generate with this model: {library_message(error)}"
        fix = "Check that your version of transformers knows how to generate with this model type"
        raise one(ModelError, "BC064", problem, fix, place=str(model.name_or_path), field="MODEL") from error
    finally:
        model.generation_config = before


def _left_padded(prompts: Sequence[list[int]], pad: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, T) ids and attention mask, prompts at the right edge."""
    import torch

    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return ids, mask
