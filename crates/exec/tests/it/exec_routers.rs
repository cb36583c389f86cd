//! Compares every router with a plain restatement of its paper, one token at a time, including ties.

#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests; what is 0 is exactly 0")]

use evenkeel_exec::random::RandomStream;
use evenkeel_exec::router::{Capacity, Overflow, RouteArgs, Router, Routing, SoftMixtures, replay_routing};
use proptest::prelude::*;

/// Generates logits with few distinct values, so that ties are common.
fn logits(width: usize) -> impl Strategy<Value = Vec<f32>> {
    let value = prop_oneof![(-3i8..4).prop_map(f32::from), -4f32..4.0];
    (0usize..12).prop_flat_map(move |tokens| prop::collection::vec(value.clone(), tokens * width))
}

fn args(experts: usize, top_k: usize) -> RouteArgs {
    RouteArgs { experts, top_k, capacity: None, random: RandomStream::new(5, &[1]) }
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|x| x.exp()).sum();
    row.iter().map(|x| x.exp() / sum).collect()
}

/// Returns all experts, best first; at ties the lowest index first.
fn ranking(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    order
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().map(|&x| f64::from(x)).collect()
}

fn assert_token(routing: &Routing, token: usize, expected: &[(i32, f64)]) {
    for (choice, &(id, weight)) in expected.iter().enumerate() {
        let at = token * routing.top_k + choice;
        assert_eq!(routing.ids[at], id, "token {token}, choice {choice}");
        let off = (f64::from(routing.weights[at]) - weight).abs();
        assert!(off <= 1e-6 * weight.abs().max(1.0), "token {token}: {} for {weight}", routing.weights[at]);
    }
}

fn pick(order: &[usize], weights: impl Fn(usize) -> f64) -> Vec<(i32, f64)> {
    order.iter().map(|&e| (e as i32, weights(e))).collect()
}

const E: usize = 8;

proptest! {
    #[test]
    fn switch_takes_the_most_probable(x in logits(E)) {
        let routing = Router::Switch.route_tokens(&x, &args(E, 1)).unwrap();
        for (t, row) in x.chunks(E).enumerate() {
            let p = softmax(&wide(row));
            assert_token(&routing, t, &pick(&ranking(&wide(row))[..1], |e| p[e]));
        }
    }

    #[test]
    fn softmax_with_and_without_renormalisation(x in logits(E), k in 1usize..=E) {
        for renormalise in [false, true] {
            let routing = Router::Softmax { renormalise }.route_tokens(&x, &args(E, k)).unwrap();
            for (t, row) in x.chunks(E).enumerate() {
                let (p, order) = (softmax(&wide(row)), ranking(&wide(row)));
                let sum: f64 = if renormalise { order[..k].iter().map(|&e| p[e]).sum() } else { 1.0 };
                assert_token(&routing, t, &pick(&order[..k], |e| p[e] / sum));
            }
        }
    }

    #[test]
    fn gpt_oss_takes_a_softmax_over_the_chosen(x in logits(E), k in 1usize..=E) {
        let routing = Router::TopkSoftmax.route_tokens(&x, &args(E, k)).unwrap();
        for (t, row) in x.chunks(E).enumerate() {
            let order = ranking(&wide(row));
            let of: Vec<f64> = order[..k].iter().map(|&e| f64::from(row[e])).collect();
            let p = softmax(&of);
            let expected: Vec<(i32, f64)> = order[..k].iter().zip(p).map(|(&e, p)| (e as i32, p)).collect();
            assert_token(&routing, t, &expected);
        }
    }

    #[test]
    fn gshard_visits_the_second_by_its_weight(x in logits(E)) {
        let routing = Router::Gshard.route_tokens(&x, &args(E, 2)).unwrap();
        let mut random = RandomStream::new(5, &[1]);
        for (t, row) in x.chunks(E).enumerate() {
            let (p, order) = (softmax(&wide(row)), ranking(&wide(row)));
            let sum = p[order[0]] + p[order[1]];
            let second = p[order[1]] / sum;
            let visits = 2.0 * second > random.uniform();
            let second = if visits { (order[1] as i32, second) } else { (-1, 0.0) };
            assert_token(&routing, t, &[(order[0] as i32, p[order[0]] / sum), second]);
        }
    }

    #[test]
    fn noisy_adds_softplus_noise(x in logits(2 * E), k in 1usize..=E) {
        let routing = Router::Noisy.route_tokens(&x, &args(E, k)).unwrap();
        let mut random = RandomStream::new(5, &[1]);
        for (t, row) in x.chunks(2 * E).enumerate() {
            let h: Vec<f64> = (0..E)
                .map(|e| f64::from(row[e]) + random.normal() * f64::from(row[E + e]).exp().ln_1p())
                .collect();
            let order = ranking(&h);
            let p = softmax(&order[..k].iter().map(|&e| h[e]).collect::<Vec<_>>());
            let expected: Vec<(i32, f64)> = order[..k].iter().zip(p).map(|(&e, p)| (e as i32, p)).collect();
            assert_token(&routing, t, &expected);
        }
    }

    #[test]
    fn sigmoid_is_limited_to_the_best_groups(
        x in logits(E), bias in prop::collection::vec(-1i8..2, E), k in 1usize..=4, groups in 0usize..3,
    ) {
        let (groups, top_groups) = [(1, 1), (4, 2), (8, 5)][groups];
        let bias: Vec<f64> = bias.into_iter().map(|b| f64::from(b) / 4.0).collect();
        let router = Router::Sigmoid { groups, top_groups, scale: 2.5, bias: bias.clone() };
        let routing = router.route_tokens(&x, &args(E, k)).unwrap();
        for (t, row) in x.chunks(E).enumerate() {
            let s: Vec<f64> = row.iter().map(|&x| 1.0 / (1.0 + (-f64::from(x)).exp())).collect();
            let biased: Vec<f64> = s.iter().zip(&bias).map(|(s, b)| s + b).collect();
            let of_groups: Vec<f64> = biased
                .chunks(E / groups)
                .map(|g| ranking(g).iter().take(2).map(|&e| g[e]).sum())
                .collect();
            let best = &ranking(&of_groups)[..top_groups];
            let order: Vec<usize> =
                ranking(&biased).into_iter().filter(|e| best.contains(&(e / (E / groups)))).take(k).collect();
            let sum: f64 = order.iter().map(|&e| s[e]).sum();
            assert_token(&routing, t, &pick(&order, |e| 2.5 * s[e] / sum));
        }
    }

    #[test]
    fn capacity_holds_and_first_choices_come_first(x in logits(E), k in 1usize..=4, factor in 0f64..2.0) {
        let free = Router::TopkSoftmax.route_tokens(&x, &args(E, k)).unwrap();
        let (tokens, room) = (x.len() / E, (factor * (x.len() / E * k) as f64 / E as f64).ceil() as usize);
        for overflow in [Overflow::Drop, Overflow::Next] {
            let limited = RouteArgs { capacity: Some(Capacity { factor, overflow }), ..args(E, k) };
            let routing = Router::TopkSoftmax.route_tokens(&x, &limited).unwrap();
            let mut used = [0usize; E];
            let (mut ids, mut dropped) = (free.ids.clone(), 0);
            for choice in 0..k {
                for t in 0..tokens {
                    let row = wide(&x[t * E..][..E]);
                    let at = t * k + choice;
                    let mine: Vec<i32> = ids[t * k..][..k].to_vec();
                    let wanted = ids[at] as usize;
                    let other = ranking(&row).into_iter().find(|&e| used[e] < room && !mine.contains(&(e as i32)));
                    let taken = if used[wanted] < room { Some(wanted) } else if overflow == Overflow::Next { other } else { None };
                    ids[at] = taken.map_or(-1, |e| e as i32);
                    match taken { Some(e) => used[e] += 1, None => dropped += 1 }
                }
            }
            prop_assert_eq!(&routing.ids, &ids);
            prop_assert_eq!(routing.dropped, dropped);
            for (t, ids) in ids.chunks(k).enumerate() {
                let visited: Vec<f64> = ids.iter().filter(|&&e| e >= 0).map(|&e| f64::from(x[t * E + e as usize])).collect();
                let p = softmax(&visited);
                for (choice, &id) in ids.iter().enumerate() {
                    let weight = routing.weights[t * k + choice];
                    if id < 0 { prop_assert_eq!(weight, 0.0); continue }
                    let expected = match overflow {
                        Overflow::Drop => f64::from(free.weights[t * k + choice]),
                        Overflow::Next => p[ids[..choice].iter().filter(|&&e| e >= 0).count()],
                    };
                    prop_assert!((f64::from(weight) - expected).abs() < 1e-6);
                }
            }
        }
    }

    #[test]
    fn losses_are_those_of_switch_and_st_moe(x in logits(E)) {
        prop_assume!(!x.is_empty());
        let loss = Router::Switch.route_tokens(&x, &args(E, 1)).unwrap().loss;
        let tokens = (x.len() / E) as f64;
        let (mut f, mut p, mut z) = ([0f64; E], [0f64; E], 0f64);
        for row in x.chunks(E) {
            let row = wide(row);
            f[ranking(&row)[0]] += 1.0 / tokens;
            softmax(&row).iter().enumerate().for_each(|(e, q)| p[e] += q / tokens);
            z += row.iter().map(|x| x.exp()).sum::<f64>().ln().powi(2) / tokens;
        }
        let balance = E as f64 * f.iter().zip(&p).map(|(f, p)| f * p).sum::<f64>();
        prop_assert!((loss.balance - balance).abs() < 1e-9 && (loss.z - z).abs() < 1e-9);
    }

    #[test]
    fn soft_mixes_by_two_softmaxes(x in logits(6), width in 1usize..4) {
        let soft = SoftMixtures::new(&x, 6).unwrap();
        let tokens = x.len() / 6;
        let values: Vec<f32> = (0..tokens * width).map(|i| i as f32 * 0.25 - 1.0).collect();
        let mixed = soft.mix_tokens(&values, width);
        let ids = Router::Soft { slots: 2 }.route_tokens(&x, &args(3, 1)).unwrap().ids;
        prop_assert_eq!(ids, if tokens == 0 { vec![] } else { vec![0, 0, 1, 1, 2, 2] });
        for s in 0..if tokens == 0 { 0 } else { 6 } {
            let d = softmax(&(0..tokens).map(|t| f64::from(x[t * 6 + s])).collect::<Vec<_>>());
            for c in 0..width {
                let expected: f64 = (0..tokens).map(|t| d[t] * f64::from(values[t * width + c])).sum();
                prop_assert!((f64::from(mixed[s * width + c]) - expected).abs() < 1e-5);
            }
        }
        let results: Vec<f32> = (0..6 * width).map(|i| (i as f32).sin()).collect();
        let back = soft.unmix_results(&results, width);
        prop_assert_eq!(back.len(), tokens * width);
        for t in 0..tokens {
            let c = softmax(&wide(&x[t * 6..][..6]));
            for w in 0..width {
                let expected: f64 = (0..6).map(|s| c[s] * f64::from(results[s * width + w])).sum();
                prop_assert!((f64::from(back[t * width + w]) - expected).abs() < 1e-5);
            }
        }
    }
}

#[test]
fn replay_keeps_ids_and_shares_weight() {
    let routing = replay_routing(&[3, 1, -1, 2, -1, -1], None, 2, 4).unwrap();
    assert_eq!(routing.weights, [0.5, 0.5, 0.0, 1.0, 0.0, 0.0]);
    let known = replay_routing(&[3, -1], Some(&[0.7, 0.3]), 2, 4).unwrap();
    assert_eq!(known.weights, [0.7, 0.0]);
    assert!(replay_routing(&[4], None, 1, 4).is_err() && replay_routing(&[-2], None, 1, 4).is_err());
    assert!(replay_routing(&[0, 1, 2], None, 2, 4).is_err());
}

#[test]
fn what_cannot_be_routed_is_refused() {
    let bad = |router: Router, x: &[f32], e, k| router.route_tokens(x, &args(e, k)).unwrap_err().to_string();
    assert!(bad(Router::TopkSoftmax, &[f32::NAN, 0.0], 2, 1).contains("token 0"));
    assert!(bad(Router::TopkSoftmax, &[0.0; 3], 2, 1).contains("3 logits"));
    assert!(bad(Router::TopkSoftmax, &[0.0; 2], 2, 3).contains("top-3 of 2"));
    let groups = Router::Sigmoid { groups: 3, top_groups: 1, scale: 1.0, bias: vec![] };
    assert!(bad(groups, &[0.0; 8], 8, 1).contains("3 groups"));
    assert!("best".parse::<Router>().unwrap_err().to_string().contains("gshard"));
}
