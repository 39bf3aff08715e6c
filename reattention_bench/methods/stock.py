"""Full attention: the model as transformers has it, detached, with its own positions or with scaled ones; knows no cache of ours.

Scaled positions are transformers' own (`rope_type` dynamic or yarn): the rotary modules are made anew from a changed copy of
the model's configuration, and put back afterwards.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil, log2
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, StoppingCriteriaList

from reattention_bench.case import Case
from reattention_bench.likelihood import read_stock
from reattention_bench.methods.base import Answered, Lab, Method, asking, context_text
from reattention_core.errors import InvalidRequestError, UnsupportedModelError
from reattention_core.generate import TextStream
from reattention_core.prefill import running


class Full(Method):
    """Everything in one prompt, whatever the window."""

    name = "full"
    summary = "stock attention over everything"
    stock, quadratic, reads = True, True, True

    def answer(self, lab: Lab, case: Case) -> Answered:
        """Ask after all documents, or read the whole text."""
        if lab.task.reads:
            return self._run(lab, case, case.ids)
        text = context_text(lab, lab.group.of(case)) + asking(lab, case)
        return self._run(lab, case, lab.engine.tokens.encode(text).ids)

    def _run(self, lab: Lab, case: Case, ids: Sequence[int]) -> Answered:
        model = lab.engine.attachment.model
        if lab.task.reads:
            likelihood = read_stock(model, ids, case.last)
            return Answered(repr(-likelihood.mean), likelihood.widest)
        return Answered(_complete(lab, model, ids), len(ids))


class _Scaled(Full):
    """Full attention with scaled positions."""

    rope_type: ClassVar[str]
    allowed = ("factor",)

    def __init__(self, parameters: dict[str, Any]) -> None:
        super().__init__(parameters)
        factor = parameters.get("factor", 1)
        if not isinstance(factor, (int, float)) or factor < 1:
            raise InvalidRequestError(f"{self.name}: factor is a number from 1 on, got {factor!r}")

    def factor(self, needed: int, window: int) -> float:
        """By how much the window is stretched for a prompt of `needed` tokens."""
        return float(self.parameters.get("factor", 2.0))

    def _run(self, lab: Lab, case: Case, ids: Sequence[int]) -> Answered:
        needed = len(ids) + lab.task.max_new_tokens
        factor = self.factor(needed, lab.engine.window)
        with scaled(lab.engine.attachment.model, self.rope_type, factor, lab.engine.window):
            answered = super()._run(lab, case, ids)
        return Answered(answered.text, answered.tokens, note=f"factor {factor:g}")


class DynamicNtk(_Scaled):
    """Dynamic NTK scaling; the factor is 2, and the base follows the length by itself."""

    name = "dynamic-ntk"
    summary = "stock attention over everything, positions scaled by transformers' dynamic NTK (factor=2)"
    rope_type = "dynamic"


class Yarn(_Scaled):
    """YaRN scaling (arXiv 2309.00071); the factor is the power of two that the prompt needs."""

    name = "yarn"
    summary = "stock attention over everything, positions scaled by transformers' YaRN (factor as needed)"
    rope_type = "yarn"

    def factor(self, needed: int, window: int) -> float:
        """As given, or the smallest power of two that covers the prompt."""
        return float(self.parameters.get("factor", 2 ** max(0, ceil(log2(needed / window)))))


@contextmanager
def scaled(model: PreTrainedModel, rope_type: str, factor: float, window: int) -> Iterator[None]:
    """A stock model with other rotary positions.

    Raises:
        UnsupportedModelError: the model's rotary module cannot be made from such a configuration.
    """
    places = [(owner, name, child) for owner in model.modules() for name, child in owner.named_children()]
    rotary = [(owner, name, child) for owner, name, child in places if type(child).__name__.endswith("RotaryEmbedding")]
    config = copy.deepcopy(model.config)
    known = getattr(config, "rope_parameters", None)
    if not rotary or not isinstance(known, dict) or "rope_theta" not in known or known.get("rope_type") != "default":
        raise UnsupportedModelError(
            f"{model.config.model_type} has no plain rotary positions that could be scaled: leave out this method"
        )
    config.rope_parameters = {**known, "rope_type": rope_type, "factor": factor}
    if rope_type == "yarn":
        config.rope_parameters["original_max_position_embeddings"] = window
    try:
        for owner, name, child in rotary:
            setattr(owner, name, type(child)(config=config).to(model.device))
        yield
    finally:
        for owner, name, child in rotary:
            setattr(owner, name, child)


def _complete(lab: Lab, model: PreTrainedModel, ids: Sequence[int]) -> str:
    """A greedy continuation, without the white space around it."""
    prompt, pieces = torch.tensor([list(ids)], device=model.device), list[str]()
    stream = TextStream(lab.engine.tokenizer, lab.task.stop, pieces.append, lambda: False, trim=True)
    padding = lab.engine.tokenizer.pad_token_id
    with running():
        model.generate(  # type: ignore[operator]
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=lab.task.max_new_tokens,
            pad_token_id=0 if padding is None else padding,
            streamer=stream,
            stopping_criteria=StoppingCriteriaList([stream]),
        )
    return "".join(pieces)
