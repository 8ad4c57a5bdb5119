#!/usr/bin/env bash
# A Slurm cluster of this machine alone, for the tests: started and stopped by root, in a folder.
#
#     tests/clusters/slurm.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#     tests/clusters/slurm.sh stop FOLDER
#
# It needs Debian's packages slurmctld, slurmd, slurm-client and munge (`install` gets them). Two
# nodes of two slots each are slurmd processes of this machine. Where the system allows it, node b
# has a host name and process ids of its own, as another machine has: FOLDER/second says so. A job
# of the partition `urgent` takes the place of one of `main`, which is queued again. No accounting:
# the launcher needs none.
set -euo pipefail
verb=${1:?start, stop or install} folder=$(realpath -m "${2:-/tmp/ablate-slurm}")
port=${ABLATE_SLURM_PORT:-16817} # and the two that follow
apart=(unshare --uts --pid --fork --kill-child --mount-proc)

case $verb in
install)
    apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge
    ;;
start)
    mkdir -p "$folder"/{state,spool-a,spool-b,log} /run/munge
    chown -R munge: /run/munge /etc/munge /var/lib/munge /var/log/munge
    pgrep -x munged >/dev/null || setpriv --reuid munge --regid munge --clear-groups munged
    host=$(hostname -s)
    cat >"$folder/slurm.conf" <<CONF
ClusterName=ablate
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=30
MinJobAge=10
SlurmctldTimeout=30
SlurmdTimeout=30
SchedulerParameters=requeue_setup_env_fail
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.id
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd-%n
NodeName=a NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=b NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=a,b Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=a,b MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    # Their own files of process ids hold those that they see, which of node b are others.
    setsid slurmd -D -N a </dev/null >/dev/null 2>&1 &
    echo $! >"$folder/slurmd-a.pid"
    if "${apart[@]}" true 2>/dev/null; then
        setsid "${apart[@]}" sh -c 'hostname second; exec slurmd -D -N b' </dev/null >/dev/null 2>&1 &
        touch "$folder/second"
    else
        setsid slurmd -D -N b </dev/null >/dev/null 2>&1 &
    fi
    echo $! >"$folder/slurmd-b.pid"
    for _ in $(seq 240); do
        [ "$(sinfo -h -p main -N -t idle -o %N 2>/dev/null | wc -l)" = 2 ] && exit 0
        sleep 0.5
    done
    sinfo -N >&2
    exit 1
    ;;
stop)
    export SLURM_CONF=$folder/slurm.conf
    scancel --user=root 2>/dev/null || true
    for pid in "$folder"/*.pid; do [ -e "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true; done
    # unshare heeds SIGKILL alone; all that runs on its node goes with it.
    [ ! -e "$folder/second" ] || kill -KILL "$(cat "$folder/slurmd-b.pid")" 2>/dev/null || true
    ;;
*)
    echo "slurm.sh: $verb: not one of start, stop, install" >&2
    exit 2
    ;;
esac
