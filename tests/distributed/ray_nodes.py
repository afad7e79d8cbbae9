"""Ray clusters whose nodes are processes of this machine."""

import os
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
# Where the processes of nodes find the program and the tests.
ENVIRONMENT = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(Path(__file__).parent)))}


class Nodes:
    """A head that does no work, and nodes with one core each."""

    def __init__(self) -> None:
        head = {"num_cpus": 0, "include_dashboard": False}
        self._cluster = import_module("ray.cluster_utils").Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self._cluster.address

    def add(self) -> Any:
        """Add a node."""
        return self._cluster.add_node(num_cpus=1)

    def kill(self, node: Any) -> None:
        """End the processes of a node as the loss of a machine does."""
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_head(self) -> None:
        """End the head as the loss of a machine does."""
        self._cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)

    def shutdown(self) -> None:
        """End all processes."""
        self._cluster.shutdown()


def until(is_so: Callable[[], bool], seconds: float = 90) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
