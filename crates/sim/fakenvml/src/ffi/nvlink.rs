//! Links between GPUs. Cards built with switches reach one, as soon as another such card is on the machine; others
//! need a bridge.

use std::ffi::c_uint;

use nvml_wrapper_sys::bindings::{self as nvml, nvmlDevice_t, nvmlReturn_t};

use super::{
    abi::{Card, Code, Device, INVALID, NOT_SUPPORTED, Out, answer, bus},
    device::pci_info,
};
use crate::{profiles::profile, state::State};

/// Bus of the first switch.
const SWITCH_BUS: u32 = 0x05;
/// Switches of a board.
const SWITCHES: u32 = 4;

/// Other end of a link.
enum End {
    Gpu(usize, u16),
    Switch(u32, u16),
}

/// Calls `act` with the other end of a link, or `None` when it is down.
fn on_link(
    device: nvmlDevice_t,
    link: c_uint,
    act: impl FnOnce(Option<End>) -> Result<(), Code>,
) -> nvmlReturn_t {
    answer(|machine| {
        let Device::Gpu(index) = Device::of(device)? else { return Err(NOT_SUPPORTED) };
        let card = Card::at(machine, index)?;
        match card.profile.nvlinks {
            0 => Err(NOT_SUPPORTED),
            links if link >= links => Err(INVALID),
            links => {
                let up = link < card.gpu.nvlinks_up.unwrap_or(links);
                act(far_end(machine, &card, link).filter(|_| up))
            }
        }
    })
}

fn far_end(machine: &State, card: &Card, link: u32) -> Option<End> {
    if let Some(peer) = card.gpu.bridged_to {
        let peer_profile = profile(&machine.gpus.get(peer)?.profile)?;
        return Some(End::Gpu(peer, peer_profile.pci_device_id));
    }
    let switch = card.profile.switch_device_id?;
    let company = machine.gpus.iter().enumerate().any(|(index, gpu)| {
        index != card.index
            && profile(&gpu.profile).is_some_and(|other| other.switch_device_id == Some(switch))
    });
    company.then_some(End::Switch(SWITCH_BUS + link % SWITCHES, switch))
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkState(
    device: nvmlDevice_t,
    link: c_uint,
    active: Out<nvml::nvmlEnableState_t>,
) -> nvmlReturn_t {
    on_link(device, link, |end| {
        active.set(match end {
            Some(_) => nvml::nvmlEnableState_enum_NVML_FEATURE_ENABLED,
            None => nvml::nvmlEnableState_enum_NVML_FEATURE_DISABLED,
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemotePciInfo_v2(
    device: nvmlDevice_t,
    link: c_uint,
    pci: Out<nvml::nvmlPciInfo_t>,
) -> nvmlReturn_t {
    on_link(device, link, |end| match end {
        Some(End::Gpu(index, device_id)) => pci.set(pci_info(bus(index), device_id)),
        Some(End::Switch(bus, device_id)) => pci.set(pci_info(bus, device_id)),
        None => Err(INVALID),
    })
}

#[unsafe(no_mangle)]
extern "C" fn nvmlDeviceGetNvLinkRemoteDeviceType(
    device: nvmlDevice_t,
    link: c_uint,
    kind: Out<nvml::nvmlIntNvLinkDeviceType_t>,
) -> nvmlReturn_t {
    on_link(device, link, |end| match end {
        Some(End::Gpu(..)) => kind.set(nvml::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_GPU),
        Some(End::Switch(..)) => kind.set(nvml::nvmlIntNvLinkDeviceType_enum_NVML_NVLINK_DEVICE_TYPE_SWITCH),
        None => Err(INVALID),
    })
}
