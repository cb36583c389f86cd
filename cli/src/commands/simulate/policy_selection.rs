//! Policies of the command line that fit a cluster, and those that do not.
//!
//! In: names of policies, a trace, a cluster. Out: the policies, and an [`UnfitPolicy`] with its reason for
//! each that cannot serve the cluster. One unfit topology therefore does not stop the comparison of all
//! others. Unknown names are errors.

use anyhow::bail;
use evenkeel::cluster::Cluster;
use evenkeel::evaluate::busy_layers;
use evenkeel::forecast::History;
use evenkeel::place::{self, Constrained, PlaceError, PlaceRequest, Policy, TopologyError};
use evenkeel::trace::Trace;
use serde_json::{Value, json};

/// A policy that does not fit the shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnfitPolicy {
    policy: String,
    reason: String,
}

/// Policies that fit, and those that do not.
type SelectedPolicies = (Vec<Box<dyn Policy>>, Vec<UnfitPolicy>);

/// Finds the policies by name. With `speeds`, each is followed by its variant for these speeds.
pub(super) fn select_policies(
    names: &[String],
    groups: usize,
    trace: &Trace,
    cluster: &Cluster,
    speeds: Option<&[u32]>,
) -> anyhow::Result<SelectedPolicies> {
    let (mut policies, mut unfit): (Vec<Box<dyn Policy>>, _) = (Vec::new(), Vec::new());
    for name in names.iter().map(|name| name.trim()) {
        let find = || place::policy(name, groups, cluster);
        let found = find().and_then(|policy| {
            check_fit(policy.as_ref(), name, trace, cluster)?;
            Ok(policy)
        });
        match found {
            Ok(policy) => {
                policies.push(policy);
                if let Some(speeds) = speeds {
                    policies.push(Box::new(Constrained::new(find()?).speeds(speeds.to_vec())));
                }
            }
            Err(error) if is_shape_error(&error) => {
                unfit.push(UnfitPolicy { policy: name.to_owned(), reason: error.to_string() });
            }
            Err(error) => bail!(error),
        }
    }
    Ok((policies, unfit))
}

/// Returns whether another cluster would serve the policy.
fn is_shape_error(error: &PlaceError) -> bool {
    match error {
        PlaceError::Topology(error) => {
            !matches!(error, TopologyError::Unknown(_) | TopologyError::File { .. })
        }
        error => matches!(error, PlaceError::Shape { .. }),
    }
}

/// Places one batch of one layer, if that is quick, to find whether the policy fits. The result depends on
/// the shape alone.
fn check_fit(policy: &dyn Policy, name: &str, trace: &Trace, cluster: &Cluster) -> Result<(), PlaceError> {
    let quick = name.starts_with("lplb") || name.starts_with("eplb");
    if let (true, Ok(layers)) = (quick, busy_layers(trace))
        && let Some(&layer) = layers.first()
    {
        policy.place(&PlaceRequest::new(&History::from_steps(trace, layer, 0..1), cluster))?;
    }
    Ok(())
}

impl UnfitPolicy {
    /// Returns its row of a table: the name, and no figures.
    pub(super) fn table_row(&self, columns: usize) -> Vec<String> {
        let mut cells = vec![self.policy.clone(), "does not fit".into()];
        cells.resize(columns, "-".into());
        cells
    }

    /// Returns one sentence with the policy and the reason.
    pub(super) fn to_sentence(&self) -> String {
        format!("{} does not fit: {}", self.policy, self.reason)
    }

    /// Returns one sentence for one of several shapes.
    pub(super) fn to_cluster_sentence(&self, shape: &str) -> String {
        format!("{} on {shape} left out: {}", self.policy, self.reason)
    }

    /// Returns its row as a document: the reason, and no figures.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "policy": self.policy,
            "split": null,
            "imbalance": null,
            "excess": null,
            "lower_bound": null,
            "at_bound": null,
            "moves": null,
            "plan_ms": null,
            "split_us": null,
            "does_not_fit": self.reason,
        })
    }
}
