#!/usr/bin/env bash
# Runs every part on this machine's first GPU, the most important first, each within a time of its own and all within
# nine minutes; a part that fails does not stop the next. Leaves JSON and table.txt in the folder given (results).
# REHEARSE=1 makes everything small, for a stand-in of a GPU.
set -uo pipefail
cd "$(dirname "$0")"
out=${1:-results}
mkdir -p "$out"
limit=530

# Where CUDA 13's libraries may be, its own installation or PyTorch's.
candidates() {
    printf '%s\n' /usr/local/cuda/lib64 /usr/local/cuda-13*/lib64 /usr/local/cuda/targets/*/lib
    python3 -c 'import sys; [print(p + "/nvidia/cu13/lib") for p in sys.path if p]' 2>/dev/null
    printf '%s\n' {/usr/lib,/usr/local/lib,/opt/*/lib,/opt/*/.venv/lib}/python3*/{dist,site}-packages/nvidia/cu13/lib
    printf '%s\n' /usr/local/nvidia/lib64 /usr/local/nvidia/lib
}

while read -r folder; do
    for library in libcuda.so.1 libcublas.so.13 libcublasLt.so.13 libcurand.so.10; do
        if [ -e "$folder/$library" ]; then
            LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder
            break
        fi
    done
done < <(candidates)
export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}
echo "LD_LIBRARY_PATH=$LD_LIBRARY_PATH"
nvidia-smi 2>/dev/null | tee "$out/nvidia-smi.txt" || true
ulimit -n 65536 2>/dev/null || ulimit -n "$(ulimit -Hn)" # a connection is a file, and there will be thousands

failed=()
part() {
    local name=$1 seconds=$2 left=$((limit - SECONDS))
    if [ "$seconds" -gt "$left" ]; then seconds=$left; fi
    if [ "$seconds" -lt 10 ]; then
        echo "== $name: no time left"
        failed+=("$name")
        return
    fi
    echo "== $name, up to $seconds s"
    timeout -k 5 $((seconds + 5)) ./gpu-check run "$name" --out "$out" --seconds "$seconds" ${REHEARSE:+--rehearse} 2>&1 | tee "$out/$name.log"
    if [ "${PIPESTATUS[0]}" != 0 ]; then failed+=("$name"); fi
}

part ceilings 30
part checks 90
part golden 90
part timings 80
part models 120
part dense 20
part serve "$limit"

./gpu-check table --out "$out" >"$out/table.txt"
cat "$out/table.txt"
echo "$SECONDS s in all; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
