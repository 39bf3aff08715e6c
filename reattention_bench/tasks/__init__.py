"""What is asked, one idea a file, each behind the interface of `base`."""

from reattention_bench.tasks.base import Task
from reattention_bench.tasks.key_value import KeyValue
from reattention_bench.tasks.niah import NiahMultiKey, NiahMultiQuery, NiahMultiValue, NiahSingle
from reattention_bench.tasks.open_corpus import HotpotQA, NaturalQuestions, XQuAD
from reattention_bench.tasks.passkey import Passkey
from reattention_bench.tasks.perplexity import Perplexity
from reattention_bench.tasks.variable_tracking import VariableTracking

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Passkey,
        NiahSingle,
        NiahMultiKey,
        NiahMultiValue,
        NiahMultiQuery,
        VariableTracking,
        KeyValue,
        Perplexity,
        XQuAD,
        NaturalQuestions,
        HotpotQA,
    )
}

__all__ = ["TASKS", "Task"]
