# Tab completion of `ablate` for fish; written by `ablate completion install`.
function __ablate_knows # files are offered where it does not
    set -g __ablate_found (command ablate completion answer (commandline -cp) 2>/dev/null | string trim --right)
    test -n "$__ablate_found"
end
complete -c ablate -n __ablate_knows -f -a '(string join \n -- $__ablate_found)'
