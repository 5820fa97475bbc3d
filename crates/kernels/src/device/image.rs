//! From a program to a module on the device: an image made for it, else PTX, else what NVRTC makes now.

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use cudarc::{
    driver::{CudaContext, CudaFunction, CudaModule, DriverError},
    nvrtc::Ptx,
};
use gqla_model::launch;

use super::{
    Device, DeviceError, Multiprocessors, Program,
    error::reason_of,
    nvrtc::{self, Target, compile},
};

/// The virtual architecture that kernels are written for; devices of later ones compile its PTX.
const OLDEST: Target = Target::Ptx(launch::OLDEST.0, launch::OLDEST.1);

/// Compute capabilities that images have machine code for; drivers compile PTX for others.
pub const ARCHITECTURES: [(u32, u32); 5] = [(8, 0), (8, 9), (9, 0), (10, 0), (12, 0)];

/// Where our container image has them, from the folder above that of its programs.
const BESIDE_PROGRAMS: &str = "share/gqla/kernels";

/// Where images of programs lie: a folder with `STEM-sm_90.cubin` and `STEM-compute_80.ptx` for each program's
/// [`Program::stem`], or none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Images {
    folder: Option<PathBuf>,
}

/// Where a module came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageSource {
    /// A file of the device's machine code.
    CubinFile,
    /// A file of PTX, which the driver compiled.
    PtxFile,
    /// PTX from NVRTC.
    NvrtcPtx,
    /// Machine code from NVRTC, for drivers that do not read its PTX.
    NvrtcCubin,
}

impl fmt::Display for ImageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CubinFile => "cubin file",
            Self::PtxFile => "PTX file",
            Self::NvrtcPtx => "PTX from NVRTC",
            Self::NvrtcCubin => "cubin from NVRTC",
        })
    }
}

const CHAIN: [ImageSource; 4] =
    [ImageSource::CubinFile, ImageSource::PtxFile, ImageSource::NvrtcPtx, ImageSource::NvrtcCubin];

/// What a thread of a kernel takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Registers of 32 bits.
    pub registers: u32,
    /// Bytes of local memory: what did not fit in registers. These kernels declare none.
    pub local_bytes: u32,
    /// Bytes of shared memory that a block declares, besides what launches add.
    pub shared_bytes: u32,
}

/// A loaded program.
pub struct Loaded {
    module: Arc<CudaModule>,
    program: Program,
    capability: (u32, u32),
    multiprocessors: Multiprocessors,
    /// Where it came from.
    pub source: ImageSource,
    /// Why earlier steps did not do, a sentence for each.
    pub refusals: Vec<String>,
}

impl Images {
    /// Those of a folder.
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: Some(folder.to_owned()) }
    }

    /// Those of `folder`, else those that our container image has beside its programs.
    pub fn find(folder: Option<&Path>) -> Self {
        let beside = || Some(std::env::current_exe().ok()?.parent()?.parent()?.join(BESIDE_PROGRAMS));
        Self { folder: folder.map(Path::to_owned).or_else(beside) }
    }

    /// Loads a program by the first step that does.
    ///
    /// # Errors
    /// When the device is too old for any, or none does, with each step's reason.
    pub fn load(&self, device: &Device, program: &Program) -> Result<Loaded, DeviceError> {
        device.limits().run_kernels()?;
        device.bind()?;
        let mut refusals = Vec::new();
        for source in CHAIN {
            let image = self.image(source, device.limits().capability, program);
            let loaded = image.and_then(|image| load(device.context(), source, image));
            match loaded {
                Ok(module) => {
                    let (program, capability) = (program.clone(), device.limits().capability);
                    let multiprocessors = device.multiprocessors();
                    return Ok(Loaded { module, program, capability, multiprocessors, source, refusals });
                }
                Err(reason) => refusals.push(format!("{source}: {reason}")),
            }
        }
        let (major, minor) = device.limits().capability;
        let device = format!("{} (sm_{major}{minor})", device.name());
        Err(DeviceError::NoImage { program: program.stem(), device, refusals })
    }

    fn image(
        &self,
        source: ImageSource,
        (major, minor): (u32, u32),
        program: &Program,
    ) -> Result<Vec<u8>, String> {
        match source {
            ImageSource::CubinFile => self.file(program, Target::Cubin(major, minor)),
            ImageSource::PtxFile => self.file(program, OLDEST),
            ImageSource::NvrtcPtx => compile(program, OLDEST),
            ImageSource::NvrtcCubin => compile(program, Target::Cubin(major, minor)),
        }
    }

    fn file(&self, program: &Program, target: Target) -> Result<Vec<u8>, String> {
        let Some(folder) = &self.folder else { return Err("no folder of images was given".to_owned()) };
        let path = folder.join(file_name(program, target));
        std::fs::read(&path).map_err(|error| {
            let others = others_in(folder, program);
            let others = if others.is_empty() { String::new() } else { format!("; there are {others}") };
            format!("`{}`: {error}{others}", path.display())
        })
    }

    /// Compiles a program into `folder`: machine code for each of `architectures`, and PTX. Needs NVRTC, and no device.
    ///
    /// # Errors
    /// When there is no NVRTC or the folder cannot be written.
    pub fn write(folder: &Path, program: &Program, architectures: &[(u32, u32)]) -> Result<(), DeviceError> {
        let cubins = architectures.iter().map(|(major, minor)| Target::Cubin(*major, *minor));
        for target in cubins.chain([OLDEST]) {
            let image = compile(program, target);
            let path = folder.join(file_name(program, target));
            let written = image.and_then(|image| {
                let image =
                    if target == OLDEST { image.strip_suffix(b"\0").unwrap_or(&image) } else { &image };
                std::fs::write(&path, image).map_err(|error| error.to_string())
            });
            written.map_err(|reason| DeviceError::Image { path, reason })?;
        }
        Ok(())
    }
}

fn file_name(program: &Program, target: Target) -> String {
    let stem = program.stem();
    match target {
        Target::Ptx(major, minor) => format!("{stem}-compute_{major}{minor}.ptx"),
        Target::Cubin(major, minor) => format!("{stem}-sm_{major}{minor}.cubin"),
    }
}

/// The same kernels for other numbers of which a folder has images, with commas between.
fn others_in(folder: &Path, program: &Program) -> String {
    let (stem, files) = (program.stem(), std::fs::read_dir(folder).into_iter().flatten().flatten());
    let (name, kind) = (stem.split('-').next().unwrap_or(&stem), file_name(program, OLDEST));
    let kind = kind.trim_start_matches(&stem);
    let names = files.filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(kind)?.to_owned()));
    let mut others: Vec<String> =
        names.filter(|other| *other != stem && other.split('-').next() == Some(name)).collect();
    others.sort();
    others.join(", ")
}

fn load(context: &Arc<CudaContext>, source: ImageSource, image: Vec<u8>) -> Result<Arc<CudaModule>, String> {
    let ptx = match source {
        ImageSource::CubinFile | ImageSource::NvrtcCubin => Ptx::from_binary(image),
        ImageSource::PtxFile | ImageSource::NvrtcPtx => {
            let text = String::from_utf8(image).map_err(|_| "PTX is no text".to_owned())?;
            Ptx::from_src(text.trim_end_matches('\0'))
        }
    };
    context.load_module(ptx).map_err(reason_of)
}

impl Loaded {
    /// A kernel of the program.
    pub(super) fn kernel(&self, name: &str) -> Result<CudaFunction, DeviceError> {
        self.module.load_function(name).map_err(DeviceError::driver(format!("looking for kernel `{name}`")))
    }

    /// Bytes of shared memory that a kernel declares, besides what launches add.
    pub(super) fn declared_shared(&self, kernel: &str) -> Result<u32, DeviceError> {
        let bytes = self.kernel(kernel)?.shared_size_bytes();
        let doing = format!("asking for the shared memory of `{kernel}`");
        bytes.map(i32::unsigned_abs).map_err(DeviceError::driver(doing))
    }

    /// What the driver says that a kernel takes; `None` where it cannot tell, as one that executes PTX.
    pub(super) fn resources(&self, kernel: &str) -> Result<Option<Resources>, DeviceError> {
        let function = self.kernel(kernel)?;
        let of = |function: &CudaFunction| -> Result<Resources, DriverError> {
            let told = [function.num_regs()?, function.local_size_bytes()?, function.shared_size_bytes()?];
            let [registers, local_bytes, shared_bytes] = told.map(i32::unsigned_abs);
            Ok(Resources { registers, local_bytes, shared_bytes })
        };
        Ok(of(&function).ok())
    }

    pub(super) fn multiprocessors(&self) -> Multiprocessors {
        self.multiprocessors
    }

    /// Blocks of a kernel that the device runs at once.
    pub(super) fn blocks(&self, kernel: &str, threads: u32, shared_bytes: u32) -> Result<u32, DeviceError> {
        let registers = self.resources(kernel)?.map(|resources| resources.registers);
        let shared_bytes = shared_bytes + self.declared_shared(kernel)?;
        Ok(self.multiprocessors.blocks(threads, shared_bytes, registers))
    }

    /// What the assembler in NVRTC gives each kernel on this device; none where there is no NVRTC.
    pub(super) fn assembled(&self) -> BTreeMap<String, Resources> {
        nvrtc::resources(&self.program, self.capability).unwrap_or_default()
    }
}
