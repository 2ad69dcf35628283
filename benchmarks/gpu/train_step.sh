#!/bin/sh
# One ViT-L/14 step of Franca on a GPU in bfloat16: compiled or not, with and without activation checkpointing.
#
#     sh benchmarks/gpu/train_step.sh                            # one GPU, 48 images, the row's batch per GPU
#     GPUS=8 sh benchmarks/gpu/train_step.sh --parallel fsdp     # a node
#     ROW=digits sh benchmarks/gpu/train_step.sh --device cpu --compile off --batch 8 --steps 1 --rounds 1
#
# Options behind the script's name go to train_step.py and win over those below.
set -eu
cd "$(dirname "$0")/../.."
ROW=${ROW:-franca-L-in21k}
GPUS=${GPUS:-1}
if [ "$GPUS" -gt 1 ]; then
    start="torchrun --standalone --nproc-per-node $GPUS"
else
    start=python
fi
exec $start benchmarks/train_step.py "$ROW" --precision bf16 --compile off,on --recompute off,on \
    --warmup 5 --steps 20 --rounds 5 --to "${OUT:-$ROW-step.json}" "$@"
