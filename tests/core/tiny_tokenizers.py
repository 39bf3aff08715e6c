"""Builds small tokenizers of each kind in milliseconds; knows no model and needs no network."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SENTENCES = [
    "The quick brown fox jumps over the lazy dog.",
    "A cache keeps the keys and the values of every token the model has read.",
    "What is the warranty period of the device, and who is the manufacturer?",
    "user assistant system: you are a helpful assistant.",
]


def wrap(backend: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    """The transformers tokenizer around `backend`; its constructor has no type hints."""
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)  # type: ignore[no-untyped-call]


def byte_level_bpe() -> PreTrainedTokenizerFast:
    """385 ids: bytes, merges, a run of spaces, and control tokens both special and not.

    `<|endoftext|>` and `<tool_call>` are in the base vocabulary too, as in SmolLM and Qwen
    checkpoints that were converted from other formats.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<tool_call>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES * 4, trainer)
    tokenizer = wrap(backend, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("      ", normalized=False)])
    tokenizer.chat_template = CHATML
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """Sentencepiece style, with `</s>` a piece of the vocabulary like any word."""
    letters = "abcdefghijklmnopqrstuvwxyz</>."
    pieces = [("<unk>", 0.0), ("</s>", -1.0), ("▁", -2.0), ("▁the", -3.0), ("▁fox", -3.0)]
    backend = Tokenizer(models.Unigram([*pieces, *((letter, -6.0) for letter in letters)], 0, False))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return wrap(backend, unk_token="<unk>", eos_token="</s>")


def word_level() -> PreTrainedTokenizerFast:
    """Whole words, with `</s>` one of them and `[UNK]` for any that is not known."""
    words = ["[UNK]", "</s>", "the", "fox", "jumps"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return wrap(backend, unk_token="[UNK]", eos_token="</s>")
