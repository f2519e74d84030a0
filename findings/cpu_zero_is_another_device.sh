#!/usr/bin/env bash
# torch, accelerate: moving a model from "cpu" to "cpu:0" gives its parameters new memory, and accelerate does so in several processes.
#
# Guess:   A model that is on the CPU stays where it is; a list of its tensors that was made before `prepare` still follows the training.
# Seen:    `Module.to("cpu:0")` copies every parameter, though its device reads "cpu" before and after. In two processes on the CPU,
#          `Accelerator.prepare` moves the model to "cpu:0": a detached view made before is left behind by the first optimiser step.
#          In one process the device is "cpu", and the view follows.
# Matters: What was collected before (an average of the weights, a hook on a buffer) keeps the first weights for ever, without an error.
# Source:  torch 2.14.1, torch/nn/modules/module.py (`_apply` assigns `param.data`); accelerate 1.15.0, accelerate/state.py (`PartialState`)
#
# Makes a folder of its own, installs the packages named below into it, runs them on small valid input and removes the folder.
# Exit status: 0 if the behaviour is still as described, 1 if it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 accelerate==1.15.0 numpy==2.4.6
cd "$work"
export OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= ACCELERATE_USE_CPU=true
cat > train.py <<'EOF'
import json
import sys

import torch
from accelerate import Accelerator

model = torch.nn.Linear(3, 2)
accelerator, view = Accelerator(cpu=True), model.weight.detach()
optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
wrapped, optimizer = accelerator.prepare(model, optimizer)
accelerator.backward(wrapped(torch.ones(4, 3)).sum())
optimizer.step()
if accelerator.is_main_process:
    follows = torch.equal(view, accelerator.unwrap_model(wrapped).weight)
    with open(sys.argv[1], "w") as f: json.dump(dict(device=str(accelerator.device), follows=follows), f)
EOF
"$work/venv/bin/python" train.py one.json
"$work/venv/bin/python" -m torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0 train.py two.json
"$work/venv/bin/python" - <<'EOF'
import json
import sys

import accelerate
import torch
print("version:  ", "torch", torch.__version__, "accelerate", accelerate.__version__)

SOURCE = "torch/nn/modules/module.py (`_apply`), accelerate/state.py (`PartialState`)"
layer = torch.nn.Linear(3, 2)
before = layer.weight.data_ptr()
layer.to("cpu")
stays = layer.weight.data_ptr() == before
layer.to("cpu:0")
seen = dict(to_cpu_same_memory=stays, to_cpu_0_same_memory=layer.weight.data_ptr() == before, device=str(layer.weight.device),
            one=json.load(open("one.json")), two=json.load(open("two.json")))
known = dict(to_cpu_same_memory=True, to_cpu_0_same_memory=False, device="cpu", one=dict(device="cpu", follows=True),
             two=dict(device="cpu:0", follows=False))
print("source:   ", SOURCE)
print("guess:    ", "the memory stays the same, and the view follows in one process and in two")
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF
