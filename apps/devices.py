"""`mirror-edge devices`: where a bundle's models can run on this machine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mirror_edge.devices import Found
    from mirror_edge.probe import Probe

__all__ = ["devices_command"]


def devices_command(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Bundle folder for --probe (default: the demo pair)."),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Try each device in a child process, and compare it with the CPU."
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List the devices of this machine, and what to install for others."""
    from mirror_edge.devices import all_devices

    found = all_devices()
    probes = _probes(found, bundle) if probe else []
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "devices": [dataclasses.asdict(device) for device in found],
                    "probes": [dataclasses.asdict(one) for one in probes],
                }
            )
        )
    else:
        _show(found, probes)


def _probes(found: list[Found], bundle: Path | None) -> list[Probe]:
    """Try every usable device in each of its roles."""
    from rich.console import Console
    from rich.progress import Progress

    from mirror_edge import bundle as bundles
    from mirror_edge.probe import probe

    read = bundles.read(bundles.demo() if bundle is None else bundle)
    planned = [
        (device.name, role)
        for device in found
        if device.usable and read.manifest.format in device.formats
        for role in device.roles
        if role == "target" or read.manifest.draft is not None
    ]
    tried = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("Trying", total=len(planned))
        for name, role in planned:
            progress.update(task, description=f"Trying {name} as {role}")
            tried.append(probe(name, role, read.folder))
            progress.advance(task)
    return tried


def _show(found: list[Found], probes: list[Probe]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    devices = Table("device", "for", "type", "vendor", "memory", "provider", "package", "note")
    for device in found:
        if device.usable:
            package = f"{device.package} {device.version}".rstrip()
            columns = (device.type, device.vendor, device.memory, device.provider, package)
            devices.add_row(device.name, ", ".join(device.roles), *columns, device.note)
    console.print(devices)
    for device in found:
        if not device.usable:
            console.print(device.note, style="dim", highlight=False, markup=False)
    if not probes:
        return
    tried = Table("device", "as", "load s", "first run s", "step ms", "error", "nodes")
    for one in probes:
        if not one.failure:
            tried.add_row(one.device, one.role, *_figures(one))
    console.print(tried)
    for one in probes:
        if one.failure:
            line = f"{one.device} as {one.role}: {one.failure}"
            console.print(line, style="red", highlight=False, markup=False)


def _figures(one: Probe) -> tuple[Any, ...]:
    nodes: dict[str, int] = {}
    for graph in one.placed.values():
        for provider, count in graph.items():
            nodes[provider] = nodes.get(provider, 0) + count
    return (
        f"{one.load:.1f}",
        f"{one.first:.1f}",
        f"{1e3 * one.step:.1f}",
        f"{one.error:.2g}",
        ", ".join(f"{count} {provider}" for provider, count in nodes.items()),
    )
