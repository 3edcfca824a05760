"""cluster.yaml started for real: `ray up`, `ray job submit` and `ray down` over SSH; this machine is the head node.

Ray's provider ``local`` takes the place of AWS: a machine that is there already, reached by SSH on the loopback. The
file mounts, the filter of the working copy, the setup commands, the start commands of the head and the lines to paste
are cluster.yaml's own. Not tried here: EC2, IAM and the machine images; apt-get; the download of the packages (pip
only resolves its line); workers that the autoscaler launches (tests/test_scale_from_zero.py has them); a GPU.
"""

import getpass
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from pipeline.images.synthetic.scenes import write_corpus
from pipeline.outputs import reader as camlake
from tests.jobs_on import ROOT
from tests.ray_clusters import end_processes_of, free_ports, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync")
WORDS = "#   ray "
"""How the lines to paste begin in cluster.yaml's comment."""


@dataclass
class Node:
    """This machine as the launcher sees it: a home folder of its own, an SSH server, free ports."""

    folder: Path
    ssh_port: int
    ray_port: int
    dashboard_port: int
    agent_port: int

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of whoever starts the cluster: its ``ssh`` goes to the server here."""
        path = f"{self.folder}/bin:{self.home}/env/bin:{os.environ['PATH']}"
        shell = os.environ | {"PATH": path, "HOME": str(self.home), "RAY_TMPDIR": str(self.folder)}
        shell.pop("RAY_AUTH_MODE", None)  # Ray sets it in the process that starts a Ray, such as that of the tests.
        return shell

    def run(self, line: str, while_said: str | None = None) -> str:
        """Run a line to paste, and return what it says; fails where it fails.

        Where it says ``while_said``, it is pasted again: Ray's agent for jobs comes up after the head node.
        """
        for _ in range(60):
            done = subprocess.run(
                shlex.split(line), cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=200,
                check=False,
            )  # fmt: skip
            if while_said is None or while_said not in done.stdout + done.stderr:
                break
            time.sleep(1)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout + done.stderr


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip())
    path.chmod(0o755)


STOP = """
import psutil, sys
of_this_cluster = []
for process in psutil.process_iter():
    try:
        if any(sys.argv[1] in word for word in process.cmdline()[1:]) and process.pid != psutil.Process().pid:
            of_this_cluster.append(process)
            process.terminate()
    except psutil.Error:
        pass
for process in psutil.wait_procs(of_this_cluster, timeout=10)[1]:
    process.kill()
"""


def write_programs(node: Node) -> None:
    """Write the programs of the node: those of ``~/env``, which are this test's, and the launcher's ``ssh``.

    ``ray stop`` would end every Ray of this machine, also those of other tests, so it ends this cluster's processes.
    """
    programs, python = node.home / "env/bin", shlex.quote(sys.executable)
    write_program(programs / "python", f'#!/bin/sh\nexec {python} "$@"\n')
    write_program(
        programs / "pip",
        f'#!/bin/sh\necho "$@" >> ~/pip.txt\n'
        f'exec {python} -m pip "$@" --dry-run --no-deps --no-build-isolation --no-index\n',
    )
    stop = f"{python} -c {shlex.quote(STOP)} {node.folder}/ray/"
    start = f'{python} -c "from ray.scripts.scripts import main; main()"'
    write_program(programs / "ray", f'#!/bin/sh\n[ "$1" = stop ] && exec {stop}\nexec {start} "$@"\n')
    ssh = shutil.which("ssh")
    write_program(node.folder / "bin/ssh", f'#!/bin/sh\nexec {ssh} -F none -p {node.ssh_port} "$@"\n')


def start_ssh_server(node: Node) -> subprocess.Popen[bytes]:
    for key in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", node.folder / key], check=True)
    (node.folder / "sshd_config").write_text(
        f"Port {node.ssh_port}\nListenAddress 127.0.0.1\nHostKey {node.folder}/host_key\nPidFile none\n"
        f"AuthorizedKeysFile {node.folder}/user_key.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
        f"SetEnv HOME={node.home} RAY_TMPDIR={node.folder}\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd wants this folder where root starts it
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    with (node.folder / "sshd.log").open("wb") as log:
        server = subprocess.Popen([str(program), "-D", "-e", "-f", node.folder / "sshd_config"], stderr=log)
    for _ in range(100):
        with suppress(OSError), socket.create_connection(("127.0.0.1", node.ssh_port)):
            return server
        time.sleep(0.1)
    server.kill()
    raise TimeoutError((node.folder / "sshd.log").read_text())


@pytest.fixture
def node() -> Iterator[Node]:
    path = f"{os.environ['PATH']}:/usr/sbin"
    if missing := [name for name in PROGRAMS if shutil.which(name, path=path) is None]:
        pytest.skip(f"no {missing[0]}: apt-get install openssh-server rsync; .ci/run does")
    with tempfile.TemporaryDirectory(prefix="rayup", dir="/tmp", ignore_cleanup_errors=True) as folder:
        node = Node(Path(folder), *free_ports(4))
        write_programs(node)
        server = start_ssh_server(node)
        try:
            yield node
        finally:
            end_processes_of(node.folder)
            server.terminate()
            server.wait()


def lines_to_paste() -> dict[str, str]:
    """The lines of cluster.yaml's comment by their verb: up, job, down."""
    comment = (ROOT / "cluster.yaml").read_text().splitlines()
    lines = [re.sub(r"\s{3,}.*", "", line.removeprefix("#   ")) for line in comment if line.startswith(WORDS)]
    return {line.split()[1]: line for line in lines}


def derived_cluster(node: Node) -> Path:
    """Write cluster.yaml with this machine in the place of AWS, and return the file."""
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    for of_aws in ("available_node_types", "head_node_type", "max_workers"):
        del config[of_aws]
    config["provider"] = {"type": "local", "head_ip": "127.0.0.1", "worker_ips": []}
    config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": f"{node.folder}/user_key"}
    config["file_mounts"] = {f"{node.home}/camlake": config["file_mounts"].pop("/home/ubuntu/camlake")}
    config["setup_commands"] = [line for line in config["setup_commands"] if "apt-get" not in line]
    ports = f"--port={node.ray_port} --dashboard-port={node.dashboard_port} --node-ip-address=127.0.0.1"
    size = f"--dashboard-agent-listen-port={node.agent_port} --num-cpus=4 --object-store-memory=100000000"
    *before, start = config["head_start_ray_commands"]
    assert start.count("--port=6379") == 1
    config["head_start_ray_commands"] = [*before, start.replace("--port=6379", f"{ports} {size}")]
    file = node.folder / "cluster.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


def derived_job(node: Node) -> Path:
    """Write the cluster's job file with a folder in the place of the buckets and the CPU in that of the GPU."""
    job = yaml.safe_load((ROOT / "jobs/annotate-cluster.yaml").read_text())
    write_corpus(node.folder / "photos", 6, seed=4, size_hw=(48, 64), broken=0)
    job |= {"input": f"{node.folder}/photos/images", "out": f"{node.folder}/labels", "model": "camlake_demo"}
    job |= {"device": "cpu", "actors": "1:1"}
    file = node.folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    return file


def test_the_lines_of_cluster_yaml_start_a_cluster_run_the_job_and_end_the_cluster(node: Node) -> None:
    lines, cluster = lines_to_paste(), derived_cluster(node)
    node.run(lines["up"].replace("cluster.yaml", f"{cluster} --yes --no-config-cache"))
    assert processes_of(node.folder)
    assert (node.home / "camlake/jobs/annotate-cluster.yaml").is_file()
    assert not (node.home / "camlake/.git").exists()
    assert not (node.home / "camlake/.venv").exists()
    assert "ray[data,default]==" in (node.home / "pip.txt").read_text()
    submit = lines["job"].replace("localhost:8265", f"127.0.0.1:{node.dashboard_port}")
    submit = submit.replace("/home/ubuntu/camlake/jobs/annotate-cluster.yaml", str(derived_job(node)))
    assert "6 images annotated" in node.run(submit, while_said="No available agent")
    with camlake.open(f"{node.folder}/labels") as lake:
        assert len(lake.arrow("images")) == 6
    node.run(lines["down"].replace("cluster.yaml", f"{cluster} --yes"))
    assert processes_of(node.folder) == []
