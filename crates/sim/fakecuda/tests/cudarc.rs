//! The built library under the real cudarc. The loader reads `LD_LIBRARY_PATH` when a program starts and cudarc opens the
//! driver once, so every test runs itself again in a process of its own.

#![allow(clippy::unwrap_used, reason = "a helper of a test fails the test")]

use std::{path::Path, sync::Arc};

use cudarc::{
    driver::{
        CudaContext, CudaFunction, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg,
        sys::{
            self, CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_DYNAMIC,
        },
    },
    nvrtc::Ptx,
};
use gqla_fakecuda::{Config, testing::Alone};

const ALL_ORDERS: [&str; 5] = ["own-first", "others-first", "1", "2", "3"];

/// Runs `body` in a process that finds the stand-in, once per order, with two devices and what `variables` say. Whether
/// that was done, and not the body itself.
fn alone(name: &str, orders: &[&str], variables: &[(&str, &str)], body: fn()) -> bool {
    orders.iter().all(|order| {
        let test = Alone::new(name).env(Config::DEVICES_ENV, "H20,H100").env(Config::ORDER_ENV, *order);
        let test = variables.iter().fold(test, |test, (name, value)| test.env(name, *value));
        let text = test.run(body);
        let told = |text: &String| text.contains("gqla-fakecuda: this is no CUDA driver");
        assert!(text.as_ref().is_none_or(told), "it must say what it is:\n{text:?}");
        text.is_some()
    })
}

/// `to[i] = 2 from[i]` for 64 threads; `wild` adds 4 * offset bytes to the address of `from`, `race` has no barrier.
const MODULE: &str = ".version 8.2\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 smem[];\n\
    .visible .entry twice(.param .u64 from, .param .u64 to, .param .u32 offset)\n.maxntid 64, 1, 1\n{\n\
    .reg .b64 %rd<6>;\n.reg .b32 %r<4>;\nld.param.u64 %rd1, [from];\nld.param.u64 %rd2, [to];\nld.param.u32 %r3, [offset];\n\
    mov.u32 %r1, %tid.x;\nmul.wide.u32 %rd3, %r1, 4;\ncvt.u64.u32 %rd5, %r3;\nadd.s64 %rd1, %rd1, %rd5;\nadd.s64 %rd4, %rd1, %rd3;\n\
    ld.global.u32 %r2, [%rd4];\nshl.b32 %r2, %r2, 1;\nadd.s64 %rd4, %rd2, %rd3;\nst.global.u32 [%rd4], %r2;\nret;\n}\n\
    .visible .entry race()\n{\n.reg .b32 %r<4>;\nmov.u32 %r1, smem;\nmov.u32 %r2, %tid.x;\nst.shared.u32 [%r1], %r2;\nret;\n}\n";

struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    twice: CudaFunction,
}

impl Device {
    fn open(ordinal: usize) -> Self {
        let context = CudaContext::new(ordinal).unwrap();
        let twice = context.load_module(Ptx::from_src(MODULE)).unwrap().load_function("twice").unwrap();
        Self { stream: context.default_stream(), context, twice }
    }

    /// Two streams that wait for nothing by themselves.
    fn without_tracking() -> (Self, Arc<CudaStream>, Arc<CudaStream>) {
        let device = Self::open(0);
        // SAFETY: this is about what happens when a program does not wait.
        unsafe { device.context.disable_event_tracking() };
        let (first, second) = (device.context.new_stream().unwrap(), device.context.new_stream().unwrap());
        (device, first, second)
    }

    fn twice(
        &self,
        stream: &Arc<CudaStream>,
        from: &CudaSlice<u32>,
        to: &mut CudaSlice<u32>,
        offset: u32,
    ) -> Result<(), DriverError> {
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the kernel takes these; where an offset leads elsewhere, the stand-in is to tell.
        unsafe { stream.launch_builder(&self.twice).arg(from).arg(to).arg(&offset).launch(config) }.map(drop)
    }
}

fn code<T>(result: Result<T, DriverError>) -> u32 {
    result.err().map_or(0, |error| error.0 as u32)
}

#[test]
fn a_program_runs_on_each_device() {
    alone("a_program_runs_on_each_device", &ALL_ORDERS, &[], || {
        assert_eq!(CudaContext::device_count().unwrap(), 2);
        for (ordinal, name, gib) in [(0, "NVIDIA H20", 95), (1, "NVIDIA H100 80GB HBM3", 79)] {
            let device = Device::open(ordinal);
            assert_eq!(
                (device.context.name().unwrap().as_str(), device.context.total_mem().unwrap() >> 30),
                (name, gib)
            );
            assert_eq!(device.context.compute_capability().unwrap(), (9, 0));
            let numbers: Vec<u32> = (0..64).map(|i| i * i + ordinal as u32).collect();
            let from = device.stream.clone_htod(&numbers).unwrap();
            let mut to = device.stream.alloc_zeros::<u32>(64).unwrap();
            device.twice(&device.stream, &from, &mut to, 0).unwrap();
            let copy = device.stream.clone_dtod(&to).unwrap();
            let out = device.stream.clone_dtoh(&copy).unwrap();
            assert_eq!(out, numbers.iter().map(|x| 2 * x).collect::<Vec<_>>());
            let (free, total) = device.context.mem_get_info().unwrap();
            assert!(total - free >= 3 * 256 && free > total / 2);
        }
    });
}

/// One stream writes, the other reads: what comes out with and without an event between.
fn written_then_read(waits: bool) -> Vec<u32> {
    let (device, writer, reader) = Device::without_tracking();
    let mut from = device.stream.clone_htod(&[1u32; 64]).unwrap();
    let mut to = device.stream.alloc_zeros::<u32>(64).unwrap();
    device.context.synchronize().unwrap();
    writer.memcpy_htod(&[5u32; 64], &mut from).unwrap();
    if waits {
        reader.join(&writer).unwrap();
    }
    device.twice(&reader, &from, &mut to, 0).unwrap();
    reader.clone_dtoh(&to).unwrap()
}

#[test]
fn a_stream_that_waits_sees_what_was_written() {
    alone("a_stream_that_waits_sees_what_was_written", &ALL_ORDERS, &[], || {
        assert_eq!(written_then_read(true), [10; 64])
    });
}

#[test]
fn a_forgotten_wait_gives_old_numbers() {
    alone("a_forgotten_wait_gives_old_numbers", &["own-first"], &[], || {
        assert_eq!(written_then_read(false), [2; 64])
    });
}

/// One stream reads, the other overwrites afterwards.
fn read_then_overwritten(waits: bool) -> Vec<u32> {
    let (device, reader, writer) = Device::without_tracking();
    let mut from = device.stream.clone_htod(&[1u32; 64]).unwrap();
    let mut to = device.stream.alloc_zeros::<u32>(64).unwrap();
    device.context.synchronize().unwrap();
    device.twice(&reader, &from, &mut to, 0).unwrap();
    if waits {
        writer.join(&reader).unwrap();
    }
    writer.memcpy_htod(&[5u32; 64], &mut from).unwrap();
    reader.clone_dtoh(&to).unwrap()
}

#[test]
fn overwriting_waits_for_readers() {
    alone("overwriting_waits_for_readers", &ALL_ORDERS, &[], || {
        assert_eq!(read_then_overwritten(true), [2; 64])
    });
}

#[test]
fn overwriting_too_early_is_seen() {
    alone("overwriting_too_early_is_seen", &["others-first"], &[], || {
        assert_eq!(read_then_overwritten(false), [10; 64])
    });
}

/// What the program reads of page-locked memory after it asked for a copy there, whether or not it waits for that.
fn copied_then_read(waits: bool) -> Vec<u32> {
    let device = Device::open(0);
    let from = device.stream.clone_htod(&[5u32; 64]).unwrap();
    // SAFETY: it is filled before it is read.
    let mut pinned = unsafe { device.context.alloc_pinned::<u32>(64) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(1);
    // cudarc waits for all copies before it gives the address, so that a program which does not wait took it before.
    let read = pinned.as_ptr().unwrap();
    device.stream.memcpy_dtoh(&from, &mut pinned).unwrap();
    if waits {
        device.stream.synchronize().unwrap();
    }
    // SAFETY: the memory is ours and nothing writes to it here but calls of the driver, of which none is under way.
    unsafe { std::slice::from_raw_parts(read, 64) }.to_vec()
}

#[test]
fn whoever_waits_reads_what_was_copied_to_page_locked_memory() {
    alone("whoever_waits_reads_what_was_copied_to_page_locked_memory", &ALL_ORDERS, &[], || {
        assert_eq!(copied_then_read(true), [5; 64]);
    });
}

#[test]
fn page_locked_memory_read_too_early_has_old_numbers() {
    alone("page_locked_memory_read_too_early_has_old_numbers", &ALL_ORDERS, &[], || {
        assert_eq!(copied_then_read(false), [1; 64]);
    });
}

/// One stream reads memory of another, which frees it once that was asked for.
fn launched_then_freed(waits: bool) -> Result<Vec<u32>, DriverError> {
    let (device, reader, owner) = Device::without_tracking();
    let from = owner.clone_htod(&[1u32; 64])?;
    let mut to = device.stream.alloc_zeros::<u32>(64)?;
    device.context.synchronize()?;
    device.twice(&reader, &from, &mut to, 0)?;
    if waits {
        owner.join(&reader)?;
    }
    drop(from);
    reader.clone_dtoh(&to)
}

#[test]
fn freeing_waits_for_launches() {
    alone("freeing_waits_for_launches", &ALL_ORDERS, &[], || {
        assert_eq!(launched_then_freed(true).unwrap(), [2; 64])
    });
}

#[test]
fn memory_freed_before_the_launch_that_reads_it_is_an_error() {
    alone("memory_freed_before_the_launch_that_reads_it_is_an_error", &["others-first"], &[], || {
        assert_eq!(code(launched_then_freed(false)), 700)
    });
}

#[test]
fn reading_what_another_stream_has_yet_to_write_is_an_error() {
    alone("reading_what_another_stream_has_yet_to_write_is_an_error", &["own-first"], &[], || {
        let (device, writer, reader) = Device::without_tracking();
        // SAFETY: nobody wrote it, which is the point.
        let mut from = unsafe { device.stream.alloc::<u32>(64) }.unwrap();
        let mut to = device.stream.alloc_zeros::<u32>(64).unwrap();
        device.context.synchronize().unwrap();
        writer.memcpy_htod(&[5u32; 64], &mut from).unwrap();
        device.twice(&reader, &from, &mut to, 0).unwrap();
        assert_eq!(code(reader.synchronize()), 719);
    });
}

#[test]
fn page_locked_memory_is_read_when_the_copy_runs() {
    alone("page_locked_memory_is_read_when_the_copy_runs", &ALL_ORDERS, &[], || {
        let device = Device::open(0);
        // SAFETY: it is filled before it is read.
        let mut pinned = unsafe { device.context.alloc_pinned::<u32>(64) }.unwrap();
        pinned.as_mut_slice().unwrap().fill(1);
        let mut to = device.stream.alloc_zeros::<u32>(64).unwrap();
        device.stream.memcpy_htod(&pinned, &mut to).unwrap();
        let early = pinned.as_mut_ptr().unwrap();
        device.stream.memcpy_htod(&pinned, &mut to).unwrap();
        // SAFETY: the memory is ours; that a copy of it is under way is the point.
        unsafe { early.write(7) };
        assert_eq!(device.stream.clone_dtoh(&to).unwrap()[..2], [7, 1]);
        // A pageable buffer may go as soon as the call returns.
        device.stream.memcpy_htod(&vec![9u32; 64], &mut to).unwrap();
        assert_eq!(device.stream.clone_dtoh(&to).unwrap(), [9; 64]);
    });
}

#[test]
fn what_cannot_be_loaded_or_launched_is_refused_with_cudas_codes() {
    alone(
        "what_cannot_be_loaded_or_launched_is_refused_with_cudas_codes",
        &["own-first"],
        &[("GQLA_FAKECUDA_DRIVER", "12.2")],
        || {
            let device = Device::open(0);
            let context = &device.context;
            let load = |text: &str| code(context.load_module(Ptx::from_src(text)));
            assert_eq!(
                load(&MODULE.replace(".version 8.2", ".version 8.8")),
                222,
                "a driver of CUDA 12.2 reads PTX 8.2"
            );
            assert_eq!(load(&MODULE.replace("sm_80", "sm_100")), 218);
            assert_eq!(load(&MODULE.replace("shl.b32", "shl.b33")), 218);
            assert_eq!(code(context.load_module(Ptx::from_binary(b"\x7fELF\x02\x01".to_vec()))), 209);
            assert_eq!(
                code(context.load_module(Ptx::from_src(MODULE)).unwrap().load_function("thrice")),
                500
            );
            // SAFETY: too much to be had.
            assert_eq!(code(unsafe { device.stream.alloc::<u8>(200 << 30) }), 2);
            assert_eq!(code(device.twice.set_attribute(MAX_DYNAMIC, 227 << 10)), 0);
            assert_eq!(code(device.twice.set_attribute(MAX_DYNAMIC, (227 << 10) + 1)), 1);
            let race = context.load_module(Ptx::from_src(MODULE)).unwrap().load_function("race").unwrap();
            let launch = |threads: u32, shared: u32| {
                let config = LaunchConfig {
                    grid_dim: (1, 1, 1),
                    block_dim: (threads, 1, 1),
                    shared_mem_bytes: shared,
                };
                // SAFETY: refused before it runs.
                code(unsafe { device.stream.launch_builder(&race).launch(config) })
            };
            assert_eq!(launch(2048, 0), 1, "more threads than a block can have");
            assert_eq!(launch(64, 49 << 10), 1, "more shared memory than was opted in to");
            let wide = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (96, 1, 1), shared_mem_bytes: 0 };
            let numbers = device.stream.alloc_zeros::<u32>(64).unwrap();
            // SAFETY: refused before it runs.
            let refused = unsafe {
                device
                    .stream
                    .launch_builder(&device.twice)
                    .arg(&numbers)
                    .arg(&numbers)
                    .arg(&0u32)
                    .launch(wide)
            };
            assert_eq!(code(refused), 701, "more threads than the kernel was compiled for");
            assert_eq!(code(context.synchronize()), 0, "nothing of this broke the context");
        },
    );
}

#[test]
fn errors_of_kernels_stay_with_their_context() {
    alone("errors_of_kernels_stay_with_their_context", &["own-first", "others-first"], &[], || {
        let device = Device::open(0);
        let from = device.stream.clone_htod(&[1u32; 64]).unwrap();
        let mut to = device.stream.alloc_zeros::<u32>(64).unwrap();
        let launched = device.twice(&device.stream, &from, &mut to, 4096);
        assert_eq!(code(launched), 0, "the launch returns before anything runs");
        assert_eq!(code(device.stream.synchronize()), 700);
        assert_eq!(code(device.stream.alloc_zeros::<u32>(1)), 700, "the error stays");
        assert_eq!(code(device.twice(&device.stream, &from, &mut to, 0)), 700);
        let other = Device::open(1);
        let from = other.stream.clone_htod(&[1u32; 64]).unwrap();
        let mut to = other.stream.alloc_zeros::<u32>(64).unwrap();
        other.twice(&other.stream, &from, &mut to, 2).unwrap();
        assert_eq!(code(other.stream.synchronize()), 716);
    });
}

#[test]
fn races_fail_the_launch() {
    alone("races_fail_the_launch", &["own-first"], &[], || {
        let device = Device::open(0);
        let race = device.context.load_module(Ptx::from_src(MODULE)).unwrap().load_function("race").unwrap();
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 16 };
        // SAFETY: it stays in its own shared memory.
        unsafe { device.stream.launch_builder(&race).launch(config) }.unwrap();
        assert_eq!(code(device.stream.synchronize()), 719);
    });
}

#[test]
fn launches_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.jsonl");
    let body = || {
        let device = Device::open(0);
        let from = device.stream.clone_htod(&[1u32; 64]).unwrap();
        let mut to = device.stream.alloc_zeros::<u32>(64).unwrap();
        device.twice(&device.stream, &from, &mut to, 0).unwrap();
        device.stream.synchronize().unwrap();
    };
    let report = [(Config::REPORT_ENV, path.to_str().unwrap())];
    if alone("launches_are_reported", &["own-first"], &report, body) {
        assert_report(&path);
    }
}

fn assert_report(path: &Path) {
    let text = std::fs::read_to_string(path).unwrap();
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&line["kernel"], &line["block"][0]), (&"twice".into(), &64.into()));
    assert_eq!(line["counters"]["global_loads"]["bytes"], 256);
    let buffers: Vec<_> = line["buffers"].as_object().unwrap().values().collect();
    assert_eq!((&buffers[0]["read"], &buffers[1]["written"]), (&256.into(), &256.into()));
    assert_eq!(line["faults"]["counts"], serde_json::json!({}));
}

#[test]
fn without_devices_it_is_none() {
    alone("without_devices_it_is_none", &["own-first"], &[(Config::DEVICES_ENV, "")], || {
        assert_eq!(code(CudaContext::new(0)), 100);
    });
}

/// What cudarc itself does when there is no library at all, which programs have to ask about first.
#[test]
fn a_missing_library_can_be_asked_about() {
    // SAFETY: opening the library runs no code of it that depends on us.
    let present = unsafe { sys::is_culib_present() };
    assert!(!present || Path::new("/dev/nvidia0").exists(), "the stand-in must not be found unasked");
}
