"""A real Slurm cluster of one node, this machine, for tests: its own configuration, ports and folders; stopped by process id."""
import os
import platform
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SchedulerParameters=batch_sched_delay=1,sched_interval=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=2000 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def unavailable():
    "Why there can be no such cluster here, or an empty text."
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
    missing = [p for p in PROGRAMS if not shutil.which(p, path=path)]
    if missing: return f"{', '.join(missing)} not installed (Debian: slurm-wlm, munge)"
    if os.geteuid() != 0: return "a Slurm node can only be started as root"
    return ""


def _free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets: s.bind(("127.0.0.1", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets: s.close()
    return ports


def _wait(what, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > deadline: raise TimeoutError(f"Slurm did not come up: {what.__doc__}")
        time.sleep(0.2)
    return found


@contextmanager
def slurm_node(folder, cpus=2):
    "Inside, `sbatch` and its kin speak to a cluster of this one machine. Yields the variables that select it."
    folder, host = Path(folder), platform.node().split(".")[0]
    for name in ("state", "spool"): (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=_free_ports(2), cpus=cpus))
    env = dict(SLURM_CONF=str(folder / "slurm.conf"), PATH=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))
    started, log = [], open(folder / "daemons.log", "ab")
    start = lambda *command: started.append(
        subprocess.Popen(command, env={**os.environ, **env}, stdout=log, stderr=log, start_new_session=True)
    )

    def munge_is_up():
        "munged"
        return (folder / "munge.socket").exists()

    def node_is_up():
        "slurmctld and slurmd"
        if any(p.poll() is not None for p in started): raise RuntimeError((folder / "daemons.log").read_text()[-3000:])
        done = subprocess.run(["sinfo", "-h", "-o", "%T"], env={**os.environ, **env}, capture_output=True, text=True)
        return done.stdout.strip() == "idle"

    try:
        start("munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket",
              f"--pid-file={folder}/munge.pid", f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed")
        _wait(munge_is_up)
        start("slurmctld", "-D", "-f", env["SLURM_CONF"])
        start("slurmd", "-D", "-f", env["SLURM_CONF"])
        _wait(node_is_up, 40)
        yield env
    finally:
        subprocess.run(["scancel", "--me"], env={**os.environ, **env}, capture_output=True, timeout=20) if len(started) == 3 else None
        for process in reversed(started):
            process.terminate()
            try: process.wait(10)
            except subprocess.TimeoutExpired: process.kill(); process.wait()
        log.close()
