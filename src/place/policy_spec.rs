//! Names of policies, and the policies that they select.
//!
//! In: a name such as `eplb` or `recourse:cvar=0.9`. Out: a [`PolicySpec`], which makes the policy for a
//! model and a cluster. Policies of other crates have no name here: every planning call takes `&dyn Policy`.

use super::{Contiguous, Eplb, PlaceError, Policy, Recourse, TieBreak};
#[cfg(feature = "baselines")]
use super::{LpRound, Lplb, Milp, Topology};
use crate::cluster::Cluster;
use std::fmt;
use std::str::FromStr;

/// Policy with its options, as its name states them.
///
/// ```
/// use evenkeel::place::PolicySpec;
///
/// let spec: PolicySpec = "recourse:cvar=0.9:seed=3".parse()?;
/// assert!(matches!(&spec, PolicySpec::Recourse(_)));
/// assert_eq!(spec.to_string(), "recourse:cvar=0.9:seed=3");
/// # Ok::<(), evenkeel::place::PlaceError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PolicySpec {
    /// `contiguous`: [`Contiguous`].
    Contiguous,
    /// `eplb` and `eplb:trtllm`: [`Eplb`].
    Eplb(TieBreak),
    /// `recourse`, with options behind colons: [`Recourse`].
    Recourse(Recourse),
    /// `lp-round`, a baseline.
    LpRound,
    /// `milp`, a baseline.
    Milp,
    /// `lplb:TOPOLOGY`, a baseline, with the name of the topology.
    Lplb(String),
}

impl PolicySpec {
    /// Makes the policy.
    ///
    /// `groups` is the number of expert groups of the model (EPLB's `num_groups`), 1 if the router has no
    /// groups.
    ///
    /// # Errors
    /// Fails if the topology is unknown or does not fit the cluster, or if this build lacks the baseline.
    #[cfg_attr(
        not(feature = "baselines"),
        expect(unused_variables, reason = "topologies are of a number of ranks")
    )]
    pub fn build(&self, groups: usize, cluster: &Cluster) -> Result<Box<dyn Policy>, PlaceError> {
        Ok(match self {
            Self::Contiguous => Box::new(Contiguous),
            Self::Eplb(ties) => Box::new(Eplb::new(groups, *ties)),
            Self::Recourse(policy) => Box::new(policy.clone()),
            #[cfg(feature = "baselines")]
            Self::LpRound => Box::new(LpRound),
            #[cfg(feature = "baselines")]
            Self::Milp => Box::new(Milp),
            #[cfg(feature = "baselines")]
            Self::Lplb(topology) => {
                Box::new(Lplb::new(Topology::from_name(topology, cluster.ranks())?, groups))
            }
            #[cfg(not(feature = "baselines"))]
            Self::LpRound | Self::Milp | Self::Lplb(_) => return Err(PlaceError::NotBuilt(self.to_string())),
        })
    }
}

impl FromStr for PolicySpec {
    type Err = PlaceError;

    fn from_str(name: &str) -> Result<Self, PlaceError> {
        let unknown = || PlaceError::UnknownPolicy(name.to_owned());
        Ok(match name.split_once(':') {
            None => match name {
                "contiguous" => Self::Contiguous,
                "eplb" => Self::Eplb(TieBreak::LowestExpert),
                "lp-round" => Self::LpRound,
                "milp" => Self::Milp,
                "recourse" => Self::Recourse(Recourse::default()),
                _ => return Err(unknown()),
            },
            Some(("eplb", "trtllm")) => Self::Eplb(TieBreak::FewestReplicas),
            Some(("lplb", topology)) => Self::Lplb(topology.to_owned()),
            Some(("recourse", options)) => {
                Self::Recourse(Recourse::from_options(options).ok_or_else(unknown)?)
            }
            Some(_) => return Err(unknown()),
        })
    }
}

impl fmt::Display for PolicySpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Contiguous => f.pad("contiguous"),
            Self::Eplb(TieBreak::LowestExpert) => f.pad("eplb"),
            Self::Eplb(TieBreak::FewestReplicas) => f.pad("eplb:trtllm"),
            Self::Recourse(policy) => f.pad(&policy.to_string()),
            Self::LpRound => f.pad("lp-round"),
            Self::Milp => f.pad("milp"),
            Self::Lplb(topology) => f.pad(&format!("lplb:{topology}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for name in
            ["contiguous", "eplb", "eplb:trtllm", "recourse", "recourse:even:worst", "lp-round", "milp"]
        {
            let spec: PolicySpec = name.parse().unwrap();
            assert_eq!(spec.to_string(), name);
        }
        assert_eq!("lplb:torus:8x4".parse::<PolicySpec>().unwrap().to_string(), "lplb:torus:8x4");
        for name in ["", "eplb:", "eplb:sglang", "lplb", "milp:", "recourse:", "recourse:best", "Contiguous"]
        {
            let message = name.parse::<PolicySpec>().unwrap_err().to_string();
            assert!(message.starts_with(&format!("unknown policy `{name}`: expected")), "{message}");
        }
    }

    #[test]
    fn a_built_policy_has_the_name_of_its_spec() {
        let cluster = Cluster::new(8, 1, 16, 8).unwrap();
        let mut names = vec!["contiguous", "eplb", "eplb:trtllm", "recourse:worst:seed=3"];
        if cfg!(feature = "baselines") {
            names.extend(["lp-round", "milp", "lplb:cube"]);
        }
        for name in names {
            assert_eq!(name.parse::<PolicySpec>().unwrap().build(1, &cluster).unwrap().name(), name);
        }
        let topology = "lplb:moebius".parse::<PolicySpec>().unwrap();
        assert!(topology.build(1, &cluster).is_err());
    }
}
