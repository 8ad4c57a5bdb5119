#!/usr/bin/env bash
# A Slurm cluster of this machine alone, for the tests: started and stopped by root, in a folder.
#
#     tests/clusters/slurm.sh start FOLDER    then: export SLURM_CONF=FOLDER/slurm.conf
#     tests/clusters/slurm.sh stop FOLDER
#
# It needs Debian's packages slurmctld, slurmd, slurm-client and munge (`install` gets them). Two
# nodes of two slots each are slurmd processes of this machine. No accounting: the launcher needs none.
set -euo pipefail
verb=${1:?start, stop or install} folder=$(realpath -m "${2:-/tmp/ablate-slurm}")

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
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
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
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd-%n
NodeName=a NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=2 RealMemory=4000 State=UNKNOWN
NodeName=b NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=a,b Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$folder/slurm.conf
    slurmctld -c
    slurmd -N a
    slurmd -N b
    for _ in $(seq 60); do
        [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | wc -l)" = 2 ] && exit 0
        sleep 0.5
    done
    sinfo -N >&2
    exit 1
    ;;
stop)
    export SLURM_CONF=$folder/slurm.conf
    scancel --user=root 2>/dev/null || true
    for pid in "$folder"/*.pid; do [ -e "$pid" ] && kill "$(cat "$pid")" 2>/dev/null || true; done
    ;;
*)
    echo "slurm.sh: $verb: not one of start, stop, install" >&2
    exit 2
    ;;
esac
