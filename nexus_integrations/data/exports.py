"""What LangSmith and LlamaIndex export: examples, retriever runs, labelled RAG datasets."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nexus_integrations.data.files import json_lines, open_text
from nexus_integrations.data.retrieval import RetrievalDataset


def read_langsmith_examples(
    path: str | Path,
    documents: Iterable[Any] = (),
    *,
    question: str = "question",
    answer: str = "documents",
) -> RetrievalDataset:
    """Read a dataset that LangSmith exported as JSONL of examples.

    Each line has `inputs`, whose `question` is the query, and `outputs`, whose `answer` is what
    answers it: a document, an id, or a list of these. `documents` is the rest of the corpus, as
    LangChain documents, to which ids refer. Raises `ValueError` for a line without these.
    """

    def pairs() -> Iterator[tuple[str, Any]]:
        for number, row in enumerate(json_lines(Path(path)), start=1):
            asked, found = _part(row, "inputs", question), _part(row, "outputs", answer)
            if not isinstance(asked, str) or found is None:
                raise ValueError(
                    f"line {number} of {path} lacks inputs.{question} or outputs.{answer}"
                )
            yield asked, [_document(one) for one in _listed(found)]

    return RetrievalDataset.from_langchain(pairs(), documents)


def read_retriever_runs(
    path: str | Path,
    documents: Iterable[Any] = (),
    *,
    feedback: str | None = None,
    top: int = 1,
) -> RetrievalDataset:
    """Read retriever runs that LangSmith exported as JSONL; other runs are passed over.

    The first `top` documents of a run count as answers. With `feedback` only runs are read whose
    average feedback of this key is above zero; without it the answers are only what the retriever
    found, which teaches it what it does already. Raises `ValueError` for `top` below 1 and when no
    run is left.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")

    def pairs() -> Iterator[tuple[str, Any]]:
        for row in json_lines(Path(path)):
            asked = _part(row, "inputs", "query")
            found = _listed(_part(row, "outputs", "documents") or [])
            if row.get("run_type") != "retriever" or not isinstance(asked, str) or not found:
                continue
            if feedback is not None:
                stats = (row.get("feedback_stats") or {}).get(feedback) or {}
                if not (stats.get("avg") or 0) > 0:
                    continue
            yield asked, [_document(one) for one in found[:top]]

    kept = list(pairs())
    if not kept:
        wanted = "" if feedback is None else f" with feedback {feedback!r} above zero"
        raise ValueError(f"{path} holds no retriever run{wanted}")
    return RetrievalDataset.from_langchain(kept, documents)


def read_rag_dataset(dataset: Any) -> RetrievalDataset:
    """Take LlamaIndex's `LabelledRagDataset`, as an object or as its JSON file.

    Every example's `reference_contexts`, the texts of its source nodes, answer its `query`; the
    corpus is all of them. Raises `ValueError` for a file without examples.
    """
    if isinstance(dataset, (str, Path)):
        with open_text(Path(dataset)) as file:
            content = json.load(file)
        examples = content.get("examples") if isinstance(content, dict) else None
        if examples is None:
            raise ValueError(f"{dataset} holds no examples: not a labelled RAG dataset")
    else:
        examples = [vars(example) for example in dataset.examples]
    return RetrievalDataset.from_rows(
        {"question": example.get("query"), "context": text}
        for example in examples
        for text in example.get("reference_contexts") or []
    )


def _part(row: dict[str, Any], name: str, key: str) -> Any:
    """Return `row[name][key]`, None where there is none."""
    part = row.get(name)
    return part.get(key) if isinstance(part, dict) else None


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _document(value: Any) -> Any:
    """Return an id as it is, and a serialised document as one that `from_langchain` reads."""
    if isinstance(value, str):
        return value
    if not isinstance(value, dict):
        raise TypeError(f"an answer is a {type(value).__name__}: expected a document or its id")
    content = value.get("kwargs", value)  # LangChain's own form of serialising
    if "page_content" not in content:
        if "id" in content:
            return str(content["id"])
        raise ValueError(f"an answer has neither page_content nor id: {', '.join(content)}")
    text = content["page_content"]
    if not isinstance(text, str):
        raise TypeError(f"an answer's page_content is a {type(text).__name__}: expected a text")
    ids = [content.get("id"), _part(content, "metadata", "id")]
    id_ = next((str(one) for one in ids if one not in (None, "")), None)
    return SimpleNamespace(id=id_, page_content=text)
