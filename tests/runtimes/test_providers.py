"""Finding devices, and the errors where there are none."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

import mirror_edge
from mirror_edge.devices import Device, all_devices
from mirror_edge.errors import DeviceError, MissingExtraError
from mirror_edge.runtimes.onnx import providers
from mirror_edge.runtimes.onnx.placement import nodes_on
from mirror_edge.runtimes.onnx.providers import CPU, CUDA, OPENVINO, QNN, Provider


def device(kind: str, name: str = CUDA.name, **metadata: str) -> Any:
    """A device as ONNX Runtime describes it."""
    hardware = SimpleNamespace(
        type=SimpleNamespace(name=kind.upper()),
        vendor="ACME",
        vendor_id=1,
        device_id=2,
        metadata=metadata,
    )
    return SimpleNamespace(ep_name=name, device=hardware)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The devices of a machine on which all packages are installed; tests add to it."""
    there: list[Any] = []
    monkeypatch.setattr(ort, "get_ep_devices", lambda: there)
    monkeypatch.setattr(Provider, "_register", lambda _: None)
    return there


def test_the_cpu_is_always_there() -> None:
    (found,) = CPU.found()
    assert (found.name, found.type, found.usable) == ("cpu", "cpu", True)
    assert found.version == ort.__version__


def test_several_devices_of_one_type_are_numbered(machine: list[Any]) -> None:
    machine += [device("gpu"), device("cpu"), device("gpu"), device("gpu", is_virtual="1")]
    assert [found.name for found in CUDA.found()] == ["cuda:0", "cuda:1"]
    assert CUDA.place(Device("cuda")).device is machine[0]
    assert CUDA.place(Device("cuda", unit="1")).device is machine[2]
    with pytest.raises(DeviceError, match=r"'cuda:2': this machine has none; .* cuda:0, cuda:1\."):
        CUDA.place(Device("cuda", unit="2"))


def test_devices_of_several_types_are_named_by_type_best_first(machine: list[Any]) -> None:
    machine += [device(kind, OPENVINO.name) for kind in ("cpu", "gpu", "npu", "gpu")]
    names = ["openvino:npu", "openvino:gpu", "openvino:gpu1", "openvino:cpu"]
    assert [found.name for found in OPENVINO.found()] == names
    assert OPENVINO.place(Device("openvino")).device is machine[2]
    assert OPENVINO.place(Device.parse("openvino:gpu1")).device is machine[3]
    assert OPENVINO.found()[0].roles == ("draft",)


def test_an_emulated_device_is_marked_and_listed_last(machine: list[Any]) -> None:
    machine += [device("cpu", QNN.name)]
    assert [(found.name, found.note[:8]) for found in QNN.found()] == [("qnn", "emulated")]
    machine += [device("npu", QNN.name)]
    assert [(found.name, found.note[:8]) for found in QNN.found()] == [
        ("qnn:0", ""),
        ("qnn:1", "emulated"),
    ]


@pytest.mark.usefixtures("machine")
def test_the_error_for_a_missing_device_names_what_it_needs() -> None:
    with pytest.raises(DeviceError, match=r"finds no device .* It needs an NVIDIA driver"):
        CUDA.place(Device("cuda"))
    assert not CUDA.found()[0].usable


def test_the_error_for_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(MissingExtraError, match="pip install onnxruntime-gpu"):
        mirror_edge.load(target_device="cuda")
    absent = Provider("odd", "OddProvider", "ort-odd", plugin="no_such_module", install="pip x")
    with pytest.raises(MissingExtraError, match="needs the package ort-odd: pip x"):
        absent.place(Device("odd"))
    assert [found.usable for found in absent.found()] == [False]


def test_every_kind_is_listed_even_if_no_library_can_be_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("cannot open shared object file")

    providers._register.cache_clear()
    monkeypatch.setattr(ort, "register_execution_provider_library", broken)
    kinds = {found.name.partition(":")[0] for found in all_devices()}
    assert kinds >= {"cpu", "cuda", "openvino", "qnn", "webgpu"}
    providers._register.cache_clear()


def assigned(**providers: list[str]) -> Any:
    """A session whose nodes ONNX Runtime has assigned to these providers."""
    parts = [
        SimpleNamespace(
            ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=op) for op in ops]
        )
        for name, ops in providers.items()
    ]
    return SimpleNamespace(get_provider_graph_assignment_info=lambda: parts)


def test_the_nodes_of_a_graph_wholly_on_its_provider_are_counted() -> None:
    assert nodes_on(assigned(Npu=["MatMul", "Add", "Add"]), "Npu", "draft.onnx") == 3


def test_a_provider_that_took_only_a_part_is_refused_naming_the_other_nodes() -> None:
    session = assigned(Npu=["MatMul", "Add"], Cpu=["TopK", "TopK", "Log"])
    with pytest.raises(DeviceError, match=r"draft.onnx: Npu would run 3 of 5 .*2 TopK, 1 Log"):
        nodes_on(session, "Npu", "draft.onnx")


def test_a_provider_that_took_nothing_is_refused() -> None:
    with pytest.raises(DeviceError, match="would run 1 of 1 nodes on the CPU"):
        nodes_on(assigned(Cpu=["MatMul"]), "Npu", "draft.onnx")


def test_a_model_knows_where_its_graphs_run(demo: mirror_edge.Model, prompts: list[str]) -> None:
    assert demo.placement.keys() - {"draft exit"} == {"prefix", "exit", "suffix", "draft"}
    assert all(set(nodes) == {CPU.name} for nodes in demo.placement.values())
    answer = demo.generate(prompts[0], max_new_tokens=6)
    figures = answer.stats.as_dict()
    assert figures["placement"]["suffix"] == {CPU.name: 1.0}
    assert figures["time_by_provider"] == {CPU.name: 1.0}
    assert figures["bytes_per_step"] == {"sent": 0, "read": 0}
    assert isinstance(demo.placement["draft"], Counter)


def test_a_draft_in_a_child_process_reports_its_placement() -> None:
    with mirror_edge.load(target_device="cpu", draft_device="cpu", draft_process=True) as model:
        assert set(model.placement["draft"]) == {CPU.name}
