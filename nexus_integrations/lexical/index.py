"""A lexical index: BM25 over passages and the words of the questions that they answered.

Document expansion (Nogueira et al., "Document Expansion by Query Prediction", 2019) with real
questions in place of generated ones: a question's words are searched in one field with the
passage's own, so that the passage answers the next question like it. Two terms of a passage that
follow one another are a term of their own, which weighs less.
"""

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np
from filelock import FileLock, Timeout

from nexus_integrations.files import write_json
from nexus_integrations.lexical.analysis import Analysis
from nexus_integrations.lexical.engine import Engine, Passage
from nexus_integrations.progress import progress_bar
from nexus_integrations.protocols import Floats, Hits

_FORMAT = 1
_MANIFEST = "lexical.json"
_TRIAL = ".trial-"
_BATCH = 10_000
_DEAD_SHARE = 0.05  # replaced entries still count in the term statistics: more would bend them


class LexicalIndex:
    """Passages by id, ranked by BM25 (k1 1.2, b .75) over their words and those of questions.

    The engine is tantivy, from the extra `lexical`. Every change is one commit: a process killed at
    any instant leaves the state before or after it. Many processes may read a folder, which see
    each other's commits; one at a time changes it, the others get `RuntimeError`. In memory nothing
    is kept for the next process.
    """

    def __init__(self, folder: str | Path | None = None, *, language: str | None = None) -> None:
        """Open `folder`, or make it; it is private to its owner (0700). None stays in memory.

        `language` is one of `lexical.analysis.LANGUAGES`: by default the folder's own, English for
        a new one. Raises `ImportError` without tantivy, and `ValueError` for an unknown language,
        another than the folder's, and a folder that is damaged, of another version or another's.
        """
        self.folder = None if folder is None else Path(folder)
        manifest = {"format": _FORMAT, "language": language or "english", "corpus": uuid4().hex}
        if self.folder is not None:
            manifest = _opened(self.folder, language, manifest)
        self.language: str = str(manifest["language"])
        self.corpus: str = str(manifest["corpus"])
        """What tells this index from others: made with it, and kept for its life."""
        self._analysis = Analysis(self.language)
        self._engine = Engine(self.folder and self.folder / "index", self._analysis)

    def __len__(self) -> int:
        """The number of passages."""
        return int(self._engine.searcher.num_docs)

    def __repr__(self) -> str:
        where = "in memory" if self.folder is None else f"in {self.folder}"
        return f"LexicalIndex({len(self)} passages, {self.language}, {where})"

    def __getstate__(self) -> dict[str, object]:
        raise TypeError("a LexicalIndex cannot be pickled: open its folder again")

    def ids(self, batch_size: int = 10_000) -> Iterator[list[str]]:
        """Yield the ids of all passages, `batch_size` at a time."""
        batch: list[str] = []
        for id_ in self._engine.ids():
            batch.append(id_)
            if len(batch) == batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def missing(self, ids: Sequence[str]) -> set[str]:
        """Return those of `ids` that are not in the index."""
        return set(ids) - self._engine.present(ids)

    def texts(self, ids: Sequence[str]) -> list[str]:
        """Return the passages' own texts in the order asked; an unknown id raises `KeyError`."""
        found = self._stored(ids)
        return [found[id_].text for id_ in ids]

    def questions(self, ids: Sequence[str], *, relevant: bool = True) -> list[dict[str, str]]:
        """Return the questions that each passage learned, id to text, in the order asked.

        With `relevant` False they are those that it was observed not to answer.
        """
        found = self._stored(ids)
        return [dict(found[id_].questions if relevant else found[id_].refused) for id_ in ids]

    def search(self, texts: Sequence[str], k: int) -> Hits:
        """Return the k best passages of each text by BM25, best first, of equal scores by id.

        A text is words alone, whatever signs it holds. One without a word that some passage has, as
        of stop words only, finds nothing. Raises `ValueError` for k < 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, not {k}")
        found = [self._engine.top(self._analysis.terms(text), k) for text in texts]
        width = max(map(len, found), default=0)
        scores = np.full((len(found), width), -np.inf, dtype=np.float32)
        for row, pairs in enumerate(found):
            scores[row, : len(pairs)] = [score for _, score in pairs]
        return Hits([[id_ for id_, _ in pairs] for pairs in found], scores)

    def scores(self, texts: Sequence[str], ids: Sequence[Sequence[str]]) -> list[Floats]:
        """Return the BM25 of given passages: per text float32 (len(ids[i]),), in the order asked.

        They are those of `search`; 0 for a passage without a word of the text, or not in the index.
        """
        rows = []
        for text, asked in zip(texts, ids, strict=True):
            found = self._engine.scores(self._analysis.terms(text), asked)
            rows.append(np.array([found.get(id_, 0.0) for id_ in asked], dtype=np.float32))
        return rows

    def add(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Add passages, or replace those that are there.

        A passage whose text stays keeps the questions that it learned; one whose text changes loses
        them, since they were answered by the other text. Raises `ValueError` for an id that occurs
        twice and `TypeError` for what is not text, before anything is written.
        """
        self.fill(zip(ids, texts, strict=True), total=len(ids))

    def fill(
        self, passages: Mapping[str, str] | Iterable[tuple[str, str]], *, total: int | None = None
    ) -> int:
        """Add passages from a dictionary or an iterator of (id, text); return how many were added.

        All are committed at once, under a progress bar over `total`; memory stays flat however many
        there are. Raises as `add` does.
        """
        if isinstance(passages, Mapping):
            passages, total = passages.items(), len(passages)
        bar = progress_bar(passages, total=total, desc="index words", unit="passage")
        keys = array("q")  # 8 bytes a passage tell ids that occur twice
        empty = len(self) == 0
        with self._engine.changing(building=total is None or total > _BATCH) as change:
            for batch in _batches(bar, _BATCH):
                keys.extend(_key(id_, text) for id_, text in batch)
                stored = {} if empty else self._engine.passages([id_ for id_, _ in batch])
                for id_, text in batch:
                    if id_ not in stored:
                        change.put(Passage(id_, text), new=True)
                    elif stored[id_].text != _valid(text):
                        change.put(Passage(id_, text))
            twice = len(keys) - len(np.unique(np.array(keys, dtype=np.int64)))
            if twice:
                raise ValueError(f"{twice} ids occur more than once among those to add")
        self._settle()
        return len(keys)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove passages, with the questions that they learned; unknown ids are passed over."""
        with self._engine.changing() as change:
            for id_ in ids:
                change.remove(id_)
        self._settle()

    def refresh(self, corpus: Mapping[str, str]) -> dict[str, int]:
        """Bring the index in line with a corpus, id to text, that was ingested anew.

        Passages that it lacks are removed, changed ones replaced (which lose their questions, as in
        `add`), new ones added. Returns the counts "deleted", "changed" and "added".
        """
        deleted, changed = [], 0
        known: set[str] = set()
        for batch in self.ids():
            stored = self._engine.passages(batch)
            known.update(stored)
            deleted += [id_ for id_ in stored if id_ not in corpus]
            changed += sum(
                id_ in corpus and passage.text != _valid(corpus[id_])
                for id_, passage in stored.items()
            )
        added = sum(id_ not in known for id_ in corpus)
        if deleted:
            self.delete(deleted)
        if added or changed:
            self.fill(corpus)
        return {"deleted": len(deleted), "changed": changed, "added": added}

    def observe(
        self, question_id: str, text: str, passage_ids: Sequence[str], *, relevant: bool = True
    ) -> None:
        """Let passages be found by the words of a question that they answered.

        With `relevant` False, a thumb down, they score lower instead for questions with words in
        common: by a tenth of the idf of those words. Raises `ValueError` for a question id that is
        there already and `KeyError` for an unknown passage, each before anything is written.
        """
        self.learn({question_id: text}, {question_id: passage_ids}, relevant=relevant)

    def learn(
        self,
        questions: Mapping[str, str],
        answers: Mapping[str, Sequence[str]],
        *,
        relevant: bool = True,
    ) -> None:
        """Observe many questions, id to text, with the passages that answer each, in one commit."""
        holding = self._engine.answering(list(questions)).values()
        known = {id_ for passage in holding for id_ in _ids(passage) if id_ in questions}
        if known:
            raise ValueError(f"question {min(known)!r} is in the index already: forget it first")
        learned: dict[str, dict[str, str]] = {}
        for question_id, text in questions.items():
            _key(question_id, text)
            for id_ in answers[question_id]:
                learned.setdefault(id_, {})[question_id] = _valid(text)
        stored = self._stored(list(learned))
        with self._engine.changing() as change:
            for id_, own in learned.items():
                before = stored[id_]
                if relevant:
                    change.put(before._replace(questions={**before.questions, **own}))
                else:
                    change.put(before._replace(refused={**before.refused, **own}))
        self._settle()

    @property
    def learned(self) -> set[str]:
        """The ids of the questions that passages hold."""
        return {id_ for passage in self._engine.answering().values() for id_ in _ids(passage)}

    def forget(self, question_ids: Iterable[str]) -> int:
        """Remove questions from all passages; return how many were there.

        Afterwards their words are in no byte of the folder. The passages are as if they had never
        learned them.
        """
        gone = set(question_ids)
        passages = self._engine.answering(sorted(gone))
        found = {id_ for passage in passages.values() for id_ in _ids(passage)} & gone
        self._engine.rewrite(
            {id_: passage.without(gone) for id_, passage in passages.items()},
            replaced=self._engine.dead_share() > _DEAD_SHARE,
        )
        return len(found)

    def undo(self) -> int:
        """Remove all questions; return how many passages go back to their own words alone."""
        passages = self._engine.answering()
        plain = {id_: passage.without(_ids(passage)) for id_, passage in passages.items()}
        self._engine.rewrite(plain)
        return len(plain)

    @contextmanager
    def trial(self) -> Iterator["LexicalIndex"]:
        """Give a copy to try changes on, which goes when the block ends.

        That of a folder shares its files, so that it costs only what changes.
        """
        if self.folder is None:
            copy = LexicalIndex(language=self.language)
            copy._take(self)
            yield copy
            return
        with (
            TemporaryDirectory(prefix=_TRIAL, dir=self.folder) as name,
            FileLock(Path(name) / ".lock"),
        ):
            _linked(self.folder, Path(name))
            yield LexicalIndex(name)

    def save(self, folder: str | Path) -> None:
        """Write a copy into a new folder, questions included; raises as opening one does."""
        copy = LexicalIndex(folder, language=self.language)
        if len(copy):
            raise FileExistsError(f"{folder} holds passages already: name another folder")
        copy._take(self)
        manifest = {"format": _FORMAT, "language": self.language, "corpus": self.corpus}
        write_json(Path(folder) / _MANIFEST, manifest)

    def _take(self, other: "LexicalIndex") -> None:
        with self._engine.changing(building=True) as change:
            for batch in other.ids():
                for passage in other._engine.passages(batch).values():
                    change.put(passage, new=True)

    def _stored(self, ids: Sequence[str]) -> dict[str, Passage]:
        found = self._engine.passages(ids)
        for id_ in ids:
            if id_ not in found:
                raise KeyError(f"the lexical index holds no passage {id_!r}")
        return found

    def _settle(self) -> None:
        if self._engine.dead_share() > _DEAD_SHARE:
            self._engine.rewrite({})


def _opened(folder: Path, language: str | None, new: dict[str, object]) -> dict[str, object]:
    """Return the folder's manifest, after writing `new` as that of an empty one."""
    path = folder / _MANIFEST
    if not path.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and no lexical index: name another folder")
        Analysis(str(new["language"]))  # an unknown language leaves no folder behind
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        (folder / "index").mkdir(mode=0o700)
        write_json(path, new)
    try:
        manifest: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
        version, known = manifest["format"], manifest["language"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}): build it again") from None
    if version != _FORMAT:
        raise ValueError(
            f"{folder} has format {version}, this version reads {_FORMAT}: build it again"
        )
    if language not in (None, known):
        raise ValueError(
            f"the words in {folder} were indexed as {known}, not {language}: leave `language` out, "
            "or build another folder"
        )
    for left in folder.glob(f"{_TRIAL}*"):  # of a process that was killed
        with suppress(Timeout), FileLock(left / ".lock", timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    return manifest


def _linked(folder: Path, copy: Path) -> None:
    """Make `copy` hold the last commit of the lexical index in `folder`, whose files it shares."""
    (copy / "index").mkdir(mode=0o700)
    shutil.copy(folder / _MANIFEST, copy / _MANIFEST)
    for file in (folder / "index").iterdir():
        if file.suffix in (".json", ".lock"):  # these change; all others are written once
            if file.suffix == ".json":
                shutil.copy(file, copy / "index" / file.name)
        else:
            os.link(file, copy / "index" / file.name)


def _ids(passage: Passage) -> set[str]:
    return {*passage.questions, *passage.refused}


def _key(id_: str, text: str) -> int:
    """Return 64 bits that stand for the id; raises for what is no text, and an id not in UTF-8."""
    for what, value in (("id", id_), ("text", text)):
        if not isinstance(value, str):
            raise TypeError(f"the {what} of {id_!r} is a {type(value).__name__}, expected str")
    try:
        digest = blake2b(id_.encode(), digest_size=8).digest()
    except UnicodeEncodeError:
        raise ValueError(f"id {id_!r} holds lone surrogates, which UTF-8 lacks") from None
    return int.from_bytes(digest, "big", signed=True)


def _valid(text: str) -> str:
    """Return the text as UTF-8 can hold it: lone surrogates become question marks."""
    return text.encode("utf-8", "replace").decode()


def _batches(passages: Iterable[tuple[str, str]], size: int) -> Iterator[list[tuple[str, str]]]:
    rest = iter(passages)
    while batch := list(islice(rest, size)):
        yield batch
