//! What a container gets that was given GPUs. Pure.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateRequest, ContainerAllocateResponse, Mount,
};
use crate::devices::{Devices, Fault};

/// Why a container does not get its GPUs.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum AllocateError {
    /// No such GPU.
    #[error("no GPU {id:?} was ever seen on this node, which has {}; create the pod anew", known.join(", "))]
    Unknown {
        /// The UUID asked for.
        id: String,
        /// Those that exist.
        known: Vec<String>,
    },
    /// It is broken.
    #[error("the GPU {id} is unhealthy: {fault}; create the pod anew, so that it gets another one")]
    Unhealthy {
        /// Its UUID.
        id: String,
        /// What is wrong.
        fault: Fault,
    },
}

/// Answers a kubelet's request: the GPUs' UUIDs in `NVIDIA_VISIBLE_DEVICES`, and `mounts`.
///
/// # Errors
/// [`AllocateError`] for a GPU that is unknown or unhealthy; then no container gets anything.
pub fn allocate(
    request: &AllocateRequest,
    devices: &Devices,
    mounts: &[Mount],
) -> Result<AllocateResponse, AllocateError> {
    let containers = request.container_requests.iter().map(|container| one(container, devices, mounts));
    Ok(AllocateResponse { container_responses: containers.collect::<Result<_, _>>()? })
}

fn one(
    request: &ContainerAllocateRequest,
    devices: &Devices,
    mounts: &[Mount],
) -> Result<ContainerAllocateResponse, AllocateError> {
    for id in &request.devices_ids {
        match devices.get(id) {
            Some(None) => {}
            Some(Some(fault)) => return Err(AllocateError::Unhealthy { id: id.clone(), fault: *fault }),
            None => {
                let known = devices.keys().cloned().collect();
                return Err(AllocateError::Unknown { id: id.clone(), known });
            }
        }
    }
    let envs = BTreeMap::from([("NVIDIA_VISIBLE_DEVICES".to_owned(), request.devices_ids.join(","))]);
    Ok(ContainerAllocateResponse { envs, mounts: mounts.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(containers: &[&[&str]]) -> AllocateRequest {
        let container = |ids: &&[&str]| ContainerAllocateRequest {
            devices_ids: ids.iter().map(|&id| id.to_owned()).collect(),
        };
        AllocateRequest { container_requests: containers.iter().map(container).collect() }
    }

    fn devices() -> Devices {
        let fault = |id: &str, fault| (id.to_owned(), fault);
        [
            fault("GPU-a", None),
            fault("GPU-b", None),
            fault("GPU-c", Some(Fault::Lost)),
            fault("GPU-d", Some(Fault::Xid(79))),
        ]
        .into()
    }

    #[test]
    fn every_container_gets_its_own_gpus_and_all_mounts() {
        let mount = Mount { container_path: "/x".to_owned(), host_path: "/y".to_owned(), read_only: true };
        let answer =
            allocate(&request(&[&["GPU-b", "GPU-a"], &[]]), &devices(), std::slice::from_ref(&mount))
                .unwrap();
        let visible: Vec<_> = answer
            .container_responses
            .iter()
            .map(|container| container.envs["NVIDIA_VISIBLE_DEVICES"].as_str())
            .collect();
        assert_eq!(visible, ["GPU-b,GPU-a", ""]);
        assert_eq!(answer.container_responses[0].mounts, [mount]);
    }

    #[test]
    fn gpus_that_can_not_be_had_are_refused_in_a_sentence() {
        let cases: [(&[&[&str]], &str); 3] = [
            (
                &[&["GPU-a"], &["GPU-z"]],
                "no GPU \"GPU-z\" was ever seen on this node, which has GPU-a, GPU-b, GPU-c, GPU-d",
            ),
            (&[&["GPU-c"]], "GPU-c is unhealthy: the driver no longer answers for it"),
            (&[&["GPU-a", "GPU-d"]], "GPU-d is unhealthy: it raised XID 79"),
        ];
        for (containers, words) in cases {
            let refusal = allocate(&request(containers), &devices(), &[]).unwrap_err().to_string();
            assert!(refusal.contains(words), "{refusal:?} does not say {words:?}");
        }
    }
}
