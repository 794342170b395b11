#!/bin/bash
# Several hosts by mpirun of Open MPI or mpiexec of MPICH: configs/mpirun.sh HOST,HOST... [OPTION...]. The first is node 0.
set -euo pipefail
hosts=$1
shift
count=$(tr ',' '\n' <<< "$hosts" | wc -l)
NANOINFER_SECRET=$(head -c 32 /dev/urandom | base64)
export NANOINFER_SECRET
node=(nanoinfer-launch node --connect "${hosts%%,*}:20000" --nproc "$count" "$@")

if mpirun --version 2>/dev/null | grep -q 'Open MPI'; then
    exec mpirun --host "$hosts" --map-by ppr:1:node -x NANOINFER_SECRET "${node[@]}"
else
    exec mpiexec -hosts "$hosts" -ppn 1 -n "$count" -genvlist NANOINFER_SECRET,PATH "${node[@]}"
fi
