//! A device with its stream, and its memory.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, CudaStream, CudaViewMut, DevicePtr, DeviceRepr, DriverError,
    PinnedHostSlice, ValidAsZeroBits,
    sys::{self, CUdevice_attribute, cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY},
};

use super::{DeviceError, Limits, Multiprocessors, error::reason_of};

/// One GPU, with one stream in which everything happens in order.
pub struct Device {
    context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    name: String,
    limits: Limits,
    multiprocessors: Multiprocessors,
    staging: Mutex<Option<Staging>>,
}

/// Page-locked memory through which weights go, half by half: while one is on its way, the other is filled, with the end of a
/// matrix or with many small ones. From other memory the driver copies a third as fast, and the host waits for it.
struct Staging {
    halves: [(PinnedHostSlice<u8>, CudaEvent); 2],
    /// The half that is filled, and bytes in it.
    half: usize,
    filled: usize,
}

/// Bytes of a half.
const HALF_BYTES: usize = 16 << 20;

impl Staging {
    fn new(context: &Arc<CudaContext>) -> Result<Self, DriverError> {
        let half = || -> Result<_, DriverError> {
            // SAFETY: it is written before it is read.
            let memory = unsafe { context.alloc_pinned::<u8>(HALF_BYTES) }?;
            Ok((memory, context.new_event(None)?))
        };
        Ok(Self { halves: [half()?, half()?], half: 0, filled: 0 })
    }

    fn copy(
        &mut self,
        stream: &Arc<CudaStream>,
        mut bytes: &[u8],
        to: &mut CudaViewMut<'_, u8>,
    ) -> Result<(), DriverError> {
        let mut at = 0;
        while !bytes.is_empty() {
            let (memory, left) = &mut self.halves[self.half];
            if self.filled == 0 {
                // What was here before.
                left.synchronize()?;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(HALF_BYTES - self.filled));
            // cudarc's own event is none, since nothing else here needs events: it does not wait for the parts before.
            let place = &mut memory.as_mut_slice()?[self.filled..][..part.len()];
            place.copy_from_slice(part);
            stream.memcpy_htod(&*place, &mut to.slice_mut(at..at + part.len()))?;
            left.record(stream)?;
            (bytes, at, self.filled) = (rest, at + part.len(), self.filled + part.len());
            if self.filled == HALF_BYTES {
                (self.half, self.filled) = (1 - self.half, 0);
            }
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // What is here may be freed when it has left. A device that failed reads no more.
        for (_, left) in &self.halves {
            let _ = left.synchronize();
        }
    }
}

/// What buffers hold: plain numbers of which every bit pattern is one.
pub trait Number: DeviceRepr + ValidAsZeroBits + bytemuck::Pod + Default + private::Sealed {}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for i32 {}
    impl Sealed for half::bf16 {}
}

impl Number for f32 {}
impl Number for i32 {}
impl Number for half::bf16 {}

/// Numbers on a device. What nobody wrote is unspecified.
pub struct Buffer<T> {
    pub(super) slice: CudaSlice<T>,
}

impl<T> Buffer<T> {
    /// Numbers it holds.
    pub fn len(&self) -> usize {
        self.slice.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its address on the device, as reports of launches name it.
    pub fn address(&self) -> u64 {
        // One stream does everything in order, so there is nothing to wait for.
        self.slice.device_ptr(self.slice.stream()).0
    }
}

impl Device {
    /// Opens device `ordinal` of those that the driver shows.
    ///
    /// # Errors
    /// When there is no driver, no such device, or the driver refuses.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        expect_driver()?;
        let no_device = |error: DriverError| DeviceError::NoDevice { ordinal, reason: reason_of(error) };
        let context = CudaContext::new(ordinal).map_err(no_device)?;
        // SAFETY: all work goes to one stream, in order, so no event needs to order it.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(no_device)?;
        let attribute =
            |attribute| context.attribute(attribute).map(|value| value.unsigned_abs()).map_err(no_device);
        let limits = Limits {
            capability: (
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            shared_per_block: attribute(
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
        };
        let multiprocessors = Multiprocessors {
            count: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            threads: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
            shared_bytes: attribute(
                CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
            )?,
        };
        let name = context.name().map_err(no_device)?;
        Ok(Self { context, stream, name, limits, multiprocessors, staging: Mutex::new(None) })
    }

    /// How many devices the driver shows.
    ///
    /// # Errors
    /// When there is no driver, or it refuses.
    pub fn count() -> Result<usize, DeviceError> {
        expect_driver()?;
        let count = CudaContext::device_count().map_err(DeviceError::driver("asking for devices"))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// The newest CUDA that the driver serves, 12.9 is (12, 9).
    ///
    /// # Errors
    /// When there is no driver, or it refuses.
    pub fn driver_version() -> Result<(u32, u32), DeviceError> {
        expect_driver()?;
        let mut version = 0;
        // SAFETY: the driver is there, and writes one number.
        let asked = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
        asked.map_err(DeviceError::driver("asking for the driver's version"))?;
        let version = version.unsigned_abs();
        Ok((version / 1000, version % 1000 / 10))
    }

    /// The name that the driver gives it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What blocks of kernels may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// What blocks that run at once share.
    pub fn multiprocessors(&self) -> Multiprocessors {
        self.multiprocessors
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Free and total bytes.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn memory(&self) -> Result<(usize, usize), DeviceError> {
        self.context.mem_get_info().map_err(DeviceError::driver("asking for free memory"))
    }

    /// Room for `len` numbers that nobody has written; `what` says for people what they are.
    ///
    /// # Errors
    /// When memory is short.
    pub fn unwritten<T: Number>(&self, what: &str, len: usize) -> Result<Buffer<T>, DeviceError> {
        self.bind()?;
        // SAFETY: every bit pattern is a `Number`. CUDA allocates no zero bytes, so there is always one number.
        let slice = unsafe { self.stream.alloc(len.max(1)) };
        Ok(Buffer { slice: slice.map_err(|error| self.short(what, len * size_of::<T>(), error))? })
    }

    fn short(&self, what: &str, bytes: usize, error: DriverError) -> DeviceError {
        match (error.0, self.memory()) {
            (CUDA_ERROR_OUT_OF_MEMORY, Ok((free, total))) => DeviceError::OutOfMemory {
                what: what.to_owned(),
                bytes,
                free,
                total,
                advice: "give the model more GPUs or a larger one, or lower the context length or the cache's share",
            },
            _ => DeviceError::driver(format!("allocating {bytes} bytes for {what}"))(error),
        }
    }

    /// Makes all numbers of a buffer 0.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn clear<T: Number>(&self, buffer: &mut Buffer<T>) -> Result<(), DeviceError> {
        self.bind()?;
        self.stream
            .memset_zeros(&mut buffer.slice)
            .map_err(DeviceError::driver("clearing memory on the device"))
    }

    /// Copies numbers to new memory.
    ///
    /// # Errors
    /// When memory is short, or the driver refuses.
    pub fn upload<T: Number>(&self, what: &str, numbers: &[T]) -> Result<Buffer<T>, DeviceError> {
        let mut buffer = self.unwritten(what, numbers.len())?;
        self.write(&mut buffer, 0, numbers)?;
        Ok(buffer)
    }

    /// The same for what stays: through page-locked memory, which is there until [`Self::release_staging`].
    ///
    /// # Errors
    /// When memory is short, or the driver refuses.
    pub fn upload_weights<T: Number>(&self, what: &str, numbers: &[T]) -> Result<Buffer<T>, DeviceError> {
        let mut buffer = self.unwritten(what, numbers.len())?;
        self.write_weights(&mut buffer, 0, numbers)?;
        Ok(buffer)
    }

    /// Copies numbers over those from `at` on.
    ///
    /// # Errors
    /// When they do not fit, or the driver refuses.
    pub fn write<T: Number>(&self, to: &mut Buffer<T>, at: usize, numbers: &[T]) -> Result<(), DeviceError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let mut place = place(to, at, numbers.len())?;
        self.bind()?;
        self.stream.memcpy_htod(numbers, &mut place).map_err(DeviceError::driver("copying to the device"))
    }

    /// The same through page-locked memory, as [`Self::upload_weights`].
    ///
    /// # Errors
    /// When they do not fit, or the driver refuses.
    pub fn write_weights<T: Number>(
        &self,
        to: &mut Buffer<T>,
        at: usize,
        numbers: &[T],
    ) -> Result<(), DeviceError> {
        if numbers.is_empty() {
            return Ok(());
        }
        let mut place = place(to, at, numbers.len())?;
        let bytes: &[u8] = bytemuck::cast_slice(numbers);
        // SAFETY: bytes of numbers of which every bit pattern is one.
        let place = unsafe { place.transmute_mut::<u8>(bytes.len()) };
        let mut place = place.ok_or_else(|| DeviceError::arguments("write", "bytes exceed their numbers"))?;
        self.bind()?;
        let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let copied = match &mut *staging {
            Some(staging) => staging.copy(&self.stream, bytes, &mut place),
            None => Staging::new(&self.context)
                .and_then(|new| staging.insert(new).copy(&self.stream, bytes, &mut place)),
        };
        copied.map_err(DeviceError::driver("copying to the device"))
    }

    /// Gives back what weights went through.
    pub fn release_staging(&self) {
        *self.staging.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits for all work and copies the first `len` numbers back.
    ///
    /// # Errors
    /// When there are fewer, or any work so far failed.
    pub fn download<T: Number>(&self, from: &Buffer<T>, len: usize) -> Result<Vec<T>, DeviceError> {
        let mut numbers = vec![T::default(); len];
        if len == 0 {
            return Ok(numbers);
        }
        let place = from
            .slice
            .try_slice(..len)
            .ok_or_else(|| DeviceError::arguments("download", format!("{len} numbers of {}", from.len())))?;
        self.bind()?;
        let copied = self.stream.memcpy_dtoh(&place, &mut numbers).and_then(|()| self.stream.synchronize());
        copied.map_err(DeviceError::driver("work on the device"))?;
        Ok(numbers)
    }

    /// Waits for all work.
    ///
    /// # Errors
    /// When any of it failed.
    pub fn wait(&self) -> Result<(), DeviceError> {
        self.bind()?;
        self.stream.synchronize().map_err(DeviceError::driver("work on the device"))
    }

    /// Copies `len` numbers of a buffer from one place to another that does not overlap it.
    ///
    /// # Errors
    /// When a place is not there or they overlap, or the driver refuses.
    pub fn copy<T: Number>(
        &self,
        buffer: &mut Buffer<T>,
        from: usize,
        to: usize,
        len: usize,
    ) -> Result<(), DeviceError> {
        let apart = from.abs_diff(to) >= len && from.max(to) + len <= buffer.len();
        if !apart {
            let reason = format!("{len} numbers from {from} to {to} of {}", buffer.len());
            return Err(DeviceError::arguments("copy", reason));
        }
        self.bind()?;
        let (mut low, mut high) = buffer.slice.split_at_mut(from.max(to));
        let copied = if from < to {
            self.stream.memcpy_dtod(&low.slice(from..from + len), &mut high.slice_mut(..len))
        } else {
            self.stream.memcpy_dtod(&high.slice(..len), &mut low.slice_mut(to..to + len))
        };
        copied.map_err(DeviceError::driver("copying on the device"))
    }

    /// Threads that did not open the device must take its context first.
    pub(super) fn bind(&self) -> Result<(), DeviceError> {
        self.context.bind_to_thread().map_err(DeviceError::driver("taking the device's context"))
    }
}

/// Where `count` numbers from `at` on are.
fn place<T: Number>(to: &mut Buffer<T>, at: usize, count: usize) -> Result<CudaViewMut<'_, T>, DeviceError> {
    let len = to.len();
    to.slice.try_slice_mut(at..at + count).ok_or_else(|| {
        DeviceError::arguments("write", format!("{count} numbers at {at} do not fit into {len}"))
    })
}

/// cudarc panics where there is no driver.
fn expect_driver() -> Result<(), DeviceError> {
    // SAFETY: it only tries to open the library, whose initialisers the driver's vendor vouches for.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(DeviceError::NoDriver) }
}
