//! Which GPUs the kubelet is told of, and which of them it may give to pods. Pure.

use std::collections::BTreeMap;
use std::fmt;

/// XIDs that a program causes rather than the GPU: graphics and memory faults, a stopped or preempted channel,
/// a video decoder error, a reset of one context. NVIDIA's plugin ignores them too.
const APPLICATION_XIDS: [u64; 6] = [13, 31, 43, 45, 68, 109];

/// What is wrong with a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The driver no longer answers for it.
    Lost,
    /// It raised this XID, which no program causes.
    Xid(u64),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost => f.write_str("the driver no longer answers for it"),
            Self::Xid(xid) => write!(f, "it raised XID {xid}"),
        }
    }
}

/// Every GPU that was ever seen, by UUID, with what is wrong with it.
pub type Devices = BTreeMap<String, Option<Fault>>;

/// A GPU that answered the driver, and the XIDs it raised since the last look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Its UUID.
    pub uuid: String,
    /// In the order in which they were raised.
    pub xids: Vec<u64>,
}

/// What is known after a look at the driver. A GPU that is gone stays known, as lost; one that is back is
/// healthy. A fatal XID stays with a GPU until it was gone for a while, which is what a reset looks like.
pub fn after_look(known: &Devices, seen: &[Sighting]) -> Devices {
    let mut devices: Devices = known.keys().map(|uuid| (uuid.clone(), Some(Fault::Lost))).collect();
    for sighting in seen {
        let before = known.get(&sighting.uuid).copied().flatten().filter(|fault| *fault != Fault::Lost);
        devices.insert(sighting.uuid.clone(), before.or_else(|| fatal(&sighting.xids)));
    }
    devices
}

fn fatal(xids: &[u64]) -> Option<Fault> {
    xids.iter().find(|xid| !APPLICATION_XIDS.contains(xid)).copied().map(Fault::Xid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_changes_the_health_of_a_gpu() {
        type Known = Option<Option<Fault>>;
        type Seen = Option<&'static [u64]>;
        let cases: [(Known, Seen, Option<Fault>); 11] = [
            (None, Some(&[]), None),
            (None, Some(&[79]), Some(Fault::Xid(79))),
            (Some(None), Some(&[]), None),
            (Some(None), None, Some(Fault::Lost)),
            (Some(None), Some(&[13, 31, 43, 45, 68, 109]), None),
            (Some(None), Some(&[31, 79, 48]), Some(Fault::Xid(79))),
            (Some(Some(Fault::Lost)), None, Some(Fault::Lost)),
            (Some(Some(Fault::Lost)), Some(&[]), None),
            (Some(Some(Fault::Xid(79))), Some(&[]), Some(Fault::Xid(79))),
            (Some(Some(Fault::Xid(79))), Some(&[48]), Some(Fault::Xid(79))),
            (Some(Some(Fault::Xid(79))), None, Some(Fault::Lost)),
        ];
        for (known, seen, expected) in cases {
            let known: Devices = known.into_iter().map(|fault| ("GPU-a".to_owned(), fault)).collect();
            let seen: Vec<_> = seen
                .into_iter()
                .map(|xids| Sighting { uuid: "GPU-a".to_owned(), xids: xids.to_vec() })
                .collect();
            let devices = after_look(&known, &seen);
            assert_eq!(devices, Devices::from([("GPU-a".to_owned(), expected)]), "{known:?} then {seen:?}");
        }
    }

    #[test]
    fn gpus_do_not_mix() {
        let known = Devices::from([("GPU-a".to_owned(), None), ("GPU-b".to_owned(), None)]);
        let seen = [
            Sighting { uuid: "GPU-c".to_owned(), xids: vec![] },
            Sighting { uuid: "GPU-b".to_owned(), xids: vec![79] },
        ];
        let expected = Devices::from([
            ("GPU-a".to_owned(), Some(Fault::Lost)),
            ("GPU-b".to_owned(), Some(Fault::Xid(79))),
            ("GPU-c".to_owned(), None),
        ]);
        assert_eq!(after_look(&known, &seen), expected);
    }
}
