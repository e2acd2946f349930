//! Tables: one line a case.

use super::*;
use crate::controller::state::WantedCopies;

/// Servers, taken zones, wanted, at least, chosen.
type TargetCase = (&'static str, &'static [&'static str], usize, usize, &'static [u64]);
/// Servers, replicas, whether one is allowed, (W, A).
type MembersCase = (&'static str, usize, bool, Option<(usize, usize)>);
/// Copies, excess, free target, deleted, finished, missing, unavailable.
type AssessCase = (&'static str, Excess, FreeTarget, &'static [u64], &'static [u64], usize, bool);

/// Servers as `id:zone:load`, with `!` behind for avoided ones.
fn candidates(text: &str) -> Vec<Candidate<'_>> {
    text.split_whitespace()
        .map(|item| {
            let (item, avoided) = item.strip_suffix('!').map_or((item, false), |item| (item, true));
            let mut fields = item.splitn(3, ':');
            let (id, zone, load) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
            let id = ChunkServerId(id.parse().unwrap());
            Candidate { id, zone, load_bytes: load.parse().unwrap(), avoided }
        })
        .collect()
}

fn ids(servers: &[ChunkServerId]) -> Vec<u64> {
    servers.iter().map(|id| id.0).collect()
}

#[test]
fn targets_are_spread_over_zones_then_the_least_used() {
    #[rustfmt::skip]
    let cases: &[TargetCase] = &[
        ("1::5 2::3 3::9 4::1",        &[],         3, 2, &[4, 2, 1]),
        ("1::0 2::0 3::0",             &[],         3, 2, &[1, 2, 3]),
        ("1:a:0 2:a:1 3:a:2 4:b:99",   &[],         3, 2, &[1, 4, 2]),
        ("1:a:0 2:b:7 3:c:8 4:a:1",    &[],         3, 2, &[1, 2, 3]),
        ("1:a:0 2:b:7",                &["a", "c"], 1, 1, &[2]),
        ("1:a:0 2:b:7",                &["a", "b", "b"], 1, 1, &[1]),
        // Avoided ones only fill up to what is needed.
        ("1::0! 2::5 3::9",            &[],         3, 2, &[2, 3]),
        ("1::0! 2::5",                 &[],         3, 2, &[2, 1]),
        ("1::0! 2::0! 3::0!",          &[],         3, 2, &[1, 2]),
        ("1::0",                       &[],         3, 2, &[1]),
        ("",                           &[],         3, 2, &[]),
    ];
    for (servers, taken, wanted, at_least, expected) in cases {
        let chosen = choose_targets(&candidates(servers), taken, *wanted, *at_least);
        assert_eq!(ids(&chosen), *expected, "{servers:?} {taken:?}");
    }
}

#[test]
fn a_segment_has_three_members_or_two_and_one_only_where_allowed() {
    #[rustfmt::skip]
    let cases: &[MembersCase] = &[
        ("1::0 2::0 3::0 4::0", 3, false, Some((3, 2))),
        ("1::0 2::0 3::0",      3, false, Some((3, 2))),
        ("1::0 2::0",           3, false, Some((2, 2))),
        ("1::0 2::0 3::0!",     3, false, Some((2, 2))),
        ("1::0 2::0! 3::0!",    3, false, Some((2, 2))),
        ("1::0",                3, false, None),
        ("1::0",                3, true,  Some((1, 1))),
        ("1::0 2::0",           1, false, Some((1, 1))),
        ("1::0 2::0 3::0",      2, false, Some((2, 2))),
        ("1::0 2::0 3::0",      5, false, Some((3, 2))),
        ("",                    3, true,  None),
    ];
    for (servers, replicas, single, expected) in cases {
        let members = choose_members(&candidates(servers), *replicas, *single);
        assert_eq!(members.map(|(m, a)| (m.len(), a)), *expected, "{servers:?} of {replicas}");
    }
}

/// Copies as `id` + standing letter + zone: `1c`, `2p`, `3b@zone`.
fn copies(text: &str) -> Vec<CopyView<'_>> {
    text.split_whitespace()
        .map(|item| {
            let (item, zone) = item.split_once('@').unwrap_or((item, ""));
            let (id, letter) = item.split_at(item.len() - 1);
            let standing = match letter {
                "c" => Standing::Confirmed,
                "p" => Standing::Presumed,
                "u" => Standing::Unfinished,
                "o" => Standing::Overdue,
                "d" => Standing::Damaged,
                "b" => Standing::Unfit,
                "l" => Standing::Leaving,
                "x" => Standing::Lost,
                other => panic!("no standing {other}"),
            };
            let id: u64 = id.parse().unwrap();
            CopyView { server: ChunkServerId(id), zone, load_bytes: id, standing }
        })
        .collect()
}

const THREE: Want = Want::Copies(WantedCopies { bytes: 1, crc: 0, replicas: 3 });

#[test]
fn repair_makes_what_is_missing_and_deletes_only_what_is_covered() {
    use Excess::{Delete, Keep};
    use FreeTarget::{Exists, None as NoTarget};
    #[rustfmt::skip]
    let cases: &[AssessCase] = &[
        // copies        surplus target    delete    finish  missing unavailable
        ("1c 2c 3c",        Delete, Exists,   &[],      &[],    0, false),
        ("1c 2c",           Delete, Exists,   &[],      &[],    1, false),
        ("1c 2c 3x",        Delete, Exists,   &[],      &[],    1, false),
        ("1c 2c 3l",        Delete, Exists,   &[],      &[],    1, false),
        ("1c 2p 3p",        Delete, Exists,   &[],      &[],    0, false),
        ("1c 2c 3u",        Delete, Exists,   &[],      &[3],   0, false),
        ("1u 2u",           Delete, Exists,   &[],      &[1, 2], 1, false),
        // One that is overdue is told for ever, and does not count.
        ("1c 2c 3o",        Delete, Exists,   &[],      &[3],   1, false),
        ("1o 2o 3o",        Delete, Exists,   &[],      &[1, 2, 3], 3, true),
        ("",                Delete, Exists,   &[],      &[],    3, true),
        ("1x 2x 3x",        Delete, Exists,   &[],      &[],    3, true),
        ("1d",              Delete, NoTarget, &[],      &[],    3, true),
        // A damaged copy is replaced in place; it goes only where there are enough without it.
        ("1c 2c 3d",        Delete, Exists,   &[],      &[],    1, false),
        ("1c 2c 3d",        Delete, NoTarget, &[],      &[],    1, false),
        ("1c 2c 3c 4d",     Delete, Exists,   &[4],     &[],    0, false),
        ("1c 2c 3c 4d",     Keep,   Exists,   &[],      &[],    0, false),
        // An unfit one cannot be replaced: it makes room where it has to.
        ("1c 2c 3b",        Delete, Exists,   &[],      &[],    1, false),
        ("1c 2c 3b",        Delete, NoTarget, &[3],     &[],    1, false),
        ("1c 2c 3c 4b",     Delete, Exists,   &[4],     &[],    0, false),
        ("1c 2b 3b",        Delete, NoTarget, &[2, 3],  &[],    2, false),
        ("1c 2b 3b",        Keep,   NoTarget, &[],      &[],    2, false),
        // Never on presumption.
        ("1p 2p 3b",        Delete, NoTarget, &[],      &[],    1, false),
        ("1p 2p 3p 4b",     Delete, NoTarget, &[],      &[],    0, false),
        ("1p 2p 3p 4d",     Delete, NoTarget, &[],      &[],    0, false),
        ("1u 2u 3b",        Delete, NoTarget, &[],      &[1, 2], 1, false),
        // Surplus: the fullest server, only beyond three confirmed ones, only when stable.
        ("1c 2c 3c 4c",     Delete, Exists,   &[4],     &[],    0, false),
        ("1c 2c 3c 4c",     Keep,   Exists,   &[],      &[],    0, false),
        ("1c 2c 3c 4p",     Delete, Exists,   &[],      &[],    0, false),
        ("1c 2c 3p 4p",     Delete, Exists,   &[],      &[],    0, false),
        ("1c 2c 3c 4l",     Delete, Exists,   &[],      &[],    0, false),
        ("1c 2c 3c 4c 5c",  Delete, Exists,   &[5, 4],  &[],    0, false),
        ("1c@a 2c@a 3c@b 4c@c", Delete, Exists, &[2],   &[],    0, false),
    ];
    for (text, surplus, target, delete, finish, missing, unavailable) in cases {
        let found = assess(&THREE, &copies(text), *surplus, *target);
        assert_eq!(ids(&found.delete), *delete, "delete of {text:?}");
        assert_eq!(ids(&found.finish), *finish, "finish of {text:?}");
        assert_eq!((found.missing, found.unavailable), (*missing, *unavailable), "{text:?}");
    }
}

#[test]
fn what_is_held_or_foreign_is_left_alone() {
    for want in [Want::Hold, Want::Foreign] {
        let found = assess(&want, &copies("1c 2d 3u 4b 5c 6c"), Excess::Delete, FreeTarget::None);
        assert_eq!(found, Assessment::default(), "{want:?}");
    }
}

#[test]
fn garbage_goes_wherever_it_is_known_to_be() {
    let found = assess(&Want::Garbage, &copies("1c 2p 3u 4b 5l 6x 7d"), Excess::Keep, FreeTarget::Exists);
    assert_eq!(ids(&found.delete), [1, 3, 4, 7]);
    assert_eq!((found.missing, found.unavailable), (0, false));
}

#[test]
fn no_assessment_leaves_fewer_confirmed_copies_than_wanted() {
    // Every combination of standings of up to five copies.
    let letters = ["c", "p", "u", "d", "b", "l", "x"];
    for mut code in 0..letters.len().pow(5) {
        let mut text = String::new();
        for id in 1..=5 {
            text += &format!("{id}{} ", letters[code % letters.len()]);
            code /= letters.len();
        }
        let views = copies(&text);
        for target in [FreeTarget::Exists, FreeTarget::None] {
            let found = assess(&THREE, &views, Excess::Delete, target);
            let standing = |id: &ChunkServerId| views.iter().find(|v| v.server == *id).expect("known").standing;
            let confirmed = views.iter().filter(|v| v.standing == Standing::Confirmed).count();
            let good_deleted = found.delete.iter().filter(|id| standing(id) == Standing::Confirmed).count();
            assert!(good_deleted == 0 || confirmed - good_deleted >= 3, "{text}: {found:?}");
            assert!(found.delete.is_empty() || confirmed - good_deleted >= 1, "{text}: {found:?}");
        }
    }
}
