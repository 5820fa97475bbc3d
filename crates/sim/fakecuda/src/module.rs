//! Modules, functions and launches.

use std::{collections::BTreeMap, sync::Arc};

use gqla_ptxsim::{
    Architecture, FaultKind, GlobalMemory, Kernel, Launch, LaunchError, Module, Report, SHARED_PER_BLOCK,
    Schedule, check, launch, parse,
};
use serde::Serialize;

use crate::code::Code;

/// Instructions of warps after which a launch counts as hanging; a minute or two here.
const INSTRUCTION_LIMIT: u64 = 4_000_000_000;

/// Loaded modules and the functions asked of them.
#[derive(Default)]
pub(crate) struct Modules {
    modules: BTreeMap<usize, Arc<Module>>,
    functions: BTreeMap<usize, Function>,
    next: usize,
}

struct Function {
    module: usize,
    name: String,
    /// Dynamic shared memory that the program opted in to.
    max_dynamic: u32,
}

/// A launch that was checked and waits for its turn.
pub(crate) struct Prepared {
    module: Arc<Module>,
    name: String,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    dynamic_shared: u32,
    params: Vec<u8>,
    architecture: Architecture,
}

/// One line of the report.
#[derive(Serialize)]
pub(crate) struct ReportLine<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    #[serde(flatten)]
    pub report: &'a Report,
}

impl Modules {
    /// Loads PTX that is no newer than `newest`, if that matters; what is not text is for a real driver only.
    pub fn load(
        &mut self,
        image: &[u8],
        newest: Option<(u32, u32)>,
        architecture: Architecture,
    ) -> Result<usize, Code> {
        let text = std::str::from_utf8(image).map_err(|_| Code::INVALID_IMAGE)?;
        let refused = |reason: String, code: Code| {
            eprintln!("gqla-fakecuda: module refused: {reason}");
            code
        };
        let module = parse(text).map_err(|error| refused(error.to_string(), Code::INVALID_PTX))?;
        if let Some(newest) = newest.filter(|newest| module.version > *newest) {
            let reason = format!("PTX {:?}, this driver reads up to {newest:?}", module.version);
            return Err(refused(reason, Code::UNSUPPORTED_PTX_VERSION));
        }
        if !architecture.runs(&module.target) {
            let reason = format!("PTX for {}, the device has {:?}", module.target, architecture.capability);
            return Err(refused(reason, Code::INVALID_PTX));
        }
        self.next += 0x10;
        self.modules.insert(self.next, Arc::new(module));
        Ok(self.next)
    }

    pub fn unload(&mut self, module: usize) -> Result<(), Code> {
        self.functions.retain(|_, function| function.module != module);
        self.modules.remove(&module).map(drop).ok_or(Code::INVALID_HANDLE)
    }

    pub fn function(&mut self, module: usize, name: &str) -> Result<usize, Code> {
        let loaded = self.modules.get(&module).ok_or(Code::INVALID_HANDLE)?;
        loaded.kernel(name).ok_or(Code::NOT_FOUND)?;
        self.next += 0x10;
        self.functions
            .insert(self.next, Function { module, name: name.to_owned(), max_dynamic: SHARED_PER_BLOCK });
        Ok(self.next)
    }

    fn of(&self, function: usize) -> Result<(&Function, &Arc<Module>), Code> {
        let function = self.functions.get(&function).ok_or(Code::INVALID_HANDLE)?;
        Ok((function, self.modules.get(&function.module).ok_or(Code::INVALID_HANDLE)?))
    }

    /// The kernel that a function stands for.
    pub fn kernel(&self, function: usize) -> Result<&Kernel, Code> {
        let (function, module) = self.of(function)?;
        module.kernel(&function.name).ok_or(Code::INVALID_HANDLE)
    }

    pub fn max_dynamic(&self, function: usize) -> Result<u32, Code> {
        Ok(self.of(function)?.0.max_dynamic)
    }

    /// Opts in to more dynamic shared memory.
    pub fn set_max_dynamic(
        &mut self,
        function: usize,
        bytes: u32,
        architecture: Architecture,
    ) -> Result<(), Code> {
        let declared = self.kernel(function)?.static_shared;
        if bytes > architecture.shared_per_block_optin.saturating_sub(declared) {
            return Err(Code::INVALID_VALUE);
        }
        let function = self.functions.get_mut(&function).ok_or(Code::INVALID_HANDLE)?;
        function.max_dynamic = bytes;
        Ok(())
    }

    /// Checks a launch as a driver does before it returns.
    pub fn prepare(
        &self,
        function: usize,
        grid: [u32; 3],
        block: [u32; 3],
        dynamic_shared: u32,
        params: Vec<u8>,
        architecture: Architecture,
    ) -> Result<Prepared, Code> {
        let (function, module) = self.of(function)?;
        let prepared = Prepared {
            module: module.clone(),
            name: function.name.clone(),
            grid,
            block,
            dynamic_shared,
            params,
            architecture,
        };
        let refused = |error: LaunchError| {
            eprintln!("gqla-fakecuda: launch refused: {error}");
            match error {
                LaunchError::Threads { .. } => Code::LAUNCH_OUT_OF_RESOURCES,
                _ => Code::INVALID_VALUE,
            }
        };
        check(&prepared.launch()?).map_err(refused)?;
        if dynamic_shared > function.max_dynamic {
            eprintln!(
                "gqla-fakecuda: launch refused: {} asks for {dynamic_shared} bytes of dynamic shared memory and opted in to {}",
                function.name, function.max_dynamic
            );
            return Err(Code::INVALID_VALUE);
        }
        Ok(prepared)
    }
}

impl Prepared {
    fn launch(&self) -> Result<Launch<'_>, Code> {
        Ok(Launch {
            kernel: self.module.kernel(&self.name).ok_or(Code::INVALID_HANDLE)?,
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.dynamic_shared,
            params: &self.params,
            architecture: self.architecture,
            schedule: Schedule::Forward,
            instruction_limit: INSTRUCTION_LIMIT,
        })
    }

    /// Runs it with warps in the order of `schedule`.
    pub fn run(&self, memory: &mut GlobalMemory, schedule: Schedule) -> Result<Report, Code> {
        launch(&Launch { schedule, ..self.launch()? }, memory).map_err(|_| Code::INVALID_VALUE)
    }

    pub fn line<'a>(&'a self, report: &'a Report) -> ReportLine<'a> {
        ReportLine {
            kernel: &self.name,
            grid: self.grid,
            block: self.block,
            dynamic_shared: self.dynamic_shared,
            report,
        }
    }
}

/// The error that a GPU, or who checks one, gives for the first of these faults.
pub(crate) fn code_of(report: &Report) -> Option<Code> {
    let kind = report.faults.first.first()?.kind;
    Some(match kind {
        FaultKind::GlobalOutOfBoundsRead
        | FaultKind::GlobalOutOfBoundsWrite
        | FaultKind::SharedOutOfBounds
        | FaultKind::OutOfBounds
        | FaultKind::ReadOnly => Code::ILLEGAL_ADDRESS,
        FaultKind::Misaligned => Code::MISALIGNED_ADDRESS,
        FaultKind::Endless => Code::LAUNCH_TIMEOUT,
        FaultKind::Trap
        | FaultKind::GlobalUninitialised
        | FaultKind::SharedUninitialised
        | FaultKind::SharedReadAfterWrite
        | FaultKind::SharedWriteAfterWrite
        | FaultKind::SharedWriteAfterRead
        | FaultKind::SharedInFlight
        | FaultKind::DivergentCollective => Code::LAUNCH_FAILED,
    })
}
