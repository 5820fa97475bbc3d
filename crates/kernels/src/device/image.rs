//! From a program to a module on the device: an image made for it, else PTX, else what NVRTC makes now.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use cudarc::{
    driver::{CudaContext, CudaFunction, CudaModule},
    nvrtc::Ptx,
};

use super::{
    Device, DeviceError, Program,
    error::reason_of,
    nvrtc::{Target, compile},
};

/// The virtual architecture that kernels are written for; devices of later ones compile its PTX.
const OLDEST: (u32, u32) = (8, 0);

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

/// A loaded program.
pub struct Loaded {
    module: Arc<CudaModule>,
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

    /// Loads a program by the first step that does.
    ///
    /// # Errors
    /// When none does, with each step's reason.
    pub fn load(&self, device: &Device, program: &Program) -> Result<Loaded, DeviceError> {
        device.bind()?;
        let mut refusals = Vec::new();
        for source in CHAIN {
            let image = self.image(source, device.limits().capability, program);
            let loaded = image.and_then(|image| load(device.context(), source, image));
            match loaded {
                Ok(module) => return Ok(Loaded { module, source, refusals }),
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
            ImageSource::CubinFile => self.file(program, &format!("sm_{major}{minor}.cubin")),
            ImageSource::PtxFile => self.file(program, &format!("compute_{}{}.ptx", OLDEST.0, OLDEST.1)),
            ImageSource::NvrtcPtx => compile(program, Target::Ptx(OLDEST.0, OLDEST.1)),
            ImageSource::NvrtcCubin => compile(program, Target::Cubin(major, minor)),
        }
    }

    fn file(&self, program: &Program, kind: &str) -> Result<Vec<u8>, String> {
        let Some(folder) = &self.folder else { return Err("no folder of images was given".to_owned()) };
        let path = folder.join(format!("{}-{kind}", program.stem()));
        std::fs::read(&path).map_err(|error| format!("`{}`: {error}", path.display()))
    }
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
}
