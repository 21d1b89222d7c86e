#!/usr/bin/env bash
# The main job by the command line: embed, ask, fine-tune, nudge, ask again, undo.
#
# Run it with `bash examples/command_line.sh`; it needs the extra `bundled`, and writes nothing
# outside a temporary folder. DENDRITES=3 grows dendrites, which needs the extra `dendrites`.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Your own data: corpus.jsonl, queries.jsonl and qrels/*.tsv of a BEIR folder, or JSON as here.
python - <<'PYTHON'
from nexus_integrations.demo import SHARES, corpus

for name, part in zip(("train", "dev", "test"), corpus().split(*SHARES, seed=0)):
    part.to_json(f"{name}.json")
PYTHON

echo "== Embed the passages, once, and see how well they answer"
nexus embed train.json vectors.parquet
nexus evaluate vectors.parquet test.json -o before.json

echo "== Train a head for the questions; the stored vectors stay valid"
nexus finetune train.json tuned --dev dev.json --vectors vectors.parquet --dendrites "${DENDRITES:-0}"

echo "== Move the passages that answer training questions, in the file itself"
nexus nudge apply vectors.parquet train.json --dev dev.json --model tuned

echo "== The questions that nobody trained on, before and after"
nexus evaluate vectors.parquet test.json --model tuned --against before.json

echo "== Put the vectors back"
nexus nudge undo vectors.parquet
