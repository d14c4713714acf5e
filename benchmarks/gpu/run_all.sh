#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All that a device has to answer, in less than 8 minutes: correctness first, then figures.
#
#   run_all.sh [--check] [--build DIR] [--preload LIB] RESULTS
#
#   RESULTS        a folder for the log of every step, the figures (a JSON each, whole after every
#                  block of a run that is cut off), and summary.txt
#   --check        correctness alone, and no figures
#   --build DIR    the build; where there is none it is made there, for the device that answers, in
#                  RESULTS/build unless told otherwise. Programs that are there serve without CMake
#                  and nvcc.
#   --preload LIB  a library that stands in for the device, for every program that uses one
#
# Every step has a limit, and the next comes whatever became of it. Exits with 1 if one failed, with
# 77 if there is no device.
set -uo pipefail

usage() {
  sed -n '3,/^set /{ /^#/s/^# \{0,1\}//p; }' "$0"
  exit "$1"
}
check='' build='' results=''
on_device=(env)
while [ $# -gt 0 ]; do
  case $1 in
    --check) check=yes ;;
    --build | --preload)
      [ $# -ge 2 ] || usage 2 >&2
      if [ "$1" = --build ]; then
        build=$2
      else
        on_device=(env "LD_PRELOAD=$(realpath "$2")")
      fi
      shift
      ;;
    -h | --help) usage 0 ;;
    -*) usage 2 >&2 ;;
    *)
      [ -z "$results" ] || usage 2 >&2
      results=$1
      ;;
  esac
  shift
done
[ -n "$results" ] || usage 2 >&2
mkdir -p "$results" && results=$(realpath "$results") || exit 2
build=$(realpath -m "${build:-$results/build}")
root=$(realpath "$(dirname "$0")/../..")
command -v nvcc >/dev/null || PATH=$PATH:/usr/local/cuda/bin
benchmark=$build/benchmarks/expar_gpu_benchmarks
tests=$build/tests/expar_gpu_tests

most=475  # seconds for everything
limit_of_checks=120
[ -z "$check" ] || limit_of_checks=$most  # nothing comes after them
failed=0
: >"$results/summary.txt"
say() {
  printf '=== %s\n' "$*" | tee -a "$results/summary.txt"
}

# step NAME SECONDS COMMAND...: what it prints comes at once, and stays in NAME.log. Where `proof` is
# set, a line of the log with it says that the command did its work, and not the exit status.
step() {
  local name=$1 limit=$2 start=$SECONDS code
  shift 2
  ((SECONDS + limit <= most)) || limit=$((most - SECONDS))
  if ((limit < 5)); then
    say "$name: LEFT OUT, no time is left"
    return 1
  fi
  printf '\n=== %s: at most %d s\n' "$name" "$limit"
  timeout --kill-after=5 "$limit" "$@" 2>&1 | tee "$results/$name.log"
  code=${PIPESTATUS[0]}
  if [ -n "${proof:-}" ] && [ "$code" != 124 ] && [ "$code" != 137 ]; then
    grep -q "$proof" "$results/$name.log"
    code=$?
  fi
  case $code in
    0) say "$name: passed in $((SECONDS - start)) s" ;;
    77) say "$name: LEFT OUT, there is no device" ;;
    124 | 137) say "$name: FAILED, stopped after $((SECONDS - start)) s" ;;
    *) say "$name: FAILED with $code after $((SECONDS - start)) s" ;;
  esac
  [ "$code" = 0 ] || [ "$code" = 77 ] || failed=1
  return "$code"
}
finish() {
  printf '\n'
  cat "$results/summary.txt"
  say "all steps in $SECONDS s; results are in $results"
  exit "$1"
}

look() {
  nvidia-smi || echo 'nvidia-smi does not answer'
  nvcc --version | tail -n 2 || echo 'there is no nvcc'
  uname -srm
  nproc
}
configure() {
  local tests=$1
  shift
  rm -rf "$build/CMakeCache.txt" "$build/CMakeFiles"
  cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=Release -DEXPAR_BUILD_TESTS="$tests" \
    -DEXPAR_BUILD_EXAMPLES=OFF -DEXPAR_BUILD_BENCHMARKS=ON "$@"
}
make_target() {
  cmake --build "$build" --parallel "$(nproc)" --target "$1"
}
libraries() {
  local code=0 program
  for program in "$@"; do
    ldd "$program" || code=1
    if ldd "$program" | grep 'not found'; then code=1; fi
  done
  return "$code"
}
export build root
export -f look configure make_target libraries
call() {  # timeout runs programs, not functions
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" bash -c '"$@"' - "$@"
}

cache_is_of_here() {
  grep -qx "CMAKE_CACHEFILE_DIR:INTERNAL=$build" "$build/CMakeCache.txt" 2>/dev/null
}

call device 20 look
no_tests='they are not built'
if ! cache_is_of_here && [ ! -x "$benchmark" ] && [ ! -x "$tests" ] &&
  command -v cmake >/dev/null && command -v nvcc >/dev/null; then
  architecture=()
  if nvidia-smi -L 2>/dev/null | grep '^GPU 0' >/dev/null; then
    architecture=(-DCMAKE_CUDA_ARCHITECTURES=native)
  fi
  mkdir -p "$build"
  if ! timeout 60 bash -c 'configure "$@"' - ON "${architecture[@]}" \
    >"$results/configure.log" 2>&1; then
    grep -A2 'expar: the tests need' "$results/configure.log" || tail "$results/configure.log"
    no_tests='they cannot be configured here, as configure.log says'
    call configure-without-tests 60 configure OFF "${architecture[@]}"
  fi
fi
has_target() {
  cmake --build "$build" --target help 2>/dev/null | grep "$1" >/dev/null
}
if cache_is_of_here && command -v cmake >/dev/null; then
  has_target expar_gpu_benchmarks && call build-benchmarks 150 make_target expar_gpu_benchmarks
  has_target expar_gpu_tests && call build-tests 180 make_target expar_gpu_tests
fi
programs=()
for program in "$benchmark" "$tests"; do
  [ ! -x "$program" ] || programs+=("$program")
done
[ ${#programs[@]} != 0 ] && call libraries 10 libraries "${programs[@]}"

if [ -x "$benchmark" ]; then
  step check "$limit_of_checks" "${on_device[@]}" "$benchmark" --check
  [ $? != 77 ] || finish 77
else
  say 'check and figures: FAILED, the benchmarks are not built'
  failed=1
fi
if [ -x "$tests" ]; then
  step tests "$limit_of_checks" "${on_device[@]}" "$tests" --durations yes
  [ $? != 77 ] || finish 77
else
  say "tests: LEFT OUT, $no_tests"
fi
if [ -n "$check" ] || [ ! -x "$benchmark" ]; then finish "$failed"; fi

figures() {  # NAME SECONDS OPTIONS...
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" "${on_device[@]}" "$benchmark" --json "$results/$name.json" "$@" &&
    [ ! -e "$results/$name.json" ] && say "$name: FAILED, there are no figures" && failed=1
}
figures quick 45 --quick
figures uniform 150 --filter /uniform
if [ -e "$results/uniform.json" ] && command -v python3 >/dev/null; then
  step predictions 10 python3 "$root/benchmarks/gpu/predictions.py" "$results/uniform.json"
fi

# Bytes that reach memory, issue and stalls, of one launch each.
profile() {  # NAME KERNEL FILTER
  proof=Duration step "ncu-$1" 25 "${on_device[@]}" ncu --clock-control none --target-processes all \
    --section SpeedOfLight --section LaunchStats --section Occupancy --section SchedulerStats \
    --section WarpStateStats --section MemoryWorkloadAnalysis --print-details all \
    --metrics dram__bytes_read.sum,dram__bytes_write.sum \
    --kernel-name "$2" --launch-count 1 --kill yes "$benchmark" --filter "$3/uniform"
}
if command -v ncu >/dev/null; then
  profile plan place_routes plan/deepseek-v3
  profile gate gate_by_lanes gate_plan/deepseek-v3
  profile scatter scatter_rows encode/deepseek-v3
  profile gather-2 gather_rows decode/mixtral
  profile gather-8 gather_rows decode/deepseek-v3
  profile dots dot_rows decode_backward/deepseek-v3
  profile fp8 scatter_quantized encode_fp8/deepseek-v3
else
  say 'ncu: LEFT OUT, it is not here'
fi
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    step "$tool" 45 "${on_device[@]}" compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "$benchmark" --check --filter /uniform
  done
else
  say 'compute-sanitizer: LEFT OUT, it is not here'
fi

figures zipf 60 --filter /zipf
figures hot 60 --filter /hot
figures masked 60 --filter '/7/8 masked'
finish "$failed"
