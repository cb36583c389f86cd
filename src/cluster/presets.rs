//! Named links. docs/network.md states the source of each number, and the error of its predictions against
//! published measurements.

use super::LinkParameters;

/// Named link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkPreset {
    /// The name that selects it.
    pub name: &'static str,
    /// Parameters of the link.
    pub link: LinkParameters,
    /// Source of the parameters.
    pub source: &'static str,
}

const fn link_preset(name: &'static str, alpha_us: f64, gb_s: f64, source: &'static str) -> LinkPreset {
    LinkPreset { name, link: LinkParameters { alpha_us, message_us: 0.0, gb_s, node_gb_s: None }, source }
}

/// Links known by name: first those inside a node, then those between nodes. Rates are per GPU and direction,
/// as all-to-all kernels reach them.
pub const PRESETS: [LinkPreset; 15] = [
    link_preset(
        "nvlink3",
        37.0,
        201.0,
        "A100, 300 GB/s nominal, at the share that nvlink4 reaches; not fitted",
    ),
    link_preset("nvlink4", 37.0, 302.0, "H100, H200, 450 GB/s nominal; UCCL-EP on H200, EP8 dispatch"),
    link_preset("nvlink4-h800", 37.0, 139.0, "H800, 200 GB/s nominal; DeepEP normal kernels, EP8 dispatch"),
    link_preset("nvlink4-h800-ll", 37.0, 166.0, "the same; DeepEP low-latency kernels, EP8 dispatch"),
    link_preset("nvlink5", 37.0, 608.0, "B200, 900 GB/s nominal; DeepEP V2 with 24 SMs, EP8 dispatch"),
    link_preset(
        "pcie4",
        37.0,
        24.0,
        "L40S, 31.5 GB/s nominal with 16 lanes, less packet headers and flow control; not fitted",
    ),
    link_preset("xgmi", 37.0, 242.0, "MI300X; UCCL-EP, EP8 dispatch"),
    link_preset("ib-hdr", 37.0, 23.4, "200 Gb/s, at the share that ib-ndr reaches; not fitted"),
    link_preset("ib-ndr", 37.0, 46.8, "400 Gb/s; DeepEP low-latency dispatch at EP16 and EP256"),
    link_preset("ib-xdr", 37.0, 93.6, "800 Gb/s, at the share that ib-ndr reaches; not fitted"),
    link_preset("roce-400", 37.0, 37.4, "400 Gb/s, Thor 2; UCCL-EP on MI300X, EP32 dispatch"),
    LinkPreset {
        name: "efa-v1",
        link: LinkParameters { alpha_us: 139.0, message_us: 0.0, gb_s: 12.5, node_gb_s: Some(43.6) },
        source: "p4d, 400 Gb/s for 8 GPUs, at the share that efa-v3 reaches; not fitted",
    },
    link_preset(
        "efa-v2",
        139.0,
        43.6,
        "p5, 3200 Gb/s for 8 GPUs, at the share that efa-v3 reaches; not fitted",
    ),
    link_preset(
        "efa-v3",
        139.0,
        43.6,
        "p5en, 3200 Gb/s for 8 GPUs; UCCL-EP, EP32 normal and EP16 low-latency dispatch",
    ),
    link_preset("efa-v4", 139.0, 43.6, "p6-b200, 3200 Gb/s for 8 GPUs, as efa-v3; checked, not fitted"),
];

/// Named machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SystemPreset {
    /// The name that selects it.
    pub name: &'static str,
    /// Name of the link inside a node, one of [`PRESETS`].
    pub node: &'static str,
    /// Name of the link between nodes, one of [`PRESETS`].
    pub cross: &'static str,
}

/// Returns the system whose links are those of machines with a GPU. Returns `None` for a GPU that is not
/// known.
pub(super) fn system_of_gpu(gpu: &str) -> Option<&'static str> {
    Some(match gpu {
        "a100" => "p4d",
        "h100" | "h200" => "h100",
        "h800" | "h20" => "h800",
        "b200" | "b300" => "b200",
        "mi300x" | "mi355x" => "mi300x",
        "gb200" | "gb300" => "gb200",
        "l40s" => "l40s",
        _ => return None,
    })
}

/// Machines known by name.
pub const SYSTEMS: [SystemPreset; 10] = [
    SystemPreset { name: "h800", node: "nvlink4-h800", cross: "ib-ndr" },
    SystemPreset { name: "h800-ll", node: "nvlink4-h800-ll", cross: "ib-ndr" },
    SystemPreset { name: "h100", node: "nvlink4", cross: "ib-ndr" },
    SystemPreset { name: "b200", node: "nvlink5", cross: "ib-ndr" },
    // All 72 GPUs of a rack share the NVLinks, so that trays are no border.
    SystemPreset { name: "gb200", node: "nvlink5", cross: "ib-xdr" },
    // A GPU reaches its network card over PCIe too, so that a faster card gains nothing.
    SystemPreset { name: "l40s", node: "pcie4", cross: "ib-hdr" },
    SystemPreset { name: "mi300x", node: "xgmi", cross: "ib-ndr" },
    SystemPreset { name: "p4d", node: "nvlink3", cross: "efa-v1" },
    SystemPreset { name: "p5en", node: "nvlink4", cross: "efa-v3" },
    SystemPreset { name: "p6-b200", node: "nvlink5", cross: "efa-v4" },
];
