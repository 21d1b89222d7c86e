"""`nexus label`, `nexus tune`, `nexus search` and `nexus evaluate` of a tuned folder."""

import csv
import json

import pytest
from typer.testing import CliRunner

from nexus_integrations.cli import app
from nexus_integrations.demo import corpus

pytestmark = pytest.mark.model


def run(*arguments, status=0):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == status, done.output
    return done.stdout if status == 0 else done.output


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The demo corpus in the BEIR layout, and a table of questions and answers."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "data" / "qrels").mkdir(parents=True)
    whole = corpus().subset(list(corpus().queries)[:120])
    train, test = whole.split(0.75, 0.25, seed=0)
    for name, texts in (("corpus", whole.corpus), ("queries", whole.queries)):
        rows = (json.dumps({"_id": id_, "text": text}) for id_, text in texts.items())
        (folder / "data" / f"{name}.jsonl").write_text("\n".join(rows))
    for name, part in (("train", train), ("test", test)):
        lines = [f"{q}\t{d}\t1" for q, found in part.relevant_docs.items() for d in found]
        path = folder / "data" / "qrels" / f"{name}.tsv"
        path.write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]))
    with (folder / "questions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer"])
        for query in list(whole.queries)[:5]:
            answer = whole.corpus[whole.relevant_docs[query][0]]
            table.writerow([whole.queries[query], answer[:60]])
        table.writerow(["where is the moon?", "This stands in no document of the clinic at all."])
    return folder


def test_a_table_becomes_labels(data):
    """Five answers are found, one is listed with the reason; the dataset trains."""
    told = run("label", data / "questions.csv", data / "data" / "corpus.jsonl", data / "labels")
    assert "6 questions: text from 'question', answer from 'answer'" in told
    assert "5 of 6 questions have a passage" in told
    assert "q6: the answer stands in no passage" in told
    assert "moon" not in told
    content = json.loads((data / "labels" / "data.json").read_text())
    assert len(content["relevant_docs"]) == 5
    assert (data / "labels").stat().st_mode & 0o077 == 0
    again = run(
        *("label", data / "questions.csv", data / "data" / "corpus.jsonl", data / "again"),
        *("--corrected", data / "labels" / "labels.csv", "--json"),
    )
    assert json.loads(again)["matched"] == 5


def test_tune_then_ask_and_evaluate(data):
    """One folder from one command; it answers better, tells why, and refuses what is wrong."""
    told = json.loads(
        run("tune", "--json", f"{data}/data:train", data / "tuned", "--test", f"{data}/data:test")
    )
    before, after = told["test"]["before"], told["test"]["after"]
    assert after["ndcg@10"] > before["ndcg@10"]
    assert (data / "tuned").stat().st_mode & 0o077 == 0
    measured = json.loads(run("evaluate", data / "tuned", f"{data}/data:test", "--json"))
    assert measured["metrics"]["ndcg@10"] == pytest.approx(after["ndcg@10"], abs=1e-4)
    question = "who signs the form?"
    shown = run("search", data / "tuned", question, "-k", "3").splitlines()
    assert shown[0].startswith("weight of the words: ")
    assert len(shown) == 5
    found = json.loads(run("search", data / "tuned", question, "-k", "3", "--json"))["passages"]
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    refused = run("tune", f"{data}/data:test", data / "other", status=1)
    assert "test split" in refused
    assert "--force" in run("tune", f"{data}/data:train", data / "tuned", status=1)
