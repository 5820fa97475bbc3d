//! The CUDA kernels, compiled by NVRTC and executed through cudarc on the stand-in for libcuda.
//!
//! `GQLA_TEST_NVRTC` names the folder that holds NVRTC 12, as `cargo xtask test` does; `cargo xtask nvrtc` prints it.
//! Without it these tests fail, because passing would claim something nobody checked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod case;
mod cublaslt;
mod decode;
mod device;
mod experts;
mod images;
mod mutants;
mod ops;
mod sample;
mod units;

use gqla_fakecuda::{Config, testing::Alone};

/// Runs `body` in a process that finds the stand-in and NVRTC when it starts, with `devices` H20s.
fn on_stand_in(name: &str, order: &str, devices: usize, body: impl FnOnce()) {
    alone(name, order, devices).run(body);
}

/// The same with the devices that `cards` names.
fn on_cards(name: &str, cards: &[&str], body: impl FnOnce()) {
    alone(name, "own-first", 0).env(Config::DEVICES_ENV, cards.join(",")).run(body);
}

/// The same with a driver of another CUDA version.
fn on_driver(driver: &str, name: &str, order: &str, devices: usize, body: impl FnOnce()) {
    alone(name, order, devices).env(Config::DRIVER_ENV, driver).run(body);
}

/// The same with so few multiprocessors that blocks take several units each.
fn on_two_multiprocessors(name: &str, order: &str, devices: usize, body: impl FnOnce()) {
    alone(name, order, devices).env(Config::MULTIPROCESSORS_ENV, "2").run(body);
}

/// The same of another card.
fn on_two_multiprocessors_of(card: &str, name: &str, devices: usize, body: impl FnOnce()) {
    let cards = vec![card; devices].join(",");
    let alone = alone(name, "own-first", 0).env(Config::DEVICES_ENV, cards);
    alone.env(Config::MULTIPROCESSORS_ENV, "2").run(body);
}

fn alone<'a>(name: &'a str, order: &str, devices: usize) -> Alone<'a> {
    let devices = vec!["H20"; devices].join(",");
    Alone::new(name).with_nvrtc().env(Config::DEVICES_ENV, devices).env(Config::ORDER_ENV, order)
}
