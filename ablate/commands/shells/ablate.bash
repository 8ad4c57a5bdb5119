# Tab completion of `ablate` for bash; written by `ablate completion install`.
_ablate() {
    local line=${COMP_LINE:0:COMP_POINT} word kept
    mapfile -t COMPREPLY < <("$1" completion answer "$line" 2>/dev/null)
    # bash parts words at = and :, and replaces what stands behind the last of them.
    word=${line##*[[:space:]]}
    kept=${word%"$2"}
    COMPREPLY=("${COMPREPLY[@]#"$kept"}")
}
complete -o nospace -o default -F _ablate ablate
