//! The text of the kernels for NVRTC: one file per unit, with its includes inserted.

/// A compilation unit with its name and its kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelUnit {
    /// The file in `kernels/`, without its ending.
    pub name: &'static str,
    /// The names of its kernels.
    pub kernels: &'static [&'static str],
}

/// The units of the executor.
pub const EXEC_UNITS: [KernelUnit; 4] = [
    KernelUnit { name: "route", kernels: &["ek_norm", "ek_logits", "ek_choose", "ek_add_up", "ek_room"] },
    KernelUnit {
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
    KernelUnit {
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
    KernelUnit { name: "dense", kernels: &["ek_permute", "ek_activate", "ek_weigh"] },
];

/// The units of the split.
pub const SPLIT_UNITS: [KernelUnit; 4] = [
    KernelUnit { name: "count", kernels: &["ek_count_i32", "ek_count_i64", "ek_count_before"] },
    KernelUnit { name: "solve", kernels: &["ek_solve"] },
    KernelUnit { name: "share", kernels: &["ek_share"] },
    KernelUnit { name: "map", kernels: &["ek_map_i32", "ek_map_i64"] },
];

macro_rules! files {
    ($($name:literal),*) => { [$(($name, include_str!(concat!("../../kernels/", $name)))),*] };
}

/// Every file of the kernels, by name.
const KERNEL_FILES: [(&str, &str); 18] = files!(
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

impl KernelUnit {
    /// Returns the text of this unit with all includes inserted, each once.
    pub fn source_text(self) -> String {
        let mut text = String::new();
        append_file(&format!("{}.cu", self.name), &mut Vec::new(), &mut text);
        text
    }
}

fn append_file(name: &str, seen: &mut Vec<String>, text: &mut String) {
    if seen.iter().any(|known| known == name) {
        return;
    }
    seen.push(name.to_owned());
    let own = KERNEL_FILES.iter().find(|(file, _)| *file == name).map_or("", |(_, text)| *text);
    for line in own.lines() {
        let include = line.strip_prefix("#include \"").and_then(|rest| rest.strip_suffix('"'));
        match include {
            // The device compiler never sees the host-side simulator.
            Some(file) if !file.starts_with("cuda-sim/") => append_file(file, seen, text),
            Some(_) => {}
            None if line == "#pragma once" => {}
            None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
}
