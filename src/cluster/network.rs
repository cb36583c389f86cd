//! Model of the network between ranks: the links inside a node and between nodes.
//!
//! In: a name (`h800`, `nvlink4+ib-ndr`), optionally followed by `key=value`, or a file. Out: a [`Network`].
//!
//! An exchange takes `alpha + message * messages + bytes / rate` on a link. This is the model of Hockney,
//! *The communication challenge for MPP*, 1994, with a part that is paid once. Both directions run at the
//! same time, and so do both links. The model serves predictions only. Ranks need not agree on its results,
//! so its numbers are floating point.

use super::presets::{LinkPreset, PRESETS, SYSTEMS, system_of_gpu};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// Format name in a network file.
pub const NETWORK_FORMAT: &str = "evenkeel.network/1";

/// Link parameters, as one rank sees them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkParameters {
    /// Fixed microseconds of an exchange of any size: launch, first byte, and agreement that all data has
    /// arrived.
    pub alpha_us: f64,
    /// Microseconds per destination rank, in addition to the time of the bytes.
    #[serde(default)]
    pub message_us: f64,
    /// Measured rate of one rank in each direction, in 10^9 bytes per second. The data sheet states a higher
    /// one.
    pub gb_s: f64,
    /// Rate of all ranks of a node together, in 10^9 bytes per second, if it is less than the sum of their
    /// rates.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_gb_s: Option<f64>,
}

/// Links between the ranks of a group.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Name of the network in tables.
    pub name: String,
    /// Link between ranks of one node.
    pub node: LinkParameters,
    /// Link between ranks of different nodes.
    pub cross: LinkParameters,
}

/// Error of a network's name, settings or file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The name is no known link or system.
    #[error(
        "unknown network \"{0}\": expected a system ({systems}), NODE+CROSS of {links}, or a file of \
         `evenkeel calibrate network`",
        systems = SYSTEMS.map(|system| system.name).join(", "),
        links = PRESETS.map(|preset| preset.name).join(", ")
    )]
    Unknown(String),
    /// The setting is not `key=value` with a key of a link.
    #[error(
        "\"{0}\": expected KEY=NUMBER with one of node.alpha_us, node.message_us, node.gb_s, node.node_gb_s and the same of cross"
    )]
    Key(String),
    /// A number is out of range for a link.
    #[error("{key} is {value}: expected {expected}")]
    Number {
        /// Key of the number.
        key: String,
        /// Value found.
        value: String,
        /// Range expected.
        expected: &'static str,
    },
    /// The file is no network.
    #[error("{0}; expected format {NETWORK_FORMAT} with name, node and cross, each with alpha_us and gb_s")]
    File(String),
}

/// Network file. The additional fields that calibration writes are ignored.
#[derive(Deserialize)]
struct NetworkFile {
    format: String,
    name: String,
    node: LinkParameters,
    cross: LinkParameters,
}

impl LinkParameters {
    /// Returns the microseconds in which a rank sends `messages` messages and carries `bytes` bytes in its
    /// busier direction. Returns 0 if there is nothing to send.
    pub fn exchange_us(&self, messages: f64, bytes: f64) -> f64 {
        if messages <= 0.0 && bytes <= 0.0 {
            return 0.0;
        }
        self.alpha_us + self.message_us * messages + bytes / (self.gb_s * 1e3)
    }

    /// Returns the microseconds that a node needs for the bytes of all its ranks in its busier direction.
    /// Returns 0 if only the ranks limit the rate.
    pub fn node_us(&self, bytes: f64) -> f64 {
        match self.node_gb_s {
            Some(rate) if bytes > 0.0 => self.alpha_us + bytes / (rate * 1e3),
            _ => 0.0,
        }
    }

    fn set_parameter(&mut self, key: &str, number: f64) -> bool {
        match key {
            "alpha_us" => self.alpha_us = number,
            "message_us" => self.message_us = number,
            "gb_s" => self.gb_s = number,
            "node_gb_s" => self.node_gb_s = Some(number),
            _ => return false,
        }
        true
    }

    fn check(&self, link: &str) -> Result<(), NetworkError> {
        let wrong = |key: &str, number: f64, expected| {
            Err(NetworkError::Number { key: format!("{link}.{key}"), value: number.to_string(), expected })
        };
        for (key, number) in [("alpha_us", self.alpha_us), ("message_us", self.message_us)] {
            if !(0.0..=1e9).contains(&number) {
                return wrong(key, number, "0 to 1e9 microseconds");
            }
        }
        for (key, number) in [("gb_s", Some(self.gb_s)), ("node_gb_s", self.node_gb_s)] {
            if let Some(number) = number.filter(|number| !(1e-6..=1e6).contains(number)) {
                return wrong(key, number, "1e-6 to 1e6 gigabytes per second");
            }
        }
        Ok(())
    }
}

impl Network {
    /// Reads a network from the text of a file.
    ///
    /// # Errors
    /// Fails if the text is no network file, or if a number is out of range. The message names the fault.
    pub fn from_json(text: &str) -> Result<Self, NetworkError> {
        let file: NetworkFile =
            serde_json::from_str(text).map_err(|error| NetworkError::File(error.to_string()))?;
        if file.format != NETWORK_FORMAT {
            return Err(NetworkError::File(format!("format \"{}\"", file.format)));
        }
        Self { name: file.name, node: file.node, cross: file.cross }.check_ranges()
    }

    /// Replaces numbers by those of `KEY=NUMBER,..`.
    ///
    /// # Errors
    /// Fails if a key is unknown or a number is out of range.
    pub fn with_settings(mut self, settings: &str) -> Result<Self, NetworkError> {
        for setting in settings.split(',') {
            let unknown = || NetworkError::Key(setting.to_owned());
            let (key, number) = setting.split_once('=').ok_or_else(unknown)?;
            let (link, field) = key.trim().split_once('.').ok_or_else(unknown)?;
            let number = number.trim().parse().map_err(|_| unknown())?;
            let link = match link {
                "node" => &mut self.node,
                "cross" => &mut self.cross,
                _ => return Err(unknown()),
            };
            if !link.set_parameter(field, number) {
                return Err(unknown());
            }
            self.name = format!("{}, {}", self.name, setting.trim());
        }
        self.check_ranges()
    }

    /// Returns the network of machines with a GPU, by the GPU's name. Returns `None` if it is not known.
    pub fn of_gpu(gpu: &str) -> Option<Self> {
        system_of_gpu(gpu)?.parse().ok()
    }

    fn check_ranges(self) -> Result<Self, NetworkError> {
        self.node.check("node")?;
        self.cross.check("cross")?;
        Ok(self)
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (name, settings) = match text.split_once(',') {
            Some((name, settings)) => (name.trim(), Some(settings)),
            None => (text.trim(), None),
        };
        let unknown = || NetworkError::Unknown(name.to_owned());
        let system = SYSTEMS.into_iter().find(|system| system.name == name);
        let links = system.map(|system| (system.node, system.cross)).or_else(|| name.split_once('+'));
        let (node, cross) = links.ok_or_else(unknown)?;
        let find = |link: &str| PRESETS.into_iter().find(|preset| preset.name == link).ok_or_else(unknown);
        let (node, cross): (LinkPreset, LinkPreset) = (find(node)?, find(cross)?);
        let network = Self { name: name.to_owned(), node: node.link, cross: cross.link };
        match settings {
            Some(settings) => network.with_settings(settings),
            None => Ok(network),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "exact numbers")]
mod tests {
    use super::super::SystemPreset;
    use super::*;
    use crate::gpu::GPUS;

    #[test]
    fn a_link_costs_by_hand() {
        let link = LinkParameters { alpha_us: 10.0, message_us: 0.5, gb_s: 50.0, node_gb_s: Some(100.0) };
        // 10 + 7 * 0.5 + 1 000 000 bytes at 50 000 per microsecond.
        assert!((link.exchange_us(7.0, 1e6) - 33.5).abs() < 1e-9);
        assert!((link.node_us(4e6) - 50.0).abs() < 1e-9);
        assert_eq!((link.exchange_us(0.0, 0.0), link.node_us(0.0)), (0.0, 0.0));
        assert_eq!(LinkParameters { node_gb_s: None, ..link }.node_us(1e9), 0.0);
    }

    #[test]
    fn every_known_gpu_has_a_network() {
        for gpu in GPUS {
            let network = Network::of_gpu(gpu.name).unwrap();
            // A link inside a node is no slower than one between nodes.
            assert!(network.node.gb_s >= network.cross.gb_s, "{gpu}");
        }
        assert_eq!(Network::of_gpu("l40s").unwrap().node.gb_s, 24.0);
        assert!(Network::of_gpu("h900").is_none());
    }

    #[test]
    fn names_pairs_and_settings_are_read() {
        for SystemPreset { name, node, cross } in SYSTEMS {
            let of_name: Network = name.parse().unwrap();
            let of_pair: Network = format!("{node}+{cross}").parse().unwrap();
            assert_eq!((of_name.node, of_name.cross), (of_pair.node, of_pair.cross));
        }
        for node in PRESETS {
            let network: Network = format!("{}+ib-ndr", node.name).parse().unwrap();
            assert_eq!(network.node, node.link);
            assert!(network.check_ranges().is_ok());
        }
        let network: Network = "nvlink4+ib-ndr,cross.gb_s=40, node.alpha_us=3".parse().unwrap();
        assert_eq!((network.cross.gb_s, network.node.alpha_us), (40.0, 3.0));
        assert_eq!(network.to_string(), "nvlink4+ib-ndr, cross.gb_s=40, node.alpha_us=3");
    }

    #[test]
    fn what_is_no_network_is_one_error() {
        let error = |text: &str| text.parse::<Network>().unwrap_err().to_string();
        assert!(error("nvlink9+ib-ndr").contains("nvlink4") && error("nvlink4").contains("h800"));
        assert!(error("h800,cross.speed=3").contains("cross.speed=3"));
        assert!(error("h800,cross.gb_s=fast").contains("KEY=NUMBER"));
        assert!(error("h800,cross.gb_s=0").contains("cross.gb_s is 0"));
        assert!(error("h800,node.alpha_us=-1").contains("node.alpha_us is -1"));
        assert!(error("h800,node.alpha_us=NaN").contains("NaN"));
    }

    #[test]
    fn files_are_read_back_or_refused() {
        let text = r#"{"format":"evenkeel.network/1","name":"here","node":{"alpha_us":2,"gb_s":5},
                       "cross":{"alpha_us":2,"message_us":1.5,"gb_s":1}, "points":[]}"#;
        let network = Network::from_json(text).unwrap();
        assert_eq!(
            (network.name.as_str(), network.node.message_us, network.cross.message_us),
            ("here", 0.0, 1.5)
        );
        let error = |text: &str| Network::from_json(text).unwrap_err().to_string();
        assert!(error("[]").contains("evenkeel.network/1"));
        assert!(error(&text.replace("network/1", "network/7")).contains("network/7"));
        assert!(error(&text.replace("\"gb_s\":5", "\"gb_s\":-5")).contains("node.gb_s is -5"));
        assert!(error(&text.replace("\"gb_s\":5", "\"rate\":5")).contains("rate"));
    }
}
