#!/usr/bin/env bash
# Runs on this machine's first GPU, within nine minutes, what is asked for, the most important first:
#   run.sh              is every kernel right, and how fast; whole models; the server with llama-3.1-8b
#   run.sh gpt-oss      gpt-oss-20b and 120b: their experts' kernels, decode, the server
#   run.sh scout        Llama 4 Scout, fp8 and int4, likewise
#   run.sh packed       int4 and fp8 of dense models, qwen3-30b-a3b, gemma-3-27b
#   run.sh PART [TEXTS] a part alone (see docs/gpu.md), of which the items that contain one of TEXTS
# Each part has a time of its own, and one that fails does not stop the next. Leaves JSON, table.txt and benchmarks.md in
# the folder OUT (results). REHEARSE=1 makes everything small, for a stand-in of a GPU.
set -uo pipefail
cd "$(dirname "$0")"
out=${OUT:-results}
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
    local name=$1 seconds=$2 only=${3:-} left=$((limit - SECONDS))
    if [ "$seconds" -gt "$left" ]; then seconds=$left; fi
    if [ "$seconds" -lt 10 ]; then
        echo "== $name: no time left"
        failed+=("$name")
        return
    fi
    echo "== $name${only:+ of $only}, up to $seconds s"
    timeout -k 5 $((seconds + 5)) ./gpu-check run "$name" --out "$out" --seconds "$seconds" --only "$only" \
        ${REHEARSE:+--rehearse} 2>&1 | tee "$out/$name.log"
    if [ "${PIPESTATUS[0]}" != 0 ]; then failed+=("$name"); fi
}

case ${1:-} in
    '')
        part ceilings 30
        part checks 90
        part golden 90
        part timings 100
        part models 100 llama-3.1-8b,gpt-oss-20b
        part dense 20
        part serve "$limit" llama-3.1-8b
        ;;
    gpt-oss)
        part ceilings 20
        part checks 20 experts,route,combine
        part timings 60 gpt-oss
        part models 40 gpt-oss-20b
        part serve "$limit" gpt-oss
        ;;
    scout)
        part ceilings 20
        part timings 45 llama-4-scout
        part serve "$limit" llama-4-scout
        ;;
    packed)
        part ceilings 20
        part timings 90 packed/,qwen3
        part models 60 gemma-3-27b-it,qwen3
        part serve "$limit" 8b-int4,8b-fp8,qwen3,gemma
        ;;
    *) part "$1" "$limit" "${2:-}" ;;
esac

./gpu-check table --out "$out" >"$out/table.txt"
./gpu-check benchmarks --out "$out" >"$out/benchmarks.md"
cat "$out/table.txt" "$out/benchmarks.md"
echo "$SECONDS s in all; failed: ${failed[*]:-none}"
[ ${#failed[@]} = 0 ]
