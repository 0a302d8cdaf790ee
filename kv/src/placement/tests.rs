//! Orders, loads and pairs.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

const LEAST: Orders<'static> = Orders { prefill: Order::Least, decode: Order::Least };

fn ranks(costs: &[u64]) -> Vec<Candidate> {
    let candidate = |(rank, cost): (u16, &u64)| Candidate {
        pod: 0,
        rank: DpRank(rank),
        identity: u64::from(rank),
        ready: true,
        cost: *cost,
        requests: u32::try_from(*cost).unwrap(),
    };
    (0u16..).zip(costs).map(candidate).collect()
}

fn choose(
    pairing: Pairing,
    orders: &Orders<'_>,
    sides: (&[Candidate], &[Candidate]),
    draw: Draw,
) -> Option<(usize, usize)> {
    let pair = Placer::default().choose(pairing, orders, sides.0, sides.1, &Wish::default(), draw);
    pair.map(|pair| (pair.prefill, pair.decode))
}

fn least(pairing: Pairing, prefill: &[Candidate], decode: &[Candidate], turn: usize) -> Option<(usize, usize)> {
    choose(pairing, &LEAST, (prefill, decode), Draw { turn, random: 0 })
}

#[test]
fn the_same_rank_is_chosen_by_both_sides_load() {
    let (prefill, decode) = (ranks(&[0, 1, 2]), ranks(&[9, 2, 0]));
    assert_eq!(least(Pairing::Same, &prefill, &decode, 0), Some((2, 2)), "0+9, 1+2, 2+0");
    assert_eq!(least(Pairing::Any, &prefill, &decode, 0), Some((0, 2)));
}

#[test]
fn equals_take_turns() {
    let (prefill, decode) = (ranks(&[0, 0, 0]), ranks(&[0, 0, 0]));
    let chosen: Vec<_> = (0..4).filter_map(|turn| least(Pairing::Same, &prefill, &decode, turn)).collect();
    assert_eq!(chosen, [(0, 0), (1, 1), (2, 2), (0, 0)]);
}

#[test]
fn the_pods_behind_a_rank_take_turns_too() {
    let prefill = ranks(&[0, 0]);
    let mut decode = [ranks(&[0, 0]), ranks(&[0, 0])].concat();
    decode[2..].iter_mut().for_each(|candidate| candidate.pod = 1);
    for order in [Order::Least, Order::InTurn] {
        let orders = Orders { prefill: order, decode: order };
        let pair = |turn| choose(Pairing::Same, &orders, (&prefill, &decode), Draw { turn, random: 0 });
        let chosen: BTreeSet<_> = (0..8).filter_map(pair).collect();
        assert_eq!(chosen.into_iter().collect::<Vec<_>>(), [(0, 0), (0, 2), (1, 1), (1, 3)], "{order:?}");
    }
}

#[test]
fn a_rank_that_is_not_ready_on_one_side_takes_its_partner_out() {
    let (prefill, mut decode) = (ranks(&[0, 5]), ranks(&[0, 5]));
    decode[0].ready = false;
    assert_eq!(least(Pairing::Same, &prefill, &decode, 0), Some((1, 1)));
    assert_eq!(least(Pairing::Any, &prefill, &decode, 0), Some((0, 1)));
    decode[1].ready = false;
    assert_eq!(least(Pairing::Same, &prefill, &decode, 0), None);
    assert_eq!(least(Pairing::Any, &[], &decode, 3), None);
}

#[test]
fn wishes_and_past_failures_narrow_the_choice() {
    let (prefill, decode) = (ranks(&[0, 1]), ranks(&[0, 1]));
    let wish = |wish: Wish<'_>, pairing| {
        let pair = Placer::default().choose(pairing, &LEAST, &prefill, &decode, &wish, Draw::default());
        pair.map(|pair| (pair.prefill, pair.decode))
    };
    let rank = Some(DpRank(1));
    assert_eq!(wish(Wish { decode_rank: rank, ..Wish::default() }, Pairing::Same), Some((1, 1)));
    assert_eq!(wish(Wish { decode_rank: rank, ..Wish::default() }, Pairing::Any), Some((0, 1)));
    let failed = [(0, DpRank(0))];
    assert_eq!(wish(Wish { not_prefill: &failed, ..Wish::default() }, Pairing::Same), Some((1, 1)));
    assert_eq!(wish(Wish { not_decode: &failed, ..Wish::default() }, Pairing::Any), Some((0, 1)));
    let done = Wish { prefill_target: Some((0, DpRank(0))), not_decode: &failed, ..Wish::default() };
    assert_eq!(wish(done, Pairing::Any), Some((0, 1)));
    assert_eq!(wish(done, Pairing::Same), None);
}

/// How often each of four ranks is chosen for prefill in `turns` choices; the second is not ready.
fn counts(order: Order<'_>, costs: &[u64; 4], turns: usize) -> [usize; 4] {
    let (mut prefill, decode) = (ranks(costs), ranks(&[0]));
    prefill[1].ready = false;
    let orders = Orders { prefill: order, decode: Order::Least };
    let mut counts = [0; 4];
    for turn in 0..turns {
        let random = u64::try_from(turn).unwrap().wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let pair = choose(Pairing::Any, &orders, (&prefill, &decode), Draw { turn, random }).unwrap();
        counts[pair.0] += 1;
    }
    counts
}

#[test]
fn in_turn_is_even_also_beside_a_rank_that_is_out() {
    assert_eq!(counts(Order::InTurn, &[9, 0, 0, 0], 300), [100, 0, 100, 100]);
}

#[test]
fn random_is_about_even_and_blind_to_load() {
    let counts = counts(Order::Random, &[9, 0, 0, 0], 3000);
    assert_eq!(counts[1], 0);
    assert!(counts.iter().enumerate().all(|(at, count)| at == 1 || (850..1150).contains(count)), "{counts:?}");
}

#[test]
fn of_two_random_ones_the_cheaper_is_taken() {
    let counts = counts(Order::PowerOfTwo, &[9, 0, 5, 0], 3000);
    assert_eq!((counts[0], counts[1]), (0, 0), "there is always a cheaper one: {counts:?}");
    assert!((850..1150).contains(&counts[2]), "a third of the draws do not hold the cheapest: {counts:?}");
}

#[test]
fn hashing_moves_only_the_keys_of_the_rank_that_left() {
    let (all, decode) = (ranks(&[0; 8]), ranks(&[0]));
    let at = |candidates: &[Candidate], key| {
        let orders = Orders { prefill: Order::Hash(key), decode: Order::Least };
        let pair = choose(Pairing::Any, &orders, (candidates, &decode), Draw { turn: 5, random: key }).unwrap();
        candidates[pair.0].rank
    };
    let mut without = all.clone();
    without[3].ready = false;
    let mut reordered = all.clone();
    reordered.reverse();
    let mut seen = [0; 8];
    for key in (0..4000).map(|n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
        let home = at(&all, key);
        seen[usize::from(home.0)] += 1;
        assert_eq!(at(&reordered, key), home);
        let moved = at(&without, key);
        assert!(if home == DpRank(3) { moved != home } else { moved == home });
    }
    assert!(seen.iter().all(|count| (380..620).contains(count)), "{seen:?}");
}

#[test]
fn who_holds_the_prompt_gets_it_until_it_has_too_much_to_do() {
    let (mut prefill, decode) = (ranks(&[0, 3, 3]), ranks(&[0, 0, 0]));
    let held = |by: &[((usize, DpRank), u32)], prefill: &[Candidate]| {
        let held = Held { by, least: 2, slack_requests: 4, slack_percent: 150 };
        let orders = Orders { prefill: Order::Held(held), decode: Order::Least };
        choose(Pairing::Same, &orders, (prefill, &decode), Draw::default()).unwrap().0
    };
    let both = [((0, DpRank(1)), 5), ((0, DpRank(2)), 7)];
    assert_eq!(held(&both, &prefill), 2);
    assert_eq!(held(&[((0, DpRank(1)), 7), ((0, DpRank(2)), 7)], &prefill), 1, "equals: the first with the least cost");
    assert_eq!(held(&[((0, DpRank(1)), 1)], &prefill), 0, "too little to matter");
    assert_eq!(held(&[((9, DpRank(1)), 7)], &prefill), 0, "of another pod");
    prefill[2].ready = false;
    assert_eq!(held(&both, &prefill), 1);
    prefill[1].requests = 5;
    assert_eq!(held(&both, &prefill), 0, "5 requests are more than 0 + 4");
    prefill[0].requests = 4;
    assert_eq!(held(&both, &prefill), 1);
}

proptest! {
    #[test]
    fn a_choice_is_always_ready_and_paired_and_there_is_one_if_any(
        sides in (candidates(), candidates()), turn in any::<usize>(), random in any::<u64>(), same in any::<bool>(),
        orders in (0_usize..6, 0_usize..6)
    ) {
        let (prefill, decode) = sides;
        let by = [((0, DpRank(1)), 3), ((1, DpRank(2)), 5)];
        let order = |n| match n {
            0 => Order::Least,
            1 => Order::InTurn,
            2 => Order::Random,
            3 => Order::PowerOfTwo,
            4 => Order::Hash(random),
            _ => Order::Held(Held { by: &by, least: 1, slack_requests: 1, slack_percent: 110 }),
        };
        let orders = Orders { prefill: order(orders.0), decode: order(orders.1) };
        let pairing = if same { Pairing::Same } else { Pairing::Any };
        let fits = |p: &Candidate, d: &Candidate| p.ready && d.ready && (!same || p.rank == d.rank);
        let possible = prefill.iter().any(|p| decode.iter().any(|d| fits(p, d)));
        match choose(pairing, &orders, (&prefill, &decode), Draw { turn, random }) {
            Some((p, d)) => prop_assert!(fits(&prefill[p], &decode[d])),
            None => prop_assert!(!possible),
        }
    }
}

fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
    let candidate = (0usize..3, 0u16..8, any::<bool>(), 0u64..4).prop_map(|(pod, rank, ready, cost)| Candidate {
        pod,
        rank: DpRank(rank),
        identity: u64::from(rank),
        ready,
        cost,
        requests: 0,
    });
    prop::collection::vec(candidate, 0..12)
}
