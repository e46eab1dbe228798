#!/bin/sh
# A language model from nothing: tokenizer, pre-training, fine-tuning, answers. No network, no GPU, minutes on two cores.
#
#   sh examples/minimind/run.sh [FOLDER [TEXTS [CONVERSATIONS]]]
#
# FOLDER           what is made                                                [runs/minimind]
# TEXTS            JSONL with `text`, to pre-train on     [what Python itself brings; see local_text.py]
# CONVERSATIONS    rows of any chat format, to fine-tune on                    [starter]
# In the environment: PYTHON [python]; DIM, LAYERS and VOCAB of the model [256, 4, 2000; the lesson: 512, 2, 6400].
set -eu
here=$(dirname "$0")
folder=${1:-runs/minimind}
texts=${2:-$folder/texts.jsonl}
conversations=${3:-starter}
python=${PYTHON:-python}

[ -f "$texts" ] || "$python" "$here/local_text.py" "$texts" --megabytes 0.6

"$python" -m honed new tokenizer "$folder/tokenizer" --data "$texts" "$conversations" --vocab "${VOCAB:-2000}"
"$python" -m honed new minimind "$folder/model" \
    --dim "${DIM:-256}" --layers "${LAYERS:-4}" --tokenizer "$folder/tokenizer"
# so little data wants small batches, many passes and high rates; the recipes themselves are for more
"$python" -m honed train minimind_pretrain model="$folder/model" data.files="$texts" output="$folder/pretrained" \
    per_device_train_batch_size=2 learning_rate=2e-3 logging_steps=20
"$python" -m honed train minimind_sft model="$folder/pretrained" data.files="$conversations" output="$folder/sft" \
    per_device_train_batch_size=4 learning_rate=1e-3 num_train_epochs=12 logging_steps=50
"$python" -m honed generate "$folder/sft" "Why do cats purr?" --max-new-tokens 96
