use proptest::prelude::*;

use super::*;
use crate::facts::Now;

const BEFORE: &str = "2026-01-01T00:00:00Z";
const NOW: &str = "2026-01-02T00:00:00Z";

fn seen(index: u32, uuid: &str) -> GpuReading {
    GpuReading::Seen(Box::new(Seen {
        facts: GpuFacts {
            index,
            product: "NVIDIA H20".to_owned(),
            uuid: uuid.to_owned(),
            pci_bus_id: format!("00000000:{:02X}:00.0", 0x18 + index),
            pci_device_id: 0x2329,
            memory_mib: 97_871,
            ..GpuFacts::default()
        },
        cuda_cores: Some(9984),
        capability: Some((9, 0)),
        link_ends: vec!["00000000:05:00.0".to_owned(); 18],
        bad_memory: false,
        now: Now::default(),
    }))
}

fn facts(gpus: Vec<GpuReading>) -> Facts {
    Facts { driver_version: "550.54.15".to_owned(), cuda_driver: 12_040, gpus }
}

fn refused(state: DriverState) -> Reading {
    Reading::Refused(Refusal { state, message: "why".to_owned() })
}

fn first(gpus: Vec<GpuReading>) -> NodeInventory {
    let reading = Reading::Answered(facts(gpus));
    merge(&NodeInventory::default(), &reading, &Faults::default(), BEFORE)
}

fn uuids(node: &NodeInventory) -> Vec<(u32, &str, GpuHealth)> {
    node.gpus.iter().map(|gpu| (gpu.index, gpu.uuid.as_str(), gpu.health)).collect()
}

#[test]
fn a_first_answer_is_concluded() {
    let node = first(vec![seen(0, "a"), seen(1, "b")]);
    assert_eq!((node.driver, node.since.as_str(), &node.message), (DriverState::Ready, BEFORE, &None));
    assert_eq!(node.driver_version.as_deref(), Some("550.54.15"));
    assert_eq!(node.cuda_version.as_deref(), Some("12.4"));
    let gpu = &node.gpus[1];
    assert_eq!((gpu.multiprocessors, gpu.compute_capability.as_deref()), (Some(78), Some("9.0")));
    assert_eq!((gpu.nvlinks, &gpu.nvlink_peers), (18, &vec![0]));
    assert_eq!(node.device_label(), "2329");
}

/// Whatever the driver says instead of an answer, the GPUs stay and `since` is the time it began to say so.
#[test]
fn a_driver_that_does_not_answer_leaves_the_gpus() {
    let ready = first(vec![seen(0, "a"), seen(1, "b")]);
    for state in [DriverState::Missing, DriverState::NoPermission, DriverState::Hanging, DriverState::Failing]
    {
        let silent = merge(&ready, &refused(state), &Faults::default(), NOW);
        assert_eq!(
            (silent.driver, silent.since.as_str(), silent.message.as_deref()),
            (state, NOW, Some("why"))
        );
        assert_eq!(silent.gpus, ready.gpus);
        assert_eq!(silent.driver_version, ready.driver_version);
        let still = merge(&silent, &refused(state), &Faults::default(), "later");
        assert_eq!(still, silent, "nothing new is nothing to write");
        let again = merge(
            &silent,
            &Reading::Answered(facts(vec![seen(0, "a"), seen(1, "b")])),
            &Faults::default(),
            "later",
        );
        assert_eq!(
            (again.driver, again.since.as_str(), &again.message),
            (DriverState::Ready, "later", &None)
        );
        assert_eq!(again.gpus, ready.gpus);
    }
}

#[test]
fn an_old_driver_says_what_is_needed() {
    let old =
        Facts { cuda_driver: 11_040, driver_version: "470.256.02".to_owned(), ..facts(vec![seen(0, "a")]) };
    let node = merge(&NodeInventory::default(), &Reading::Answered(old), &Faults::default(), NOW);
    assert_eq!(node.driver, DriverState::TooOld);
    assert_eq!(
        node.message.as_deref(),
        Some("driver 470.256.02 runs CUDA 11.4, at least 12.0 is needed; upgrade the NVIDIA driver")
    );
    assert_eq!(node.gpus.len(), 1);
}

#[test]
fn lost_gpus_keep_their_details() {
    let ready = first(vec![seen(0, "a"), seen(1, "b"), seen(2, "c")]);
    let listed = facts(vec![seen(0, "a"), GpuReading::Lost, seen(2, "c")]);
    let node = merge(&ready, &Reading::Answered(listed), &Faults::default(), NOW);
    assert_eq!(node.since, BEFORE);
    assert_eq!(
        uuids(&node),
        [(0, "a", GpuHealth::Healthy), (1, "b", GpuHealth::Lost), (2, "c", GpuHealth::Healthy)]
    );
    assert_eq!(node.gpus[1].memory_mib, 97_871);
    assert_eq!(node.gpus[0].nvlink_peers, [2], "a lost GPU is nobody's peer");

    // A driver that was reloaded lists the others under new indices.
    let renumbered = facts(vec![seen(0, "a"), seen(1, "c")]);
    let node = merge(&node, &Reading::Answered(renumbered.clone()), &Faults::default(), NOW);
    assert_eq!(
        uuids(&node),
        [(0, "a", GpuHealth::Healthy), (1, "c", GpuHealth::Healthy), (2, "b", GpuHealth::Lost)]
    );
    assert_eq!(merge(&node, &Reading::Answered(renumbered), &Faults::default(), NOW), node);

    // A card that took the lost one's place ends its record.
    let replaced = facts(vec![seen(0, "a"), seen(1, "d"), seen(2, "c")]);
    let node = merge(&node, &Reading::Answered(replaced), &Faults::default(), NOW);
    assert_eq!(uuids(&node).iter().map(|gpu| gpu.1).collect::<Vec<_>>(), ["a", "d", "c"]);
}

#[test]
fn a_rebuilt_machine_forgets_the_kind_it_had() {
    let before = first(vec![seen(0, "a"), seen(1, "b"), seen(2, "c")]);
    let now = |gpus| merge(&before, &Reading::Answered(facts(gpus)), &Faults::default(), NOW);
    let mut other = seen(0, "d");
    if let GpuReading::Seen(seen) = &mut other {
        (seen.facts.pci_device_id, seen.facts.product) = (0x26b9, "NVIDIA L40S".to_owned());
    }
    let rebuilt = now(vec![other.clone()]);
    assert_eq!(uuids(&rebuilt), [(0, "d", GpuHealth::Healthy)]);
    assert_eq!(rebuilt.device_label(), "26b9");
    assert_eq!(now(vec![other, seen(1, "a")]).gpus.len(), 3, "one of the kind is left");
    assert_eq!(now(vec![]).gpus.len(), 3, "nothing took their place");
}

#[test]
fn gpus_that_cannot_be_told_apart_are_counted() {
    let both_lost = first(vec![GpuReading::Lost, GpuReading::Lost]);
    let one_listed = Reading::Answered(facts(vec![GpuReading::Lost]));
    let node = merge(&both_lost, &one_listed, &Faults::default(), NOW);
    assert_eq!(uuids(&node), [(0, "", GpuHealth::Lost), (1, "", GpuHealth::Lost)]);
}

#[test]
fn health_is_the_worst_that_is_known() {
    let mut bad_memory = seen(2, "c");
    if let GpuReading::Seen(seen) = &mut bad_memory {
        seen.bad_memory = true;
    }
    let mut faults = Faults::default();
    for xid in APPLICATION_XIDS {
        faults.note(0, GpuError::Xid(xid));
    }
    faults.note(1, GpuError::Xid(48));
    faults.note(1, GpuError::Xid(63));
    faults.note(3, GpuError::DoubleBit);
    faults.note(4, GpuError::Xid(79));
    let gpus = vec![seen(0, "a"), seen(1, "b"), bad_memory, seen(3, "d"), GpuReading::Lost];
    let node = merge(&NodeInventory::default(), &Reading::Answered(facts(gpus)), &faults, NOW);
    let health: Vec<GpuHealth> = node.gpus.iter().map(|gpu| gpu.health).collect();
    assert_eq!(
        health,
        [GpuHealth::Healthy, GpuHealth::Xid(48), GpuHealth::Ecc, GpuHealth::Ecc, GpuHealth::Lost]
    );
}

#[test]
fn a_lost_gpu_that_answers_again_was_reset() {
    let mut faults = Faults::default();
    faults.note(0, GpuError::Xid(48));
    faults.note(1, GpuError::Xid(79));
    let both = facts(vec![seen(0, "a"), seen(1, "b")]);
    let before = merge(
        &first(vec![seen(0, "a"), seen(1, "b")]),
        &Reading::Answered(facts(vec![seen(0, "a"), GpuReading::Lost])),
        &faults,
        NOW,
    );
    let both = Reading::Answered(both);
    faults.follow(&before, &both, &[]);
    let node = merge(&before, &both, &faults, NOW);
    assert_eq!(
        node.gpus.iter().map(|gpu| gpu.health).collect::<Vec<_>>(),
        [GpuHealth::Xid(48), GpuHealth::Healthy]
    );
}

#[test]
fn only_a_driver_that_was_gone_forgets_errors() {
    let before = first(vec![seen(0, "a")]);
    let cases = [
        (DriverState::Missing, GpuHealth::Healthy),
        (DriverState::NoPermission, GpuHealth::Xid(48)),
        (DriverState::Hanging, GpuHealth::Xid(48)),
        (DriverState::Failing, GpuHealth::Xid(48)),
    ];
    for (state, expected) in cases {
        let answer = Reading::Answered(facts(vec![seen(0, "a")]));
        let mut faults = Faults::default();
        faults.follow(&before, &answer, &[(0, GpuError::Xid(48))]);
        faults.follow(&before, &refused(state), &[]);
        faults.follow(&before, &answer, &[]);
        assert_eq!(merge(&before, &answer, &faults, NOW).gpus[0].health, expected, "{state:?}");
    }
}

#[test]
fn an_event_without_a_gpu_belongs_to_the_one_that_was_lost() {
    let before = first(vec![seen(0, "a"), seen(1, "b")]);
    let now = Reading::Answered(facts(vec![seen(0, "a"), GpuReading::Lost]));
    let (known, unknown) =
        (Event { gpu: Some(0), error: GpuError::DoubleBit }, Event { gpu: None, error: GpuError::Xid(79) });
    assert_eq!(
        attribute(&[known, unknown], &before, &now),
        [(Some(0), GpuError::DoubleBit), (Some(1), GpuError::Xid(79))]
    );
    let after = merge(&before, &now, &Faults::default(), NOW);
    let nobodys = [(None, GpuError::Xid(79))];
    assert_eq!(attribute(&[unknown], &after, &now), nobodys, "it was lost before");
    assert_eq!(attribute(&[unknown], &before, &refused(DriverState::Failing)), nobodys);
}

#[test]
fn a_new_agent_takes_over_what_the_node_holds() {
    let stored = first(vec![seen(0, "a"), seen(1, "b")]);
    let silent = merge(&NodeInventory::default(), &refused(DriverState::Hanging), &Faults::default(), NOW);
    let adopted = adopt(&stored, silent);
    assert_eq!((adopted.driver, adopted.since.as_str()), (DriverState::Hanging, NOW));
    assert_eq!(adopted.gpus, stored.gpus);
    assert_eq!(adopted.driver_version, stored.driver_version);

    let reading = Reading::Answered(facts(vec![seen(0, "a")]));
    let adopted = adopt(&stored, merge(&NodeInventory::default(), &reading, &Faults::default(), NOW));
    assert_eq!(adopted.since, BEFORE, "it was ready all the time");
    assert_eq!(uuids(&adopted), [(0, "a", GpuHealth::Healthy), (1, "b", GpuHealth::Lost)]);
}

/// The driver answered before the Node did, and had lost a GPU that only the Node knows.
#[test]
fn a_new_agent_learns_from_the_node_which_gpu_is_lost() {
    let stored = first(vec![seen(0, "a"), seen(1, "b"), seen(2, "c")]);
    let cases = [
        (vec![GpuReading::Lost, seen(1, "b"), seen(2, "c")], ["a", "b", "c"], 0),
        // The driver was reloaded meanwhile and counts anew.
        (vec![seen(0, "b"), seen(1, "a"), GpuReading::Lost], ["b", "a", "c"], 2),
        (vec![seen(0, "c"), seen(1, "b"), GpuReading::Lost], ["c", "b", "a"], 2),
    ];
    for (gpus, expected, lost) in cases {
        let current = first(gpus);
        assert!(current.gpus[lost].is_unidentified());
        let adopted = adopt(&stored, current);
        assert_eq!(adopted.gpus.iter().map(|gpu| gpu.uuid.as_str()).collect::<Vec<_>>(), expected);
        assert_eq!((adopted.gpus[lost].health, adopted.gpus[lost].memory_mib), (GpuHealth::Lost, 97_871));
        assert_eq!(adopted.device_label(), "2329");
    }
}

fn gpu_reading() -> impl Strategy<Value = GpuReading> {
    let seen = ("[a-d]", "(?s).{0,600}", any::<bool>(), proptest::collection::vec("[0-9:]{0,12}", 0..18));
    let seen = seen.prop_map(|(uuid, product, bad_memory, link_ends)| {
        let mig = Some(vec![MigSlices { profile: product.clone(), ..MigSlices::default() }]);
        let facts = GpuFacts { uuid, product, mig, ..GpuFacts::default() };
        GpuReading::Seen(Box::new(Seen { facts, bad_memory, link_ends, ..Seen::default() }))
    });
    prop_oneof![3 => seen, 1 => Just(GpuReading::Lost)]
}

fn reading() -> impl Strategy<Value = Reading> {
    let state = prop_oneof![
        Just(DriverState::Missing),
        Just(DriverState::NoPermission),
        Just(DriverState::Hanging),
        Just(DriverState::Failing)
    ];
    let refused =
        (state, "(?s).{0,700}").prop_map(|(state, message)| Reading::Refused(Refusal { state, message }));
    let answered = (proptest::collection::vec(gpu_reading(), 0..10), "(?s).{0,600}", 0..14_000_i32).prop_map(
        |(gpus, driver_version, cuda_driver)| Reading::Answered(Facts { driver_version, cuda_driver, gpus }),
    );
    prop_oneof![answered, refused]
}

proptest! {
    #[test]
    fn no_history_loses_a_gpu_or_makes_an_inventory_nobody_can_read(
        readings in proptest::collection::vec(reading(), 1..12),
    ) {
        let (mut node, faults) = (NodeInventory::default(), Faults::default());
        for reading in &readings {
            let before = node.clone();
            node = merge(&node, reading, &faults, NOW);
            prop_assert!(node.gpus.len() >= before.gpus.len());
            if let Reading::Answered(Facts { gpus, .. }) = reading {
                prop_assert!(node.gpus.len() >= gpus.len());
            } else {
                prop_assert_eq!(&node.gpus, &before.gpus);
            }
            let indices: BTreeSet<u32> = node.gpus.iter().map(|gpu| gpu.index).collect();
            prop_assert_eq!(indices.len(), node.gpus.len());
            prop_assert_eq!(NodeInventory::parse(&node.render().unwrap()).unwrap(), node.clone());
            prop_assert_eq!(&merge(&node, reading, &faults, NOW), &node, "the same again changes nothing");
        }
    }
}
