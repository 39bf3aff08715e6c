"""Notices that a model's weights are no longer those that an engine began with; knows no corpus.

What was read with other weights is not what this model would make of it: a corpus, the beginnings of prompts and the sink are
all of one set of weights. Training in the same process and loading other weights into the model count themselves in its tensors
(the version that autograd keeps), which is looked at before every use of the model and takes a millisecond. What does not (an
assignment to `.data`, as some adapters are merged) shows in the sampled values, which are compared where something is saved or
opened.
"""

from transformers import PreTrainedModel

from reattention_core.errors import FingerprintMismatchError
from reattention_core.models.fingerprint import sampled_weights


class Unchanged:
    """The weights of a model as they are now.

    Args:
        model: loaded, attached or not.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._values, self._versions = model, sampled_weights(model), _versions(model)

    def check(self, closely: bool = False) -> None:
        """Refuse a model with other weights.

        Args:
            closely: compare values even where no tensor counted a change.

        Raises:
            FingerprintMismatchError: they were changed.
        """
        versions = _versions(self._model)
        if not closely and versions == self._versions:
            return
        if sampled_weights(self._model) != self._values:
            raise FingerprintMismatchError(
                "the model's weights were changed since this engine was made, and what it has read belongs to the old ones: close "
                "it, make another engine on the model as it is now, and ingest the documents again",
                fields=("weights",),
            )
        self._versions = versions


def _versions(model: PreTrainedModel) -> list[int]:
    """How often each tensor was written; those that were made in inference mode do not count, nor can they be trained."""
    return [0 if tensor.is_inference() else tensor._version for tensor in model.parameters()]
