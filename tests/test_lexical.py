"""`LexicalIndex`: BM25 over passages and the questions that they answered."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tantivy")

from nexus_integrations.lexical import LexicalIndex

PASSAGES = {
    "cats": "The cat sat on the mat",
    "dogs": "Dogs chase cats in the garden",
    "birds": "Nothing here but birds",
}
CANARY = "zanzibarquax"


@pytest.fixture(params=["memory", "folder"])
def lexical(request, tmp_path) -> LexicalIndex:
    made = LexicalIndex(tmp_path / "words" if request.param == "folder" else None)
    made.fill(PASSAGES)
    return made


def found(index: LexicalIndex, text: str, k: int = 10) -> list[str]:
    return index.search([text], k).ids[0]


def files_with(folder: Path, word: str) -> list[str]:
    """The files whose bytes hold the word, and those whose parts do once tantivy unpacks them."""
    import tantivy

    raw = [f for f in folder.rglob("*") if f.is_file() and word.encode() in f.read_bytes()]
    opened = tantivy.Index.open(str(folder / "index"))
    searcher = opened.searcher()
    segments = json.loads((folder / "index" / "meta.json").read_text())["segments"]
    stored = [
        f"{number}/{row}"
        for number, segment in enumerate(segments)
        for row in range(segment["max_doc"])  # replaced entries as well
        if word.encode()
        in b"".join(
            bytes(value)
            for field in ("text", "questions", "refusals")
            for value in searcher.doc(tantivy.DocAddress(number, row)).get_all(field)
        )
    ]
    return [f.name for f in raw] + stored


def test_bm25_is_that_of_the_textbook(lexical):
    """One term, by hand: idf · tf (k₁ + 1) / (tf + k₁ (1 − b + b · length / mean length)).

    "cat" is in two of three passages, once each. Without stop words the passages have 3 (cat sat
    mat), 4 (dog chase cat garden) and 2 (noth bird) terms and a pair fewer: the mean is 5.
    """
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    expected = {
        "cats": idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 5 / 5)),
        "dogs": idf * 2.2 / (1 + 1.2 * (0.25 + 0.75 * 7 / 5)),
    }
    hits = lexical.search(["cats"], 10)
    assert hits.ids == [["cats", "dogs"]]
    assert hits.similarities[0] == pytest.approx([expected["cats"], expected["dogs"]], rel=1e-6)


def test_two_terms_in_a_row_weigh_more_than_apart():
    """By hand: all passages have three terms and two pairs, so a term's BM25 is its idf.

    "red" and "fish" are in both passages, the pair in one of two, at 0.3 of its weight.
    """
    made = LexicalIndex()
    made.add(["row", "apart"], ["red fish swim", "red swim fish"])
    both, one = math.log(1 + 0.5 / 2.5), math.log(1 + 1.5 / 1.5)
    hits = made.search(["a red fish"], 2)
    assert hits.ids == [["row", "apart"]]
    assert hits.similarities[0] == pytest.approx([2 * both + 0.3 * one, 2 * both], rel=1e-6)


def test_scores_of_given_passages_are_those_of_a_search(lexical):
    """In the order asked; 0 without a word of the text, and for an id that is unknown."""
    hits = lexical.search(["cats in a garden", "birds"], 10)
    expected = [dict(zip(i, s.tolist(), strict=False)) for i, s in zip(*hits, strict=True)]
    asked = [["birds", "cats", "nobody", "dogs"], ["dogs", "birds"]]
    rows = lexical.scores(["cats in a garden", "birds"], asked)
    assert [row.tolist() for row in rows] == [
        [expected[0].get(id_, 0.0) for id_ in asked[0]],
        [expected[1].get(id_, 0.0) for id_ in asked[1]],
    ]
    assert rows[0].dtype == np.float32


@pytest.mark.parametrize("text", ["", "  ", "what is the", "¿?!", "zzz", "\ud800", "kissa istui"])
def test_a_text_without_a_known_word_finds_nothing(lexical, text):
    """Empty, stop words alone, signs, an unknown word, broken Unicode, another language."""
    hits = lexical.search([text], 5)
    assert hits.ids == [[]]
    assert hits.similarities.shape == (1, 0)


@pytest.mark.parametrize(
    "text",
    ['cat AND "dogs', "+cat -mat", "id:cats cat", "cat^9 OR (", "cat~2 [a TO b]", "words:cat*"],
)
def test_signs_of_a_query_language_are_signs(lexical, text):
    """A user's text is never read as a query: it finds what its words alone find."""
    assert "cats" in found(lexical, text)


def test_k_beyond_the_corpus_and_below_one(lexical):
    """All that have a word come back; k below 1 is refused."""
    assert len(found(lexical, "cat bird", 1000)) == 3
    with pytest.raises(ValueError, match="k must be at least 1, not 0"):
        lexical.search(["cat"], 0)


def test_equal_scores_come_by_id():
    """Two passages of equal words are ranked by their ids, whatever order they were added in."""
    made = LexicalIndex()
    made.add(["b", "a"], ["same words", "same words"])
    assert found(made, "words") == ["a", "b"]


def test_add_replaces_and_delete_removes(lexical):
    """An id that is there gets the new text; an unknown id to delete is passed over."""
    lexical.add(["cats", "fish"], ["A feline slept", "A fish swam"])
    assert found(lexical, "feline") == ["cats"]
    assert found(lexical, "mat") == []
    assert lexical.texts(["fish", "cats"]) == ["A fish swam", "A feline slept"]
    lexical.delete(["fish", "nobody"])
    assert sorted(i for batch in lexical.ids(batch_size=2) for i in batch) == [
        "birds",
        "cats",
        "dogs",
    ]
    assert len(lexical) == 3
    assert lexical.missing(["fish", "cats"]) == {"fish"}


@pytest.mark.parametrize(
    ("ids", "texts", "error", "match"),
    [
        (["a", "a"], ["x", "y"], ValueError, "1 ids occur more than once"),
        (["a", "b"], ["x"], ValueError, "zip"),
        (["a"], [None], TypeError, "the text of 'a' is a NoneType"),
        (["a\ud800"], ["x"], ValueError, "holds lone surrogates"),
        ([7], ["x"], TypeError, "the id of 7 is a int"),
    ],
)
def test_what_cannot_be_added_changes_nothing(lexical, ids, texts, error, match):
    """The index holds what it held, and takes the next passage."""
    with pytest.raises(error, match=match):
        lexical.add(ids, texts)
    assert len(lexical) == 3
    lexical.add(["new"], ["new words"])
    assert len(lexical) == 4


def test_a_passage_is_found_by_the_questions_that_it_answered(lexical):
    """The words of a question count as the passage's; its own text, and other passages', stay."""
    lexical.observe("q1", "Which feline animal?", ["cats", "dogs"])
    assert set(found(lexical, "feline")) == {"cats", "dogs"}
    assert lexical.texts(["cats"]) == [PASSAGES["cats"]]
    assert lexical.questions(["dogs", "birds"]) == [{"q1": "Which feline animal?"}, {}]
    assert lexical.learned == {"q1"}
    assert lexical.forget(["q1", "q9"]) == 1
    assert found(lexical, "feline") == []
    assert lexical.learned == set()


def test_a_thumb_down_lowers_the_score_of_like_questions(lexical):
    """By hand: a tenth of the idf of the terms in common, "cat" (in two of three passages)."""
    (before,) = lexical.scores(["cats"], [["cats", "dogs"]])
    lexical.observe("bad", "Do cats fly?", ["cats"], relevant=False)
    (after,) = lexical.scores(["cats"], [["cats", "dogs"]])
    idf = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    assert before - after == pytest.approx([0.1 * idf, 0], abs=1e-6)
    assert lexical.scores(["mat"], [["cats"]])[0] > 0
    assert lexical.questions(["cats"], relevant=False) == [{"bad": "Do cats fly?"}]
    assert lexical.questions(["cats"]) == [{}]
    assert lexical.learned == {"bad"}
    assert found(lexical, "fly") == []
    assert lexical.undo() == 1
    assert lexical.scores(["cats"], [["cats", "dogs"]])[0].tolist() == before.tolist()


def test_of_two_equal_passages_the_one_turned_down_comes_second():
    """Also where only one is asked for: the search looks beyond k."""
    made = LexicalIndex()
    made.add(["a", "b"], ["red fish swim", "red fish swim"])
    made.observe("bad", "red fish", ["a"], relevant=False)
    assert found(made, "a red fish", k=1) == ["b"]
    assert found(made, "swim", k=1) == ["a"]


def test_undo_brings_every_score_back(lexical):
    """After many questions and `undo`, scores are those of an index that never saw one."""
    texts = ["cat", "garden birds", "mat"]
    before = lexical.search(texts, 10)
    lexical.learn({"q1": "feline on a mat", "q2": "what flies"}, {"q1": ["cats"], "q2": ["birds"]})
    lexical.observe("q3", "pets that chase", ["dogs", "cats"])
    assert lexical.undo() == 3
    after = lexical.search(texts, 10)
    assert after.ids == before.ids
    assert after.similarities.tolist() == before.similarities.tolist()
    assert lexical.undo() == 0


def test_learning_refuses_before_it_writes(lexical):
    """A question that is there, and a passage that is not."""
    lexical.observe("q1", "feline", ["cats"])
    with pytest.raises(ValueError, match="'q1' is in the index already"):
        lexical.observe("q1", "another", ["dogs"])
    with pytest.raises(KeyError, match="holds no passage 'nobody'"):
        lexical.learn({"q2": "a", "q3": "b"}, {"q2": ["dogs"], "q3": ["nobody"]})
    assert lexical.learned == {"q1"}


def test_a_passage_whose_text_changes_loses_its_questions(lexical):
    """One that is added again unchanged keeps them; `refresh` counts what it did."""
    lexical.observe("q1", "feline", ["cats", "dogs"])
    lexical.add(["cats"], [PASSAGES["cats"]])
    assert set(found(lexical, "feline")) == {"cats", "dogs"}
    corpus = {"cats": PASSAGES["cats"], "dogs": "A text about dogs, new", "fish": "A fish"}
    assert lexical.refresh(corpus) == {"deleted": 1, "changed": 1, "added": 1}
    assert found(lexical, "feline") == ["cats"]
    assert lexical.refresh(corpus) == {"deleted": 0, "changed": 0, "added": 0}


def test_a_trial_changes_nothing(lexical):
    """A copy learns and forgets; the index keeps what it has, and the copy goes."""
    lexical.observe("q1", "feline", ["cats"])
    with lexical.trial() as copy:
        assert found(copy, "feline") == ["cats"]
        copy.learn({"q2": "canine"}, {"q2": ["dogs"]})
        copy.forget(["q1"])
        assert (found(copy, "canine"), found(copy, "feline")) == (["dogs"], [])
    assert (found(lexical, "canine"), found(lexical, "feline")) == ([], ["cats"])
    if lexical.folder is not None:
        assert sorted(p.name for p in lexical.folder.iterdir()) == ["index", "lexical.json"]


def test_a_folder_is_private_and_opens_again(tmp_path):
    """0700; the language is that of the folder unless another is asked for, which is refused."""
    made = LexicalIndex(tmp_path / "words", language="spanish")
    made.add(["a"], ["Los gatos duermen"])
    if os.name == "posix":
        assert (tmp_path / "words").stat().st_mode & 0o777 == 0o700
    opened = LexicalIndex(tmp_path / "words")
    assert (opened.language, opened.corpus, len(opened)) == ("spanish", made.corpus, 1)
    assert found(opened, "gato") == ["a"]
    with pytest.raises(ValueError, match="indexed as spanish, not english"):
        LexicalIndex(tmp_path / "words", language="english")


def test_one_reader_sees_what_another_writes(tmp_path):
    """Two objects on one folder, as in two processes."""
    writer, reader = LexicalIndex(tmp_path / "words"), LexicalIndex(tmp_path / "words")
    writer.fill(PASSAGES)
    assert found(reader, "garden") == ["dogs"]
    writer.delete(["dogs"])
    assert found(reader, "garden") == []


@pytest.mark.parametrize(
    ("language", "text", "query"),
    [
        ("japanese", "京都の寺は古い。", "寺"),
        ("chinese", "北京是中国的首都", "首都"),
        ("thai", "กรุงเทพมหานครเป็นเมืองหลวง", "เมืองหลวง"),
        ("german", "Die Häuser stehen leer", "Haus Häusern"),
        ("spanish", "¿Cuándo nació la canción?", "cancion"),
        ("russian", "Кошки спят на диване", "кошка спит"),
        ("any", "Ĉiuj homoj estas liberaj", "liberaj"),
    ],
)
def test_languages(language, text, query):
    """Stemmed, without accents, and without spaces between words."""
    made = LexicalIndex(language=language)
    made.add(["hit", "other"], [text, "xyz 123"])
    assert found(made, query) == ["hit"]


def test_an_unknown_language_is_refused(tmp_path):
    """The error lists what there is, and no folder is left behind."""
    with pytest.raises(ValueError, match=r"'klingon' is unknown: choose one of any, arabic"):
        LexicalIndex(tmp_path / "words", language="klingon")
    assert not (tmp_path / "words").exists()


def test_folders_that_are_no_lexical_index(tmp_path):
    """Another's folder, another version, a damaged manifest, damaged and missing files."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and no lexical index"):
        LexicalIndex(tmp_path / "notes")
    LexicalIndex(tmp_path / "words").fill(PASSAGES)
    manifest = tmp_path / "words" / "lexical.json"
    good = manifest.read_text()
    manifest.write_text(good.replace('"format": 1', '"format": 9'))
    with pytest.raises(ValueError, match="has format 9, this version reads 1"):
        LexicalIndex(tmp_path / "words")
    manifest.write_text("{")
    with pytest.raises(ValueError, match=r"lexical\.json is damaged"):
        LexicalIndex(tmp_path / "words")
    manifest.write_text(good)
    meta = tmp_path / "words" / "index" / "meta.json"
    text = meta.read_text()
    for broken in (text[: len(text) // 2], None):
        meta.write_text(broken) if broken is not None else meta.unlink()
        with pytest.raises(ValueError, match="is damaged"):
            LexicalIndex(tmp_path / "words")
    meta.write_text(text)
    assert len(LexicalIndex(tmp_path / "words")) == 3


def test_a_folder_whose_files_were_cut_is_damaged(tmp_path):
    """Half of each file is missing: opening or searching says so, and shows no text."""
    LexicalIndex(tmp_path / "words").fill(PASSAGES)
    for file in (tmp_path / "words" / "index").iterdir():
        if file.suffix in (".store", ".term", ".idx"):
            os.truncate(file, file.stat().st_size // 2)
    with pytest.raises(ValueError, match="is damaged") as caught:
        LexicalIndex(tmp_path / "words").search(["cat"], 3)
    assert "sat on" not in str(caught.value)


def test_a_folder_that_another_is_changing_is_refused(tmp_path):
    """A second writer gets an error, a reader its answers, and both go on afterwards."""
    first, second = LexicalIndex(tmp_path / "words"), LexicalIndex(tmp_path / "words")
    first.fill(PASSAGES)

    def passages():
        yield "x", "slow words"
        with pytest.raises(RuntimeError, match="another process is changing the lexical index"):
            second.add(["y"], ["more"])
        assert found(second, "garden") == ["dogs"]

    first.fill(passages())
    second.add(["y"], ["more"])
    assert len(first) == 5


def test_a_forgotten_question_is_in_no_byte(tmp_path):
    """Not in the files and not in what they unpack to, also of entries that were replaced."""
    folder = tmp_path / "words"
    made = LexicalIndex(folder)
    made.fill({f"p{n}": f"passage number {n} about topic {n % 7}" for n in range(300)})
    made.observe("q1", f"first {CANARY}", ["p1", "p2"])
    made.observe("q2", "second question", ["p2", "p3"])  # p2's entry with q1 alone is replaced
    made.observe("q3", f"third {CANARY} once more", ["p2"])
    made.observe("q4", f"turned down {CANARY}", ["p4"], relevant=False)
    made.delete(["p1"])  # its entry stays until segments are written anew
    assert files_with(folder, CANARY)
    reader = LexicalIndex(folder)
    reader.search(["topic"], 5)  # another reader has the old files open
    assert made.forget(["q1", "q3", "q4"]) == 3
    assert files_with(folder, CANARY) == []
    assert made.learned == {"q2"}
    assert found(made, "second question")[:2] in (["p2", "p3"], ["p3", "p2"])
    assert (len(made), len(reader)) == (299, 299)


def test_segments_that_never_held_a_question_are_not_written_anew(tmp_path):
    """Forgetting costs what was learned, not the corpus: the large segment's file stays."""
    folder = tmp_path / "words"
    made = LexicalIndex(folder)
    made.fill({f"p{n}": f"passage number {n}" for n in range(500)})
    large = {p.name for p in (folder / "index").glob("*.store")}
    made.observe("q1", CANARY, ["p1", "p2"])
    made.forget(["q1"])
    assert files_with(folder, CANARY) == []
    assert large <= {p.name for p in (folder / "index").glob("*.store")}


CHANGES = """
import sys
from nexus_integrations.lexical import LexicalIndex
made = LexicalIndex(sys.argv[1])
print("open", flush=True)
number = 0
while True:
    made.learn({f"q{number}": "zanzibarquax"}, {f"q{number}": ["p1", "p2", "p3"]})
    made.forget([f"q{number}"])
    number += 1
"""


@pytest.mark.parametrize("wait", [0.0, 0.03, 0.1, 0.17, 0.3])
def test_killed_at_any_instant_it_opens_with_one_state(tmp_path, wait):
    """All three passages hold the question or none does, and what is learned can be forgotten."""
    folder = tmp_path / "words"
    LexicalIndex(folder).fill({f"p{n}": f"passage number {n}" for n in range(50)})
    process = subprocess.Popen(
        [sys.executable, "-c", CHANGES, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    time.sleep(wait)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    opened = LexicalIndex(folder)
    assert len(opened) == 50
    assert sorted(found(opened, CANARY)) in ([], ["p1", "p2", "p3"])
    opened.forget(sorted(opened.learned))
    assert files_with(folder, CANARY) == []


def test_a_trial_that_was_killed_is_swept(tmp_path):
    """Its copy may hold questions: the next opening removes it, but never one in use."""
    folder = tmp_path / "words"
    made = LexicalIndex(folder)
    made.fill(PASSAGES)
    left = folder / ".trial-left"
    (left / "index").mkdir(parents=True)
    (left / "index" / "a.store").write_text(CANARY)
    with made.trial() as copy:
        LexicalIndex(folder)
        assert not left.exists()
        assert found(copy, "garden") == ["dogs"]


def test_it_is_not_pickled():
    """A copy in another process opens the folder again."""
    import pickle

    with pytest.raises(TypeError, match="open its folder again"):
        pickle.dumps(LexicalIndex())


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_disk_that_is_full_leaves_the_state_before(tmp_path):
    """Files may not grow beyond some kilobytes (RLIMIT_FSIZE): an `OSError`, and no change."""
    folder = tmp_path / "words"
    LexicalIndex(folder).fill(PASSAGES)
    program = f"""
import random, resource, signal
from nexus_integrations.lexical import LexicalIndex
made = LexicalIndex({str(folder)!r})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
draw = random.Random(0)
try:
    made.fill({{f"x{{n}}": " ".join(draw.choices("abcdefghijklmnop", k=50)) for n in range(3000)}})
except OSError as error:
    assert "stays as it was" in str(error) or "cannot be written" in str(error), error
    print("refused", len(made))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=600
    )
    assert done.stdout == "refused 3\n", done.stderr
    opened = LexicalIndex(folder)
    opened.add(["x"], ["more words"])
    assert len(opened) == 4


def test_without_tantivy_the_error_names_the_extra():
    """`pip install "nexus-integrations[lexical]"`, and the hybrid retriever still imports."""
    program = """
import sys
sys.modules["tantivy"] = None
import nexus_integrations.retrievers
try:
    import nexus_integrations.lexical
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert 'pip install "nexus-integrations[lexical]"' in done.stdout, done.stderr
