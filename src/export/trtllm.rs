//! TensorRT-LLM: the YAML of `moe_config.load_balancer`. Its reader refuses unknown keys. Layers have their
//! real ids.

#[cfg(feature = "yaml")]
pub(super) use reading::read;

use super::moe_rows;
use crate::plan::Plan;

pub(super) fn write(plan: &Plan) -> String {
    let mut text = format!("num_slots: {}\nlayer_updates_per_iter: 0\n", plan.cluster.slots());
    text += "initial_global_assignments:\n";
    for (layer, slots) in moe_rows(plan) {
        let slots: Vec<String> = slots.iter().map(u32::to_string).collect();
        text += &format!("  {layer}: [{}]\n", slots.join(", "));
    }
    text
}

/// Reader of the dialect, which needs a YAML library.
#[cfg(feature = "yaml")]
mod reading {
    use crate::export::{Dialect, ExportError, ImportedPlan, placements_from_rows, value_error};
    use serde::Deserialize;
    use serde::de::{Deserializer, Error, MapAccess, Visitor};
    use std::collections::BTreeMap;
    use std::fmt;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct LoadBalancer {
        num_slots: usize,
        #[serde(default, rename = "layer_updates_per_iter")]
        _layer_updates_per_iter: u64,
        initial_global_assignments: LayerSlots,
    }

    /// Slots by layer, each layer once. Keys may be quoted, as TensorRT-LLM's reader accepts them.
    struct LayerSlots(BTreeMap<u32, Vec<u32>>);

    impl<'de> Deserialize<'de> for LayerSlots {
        fn deserialize<D: Deserializer<'de>>(reader: D) -> Result<Self, D::Error> {
            struct Pairs;
            impl<'de> Visitor<'de> for Pairs {
                type Value = LayerSlots;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("layers with their lists of experts")
                }

                fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LayerSlots, A::Error> {
                    let mut layers = BTreeMap::new();
                    while let Some(key) = map.next_key::<String>()? {
                        let layer = key.trim().parse::<u32>();
                        let layer =
                            layer.map_err(|_| A::Error::custom(format!("{key:?}: expected a layer id")))?;
                        if layers.insert(layer, map.next_value::<Vec<u32>>()?).is_some() {
                            return Err(A::Error::custom(format!("layer {layer} is repeated")));
                        }
                    }
                    Ok(LayerSlots(layers))
                }
            }
            reader.deserialize_map(Pairs)
        }
    }

    pub(in crate::export) fn read(text: &str, ranks: usize) -> Result<ImportedPlan, ExportError> {
        let file: LoadBalancer = serde_saphyr::from_str(text).map_err(|error| {
            // Later lines of the message quote the file. The library's advice names settings that this
            // program does not offer.
            let message = error.to_string();
            let line = message.lines().next().unwrap_or_default().trim_start_matches("error: ");
            ExportError::Yaml(line.split(", set DuplicateKeyPolicy").next().unwrap_or_default().to_owned())
        })?;
        let rows: Vec<(u32, Vec<u32>)> = file.initial_global_assignments.0.into_iter().collect();
        if rows.is_empty() {
            return Err(value_error("initial_global_assignments", "no layer"));
        }
        if let Some((layer, row)) = rows.iter().find(|(_, row)| row.len() != file.num_slots) {
            let reason = format!("{} slots where num_slots says {}", row.len(), file.num_slots);
            return Err(value_error(format!("initial_global_assignments, {layer}"), reason));
        }
        placements_from_rows(Dialect::TrtLlm, rows, ranks)
    }
}
