"""
The scripts for Slurm, run by Slurm itself: a cluster of one machine, with daemons of its own.

It needs Debian's slurmctld, slurmd, slurm-client and munge, and root; it has nothing to do with a Slurm that
runs there.
"""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from recipe_files import (
    RECIPES,
    SHARDS,
    Note,
    Shell,
    Tables,
    commands,
    compute_in_segments,
    few_shards,
    read_tables,
)
from running import log

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
pytestmark = [
    pytest.mark.recipes,
    pytest.mark.timeout(180),
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(map(shutil.which, PROGRAMS)), reason="needs Slurm, munge and root"
    ),
]
# Cores and GPUs are made up, so that several jobs run at once; a requeued job waits for cred_expire.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/spool
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/slurmd.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=1,bf_interval=1
GresTypes=gpu
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=400000 Gres=gpu:4 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that a job does, up to the time limit of the test."""
    while not is_so():
        time.sleep(0.1)


@pytest.fixture
def real_slurm(shell: Shell) -> Iterator[Shell]:
    """A shell in a directory with the scripts, and a Slurm that runs them on this machine."""
    for script in (RECIPES / "slurm").iterdir():
        shutil.copy(script, shell.directory)
    place, host = Path(mkdtemp("slurm", dir="/tmp")), socket.gethostname()  # the name of a socket is short
    for path in (place / "state", place / "spool"):
        path.mkdir()
    place.chmod(0o755)
    (place / "munge.key").write_bytes(os.urandom(1024))
    (place / "munge.key").chmod(0o400)
    (place / "slurm.conf").write_text(CONFIG.format(place=place, host=host, ports=free_ports(2)))
    (place / "gres.conf").write_text(f"NodeName={host} Name=gpu File=/dev/tty[0-3]\n")
    shell.environment["SLURM_CONF"] = str(place / "slurm.conf")
    files = " ".join(
        f"--{name}={place}/{file}"
        for name, file in (
            ("key-file", "munge.key"),
            ("socket", "munge.socket"),
            ("pid-file", "munged.pid"),
            ("log-file", "munged.log"),
            ("seed-file", "munged.seed"),
        )
    )
    shell.run(f"munged --force {files}; slurmctld; sleep 1; slurmd")
    try:
        wait_until(lambda: "idle" in shell.run("sinfo --noheader --format %T || true"))
        yield shell
    finally:
        for name in ("slurmd", "slurmctld", "munged"):
            stop(place / f"{name}.pid")
        shutil.rmtree(place)


def free_ports(count: int) -> list[int]:
    """Return ports of this machine that nobody listens at."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def stop(pid_file: Path) -> None:
    """End a daemon, and wait until it has gone."""
    if pid_file.exists():
        process = Path("/proc") / pid_file.read_text().strip()
        os.kill(int(process.name), signal.SIGTERM)
        wait_until(lambda: not process.exists())


def ended(slurm: Shell) -> bool:
    return not slurm.run("squeue --noheader")


def test_a_shard_is_requeued_and_the_tables_wait_for_it(
    real_slurm: Shell, contigs: Path, in_segments: Tables, note: Note
) -> None:
    compute_in_segments(real_slurm)
    where = real_slurm.directory
    (where / "metagenome.fa.gz").symlink_to(contigs)
    printed = real_slurm.run(f"{few_shards(commands('Slurm', 1))}echo $shards")
    array = printed.split()[-1]
    wait_until(lambda: " batch 0.3 " in log(where / "run" / "shards" / f"00000-of-{SHARDS:05}"))
    real_slurm.run(f"scancel --signal=USR1 --batch {array}_0")
    wait_until(lambda: ended(real_slurm))
    logs = "".join(path.read_text() for path in where.glob(f"*-{array}_0.log"))
    assert "is requeued" in logs
    assert "resuming after" in logs
    assert read_tables(where / "results", "metagenome.fa.gz") == in_segments
    note("Slurm itself: plan, an array of shards, one of them requeued, merge; byte-identical to one machine")


def test_slurm_gives_up_the_tables_of_a_shard_that_failed(real_slurm: Shell, contigs: Path) -> None:
    compute_in_segments(real_slurm)
    (real_slurm.directory / "metagenome.fa.gz").symlink_to(contigs)
    lines = few_shards(commands("Slurm", 1)).replace("shards.sbatch run/", "shards.sbatch elsewhere/")
    real_slurm.run(lines)
    wait_until(lambda: ended(real_slurm))
    assert not (real_slurm.directory / "results").exists()
