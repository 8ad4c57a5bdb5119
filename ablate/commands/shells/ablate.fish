# Tab completion of `ablate` for fish; written by `ablate completion install`.
complete -c ablate -a '(command ablate completion answer (commandline -cp) 2>/dev/null | string trim --right)'
