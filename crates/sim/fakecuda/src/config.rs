//! What the stand-in stands in for: what the environment says, or a container's share of the machine that the stand-in for
//! NVML shows.

use std::path::PathBuf;

use gqla_fakenvml::{Profile, State, profile, profiles};
use gqla_ptxsim::Architecture;

/// In which order streams get on when somebody waits for one of them. CUDA allows all of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing happens but what is waited for: what a stream forgot to wait for has not happened.
    OwnFirst,
    /// Everything else happens before: what another stream should not have overwritten yet is overwritten.
    OthersFirst,
    /// Streams take turns by chance; the number seeds it.
    Shuffled(u64),
}

/// Devices, driver and order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// One profile per device.
    pub devices: Vec<&'static Profile>,
    /// Multiprocessors of each device, if not those of its profile.
    pub multiprocessors: Option<u32>,
    /// CUDA version of the driver, 12.9 is (12, 9).
    pub driver: (u32, u32),
    /// Order of streams.
    pub order: Order,
    /// Where to append a line of JSON per launch.
    pub report: Option<PathBuf>,
    /// A file; once it exists, launches fail as if they had touched memory that is nobody's.
    pub fault: Option<PathBuf>,
    /// Where cubins lie beside the PTX that is executed for them.
    pub cubins: Option<PathBuf>,
    /// Where to append a line of JSON per copy from the program's memory.
    pub copies: Option<PathBuf>,
}

/// Why the environment makes no configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A device that is not known.
    #[error("{}: no profile `{name}`; there are {known}", Config::DEVICES_ENV)]
    Profile {
        /// What was asked for.
        name: String,
        /// What can be.
        known: String,
    },
    /// A driver version that is not understood.
    #[error("{}: `{value}` is no CUDA version from 12.0 to 13.0, such as 12.9", Config::DRIVER_ENV)]
    Driver {
        /// What was asked for.
        value: String,
    },
    /// The machine that a container's devices are of cannot be looked at, or its driver answers nothing.
    #[error("{}: {reason}", Config::VISIBLE_ENV)]
    Machine {
        /// Why.
        reason: String,
    },
    /// A GPU that the machine does not have.
    #[error("{}: no GPU of this machine is `{uuid}`; there are {known}", Config::VISIBLE_ENV)]
    Unknown {
        /// What was asked for.
        uuid: String,
        /// What can be.
        known: String,
    },
    /// A number of multiprocessors that is none.
    #[error("{}: `{value}` is no number of multiprocessors, such as 4", Config::MULTIPROCESSORS_ENV)]
    Multiprocessors {
        /// What was asked for.
        value: String,
    },
    /// An order that is not understood.
    #[error("{}: `{value}` is none of own-first, others-first and a number to shuffle by", Config::ORDER_ENV)]
    Order {
        /// What was asked for.
        value: String,
    },
}

/// The PTX ISA that a driver of this CUDA version reads at most (PTX ISA, "Release Notes").
fn newest_ptx(driver: (u32, u32)) -> Option<(u32, u32)> {
    Some(match driver {
        (12, minor @ 0..=5) => (8, minor),
        (12, minor @ 6..=9) => (8, minor - 1),
        (13, 0) => (9, 0),
        _ => return None,
    })
}

impl Config {
    /// Profiles of the devices, by commas: `H20,H20`. Unset: those that [`Self::VISIBLE_ENV`] names.
    pub const DEVICES_ENV: &str = "GQLA_FAKECUDA_DEVICES";
    /// Multiprocessors of each device, as partitions have fewer; unless set, those of its profile.
    pub const MULTIPROCESSORS_ENV: &str = "GQLA_FAKECUDA_MULTIPROCESSORS";
    /// UUIDs of a container's GPUs, by commas, as device plugins set it: of those that the stand-in for NVML shows.
    pub const VISIBLE_ENV: &str = "NVIDIA_VISIBLE_DEVICES";
    /// CUDA version of the driver; unless set, that of the machine whose GPUs are visible, else 12.9.
    pub const DRIVER_ENV: &str = "GQLA_FAKECUDA_DRIVER";
    /// `own-first` (unless set), `others-first` or a number to shuffle by.
    pub const ORDER_ENV: &str = "GQLA_FAKECUDA_ORDER";
    /// A file that gets a line of JSON per launch.
    pub const REPORT_ENV: &str = "GQLA_FAKECUDA_REPORT";
    /// A file that makes every launch fail once it exists.
    pub const FAULT_ENV: &str = "GQLA_FAKECUDA_FAULT";
    /// A folder as `gqla kernels build` writes it. A cubin with the bytes of one in there loads, on devices that its header
    /// says it is for, and the PTX beside it is executed in its place; other cubins are refused.
    pub const CUBINS_ENV: &str = "GQLA_FAKECUDA_CUBINS";
    /// A file that gets a line of JSON per copy from the program's memory: bytes, and whether that is page-locked.
    pub const COPIES_ENV: &str = "GQLA_FAKECUDA_COPIES";

    /// Reads the variables that `variable` returns, and the machine where they name GPUs of it.
    ///
    /// # Errors
    /// When one is not understood, or the machine does not have what is visible.
    pub fn from_variables(
        variable: impl Fn(&str) -> Option<String>,
        machine: impl FnOnce() -> Result<State, String>,
    ) -> Result<Self, ConfigError> {
        let listed = |name| {
            let names = variable(name).unwrap_or_default();
            names.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
        };
        let (named, visible): (Vec<String>, Vec<String>) =
            (listed(Self::DEVICES_ENV), listed(Self::VISIBLE_ENV));
        let (devices, version) = if named.is_empty() && !visible.is_empty() {
            let machine = machine().map_err(|reason| ConfigError::Machine { reason })?;
            let (major, minor) = (machine.cuda_version / 1000, machine.cuda_version % 1000 / 10);
            (of_machine(&machine, &visible)?, format!("{major}.{minor}"))
        } else {
            (named.iter().map(|name| known_profile(name)).collect::<Result<_, _>>()?, "12.9".to_owned())
        };
        Ok(Self {
            devices,
            multiprocessors: variable(Self::MULTIPROCESSORS_ENV)
                .map(|value| multiprocessors(&value))
                .transpose()?,
            driver: driver(&variable(Self::DRIVER_ENV).unwrap_or(version))?,
            order: variable(Self::ORDER_ENV).map_or(Ok(Order::OwnFirst), |value| order(&value))?,
            report: variable(Self::REPORT_ENV).map(PathBuf::from),
            fault: variable(Self::FAULT_ENV).map(PathBuf::from),
            cubins: variable(Self::CUBINS_ENV).map(PathBuf::from),
            copies: variable(Self::COPIES_ENV).map(PathBuf::from),
        })
    }

    /// The newest PTX that the driver reads.
    pub(crate) fn newest_ptx(&self) -> (u32, u32) {
        newest_ptx(self.driver).unwrap_or_default()
    }
}

/// The GPUs of these UUIDs, but for those that fell off the bus.
fn of_machine(machine: &State, visible: &[String]) -> Result<Vec<&'static Profile>, ConfigError> {
    if let Some(failure) = machine.failure {
        return Err(ConfigError::Machine { reason: format!("the driver answers nothing but {failure:?}") });
    }
    let uuids = || machine.gpus.iter().filter_map(|gpu| gpu.uuid.as_deref());
    let mut devices = Vec::new();
    for uuid in visible {
        let Some(gpu) = machine.gpus.iter().find(|gpu| gpu.uuid.as_ref() == Some(uuid)) else {
            let known = uuids().collect::<Vec<_>>().join(", ");
            return Err(ConfigError::Unknown { uuid: uuid.clone(), known });
        };
        if !gpu.lost {
            devices.push(known_profile(&gpu.profile)?);
        }
    }
    Ok(devices)
}

fn known_profile(name: &str) -> Result<&'static Profile, ConfigError> {
    let usable = |profile: &&Profile| architecture(profile).is_some();
    profile(name).filter(usable).ok_or_else(|| {
        let known: Vec<&str> =
            profiles().iter().filter(usable).map(|profile| profile.name.as_str()).collect();
        ConfigError::Profile { name: name.to_owned(), known: known.join(", ") }
    })
}

/// The limits of a profile's compute capability.
pub(crate) fn architecture(profile: &Profile) -> Option<Architecture> {
    let (major, minor) = profile.compute_capability;
    Architecture::of(u32::try_from(major).ok()?, u32::try_from(minor).ok()?)
}

fn driver(value: &str) -> Result<(u32, u32), ConfigError> {
    let parts =
        value.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parts
        .filter(|driver| newest_ptx(*driver).is_some())
        .ok_or_else(|| ConfigError::Driver { value: value.to_owned() })
}

fn multiprocessors(value: &str) -> Result<u32, ConfigError> {
    let count = value.parse().ok().filter(|count| (1..=1024).contains(count));
    count.ok_or_else(|| ConfigError::Multiprocessors { value: value.to_owned() })
}

fn order(value: &str) -> Result<Order, ConfigError> {
    match value {
        "own-first" => Ok(Order::OwnFirst),
        "others-first" => Ok(Order::OthersFirst),
        seed => seed.parse().map(Order::Shuffled).map_err(|_| ConfigError::Order { value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use gqla_fakenvml::{Failure, Gpu};

    use super::*;

    fn variable_of(set: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        |name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_container_has_the_gpus_that_it_was_given() {
        let gpu = |profile: &str, uuid: &str| Gpu { uuid: Some(uuid.to_owned()), ..Gpu::new(profile) };
        let machine = State {
            gpus: vec![gpu("H100", "GPU-a"), gpu("H20", "GPU-b"), Gpu { lost: true, ..gpu("H20", "GPU-c") }],
            cuda_version: 12_080,
            ..State::default()
        };
        let names =
            |config: Config| config.devices.iter().map(|device| device.name.as_str()).collect::<Vec<_>>();
        let read = |machine: &State, set: &[(&str, &str)]| {
            Config::from_variables(variable_of(set), || Ok(machine.clone()))
        };
        let visible = |uuids| read(&machine, &[(Config::VISIBLE_ENV, uuids)]);
        for (uuids, expected) in
            [("", vec![]), ("GPU-b", vec!["H20"]), ("GPU-b,GPU-a", vec!["H20", "H100"]), ("GPU-c", vec![])]
        {
            assert_eq!(names(visible(uuids).unwrap()), expected, "{uuids}");
        }
        assert_eq!(visible("GPU-a").unwrap().driver, (12, 8));
        let named = read(&machine, &[(Config::VISIBLE_ENV, "GPU-b"), (Config::DEVICES_ENV, "H100")]).unwrap();
        assert_eq!((names(named), visible("").unwrap().driver), (vec!["H100"], (12, 9)));
        let failed = machine.clone().with_failure(Failure::DriverNotLoaded);
        for (error, words) in [
            (visible("GPU-z"), "no GPU of this machine is `GPU-z`; there are GPU-a, GPU-b, GPU-c"),
            (read(&failed, &[(Config::VISIBLE_ENV, "GPU-a")]), "answers nothing but DriverNotLoaded"),
            (
                read(&machine.with_old_driver(), &[(Config::VISIBLE_ENV, "GPU-a")]),
                "`11.4` is no CUDA version",
            ),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_environment_says_what_there_is() {
        let read = |set: &[(&str, &str)]| {
            let machine = || panic!("a machine was looked at");
            Config::from_variables(variable_of(set), machine)
        };
        let nothing = read(&[]).unwrap();
        let expected = Config {
            devices: Vec::new(),
            multiprocessors: None,
            driver: (12, 9),
            order: Order::OwnFirst,
            report: None,
            copies: None,
            fault: None,
            cubins: None,
        };
        assert_eq!(nothing, expected);
        let two = read(&[
            (Config::DEVICES_ENV, "H20, H100"),
            (Config::DRIVER_ENV, "12.2"),
            (Config::ORDER_ENV, "17"),
            (Config::MULTIPROCESSORS_ENV, "4"),
            (Config::CUBINS_ENV, "images"),
        ])
        .unwrap();
        assert_eq!(
            two.devices.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>(),
            ["H20", "H100"]
        );
        assert_eq!(
            (two.newest_ptx(), two.order, two.multiprocessors, two.cubins),
            ((8, 2), Order::Shuffled(17), Some(4), Some("images".into()))
        );
        for (name, value) in [
            (Config::DEVICES_ENV, "H19"),
            (Config::DRIVER_ENV, "11.8"),
            (Config::DRIVER_ENV, "x"),
            (Config::ORDER_ENV, "first"),
            (Config::MULTIPROCESSORS_ENV, "0"),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(name) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn drivers_read_the_ptx_of_their_release() {
        // R535 came with CUDA 12.2, R550 with 12.4, R570 with 12.8.
        for (driver, ptx) in [((12, 2), (8, 2)), ((12, 4), (8, 4)), ((12, 8), (8, 7)), ((12, 9), (8, 8))] {
            assert_eq!(newest_ptx(driver), Some(ptx));
        }
    }
}
