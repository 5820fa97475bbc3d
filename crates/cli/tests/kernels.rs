//! `gqla kernels` as a user runs it, on the stand-in for libcuda: what the kernels take is the least that their shapes need,
//! and what was counted before.
//!
//! `GQLA_TEST_NVRTC` names the folder that holds NVRTC 12, as `cargo xtask test` does; `cargo xtask nvrtc` prints it.
//! Without it these tests fail, because passing would claim something nobody checked.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap is a failed test")]

mod stand_in;

use std::{collections::BTreeSet, fs, path::Path, process::Output};

use gqla_fakecuda::install_cublaslt;
use serde_json::Value;
use stand_in::gqla;
use tempfile::TempDir;

const BASELINE: &str = "../kernels/baseline.json";
/// Multiplications and additions of a matrix instruction, 16 x 8 x 16.
const MMA: u64 = 2048;
const REGISTERS_PER_BLOCK: u64 = 65536;
/// What images have machine code for.
const ARCHITECTURES: &str = "sm_80,sm_89,sm_90,sm_100,sm_120";

/// Runs `gqla kernels` where libcuda shows `devices`.
fn kernels(devices: &str, args: &[&str]) -> Output {
    kernels_beside(&tempfile::tempdir().unwrap(), devices, args)
}

/// The same with what else is in the folder that the stand-in is put into.
fn kernels_beside(folder: &TempDir, devices: &str, args: &[&str]) -> Output {
    gqla(folder.path(), true, devices, &[&["kernels"], args].concat())
}

fn rows(output: &Output) -> Vec<Value> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["kernels"].as_array().unwrap().clone()
}

/// A number of a row, or of its shape.
fn number(row: &Value, key: &str) -> u64 {
    let found = row[key].as_u64().or_else(|| row["shape"][key].as_u64());
    found.unwrap_or_else(|| panic!("no {key} in {row}"))
}

/// Rows and tokens of a block's tile of queries: rows of a later query see more tokens.
struct Tile {
    rows: u64,
    tokens: u64,
}

/// Rows that a block takes, by the kernel's name: `…_rows64`.
fn of_block(row: &Value) -> u64 {
    row["name"].as_str().unwrap().rsplit_once("rows").unwrap().1.parse().unwrap()
}

/// What a block of an architecture may have, bytes.
fn shared_per_block(row: &Value) -> u64 {
    match row["arch"].as_str().unwrap() {
        "sm_80" => 163 << 10,
        "sm_89" => 99 << 10,
        "sm_90" => 227 << 10,
        other => panic!("no launch is counted on {other}"),
    }
}

/// Rows of a warp and tokens of a stage along absorb, which multiplications fill up: a warp has two tiles of 16 rows where
/// there are more than one and registers have no queries.
fn whole_along_absorb(row: &Value) -> (u64, u64) {
    match row["name"].as_str().unwrap().strip_prefix("absorb_decode_tokens").unwrap().split_once('_').unwrap()
    {
        ("16", _) => (16, 16),
        (tokens, "rows16") => (16, tokens.parse().unwrap()),
        (tokens, _) => (32, tokens.parse().unwrap()),
    }
}

/// The tiles of the rows that share keys.
fn tiles(row: &Value, groups: u64) -> Vec<Tile> {
    let of_block = of_block(row);
    let of = |key: &str| number(row, key);
    let per_query = of("heads") / groups;
    let all = per_query * of("s_q");
    let tile = |index: u64| {
        let (first, end) = (index * of_block, ((index + 1) * of_block).min(all));
        Tile { rows: end - first, tokens: of("tokens") - of("s_q") + (end - 1) / per_query + 1 }
    };
    (0..all.div_ceil(of_block)).map(tile).collect()
}

/// Keys and values, or latents, are read once per tile of rows that share them, and nothing is multiplied but what fills up
/// matrix instructions.
fn assert_decode_is_minimal(row: &Value) {
    let of = |key: &str| number(row, key);
    let absorbs = row["name"].as_str().unwrap().starts_with("absorb");
    let groups = if absorbs { 1 } else { of("groups") };
    let tiles = tiles(row, groups);
    assert_eq!(tiles.len() as u64, of("row_tiles"), "{row}");
    let rows = of("heads") / groups * of("s_q");
    assert_eq!(of("row_tiles"), rows.div_ceil(64), "up to 64 rows share what is read: {row}");
    let (key, value, bytes_per_token) = if absorbs {
        (of("r") + of("d_rope"), of("r"), 2 * (of("r") + of("d_rope")))
    } else {
        let (nope, rope, value) = (of("d_nope"), of("d_rope"), of("d_v"));
        (nope + rope, value, groups * 2 * (nope + value + rope))
    };
    let bytes: u64 = tiles.iter().map(|tile| tile.tokens * bytes_per_token).sum();
    assert_eq!(of("kv_bytes_read"), bytes, "{row}");
    // The same without looking at which rows see the last tokens.
    let ratio = bytes as f64 / (bytes_per_token * of("tokens") * of("row_tiles")) as f64;
    assert!((0.995..=1.0).contains(&ratio), "{ratio} of {row}");
    let (whole, stage) = if absorbs { whole_along_absorb(row) } else { (16, 64) };
    let multiplied = |tile: &Tile| {
        tile.rows.next_multiple_of(whole) * tile.tokens.next_multiple_of(stage) * (key + value) * groups / MMA
    };
    assert_eq!(of("mma"), tiles.iter().map(multiplied).sum::<u64>(), "{row}");
    // Row by row: those of a later query see a token more.
    let seen: u64 = (1..=of("s_q")).map(|query| of("tokens") - of("s_q") + query).sum();
    let needed = (seen * of("heads") * (key + value)).div_ceil(MMA);
    assert_eq!(of("mma_useful"), needed, "{row}");
    assert_eq!(of("mma_padding"), of("mma") - needed, "{row}");
}

fn assert_fits(row: &Value) {
    let (registers, threads) = (number(row, "registers"), number(row, "threads"));
    assert_eq!(number(row, "spills"), 0, "{row}");
    assert!(registers <= 255 && registers.next_multiple_of(8) * threads <= REGISTERS_PER_BLOCK, "{row}");
    assert!(number(row, "smem_bytes") <= shared_per_block(row), "{row}");
}

/// No kernel spills on any architecture, and each is there for all: those that were launched, and those that another card or
/// shape would take.
fn assert_every_kernel_fits_everywhere(rows: &[Value]) {
    let assembled = |arch: &str| -> BTreeSet<String> {
        let of_arch = rows.iter().filter(|row| row["arch"] == arch && row.get("threads").is_none());
        of_arch
            .map(|row| {
                assert_eq!(number(row, "spills"), 0, "{row}");
                assert!((1..=255).contains(&number(row, "registers")), "{row}");
                format!("{} {}", row["name"].as_str().unwrap(), row["shape"])
            })
            .collect()
    };
    let everywhere: Vec<_> = ARCHITECTURES.split(',').map(assembled).collect();
    assert!(everywhere.iter().all(|kernels| *kernels == everywhere[0]), "{everywhere:?}");
    // For each width of heads, as many kernels that attend, and one that merges.
    for (path, attending) in [("gqa", 7), ("absorb", 6)] {
        let of = |kind: &str| {
            let prefix = format!("{path}_{kind}");
            everywhere[0].iter().filter(|kernel| kernel.starts_with(&prefix)).count()
        };
        assert_eq!(of("decode"), attending * of("merge"), "{path}: {:?}", everywhere[0]);
    }
    for row in rows {
        let name = row["name"].as_str().unwrap();
        assert!(everywhere[0].iter().any(|kernel| kernel.split(' ').next() == Some(name)), "{row}");
    }
}

/// Where two rows differ, for people.
fn differences(was: &Value, is: &Value) -> Vec<String> {
    let keys = was.as_object().into_iter().chain(is.as_object()).flat_map(|row| row.keys());
    let mut keys: Vec<_> = keys.filter(|key| was[key.as_str()] != is[key.as_str()]).collect();
    keys.sort();
    keys.dedup();
    keys.iter().map(|key| format!("{key} was {}, is {}", was[key.as_str()], is[key.as_str()])).collect()
}

/// Held to what their shapes need: rows of kernels that attend, and of products.
fn assert_launches_are_minimal(rows: &[Value]) -> (usize, usize) {
    let (mut attending, mut products) = (0, 0);
    for row in rows.iter().filter(|row| row.get("threads").is_some()) {
        assert_fits(row);
        let name = row["name"].as_str().unwrap();
        if name.contains("_decode_") {
            assert_decode_is_minimal(row);
            attending += 1;
        }
        if name.starts_with("gemm") {
            let [m, n, k] = ["rows", "outputs", "inputs"].map(|key| number(row, key));
            assert_eq!(number(row, "mma"), m * n * k / MMA, "{row}");
            assert_eq!(
                (number(row, "mma_useful"), number(row, "mma_padding")),
                (m * n * k / MMA, 0),
                "{row}"
            );
            products += 1;
        }
    }
    (attending, products)
}

/// Held to rows of the baseline.
fn assert_as_before(rows: &[Value], is_of_these: impl Fn(&Value) -> bool) {
    let baseline = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(BASELINE)).unwrap();
    let baseline: Value = serde_json::from_str(&baseline).unwrap();
    let all = baseline["kernels"].as_array().unwrap().iter();
    let baseline: Vec<&Value> = all.filter(|row| is_of_these(row)).collect();
    let changed: Vec<String> = baseline
        .iter()
        .zip(rows)
        .filter(|(was, is)| **was != *is)
        .map(|(was, is)| format!("{} {}: {}", is["name"], is["shape"], differences(was, is).join(", ")))
        .collect();
    assert!(
        changed.is_empty() && baseline.len() == rows.len(),
        "{} kernels, the baseline has {}; {} changed:\n{}\nIf that is meant, write the baseline anew with \
         `cargo xtask kernels` and say in the commit what got better or worse",
        rows.len(),
        baseline.len(),
        changed.len(),
        changed.join("\n")
    );
}

/// Launches on cards with less shared memory than the others'.
fn is_small(row: &Value) -> bool {
    row.get("threads").is_some() && row["arch"] != "sm_90"
}

#[test]
fn kernels_take_what_their_shapes_need_and_what_they_took_before() {
    let rows = rows(&kernels("H20", &["report", "-o", "json", "--arch", ARCHITECTURES]));
    assert_every_kernel_fits_everywhere(&rows);
    // Five different attentions, two paths, 1 to 4 query tokens; three products with three destinations.
    assert_eq!(assert_launches_are_minimal(&rows), (40, 9));
    assert_as_before(&rows, |row| !is_small(row));
}

/// Those that cards with less shared memory take; GLM has the widest heads.
#[test]
fn smaller_cards_take_what_their_shapes_need_and_what_they_took_before() {
    let rows = rows(&kernels("A100,L40S", &["report", "-o", "json", "--model", "glm-4.7-flash-gqla"]));
    assert_eq!(assert_launches_are_minimal(&rows), (16, 18));
    assert_as_before(&rows, is_small);
}

/// An L40S has room for one page of GLM's wide heads along the GQA path, and none for heads twice as wide, which is no failure.
#[test]
fn a_card_is_tried_and_says_what_it_has_no_kernel_for() {
    let folder = tempfile::tempdir().unwrap();
    let wide = folder.path().join("config.json");
    let fixture =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama_a/llama_gqla_a/config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(fixture).unwrap()).unwrap();
    for (field, width) in [("qk_nope_head_dim", 192), ("qk_rope_head_dim", 64), ("v_head_dim", 512)] {
        config[field] = width.into();
    }
    fs::write(&wide, config.to_string()).unwrap();
    let models = format!("glm-4.7-flash-gqla,{}", wide.display());
    let output = kernels("L40S", &["selftest", "--model", &models, "-o", "json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let test: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(test["driver"]["cuda"], "12.9");
    let card = &test["devices"][0];
    assert_eq!((&card["name"], &card["compute_capability"]), (&"NVIDIA L40S".into(), &"8.9".into()));
    let rows = card["kernels"].as_array().unwrap();
    // Two attentions, two paths and 1 to 4 query tokens, nine products, two mixtures of experts, seven kernels for rows and one
    // that draws.
    assert_eq!(rows.len(), 35);
    for row in rows {
        if row["shape"]["d_v"] == 512 && row["kernel"].as_str().unwrap().starts_with("gqa") {
            assert_eq!((&row["verdict"], &row["relative_rms"]), (&"none".into(), &Value::Null), "{row}");
            assert!(row["reason"].as_str().unwrap().contains("sm_89: heads of 192 + 64 and 512"), "{row}");
        } else {
            assert_eq!((&row["verdict"], &row["image"]), (&"ok".into(), &"PTX from NVRTC".into()), "{row}");
            assert!(row["relative_rms"].as_f64().unwrap() <= row["bound"].as_f64().unwrap(), "{row}");
        }
    }
}

/// A T4 multiplies no bf16: nothing is looked for, neither images nor NVRTC, and every trial says why in one sentence.
#[test]
fn a_card_that_is_too_old_is_told_so_once() {
    let folder = tempfile::tempdir().unwrap();
    let selftest = |format| {
        let args = ["kernels", "selftest", "--model", "smollm2-135m-gqla", "-o", format];
        let output = gqla(folder.path(), false, "T4", &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let sentence =
        "the card has compute capability 7.5, and kernels need 8.0 or higher: use the CPU or another GPU";
    let test: Value = serde_json::from_slice(&selftest("json")).unwrap();
    let rows = test["devices"][0]["kernels"].as_array().unwrap();
    assert_eq!(rows.len(), 27);
    for row in rows {
        assert_eq!((&row["verdict"], &row["reason"]), (&"none".into(), &sentence.into()), "{row}");
    }
    let table = String::from_utf8(selftest("table")).unwrap();
    assert_eq!(table.matches(sentence).count(), 1, "{table}");
}

/// Trials of cuBLASLt are passed with it and failed without, and nobody who does not ask needs it.
#[test]
fn cublaslt_is_tried_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let args = ["selftest", "--cublaslt", "--model", "smollm2-135m-gqla", "-o", "json"];
    let of_library = |output: &Output| -> Vec<Value> {
        let test: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut rows = test["devices"][0]["kernels"].as_array().unwrap().clone();
        rows.retain(|row| row["kernel"].as_str().unwrap().starts_with("cublasLtMatmul"));
        rows
    };
    let without = kernels_beside(&folder, "H20", &args);
    let told = String::from_utf8_lossy(&without.stderr);
    assert!(!without.status.success() && told.contains("error: 3 of 30 trials failed"), "{told}");
    for row in of_library(&without) {
        assert!(row["reason"].as_str().unwrap().contains("`libcublasLt.so.12`"), "{row}");
    }
    install_cublaslt(folder.path()).unwrap();
    let with = kernels_beside(&folder, "H20", &args);
    assert!(with.status.success(), "{}", String::from_utf8_lossy(&with.stderr));
    let rows = of_library(&with);
    assert!(rows.len() == 3 && rows.iter().all(|row| row["verdict"] == "ok"), "{rows:?}");
}

#[test]
fn without_a_card_there_is_a_sentence() {
    let output = kernels("", &["selftest"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(told.contains("error: asking for devices failed: CUDA_ERROR_NO_DEVICE"), "{told}");
}

/// Images cannot be made without a compiler, which is told before a file is written.
#[test]
fn without_nvrtc_there_is_a_sentence() {
    let (folder, images) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let out = images.path().to_str().unwrap();
    let args = ["kernels", "build", "--out", out, "--model", "smollm2-135m-gqla"];
    let output = gqla(folder.path(), false, "", &args);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    let expected = format!(
        "error: cannot make the image `{out}/absorb_decode-320-64-sm_80.cubin`: libnvrtc.so.12 is not"
    );
    assert!(told.contains(&expected) && !told.contains("panicked"), "{told}");
    assert_eq!(fs::read_dir(images.path()).unwrap().count(), 0);
}

/// Machine code and PTX that do not hold a kernel fail the trial and the command, with each step's reason.
#[test]
fn a_kernel_that_does_not_load_fails() {
    let images = tempfile::tempdir().unwrap();
    let empty = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry other()\n{\nret;\n}\n";
    for program in ["gemm", "experts", "rows", "sample", "gqa_decode-64-64-64", "absorb_decode-320-64"] {
        fs::write(images.path().join(format!("{program}-compute_80.ptx")), empty).unwrap();
    }
    let folder = images.path().to_str().unwrap();
    let output = kernels(
        "H20",
        &["selftest", "--model", "smollm2-135m-gqla", "-o", "json", "--kernel-images", folder],
    );
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("error: 27 of 27 trials failed"), "{told}");
    let test: Value = serde_json::from_slice(&output.stdout).unwrap();
    for row in test["devices"][0]["kernels"].as_array().unwrap() {
        let reason = row["reason"].as_str().unwrap();
        assert!(row["verdict"] == "failed" && reason.starts_with("looking for kernel `"), "{row}");
    }
}

/// Images made without a GPU are what a server takes; the stand-in has no use for the machine code among them.
#[test]
fn images_in_a_folder_are_taken() {
    let images = tempfile::tempdir().unwrap();
    let folder = images.path().to_str().unwrap();
    let model = ["--model", "smollm2-135m-gqla"];
    let built = kernels("", &[&["build", "--out", folder, "--arch", "sm_90"], &model[..]].concat());
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let cubin = fs::read(images.path().join("gqa_decode-64-64-64-sm_90.cubin")).unwrap();
    assert!(cubin.starts_with(b"\x7fELF"));
    let output =
        kernels("H20", &[&["selftest", "-o", "json", "--kernel-images", folder], &model[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let test: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = test["devices"][0]["kernels"].as_array().unwrap();
    assert!(rows.len() == 27 && rows.iter().all(|row| row["image"] == "PTX file"), "{test}");
}
