"""Hold the formulas of autopart/cost/collectives.py against measured collectives.

    python scripts/measure_collectives.py --data ../shared/data/collectives/nccl_measured.csv
    python scripts/measure_collectives.py --data FILE --fit

Prints one table by collective and system, and the medians and means of |predicted / measured - 1| for the systems that
the constants were fitted on, and for all others. Rows below 16 MiB are left out. So are sends, and systems whose
network is unknown: H20, ABCI with SHARP, and the nodes of nccl issue 1250. `--fit` fits the constants again, on A100
and H100 systems alone: the least mean of |log(predicted / measured)|.
"""

import argparse
import csv
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from autopart.cost.collectives import CollectiveName, Fabric, GroupShape, price_of
from autopart.records.known_clusters import EFA_HOP, NIC_100G, PRESETS
from autopart.records.network import Network

LEAST_BYTES = 16 << 20
NAMES: dict[str, CollectiveName] = {
    "all_reduce": "all_reduce",
    "all_gather": "all_gather",
    "reduce_scatter": "reduce_scatter",
    "alltoall": "all_to_all",
}
FITTED = (
    "AWS p5.48xlarge", "A100 SXM node", "Dell H200, 8x BF3 400G", "DGX H100", "Azure ND A100 v4",
    "Azure NDm A100 v4",
)  # fmt: skip
"""The systems that the constants are fitted on."""
CONSTANTS = ("ramp", "fold", "tree_efficiency", "peer", "all_to_all_efficiency")
"""The fields that are fitted; all others are NCCL's or a vendor's."""
STEPS = (0.5, 0.7, 0.85, 0.93, 1.07, 1.15, 1.4, 2.0)

_OCI: dict[str, Any] = {"rails": 16, "rail_bandwidth": NIC_100G}
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "AWS p5.48xlarge": ("p5", {}),
    "A100 SXM node": ("dgx-a100", {}),
    "Azure ND A100 v4": ("dgx-a100", {}),
    "Azure NDm A100 v4": ("dgx-a100", {}),
    "DGX A100": ("dgx-a100", {}),
    "AWS p4de.24xlarge": ("p4d", {}),
    "OCI BM.GPU4.8": ("dgx-a100", _OCI),
    "OCI BM.GPU4.8/B4.8": ("dgx-a100", _OCI),
    "OCI BM.GPU.B4.8 (VF)": ("dgx-a100", _OCI),
    "2x A100, 4x 200G": ("dgx-a100", {"rails": 4}),
    "2x HGX A100, 4x HDR": ("dgx-a100", {"rails": 4}),
    "A100, 4x 200G": ("dgx-a100", {"rails": 4}),
    "Azure ND H100 v5": ("nd-h100-v5", {}),
    "Azure ND H200 v5": ("nd-h100-v5", {}),
    "DGX H100": ("dgx-h100", {}),
    "2x DGX H100 (busy fabric)": ("dgx-h100", {}),
    "HGX H100, 8x NDR": ("dgx-h100", {}),
    "run:ai example (2 nodes)": ("dgx-h100", {}),
    "CoreWeave H100": ("dgx-h100", {}),
    "H100, 8x 400G RoCE": ("dgx-h100", {}),
    "OCI BM.GPU.H100.8": ("dgx-h100", {}),
    "Dell H200, 8x BF3 400G": ("a3-ultra", {}),
    "AWS p5en (1 node)": ("p5en", {}),
    "AWS p5en.48xlarge": ("p5en", {}),
    "GCP a3-megagpu-8g": ("a3-mega", {}),
    # Times are derived from SimAI's ratios, whose nominal rates these are.
    "Alibaba (SimAI nic_ratio x 388 GB/s)": (
        "dgx-h100", {"ring_bandwidth": 400e9, "rail_bandwidth": 46.5e9},
    ),
    "Vultr HGX B200": ("dgx-b200", {}),
    "AWS p6-b200": ("dgx-b200", {"hop": EFA_HOP}),
    "CoreWeave GB200 NVL72": ("gb200-nvl72", {}),
    "GB200, 2 trays (8 GPUs)": ("gb200-nvl72", {}),
    "OCI BM.GPU.GB200-v3.4, 32 trays in 2 racks": ("gb200-nvl72", {"rails": 128}),
    "GB300 NVL72": ("gb200-nvl72", {"rail_bandwidth": 97e9}),
    "OCI B300 (8x 800G)": ("b300", {}),
    "OCI BM.GPU3.8": ("dgx-1v", {}),
    "DGX-2 V100, NICs used = GPUs per node": ("dgx-2", {}),
}  # fmt: skip
"""For each measured system its preset, and the figures in which it differs."""


class Row(NamedTuple):
    """One measurement, with the network of its system."""

    system: str
    gpu: str
    collective: CollectiveName
    group: GroupShape
    num_bytes: float
    seconds: float
    network: dict[str, Any]
    gpus_per_node: int


def rows_of(path: Path) -> Iterator[Row]:
    """The measurements that the formulas are held against."""
    with path.open(newline="", encoding="utf-8") as file:
        for line in csv.DictReader(file):
            system, collective = line["system"], NAMES.get(line["collective"])
            if collective is None or float(line["bytes"]) < LEAST_BYTES or system not in SYSTEMS:
                continue
            name, changed = SYSTEMS[system]
            preset, ranks, nodes = PRESETS[name], int(line["ranks"]), int(line["nodes"])
            network = {
                field: own
                for field in Network.__struct_fields__
                if field not in CONSTANTS
                for own in [changed.get(field, getattr(preset.network, field))]
            }
            room = max(preset.gpus_per_node, ranks // nodes)
            if name == "gb200-nvl72" and nodes > 1:
                room = int(line["gpus_per_node"])
            if name == "dgx-2":
                # As many adapters were used as GPUs.
                room = network["rails"] = ranks // nodes
            yield Row(
                system, line["gpu"], collective, GroupShape(ranks, nodes, ranks // nodes),
                float(line["bytes"]), float(line["time_us"]) * 1e-6, network, room,
            )  # fmt: skip


def ratio(row: Row, constants: dict[str, float]) -> float:
    """Predicted over measured seconds."""
    fields: dict[str, Any] = row.network | constants
    network = Network(**fields)
    fabric = Fabric(network, row.gpus_per_node, row.group.nodes)
    return price_of(fabric, row.collective, row.group).seconds(row.num_bytes) / row.seconds


def fitted(rows: Sequence[Row], constants: dict[str, float]) -> dict[str, float]:
    """The constants after coordinate descent: one is changed at a time, while the mean falls."""

    def objective(own: dict[str, float]) -> float:
        return statistics.mean(abs(math.log(ratio(row, own))) for row in rows)

    best, least, changed = constants, objective(constants), True
    while changed:
        changed = False
        for name in CONSTANTS:
            for step in STEPS:
                tried = best | {name: best[name] * step}
                if max(tried["fold"], tried["tree_efficiency"], tried["all_to_all_efficiency"]) > 1:
                    continue
                value = objective(tried)
                if value < least * (1 - 1e-6):
                    best, least, changed = tried, value, True
    return best


def line_of(name: str, errors: Sequence[float]) -> str:
    """One line of the table: rows, and median, mean and signed median in percent."""
    sizes = sorted(abs(error) for error in errors)
    return (
        f"| {name} | {len(sizes)} | {100 * statistics.median(sizes):.1f} "
        f"| {100 * statistics.mean(sizes):.1f} | {100 * statistics.median(errors):+.1f} |"
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="nccl_measured.csv")
    parser.add_argument("--fit", action="store_true", help="fit the constants again")
    given = parser.parse_args()
    rows = list(rows_of(given.data))
    plain = PRESETS["dgx-h100"].network
    constants = {name: float(getattr(plain, name)) for name in CONSTANTS}
    if given.fit:
        constants = fitted([row for row in rows if row.system in FITTED], constants)
        print(", ".join(f"{name} {own:.3g}" for name, own in constants.items()))
    print("| rows | number | median of the error, % | mean, % | signed median, % |")
    print("|---|---|---|---|---|")
    by: dict[str, list[float]] = {}
    for row in rows:
        error = ratio(row, constants) - 1
        held = row.system not in FITTED
        nodes = "one node" if row.group.nodes == 1 else "several nodes"
        for name in ("all", f"{row.collective}, {nodes}", "held out" if held else "fitted on"):
            by.setdefault(name, []).append(error)
        if held and row.gpu in ("B200", "GB200", "GB300", "B300", "V100"):
            by.setdefault("held out: other generations", []).append(error)
        sign = "" if held else " (fitted on)"
        by.setdefault(f"{row.system}{sign}: {row.collective}, {nodes}", []).append(error)
    for name in sorted(by, key=lambda own: (":" in own and "held" not in own, own)):
        print(line_of(name, by[name]))


if __name__ == "__main__":
    main()
