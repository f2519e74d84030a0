#!/usr/bin/env bash
# numba, torch: the first parallel loop of numba gives PyTorch as many threads as numba has, whatever OMP_NUM_THREADS says.
#
# Guess:   OMP_NUM_THREADS=1 (or torch.set_num_threads(1)) holds until somebody calls torch.set_num_threads again.
# Seen:    With numba's "omp" threading layer, which it takes where it finds no TBB, a first loop with `prange` sets the number of
#          OpenMP threads of the process, and PyTorch shares that OpenMP: torch.get_num_threads() is 1 before and 2 after.
# Matters: A library that uses numba somewhere (apricot-select, umap-learn, pynndescent) changes the rounding of every PyTorch result
#          that comes after it, and how many cores each of several workers takes.
# Source:  numba 0.68.1, numba/np/ufunc/omppool.cpp (launch_threads calls omp_set_num_threads); torch 2.14.1, aten/src/ATen/ParallelOpenMP.cpp
#
# Makes a folder of its own, installs the packages named below into it, runs them on small valid input and removes the folder.
# Exit status: 0 if the behaviour is still as described, 1 if it changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.14.1 numba==0.68.1 numpy==2.4.6
cd "$work"
export OMP_NUM_THREADS=1 NUMBA_NUM_THREADS=2 NUMBA_THREADING_LAYER=omp CUDA_VISIBLE_DEVICES=
"$work/venv/bin/python" - <<'EOF'
import sys

import numba
import numpy as np
import torch
print("version:  ", "numba", numba.__version__, "torch", torch.__version__)

@numba.njit(parallel=True)
def total(x):
    s = 0.0
    for i in numba.prange(len(x)): s += x[i]
    return s

before = torch.get_num_threads()
sum_of_ones = total(np.ones(10))
seen = dict(before=before, after=torch.get_num_threads(), layer=numba.threading_layer(), sum=sum_of_ones)
known = dict(before=1, after=2, layer="omp", sum=10.0)
print("source:   ", "numba/np/ufunc/omppool.cpp, ATen/ParallelOpenMP.cpp")
print("guess:    ", "one thread before and after, as OMP_NUM_THREADS says")
print("output:   ", seen)
if seen != known: sys.exit(f"the behaviour has changed: it was {known}")
print("behaviour: as described")
EOF
