type_line() { printf '\033[1;32m$\033[0m '; for ((i = 0; i < ${#1}; i++)); do printf '%s' "${1:i:1}"; sleep 0.02; done; printf '\n'; sleep 0.3; }
type_line 'speechtrain --explain trainer.epochs'
speechtrain --explain trainer.epochs
printf '\n'
type_line 'speechtrain experiment=quick'
speechtrain experiment=quick
