"""Scoring: likelihoods of choices, held-out loss and greedy decoding, beside lm-eval's own ways.

python -m benchmarks.gpu.evaluate [--device cpu --tiny]

The peer is lm-eval's `HFLM` for choices, a forward pass with all logits for held-out loss, and
transformers' `generate` for decoding; on the same model, in the same precision and batch size.
"""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lm_eval.models.huggingface import HFLM
from torch import nn
from transformers import PreTrainedTokenizerBase as Tokenizer

from ablate.evaluate import choices, generate, heldout
from ablate.evaluate.live import LiveLM, TokenMemo
from ablate.evaluate.precision import computed_in
from ablate.evaluate.requests import quiet
from ablate.models.load import load_tokenizer
from ablate.paths import conf_dir
from benchmarks.gpu import common

BATCH = 64
MICRO = conf_dir().parent / "ablate/micro/checkpoints/micro_0"
Pairs = list[tuple[list[int], list[int]]]


def questions(items: int, vocab: int, *, longest: int) -> Pairs:
    """Return items of four options: contexts of 40 tokens to `longest`, answers of 1 to 12."""
    draws, found = np.random.default_rng(0), []
    for _ in range(items):
        context = draws.integers(3, vocab, draws.integers(40, longest)).tolist()
        for size in draws.integers(1, 13, 4):
            found.append((context, draws.integers(3, vocab, size).tolist()))
    return found


def compared(
    options: Any, device: torch.device, name: str, count: int, ours: Callable[[], Any],
    peer: Callable[[], Any], *, unit: str, **about: Any,
) -> None:  # fmt: skip
    """Report how many of `count` are done a second by both, and the peak memory of both."""
    figures = {}
    for who, run in (("ours", ours), ("peer", peer)):
        common.peak_gib(device)
        figures[who] = count / common.seconds(device, run, repeats=1)
        figures[f"{who}_gib"] = common.peak_gib(device)
    ratio = figures["ours"] / figures["peer"]
    common.report(options.out, device, name, unit=unit, ratio=ratio, **figures, **about)


def multiple_choice(options: Any, device: torch.device, model: nn.Module, pairs: Pairs) -> None:
    """Measure log-likelihoods in both precisions, and how far those in bf16 are from fp32."""
    found = {}
    for precision in ("bf16", "fp32"):
        theirs = lowered(copy.deepcopy(model)) if precision == "bf16" else model
        with computed_in(model, precision):
            ours, _ = harnesses(model)
            found[precision] = choices.loglikelihoods(model, pairs, batch_size=BATCH)
            _, peer = harnesses(theirs)
            requests = [((f"{n}", "x"), *pair) for n, pair in enumerate(pairs)]
            compared(
                options, device, f"choices {precision}", len(pairs) // 4,
                lambda lm=ours, r=requests: lm._loglikelihood_tokens(r),
                lambda lm=peer, r=requests: by_itself(lm._loglikelihood_tokens, r, True),
                unit="items/s", options_an_item=4,
            )  # fmt: skip
        del theirs
    sizes = np.array([len(answer) for _, answer in pairs])
    one, other = (np.array([value for value, _ in found[p]]) for p in ("fp32", "bf16"))
    error = np.abs(one - other) / sizes
    common.report(
        options.out, device, "choices bf16 error", unit="nats/token", mean=float(error.mean()),
        most=float(error.max()),
    )  # fmt: skip


def lowered(model: nn.Module) -> nn.Module:
    """Return `model` with its weights in bfloat16, as from_pretrained leaves it: buffers stay."""
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16()
    return model


def harnesses(model: Any) -> tuple[LiveLM, HFLM]:
    """Return ours and lm-eval's own view of a model."""
    tokenizer: Tokenizer = load_tokenizer(MICRO)
    with quiet():
        ours = LiveLM(model, tokenizer, batch_size=BATCH, memo=TokenMemo())
        return ours, HFLM(pretrained=model, tokenizer=copy.copy(tokenizer), batch_size=BATCH)


def by_itself(run: Callable[..., Any], *given: Any) -> Any:
    """Return what a peer gives outside the autocast that ours is called in."""
    with torch.inference_mode(), contextlib.ExitStack() as stack:
        for kind in ("cuda", "cpu"):
            stack.enter_context(torch.autocast(kind, enabled=False))
        return run(*given)


def held_out(options: Any, device: torch.device, model: Any, rows: int, longest: int) -> None:
    """Measure the loss of every token of held-out rows; the model's own precision."""
    part = common.rows(rows, model.config.vocab_size, longest=longest)
    order = np.argsort(-part.lengths, kind="stable")

    @torch.inference_mode()
    def plain() -> None:
        for start in range(0, rows, BATCH):
            some = [part.row(i)[0] for i in order[start : start + BATCH]]
            ids = np.zeros((len(some), len(some[0])), dtype=np.int64)
            for number, row in enumerate(some):
                ids[number, : len(row)] = row
            ids_BL = torch.from_numpy(ids).to(device)
            logits = model(input_ids=ids_BL, use_cache=False).logits
            flat = logits[:, :-1].float().flatten(0, 1)
            F.cross_entropy(flat, ids_BL[:, 1:].flatten(), reduction="none").cpu()

    compared(
        options, device, "held-out loss", int(part.lengths.sum()),
        lambda: heldout.row_losses(model, part, rows=None, batch_size=BATCH), plain,
        unit="tokens/s", precision=str(model.dtype).removeprefix("torch."),
    )  # fmt: skip


def decoding(
    options: Any, device: torch.device, model: Any, *, rows: int, new: int, name: str
) -> None:
    """Measure greedy decoding of prompts of 20 to 200 tokens; no row ends before its limit."""
    draws = np.random.default_rng(0)
    vocab = model.config.vocab_size
    sizes = draws.integers(20, 200, rows)
    prompts = [draws.integers(3, vocab, size).tolist() for size in sizes]
    ids_BL, mask_BL = generate.left_padded(prompts, device)

    def peer() -> Any:
        return model.generate(
            input_ids=ids_BL, attention_mask=mask_BL, max_new_tokens=new, min_new_tokens=new,
            do_sample=False, pad_token_id=0, eos_token_id=None, use_cache=True,
        )  # fmt: skip

    def ours() -> Any:
        return generate.greedy(model, ids_BL, mask_BL, max_new=new, ends=generate.Ends(()))

    found: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        compared(
            options, device, name, rows * new,
            lambda: found.update(ours=ours()), lambda: found.update(peer=peer()),
            unit="tokens/s", rows=rows, new_tokens=new,
        )  # fmt: skip
    alike = (found["ours"] == found["peer"][:, ids_BL.shape[1] :]).float().mean()
    common.report(options.out, device, f"{name}: tokens alike", unit="share", value=float(alike))


def main() -> None:
    """Measure everything."""
    options = common.arguments(__doc__).parse_args()
    device = torch.device(options.device)
    shape, items, longest, rows, new = (
        ("tiny", 8, 60, 16, 8) if options.tiny else ("1b", 64, 300, 256, 64)
    )
    model: Any = common.llama(shape, device, torch.bfloat16).requires_grad_(False)
    for count in (8, BATCH):
        decoding(options, device, model, rows=min(count, rows), new=new, name=f"decoding x {count}")
    held_out(options, device, model, rows, longest=512)
    adapted = common.with_lora(common.llama(shape, device, torch.bfloat16)).requires_grad_(False)
    decoding(options, device, adapted, rows=min(BATCH, rows), new=new, name="decoding LoRA x 64")
    del adapted
    for parameter in model.parameters():
        parameter.data = parameter.data.float()
    pairs = questions(items, model.config.vocab_size, longest=longest)
    multiple_choice(options, device, model, pairs)


if __name__ == "__main__":
    main()
