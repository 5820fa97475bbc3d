//! What the stand-in stands in for, from the environment.

use std::path::PathBuf;

use gqla_fakenvml::{Profile, profile, profiles};
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
    /// CUDA version of the driver, 12.9 is (12, 9).
    pub driver: (u32, u32),
    /// Order of streams.
    pub order: Order,
    /// Where to append a line of JSON per launch.
    pub report: Option<PathBuf>,
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
    /// Profiles of the devices, by commas: `H20,H20`. Unset: no device.
    pub const DEVICES_ENV: &str = "GQLA_FAKECUDA_DEVICES";
    /// CUDA version of the driver, 12.9 unless set.
    pub const DRIVER_ENV: &str = "GQLA_FAKECUDA_DRIVER";
    /// `own-first` (unless set), `others-first` or a number to shuffle by.
    pub const ORDER_ENV: &str = "GQLA_FAKECUDA_ORDER";
    /// A file that gets a line of JSON per launch.
    pub const REPORT_ENV: &str = "GQLA_FAKECUDA_REPORT";

    /// Reads the variables that `variable` returns.
    ///
    /// # Errors
    /// When one is not understood.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let devices = variable(Self::DEVICES_ENV).unwrap_or_default();
        let names = devices.split(',').map(str::trim).filter(|name| !name.is_empty());
        Ok(Self {
            devices: names.map(known_profile).collect::<Result<_, _>>()?,
            driver: variable(Self::DRIVER_ENV).map_or(Ok((12, 9)), |value| driver(&value))?,
            order: variable(Self::ORDER_ENV).map_or(Ok(Order::OwnFirst), |value| order(&value))?,
            report: variable(Self::REPORT_ENV).map(PathBuf::from),
        })
    }

    /// The newest PTX that the driver reads.
    pub(crate) fn newest_ptx(&self) -> (u32, u32) {
        newest_ptx(self.driver).unwrap_or_default()
    }
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

fn order(value: &str) -> Result<Order, ConfigError> {
    match value {
        "own-first" => Ok(Order::OwnFirst),
        "others-first" => Ok(Order::OthersFirst),
        seed => seed.parse().map(Order::Shuffled).map_err(|_| ConfigError::Order { value: value.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_says_what_there_is() {
        let read = |set: &[(&str, &str)]| {
            Config::from_variables(|name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
            })
        };
        let nothing = read(&[]).unwrap();
        assert_eq!(
            (nothing.devices.len(), nothing.driver, nothing.order, nothing.report),
            (0, (12, 9), Order::OwnFirst, None)
        );
        let two = read(&[
            (Config::DEVICES_ENV, "H20, H100"),
            (Config::DRIVER_ENV, "12.2"),
            (Config::ORDER_ENV, "17"),
        ])
        .unwrap();
        assert_eq!(
            two.devices.iter().map(|profile| profile.name.as_str()).collect::<Vec<_>>(),
            ["H20", "H100"]
        );
        assert_eq!((two.newest_ptx(), two.order), ((8, 2), Order::Shuffled(17)));
        for (name, value) in [
            (Config::DEVICES_ENV, "H19"),
            (Config::DRIVER_ENV, "11.8"),
            (Config::DRIVER_ENV, "x"),
            (Config::ORDER_ENV, "first"),
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
