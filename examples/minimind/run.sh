#!/bin/sh
# A language model from nothing: tokenizer, pre-training, fine-tuning, answers. No network, no GPU, minutes on two cores.
#
#   sh examples/minimind/run.sh [FOLDER [TEXTS [CONVERSATIONS]]]
#
# FOLDER           what is made                                                [runs/minimind]
# TEXTS            JSONL with `text`, to pre-train on     [what Python itself brings; see local_text.py]
# CONVERSATIONS    rows of any chat format, to fine-tune on                    [starter]
# In the environment: PYTHON [python], DIM [256], LAYERS [4], EPOCHS of pre-training [1]; the lesson has 512 and 2.
set -eu
here=$(dirname "$0")
folder=${1:-runs/minimind}
texts=${2:-$folder/texts.jsonl}
conversations=${3:-starter}
python=${PYTHON:-python}

[ -f "$texts" ] || "$python" "$here/local_text.py" "$texts" --megabytes 1

"$python" -m honed new tokenizer "$folder/tokenizer" --data "$texts" "$conversations" --vocab 6400
"$python" -m honed new minimind "$folder/model" \
    --dim "${DIM:-256}" --layers "${LAYERS:-4}" --tokenizer "$folder/tokenizer"
"$python" -m honed train minimind_pretrain model="$folder/model" data.files="$texts" output="$folder/pretrained" \
    num_train_epochs="${EPOCHS:-1}" per_device_train_batch_size=4 logging_steps=10
"$python" -m honed train minimind_sft model="$folder/pretrained" data.files="$conversations" output="$folder/sft"
"$python" -m honed generate "$folder/sft" "Why do cats purr?" --max-new-tokens 96
