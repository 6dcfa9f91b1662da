"""Which provider ONNX Runtime assigned the nodes of a graph to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mirror_edge.errors import DeviceError

if TYPE_CHECKING:
    import onnxruntime as ort

__all__ = ["nodes_on"]


def nodes_on(session: ort.InferenceSession, provider: str, graph: str) -> int:
    """The number of nodes in the graph, all of which `provider` runs.

    This uses ONNX Runtime's graph assignment: a session lists its provider even if every node
    fell back to the CPU.

    Raises:
        DeviceError: if part of the graph was assigned to another provider.
    """
    counts = Counter(
        (part.ep_name, node.op_type)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
    )
    strays = {op: count for (name, op), count in counts.items() if name != provider}
    if strays:
        listed = ", ".join(f"{count} {op}" for op, count in strays.items())
        raise DeviceError(
            f"{graph}: {provider} would run {sum(strays.values())} of {counts.total()} nodes on "
            f"the CPU ({listed}), copying data back and forth. "
            "Choose another device, or export the bundle for this one."
        )
    return counts.total()
