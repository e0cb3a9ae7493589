#!/usr/bin/env bash
# Trains with both discriminators, in one line.
#
#   scripts/train_with_discriminator.sh [--background] [--smoke] [CHECKPOINT | fresh] [--id value ...]
#
#   CHECKPOINT     start from these weights, counters at zero; default: the base run's last.pt
#   fresh          start from scratch
#   --background   keep running after logout; returns when the first iteration is done, or says why it is not
#   --smoke        laptop size: configs/smoke.yaml on top
#   --config_file  config files of your own, merged on top of the launcher's; those that it lists are not repeated
#   --id value     any override, e.g. --max_patients 30; an unknown id is refused
#
# The data folder comes from --dataset_dir or from the variable DATASET_DIR, the interpreter from PYTHON.
# An interrupted run goes on with: --resume_from_checkpoint auto
set -euo pipefail

caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD

tell() { # control characters of a name would steer the terminal
    printf '%s\n' "${*//[[:cntrl:]]/?}"
}

fail() {
    tell "error: $*" >&2
    exit 1
}

from_caller() { # a path that was typed in the caller's folder
    case $1 in
        /*) printf '%s' "$1" ;;
        *) printf '%s' "$caller/$1" ;;
    esac
}

physical() { # the same for every way to write a path of a file that exists
    printf '%s/%s' "$(cd "$(dirname "$1")" && pwd -P)" "$(basename "$1")"
}

configs=(configs/train.yaml configs/train_with_discriminator.yaml)
add_config() { # a file of the caller's folder, or of the bundle; each once, so that none undoes a later one
    local path config
    path=$(from_caller "$1")
    [ -f "$path" ] || path=$root/$1
    [ -f "$path" ] || fail "$1: no such config file, neither here nor below $root; check --config_file"
    path=$(physical "$path")
    for config in "${configs[@]}"; do
        [ "$(physical "$config")" != "$path" ] || return 0
    done
    configs+=("$path")
}

add_configs() { # one file, or several as MONAI takes them: a,b or ['a','b']
    if [ -f "$(from_caller "$1")" ] || [ -f "$1" ]; then add_config "$1" && return; fi
    local names name
    IFS=, read -r -a names <<<"$(printf '%s' "$1" | tr -d "[]'\" ")"
    for name in "${names[@]}"; do add_config "$name"; done
}

as_list() { # words as a list of Python, which MONAI reads
    local word list=
    for word in "$@"; do
        word=${word//\\/\\\\}
        list+="${list:+,}'${word//\'/\\\'}'"
    done
    printf '[%s]' "$list"
}

background=false
smoke=false
start=$root/outputs/vqgan_patches/checkpoints/last.pt
output=$root/outputs/vqgan_patches_with_disc
dataset=${DATASET_DIR:-}
[ -z "$dataset" ] || dataset=$(from_caller "$dataset")
overrides=()
added=()

case ${1:-} in -h | --help)
    sed -n '2,15s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
esac
while :; do
    case ${1:-} in
        --background) background=true && shift ;;
        --smoke) smoke=true && shift ;;
        *) break ;;
    esac
done
case ${1:-} in
    '' | -*) ;;
    fresh) start='' && shift ;;
    *) start=$(from_caller "$1") && shift ;;
esac

while [ $# -gt 0 ]; do
    case $1 in
        --background) background=true && shift && continue ;;
        --smoke) smoke=true && shift && continue ;;
        -*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
    esac
    name=$1
    # as fire reads it: with any number of dashes, and -c for --config_file
    option=${name#"${name%%[!-]*}"}
    [ "$option" != "$name" ] && [ -n "$option" ] || fail "$name: is no option; write --id value"
    if [ $# -eq 1 ] || [[ $2 == --* ]]; then
        overrides+=("$name")
        shift
        continue
    fi
    value=$2
    case ${option//-/_} in
        dataset_dir) dataset=$(from_caller "$value") && value=$dataset ;;
        output_dir) output=$(from_caller "$value") && value=$output ;;
        resume_from_checkpoint | init_from)
            start=''
            [ "$value" = auto ] || value=$(from_caller "$value") # auto is no file
            ;;
        perceptual_weights_path | cache_dir | args_file) value=$(from_caller "$value") ;;
        config_file | c)
            added+=("$value")
            shift 2
            continue
            ;;
    esac
    overrides+=("$name" "$value")
    shift 2
done

[ -n "$dataset" ] || fail "no data: give --dataset_dir DIR, or set DATASET_DIR"
[ -e "$dataset" ] || fail "$dataset: no such folder or file; give --dataset_dir DIR, or set DATASET_DIR"
[ -z "$start" ] || [ -f "$start" ] || fail "$start: no such checkpoint; train the base model first" \
    "(python -m monai.bundle run --config_file configs/train.yaml --dataset_dir DIR) or say 'fresh'"

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=$root/.venv/bin/python
fi

if $smoke; then add_config "$root/configs/smoke.yaml"; fi
for value in ${added[@]+"${added[@]}"}; do add_configs "$value"; done

command=("$PYTHON" -m scripts.run
    --config_file "$(as_list "${configs[@]}")"
    --dataset_dir "$dataset" --output_dir "$output")
[ -z "$start" ] || command+=(--init_from "$start")
command+=(${overrides[@]+"${overrides[@]}"})

if ! $background; then exec "${command[@]}"; fi

console=$output.console.log
pid_file=$output.pid
mkdir -p "$(dirname "$output")"
if [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null; then
    fail "a run with this output folder is alive, PID $(cat "$pid_file"); end it or give another --output_dir"
fi
nohup "${command[@]}" </dev/null >"$console" 2>&1 &
pid=$!
echo "$pid" >"$pid_file"
tell "starting: PID $pid, console output in $console"

# Started means that an iteration was done: the progress bar or a log line says so. Reading a large dataset for
# the first time can take minutes before that.
until grep -qsE 'epoch [0-9]+ iteration [0-9]+|training[^|]*\[[0-9]+/[0-9]+\]' "$console"; do
    if ! kill -0 "$pid" 2>/dev/null; then
        code=0
        wait "$pid" || code=$?
        rm -f "$pid_file"
        [ "$code" -ne 0 ] || fail "the run ended without an iteration; see $console"
        {
            tell "error: the start FAILED with exit code $code; last lines of $console:"
            tail -n 15 "$console"
        } >&2
        exit "$code"
    fi
    sleep 1
done
tell "training has started; follow it with: tail -f $output/training.log"
tell "stop it with: kill $pid"
