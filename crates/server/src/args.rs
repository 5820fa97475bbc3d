//! The command line, first as typed, then as a [`Config`] that this version can really run.

mod choices;

use std::{net::SocketAddr, num::NonZeroUsize, path::PathBuf, time::Duration};

use clap::Parser;
use gqla_engine::{
    DraftSource, PromptLookup, Speculation, SpeculationError,
    cpu::{CacheFormat, CacheMemory, Precision},
    cuda,
};
use gqla_model::DecodePath;
use gqla_telemetry::LogFormat;

use crate::speculation::{Drafts, SpeculativeDepth, SpeculativeMethod};
pub use choices::{ComputeDtype, Device, KvCacheDtype, PromptAttention, PromptGemm, WeightDtype};

/// Tensor-parallel ranks of a server.
const MAX_RANKS: u32 = 8;

/// Serves a GQLA model over the OpenAI API.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    serve: Option<ServeArgs>,
    /// Log lines for people (text) or machines (json). RUST_LOG filters them.
    #[arg(long, default_value_t, global = true, env = "GQLA_LOG_FORMAT")]
    pub log_format: LogFormat,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Writes the model's shape to a file, for the operator.
    Inspect(InspectTarget),
}

/// What to inspect and where the answer goes.
#[derive(Debug, clap::Args)]
pub struct InspectTarget {
    /// Directory with config.json and safetensors, or a .gguf file.
    #[arg(long)]
    pub model: PathBuf,
    /// Receives one JSON object of at most 4 KiB, e.g. /dev/termination-log.
    #[arg(long)]
    pub output: PathBuf,
}

#[derive(Debug, clap::Args)]
struct ServeArgs {
    /// Directory with config.json and safetensors, or a .gguf file.
    #[arg(long)]
    model: PathBuf,
    /// The name clients ask for; by default the last part of --model.
    #[arg(long)]
    served_model_name: Option<String>,
    /// auto asks the planner; mqa-absorb and gqa are orders.
    #[arg(long, default_value = "auto")]
    decode_path: String,
    /// Tensor-parallel ranks: threads of this process, each with its part of the weights, the cache and the processors. 1 to
    /// 8; it must divide the model's heads, and on the GQA path divide its groups or be divided by them.
    #[arg(long, alias = "tensor-parallel-size", default_value_t = 1)]
    tp: u32,
    /// Drafted tokens per step of a sequence at most, 0 to 15. Texts are the same with and without. The last of several counts, so that the operator's can be overridden.
    #[arg(long, visible_alias = "num-speculative-tokens", default_value_t = 0, overrides_with = "mtp")]
    mtp: usize,
    /// Where drafts come from.
    #[arg(long, value_enum, default_value_t = SpeculativeMethod::Auto)]
    speculative_method: SpeculativeMethod,
    /// How many of --mtp's drafts a step gets.
    #[arg(long, value_enum, default_value_t = SpeculativeDepth::Adaptive)]
    speculative_depth: SpeculativeDepth,
    /// Shortest run of tokens that ngram looks for further up in the text.
    #[arg(long, default_value_t = PromptLookup::default().min())]
    prompt_lookup_min: usize,
    /// Longest run of tokens that ngram looks for.
    #[arg(long, default_value_t = PromptLookup::default().max())]
    prompt_lookup_max: usize,
    /// Where to compute.
    #[arg(long, value_enum, default_value_t = Device::Cpu)]
    device: Device,
    /// Address of the OpenAI API.
    #[arg(long, default_value = "0.0.0.0:8000")]
    listen: SocketAddr,
    /// Address of /livez, /readyz, /startupz and /metrics.
    #[arg(long, default_value = "0.0.0.0:9090")]
    admin_listen: SocketAddr,
    /// Prompt plus answer, in tokens; by default the model's own limit.
    #[arg(long)]
    max_model_len: Option<NonZeroUsize>,
    /// Sequences decoded at once.
    #[arg(long, default_value = "32")]
    max_num_seqs: NonZeroUsize,
    /// Sequences that may wait; further ones get 429.
    #[arg(long, default_value = "256")]
    max_queued_requests: NonZeroUsize,
    /// Share of the memory free after the weights and a step's buffers that the cache may take; touched only as far as
    /// it is used. Control groups' limits count.
    #[arg(long, default_value_t = 0.5, conflicts_with = "kv_cache_bytes", value_parser = share)]
    kv_cache_share: f64,
    /// Memory the cache may take, in bytes, instead of a share.
    #[arg(long)]
    kv_cache_bytes: Option<u64>,
    /// What the cache's numbers are stored as; bf16 takes half the memory, int8 about a quarter. CUDA stores bf16 whatever
    /// this says.
    #[arg(long, value_enum, default_value = CacheFormat::CPU_DEFAULT.name())]
    kv_cache_dtype: KvCacheDtype,
    /// Folder with images of the CUDA kernels (cubin, PTX), as `gqla kernels build` makes; unless set, the container image's
    /// own. What it lacks, NVRTC compiles when the server starts.
    #[arg(long)]
    kernel_images: Option<PathBuf>,
    /// What multiplies prompts on a GPU. cublaslt opens CUDA 12's libcublasLt.so.12, which the image's target server-cublaslt has, and may be faster;
    /// a prompt's numbers then depend, within rounding, on what shared its steps, and so may its text. Tokens that are decoded
    /// and drafts are computed as ever. Has run on no GPU yet; `gqla kernels selftest --cublaslt` tries it on yours.
    #[arg(long, value_enum, default_value_t = PromptGemm::Own)]
    prompt_gemm: PromptGemm,
    /// How prompts attend along the absorb path on a GPU. groups makes keys and values of the cached latents for a step: fewer
    /// multiplications, as along the GQA path, for memory of one layer's keys and values of the longest sequence. A prompt's numbers
    /// then depend, within rounding, on how steps cut it. Has run on no GPU yet.
    #[arg(long, value_enum, default_value_t = PromptAttention::Latents)]
    prompt_attention: PromptAttention,
    /// What the weights are kept as; int8 takes half the memory of bf16 and rounds when the model is loaded.
    #[arg(long, value_enum, default_value_t = WeightDtype::Auto)]
    weight_dtype: WeightDtype,
    /// What bf16 weights are multiplied with. bf16 rounds activations where the processor multiplies bf16 (AMX,
    /// AVX-512-BF16) and reads prompts several times faster; elsewhere it is f32.
    #[arg(long, value_enum, default_value_t = ComputeDtype::F32)]
    compute_dtype: ComputeDtype,
    /// File with the key that clients must send as a bearer token.
    #[arg(long)]
    api_key_file: Option<PathBuf>,
    /// Largest request body, in bytes.
    #[arg(long, default_value_t = 4 << 20)]
    max_body_bytes: usize,
    /// Seconds after SIGTERM in which new requests are still taken, so that load balancers can look away.
    #[arg(long, default_value = "5", value_parser = seconds)]
    lame_duck: Duration,
    /// Seconds that running requests then have to finish.
    #[arg(long, default_value = "30", value_parser = seconds)]
    drain_timeout: Duration,
    /// Seconds without a scheduler heartbeat after which /livez fails. Must exceed the longest prefill step.
    #[arg(long, default_value = "120", value_parser = seconds)]
    liveness_timeout: Duration,
}

/// What the binary was asked to do.
#[derive(Debug)]
pub enum Command {
    /// `gqla-server inspect …`
    Inspect(InspectTarget),
    /// `gqla-server …`
    Serve(Box<Config>),
}

/// A request for something this version can't do.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgsError {
    /// Neither a subcommand nor a model.
    #[error("--model is missing: name the model's directory or .gguf file")]
    NoModel,
    /// Measuring a GPU is not a server's job.
    #[error(
        "--device cuda --decode-path auto: the server plans for its own processor only; name the path, as `gqla plan` \
         says for the GPU: --decode-path mqa-absorb or gqa"
    )]
    CudaPath,
    /// Several GPUs.
    #[error("--device cuda --tp {0}: this version runs on one GPU; use --tp 1, or --device cpu")]
    CudaTensorParallel(u32),
    /// A GPU's library on a processor.
    #[error(
        "--prompt-gemm cublaslt: cuBLASLt multiplies on NVIDIA GPUs only; use --device cuda, or --prompt-gemm own"
    )]
    CpuPromptGemm,
    /// Only the CUDA backend has both forms.
    #[error(
        "--prompt-attention groups: prompts attend so on NVIDIA GPUs only; use --device cuda, or leave it out"
    )]
    CpuPromptAttention,
    /// No rank, or too many.
    #[error("--tp {0}: expected 1 to {MAX_RANKS} ranks")]
    TensorParallel(u32),
    /// A number of drafts that cannot be.
    #[error("--mtp: {0}; 0 drafts nothing")]
    Drafts(SpeculationError),
    /// N-grams that cannot be.
    #[error("--prompt-lookup-min and --prompt-lookup-max: {0}")]
    PromptLookup(SpeculationError),
    /// An unknown path.
    #[error("--decode-path {0}: expected auto, mqa-absorb or gqa")]
    DecodePath(String),
    /// No name to serve under.
    #[error("--served-model-name is missing, and --model {} has no last part to take it from", model.display())]
    NoName {
        /// The path given.
        model: PathBuf,
    },
}

/// A server this version can run.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Directory or file.
    pub model: PathBuf,
    /// The name clients ask for.
    pub served_name: String,
    /// What computes.
    pub device: Device,
    /// Folder of the CUDA kernels' images.
    pub kernel_images: Option<PathBuf>,
    /// What multiplies prompts on a GPU.
    pub prompt_gemm: cuda::PromptGemm,
    /// How prompts attend along the absorb path on a GPU.
    pub prompt_attention: cuda::PromptAttention,
    /// `None` asks the planner.
    pub decode_path: Option<DecodePath>,
    /// Tensor-parallel ranks.
    pub tensor_parallel: u32,
    /// Address of the OpenAI API.
    pub listen: SocketAddr,
    /// Address of probes and metrics.
    pub admin_listen: SocketAddr,
    /// Prompt plus answer, in tokens; `None` takes the model's limit.
    pub max_model_len: Option<usize>,
    /// Admission bounds.
    pub limits: Limits,
    /// Memory the cache may take.
    pub kv_cache: CacheMemory,
    /// What its numbers are stored as.
    pub kv_cache_format: CacheFormat,
    /// Drafts, if any.
    pub drafts: Option<Drafts>,
    /// What the weights are kept as and multiplied with.
    pub precision: Precision,
    /// File with the bearer token.
    pub api_key_file: Option<PathBuf>,
    /// After SIGTERM new requests are still taken this long.
    pub lame_duck: Duration,
    /// Then running ones have this long.
    pub drain_timeout: Duration,
    /// Oldest heartbeat that counts as alive.
    pub liveness_timeout: Duration,
}

/// What clients may use at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences decoded at once.
    pub running: usize,
    /// Sequences waiting.
    pub queued: usize,
    /// Bytes of a request body.
    pub body_bytes: usize,
}

impl Args {
    /// Splits into subcommands and refuses what this version lacks.
    pub fn command(self) -> Result<Command, ArgsError> {
        match (self.action, self.serve) {
            (Some(Action::Inspect(target)), _) => Ok(Command::Inspect(target)),
            (None, Some(serve)) => serve.validate().map(|config| Command::Serve(Box::new(config))),
            (None, None) => Err(ArgsError::NoModel),
        }
    }
}

impl ServeArgs {
    fn validate(self) -> Result<Config, ArgsError> {
        match (self.device, self.tp) {
            (_, tp) if !(1..=MAX_RANKS).contains(&tp) => return Err(ArgsError::TensorParallel(tp)),
            (Device::Cuda, tp @ 2..) => return Err(ArgsError::CudaTensorParallel(tp)),
            _ => {}
        }
        if (self.device, self.prompt_gemm) == (Device::Cpu, PromptGemm::Cublaslt) {
            return Err(ArgsError::CpuPromptGemm);
        }
        if (self.device, self.prompt_attention) == (Device::Cpu, PromptAttention::Groups) {
            return Err(ArgsError::CpuPromptAttention);
        }
        let drafts = self.drafts()?;
        let decode_path = match self.decode_path.as_str() {
            "auto" => None,
            name => Some(name.parse().map_err(|_| ArgsError::DecodePath(name.to_owned()))?),
        };
        if self.device == Device::Cuda && decode_path.is_none() {
            return Err(ArgsError::CudaPath);
        }
        let last_part = || self.model.file_name().map(|name| name.to_string_lossy().into_owned());
        let served_name = self
            .served_model_name
            .or_else(last_part)
            .ok_or_else(|| ArgsError::NoName { model: self.model.clone() })?;
        Ok(Config {
            served_name,
            device: self.device,
            kernel_images: self.kernel_images,
            prompt_gemm: self.prompt_gemm.into(),
            prompt_attention: self.prompt_attention.into(),
            decode_path,
            tensor_parallel: self.tp,
            model: self.model,
            listen: self.listen,
            admin_listen: self.admin_listen,
            max_model_len: self.max_model_len.map(NonZeroUsize::get),
            limits: Limits {
                running: self.max_num_seqs.get(),
                queued: self.max_queued_requests.get(),
                body_bytes: self.max_body_bytes,
            },
            kv_cache: self
                .kv_cache_bytes
                .map_or(CacheMemory::FreeShare(self.kv_cache_share), CacheMemory::Bytes),
            kv_cache_format: self.kv_cache_dtype.into(),
            drafts,
            precision: Precision { weights: self.weight_dtype.into(), products: self.compute_dtype.into() },
            api_key_file: self.api_key_file,
            lame_duck: self.lame_duck,
            drain_timeout: self.drain_timeout,
            liveness_timeout: self.liveness_timeout,
        })
    }
}

impl ServeArgs {
    fn drafts(&self) -> Result<Option<Drafts>, ArgsError> {
        if self.mtp == 0 {
            return Ok(None);
        }
        let of = |source| {
            let drafts = Speculation::new(source, self.mtp).map_err(ArgsError::Drafts)?;
            Ok(drafts.with_depth(self.speculative_depth.into()))
        };
        let mtp = of(DraftSource::PredictionLayer)?;
        let lookup = PromptLookup::new(self.prompt_lookup_min, self.prompt_lookup_max);
        let ngram = of(DraftSource::PromptLookup(lookup.map_err(ArgsError::PromptLookup)?))?;
        Ok(Some(match self.speculative_method {
            SpeculativeMethod::Mtp => Drafts::Mtp(mtp),
            SpeculativeMethod::Auto => Drafts::Auto { mtp, ngram },
            SpeculativeMethod::Ngram => Drafts::Ngram(ngram),
        }))
    }
}

fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|share| *share > 0.0 && *share <= 1.0);
    number.ok_or_else(|| format!("expected a number above 0, at most 1, got `{text}`"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
        .ok_or_else(|| format!("expected seconds, e.g. 5 or 0.5, got `{text}`"))
}

#[cfg(test)]
mod tests {
    use gqla_engine::cpu::{Products, Weights};

    use super::*;

    fn parse(line: &str) -> Result<Command, ArgsError> {
        Args::try_parse_from(line.split_whitespace()).unwrap().command()
    }

    fn config(line: &str) -> Config {
        match parse(line).unwrap() {
            Command::Serve(config) => *config,
            Command::Inspect(_) => panic!("expected to serve"),
        }
    }

    #[test]
    fn defaults() {
        let config = config("gqla-server --model /models/smol");
        assert_eq!(config.served_name, "smol");
        assert_eq!(config.decode_path, None);
        assert_eq!(config.listen.port(), 8000);
        assert_eq!(config.admin_listen.port(), 9090);
        assert_eq!(config.limits, Limits { running: 32, queued: 256, body_bytes: 4 << 20 });
        assert_eq!(config.drain_timeout, Duration::from_secs(30));
    }

    #[test]
    fn the_cache_takes_a_share_or_bytes() {
        let default = config("gqla-server --model /m");
        assert_eq!(
            (default.kv_cache, default.kv_cache_format),
            (CacheMemory::FreeShare(0.5), CacheFormat::CPU_DEFAULT)
        );
        let chosen = config("gqla-server --model /m --kv-cache-bytes 4096 --kv-cache-dtype bf16");
        assert_eq!((chosen.kv_cache, chosen.kv_cache_format), (CacheMemory::Bytes(4096), CacheFormat::Bf16));
        for format in CacheFormat::ALL {
            let chosen = config(&format!("gqla-server --model /m --kv-cache-dtype {format}"));
            assert_eq!(chosen.kv_cache_format, format);
        }
        assert_eq!(
            config("gqla-server --model /m --kv-cache-share 0.9").kv_cache,
            CacheMemory::FreeShare(0.9)
        );
        for wrong in ["--kv-cache-share 0", "--kv-cache-share 1.1", "--kv-cache-share 0.5 --kv-cache-bytes 1"]
        {
            let line = format!("gqla-server --model /m {wrong}");
            assert!(Args::try_parse_from(line.split_whitespace()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn weights_stay_as_they_are_unless_told_otherwise() {
        assert_eq!(config("gqla-server --model /m").precision, Precision::default());
        assert_eq!(config("gqla-server --model /m --weight-dtype int8").precision.weights, Weights::Int8);
        assert_eq!(config("gqla-server --model /m --compute-dtype bf16").precision.products, Products::Bf16);
    }

    #[test]
    fn the_contract_line_parses() {
        let config = config(
            "gqla-server --model /m --served-model-name n --decode-path mqa-absorb --tp 1 --mtp 0 --device cpu \
             --listen 0.0.0.0:1 --admin-listen 0.0.0.0:2 --max-model-len 64 --max-num-seqs 2 \
             --max-queued-requests 3 --api-key-file /k --lame-duck 0.5",
        );
        assert_eq!(config.decode_path, Some(DecodePath::MqaAbsorb));
        assert_eq!(config.max_model_len, Some(64));
        assert_eq!(config.lame_duck, Duration::from_millis(500));
    }

    #[test]
    fn what_this_version_lacks_is_refused_by_name() {
        for (flags, error) in [
            ("--device cuda", ArgsError::CudaPath),
            ("--device cuda --decode-path gqa --tp 2", ArgsError::CudaTensorParallel(2)),
            ("--tp 9", ArgsError::TensorParallel(9)),
            ("--tp 0", ArgsError::TensorParallel(0)),
            ("--mtp 16", ArgsError::Drafts(SpeculationError::Tokens { tokens: 16 })),
            (
                "--mtp 1 --prompt-lookup-min 6",
                ArgsError::PromptLookup(SpeculationError::NGrams { min: 6, max: 5 }),
            ),
            ("--decode-path mla", ArgsError::DecodePath("mla".to_owned())),
            ("--prompt-gemm cublaslt", ArgsError::CpuPromptGemm),
            ("--prompt-attention groups", ArgsError::CpuPromptAttention),
        ] {
            assert_eq!(parse(&format!("gqla-server --model /m {flags}")).unwrap_err(), error);
        }
    }

    #[test]
    fn prompts_are_computed_another_way_only_if_asked() {
        let cuda = "gqla-server --model /m --device cuda --decode-path gqa";
        assert_eq!(config(cuda).prompt_gemm, cuda::PromptGemm::Own);
        assert_eq!(config(&format!("{cuda} --prompt-gemm cublaslt")).prompt_gemm, cuda::PromptGemm::CublasLt);
        assert_eq!(config(cuda).prompt_attention, cuda::PromptAttention::Latents);
        let groups = config(&format!("{cuda} --prompt-attention groups"));
        assert_eq!(groups.prompt_attention, cuda::PromptAttention::Groups);
    }

    #[test]
    fn ranks_go_by_either_name() {
        assert_eq!(config("gqla-server --model /m").tensor_parallel, 1);
        for flag in ["--tp", "--tensor-parallel-size"] {
            assert_eq!(config(&format!("gqla-server --model /m {flag} 8")).tensor_parallel, 8);
        }
    }

    #[test]
    fn drafts_come_from_where_they_are_wanted_unless_they_are_off() {
        let drafts = |flags: &str| config(&format!("gqla-server --model /m {flags}")).drafts;
        let of = |source, tokens| Speculation::new(source, tokens).unwrap();
        let lookup = |min, max| DraftSource::PromptLookup(PromptLookup::new(min, max).unwrap());
        let layer = DraftSource::PredictionLayer;
        let fixed = of(layer, 2).with_depth(SpeculativeDepth::Fixed.into());
        let auto = |ngram, tokens| Drafts::Auto { mtp: of(layer, tokens), ngram: of(ngram, tokens) };
        for (flags, expected) in [
            ("", None),
            ("--mtp 0 --speculative-method mtp", None),
            ("--mtp 1", Some(auto(lookup(2, 5), 1))),
            ("--mtp 2 --speculative-method mtp", Some(Drafts::Mtp(of(layer, 2)))),
            (
                "--mtp 0 --num-speculative-tokens 5 --speculative-method ngram",
                Some(Drafts::Ngram(of(lookup(2, 5), 5))),
            ),
            ("--mtp 15 --prompt-lookup-min 3 --prompt-lookup-max 3", Some(auto(lookup(3, 3), 15))),
            ("--device cuda --decode-path gqa --mtp 1", Some(auto(lookup(2, 5), 1))),
            ("--mtp 2 --speculative-method mtp --speculative-depth fixed", Some(Drafts::Mtp(fixed))),
        ] {
            assert_eq!(drafts(flags), expected, "{flags}");
        }
    }

    #[test]
    fn inspect_needs_no_serving_flags() {
        let command = parse("gqla-server inspect --model /m --output /dev/termination-log").unwrap();
        assert!(matches!(command, Command::Inspect(target) if target.output.ends_with("termination-log")));
    }
}
