"""The `reattention` command from its arguments to its output; knows no tensor, and a model only as a folder."""

import json
import logging
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging
from typer.testing import CliRunner, Result

from reattention_core import Answer
from reattention_core.cli import app, chat, console, options
from reattention_core.corpus import Corpus
from reattention_core.errors import ContextTooLongError
from reattention_core.models.loading import load
from reattention_core.select import SELECTORS
from reattention_core.store import Store
from tests.core.tiny_tokenizers import byte_level_bpe

WARRANTY = "The warranty of the device is three years. The manufacturer is the quick brown fox. " * 4
CACHE = "A cache keeps the keys and the values of every token the model has read. " * 4
SMALL = ["--max-new-tokens", "4"]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama on disk."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = byte_level_bpe()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "warranty.txt").write_text(WARRANTY)
    (folder / "cache.md").write_text(f"# About caches\n\n{CACHE}")
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, model: Path, documents: Path) -> Path:
    """A folder of corpora with one in it, `handbook`; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("corpora")
    done = reattention(folder, "ingest", documents, "--name", "handbook", "--model", model)
    assert done.exit_code == 0, done.output
    return folder


@pytest.fixture(autouse=True, scope="module")
def loud_transformers() -> Iterator[None]:
    """Commands silence transformers and hear the library's log for their whole process: undone here."""
    verbosity = transformers_logging.get_verbosity()
    yield
    transformers_logging.enable_progress_bar()
    transformers_logging.set_verbosity(verbosity)
    logger = logging.getLogger("reattention_core")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)


def reattention(store: Path, *arguments: Any, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, ["--store", str(store), *map(str, arguments)], input=typed)


def assert_plain(text: str) -> None:
    assert "\x1b" not in text
    assert not re.search("[\u2500-\u259f]", text), "box characters"


@pytest.mark.parametrize("command", [[], ["ingest"], ["ask"], ["chat"], ["list"], ["remove"]])
def test_help_teaches_with_an_example(tmp_path: Path, command: list[str]) -> None:
    done = reattention(tmp_path, *command, "--help")
    assert done.exit_code == 0
    assert f"  reattention {' '.join(command)}" in done.stdout
    assert_plain(done.stdout)


def test_help_comes_without_torch() -> None:
    code = (
        "import sys; from reattention_core.cli import app; app(['--help'], standalone_mode=False); "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


def test_version(tmp_path: Path) -> None:
    assert reattention(tmp_path, "--version").stdout.startswith("reattention 0.")


def test_strategies_are_those_of_the_library() -> None:
    assert set(get_args(options.Strategy)) == set(SELECTORS)


# ingest


def test_ingest_says_what_was_read(store: Path, tmp_path: Path, documents: Path, model: Path) -> None:
    done = reattention(tmp_path / "new", "ingest", documents, "--name", "a", "--model", model)
    assert done.exit_code == 0
    assert re.fullmatch(r"a: 2 documents read, [\d,]+ tokens, [\d.]+ kB on disk, [\d.]+ s\n", done.stdout)
    assert "tokens/s, 0:00 left" in done.stderr
    assert "Loading weights" not in done.output
    assert_plain(done.output)


def test_ingest_names_what_it_leaves_out(tmp_path: Path, documents: Path, model: Path) -> None:
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"a\0b")
    into = tmp_path / "corpora"
    arguments = ["ingest", documents, binary, "--name", "a", "--model", model]
    strict = reattention(into, *arguments, "--strict")
    assert strict.exit_code == 2
    assert strict.stderr.startswith(f"error: cannot read {binary}: it holds NUL bytes")
    assert "Traceback" not in strict.output
    assert not list(into.iterdir())

    done = reattention(into, *arguments, "--json")
    assert done.exit_code == 0
    about = json.loads(done.stdout)
    assert about["documents"] == 2
    assert about["left_out"][0]["path"] == str(binary)
    assert f"warning: left out: cannot read {binary}: it holds NUL bytes" in done.stderr


def test_ingest_keeps_a_corpus_unless_told_to_replace_it(tmp_path: Path, documents: Path, model: Path) -> None:
    arguments = ["ingest", documents / "warranty.txt", "--name", "a", "--model", model, "--mode", "joint"]
    assert reattention(tmp_path, *arguments).exit_code == 0
    again = reattention(tmp_path, *arguments)
    assert again.exit_code == 1
    assert again.stderr.startswith("error: there is a corpus 'a' already")
    assert reattention(tmp_path, *arguments, "--replace").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.txt", "--name", "a"], "'nowhere.txt' does not exist"),
        (["."], "Missing option '--name'"),
        ([".", "--name", "No Name"], "error: a corpus name has"),
        ([".", "--name", "a", "--mode", "both"], "'both' is not one of 'independent', 'joint'"),
        ([".", "--name", "a", "--strategy", "best"], "'best' is not one of"),
        ([".", "--name", "a", "--model", "/nowhere"], "error: '/nowhere' could not be loaded"),
    ],
)
def test_ingest_refuses_bad_input(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = reattention(tmp_path, "ingest", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert_plain(done.stderr)


def test_ingest_interrupted_saves_nothing(
    tmp_path: Path, documents: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console.Console, "print", _interrupted)
    done = reattention(tmp_path, "ingest", documents, "--name", "a", "--model", model)
    assert done.exit_code == 130
    assert Store(tmp_path).names() == []


# ask


def test_ask_shows_answer_sources_and_timings(store: Path, model: Path) -> None:
    done = reattention(store, "ask", "handbook", "How long is the warranty?", *SMALL, "--model", model)
    assert done.exit_code == 0
    assert re.search(r"^\[1\] .+, characters [\d,]+ to [\d,]+, score \d\.\d{3}$", done.stdout, re.MULTILINE)
    assert re.search(r"tokens read from the cache, [\d,]+ in the window, \d drawn .* s in all\n$", done.stdout)
    assert done.stderr == ""
    assert_plain(done.stdout)


def test_ask_json_is_the_answer_alone(store: Path, model: Path) -> None:
    asked = ["ask", "handbook", "Who is the manufacturer?", *SMALL, "--model", model, "--json"]
    sampled = ["--temperature", "1.5", "--top-p", "0.9", "--seed", "1", "--strategy", "reattention"]
    done = reattention(store, *asked)
    answer = Answer.model_validate(json.loads(done.stdout))
    assert answer.usage.completion_tokens == 4
    assert answer.sources[0].quote in WARRANTY + CACHE
    once, again = (json.loads(reattention(store, *asked, *sampled).stdout)["text"] for _ in range(2))
    assert once == again


def test_ask_writes_a_page_beside_what_it_prints(store: Path, model: Path, tmp_path: Path) -> None:
    asked = [
        "ask",
        "handbook",
        "Who is the manufacturer?",
        *SMALL,
        "--model",
        model,
        "--html",
        tmp_path / "report.html",
    ]
    done = reattention(store, *asked)
    assert done.exit_code == 0 and "wrote" in done.stderr
    assert_plain(done.stdout)
    page = (tmp_path / "report.html").read_text()
    assert page.startswith("<!doctype html>") and "Who is the manufacturer?" in page and "</mark>" in page
    printed = json.loads(reattention(store, *asked, "--json").stdout)
    assert f"score {printed['sources'][0]['score']:.3f}" in page


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["handbook", "Why?", "--html", "no/such/report.html"], 2, "there is no folder 'no/such'"),
        (["nobook", "Why?"], 1, "there is no corpus 'nobook'"),
        (["nobook", "Why?"], 1, "(there are: handbook)"),
        (["handbook", " "], 2, "error: the question is empty"),
        (["handbook", "Why?", "--temperature", "-1"], 2, "error: temperature: "),
        (["handbook", "Why?", "--strategy", "best"], 2, "'best' is not one of"),
        (["handbook", "Why?", "--max-new-tokens", "5000"], 2, "more than the model's window of 512"),
        (["handbook", "Why?", "--max-new-tokens", "many"], 2, "valid integer"),
        (["handbook"], 2, "Missing argument 'QUESTION'"),
    ],
)
def test_ask_refuses_bad_input(store: Path, model: Path, arguments: list[str], code: int, message: str) -> None:
    done = reattention(store, "ask", *arguments, "--model", model)
    assert done.exit_code == code
    assert message in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.output


def test_ask_with_another_model_says_what_differs(store: Path, model: Path) -> None:
    saved = str(load(model)[0].dtype).removeprefix("torch.")
    other = "float32" if saved == "bfloat16" else "bfloat16"
    done = reattention(store, "ask", "handbook", "Why?", "--model", model, "--dtype", other)
    assert done.exit_code == 1
    assert "was read by another model (" in done.stderr
    assert f"dtype: saved '{saved}', now '{other}'" in done.stderr
    assert f"with dtype='{saved}'" in done.stderr


def test_ask_interrupted(store: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Corpus, "stream", _interrupted)
    assert reattention(store, "ask", "handbook", "Why?", "--model", model).exit_code == 130


def _interrupted(*arguments: Any, **settings: Any) -> None:
    raise KeyboardInterrupt


# chat


def test_chat_answers_piped_questions_with_their_history(
    store: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories, stream = [], Corpus.stream

    def spied(self: Corpus, question: str, *, history: Any, **settings: Any) -> Any:
        histories.append(list(history))
        return stream(self, question, history=history, **settings)

    monkeypatch.setattr(Corpus, "stream", spied)
    typed = "How long is the warranty?\n\nWho made it?\n/exit\nNever asked\n"
    done = reattention(store, "chat", "handbook", *SMALL, "--model", model, typed=typed)
    assert done.exit_code == 0
    assert re.findall("^> .*", done.stdout, re.MULTILINE) == ["> How long is the warranty?", "> Who made it?"]
    assert len(re.findall(r"^from .* \(\d\.\d{3}\)$", done.stdout, re.MULTILINE)) == 2
    assert [[q for q, _ in history] for history in histories] == [[], ["How long is the warranty?"]]
    assert_plain(done.output)


class _Scripted:
    """A corpus whose answers are known; its window has room for one earlier turn."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, list[str]]] = []

    def stream(self, question: str, *, history: list[tuple[str, str]]) -> Any:
        if question == "stop":
            raise KeyboardInterrupt
        if len(history) > 1 or question == "long":
            raise ContextTooLongError("too long", n_tokens=9, limit=8)
        self.asked.append((question, [q for q, _ in history]))
        return _Pieces()


class _Pieces:
    def __init__(self) -> None:
        usage = dict.fromkeys(("prompt_tokens", "cached_tokens", "window_tokens", "completion_tokens", "tail_bytes"), 0)
        seconds = dict.fromkeys(("recall_seconds", "first_token_seconds", "seconds"), 0.0)
        self.answer = Answer.model_validate(
            {"text": "yes", "sources": [], "usage": usage | seconds, "finish_reason": "stop"}
        )
        self._pieces = iter(["yes"])

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __next__(self) -> str:
        return next(self._pieces)

    def close(self) -> None:
        pass


def test_chat_drops_what_does_not_fit_and_survives_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    corpus: Any = _Scripted()
    chat.converse(corpus, ["1", "2", "stop", "3", "long", "4"], {})
    assert corpus.asked == [("1", []), ("2", ["1"]), ("3", ["2"]), ("4", ["3"])]
    notes = capsys.readouterr().err
    assert notes.count("oldest turn") == 2
    assert "(stopped)" in notes
    assert "error: too long" in notes


# list and remove


def test_list(store: Path, model: Path) -> None:
    done = reattention(store, "list")
    head, row = done.stdout.splitlines()
    assert head.split() == ["name", "documents", "tokens", "size", "mode", "model"]
    assert row.split()[:2] == ["handbook", "2"]
    assert row.split()[-2:] == ["independent", str(model)]
    assert_plain(done.stdout)
    (found,) = json.loads(reattention(store, "list", "--json").stdout)
    assert found["documents"] == 2
    assert found["bytes"] > 10_000


def test_list_of_nothing_says_how_to_begin(tmp_path: Path) -> None:
    done = reattention(tmp_path, "list")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "reattention ingest" in done.stderr
    assert json.loads(reattention(tmp_path, "list", "--json").stdout) == []


def test_list_goes_on_after_a_damaged_corpus(store: Path, tmp_path: Path) -> None:
    shelf = shutil.copytree(store, tmp_path / "shelf")
    (shelf / "bad").mkdir()
    (shelf / "bad" / "manifest.json").write_text("{")
    done = reattention(shelf, "list")
    assert done.exit_code == 0
    assert "handbook" in done.stdout
    assert done.stderr.startswith("warning: corpus 'bad'")


def test_remove_asks_first(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "manifest.json").write_text("damaged")
    refused = reattention(tmp_path, "remove", "old")
    assert refused.exit_code == 2
    assert "--yes" in refused.stderr
    assert (tmp_path / "old").exists()
    assert reattention(tmp_path, "remove", "old", "--yes").stdout == "removed old\n"
    assert not (tmp_path / "old").exists()
    gone = reattention(tmp_path, "remove", "old", "--yes")
    assert gone.exit_code == 1
    assert "there is no corpus 'old'" in gone.stderr


# what is shown


def test_texts_cannot_steer_the_terminal() -> None:
    assert console.printable("a\x1b[2Jb\r\n\tü\u200d\x9b") == "a\ufffd[2Jb\ufffd\n\tü\u200d\ufffd"


@pytest.mark.parametrize(
    ("n_bytes", "shown"), [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (2_616_000_000, "2.6 GB")]
)
def test_size(n_bytes: int, shown: str) -> None:
    assert console.size(n_bytes) == shown
