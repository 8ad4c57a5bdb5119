#!/usr/bin/env bash
# Run the test suite on each of several sets of CPU kernels that this processor has:
#
#     tests/kernels.sh [lowest] [avx2] [native] [threads] [-- ARGUMENTS OF PYTEST]
#
# All four by default. PyTorch, MKL, oneDNN, OpenBLAS (under NumPy and SciPy), NumPy itself and the
# C library each choose code for the processor at hand, which adds in another order and so rounds
# differently. What passes on all of them hangs on none of them. A group is one run of the suite:
#
#     lowest   SSE code only, one thread
#     avx2     AVX2 code (Haswell and later, Zen), one thread
#     native   what the libraries choose by themselves, one thread
#     threads  the same, two threads a process
#
# PYTHON is the interpreter, by default .venv/bin/python; PROCESSES is pytest-xdist's -n, 2.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
# A setting of the shell's must not reach a group that does not name it.
unset ATEN_CPU_CAPABILITY MKL_ENABLE_INSTRUCTIONS ONEDNN_MAX_CPU_ISA OPENBLAS_CORETYPE \
    NPY_DISABLE_CPU_FEATURES GLIBC_TUNABLES OPENBLAS_NUM_THREADS MKL_NUM_THREADS

groups=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do groups+=("$1") && shift; done
[ $# -gt 0 ] && shift
[ ${#groups[@]} -eq 0 ] && groups=(lowest avx2 native threads)

# NumPy's code for this processor beyond its baseline, but for what matches the pattern.
numpy_beyond() {
    "$PYTHON" - "$1" <<'PY'
import re, sys
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
print(*(f for f in __cpu_dispatch__ if __cpu_features__[f] and not re.search(sys.argv[1], f)))
PY
}

settings() {
    case $1 in
    lowest)
        echo "ATEN_CPU_CAPABILITY=default"
        echo "MKL_ENABLE_INSTRUCTIONS=SSE4_2"
        echo "ONEDNN_MAX_CPU_ISA=SSE41"
        echo "OPENBLAS_CORETYPE=Nehalem"
        echo "NPY_DISABLE_CPU_FEATURES=$(numpy_beyond '^$')"
        echo "GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA,-FMA4,-AVX2_Usable,-FMA_Usable,-FMA4_Usable"
        ;;
    avx2)
        echo "ATEN_CPU_CAPABILITY=avx2"
        echo "MKL_ENABLE_INSTRUCTIONS=AVX2"
        echo "ONEDNN_MAX_CPU_ISA=AVX2"
        echo "OPENBLAS_CORETYPE=Haswell"
        echo "NPY_DISABLE_CPU_FEATURES=$(numpy_beyond '^(SSE|POPCNT|AVX2?$|FMA3|F16C|X86_V[23]$)')"
        ;;
    native | threads) ;;
    *) echo "kernels.sh: $1: not one of lowest, avx2, native, threads" >&2 && return 2 ;;
    esac
    local threads=1
    [ "$1" = threads ] && threads=2
    echo "OMP_NUM_THREADS=$threads"
    echo "OPENBLAS_NUM_THREADS=$threads"
}

# The kernels that really run: a library may not know a setting, or not obey it.
REPORT='
import numpy, scipy.linalg, torch
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__
from threadpoolctl import threadpool_info
for row in threadpool_info():
    if row["user_api"] == "blas":
        print(" ", row["prefix"], row["version"], row.get("architecture"), row["num_threads"])
print("  numpy", numpy.__version__, *(f for f in __cpu_dispatch__ if __cpu_features__[f]))
print("  torch", torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads())
'

failed=0
for group in "${groups[@]}"; do
    chosen=$(settings "$group") || exit 2
    mapfile -t pairs <<<"$chosen"
    echo "== $group: ${pairs[*]}"
    env "${pairs[@]}" "$PYTHON" -c "$REPORT"
    env "${pairs[@]}" "$PYTHON" -m pytest -q -n "${PROCESSES:-2}" --dist loadfile "$@" || failed=1
done
exit $failed
