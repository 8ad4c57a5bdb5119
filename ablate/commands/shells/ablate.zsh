# Tab completion of `ablate` for zsh; written by `ablate completion install`.
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
_ablate() {
    local -a found
    found=("${(@f)$($words[1] completion answer "${(j: :)words[1,CURRENT]}" 2>/dev/null)}")
    if [[ -n $found[1] ]]; then
        compadd -Q -S '' -- $found
    else
        _files
    fi
}
compdef _ablate ablate
