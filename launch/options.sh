# Read by the launch scripts.

fail() { echo "error: $1" >&2; usage >&2; exit 2; }

# read_options "NAMES" "SWITCHES" "$@"
# `--name VALUE` sets the variable of that name, `--some-switch` sets some_switch to yes; what stands
# after -- is left in the array `arguments`.
read_options() {
  local names=" $1 " switches=" $2 " option
  shift 2
  while [[ $# -gt 0 && $1 != -- ]]; do
    option=${1#--}
    if [[ $1 == --help ]]; then
      usage; exit 0
    elif [[ $1 == "--$option" && $switches == *" $option "* ]]; then
      printf -v "${option//-/_}" yes; shift
    elif [[ $1 == "--$option" && $names == *" $option "* ]]; then
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      printf -v "$option" %s "$2"; shift 2
    else
      fail "unknown option $1"
    fi
  done
  [[ ${1-} == -- ]] || fail "no -- with arguments of flamingo_jax.train"
  shift
  [[ $# -gt 0 ]] || fail "no arguments of flamingo_jax.train after --"
  arguments=("$@")
}
