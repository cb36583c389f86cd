//! Replays a recorded routing.

use super::{RouterError, RouterLoss, Routing};

/// Returns the routing of one source's tokens from recorded ids, `[token][k]`, -1 for none, and their
/// recorded weights. Without weights, all choices of a token weigh the same and add up to 1.
///
/// # Errors
/// Fails if an id is not an expert, if a weight is not finite, or if shapes do not fit.
pub fn replay_routing(
    ids: &[i32],
    weights: Option<&[f32]>,
    top_k: usize,
    experts: usize,
) -> Result<Routing, RouterError> {
    if top_k == 0 || !ids.len().is_multiple_of(top_k) {
        return Err(RouterError::Shape { given: ids.len(), width: top_k });
    }
    if let Some(position) = ids.iter().position(|&id| id < -1 || id >= 0 && id as usize >= experts) {
        return Err(RouterError::Id { position, id: ids[position], experts });
    }
    let weights = match weights {
        Some(given) if given.len() != ids.len() => {
            return Err(RouterError::Shape { given: given.len(), width: ids.len() });
        }
        Some(given) => {
            if let Some(at) = given.iter().position(|w| !w.is_finite()) {
                return Err(RouterError::NotFinite { token: at / top_k });
            }
            ids.iter().zip(given).map(|(&id, &weight)| if id < 0 { 0.0 } else { weight }).collect()
        }
        None => ids
            .chunks_exact(top_k)
            .flat_map(|token| {
                let made = token.iter().filter(|&&id| id >= 0).count();
                token.iter().map(move |&id| if id < 0 { 0.0 } else { 1.0 / made as f32 })
            })
            .collect(),
    };
    Ok(Routing { top_k, ids: ids.to_vec(), weights, dropped: 0, loss: RouterLoss::default() })
}
