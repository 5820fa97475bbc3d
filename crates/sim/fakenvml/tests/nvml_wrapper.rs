//! The built library, opened by the real nvml-wrapper. Each test has a copy of its own, and so a state of its own.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{
    path::PathBuf,
    sync::mpsc,
    time::{Duration, Instant},
};

use gqla_fakenvml::{Failure, Gpu, Profile, State, Throttle, install, profile, profiles, state::STATE_FILE};
use nvml_wrapper::{
    Device, Nvml,
    bitmasks::{device::ThrottleReasons, event::EventTypes},
    enum_wrappers::device::{Clock, EccCounter, MemoryError, TemperatureSensor},
    enums::{device::SampleValue, event::XidError},
    error::NvmlError,
    structs::device::FieldId,
    sys_exports::field_id::{NVML_FI_DEV_REMAPPED_FAILURE, NVML_FI_DEV_REMAPPED_PENDING},
};

struct Machine {
    folder: tempfile::TempDir,
    library: PathBuf,
}

impl Machine {
    fn new(state: &State) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let library = install(folder.path(), state).unwrap();
        Self { folder, library }
    }

    fn open(&self) -> Result<Nvml, NvmlError> {
        Nvml::builder().lib_path(self.library.as_os_str()).init()
    }

    fn become_(&self, state: &State) {
        state.write(&self.folder.path().join(STATE_FILE)).unwrap();
    }
}

fn check(device: &Device, profile: &Profile) {
    let capability = device.cuda_compute_capability().unwrap();
    assert_eq!(device.name().unwrap(), profile.product);
    assert_eq!(
        device.pci_info().unwrap().pci_device_id,
        u32::from(profile.pci_device_id) << 16 | 0x10de,
        "{}",
        profile.name
    );
    assert_eq!((capability.major, capability.minor), profile.compute_capability);
    assert_eq!(device.num_cores().unwrap(), profile.multiprocessors * profile.cores_per_multiprocessor);
    assert_eq!(device.memory_info().unwrap().total, profile.memory_mib << 20);
    assert_eq!(device.memory_bus_width().unwrap(), profile.memory_bus_bits);
    assert_eq!(device.max_clock_info(Clock::SM).unwrap(), profile.sm_clock_mhz);
    assert_eq!(device.max_clock_info(Clock::Memory).unwrap(), profile.memory_clock_mhz);
    assert_eq!(device.power_management_limit_default().unwrap(), profile.power_watts * 1000);
    assert_eq!(device.enforced_power_limit().unwrap(), profile.power_watts * 1000);
    assert_eq!(device.total_ecc_errors(MemoryError::Uncorrected, EccCounter::Volatile).unwrap(), 0);
    let links: Vec<_> = (0..18).map_while(|link| device.link_wrapper_for(link).is_active().ok()).collect();
    assert_eq!(links.len(), profile.nvlinks as usize, "{}", profile.name);
    assert_eq!(device.mig_mode().is_ok(), !profile.mig.is_empty(), "{}", profile.name);
}

#[test]
fn every_profile_gives_what_its_data_says() {
    let names: Vec<&str> = profiles().iter().map(|profile| profile.name.as_str()).collect();
    assert_eq!(names, ["H20", "H20-3e", "H100", "H100-PCIe", "H200", "A100", "L40S", "B200", "T4"]);
    let machine = Machine::new(&State::mixed(&names));
    let nvml = machine.open().unwrap();
    assert_eq!(nvml.device_count().unwrap() as usize, names.len());
    for (index, profile) in (0..).zip(profiles()) {
        check(&nvml.device_by_index(index).unwrap(), profile);
        assert!(!profile.source.is_empty());
    }
}

/// Where a data sheet gives the bandwidth, bus and clock have to yield it: they are what the planner derives it from.
#[test]
fn bus_and_clock_yield_the_published_bandwidths() {
    let table = [
        ("H20", 4.0),
        ("H100", 3.35),
        ("H100-PCIe", 2.0),
        ("H200", 4.8),
        ("A100", 2.039),
        ("L40S", 0.864),
        ("B200", 7.7),
        ("T4", 0.32),
    ];
    for (name, terabytes) in table {
        let profile = profile(name).unwrap();
        let derived =
            2e6 * f64::from(profile.memory_clock_mhz) * f64::from(profile.memory_bus_bits) / 8.0 / 1e12;
        assert!((derived / terabytes - 1.0).abs() < 0.03, "{name}: {derived} TB/s");
    }
}

#[test]
fn versions_and_handles_are_consistent() {
    let machine = Machine::new(&State::node("H20", 8));
    let nvml = machine.open().unwrap();
    assert_eq!(nvml.sys_driver_version().unwrap(), "550.54.15");
    assert_eq!(nvml.sys_nvml_version().unwrap(), "12.550.54.15");
    assert_eq!(nvml.sys_cuda_driver_version().unwrap(), 12_040);
    for index in 0..8 {
        let device = nvml.device_by_index(index).unwrap();
        let again = nvml.device_by_uuid(device.uuid().unwrap()).unwrap();
        assert_eq!(again.index().unwrap(), index);
        let again = nvml.device_by_pci_bus_id(device.pci_info().unwrap().bus_id).unwrap();
        assert_eq!(again.uuid().unwrap(), device.uuid().unwrap());
    }
    assert!(matches!(nvml.device_by_index(8), Err(NvmlError::InvalidArg)));
    assert!(matches!(nvml.device_by_uuid("GPU-none"), Err(NvmlError::NotFound)));
}

#[test]
fn drivers_refuse_as_real_ones_do() {
    let state = State::node("H100", 1);
    let machine = Machine::new(&state.clone().with_failure(Failure::DriverNotLoaded));
    assert!(matches!(machine.open(), Err(NvmlError::DriverNotLoaded)));
    machine.become_(&state.clone().with_failure(Failure::NoPermission));
    assert!(matches!(machine.open(), Err(NvmlError::NoPermission)));
    machine.become_(&state.clone().with_failure(Failure::VersionMismatch));
    assert!(matches!(machine.open(), Err(NvmlError::LibRmVersionMismatch)));
    machine.become_(&state.clone().with_old_driver());
    assert_eq!(machine.open().unwrap().sys_cuda_driver_version().unwrap(), 11_040);
    std::fs::remove_file(&machine.library).unwrap();
    assert!(matches!(machine.open(), Err(NvmlError::LibloadingError(_))));
}

#[test]
fn a_state_that_cannot_be_read_is_no_driver() {
    let machine = Machine::new(&State::default());
    std::fs::write(machine.folder.path().join(STATE_FILE), "{").unwrap();
    assert!(matches!(machine.open(), Err(NvmlError::DriverNotLoaded)));
    machine.become_(&State::node("H21", 1));
    assert!(matches!(machine.open(), Err(NvmlError::DriverNotLoaded)));
    let error = State::read(&machine.folder.path().join(STATE_FILE)).unwrap_err().to_string();
    assert!(error.contains("`H21`") && error.contains("H20-3e"), "{error}");
}

#[test]
fn what_a_gpu_does_now_follows_the_state() {
    let machine = Machine::new(&State::node("H20", 1));
    let nvml = machine.open().unwrap();
    let device = nvml.device_by_index(0).unwrap();
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 1980);
    assert_eq!(device.current_throttle_reasons().unwrap(), ThrottleReasons::NONE);
    let mut state = State::node("H20", 1);
    state.gpus[0] = Gpu {
        power_limit_watts: Some(350),
        power_watts: Some(349),
        sm_clock_mhz: Some(1200),
        memory_clock_mhz: Some(1593),
        temperature_celsius: Some(84),
        used_mib: 4096,
        throttle: vec![Throttle::SwPowerCap, Throttle::HwThermalSlowdown],
        remap_pending: true,
        ..Gpu::new("H20")
    };
    machine.become_(&state);
    assert_eq!(device.enforced_power_limit().unwrap(), 350_000);
    assert_eq!(device.power_management_limit_default().unwrap(), 500_000);
    assert_eq!(device.power_usage().unwrap(), 349_000);
    assert_eq!(device.clock_info(Clock::SM).unwrap(), 1200);
    assert_eq!(device.clock_info(Clock::Memory).unwrap(), 1593);
    assert_eq!(device.temperature(TemperatureSensor::Gpu).unwrap(), 84);
    assert_eq!(device.memory_info().unwrap().used, 4096 << 20);
    let reasons = device.current_throttle_reasons().unwrap();
    assert_eq!(reasons, ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_THERMAL_SLOWDOWN);
    let fields = [NVML_FI_DEV_REMAPPED_PENDING, NVML_FI_DEV_REMAPPED_FAILURE].map(FieldId);
    let values = device.field_values_for(&fields).unwrap();
    let values: Vec<_> = values.into_iter().map(|sample| sample.unwrap().value.unwrap()).collect();
    assert!(matches!(values[..], [SampleValue::U32(1), SampleValue::U32(0)]), "{values:?}");
}

#[test]
fn a_pulled_card_is_lost_and_the_others_stay() {
    let machine = Machine::new(&State::node("H100", 2));
    let nvml = machine.open().unwrap();
    let devices = [0, 1].map(|index| nvml.device_by_index(index).unwrap());
    machine.become_(&State::node("H100", 2).with_lost(1));
    assert!(devices[0].name().is_ok());
    assert!(matches!(devices[1].name(), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_index(1), Err(NvmlError::GpuLost)));
    assert_eq!(nvml.device_count().unwrap(), 2);

    let mut failing = State::node("H100", 2);
    failing.gpus[0].failure = Some(Failure::Unknown);
    machine.become_(&failing);
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::Unknown)));
    assert!(matches!(devices[0].name(), Err(NvmlError::Unknown)));
    assert!(devices[1].name().is_ok());
}

#[test]
fn errors_arrive_as_events_once_each() {
    let machine = Machine::new(&State::node("H20", 2).with_xid(0, 13));
    let nvml = machine.open().unwrap();
    let mut set = nvml.create_event_set().unwrap();
    let types = EventTypes::CRITICAL_XID_ERROR | EventTypes::DOUBLE_BIT_ECC_ERROR;
    for index in 0..2 {
        let device = nvml.device_by_index(index).unwrap();
        assert!(device.supported_event_types().unwrap().contains(types));
        set = device.register_events(types, set).unwrap();
    }
    assert!(matches!(set.wait(30), Err(NvmlError::Timeout)), "what was before registration is not told");

    let mut next = State::node("H20", 2).with_xid(0, 13).with_xid(1, 79).with_xid(1, 94);
    next.gpus[0].double_bit_errors = 1;
    machine.become_(&next);
    let mut told: Vec<_> = (0..3).map(|_| set.wait(2000).unwrap()).collect();
    told.sort_by_key(|event| event.event_data.as_ref().map(|xid| matches!(xid, XidError::Value(94))));
    let told: Vec<_> = told
        .iter()
        .map(|event| (event.device.index().unwrap(), event.event_type, event.event_data.as_ref().map(number)))
        .collect();
    let expected = [
        (0, EventTypes::DOUBLE_BIT_ECC_ERROR, None),
        (1, EventTypes::CRITICAL_XID_ERROR, Some(79)),
        (1, EventTypes::CRITICAL_XID_ERROR, Some(94)),
    ];
    assert_eq!(told, expected);
    assert!(matches!(set.wait(30), Err(NvmlError::Timeout)));
    machine.become_(&next.with_lost(0));
    assert!(set.wait(2000).is_ok(), "XID 79 goes before");
    assert!(matches!(set.wait(2000), Err(NvmlError::GpuLost)));
}

fn number(xid: &XidError) -> u64 {
    match xid {
        XidError::Value(number) => *number,
        XidError::Unknown => 999,
    }
}

#[test]
fn slices_have_names_memory_and_multiprocessors() {
    let slices = ["1g.10gb", "1g.10gb", "3g.40gb"];
    let state = State { gpus: vec![Gpu::sliced("H100", &slices), Gpu::new("H100")], ..State::default() };
    let machine = Machine::new(&state);
    let nvml = machine.open().unwrap();
    let whole = nvml.device_by_index(0).unwrap();
    assert_eq!(whole.mig_mode().unwrap().current, 1);
    assert_eq!(whole.mig_device_count().unwrap(), 7);
    let found: Vec<_> = (0..7).map_while(|index| whole.mig_device_by_index(index).ok()).collect();
    let facts: Vec<_> = found
        .iter()
        .map(|slice| {
            assert!(slice.mig_is_mig_device_handle().unwrap());
            assert_eq!(slice.mig_parent_device().unwrap().uuid().unwrap(), whole.uuid().unwrap());
            assert_ne!(slice.uuid().unwrap(), whole.uuid().unwrap());
            let attributes = slice.attributes().unwrap();
            assert_eq!(slice.memory_info().unwrap().total, attributes.memory_size_mb << 20);
            (slice.name().unwrap(), attributes.multiprocessor_count, attributes.memory_size_mb)
        })
        .collect();
    let expected = [
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb".to_owned(), 16, 10_240),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb".to_owned(), 16, 10_240),
        ("NVIDIA H100 80GB HBM3 MIG 3g.40gb".to_owned(), 60, 40_960),
    ];
    assert_eq!(facts, expected);
    let other = nvml.device_by_index(1).unwrap();
    assert_eq!(other.mig_mode().unwrap().current, 0);
    assert!(matches!(other.mig_device_by_index(0), Err(NvmlError::NotFound)));
}

#[test]
fn links_end_at_switches_at_bridged_cards_or_nowhere() {
    let mut state = State::mixed(&["H20", "H20", "H100-PCIe", "H100-PCIe", "L40S", "A100"]);
    (state.gpus[2].bridged_to, state.gpus[3].bridged_to) = (Some(3), Some(2));
    state.gpus[1].nvlinks_up = Some(17);
    let machine = Machine::new(&state);
    let nvml = machine.open().unwrap();
    let ends = |index: u32| {
        let device = nvml.device_by_index(index).unwrap();
        let links = (0..18).map(|link| device.link_wrapper_for(link));
        let up = links.filter(|link| link.is_active().unwrap_or(false));
        up.map(|link| link.remote_pci_info().unwrap()).map(|pci| pci.bus_id).collect::<Vec<_>>()
    };
    let bus = |index: u32| nvml.device_by_index(index).unwrap().pci_info().unwrap().bus_id;
    assert_eq!(ends(0).len(), 18);
    assert!(ends(0).iter().all(|end| *end != bus(1)), "a switch, not the card");
    assert_eq!(ends(1).len(), 17);
    assert_eq!(ends(2), vec![bus(3); 12]);
    assert!(ends(4).is_empty() && ends(5).is_empty());
    let error = nvml.device_by_index(4).unwrap().link_wrapper_for(0).is_active().unwrap_err();
    assert!(matches!(error, NvmlError::NotSupported));
}

#[test]
fn a_hanging_driver_answers_once_it_is_let_go() {
    let machine = Machine::new(&State::node("H20", 1));
    let nvml = machine.open().unwrap();
    machine.become_(&State::node("H20", 1).with_hang(60.0));
    let (send, answered) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| send.send(nvml.device_count().unwrap()).unwrap());
        assert!(answered.recv_timeout(Duration::from_millis(300)).is_err());
        let start = Instant::now();
        machine.become_(&State::node("H20", 1));
        assert_eq!(answered.recv_timeout(Duration::from_secs(5)).unwrap(), 1);
        assert!(start.elapsed() < Duration::from_secs(5));
    });
}
