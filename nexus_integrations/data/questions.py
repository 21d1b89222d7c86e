"""Questions for passages that have none: from a language model, or from the passages themselves."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nexus_integrations.data.files import json_lines
from nexus_integrations.data.retrieval import RetrievalDataset
from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Encoder

PROMPT = """Write {count} different questions that the passage below answers, as somebody would ask
who has not read it. Write one question a line and nothing else.

{passage}"""
"""What the model is asked; `{count}` and `{passage}` are filled in."""


def generate_questions(
    passages: Mapping[str, str],
    llm: Any = None,
    *,
    count: int = 2,
    prompt: str = PROMPT,
    path: str | Path | None = None,
    encoder: Encoder | None = None,
    depth: int = 50,
) -> RetrievalDataset:
    """Return questions for the passages, id to text, which are the corpus of the dataset.

    `llm` is a LlamaIndex `LLM`, a LangChain chat model, or a function from prompt to text; nothing
    else is contacted. Without one a passage's heading and first sentence stand for its questions:
    weaker, and free. With `path` the answers are kept there as JSONL, synced one by one, and a
    second call asks only for passages that it lacks; an entry goes by a hash of prompt and passage,
    so that another corpus never gets its questions.

    Questions that differ in case, spaces or signs alone become one, with the passages of all. With
    `encoder` a question is dropped whose passage is not among the `depth` nearest: such a question
    does not tell which passage it is about. Raises `ValueError` when no question is left.
    """
    ask = _asking(llm, prompt, count)
    known = {} if path is None else _read(Path(path))
    found: dict[str, list[str]] = {}
    for id_, text in progress_bar(passages.items(), desc="write questions", unit="passage"):
        key = hashlib.sha256(f"{count}\n{prompt}\n{llm is None}\n{text}".encode()).hexdigest()
        if key not in known:
            known[key] = ask(text)
            if path is not None:
                _append(Path(path), {"passage": key, "questions": known[key]})
        found[id_] = known[key]
    questions: dict[str, str] = {}
    relevant: dict[str, list[str]] = {}
    for id_, texts in found.items():
        for question in texts:
            same = " ".join(re.findall(r"\w+", question.casefold()))
            if same:
                questions.setdefault(same, question)
                relevant.setdefault(same, []).append(id_)
    names = {same: f"q{number}" for number, same in enumerate(questions)}
    if encoder is not None and names:
        names = _round_trip(names, questions, relevant, passages, encoder, depth)
    if not names:
        raise ValueError(f"no question came of {len(passages)} passages")
    return RetrievalDataset(
        queries={name: questions[same] for same, name in names.items()},
        corpus=dict(passages),
        relevant_docs={name: relevant[same] for same, name in names.items()},
    )


def _asking(llm: Any, prompt: str, count: int) -> Callable[[str], list[str]]:
    if llm is None:
        return _own_questions
    answer = _answering(llm)

    def ask(passage: str) -> list[str]:
        lines = answer(prompt.format(count=count, passage=passage)).splitlines()
        # Models number their lines, whatever they are told.
        cleaned = [re.sub(r"^\s*(?:[-*•]|\d+[.):])\s*", "", line).strip() for line in lines]
        return [line for line in cleaned if line.endswith(("?", "？", "؟"))][:count]

    return ask


def _answering(llm: Any) -> Callable[[str], str]:
    """Return the model as a function from prompt to text."""
    if hasattr(llm, "complete"):  # LlamaIndex's LLM
        return lambda prompt: str(llm.complete(prompt).text)
    if hasattr(llm, "invoke"):  # LangChain's chat models, whose answers have content, and LLMs
        return lambda prompt: str(getattr(answer := llm.invoke(prompt), "content", answer))
    if callable(llm):
        return lambda prompt: str(llm(prompt))
    raise TypeError(
        f"llm is a {type(llm).__name__}: expected a LlamaIndex LLM, a LangChain chat model or a "
        "function from prompt to text"
    )


def _own_questions(passage: str) -> list[str]:
    """Return the heading, where there is one, and the first sentence of what follows."""
    head, _, rest = passage.strip().partition("\n")
    heading = head.strip("# \t") if rest and len(head) <= 100 and head[-1] not in ".:;," else ""
    body = rest if heading else passage
    sentence = re.split(r"(?<=[.!?])\s", " ".join(body.split()), maxsplit=1)[0]
    return [text for text in (heading, sentence) if text]


def _round_trip(
    names: Mapping[str, str],
    questions: Mapping[str, str],
    relevant: Mapping[str, list[str]],
    passages: Mapping[str, str],
    encoder: Encoder,
    depth: int,
) -> dict[str, str]:
    documents = encoder.encode_documents(list(passages.values()))  # (n_documents, dimension)
    rows = {id_: row for row, id_ in enumerate(passages)}
    vectors = encoder.encode_queries([questions[same] for same in names])
    kept = {}
    for (same, name), vector in zip(names.items(), vectors, strict=True):
        scores = documents @ vector  # (n_documents,)
        best = max(scores[rows[id_]] for id_ in relevant[same])
        if int(np.count_nonzero(scores > best)) < depth:
            kept[same] = name
    return kept


def _read(path: Path) -> dict[str, list[str]]:
    """Read the answers; a last line that was cut off is cut away."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    os.truncate(path, content.rfind(b"\n") + 1)
    return {row["passage"]: row["questions"] for row in json_lines(path)}


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
