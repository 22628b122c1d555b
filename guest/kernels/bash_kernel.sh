# The bash code kernel (docs/kernels.md): commands on fd 3, events on fd 4, the code's own output on fds 1 and 2. Needs bash 5 and no program.
#
# Cells run in this very shell, so variables, functions, the working directory and `set` options stay. A cell is evaluated inside a `source` of
# this file and not inside a function, because there `declare` would make variables that are gone with the cell.
#
# Commands are read without a JSON parser: the agent writes them compactly, with the keys in the order of docs/kernels.md.

if [[ ${1-} == --mitos-cell ]]; then
  shift
  # The status of the last cell is what $? begins with, as in any shell.
  __mitos_restore_status
  eval "$__mitos_code"
  return
fi

__mitos_kernel=$0
__mitos_in_cell=0
__mitos_interrupted=0
exec {__mitos_commands}<&3 {__mitos_events}>&4 3<&- 4>&-

__mitos_send() { builtin printf '%s\n' "$1" >&"$__mitos_events"; }

__mitos_restore_status() { return "$__mitos_status"; }

# Of the JSON escapes that the agent writes, printf's %b knows all (\\ \n \t \r \b \f \u00XX) but \", and no " is there without its backslash.
__mitos_unescape() { builtin printf -v "$1" '%b' "${2//\\\"/\"}"; }

# SIGINT: ends the running cell. `return` leaves one level of function or `source`; the DEBUG trap does the same to the levels above it.
__mitos_on_interrupt() {
  (( __mitos_in_cell )) || return 0
  __mitos_interrupted=1
  shopt -s extdebug
  trap '__mitos_unwind' DEBUG
}

# BASH_COMMAND is stale while a trap runs, so the level decides: everything above the kernel's own loop belongs to the cell.
__mitos_unwind() {
  [[ ${FUNCNAME[1]} == main ]] && return 0
  return 2
}

__mitos_renew() {
  local rest name value
  rest=${1#*\"env\":\{}
  while [[ $rest =~ ^,?\"([A-Za-z_][A-Za-z0-9_]*)\":\"(([^\"\\]|\\.)*)\" ]]; do
    rest=${rest:${#BASH_REMATCH[0]}}
    name=${BASH_REMATCH[1]}
    __mitos_unescape value "${BASH_REMATCH[2]}"
    export "$name=$value"
  done
  rest=${1##*\"unset\":\[}
  while [[ $rest =~ ^,?\"([A-Za-z_][A-Za-z0-9_]*)\" ]]; do
    rest=${rest:${#BASH_REMATCH[0]}}
    unset -v "${BASH_REMATCH[1]}"
  done
  # $RANDOM continues from its state in memory: give it a new one. $SRANDOM asks the kernel each time.
  RANDOM=${SRANDOM:-$(( $$ ^ ${EPOCHREALTIME/./} ))}
  __mitos_send '{"event":"renewed"}'
}

trap '__mitos_on_interrupt; (( __mitos_in_cell )) && return 130' INT
__mitos_send '{"event":"ready"}'
__mitos_status=0

while true; do
  IFS= builtin read -r -u "$__mitos_commands" __mitos_line || {
    (( $? > 128 )) && continue
    exit 0
  }
  case $__mitos_line in
    '{"op":"renew",'*) __mitos_renew "$__mitos_line" ;;
    '{"op":"execute","id":'*)
      __mitos_id=${__mitos_line#*\"id\":}
      __mitos_id=${__mitos_id%%,*}
      __mitos_code=${__mitos_line#*\"code\":\"}
      __mitos_unescape __mitos_code "${__mitos_code%\"\}}"
      __mitos_line=
      __mitos_interrupted=0
      __mitos_in_cell=1
      # The cell sees none of the protocol's descriptors.
      source "$__mitos_kernel" --mitos-cell {__mitos_commands}<&- {__mitos_events}>&-
      __mitos_status=$?
      __mitos_in_cell=0
      trap - DEBUG
      shopt -u extdebug
      # A cell may have put its own handler there.
      trap '__mitos_on_interrupt; (( __mitos_in_cell )) && return 130' INT
      if (( __mitos_interrupted )); then
        __mitos_send "{\"event\":\"error\",\"id\":$__mitos_id,\"name\":\"KeyboardInterrupt\",\"value\":\"\",\"traceback\":[]}"
        __mitos_send "{\"event\":\"done\",\"id\":$__mitos_id,\"status\":\"error\"}"
      elif (( __mitos_status )); then
        __mitos_send "{\"event\":\"error\",\"id\":$__mitos_id,\"name\":\"ExitError\",\"value\":\"exit status $__mitos_status\",\"traceback\":[]}"
        __mitos_send "{\"event\":\"done\",\"id\":$__mitos_id,\"status\":\"error\"}"
      else
        __mitos_send "{\"event\":\"done\",\"id\":$__mitos_id,\"status\":\"ok\"}"
      fi
      ;;
  esac
done
