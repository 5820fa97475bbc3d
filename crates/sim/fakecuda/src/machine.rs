//! Devices and what the program has made on them; and doing the work that streams hold.

use std::{
    fs::OpenOptions,
    io::Write,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use gqla_fakenvml::{Profile, State, state_path};
use gqla_ptxsim::{Architecture, GlobalMemory, MemoryError, Schedule};
use serde::Serialize;

use crate::{
    code::Code,
    config::{Config, Order, architecture},
    host::{HostRange, PageLocked},
    module::{Modules, Prepared, code_of},
    queue::{Queues, Source, StreamId, Task},
};

/// Free addresses between two devices' memories, so that an address says whose it is.
const DEVICE_SPACING: u64 = 1 << 52;

/// Everything behind the library.
pub(crate) struct Machine {
    pub config: Config,
    pub devices: Vec<Device>,
    pub page_locked: PageLocked,
}

/// One device and its primary context.
pub(crate) struct Device {
    pub profile: &'static Profile,
    pub multiprocessors: u32,
    pub architecture: Architecture,
    pub memory: GlobalMemory,
    pub queues: Queues,
    pub modules: Modules,
    /// How often the primary context is retained.
    pub retained: u32,
    /// The error that stays.
    pub broken: Option<Code>,
}

static MACHINE: Mutex<Option<Machine>> = Mutex::new(None);

/// The machine, once `cuInit` made one.
pub(crate) fn machine() -> MutexGuard<'static, Option<Machine>> {
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `cuInit`: reads the environment and the machine the first time.
pub(crate) fn initialise() -> Result<(), Code> {
    let mut machine = machine();
    if machine.is_some() {
        return Ok(());
    }
    let state = || State::read(&state_path()).map_err(|error| error.to_string());
    let config = Config::from_variables(|name| std::env::var(name).ok(), state).map_err(|error| {
        eprintln!("gqla-fakecuda: {error}");
        Code::NO_DEVICE
    })?;
    if config.devices.is_empty() {
        eprintln!(
            "gqla-fakecuda: this is no CUDA driver, and neither {} nor {} names a device to stand in for",
            Config::DEVICES_ENV,
            Config::VISIBLE_ENV
        );
        return Err(Code::NO_DEVICE);
    }
    eprintln!(
        "gqla-fakecuda: this is no CUDA driver: kernels are executed on the CPU, thousands of times slower than on a GPU"
    );
    *machine = Some(Machine::new(config));
    Ok(())
}

impl Machine {
    fn new(config: Config) -> Self {
        let device = |(index, profile): (usize, &&'static Profile)| {
            let architecture = architecture(profile)?;
            let memory = GlobalMemory::at(index as u64 * DEVICE_SPACING, profile.memory_mib << 20);
            let (queues, modules) = (Queues::new(config.order), Modules::default());
            let multiprocessors = config.multiprocessors.unwrap_or(profile.multiprocessors);
            Some(Device {
                profile,
                multiprocessors,
                architecture,
                memory,
                queues,
                modules,
                retained: 0,
                broken: None,
            })
        };
        let devices = config.devices.iter().enumerate().filter_map(device).collect();
        Self { config, devices, page_locked: PageLocked::default() }
    }

    /// Does what waiting for `stream` of `device` makes necessary.
    pub fn synchronize(&mut self, device: usize, stream: StreamId) -> Result<(), Code> {
        while self.advance(device, stream)? {}
        Ok(())
    }

    /// One piece of work on the way to where `stream` is idle; false when it is.
    pub fn advance(&mut self, device: usize, stream: StreamId) -> Result<bool, Code> {
        let state = &mut self.devices[device];
        let Some(task) = state.queues.next(stream) else { return Ok(false) };
        if let Err(code) = run(state, task, &self.config) {
            state.broken = Some(code);
            state.queues.clear();
            return Err(code);
        }
        Ok(true)
    }

    /// Everything in all streams of `device`.
    pub fn synchronize_all(&mut self, device: usize) -> Result<(), Code> {
        while let Some(stream) = self.devices[device].queues.busy().first() {
            self.synchronize(device, *stream)?;
        }
        Ok(())
    }

    /// Frees page-locked memory once no device can need it.
    pub fn free_page_locked(&mut self, address: usize) -> Result<(), Code> {
        for device in 0..self.devices.len() {
            // An error is told to whoever uses that device.
            let _ = self.synchronize_all(device);
        }
        self.page_locked.free(address)
    }

    /// Asks for a copy from the program's memory.
    pub fn copy_in(&mut self, device: usize, stream: StreamId, to: u64, from: HostRange) -> Result<(), Code> {
        self.expect_inside(device, to, from.bytes())?;
        let page_locked = self.page_locked.holds(from);
        append(self.config.copies.as_deref(), &CopyLine { bytes: from.bytes(), page_locked });
        let from = if page_locked { Source::PageLocked(from) } else { Source::Staged(from.read()) };
        self.devices[device].queues.push(stream, Task::CopyIn { to, from });
        Ok(())
    }

    /// Asks for a copy to the program's memory; to pageable memory it is done when this returns.
    pub fn copy_out(
        &mut self,
        device: usize,
        stream: StreamId,
        to: HostRange,
        from: u64,
    ) -> Result<(), Code> {
        self.expect_inside(device, from, to.bytes())?;
        let deferred = self.page_locked.holds(to);
        self.devices[device].queues.push(stream, Task::CopyOut { to, from });
        if deferred { Ok(()) } else { self.synchronize(device, stream) }
    }

    pub fn copy_within(
        &mut self,
        device: usize,
        stream: StreamId,
        to: u64,
        from: u64,
        bytes: usize,
    ) -> Result<(), Code> {
        self.expect_inside(device, from, bytes)?;
        self.expect_inside(device, to, bytes)?;
        self.devices[device].queues.push(stream, Task::CopyWithin { to, from, bytes });
        Ok(())
    }

    pub fn fill(
        &mut self,
        device: usize,
        stream: StreamId,
        to: u64,
        value: u8,
        bytes: usize,
    ) -> Result<(), Code> {
        self.expect_inside(device, to, bytes)?;
        self.devices[device].queues.push(stream, Task::Fill { to, value, bytes });
        Ok(())
    }

    fn expect_inside(&self, device: usize, address: u64, bytes: usize) -> Result<(), Code> {
        let inside = bytes == 0 || self.devices[device].memory.contains(address, bytes as u64);
        if inside { Ok(()) } else { Err(Code::INVALID_VALUE) }
    }
}

/// Does one piece of work.
fn run(device: &mut Device, task: Task, config: &Config) -> Result<(), Code> {
    let memory = &mut device.memory;
    match task {
        Task::CopyIn { from: Source::Staged(bytes), .. } if bytes.is_empty() => Ok(()),
        Task::CopyIn { to, from: Source::Staged(bytes) } => memory.write(to, &bytes).map_err(lost),
        Task::CopyIn { to, from: Source::PageLocked(range) } => memory.write(to, &range.read()).map_err(lost),
        Task::CopyOut { to, from } => {
            let mut bytes = vec![0; to.bytes()];
            if !bytes.is_empty() {
                memory.read(from, &mut bytes).map_err(lost)?;
                to.write(&bytes);
            }
            Ok(())
        }
        Task::CopyWithin { bytes: 0, .. } | Task::Fill { bytes: 0, .. } => Ok(()),
        Task::CopyWithin { to, from, bytes } => memory.copy(to, from, bytes as u64).map_err(lost),
        Task::Fill { to, value, bytes } => memory.write(to, &vec![value; bytes]).map_err(lost),
        Task::Free(address) => memory.free(address).map_err(lost),
        Task::Launch(prepared) => run_launch(memory, &prepared, config),
        Task::Product(product) => {
            append(config.report.as_deref(), &product.line());
            product.run(memory)
        }
        Task::Record(..) | Task::Wait(..) => Ok(()),
    }
}

/// Memory that was there when the work was asked for was freed before it ran.
fn lost(error: MemoryError) -> Code {
    eprintln!("gqla-fakecuda: {error}, when the work that names it runs");
    Code::ILLEGAL_ADDRESS
}

fn run_launch(memory: &mut GlobalMemory, prepared: &Prepared, config: &Config) -> Result<(), Code> {
    let schedule = match config.order {
        Order::OwnFirst => Schedule::Forward,
        Order::OthersFirst => Schedule::Reverse,
        Order::Shuffled(seed) => Schedule::Shuffled(seed),
    };
    if config.fault.as_ref().is_some_and(|file| file.exists()) {
        return Err(Code::ILLEGAL_ADDRESS);
    }
    let report = prepared.run(memory, schedule)?;
    let line = prepared.line(&report);
    append(config.report.as_deref(), &line);
    for fault in &report.faults.first {
        eprintln!("gqla-fakecuda: {}: {fault}", line.kernel);
    }
    code_of(&report).map_or(Ok(()), Err)
}

/// A copy from the program's memory.
#[derive(Serialize)]
struct CopyLine {
    bytes: usize,
    page_locked: bool,
}

/// Writes a line of a report, where one is wanted.
fn append(path: Option<&Path>, line: &impl Serialize) {
    let Some(path) = path else { return };
    let file = OpenOptions::new().create(true).append(true).open(path);
    let written = file.and_then(|mut file| writeln!(file, "{}", serde_json::to_string(line)?));
    if let Err(error) = written {
        eprintln!("gqla-fakecuda: cannot write the report {}: {error}", path.display());
    }
}
