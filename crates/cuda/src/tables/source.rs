//! The kernels' text, as it is handed to NVRTC: one file each, its includes put in.

/// A compiled unit: its name, and the kernels it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unit {
    /// The file in `kernels/`, without its ending.
    pub name: &'static str,
    /// The names of its kernels.
    pub kernels: &'static [&'static str],
}

/// The units of the executor.
pub const EXEC_UNITS: [Unit; 4] = [
    Unit { name: "route", kernels: &["ek_norm", "ek_logits", "ek_choose", "ek_add_up", "ek_room"] },
    Unit {
        name: "dispatch",
        kernels: &[
            "ek_first_copy",
            "ek_bases",
            "ek_place",
            "ek_number_rows",
            "ek_pack",
            "ek_accept",
            "ek_answer",
            "ek_combine",
        ],
    },
    Unit {
        name: "ffn",
        kernels: &[
            "ek_pair_16",
            "ek_pair_64",
            "ek_pair_128",
            "ek_single_16",
            "ek_single_64",
            "ek_single_128",
        ],
    },
    Unit { name: "dense", kernels: &["ek_permute", "ek_activate", "ek_weigh"] },
];

/// The units of the split.
pub const UNITS: [Unit; 4] = [
    Unit { name: "count", kernels: &["ek_count_i32", "ek_count_i64", "ek_count_before"] },
    Unit { name: "solve", kernels: &["ek_solve"] },
    Unit { name: "share", kernels: &["ek_share"] },
    Unit { name: "map", kernels: &["ek_map_i32", "ek_map_i64"] },
];

macro_rules! files {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../../kernels/", $name)))),*] };
}

/// Every file of the kernels, by name.
const FILES: [(&str, &str); 18] = files!(
    "team.h",
    "problem.h",
    "fill.h",
    "forest.h",
    "search.h",
    "block.h",
    "tokens.h",
    "count.cu",
    "solve.cu",
    "share.cu",
    "map.cu",
    "bf16.h",
    "mma.h",
    "activation.h",
    "route.cu",
    "dispatch.cu",
    "ffn.cu",
    "dense.cu"
);

impl Unit {
    /// The text of this unit with all its includes put in, each once.
    pub fn text(self) -> String {
        let mut text = String::new();
        append(&format!("{}.cu", self.name), &mut Vec::new(), &mut text);
        text
    }
}

fn append(name: &str, seen: &mut Vec<String>, text: &mut String) {
    if seen.iter().any(|known| known == name) {
        return;
    }
    seen.push(name.to_owned());
    let own = FILES.iter().find(|(file, _)| *file == name).map_or("", |(_, text)| *text);
    for line in own.lines() {
        let include = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match include {
            // The host's shim is never seen by a device compiler.
            Some(file) if !file.starts_with("host/") => append(file, seen, text),
            Some(_) => {}
            None if line == "#pragma once" => {}
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}
