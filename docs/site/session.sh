type_line() { printf '\033[32m$\033[0m '; for ((i = 0; i < ${#1}; i++)); do printf '%s' "${1:i:1}"; sleep 0.02; done; printf '\n'; sleep 0.3; }
type_line 'speechtrain model=conformer model.n_heads=5 optimizer.lrr=0.1'
speechtrain model=conformer model.n_heads=5 optimizer.lrr=0.1
sleep 2
printf '\n'
type_line 'speechtrain --explain model.chunk_frames model=conformer'
speechtrain --explain model.chunk_frames model=conformer
sleep 2
